"""Tokens, masks, log-probabilities, advantages and losses of the scripts, on the tiny model in 4 bit."""

import math
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

import eval_humaneval
import train_ppo_lora as ppo
import train_rl_lora as rl
import train_sft_lora as sft
from sandbox import read_tasks, reference

SCRIPTS = [sft, rl, ppo, eval_humaneval]
TASKS = read_tasks(ROOT / "data/mini_dev.jsonl")
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def add_adapter(base, dropout=0.0):
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


def sample(*arguments):
    """All completions of ppo.generate, in the order of the prompts."""
    completions = dict(ppo.generate(*arguments))
    return [completions[i] for i in range(len(completions))]


@pytest.fixture(scope="module")
def policy():
    """(model, tokenizer): 4-bit tiny model with an adapter."""
    base, tokenizer = ppo.load_base(str(ROOT / "data/tiny_coder"), "cpu")
    return add_adapter(base), tokenizer


@pytest.fixture(scope="module")
def rollout(policy):
    """(prompt_ids, completion_ids) of six tasks, sampled; lengths differ."""
    model, tokenizer = policy
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in TASKS[:6]]
    completion_ids = sample(model, tokenizer, prompt_ids, 48, 1.0, 1.0, uniform_numbers(6, 48))
    model.train()
    return prompt_ids, completion_ids


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


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


def test_packed_weights_give_the_same_log_probs_and_a_ratio_of_1(policy, packed, rollout):
    model, tokenizer = policy
    arguments = (*rollout, 1.0, tokenizer.pad_token_id)
    packed.train()
    old, _ = ppo.completion_logprobs(packed, *arguments)
    new, _ = ppo.completion_logprobs(packed, *arguments)
    assert ((new - old).sum(-1).exp() - 1).abs().max() < 1e-3
    assert (new - ppo.completion_logprobs(model, *arguments)[0]).abs().max() < 1e-4
    new.sum().backward()
    assert gradient(packed).norm() > 0


def test_only_lora_is_trained_and_in_float32(policy):
    model, _ = policy
    trainable = [(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 4  # A and B, seven projections, four layers
    assert all("lora_" in name and dtype == torch.float32 for name, dtype in trainable)


def test_adapter_survives_saving(policy, tmp_path):
    model, tokenizer = policy
    ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    again, _ = ppo.load_adapter(str(tmp_path), "cpu", is_trainable=True)
    plain = PeftModel.from_pretrained(ppo.load_base(str(ROOT / "data/tiny_coder"), "cpu")[0], tmp_path)
    ids = torch.tensor([ppo.encode_prompt(tokenizer, TASKS[0])])
    model.eval()
    expected = model(ids).logits
    assert torch.equal(again.eval()(ids).logits, expected)
    assert torch.equal(plain.eval()(ids).logits, expected)
    assert any(p.requires_grad for p in again.parameters())


def test_half_written_adapter_is_not_called_complete(policy, tmp_path, monkeypatch):
    model, tokenizer = policy
    ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    assert (tmp_path / "run_config.json").is_file()
    monkeypatch.setattr(model, "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ppo.save_adapter(model, tokenizer, tmp_path, {"finished": True})
    assert not (tmp_path / "run_config.json").exists()


# ---- tokens and masks ----


def test_all_scripts_build_the_same_prompt_ids(policy):
    _, tokenizer = policy
    for task in TASKS:
        encoded = [script.encode_prompt(tokenizer, task) for script in SCRIPTS]
        assert all(ids == encoded[0] for ids in encoded)
        assert encoded[0][0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded[0][1:]) == task["prompt"].rstrip()


def test_prompt_and_solution_tokenise_as_the_whole_text(policy):
    """The border is where pretraining had it: the newline belongs to the indentation after it."""
    _, tokenizer = policy
    for task in TASKS:
        ids, _ = sft.encode_row(tokenizer, task, 1024)
        assert ids == tokenizer(task["prompt"] + task["canonical_solution"])["input_ids"] + [
            tokenizer.eos_token_id
        ]


def test_sft_labels(policy):
    _, tokenizer = policy
    for task in TASKS:
        ids, labels = sft.encode_row(tokenizer, task, 1024)
        first = len(sft.encode_prompt(tokenizer, task))
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
    _, attention_mask, labels = sft.collate(rows, tokenizer.pad_token_id)
    for i, (ids, row_labels) in enumerate(rows):
        assert attention_mask[i].sum() == len(ids)
        assert labels[i, len(ids) - 1] == tokenizer.eos_token_id
        assert (labels[i] != -100).sum() == sum(label != -100 for label in row_labels)


def test_sft_loss_equals_a_loop(policy):
    model, tokenizer = policy
    model.train()
    rows = [sft.encode_row(tokenizer, task, 1024) for task in TASKS[:3]]
    input_ids, attention_mask, labels = sft.collate(rows, tokenizer.pad_token_id)
    loss = sft.sft_loss(model(input_ids, attention_mask=attention_mask).logits, labels)
    expected = 0.0
    for ids, row_labels in rows:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected -= sum(logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)) if row_labels[t] != -100)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ---- rollout ----


class Chain:
    """Stands in for a model: after token t comes following[t], always. Keeps what it was called with."""

    device = "cpu"

    def __init__(self, config, following):
        self.config = config
        self.following = following
        self.calls = []

    def eval(self):
        pass

    def __call__(self, ids, attention_mask, position_ids, **arguments):
        self.calls.append((ids.tolist(), attention_mask.tolist(), position_ids.tolist()))
        logits = torch.zeros(len(ids), 1, 32)
        for row, token in enumerate(ids[:, -1].tolist()):
            logits[row, 0, self.following[token]] = 100.0
        return SimpleNamespace(logits=logits)


def test_completion_ends_with_its_first_eos(policy):
    model, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain(model.config, {5: 7, 7: eos, 6: 9, 9: 10, 10: 9, 4: eos, 0: 0})
    completions = sample(chain, tokenizer, [[0, 5], [0, 3, 6], [4]], 4, 1.0, 1.0, uniform_numbers(3, 4))
    assert completions == [[7, eos], [9, 10, 9, 10], [eos]]  # the second was cut: no EOS is appended


def test_rollout_masks_positions_and_stops_paying_for_ended_rows(policy):
    model, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain(model.config, {5: 7, 7: eos, 6: 9, 9: 10, 10: 9, 4: eos})
    sample(chain, tokenizer, [[0, 5], [0, 3, 6], [4]], 4, 1.0, 1.0, None)
    assert chain.calls[0] == (
        [[eos, 0, 5], [0, 3, 6], [eos, eos, 4]],
        [[0, 1, 1], [1, 1, 1], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 2], [0, 0, 0]],
    )
    assert chain.calls[1] == ([[7], [9]], [[0, 1, 1, 1], [1, 1, 1, 1]], [[2], [3]])
    assert chain.calls[2:] == [([[10]], [[1, 1, 1, 1, 1]], [[4]]), ([[9]], [[1, 1, 1, 1, 1, 1]], [[5]])]


def test_shared_prompts_are_computed_once(policy):
    model, tokenizer = policy
    chain = Chain(model.config, {5: 7, 7: 5, 6: 9, 9: 6})
    completions = sample(chain, tokenizer, [[0, 5], [0, 5], [6], [6], [6]], 3, 1.0, 1.0, None)
    assert [len(ids) for ids, _, _ in chain.calls] == [2, 5, 5]
    assert completions == [[7, 5, 7]] * 2 + [[9, 6, 9]] * 3


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_sampling_inverts_the_cumulative_distribution(policy, temperature, top_p):
    """A slow reference: one sequence at a time, no cache, no padding, all 1024 tokens (no top_k of 50)."""
    model, tokenizer = policy
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in TASKS[:3]]
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
    assert sample(model, tokenizer, prompt_ids, 12, temperature, top_p, uniform) == expected


def test_nothing_is_sampled_from_logits_that_are_not_numbers(policy):
    model, tokenizer = policy
    head = model.get_base_model().get_output_embeddings()
    broken = head.register_forward_hook(lambda module, inputs, logits: logits * math.nan)
    try:
        with pytest.raises(FloatingPointError):
            sample(
                model, tokenizer, [ppo.encode_prompt(tokenizer, TASKS[0])], 4, 1.0, 1.0, uniform_numbers(1, 4)
            )
    finally:
        broken.remove()


def test_completions_do_not_depend_on_the_batch(policy):
    model, tokenizer = policy
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in TASKS[:2] for _ in range(3)]
    uniform = uniform_numbers(6, 24)
    together = sample(model, tokenizer, prompt_ids, 24, 1.0, 1.0, uniform)
    apart = [
        sample(model, tokenizer, [ids], 24, 1.0, 1.0, uniform[i : i + 1])[0]
        for i, ids in enumerate(prompt_ids)
    ]
    assert together == apart
    assert len(set(map(tuple, together))) > 1
    greedy = sample(model, tokenizer, prompt_ids, 24, 1.0, 1.0, None)
    assert greedy == [sample(model, tokenizer, [ids], 24, 1.0, 1.0, None)[0] for ids in prompt_ids]


def test_a_completion_is_handed_over_when_it_ends(policy):
    model, tokenizer = policy
    eos = tokenizer.eos_token_id
    chain = Chain(model.config, {5: 7, 7: 5, 6: 9, 9: eos, 4: eos})
    steps = [
        (i, len(chain.calls)) for i, _ in ppo.generate(chain, tokenizer, [[5], [6], [4]], 5, 1.0, 1.0, None)
    ]
    assert steps == [(2, 1), (1, 2), (0, 5)]


def test_every_task_is_drawn_once_before_one_comes_again():
    rows = list(range(7))
    whole = ppo.draw(rows, 0, 21, 42)
    assert [sorted(whole[first : first + 7]) for first in (0, 7, 14)] == [rows] * 3
    assert whole[:7] != whole[7:14]
    assert [row for first in range(0, 20, 4) for row in ppo.draw(rows, first, 4, 42)] == whole[:20]
    assert ppo.draw(rows, 0, 7, 43) != whole[:7]


# ---- log-probabilities ----


def slow_logprobs(model, prompt_ids, completion_ids, temperature):
    """One sequence at a time, full log_softmax, a loop over tokens, no padding."""
    rows = []
    for prompt, completion in zip(prompt_ids, completion_ids):
        logits = model(torch.tensor([prompt + completion])).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        rows.append([logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)])
    return rows


def assert_logprobs_equal(logprobs, mask, expected):
    for i, row in enumerate(expected):
        assert mask[i].sum() == len(row)
        assert logprobs[i, : len(row)].tolist() == pytest.approx(row, abs=1e-4)
        assert not logprobs[i, len(row) :].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_slow_reference(policy, rollout, temperature):
    model, tokenizer = policy
    prompt_ids, completion_ids = rollout
    assert len({len(ids) for ids in prompt_ids}) > 1 and len({len(ids) for ids in completion_ids}) > 1
    logprobs, mask = ppo.completion_logprobs(
        model, prompt_ids, completion_ids, temperature, tokenizer.pad_token_id
    )
    assert_logprobs_equal(logprobs, mask, slow_logprobs(model, prompt_ids, completion_ids, temperature))


def test_logprobs_of_completions_that_share_their_prompt(policy, rollout):
    """They share a row, and none sees the other: as if each stood alone."""
    model, tokenizer = policy
    prompt_ids, completion_ids = rollout
    prompt_ids = [prompt_ids[0]] * 3 + [prompt_ids[1]] * 2 + [prompt_ids[0]]
    logprobs, mask = ppo.completion_logprobs(model, prompt_ids, completion_ids, 1.0, tokenizer.pad_token_id)
    assert_logprobs_equal(logprobs, mask, slow_logprobs(model, prompt_ids, completion_ids, 1.0))


def test_amount_and_content_of_padding_change_nothing(policy, rollout):
    model, tokenizer = policy
    prompt_ids, completion_ids = rollout
    expected = slow_logprobs(model, prompt_ids, completion_ids, 1.0)
    long_prompt, long_completion = prompt_ids[0] * 2, completion_ids[0] * 2
    for pad_token_id in (tokenizer.pad_token_id, 17):
        logprobs, mask = ppo.completion_logprobs(
            model, prompt_ids + [long_prompt], completion_ids + [long_completion], 1.0, pad_token_id
        )
        assert_logprobs_equal(logprobs[:-1], mask[:-1], expected)


def test_logprobs_of_a_completion_that_retokenises_differently(policy):
    """Sampled ids are scored as they are; decoding and encoding them would score other tokens."""
    model, tokenizer = policy
    prompt = ppo.encode_prompt(tokenizer, TASKS[0])
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "return"] + [tokenizer.eos_token_id]
    text = tokenizer.decode(letters, skip_special_tokens=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != letters[:-1]
    logprobs, mask = ppo.completion_logprobs(model, [prompt], [letters], 1.0, tokenizer.pad_token_id)
    assert_logprobs_equal(logprobs, mask, slow_logprobs(model, [prompt], [letters], 1.0))


def test_micro_batches_keep_prompts_together_and_lengths_close():
    prompt_ids = [[5] * 3, [6] * 9, [5] * 3, [7] * 4]
    completion_ids = [[1] * 2, [1], [1] * 4, [1] * 3]
    batches = ppo.micro_batches(prompt_ids, completion_ids, [0, 1, 2, 3], 2)
    assert [indices for indices, _ in batches] == [[3, 0], [2, 1]]  # rows of 7, 3 + 2 + 4 = 9, and 10 tokens
    assert batches[0][1] == ([[7] * 4, [5] * 3], [[1] * 3, [1] * 2])
    assert [indices for indices, _ in ppo.micro_batches(prompt_ids, completion_ids, [1, 2], 4)] == [[2, 1]]
    assert ppo.micro_batches(prompt_ids, completion_ids, [], 4) == []


# ---- advantages and losses ----


def test_normalized_advantages():
    advantages = ppo.normalized_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 4)
    expected = 0.5 / math.sqrt(1 / 3)  # the sample standard deviation of 1, 0, 0, 1 is sqrt(1 / 3)
    assert advantages.tolist() == pytest.approx([expected, -expected, -expected, expected])
    assert not ppo.normalized_advantages(torch.tensor([0.7, 0.7, 0.7]), 3).any()
    assert not ppo.normalized_advantages(torch.tensor([0.1, 0.1 + 1e-8]), 2).any()  # noise is no signal
    assert not ppo.normalized_advantages(torch.tensor([0.5]), 1).any()  # the std of one sample is NaN
    groups = ppo.normalized_advantages(torch.tensor([1.0, 0.0, 0.6, 0.6, -3.0, -1.0]), 2)
    half = math.sqrt(0.5)
    assert groups.tolist() == pytest.approx([half, -half, 0.0, 0.0, -half, half])


def test_subtract_baseline():
    rewards = torch.tensor([1.0, 0.0, 0.5])
    assert rl.subtract_baseline(rewards, "none", 3).tolist() == rewards.tolist()
    assert rl.subtract_baseline(rewards, "batch", 3).tolist() == pytest.approx([0.75, -0.75, 0.0])
    for value in 0.998, -0.0288:  # whose sum of eight is rounded
        assert not rl.subtract_baseline(torch.full((8,), value), "batch", 8).any()
    groups = rl.subtract_baseline(torch.tensor([1.0, 0.0, 0.5, 0.3]), "group", 2)
    assert groups.tolist() == pytest.approx([1.0, -1.0, 0.2, -0.2])


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


@pytest.mark.parametrize("samples_per_task", [1, 3])
@pytest.mark.parametrize("loss_name", ["reinforce", "sequence", "token"])
def test_micro_batch_size_leaves_the_gradient_unchanged(policy, rollout, loss_name, samples_per_task):
    model, tokenizer = policy
    prompt_ids, completion_ids = rollout
    prompt_ids = [prompt_ids[i // samples_per_task] for i in range(6)]
    advantages = torch.tensor([1.0, -0.5, 0.3, -1.2, 0.8, -0.4])
    gradients = []
    for size in (6, 2, 1):
        model.zero_grad()
        for first in range(0, 6, size):
            mb = slice(first, first + size)
            logprobs, mask = ppo.completion_logprobs(
                model, prompt_ids[mb], completion_ids[mb], 1.0, tokenizer.pad_token_id
            )
            if loss_name == "reinforce":
                loss = rl.reinforce_loss(logprobs, advantages[mb])
            else:
                old = logprobs.detach() - 0.01 * mask
                loss, _, _ = ppo.ppo_loss(logprobs, old, mask, advantages[mb], 0.2, loss_name)
            (loss / 6).backward()
        gradients.append(gradient(model))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert (gradients[0] - other).norm() < 1e-5 * gradients[0].norm()


def test_gradient_checkpointing_leaves_the_gradient_unchanged(policy, rollout):
    model, tokenizer = policy
    prompt_ids, completion_ids = rollout
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        model.zero_grad()
        logprobs, _ = ppo.completion_logprobs(model, prompt_ids, completion_ids, 1.0, tokenizer.pad_token_id)
        logprobs.sum().backward()
        gradients.append(gradient(model))
    model.gradient_checkpointing_disable()
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_roomy_cache_holds_what_transformers_own_does():
    """Through two new rooms (64 tokens each), with rows repeated and dropped between the tokens."""
    roomy, plain = ppo.RoomyLayer(), DynamicLayer()
    roomy.batch_select_indices(torch.tensor([0]))  # still empty
    rows = 3
    for t, length in enumerate([5] + [1] * 140):
        new = torch.randn(2, rows, 2, length, 4)
        for one, other in zip(roomy.update(*new), plain.update(*new)):
            assert torch.equal(one, other)
        if t in (0, 30, 70, 71, 139):
            kept = torch.tensor({0: [0, 0, 1, 2], 30: [1, 2, 3], 70: [0, 2]}.get(t, [0]))
            roomy.batch_select_indices(kept)
            plain.batch_select_indices(kept)
            rows = len(kept)
    assert roomy.get_seq_length() == 145
