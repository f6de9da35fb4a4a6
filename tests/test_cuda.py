"""What must hold on a CUDA device: `python -m pytest -m cuda -n0 tests/test_cuda.py`, or benchmarks/gpu.py.

Everywhere else the same tests run on the CPU in the formats of a GPU: weights packed in 4 bit, arithmetic in
bfloat16. They are compared with the tiny model on the CPU in float32, unpacked. Bounds are three to five
times the differences that bfloat16 makes on the CPU.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, run_script
from peft import LoraConfig, get_peft_model

import sandbox
import train_grpo_lora as grpo
import train_ppo_lora as ppo
from sandbox import check_model, encode_prompt, read_tasks

sys.path.insert(0, str(ROOT / "benchmarks"))
from rl_update import pass_every_second

modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed: no NF4")
TASKS = read_tasks(ROOT / "data/mini_dev.jsonl")[:6]
SCORES = pytest.mark.parametrize("score", [ppo.completion_logprobs, grpo.group_logprobs])
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
T = 2.0  # temperature: unlikely tokens, too, whose log-probs differ most


class Card(str):
    """The CPU, which the scripts take for a GPU."""

    type = "cuda"
    __hash__ = str.__hash__

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True

    def __str__(self):
        return self


def pretend(patch):
    """From here on, the scripts do on the CPU what they do on a GPU."""
    Accelerator()  # has its device, before it could see a GPU
    patch.setattr(Accelerator, "device", Card("cpu"))
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    patch.setattr(modules, "has_avx512bf16", lambda: False)  # its kernel has no gradient


def load(device):
    """(model, tokenizer) with an adapter that does something, in eval mode."""
    base, tokenizer = ppo.load_base(str(ROOT / "data/tiny_coder"), device)
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.05, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora).eval()
    numbers = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.copy_(torch.randn(p.shape, generator=numbers) * 0.03)
    return model, tokenizer


@pytest.fixture(scope="module")
def exact():
    return load("cpu")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=CUDA)])
def packed(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cuda":
            return load("cuda")
        pretend(patch)
        return load(Card("cpu"))


@pytest.fixture(scope="module")
def samples(exact):
    """Two completions of each task, sampled in float32; lengths differ."""
    prompt_ids = [encode_prompt(exact[1], task) for task in TASKS for _ in range(2)]
    completions = dict(ppo.generate(*exact, prompt_ids, 32, uniform(3), T))
    assert len(set(map(len, prompt_ids))) > 1 and len(set(map(len, completions.values()))) > 1
    return [{"prompt_ids": ids, "completion_ids": completions[i]} for i, ids in enumerate(prompt_ids)]


def uniform(seed):
    return torch.rand(12, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(policy, score, samples):
    """Log-probs of all completion tokens in one row, on the CPU."""
    logprobs, mask = score(*policy, samples, T)
    return logprobs[mask == 1].cpu()


def gradient(policy, score, samples, micro_batch_size):
    """Of a loss that counts each completion by another weight, in one row, on the CPU."""
    weights = torch.linspace(-1, 1, len(samples))
    for first in range(0, len(samples), micro_batch_size):
        mb = slice(first, first + micro_batch_size)
        logprobs, _ = score(*policy, samples[mb], T)
        (logprobs.sum(-1) * weights[mb].to(logprobs.device)).sum().backward()
    found = torch.cat([p.grad.flatten().cpu() for p in policy[0].parameters() if p.requires_grad])
    policy[0].zero_grad()
    return found


# ---- the model ----


def test_weights_are_packed_arithmetic_has_16_bits_and_adapters_32(packed):
    model, _ = packed
    layers = [module for module in model.modules() if isinstance(module, modules.Linear4bit)]
    assert len(layers) == 4 * 7 and model.dtype == torch.bfloat16
    for layer in layers:
        assert layer.weight.dtype == torch.uint8 and layer.compute_dtype == torch.bfloat16
        assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@SCORES
def test_log_probs_are_those_of_the_cpu(exact, packed, samples, score):
    with torch.no_grad():
        errors = (scored(packed, score, samples) - scored(exact, score, samples)).abs()
    assert errors.mean() < 0.02 and errors.max() < 0.3


@SCORES
def test_ratio_is_1_until_the_first_step(packed, samples, score):
    """With gradients or without, after a rollout, whatever the mode was before."""
    packed[0].train()
    list(ppo.generate(*packed, [samples[0]["prompt_ids"]], 1))
    with torch.no_grad():
        old = scored(packed, score, samples)
    assert (scored(packed, score, samples) - old).abs().max() < 1e-3


@SCORES
def test_gradient_through_packed_weights_is_that_of_the_cpu(exact, packed, samples, score):
    expected = gradient(exact, score, samples, 12)
    assert (gradient(packed, score, samples, 12) - expected).norm() < 0.2 * expected.norm()


@SCORES
def test_micro_batch_size_changes_only_rounding(packed, samples, score):
    expected = gradient(packed, score, samples, 12)
    found = gradient(packed, score, samples, 5)
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_generation_with_dropped_rows(packed, samples):
    """Each token is the one that its random number picks from the plain forward's distribution."""
    model, tokenizer = packed
    prompt_ids = [sample["prompt_ids"] for sample in samples]
    stop = SimpleNamespace(pad=tokenizer.pad, eos_token_id=tokenizer.convert_tokens_to_ids("("))
    completions = dict(ppo.generate(model, stop, prompt_ids, 32, uniform(4), T))
    assert len(set(map(len, completions.values()))) > 6  # rows leave at that many steps
    for i, ids in completions.items():
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids[i] + ids], device=model.device)).logits[0].cpu()
        p = (logits[len(prompt_ids[i]) - 1 : -1].double() / T).softmax(-1)  # (C, V)
        at = torch.tensor(ids)[:, None]
        above = p.cumsum(-1).gather(-1, at)[:, 0]
        below = above - p.gather(-1, at)[:, 0]
        number = uniform(4)[i, : len(ids)]
        assert (below - 0.015 < number).all() and (number < above + 0.015).all()


@SCORES
def test_the_check_before_each_run_allows_for_rounding(packed, samples, score):
    check_model(ppo.generate, *packed, [sample["prompt_ids"] for sample in samples], 32, score)


# ---- the scripts ----


@pytest.fixture
def card(request, monkeypatch):
    if request.param == "cpu":
        pretend(monkeypatch)
    return request.param


def weights(folder):
    """What is trained, in one row."""
    return torch.cat([p.flatten() for p in torch.load(folder / "state.pt", "cpu", weights_only=True)["lora"]])


RUNS = {
    "sft": ["--model_name", ROOT / "data/tiny_coder", "--max_steps", 2, "--warmup_ratio", 0],
    "grpo": ["--num_updates", 2, "--batch_size", 2, "--samples_per_task", 3, "--grpo_epochs", 2],
    "actor_critic": ["--num_updates", 2, "--batch_size", 4, "--ppo_epochs", 2],
}
ON = [("cpu", "grpo"), *(pytest.param("cuda", method, marks=CUDA) for method in RUNS)]


@pytest.mark.parametrize("card, method", ON, indirect=["card"])
def test_killed_and_resumed_is_the_run_without_a_kill(exact, card, method, tmp_path, monkeypatch):
    """Killed between the second adapter and its state: exactly so on the CPU; on a GPU, up to backward
    passes that add in any order."""
    ppo.save_adapter(*exact, tmp_path / "start", {"method": "SFT"})
    monkeypatch.setattr(sandbox, "start_scoring", pass_every_second())  # something to learn in each update
    lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "tasks.jsonl").write_text("".join(lines[:8]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--train_path", tmp_path / "tasks.jsonl", "--learning_rate", 1e-3, "--save_every", 1]
    if method != "sft":
        flags += ["--sft_model", tmp_path / "start", "--max_new_tokens", 16]
    saves = iter(range(2))
    replace = Path.replace

    def replace_and_copy(path, target):
        if path.name == "state.pt.tmp" and next(saves) == 1:
            shutil.copytree(whole, killed)  # what a kill leaves
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_copy)
        done = run_script(f"train_{method}_lora.py", *flags, *RUNS[method], "--output_dir", whole)
    assert done.returncode == 0, done.stderr
    after_one, after_two = weights(killed), weights(whole)
    done = run_script(f"train_{method}_lora.py", *flags, *RUNS[method], "--output_dir", killed, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.variables["model"].dtype == torch.bfloat16

    logs = [(folder / f"{method}_train_log.jsonl").read_text().splitlines() for folder in (whole, killed)]
    *_, last = rows = [json.loads(line) for line in logs[0]]
    _, again = (json.loads(line) for line in logs[1])
    assert min(row["grad_norm"] for row in rows) > 0
    assert max(row.get("first_max_log_ratio", 0) for row in rows) < 1e-3
    tolerance = 0 if card == "cpu" else 0.3  # without the optimizer, or the weights, it is above 1
    assert again["grad_norm"] == pytest.approx(last["grad_norm"], rel=tolerance)
    assert (weights(killed) - after_two).norm() <= tolerance * (after_two - after_one).norm()
