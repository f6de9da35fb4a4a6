"""GRPO's advantages, weights, loss and log-probabilities: by hand, and against TRL and the other scripts."""

import copy
import json
import math
from itertools import product

import pytest
import torch
from conftest import ROOT
from test_trainers import TASKS, add_adapter
from torch.nn.utils.rnn import pad_sequence

import train_grpo_lora as grpo
import train_ppo_lora as ppo
import train_rl_lora as rl
from sandbox import encode_prompt

TRL = json.loads((ROOT / "tests/grpo_cases.json").read_text())  # made by benchmarks/grpo_cases.py

# ---- advantages and weights ----


def test_advantages_of_a_group():
    std = math.sqrt(1 / 3)  # the sample standard deviation of 1, 0, 0, 1
    advantages = grpo.group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 4, "group")
    assert advantages.tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=5e-5)
    assert advantages[0].item() == pytest.approx(0.5 / (std + 1e-4))
    two = grpo.group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.4]), 4, "group")
    assert torch.equal(two[:4], advantages)
    assert two[4:].tolist() == pytest.approx([-0.1 / 0.2001] * 3 + [0.3 / 0.2001], rel=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_equal_rewards_are_exactly_0(scale):
    """Also where their mean is rounded; the other group keeps its own."""
    for value in 1.0, 0.0, 0.1, 0.7:
        rewards = torch.tensor([value] * 3 + [1.0, 0.0, 0.0])
        flat, other = grpo.group_advantages(rewards, 3, scale).view(2, 3)
        assert flat.tolist() == [0.0, 0.0, 0.0]
        assert other[0] > 0.5 and other[1:].max() < -0.25
    assert not grpo.group_advantages(torch.tensor([0.1, 0.1 + 1e-8]), 2, scale).any()  # noise is no signal


def test_advantages_over_the_batch_and_without_scale():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    differences = [0.5, -0.5, -0.5, 0.5, 0.25, 0.25, 0.25, -0.75]
    assert grpo.group_advantages(rewards, 4, "none").tolist() == differences
    std = math.sqrt((5 * (3 / 8) ** 2 + 3 * (5 / 8) ** 2) / 7)  # five of eight are 1
    expected = [difference / (std + 1e-4) for difference in differences]
    assert grpo.group_advantages(rewards, 4, "batch").tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss_type, expected, cut",
    [
        ("grpo", [1 / 2, 1 / 6], [1 / 2, 0]),
        ("dapo", [1 / 4, 1 / 4], [1, 0]),  # a cut completion leaves the divisor
        ("dr_grpo", [1 / 8, 1 / 8], [1 / 8, 0]),
    ],
)
def test_token_weights(loss_type, expected, cut):
    """Of lengths 1 and 3, with at most 4 tokens; the second is then cut and masked, at last both are."""
    lengths = torch.tensor([1.0, 3.0])
    for counted, weights in ([1.0, 1.0], expected), ([1.0, 0.0], cut), ([0.0, 0.0], [0, 0]):
        found = grpo.token_weights(lengths, torch.tensor(counted), loss_type, 4)
        assert found.tolist() == pytest.approx(weights)


# ---- loss ----


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [  # with bounds 0.8 and 1.28: the worse of the two, for negative advantages too
        (1.5, 1.0, -1.28, 0.0),  # too far up, good: clipped
        (1.25, 1.0, -1.25, -1.25),  # not yet
        (0.5, 1.0, -0.5, -0.5),  # too far down, good: pulled back
        (1.5, -1.0, 1.5, 1.5),  # too far up, bad: pushed down with full force
        (0.75, -1.0, 0.8, 0.0),  # too far down, bad: clipped
        (0.85, -1.0, 0.85, 0.85),  # not yet
    ],
)
@pytest.mark.parametrize("ratio_level", ["token", "sequence_mean"])
def test_cases_of_the_clip(ratio, advantage, loss, slope, ratio_level):
    """Two tokens of weight 1/2 and padding. One ratio each, the second 1; or one for both, the mean."""
    old = torch.tensor([[-1.0, -2.0, 0.0]])
    times = 1 if ratio_level == "token" else 2
    logprobs = (old + torch.tensor([[times * math.log(ratio), 0.0, 9.0]])).requires_grad_()
    mask = torch.tensor([[1, 1, 0]])
    A, w = torch.tensor([advantage]), torch.tensor([0.5])
    value, clipped = grpo.grpo_loss(logprobs, old, logprobs.detach(), mask, A, w, 0.2, 0.28, ratio_level, 0.0)
    value.backward()
    second = (-advantage, -advantage) if ratio_level == "token" else (loss, slope)
    assert value.item() == pytest.approx((loss + second[0]) / 2)
    assert logprobs.grad[0].tolist() == pytest.approx([slope / 2, second[1] / 2, 0])
    if slope == 0:
        assert logprobs.grad[0, 0] == 0  # exactly
    is_clipped = slope == 0
    assert clipped.tolist() == [[is_clipped, is_clipped and ratio_level == "sequence_mean", False]]


def test_kl_to_the_reference():
    """DeepSeekMath, eq. 4, at pi_sft / pi = 2 and 1/2; weight and mask count, the advantage does not."""
    logprobs = torch.tensor([[-1.0, -1.0, 0.0]], requires_grad=True)
    ref = logprobs.detach() + torch.tensor([[math.log(2), -math.log(2), 5.0]])
    arguments = torch.tensor([[1, 1, 0]]), torch.zeros(1), torch.tensor([0.25]), 0.2, 0.2, "token", 0.1
    loss, _ = grpo.grpo_loss(logprobs, logprobs.detach(), ref, *arguments)
    loss.backward()
    k3 = (2 - math.log(2) - 1) + (1 / 2 + math.log(2) - 1)
    assert loss.item() == pytest.approx(0.1 * 0.25 * k3)
    assert logprobs.grad[0].tolist() == pytest.approx([-0.025, 0.025 / 2, 0])  # d k3 / d log pi = 1 - ratio


@pytest.mark.parametrize("ratio_level", ["token", "sequence_mean"])
@pytest.mark.parametrize("far", [100.0, -100.0])
def test_far_off_ratios_stay_finite(far, ratio_level):
    """exp(100) is infinite in float32."""
    logprobs = torch.full((1, 8), far, requires_grad=True)
    zeros, ones = torch.zeros(1, 8), torch.ones(1, 8)
    loss, _ = grpo.grpo_loss(
        logprobs, zeros, zeros, ones, -torch.ones(1), torch.ones(1), 0.2, 0.2, ratio_level, 1.0
    )
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()


def test_dr_grpo_is_reinforce_with_a_leave_one_out_baseline():
    """At ratio 1 and without a scale: its mean includes the completion itself, hence (G - 1) / G."""
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0])
    G, max_new_tokens = 4, 16
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    ours, reinforce = [(torch.randn(4, 3) * mask).requires_grad_() for _ in range(2)]
    A = grpo.group_advantages(rewards, G, "none")
    w = grpo.token_weights(mask.sum(-1), torch.ones(4), "dr_grpo", max_new_tokens)
    old = ours.detach()
    grpo.grpo_loss(ours, old, old, mask, A, w, 0.2, 0.2, "token", 0.0)[0].backward()
    (rl.reinforce_loss(reinforce * mask, rl.subtract_baseline(rewards, "batch")) / G).backward()
    assert reinforce.grad.any()
    torch.testing.assert_close(ours.grad, (G - 1) / G * reinforce.grad / max_new_tokens, atol=1e-7, rtol=1e-6)


# ---- TRL ----


def test_trl_cases_are_of_all_combinations():
    options = [[case[name] for case in TRL["cases"]] for name in list(TRL["cases"][0])[:-2]]
    names = "loss_type", "scale", "ratio_level", "clip", "kl_coef", "mask_truncated"
    assert tuple(TRL["cases"][0])[:-2] == names
    found = {json.dumps(values) for values in zip(*options)}
    values = [{json.dumps(value) for value in column} for column in options]
    assert list(map(len, values)) == [3, 3, 2, 3, 2, 2]
    assert len(TRL["cases"]) == len(found) == 216 == len(list(product(*values)))
    assert len({case["loss"] for case in TRL["cases"]}) == 216  # every option makes a difference


@pytest.mark.parametrize("ratio_level", ["token", "sequence_mean"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_loss_and_gradient_equal_those_of_trl(loss_type, ratio_level):
    logprobs, old, ref = [
        pad_sequence(list(map(torch.tensor, TRL[name])), True) for name in ("new", "old", "ref")
    ]
    lengths = torch.tensor(list(map(len, TRL["new"])), dtype=torch.float)  # (B,)
    mask = torch.arange(logprobs.shape[1]) < lengths[:, None]  # (B, C)
    truncated = torch.tensor(TRL["truncated"])
    cases = [c for c in TRL["cases"] if (c["loss_type"], c["ratio_level"]) == (loss_type, ratio_level)]
    for case in cases:
        counted = (~(truncated & case["mask_truncated"])).float()
        A = grpo.group_advantages(torch.tensor(TRL["rewards"]), TRL["group_size"], case["scale"])
        w = grpo.token_weights(lengths, counted, loss_type, TRL["max_new_tokens"])
        new = logprobs.clone().requires_grad_()
        how = *case["clip"], ratio_level, case["kl_coef"]
        loss, _ = grpo.grpo_loss(new, old, ref, mask.long(), A, w, *how)
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=1e-6), case
        assert new.grad[mask].tolist() == pytest.approx(case["gradient"], abs=1e-6), case
        assert not new.grad[~mask].any()


# ---- log-probabilities ----


@pytest.fixture(scope="module")
def policy():
    """(model, tokenizer): the tiny model with an adapter, in eval mode, as after a rollout."""
    base, tokenizer = grpo.load_base(str(ROOT / "data/tiny_coder"), "cpu")
    return add_adapter(base).eval(), tokenizer


@pytest.fixture(scope="module")
def samples(policy):
    """Three groups, mixed; prompts of unequal lengths; one completion is an EOS alone."""
    _, tokenizer = policy
    prompts = [encode_prompt(tokenizer, task) for task in TASKS[:3]]
    assert len(set(map(len, prompts))) == 3
    torch.manual_seed(2)
    lengths = [(0, 9), (1, 4), (0, 1), (2, 6), (1, 7), (0, 3), (0, 9), (1, 2)]
    completions = [torch.randint(3, 1000, (n - 1,)).tolist() + [tokenizer.eos_token_id] for _, n in lengths]
    return [{"prompt_ids": prompts[p], "completion_ids": ids} for (p, _), ids in zip(lengths, completions)]


def gradient(model):
    """All gradients of the adapter in one row, and none left behind."""
    found = [p.grad.flatten().clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompts_give_the_log_probs_and_gradients_of_whole_rows(policy, samples, temperature):
    """Those of completion_logprobs, which computes each prompt again; gradients also through the prompt."""
    values, gradients = [], []
    for score in grpo.group_logprobs, ppo.completion_logprobs:
        logprobs, mask = score(*policy, samples, temperature)
        assert mask.sum(-1).tolist() == [len(sample["completion_ids"]) for sample in samples]
        assert not logprobs[mask == 0].any()
        values.append(logprobs[mask == 1])  # token after token, row after row
        (values[-1] * torch.linspace(-1, 1, len(values[-1]))).mean().backward()
        gradients.append(gradient(policy[0]))
    assert torch.allclose(*values, atol=1e-5)
    assert gradients[0].abs().max() > 0.05
    assert torch.allclose(*gradients, atol=1e-5)


def test_a_shared_prompt_is_computed_once(policy, samples):
    model, tokenizer = policy
    shapes = []
    embeddings = model.get_base_model().get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    try:
        grpo.group_logprobs(model, tokenizer, samples, 1.0)
    finally:
        hook.remove()
    longest = max(len(sample["prompt_ids"]) for sample in samples)
    assert shapes == [(3, longest), (8, 9)]


def loss_and_gradient(policy, samples, micro_batch_size):
    """Of one optimizer step, as the script makes it; ratios lie on both sides of the bounds."""
    model, tokenizer = policy
    lengths = torch.tensor([float(len(sample["completion_ids"])) for sample in samples])
    weights = grpo.token_weights(lengths, torch.ones(len(samples)), "dapo", 16)
    total = 0.0
    for first in range(0, len(samples), micro_batch_size):
        mb = samples[first : first + micro_batch_size]
        logprobs, mask = grpo.group_logprobs(model, tokenizer, mb, 1.0)
        A, shift = torch.tensor([[sample["advantage"], sample["shift"]] for sample in mb]).T
        old = logprobs.detach() - shift[:, None]
        ref = logprobs.detach() + 0.5
        w = weights[first : first + micro_batch_size]
        loss, _ = grpo.grpo_loss(logprobs, old, ref, mask, A, w, 0.2, 0.2, "token", 0.1)
        loss.backward()
        total += loss.item()
    return total, gradient(model)


@pytest.fixture(scope="module")
def step(policy, samples):
    """(samples with advantages, their loss and gradient)."""
    numbers = [(1, 0.1), (-1, -0.1), (1, 0.4), (-1, -0.4), (1, -0.4), (-1, 0.4), (0.5, 0), (-0.5, 0)]
    samples = [sample | {"advantage": a, "shift": shift} for sample, (a, shift) in zip(samples, numbers)]
    return samples, *loss_and_gradient(policy, samples, 8)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batch_size_changes_nothing(policy, step, micro_batch_size):
    samples, loss, expected = step
    assert expected.abs().max() > 0.05
    value, found = loss_and_gradient(policy, samples, micro_batch_size)
    assert value == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)


def test_order_and_padding_change_nothing(policy, step):
    """Reversed, with another padding token; then beside a row of twice the length."""
    model, tokenizer = policy
    samples, loss, expected = step
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(17)
    value, found = loss_and_gradient((model, tokenizer), samples[::-1], 8)
    assert value == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)
    longer = {name: 2 * samples[0][name] for name in ("prompt_ids", "completion_ids")}
    alone, mask = grpo.group_logprobs(model, tokenizer, samples, 1.0)
    beside, same = grpo.group_logprobs(model, tokenizer, [longer, *samples], 1.0)
    assert torch.equal(same[1:, : mask.shape[1]], mask) and not same[1:, mask.shape[1] :].any()
    assert torch.allclose(beside[1:, : mask.shape[1]], alone, atol=1e-5)
