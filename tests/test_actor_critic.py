"""train_actor_critic_lora.py: its functions by hand and against verl, its loop on a small random model."""

import copy
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import ROOT, run_script
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_models import PROMPTS, USED, build
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedModel

import sandbox
import train_actor_critic_lora as ac
import train_ppo_lora as ppo

VERL = json.loads((ROOT / "tests/critic_cases.json").read_text())  # made by benchmarks/critic_cases.py

# ---- advantages and returns ----


@pytest.mark.parametrize(
    "rewards, values, gamma, lam, expected",
    [
        ([0, 0, 1], [0.5, 0.4, 0.2], 1, 0.95, [0.432, 0.56, 0.8]),
        ([0, 1], [0.3, 0.6], 1, 0.95, [0.68, 0.4]),
        ([0, 0, 1], [0.5, 0.4, 0.2], 0.9, 0.5, [-0.077, 0.14, 0.8]),
        ([0, 1], [0.3, 0.6], 0.9, 0.5, [0.42, 0.4]),
        ([0, 0, 1], [0.5, 0.4, 0.2], 1, 1, [0.5, 0.6, 0.8]),  # the return minus V
        ([0.1, 0, 1], [0.5, 0.4, 0.2], 0.5, 0, [-0.2, -0.3, 0.8]),  # r + gamma V' - V
        ([1], [0.25], 0.5, 0.5, [0.75]),  # nothing follows
    ],
)
def test_gae_by_hand(rewards, values, gamma, lam, expected):
    assert ac.gae(rewards, values, gamma, lam) == pytest.approx(expected)


def test_gae_is_the_sum_of_its_definition():
    rng = random.Random(0)
    for length in range(1, 51):
        r, V = ([rng.gauss(0, 1) for _ in range(length)] for _ in "rV")
        gamma, lam = rng.random(), rng.random()
        deltas = [r[t] + gamma * (V[t + 1] if t + 1 < length else 0) - V[t] for t in range(length)]
        expected = [
            sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)
        ]
        assert ac.gae(r, V, gamma, lam) == pytest.approx(expected, abs=1e-12)


def test_with_lam_1_the_target_is_the_return_whatever_the_critic_says():
    rewards = [0.25, -0.5, 0.0, 1.0]
    for values in [0.0] * 4, [3.0, -2.0, 0.5, 9.0]:
        targets = [A + V for A, V in zip(ac.gae(rewards, values, 1.0, 1.0), values)]
        assert targets == pytest.approx([0.75, 0.5, 1.0, 1.0])


def test_kl_is_charged_token_by_token_and_the_program_rewarded_at_the_end():
    sample = {"old_logprobs": [-1.0, -0.5, -2.0], "sft_logprobs": [-1.0, -0.5, -2.0], "reward": 0.75}
    assert ac.token_rewards(sample, 0.5) == [0, 0, 0.75]  # policy = SFT
    sample["sft_logprobs"] = [-1.5, -0.25, -2.25]  # the policy likes the first and the last token better
    assert ac.token_rewards(sample, 0.5) == [-0.25, 0.125, 0.75 - 0.125]
    whole = sum(sample["old_logprobs"]) - sum(sample["sft_logprobs"])
    assert sum(ac.token_rewards(sample, 0.5)) == pytest.approx(0.75 - 0.5 * whole)


def test_whitened():
    advantages = ac.whitened(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert advantages.tolist() == pytest.approx([math.sqrt(3) / 2 * sign for sign in (1, -1, -1, 1)])
    assert not ac.whitened(torch.full((5,), 0.7)).any()
    assert not ac.whitened(torch.tensor([0.3, 0.3 + 1e-7, 0.3 - 1e-7])).any()  # noise is no signal
    worse = ac.whitened(torch.tensor([-0.1, -0.2, -0.3]))  # all failed: the mean is taken off nevertheless
    assert worse[0] > 0 > worse[2]


@pytest.mark.parametrize("case", VERL["gae"], ids=lambda case: f"{case['gamma']} {case['lam']}")
def test_gae_and_whitening_equal_those_of_verl(case):
    advantages, returns = [], []
    for rewards, values in zip(VERL["rewards"], VERL["values"]):
        found = ac.gae(rewards, values, case["gamma"], case["lam"])
        advantages += found
        returns += [A + V for A, V in zip(found, values)]
    assert returns == pytest.approx(case["returns"], abs=1e-6)
    assert ac.whitened(torch.tensor(advantages)).tolist() == pytest.approx(case["whitened"], abs=1e-6)


# ---- losses ----


def test_value_loss_by_hand():
    """Both are 0.1 from G = 1, but V = 0.9 may only count as 0.7, and V = 0.1 gets no help from the bound."""
    values = torch.tensor([0.9, 0.1], requires_grad=True)
    loss, clipped = ac.value_loss(values, torch.full((2,), 0.5), torch.ones(2), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.045 + 0.405)
    assert clipped.tolist() == [True, False]
    assert values.grad.tolist() == pytest.approx([0, -0.9])  # too far already; still far away


@pytest.mark.parametrize("case", VERL["value_loss"], ids=lambda case: str(case["value_clip"]))
def test_value_loss_and_gradient_equal_those_of_verl(case):
    values, new = (torch.tensor([x for row in VERL[name] for x in row]) for name in ("values", "new_values"))
    new.requires_grad_()
    loss, clipped = ac.value_loss(new, values, torch.tensor(VERL["targets"]), case["value_clip"])
    (loss / len(new)).backward()
    assert loss.item() / len(new) == pytest.approx(case["loss"], abs=1e-6)
    assert clipped.float().mean().item() == pytest.approx(case["clip_frac"], abs=1e-6)
    assert new.grad.tolist() == pytest.approx(case["gradient"], abs=1e-6)


def test_verl_cases_tell_the_bounds_apart():
    assert VERL["verl"] == "0.9.1"
    shares = [case["clip_frac"] for case in VERL["value_loss"]]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == len(shares) == 4
    assert len({str(case["whitened"]) for case in VERL["gae"]}) == 5


@pytest.mark.parametrize("same_length", [True, False])
def test_without_a_critic_the_gradient_is_that_of_ppo_per_token(same_length):
    """V = 0, gamma = lam = 1, no KL: a token's advantage is its program's reward, before whitening.

    The mean is then over tokens and PPO's over completions: the same where all are equally long.
    """
    torch.manual_seed(0)
    lengths = [3, 3, 3] if same_length else [1, 3, 2]
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]  # (B, C)
    old = torch.randn(3, 3) * mask
    ours, theirs = (((old + 0.3 * torch.randn(3, 3)) * mask).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours)
    rewards = torch.tensor([0.99, -0.02, 0.48])
    raw = []
    for reward, length in zip(rewards.tolist(), lengths):
        sample = {"old_logprobs": [-1.0] * length, "sft_logprobs": [-2.0] * length, "reward": reward}
        raw += ac.gae(ac.token_rewards(sample, 0.0), [0.0] * length, 1.0, 1.0)
    raw = torch.tensor(raw)
    assert raw.tolist() == pytest.approx(rewards[:, None].expand(3, 3)[mask].tolist())

    loss, _, clipped = ac.policy_loss(ours[mask], old[mask], raw, 0.2)
    ppo_loss, _, ppo_clipped = ppo.ppo_loss(theirs, old, mask, rewards, 0.2, "token")
    gradient, expected = torch.autograd.grad(loss, ours)[0], torch.autograd.grad(ppo_loss, theirs)[0]
    assert loss.item() == pytest.approx(ppo_loss.item()) and expected.any() and clipped.any()
    assert torch.equal(gradient, expected) and torch.equal(clipped, ppo_clipped[mask])

    loss, *_ = ac.policy_loss(ours[mask], old[mask], ac.whitened(raw), 0.2)
    ppo_loss, *_ = ppo.ppo_loss(theirs, old, mask, ppo.normalized_advantages(rewards), 0.2, "token")
    gradient, expected = torch.autograd.grad(loss, ours)[0], torch.autograd.grad(ppo_loss, theirs)[0]
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)
    assert (cosine > 1 - 1e-5) == same_length


def test_a_far_off_ratio_stays_finite():
    logprobs = torch.full((4,), 100.0, requires_grad=True)
    loss, *_ = ac.policy_loss(logprobs, torch.zeros(4), -torch.ones(4), 0.2)
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()


# ---- values of completions ----

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder: a random model of two layers, an adapter sft/ on it that does something, and four tasks."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, initializer_range=0.2, **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base, tokenizer = ac.load_base(str(folder / "base"), "cpu")
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", **LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    ac.save_adapter(model, tokenizer, folder / "sft", {"finished": True})
    with open(folder / "tasks.jsonl", "w") as file:
        for i, name in enumerate("abcd"):
            test = f"def check(candidate):\n    assert candidate() == {i}\n"
            prompt, solution = f"def {name * i}{name}():\n", f"    return {i}\n"
            task = {"task_id": f"T/{i}", "prompt": prompt, "canonical_solution": solution, "test": test}
            file.write(json.dumps(task | {"entry_point": name * (i + 1)}) + "\n")
    return folder


@pytest.fixture(scope="module")
def parts(small):
    """What completion_values takes, of a critic that is not the policy, and four samples."""
    model, tokenizer = ac.load_adapter(str(small / "sft"), "cpu", is_trainable=True)
    model.eval()
    backbone = model.get_base_model().base_model
    torch.manual_seed(1)
    critic = {name: p.detach().clone() for name, p in backbone.named_parameters() if p.requires_grad}
    critic = {name: (p + 0.1 * torch.randn_like(p)).requires_grad_() for name, p in critic.items()}
    head = torch.nn.Linear(64, 1)
    lengths = [(9, 4), (3, 7), (5, 1), (3, 6)]
    samples = [
        {"prompt_ids": torch.randint(3, 900, (p,)).tolist(), "completion_ids": [*range(20, 20 + n)]}
        for p, n in lengths
    ]
    samples = [sample | {"gen_len": len(sample["completion_ids"])} for sample in samples]
    return SimpleNamespace(
        model=model, backbone=backbone, critic=critic, head=head, tokenizer=tokenizer, samples=samples
    )


def values_of(parts, samples, tokenizer=None):
    return ac.completion_values(
        parts.backbone, parts.critic, parts.head, tokenizer or parts.tokenizer, samples
    )


def test_a_value_is_read_where_the_logits_predict_the_token(parts):
    """Against the whole model, with the critic's weights put into it, one row at a time, without padding."""
    found = values_of(parts, parts.samples).detach()
    policy = values_of(SimpleNamespace(**{**vars(parts), "critic": {}}), parts.samples)
    model = copy.deepcopy(parts.model)
    backbone = dict(model.get_base_model().base_model.named_parameters())
    for name, p in parts.critic.items():
        backbone[name].data.copy_(p.data)
    expected = []
    for sample in parts.samples:
        ids = torch.tensor([sample["prompt_ids"] + sample["completion_ids"]])
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]  # (T, H)
        for t in range(sample["gen_len"]):
            expected.append(parts.head(hidden[len(sample["prompt_ids"]) - 1 + t]).item())
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert (found - policy).abs().min() > 1e-3  # it is not the policy that values


@pytest.mark.parametrize("name", USED)
def test_a_value_of_other_architectures(name, parts):
    model = build(name, USED[name])
    samples = [
        {"prompt_ids": p, "completion_ids": [*range(9, 9 + n)], "gen_len": n} for p, n in zip(PROMPTS, (5, 3))
    ]
    with torch.no_grad():
        found = ac.completion_values(model.base_model, {}, parts.head, parts.tokenizer, samples)
        for sample, values in zip(samples, found.split([5, 3])):
            ids = torch.tensor([sample["prompt_ids"] + sample["completion_ids"]])
            hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
            expected = parts.head(hidden[len(sample["prompt_ids"]) - 1 : -1])[:, 0]
            assert torch.allclose(values, expected, atol=1e-4)


def value_gradient(parts, batches, tokenizer=None):
    """(values, gradient of a loss) with micro-batches of these samples; nothing is left behind."""
    values = []
    weights = [*parts.critic.values(), *parts.head.parameters()]
    for batch in batches:
        V = values_of(parts, batch, tokenizer)
        loss, _ = ac.value_loss(V, V.detach() - 0.05, torch.linspace(0, 1, len(V)), 0.2)
        loss = loss + (V * V.detach()).sum()  # whose gradient knows the order
        loss.backward()
        values.append(V.detach())
    gradient = torch.cat([p.grad.flatten() for p in weights])
    for p in weights:
        p.grad = None
    return values, gradient


def test_padding_changes_no_value_and_no_gradient(parts):
    """Alone, then beside rows that are longer, with another padding token."""
    one = parts.samples[1:2]
    long = {"prompt_ids": [7] * 30, "completion_ids": [8] * 9, "gen_len": 9}
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(17)
    alone, expected = value_gradient(parts, [one])
    for other in parts.tokenizer, tokenizer:
        V = values_of(parts, [*one, long], other)
        assert torch.allclose(V[:7], alone[0], atol=1e-5)
        loss, _ = ac.value_loss(V[:7], V[:7].detach() - 0.05, torch.linspace(0, 1, 7), 0.2)
        loss = loss + (V[:7] * V[:7].detach()).sum()
        weights = [*parts.critic.values(), *parts.head.parameters()]
        found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        assert expected.abs().max() > 0.1 and torch.allclose(found, expected, atol=1e-4)


def test_gradients_go_to_the_side_that_is_computed(parts):
    """Backward through values leaves the policy without a gradient, and the reverse; both have one."""
    policy = [p for p in parts.model.parameters() if p.requires_grad]
    critic = [*parts.critic.values(), *parts.head.parameters()]
    values_of(parts, parts.samples).square().sum().backward()
    assert all(p.grad is None for p in policy) and all(p.grad.norm() > 0 for p in critic)
    for p in critic:
        p.grad = None
    logprobs, _ = ac.completion_logprobs(parts.model, parts.tokenizer, parts.samples, 1.0)
    logprobs.sum().backward()
    assert all(p.grad is None for p in critic) and all(p.grad.norm() > 0 for p in policy)
    parts.model.zero_grad()
    assert len(policy) == len(parts.critic) == 2 * 7 * 2  # A and B of seven projections in two layers


def test_spread_and_collect():
    samples = [{"gen_len": 2}, {"gen_len": 1}, {"gen_len": 3}]
    ac.spread(samples, "values", torch.arange(6.0))
    assert [sample["values"] for sample in samples] == [[0, 1], [2], [3, 4, 5]]
    assert ac.collect(samples, "values").tolist() == [0, 1, 2, 3, 4, 5]


# ---- the script ----


@pytest.fixture
def train(small, tmp_path, monkeypatch):
    """A function: run with flags; (variables, log rows, samples). score(text) is the fraction passed."""

    def no_sandbox(**_):
        return SimpleNamespace(report={}, close=lambda: None)

    def run(*flags, score=lambda text: len(text) % 2, name="run", sft=small / "sft"):
        def start_scoring(box, task, completion):
            share = float(score(completion))
            result = sandbox.Result("passed" if share == 1 else "failed", fraction=share)
            return SimpleNamespace(result=lambda: result)

        monkeypatch.setattr(sandbox, "start_scoring", start_scoring)
        monkeypatch.setattr(sandbox, "preflight", lambda *_: "preflight: left out")
        monkeypatch.setattr(sandbox, "Sandbox", no_sandbox)
        shared = ("--sft_model", sft, "--train_path", small / "tasks.jsonl", "--output_dir", tmp_path / name)
        sizes = ("--batch_size", 8, "--micro_batch_size", 8, "--max_new_tokens", 6, "--num_updates", 2)
        rates = ("--learning_rate", 1e-3, "--critic_learning_rate", 1e-2, "--length_penalty_alpha", 0)
        done = run_script("train_actor_critic_lora.py", *shared, *sizes, *rates, *flags)
        assert done.returncode == 0, done.stderr
        paths = [tmp_path / name / f"{log}.jsonl" for log in ("actor_critic_train_log", "samples")]
        return done, *([json.loads(line) for line in path.open()] for path in paths)

    return run


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def moved(one, other):
    return any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_update_is_one_without_a_critic(train, packed, monkeypatch):
    """V is 0, so it explains nothing; the policy is SFT; all ratios are 1, with dropout they would not be."""
    if packed:  # in 4 bit, as on a GPU
        monkeypatch.setattr(PreTrainedModel, "dequantize", lambda model: model)
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # it has no gradients
    done, log, _ = train("--ppo_epochs", 2, "--kl_coef", 0.5)
    first, second = log
    assert first["value_mean"] == 0 and first["explained_variance"] == 0 and first["kl_to_sft"] == 0
    assert first["return_mean"] > 0 and first["advantage_mean"] == pytest.approx(first["return_mean"])
    assert first["value_loss"] > 0 and first["value_clip_frac"] == 0  # one epoch: V is still V_old
    for row in log:
        assert row["first_max_log_ratio"] < 1e-6 < row["max_log_ratio"]
        assert row["grad_norm"] > 0 and row["critic_grad_norm"] > 0
        assert row["epochs"] == 2 and row["advantage_std"] > 0
        mean = row["return_mean"] - row["value_mean"]  # as lam = critic_lam
        assert row["advantage_mean"] == pytest.approx(mean, abs=1e-6)
    assert second["value_mean"] != 0 != second["kl_to_sft"]
    assert second["explained_variance"] is not None
    modules = [*done.variables["model"].modules()]
    assert packed == any(isinstance(module, Linear4bit) for module in modules)
    dropouts = [module for module in modules if type(module).__name__ == "Dropout"]
    assert dropouts and all(dropout.p == 0.05 and not dropout.training for dropout in dropouts)


def test_what_is_rewarded_is_what_is_documented(train, small):
    """From the numbers of the last update, and SFT loaded anew."""
    flags = ("--kl_coef", 0.5, "--gamma", 0.9, "--lam", 0.5, "--critic_lam", 0.8, "--num_updates", 3)
    done, log, rows = train(
        *flags, "--length_penalty_alpha", 1, "--reward", "pass_rate", score=lambda text: len(text) % 5 / 4
    )
    samples, row = done.variables["samples"], log[-1]
    sft, tokenizer = ac.load_adapter(str(small / "sft"), "cpu")
    sft.eval()
    with torch.no_grad():
        logprobs, mask = ac.completion_logprobs(sft, tokenizer, samples, 1.0)
    raw = []
    for sample, sft_logprobs, counted, text in zip(samples, logprobs, mask, rows[-8:]):
        assert sample["sft_logprobs"] == pytest.approx(sft_logprobs[counted == 1].tolist(), abs=1e-5)
        reward = sample["fraction"] - sample["gen_len"] / 100
        assert sample["reward"] == text["reward"] == pytest.approx(reward)
        assert text["value"] == sample["values"][0] and text["fraction"] == sample["fraction"]
        per_token = ac.token_rewards(sample, 0.5)
        targets = ac.gae(per_token, sample["values"], 0.9, 0.8)
        expected = [A + V for A, V in zip(targets, sample["values"])]
        assert sample["returns"] == pytest.approx(expected)
        raw += ac.gae(per_token, sample["values"], 0.9, 0.5)
    found = [A for sample in samples for A in sample["advantages"]]
    assert found == pytest.approx(ac.whitened(torch.tensor(raw)).tolist(), abs=1e-5)
    assert sum(found) == pytest.approx(0, abs=1e-4)
    kl = [a - b for s in samples for a, b in zip(s["old_logprobs"], s["sft_logprobs"])]
    assert row["kl_to_sft"] == pytest.approx(sum(kl) / len(kl), abs=1e-6) and abs(row["kl_to_sft"]) > 1e-4
    G, V = (torch.tensor([x for s in samples for x in s[name]]) for name in ("returns", "values"))
    assert row["explained_variance"] == pytest.approx(1 - ((G - V).var() / G.var()).item(), abs=1e-5)
    assert row["avg_pass_rate"] == pytest.approx(sum(s["fraction"] for s in samples) / 8)
    assert row["avg_base_reward"] == sum(s["outcome"] == "passed" for s in samples) / 8 < row["avg_pass_rate"]
    assert not [x for x in rows[-1].values() if isinstance(x, list)]


def test_advantages_that_are_not_whitened(train):
    done, log, _ = train("--whiten", False, "--num_updates", 1)
    found = [A for sample in done.variables["samples"] for A in sample["advantages"]]
    assert sum(found) / len(found) == pytest.approx(log[0]["advantage_mean"]) and log[0]["advantage_mean"] > 0


def watch_steps(monkeypatch):
    """A list that gets, for each optimizer step, which of policy and critic has moved, bit by bit."""
    step, seen = torch.optim.AdamW.step, []

    def watched(optimizer, *arguments):
        groups = [group["params"] for group in optimizer.param_groups]
        before = [[p.detach().clone() for p in group] for group in groups]
        step(optimizer, *arguments)
        pairs = zip(("policy", "critic"), groups, before)
        seen.append([name for name, group, old in pairs if not all(p.equal(q) for p, q in zip(group, old))])

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def test_a_step_of_one_side_leaves_the_other_as_it_is(train, monkeypatch):
    """Also in the second update, when Adam has momentum for both. Both learn, and target_kl stops one."""
    seen = watch_steps(monkeypatch)
    train("--ppo_epochs", 3, "--critic_epochs", 2)
    assert seen == [["policy"]] * 3 + [["critic"]] * 2 + [["policy"]] * 3 + [["critic"]] * 2
    seen.clear()
    _, log, _ = train("--ppo_epochs", 3, "--critic_epochs", 2, "--target_kl", 1e-9, "--num_updates", 1)
    assert seen == [["policy"], ["critic"], ["critic"]]  # the second step of the policy was not taken
    assert log[0]["epochs"] == 2 and log[0]["approx_kl"] > 1e-9


def test_in_a_warmup_only_the_critic_learns(train, small, tmp_path, monkeypatch):
    seen = watch_steps(monkeypatch)
    done, log, _ = train("--critic_warmup", 2, "--num_updates", 2)
    assert seen == [["critic"]] * 2 and [row["epochs"] for row in log] == [0, 0]
    assert not moved(adapter(small / "sft"), adapter(tmp_path / "run"))
    assert log[1]["value_mean"] != 0 and log[1]["grad_norm"] == 0 and "nothing to learn" not in done.stdout
    train("--critic_warmup", 2, "--num_updates", 3, "--resume")
    assert seen[2:] == [["policy"]] * 4 + [["critic"]]
    assert moved(adapter(small / "sft"), adapter(tmp_path / "run"))


def test_equal_rewards_teach_the_critic_alone(train, small, tmp_path):
    """Without KL and with V = 0 all advantages are equal; whitened, their noise would move the policy."""
    done, log, _ = train("--kl_coef", 0, "--num_updates", 1, score=lambda text: 1)
    assert (done.stdout + done.stderr).count("nothing to learn for the policy") == 1
    assert log[0]["epochs"] == 0 and log[0]["critic_grad_norm"] > 0
    assert log[0]["explained_variance"] is None
    assert not moved(adapter(small / "sft"), adapter(tmp_path / "run"))
    _, log, _ = train("--length_penalty_alpha", 0.01, score=lambda text: 1)
    assert 0 < log[1]["return_std"] < 0.05  # of KL and lengths alone: divided by it, V's noise would be -1000
    assert log[1]["explained_variance"] is None and log[1]["value_mean"] != 0


def test_micro_batch_size_changes_nothing(train):
    flags = ("--critic_epochs", 2, "--kl_coef", 0.1, "--temperature", 0.9)
    _, whole, texts = train(*flags)
    _, parts, same = train(*flags, "--micro_batch_size", 3, name="parts")
    assert [row["completion"] for row in texts] == [row["completion"] for row in same]
    assert max(row["value_clip_frac"] for row in whole) > 0 and max(row["clip_frac"] for row in whole) > 0
    for row, other in zip(whole, parts):
        for field in row.keys() - {"seconds", "first_max_log_ratio"}:
            assert row[field] == pytest.approx(other[field], rel=1e-3, abs=1e-5), field


def test_resumed_between_the_policy_and_the_critic(train, small, tmp_path, monkeypatch):
    """Everything is as without the interruption: weights of both, head, moments, logs."""
    whole, log, rows = train("--num_updates", 3, "--ppo_epochs", 2)
    step, count = torch.optim.AdamW.step, iter(range(1, 100))

    def interrupted(optimizer, *arguments):
        step(optimizer, *arguments)
        if next(count) == 5:  # the second step of the policy in the second update
            raise KeyboardInterrupt

    short = ("--num_updates", 3, "--ppo_epochs", 2, "--save_every", 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(*short, name="again")
    assert torch.load(tmp_path / "again/state.pt", weights_only=True)["update"] == 1
    again, same_log, same_rows = train(*short, "--resume", name="again")
    assert rows == same_rows
    assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in same_log]
    for name in "trainable", "critic_weights":
        assert all(p.equal(q) for p, q in zip(whole.variables[name], again.variables[name]))
    head = again.variables["value_head"]
    assert head.weight.any() and head.bias.any()
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("run", "again")]
    moments = [state["optimizer"]["state"].values() for state in states]
    assert len(moments[0]) == 2 * 28 + 2
    assert all(a["exp_avg"].equal(b["exp_avg"]) for a, b in zip(*moments))
    names = adapter(tmp_path / "again").keys()
    assert names == adapter(small / "sft").keys()  # of the critic there is nothing in the result


def test_another_architecture(train, small, tmp_path):
    """GPT-2: other names, transposed weights, and a hidden size of another name."""
    tokenizer = AutoTokenizer.from_pretrained(small / "base")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base, tokenizer = ac.load_base(str(tmp_path / "base"), "cpu")
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", **LORA))
    ac.save_adapter(model, tokenizer, tmp_path / "sft", {})
    _, log, _ = train("--num_updates", 2, sft=tmp_path / "sft")
    assert all(row["grad_norm"] > 0 and row["critic_grad_norm"] > 0 for row in log)
    assert log[1]["value_mean"] != 0 and moved(adapter(tmp_path / "sft"), adapter(tmp_path / "run"))


def test_a_toy_that_can_be_learnt(train):
    """What is rewarded is decided by the first of two tokens: V after it can know all, V before it nothing.

    One column too early, V would explain little; one too late, V before the first token would know it, too.
    """
    sizes = ("--batch_size", 32, "--micro_batch_size", 32, "--max_new_tokens", 2, "--num_updates", 15)
    rates = ("--ppo_epochs", 2, "--critic_epochs", 2, "--critic_learning_rate", 2e-2, "--value_clip", 1)
    flags = ("--temperature", 0.4, "--kl_coef", 0)
    _, log, rows = train(*sizes, *rates, *flags, score=lambda text: text[:1].islower())
    learnt = [row["explained_variance"] for row in log[5:13]]
    assert sum(learnt) / len(learnt) > 0.3
    before, after = (sum(row["avg_base_reward"] for row in part) / 3 for part in (log[:3], log[-3:]))
    assert before < 0.5 and after > 0.9
    for update in 8, 13:
        of_task = {}
        for row in rows[32 * (update - 1) : 32 * update]:
            of_task.setdefault(row["task_id"], []).append(row["value"])
        assert len(of_task) == 4 and all(max(V) - min(V) < 1e-5 for V in of_task.values())


@pytest.mark.parametrize(
    "flag, value, part",
    [
        ("--lam", 1.5, "--lam and --critic_lam at most 1"),
        ("--critic_lam", -0.5, "none of --lam, --critic_lam"),
        ("--gamma", 1.01, "--gamma, --lam and --critic_lam at most 1"),
        ("--kl_coef", -0.1, "none of --lam, --critic_lam, --kl_coef"),
        ("--critic_warmup", -1, "and --critic_warmup below 0"),
        ("--critic_epochs", 0, "--critic_epochs must be above 0"),
        ("--value_clip", 0, "--value_clip must be above 0"),
        ("--lam", "nan", "--lam must be above -inf and finite"),
        ("--reward", "dense", "invalid choice"),
        ("--vf_coef", 0.1, "unrecognized arguments"),
    ],
)
def test_wrong_flags(flag, value, part):
    done = run_script("train_actor_critic_lora.py", flag, value)
    assert done.returncode and part in done.stderr.splitlines()[-1]


def test_nothing_overwrites_the_adapter_it_starts_from(small):
    done = run_script("train_actor_critic_lora.py", "--sft_model", small / "sft", "--output_dir", small)
    assert done.returncode == 1 and "nothing may overwrite that adapter" in done.stderr.splitlines()[-1]
