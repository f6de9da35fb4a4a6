"""Tokens, masks, log-probabilities, advantages and losses of the scripts, on the tiny model in 4 bit."""

import copy
import errno
import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal
from unittest.mock import MagicMock

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

import train_ppo_lora as ppo
import train_rl_lora as rl
import train_sft_lora as sft
from sandbox import Result, encode_prompt, read_tasks, reference

TASKS = read_tasks(ROOT / "data/mini_dev.jsonl")
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
EIGHT = torch.tensor([8])


def add_adapter(base, dropout=0.05):
    """A LoRA adapter that does something: its B matrices are not zero."""
    torch.manual_seed(1)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=sorted(PROJECTIONS))
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def uniform_numbers(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def sample(*arguments, **options):
    """All completions of ppo.generate, in the order of the prompts."""
    completions = dict(ppo.generate(*arguments, **options))
    return [completions[i] for i in range(len(completions))]


@pytest.fixture(scope="module")
def policy():
    """(model, tokenizer): tiny model, rounded to 4 bit and unpacked, with an adapter that has dropout."""
    base, tokenizer = ppo.load_base(str(ROOT / "data/tiny_coder"), "cpu")
    return add_adapter(base), tokenizer


@pytest.fixture(scope="module")
def samples(policy):
    """Samples of six tasks; lengths differ."""
    model, tokenizer = policy
    prompt_ids = [encode_prompt(tokenizer, task) for task in TASKS[:6]]
    completion_ids = sample(model, tokenizer, prompt_ids, 48, uniform_numbers(6, 48))
    assert len(set(map(len, prompt_ids))) > 1 and len(set(map(len, completion_ids))) > 1
    return [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids)]


# ---- model ----


@pytest.fixture(scope="module")
def packed():
    """The same policy with the weights left in 4 bit, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "dequantize", lambda model: model)
        base, _ = ppo.load_base(str(ROOT / "data/tiny_coder"), "cpu")
    for module in base.modules():  # with AVX512-BF16, bitsandbytes has a kernel without gradients
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return add_adapter(base)


def test_base_is_quantised_to_4_bit(packed):
    quantised = {name.split(".")[-2] for name, m in packed.named_modules() if isinstance(m, Linear4bit)}
    assert PROJECTIONS <= quantised
    weight = next(m.weight for m in packed.modules() if isinstance(m, Linear4bit))
    assert weight.quant_type == "nf4" and weight.quant_state.nested  # nested = double quantisation


def test_unpacked_weights_are_the_rounded_ones(policy, packed):
    model, _ = policy
    unpacked = dict(model.named_modules())
    for name, module in packed.named_modules():
        if isinstance(module, Linear4bit):
            rounded = dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert unpacked[name].weight.equal(rounded)
            assert len(rounded.flatten()[:64].unique()) <= 16  # in one block of 64 weights


def test_packed_weights_give_the_same_log_probs_and_a_ratio_of_1(policy, packed, samples):
    """After a rollout, the dropout of the adapter changes no score, although the model was in train mode."""
    model, tokenizer = policy
    packed.train()
    sample(packed, tokenizer, [samples[0]["prompt_ids"]], 1)
    old, _ = ppo.completion_logprobs(packed, tokenizer, samples, 1.0)
    new, _ = ppo.completion_logprobs(packed, tokenizer, samples, 1.0)
    assert ((new - old).sum(-1).exp() - 1).abs().max() < 1e-3
    assert (new - ppo.completion_logprobs(model, tokenizer, samples, 1.0)[0]).abs().max() < 1e-4
    new.sum().backward()
    assert sum(p.grad.norm() for p in packed.parameters() if p.requires_grad) > 0


def test_adapter_survives_saving_and_only_lora_is_trained_in_float32(policy, tmp_path):
    model, tokenizer = policy
    ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    again, _ = ppo.load_adapter(str(tmp_path), "cpu", is_trainable=True)
    plain = PeftModel.from_pretrained(ppo.load_base(str(ROOT / "data/tiny_coder"), "cpu")[0], tmp_path)
    ids = torch.tensor([encode_prompt(tokenizer, TASKS[0])])
    expected = model.eval()(ids).logits
    assert torch.equal(again.eval()(ids).logits, expected)
    assert torch.equal(plain.eval()(ids).logits, expected)
    trainable = [(name, p.dtype) for name, p in again.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 4  # A and B, seven projections, four layers
    assert all("lora_" in name and dtype == torch.float32 for name, dtype in trainable)


def test_half_written_adapter_is_not_called_complete(policy, tmp_path, monkeypatch):
    model, tokenizer = policy
    ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    assert (tmp_path / "run_config.json").is_file()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(tokenizer, "save_pretrained", MagicMock(side_effect=full))
    with pytest.raises(OSError, match="No space left"):
        ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    assert not (tmp_path / "run_config.json").exists()


# ---- tokens and masks ----


def test_prompt_and_solution_tokenise_as_the_whole_text(policy):
    """The border is where pretraining had it: the newline belongs to the indentation after it."""
    _, tokenizer = policy
    for task in TASKS:
        ids, _ = sft.encode_row(tokenizer, task, 1024)
        whole = tokenizer(task["prompt"] + task["canonical_solution"])["input_ids"]
        assert ids == [*whole, tokenizer.eos_token_id]
        assert ids[0] == tokenizer.bos_token_id


def test_sft_labels(policy):
    _, tokenizer = policy
    for task in TASKS:
        ids, labels = sft.encode_row(tokenizer, task, 1024)
        first = len(encode_prompt(tokenizer, task))
        assert ids[:first] == encode_prompt(tokenizer, task)
        assert labels[:first] == [-100] * first
        assert labels[first:] == ids[first:]
        assert labels[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[first:-1]) == reference(task) == "\n" + task["canonical_solution"]


def test_sft_row_that_is_cut_has_no_eos(policy):
    _, tokenizer = policy
    whole, _ = sft.encode_row(tokenizer, TASKS[0], 1024)
    ids, labels = sft.encode_row(tokenizer, TASKS[0], len(whole) - 3)
    assert len(ids) == len(labels) == len(whole) - 3
    assert tokenizer.eos_token_id not in ids


def test_collate_keeps_eos_although_pad_is_eos(policy):
    _, tokenizer = policy
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [sft.encode_row(tokenizer, task, 1024) for task in TASKS[:4]]
    input_ids, labels = sft.collate(rows, tokenizer.pad_token_id)
    for i, (ids, row_labels) in enumerate(rows):
        assert input_ids[i, : len(ids)].tolist() == ids
        assert labels[i, : len(ids)].tolist() == row_labels
        assert labels[i, len(ids) - 1] == tokenizer.eos_token_id
        assert (labels[i, len(ids) :] == -100).all()


def test_sft_loss_equals_a_loop(policy):
    """Rows of different length, together and apart: neither padding nor its content counts."""
    model, tokenizer = policy
    model.eval()
    rows = [sft.encode_row(tokenizer, task, 1024) for task in TASKS[:3]]
    expected = 0.0
    for ids, row_labels in rows:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected -= sum(logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)) if row_labels[t] != -100)
    for pad in tokenizer.pad_token_id, 17:
        input_ids, labels = sft.collate(rows, pad)
        assert sft.sft_loss(model(input_ids).logits, labels).item() == pytest.approx(expected, rel=1e-5)


# ---- rollout ----


class Chain:
    """Stands in for a model: after token t comes following[t], always. Keeps what it was called with."""

    device = "cpu"
    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, following):
        self.following = following
        self.calls = []
        self.kept = []  # the rows that were kept in the cache

    def eval(self):
        pass

    def batch_select_indices(self, rows):  # it is its own cache
        self.kept.append(rows.tolist())

    def __call__(self, ids, attention_mask, position_ids, **arguments):
        assert self.calls == [] or arguments["cache"] is self
        self.calls.append((ids.tolist(), attention_mask.tolist(), position_ids.tolist()))
        output = Output(cache=self)
        output.logits = torch.zeros(len(ids), 1, 32)
        for row, token in enumerate(ids[:, -1].tolist()):
            output.logits[row, 0, self.following[token]] = 100.0
        return output


class Output(dict):
    logits = None


def test_completion_ends_with_its_first_eos(policy):
    _, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain({5: 7, 7: eos, 6: 9, 9: 10, 10: 9, 4: eos, 0: 0})
    completions = sample(chain, tokenizer, [[0, 5], [0, 3, 6], [4]], 4, uniform_numbers(3, 4))
    assert completions == [[7, eos], [9, 10, 9, 10], [eos]]  # the second was cut: no EOS is appended


def test_rollout_masks_positions_and_stops_paying_for_ended_rows(policy):
    _, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain({5: 7, 7: eos, 6: 9, 9: 10, 10: 9, 4: eos})
    sample(chain, tokenizer, [[0, 5], [0, 3, 6], [4]], 4)
    assert chain.calls[0] == (
        [[eos, 0, 5], [0, 3, 6], [eos, eos, 4]],
        [[0, 1, 1], [1, 1, 1], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 2], [0, 0, 0]],
    )
    assert chain.calls[1] == ([[7], [9]], [[0, 1, 1, 1], [1, 1, 1, 1]], [[2], [3]])
    assert chain.calls[2:] == [([[10]], [[1, 1, 1, 1, 1]], [[4]]), ([[9]], [[1, 1, 1, 1, 1, 1]], [[5]])]
    assert chain.kept == [[0, 1, 2], [0, 1], [1]]


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_sampling_inverts_the_cumulative_distribution(policy, temperature, top_p):
    """A slow reference: one sequence at a time, no cache, no padding, all 1024 tokens (no top_k of 50)."""
    model, tokenizer = policy
    prompt_ids = [encode_prompt(tokenizer, task) for task in TASKS[:3]]
    uniform = uniform_numbers(3, 12)
    model.eval()
    expected = []
    for prompt, numbers in zip(prompt_ids, uniform.tolist()):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[len(prompt) :][-1:] != [tokenizer.eos_token_id]:
            with torch.no_grad():
                p = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
            order = p.argsort(descending=True)
            nucleus = order[: int((p[order].cumsum(0) < top_p).sum()) + 1]  # smallest set of mass top_p
            kept = torch.zeros_like(p)
            kept[nucleus] = p[nucleus]
            kept /= kept.sum()
            total = 0.0
            for token, q in enumerate(kept.tolist()):
                total += q
                if total > numbers[len(ids) - len(prompt)]:
                    break
            ids.append(token)
        expected.append(ids[len(prompt) :])
    assert sample(model, tokenizer, prompt_ids, 12, uniform, temperature, top_p) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_sampled_from_logits_that_are_not_finite(policy, bad):
    model, tokenizer = policy
    head = model.get_base_model().get_output_embeddings()
    broken = head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, EIGHT, bad))
    try:
        for uniform in uniform_numbers(1, 4), None:
            with pytest.raises(SystemExit, match=r"not finite.* lower --learning_rate"):
                sample(model, tokenizer, [encode_prompt(tokenizer, TASKS[0])], 4, uniform)
    finally:
        broken.remove()


def test_completions_do_not_depend_on_the_batch(policy):
    model, tokenizer = policy
    prompt_ids = [encode_prompt(tokenizer, task) for _ in range(3) for task in TASKS[:2]]  # mixed groups
    uniform = uniform_numbers(6, 24)
    together = sample(model, tokenizer, prompt_ids, 24, uniform)
    apart = [sample(model, tokenizer, [ids], 24, uniform[i : i + 1])[0] for i, ids in enumerate(prompt_ids)]
    assert together == apart
    assert len(set(map(tuple, together))) > 1
    greedy = sample(model, tokenizer, prompt_ids, 24)
    assert greedy == [sample(model, tokenizer, [ids], 24)[0] for ids in prompt_ids]


def test_a_program_is_started_when_its_completion_ends(policy, monkeypatch):
    """Rewards are computed while other completions are still being sampled; samples keep the tasks' order."""
    _, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain({5: 7, 7: 5, 6: 9, 9: eos, 4: eos, 8: 11, 11: 12, 12: 13, 13: 14, 14: eos})
    started = []

    class Future:
        def result(self):
            assert len(started) == 4  # nobody waits before all are started
            return Result("failed")

    def start_scoring(sandbox, task, completion):
        started.append((task["task_id"], len(chain.calls), completion))
        return Future()

    monkeypatch.setattr(ppo, "start_scoring", start_scoring)
    tasks = [{"task_id": i, "prompt_ids": [token]} for i, token in enumerate([5, 6, 4, 8])]
    samples = ppo.rollout(chain, tokenizer, None, tasks, 5)
    assert [(task_id, calls) for task_id, calls, _ in started] == [(2, 1), (1, 2), (0, 5), (3, 5)]
    assert [s["task_id"] for s in samples] == [0, 1, 2, 3]
    assert [s["completion_ids"] for s in samples] == [[7, 5, 7, 5, 7], [9, eos], [eos], [11, 12, 13, 14, eos]]
    assert [s["hit_token_limit"] for s in samples] == [
        True,
        False,
        False,
        False,
    ]  # the last ends by itself, at the limit
    assert [s["gen_len"] for s in samples] == [5, 2, 1, 5]
    texts = [tokenizer.decode(ids) for ids in ([7, 5, 7, 5, 7], [9], [], [11, 12, 13, 14])]
    assert [s["completion"] for s in samples] == texts
    assert [s["prompt_ids"] for s in samples] == [[5], [6], [4], [8]]


# ---- log-probabilities ----


def slow_logprobs(model, samples, temperature):
    """One sequence at a time, full log_softmax, a loop over tokens, no padding."""
    rows = []
    for s in samples:
        prompt, completion = s["prompt_ids"], s["completion_ids"]
        logits = model(torch.tensor([prompt + completion])).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        rows.append([logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)])
    return rows


def assert_logprobs_equal(samples, logprobs, mask, expected):
    """Column t is the token at position t + the shortest prompt; expected: of the first samples."""
    shortest = min(len(s["prompt_ids"]) for s in samples)
    for i, row in enumerate(expected):
        first = len(samples[i]["prompt_ids"]) - shortest
        where = slice(first, first + len(row))
        assert mask[i, where].all() and mask[i].sum() == len(row)
        assert logprobs[i, where].tolist() == pytest.approx(row, abs=1e-4)
        assert not logprobs[i][mask[i] == 0].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_slow_reference(policy, samples, temperature):
    model, tokenizer = policy
    logprobs, mask = ppo.completion_logprobs(model, tokenizer, samples, temperature)
    assert_logprobs_equal(samples, logprobs, mask, slow_logprobs(model, samples, temperature))


def test_amount_and_content_of_padding_change_nothing(policy, samples):
    model, tokenizer = policy
    expected = slow_logprobs(model, samples, 1.0)
    longer = [*samples, {name: ids * 2 for name, ids in samples[0].items()}]
    short_prompt = [*longer, {"prompt_ids": samples[0]["prompt_ids"][:3], "completion_ids": [9]}]
    tokenizer = copy.deepcopy(tokenizer)
    for pad in tokenizer.pad_token, tokenizer.convert_ids_to_tokens(17):
        tokenizer.pad_token = pad
        for others in longer, short_prompt:
            logprobs, mask = ppo.completion_logprobs(model, tokenizer, others, 1.0)
            assert_logprobs_equal(others, logprobs, mask, expected)


def test_logprobs_of_a_completion_that_retokenises_differently(policy):
    """Sampled ids are scored as they are; decoding and encoding them would score other tokens."""
    model, tokenizer = policy
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "return"] + [tokenizer.eos_token_id]
    text = tokenizer.decode(letters, skip_special_tokens=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != letters[:-1]
    samples = [
        {"prompt_ids": encode_prompt(tokenizer, TASKS[0]), "completion_ids": letters, "completion": text}
    ]
    logprobs, mask = ppo.completion_logprobs(model, tokenizer, samples, 1.0)
    assert_logprobs_equal(samples, logprobs, mask, slow_logprobs(model, samples, 1.0))


# ---- advantages and losses ----


def test_normalized_advantages():
    advantages = ppo.normalized_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    expected = 0.5 / math.sqrt(1 / 3)  # the sample standard deviation of 1, 0, 0, 1 is sqrt(1 / 3)
    assert advantages.tolist() == pytest.approx([expected, -expected, -expected, expected])
    assert not ppo.normalized_advantages(torch.tensor([0.7, 0.7, 0.7])).any()
    assert not ppo.normalized_advantages(torch.tensor([0.1, 0.1 + 1e-8])).any()  # noise is no signal
    assert not ppo.normalized_advantages(torch.tensor([0.5])).any()  # the std of one sample is NaN


def test_subtract_baseline():
    rewards = torch.tensor([1.0, 0.0, 0.5])
    assert rl.subtract_baseline(rewards, "none").tolist() == rewards.tolist()
    assert rl.subtract_baseline(rewards, "batch").tolist() == pytest.approx([0.75, -0.75, 0.0])
    for value in 0.998, -0.0288:  # whose sum of eight is rounded
        assert not rl.subtract_baseline(torch.full((8,), value), "batch").any()


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [  # with clip_range 0.2: PPO-Clip takes the worse of the two, for negative advantages too
        (1.5, 2.0, -2.4, 0.0),  # too far up, good: clipped
        (0.5, 2.0, -1.0, -1.0),  # too far down, good: pulled back
        (1.5, -2.0, 3.0, 3.0),  # too far up, bad: pushed down with full force
        (0.5, -2.0, 1.6, 0.0),  # too far down, bad: clipped
        (1.1, 2.0, -2.2, -2.2),  # within the range
    ],
)
@pytest.mark.parametrize("ratio_level", ["sequence", "token"])
def test_four_cases_of_the_clip(ratio, advantage, loss, slope, ratio_level):
    old = torch.tensor([[-1.0, 0.0]])
    logprobs = torch.tensor([[math.log(ratio) - 1.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[1, 0]])
    value, _, is_clipped = ppo.ppo_loss(logprobs, old, mask, torch.tensor([advantage]), 0.2, ratio_level)
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-5)
    found = logprobs.grad[0].tolist()  # d loss / d log-prob = -A * ratio
    assert found == pytest.approx([slope, 0.0], abs=1e-5)
    assert bool(is_clipped.any()) == (slope == 0.0)


def test_sequence_ratio_sums_and_token_ratio_does_not():
    old = torch.zeros(1, 3)
    logprobs = torch.tensor([[0.1, 0.1, 0.1]])
    mask = torch.tensor([[1, 1, 0]])
    arguments = (logprobs, old, mask, torch.tensor([1.0]), 10.0)
    assert ppo.ppo_loss(*arguments, "sequence")[0].item() == pytest.approx(-math.exp(0.2))
    assert ppo.ppo_loss(*arguments, "token")[0].item() == pytest.approx(-2 * math.exp(0.1))


def test_a_far_off_ratio_stays_finite():
    logprobs = torch.full((1, 256), 1.0, requires_grad=True)
    loss, _, _ = ppo.ppo_loss(
        logprobs, torch.zeros(1, 256), torch.ones(1, 256), torch.tensor([-1.0]), 0.2, "sequence"
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprobs.grad).all()


def test_reinforce_gradient_equals_the_analytic_one():
    """Policy softmax(theta) over two tokens, two of them sampled: d/dtheta = -A * sum of (onehot - p)."""
    theta = torch.tensor([0.3, -0.4], requires_grad=True)
    actions = torch.tensor([[0, 1], [0, 0]])  # (B, C)
    rewards = torch.tensor([1.0, -0.5])
    logprobs = theta.log_softmax(-1)[actions]  # (B, C)
    rl.reinforce_loss(logprobs, rewards).backward()
    p = theta.detach().softmax(-1)
    onehot = torch.nn.functional.one_hot(actions, 2).float()
    expected = -(rewards[:, None, None] * (onehot - p)).sum((0, 1))
    assert theta.grad.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_word_that_was_edited_in_the_script_is_checked(monkeypatch):
    """argparse looks at flags only: a misspelt reward would train on another one."""
    monkeypatch.setattr(sys, "argv", ["train_ppo_lora.py"])
    free = "length_penalty_alpha target_kl seed"
    assert ppo.parse_config(ppo.Config, free) == ppo.Config()

    @dataclass
    class Edited(ppo.Config):
        reward: Literal["binary", "pass_rate"] = "passrate"

    with pytest.raises(SystemExit, match=r"^reward in the script is binary or pass_rate, not 'passrate'$"):
        ppo.parse_config(Edited, free)
