"""Each script end to end, a few steps on the tiny model in 4 bit; other models; what users do wrong.

train_rl_lora.py and eval_humaneval.py run here by their real command lines, train_sft_lora.py in conftest.py,
train_ppo_lora.py in test_long_runs.py. All other runs are in this process, where torch is imported once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import ROOT, run_script
from peft import PeftModel
from safetensors.torch import load_file
from test_trainers import assert_logprobs_equal, slow_logprobs
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

import sandbox
import train_ppo_lora as ppo

BASE = str(ROOT / "data/tiny_coder")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SCRIPTS = {"sft": "train_sft_lora.py", "rl": "train_rl_lora.py", "ppo": "train_ppo_lora.py"}
each_method = pytest.mark.parametrize("method", SCRIPTS)


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run_here(script, **flags):
    """Run a script to its end in this process; what it printed, and its variables."""
    done = run_script(script, *words(flags))
    assert done.returncode == 0, done.stderr
    return done


def run(script, **flags):
    """Run a script in a process of its own: its real command line."""
    command = [sys.executable, str(ROOT / script), *words(flags)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def message_of(script, *flags):
    """The one line with which a script stops. SystemExit of a text: Python prints it and exits with 1."""
    done = run_script(script, *flags)
    *before, message = done.stderr.splitlines()
    assert done.returncode == 1 and len(message) < 600
    assert not [
        line for line in before if line and not re.search(r"Loading weights|dequantized|warn", line, re.I)
    ]
    return message


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def distance(folder, other):
    """Root of the summed squared differences of two adapters."""
    pairs = zip(weights(folder).values(), weights(other).values())
    return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5


@pytest.fixture(scope="module")
def work(trained, tmp_path_factory):
    """A folder with tasks, the SFT adapter, and what RL and PPO make of it."""
    work = tmp_path_factory.mktemp("scripts") / "work"
    shutil.copytree(trained, work)
    start = {"train_path": work / "train.jsonl", "sft_model": work / "sft", "max_new_tokens": 40}
    start |= {"learning_rate": 1e-3, "batch_size": 6}
    done = run("train_rl_lora.py", **start, output_dir=work / "rl", num_steps=2)
    (work / "rl.out").write_text(done.stdout)
    (work / "rl.err").write_text(done.stderr)
    ppo_flags = {"num_updates": 2, "length_penalty_alpha": 0.03}
    done = run_here("train_ppo_lora.py", **start, output_dir=work / "ppo", **ppo_flags)
    (work / "ppo.out").write_text(done.stdout)
    return work


def train_here(work, method, output, **flags):
    """(variables, log, samples) of a short run from the SFT adapter, in this process."""
    start = {"train_path": work / "train.jsonl", "sft_model": work / "sft", "output_dir": work / output}
    start |= {"max_new_tokens": 40, "learning_rate": 1e-3, "batch_size": 6}
    start |= {"num_updates": 1} if method == "ppo" else {"num_steps": 1}
    done = run_here(SCRIPTS[method], **{**start, **flags})
    log = lines(work / output / f"{method}_train_log.jsonl")
    return done.variables, log, lines(work / output / "samples.jsonl")


# ---- what a run leaves --------------------------------------------------------------------------------


@each_method
def test_output_folder_is_complete(work, method):
    folder = work / method
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", f"{method}_train_log.jsonl", "state.pt"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pkl", ".tmp", ".pth"))]
    torch.load(folder / "state.pt", weights_only=True)  # plain data
    config = json.loads((folder / "run_config.json").read_text())
    assert config["finished"] and config["seed"] == 42
    assert config["update" if method == "ppo" else "step"] == (8 if method == "sft" else 2)
    assert config["method"] == {"sft": "SFT", "rl": "REINFORCE", "ppo": "PPO"}[method]
    inputs = {work / "train.jsonl", work / "sft/adapter_model.safetensors"} if method != "sft" else set()
    assert all(len(config[str(path)]) == 64 for path in inputs)  # SHA-256
    assert method != "sft" or len(config[config["train_path"]]) == 64


@each_method
def test_plain_peft_loads_the_adapter(work, method):
    """And it has moved. LoRA is on all linear layers but the head."""
    PeftModel.from_pretrained(ppo.load_base(BASE, "cpu")[0], work / method)
    assert any(tensor.abs().max() > 0 for name, tensor in weights(work / method).items() if "lora_B" in name)
    assert method == "sft" or distance(work / method, work / "sft") > 0
    config = json.loads((work / method / "adapter_config.json").read_text())
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == projections and config["lora_dropout"] == 0.05


def test_logs_have_the_documented_fields(work):
    sft = lines(work / "sft/sft_train_log.jsonl")
    assert [row["step"] for row in sft] == list(range(1, 9))
    assert sft[0]["lr"] == 0 and 2e-3 == sft[1]["lr"] > sft[2]["lr"] > sft[7]["lr"] > 0
    rl = lines(work / "rl/rl_train_log.jsonl")
    assert [row["step"] for row in rl] == [1, 2]
    assert {"base_reward", "length_penalty", "reward", "gen_len", "loss", "hit_token_limit"} <= set(rl[0])
    assert rl[0]["reward"] == pytest.approx(rl[0]["base_reward"] - 0.01 * rl[0]["gen_len"] / 100)
    updates = lines(work / "ppo/ppo_train_log.jsonl")
    assert [row["update"] for row in updates] == [1, 2]
    assert {"batch_size", "avg_reward", "avg_base_reward", "avg_gen_len", "clip_frac"} <= set(updates[0])
    health = "approx_kl", "max_log_ratio", "entropy_estimate", "hit_token_limit", "sign_by_length"
    assert set(health) <= set(updates[0])
    assert updates[0]["avg_reward"] == pytest.approx(
        updates[0]["avg_base_reward"] - 0.03 * updates[0]["avg_gen_len"] / 100
    )


@pytest.mark.parametrize("name, page", [("sft", "sft"), ("rl", "reinforce"), ("ppo", "ppo")])
def test_every_logged_metric_is_explained(work, name, page):
    logged = set(lines(work / f"{name}/{name}_train_log.jsonl")[0])
    text = (ROOT / f"docs/{page}.md").read_text()
    table = re.search(r"^## Logged metrics$(.*?)^## ", text, re.M | re.S)[1]
    explained = {
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall("`(.*?)`", cell)
    }
    assert explained - {"dev_pass_at_1"} == logged  # that one comes with --dev_path


@pytest.mark.parametrize("method, prefix, alpha", [("ppo", "avg_", 0.03), ("rl", "", 0.01)])
def test_samples_agree_with_the_log(work, method, prefix, alpha):
    samples = lines(work / method / "samples.jsonl")
    tasks = {task["task_id"]: task for task in lines(work / "train.jsonl")}
    number = "update" if method == "ppo" else "step"
    for row in lines(work / f"{method}/{method}_train_log.jsonl"):
        mine = [sample for sample in samples if sample[number] == row[number]]
        assert len(mine) == row["batch_size"] == 6

        fields = "gen_len", "reward", "hit_token_limit"
        mean = {field: pytest.approx(sum(sample[field] for sample in mine) / 6) for field in fields}
        passed = sum(sample["outcome"] == "passed" for sample in mine)
        assert row[f"{prefix}base_reward"] == pytest.approx(passed / 6)
        assert row[f"{prefix}gen_len"] == mean["gen_len"] and row[f"{prefix}reward"] == mean["reward"]
        assert row["hit_token_limit"] == mean["hit_token_limit"]
        for sample in mine:
            reward = (sample["outcome"] == "passed") - alpha * sample["gen_len"] / 100
            assert sample["reward"] == pytest.approx(reward)
            assert not sample["hit_token_limit"] or sample["gen_len"] == 40
            assert sample["gen_len"] <= 40
        if method == "ppo":
            assert sum(sample["advantage"] for sample in mine) == pytest.approx(0, abs=1e-4)
            assert 0 < passed < 6 and row["sign_by_length"] == 0  # a pass outweighs any length
        else:
            assert all(sample["advantage"] == pytest.approx(sample["reward"]) for sample in mine)
    assert len({sample["hit_token_limit"] for sample in samples}) == 2
    with sandbox.Sandbox() as judge:  # the reward is what the program deserves
        some = samples[:6]
        results = sandbox.score(judge, [tasks[s["task_id"]] for s in some], [s["completion"] for s in some])
    assert [result.outcome for result in results] == [sample["outcome"] for sample in some]


@pytest.mark.parametrize("method", ["rl", "ppo"])
def test_training_prints_its_preflight_and_what_the_sandbox_protects(work, method):
    out = (work / f"{method}.out").read_text()
    assert "sandbox: {'network': True, " in out
    assert "24/24 reference solutions pass" in out and "warning" not in out
    report = json.loads((work / method / "run_config.json").read_text())["sandbox"]
    assert all(report[name] is True for name in ("network", "processes", "write", "read", "signals"))
    assert {"seccomp", "landlock", "uid", "wrapper"} <= set(report)


def deprecations_of_the_cache(text):
    """Lines in which a library says that keys and values are handed over in a way that will not last."""
    said = [line for line in text.splitlines() if re.search(r"warning|deprecat|will be removed", line, re.I)]
    return [line for line in said if re.search(r"past_key_values?\b|\bcache\b(?!/)", line)]


def test_no_library_warns_of_how_the_cache_is_used(work):
    for name in "sft", "rl":
        assert not deprecations_of_the_cache((work / f"{name}.err").read_text())


def test_evaluation_of_base_and_adapter_then_table(work):
    results = work / "results"
    flags = {"data_path": work / "test.jsonl", "results_dir": results, "max_new_tokens": 40}
    for name, model in (("base", BASE), ("sft", work / "sft"), ("ppo", work / "ppo")):
        start = run if name == "ppo" else run_here
        done = start("eval_humaneval.py", model_path=model, exp_name=name, **flags)
        assert not deprecations_of_the_cache(done.stderr)
        rows = lines(results / f"{name}_per_task.jsonl")
        metrics = json.loads((results / f"{name}_metrics.json").read_text())
        tests = lines(work / "test.jsonl")
        assert [row["task_id"] for row in rows] == [task["task_id"] for task in tests]
        assert metrics["num_tasks"] == 8
        assert metrics["is_lora"] == (name != "base")
        assert (
            metrics["num_pass"] == sum(row["passed"] for row in rows) == metrics["outcomes"].get("passed", 0)
        )
        assert metrics["pass_at_1"] == metrics["num_pass"] / 8
        assert metrics["num_pass_truncated"] == sum(row["passed_truncated"] for row in rows)
        assert metrics["avg_gen_len"] == pytest.approx(sum(row["gen_len"] for row in rows) / 8)
        assert all(row["gen_len"] <= 40 for row in rows)
    done = run_script("compare_runs.py", "--results_dir", results)
    assert done.returncode == 0, done.stderr
    assert "PPO" in done.stdout and "SFT" in done.stdout
    for name in ("results.md", "scores.png", "learning_curves.png"):
        assert (results / name).stat().st_size > 200


# ---- what the loop promises ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, few, many",
    [
        ("rl", {"micro_batch_size": 1}, {"micro_batch_size": 4}),
        ("ppo", {"micro_batch_size": 1}, {"micro_batch_size": 4}),
        (
            "sft",
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        ),
    ],
)
def test_micro_batch_size_changes_no_loss_and_no_gradient(work, method, few, many):
    """The divisors of the losses are constants of the whole update, in the scripts themselves."""
    flags = {"train_path": work / "train.jsonl", "output_dir": work / f"micro_{method}"}
    if method == "sft":
        flags |= {"model_name": BASE, "max_steps": 1, "lora_dropout": 0.0}
    else:
        flags |= {"sft_model": work / "sft", "max_new_tokens": 40, "batch_size": 4, "temperature": 0.8}
        flags |= {"length_penalty_alpha": 1.0}  # so that no two rewards are equal
        flags |= {"ppo_epochs": 2, "num_updates": 1, "ratio_level": "token"} if method == "ppo" else {}
        flags |= {"num_steps": 1} if method == "rl" else {}
    rows = []
    for variant in few, many:
        run_here(SCRIPTS[method], **flags, **variant)
        rows.append(lines(work / f"micro_{method}/{method}_train_log.jsonl")[0])
    assert rows[0]["grad_norm"] > 0
    for field in rows[0].keys() - {"seconds"}:
        # An extreme over tokens, of differences of log-probabilities that float32 rounds by 1e-6 each.
        rounding = 1e-5 if field == "max_log_ratio" else 1e-6
        assert rows[0][field] == pytest.approx(rows[1][field], rel=1e-4, abs=rounding), field


@pytest.mark.parametrize("packed, level", [(False, "token"), (True, "sequence")])
def test_ratio_stays_1_while_the_policy_does(work, packed, level, monkeypatch):
    """At a learning rate of nearly 0, all epochs score one policy; dropout of the SFT adapter would show."""
    if packed:  # in 4 bit, as on a GPU
        monkeypatch.setattr(PreTrainedModel, "dequantize", lambda model: model)
    flags = {"learning_rate": 1e-12, "ppo_epochs": 2, "ratio_level": level}
    variables, log, _ = train_here(work, "ppo", "still", **flags)
    assert log[0]["epochs"] == 2 and log[0]["grad_norm"] > 0
    assert log[0]["max_log_ratio"] < 1e-3
    assert log[0]["clip_frac"] == 0
    assert packed == any(isinstance(module, Linear4bit) for module in variables["model"].modules())
    dropouts = [module for module in variables["model"].modules() if type(module).__name__ == "Dropout"]
    assert dropouts and all(dropout.p == 0.05 and not dropout.training for dropout in dropouts)


def test_length_is_charged_to_passing_programs_only(work):
    flags = {"length_penalty_alpha": 1.0, "batch_size": 12, "length_penalty_on": "passed"}
    _, _, samples = train_here(work, "ppo", "charge", **flags)
    for sample in samples:
        assert sample["reward"] == pytest.approx(
            1 - sample["gen_len"] / 100 if sample["outcome"] == "passed" else 0
        )
    assert len({sample["outcome"] == "passed" for sample in samples}) == 2


@pytest.mark.parametrize("method, prefix", [("ppo", "avg_"), ("rl", "")])
def test_partial_success_is_rewarded(work, method, prefix):
    flags = {"reward": "structured", "length_penalty_alpha": 0.5}
    _, log, samples = train_here(work, method, "structured", **flags)
    earned = [sandbox.shaped(sample["outcome"], sample["fraction"], "structured") for sample in samples]
    for sample, value in zip(samples, earned):
        assert sample["reward"] == pytest.approx(value - 0.5 * sample["gen_len"] / 100)
    assert len(set(earned)) > 2
    passed = [sample["outcome"] == "passed" for sample in samples]
    assert log[0][f"{prefix}base_reward"] == pytest.approx(sum(passed) / 6)  # whatever is rewarded
    mean = sum(sample["fraction"] for sample in samples) / 6
    assert log[0][f"{prefix}pass_rate"] == pytest.approx(mean)
    assert mean > sum(passed) / 6  # some are partly right


def test_baseline_is_the_mean_of_the_others(work):
    _, _, samples = train_here(work, "rl", "baseline", baseline="batch")
    rewards = [sample["reward"] for sample in samples]
    for sample in samples:
        others = (sum(rewards) - sample["reward"]) / 5
        assert sample["advantage"] == pytest.approx(sample["reward"] - others, abs=1e-5)


def test_target_kl_ends_an_update(work):
    _, log, _ = train_here(work, "ppo", "target", length_penalty_alpha=1.0, target_kl=1e-9)
    train_here(work, "ppo", "one_step", length_penalty_alpha=1.0, ppo_epochs=1)
    assert log[0]["epochs"] == 2 and log[0]["approx_kl"] > 1e-9  # the second was not stepped
    assert distance(work / "target", work / "one_step") == 0 < distance(work / "target", work / "sft")


@pytest.mark.parametrize("method", ["ppo", "rl"])
def test_nothing_to_learn_is_said_and_nothing_is_learnt(work, method, monkeypatch):
    """One token is no program: all rewards are equal. And every task comes once before one comes again."""
    flags = {"max_new_tokens": 1, "batch_size": 9, "num_updates" if method == "ppo" else "num_steps": 6}
    flags |= {"baseline": "batch"} if method == "rl" else {}
    steps = []  # with Adam's momentum, a step without a gradient would move the weights
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: steps.append(1))
    start = {"train_path": work / "train.jsonl", "sft_model": work / "sft", "output_dir": work / "flat"}
    done = run_here(SCRIPTS[method], **start, **flags)
    assert done.stdout.count("nothing to learn: raise --temperature") == 6
    log, samples = (lines(work / f"flat/{name}.jsonl") for name in (f"{method}_train_log", "samples"))
    assert all(row["grad_norm"] == 0 for row in log) and len(log) == 6
    assert all(sample["advantage"] == 0 and sample["hit_token_limit"] for sample in samples)
    assert steps == [] and distance(work / "flat", work / "sft") == 0
    drawn = [sample["task_id"] for sample in samples]  # 54 of 24 tasks
    everything = {task["task_id"] for task in lines(work / "train.jsonl")}
    assert set(drawn[:24]) == set(drawn[24:48]) == everything and len(set(drawn[48:])) == 6
    assert drawn[:24] != drawn[24:48]


def test_sign_by_length(work):
    """Where no program passes, every advantage comes from length alone."""
    flags = {"temperature": 2.0, "max_new_tokens": 96, "length_penalty_alpha": 0.5, "ppo_epochs": 1}
    _, log, samples = train_here(work, "ppo", "signs", **flags)
    assert not any(sample["outcome"] == "passed" for sample in samples)
    turned = sum(sample["advantage"] != 0 for sample in samples) / 6
    assert turned > 0 and log[0]["sign_by_length"] == pytest.approx(turned)  # completions differ in length


SEED = 20261127013000123456  # date, time and microseconds: more than 64 bits


def test_a_seed_as_long_as_a_time_stamp(work):
    sft = {"model_name": BASE, "output_dir": work / "seed_sft", "max_steps": 1, "seed": SEED}
    run_here("train_sft_lora.py", train_path=work / "train.jsonl", **sft)
    for method, steps in ("rl", "num_steps"), ("ppo", "num_updates"):
        train_here(work, method, "seed", **{steps: 1, "seed": SEED})
    flags = {"model_path": work / "sft", "data_path": work / "test.jsonl", "results_dir": work / "seed"}
    run_here("eval_humaneval.py", **flags, temperature=0.8, max_new_tokens=8, seed=SEED)


# ---- other models -------------------------------------------------------------------------------------


def alternating():
    """Every second program passes, whatever it is: a random model would learn from nothing."""
    outcomes = iter(["passed", "failed"] * 100)

    def start_scoring(box, task, completion):
        future = Future()
        future.set_result(sandbox.Result(next(outcomes)))
        return future

    return start_scoring


SMALL = {"tie_word_embeddings": True, "initializer_range": 0.2}  # else the position hardly matters
OTHERS = {
    "qwen2": lambda vocabulary: Qwen2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, **SMALL,
    ),
    "gpt2": lambda vocabulary: GPT2Config(
        vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=512, **SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_runs_through_all_scripts(work, tmp_path, name, monkeypatch):
    """Its layers have other names, or (GPT-2) transposed weights; nothing in the scripts names a layer."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = OTHERS[name](len(tokenizer))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    train = {"train_path": work / "train.jsonl"}
    sft = {"model_name": tmp_path / "base", "output_dir": tmp_path / "sft", "max_steps": 2, "warmup_ratio": 0}
    run_here("train_sft_lora.py", **train, **sft, learning_rate=1e-3)
    log = lines(tmp_path / "sft/sft_train_log.jsonl")
    assert all(row["grad_norm"] > 0 for row in log)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "start_scoring", alternating())
        flags = {"sft_model": tmp_path / "sft", "output_dir": tmp_path / "ppo", "num_updates": 1}
        flags |= {"max_new_tokens": 12, "ppo_epochs": 2, "learning_rate": 1e-3}
        done = run_here("train_ppo_lora.py", **train, **flags)
    log = lines(tmp_path / "ppo/ppo_train_log.jsonl")
    assert log[0]["grad_norm"] > 0 and log[0]["epochs"] == 2 and log[0]["avg_base_reward"] == 0.5
    assert distance(tmp_path / "ppo", tmp_path / "sft") > 0
    model, prompts = done.variables["model"].eval(), [task["prompt_ids"] for task in done.variables["tasks"]]
    completions = dict(ppo.generate(model, tokenizer, prompts[:4], 12))
    samples = [{"prompt_ids": prompts[i], "completion_ids": completions[i]} for i in range(4)]
    logprobs, mask = ppo.completion_logprobs(model, tokenizer, samples, 1.0)
    assert_logprobs_equal(samples, logprobs, mask, slow_logprobs(model, samples, 1.0))
    for sample in samples:  # greedily, without cache and padding
        ids = list(sample["prompt_ids"])
        while len(ids) < len(sample["prompt_ids"] + sample["completion_ids"]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert ids == sample["prompt_ids"] + sample["completion_ids"]
    flags = {"data_path": work / "test.jsonl", "results_dir": tmp_path / "results", "max_new_tokens": 8}
    run_here("eval_humaneval.py", model_path=tmp_path / "ppo", exp_name=name, **flags)
    assert json.loads((tmp_path / f"results/{name}_metrics.json").read_text())["is_lora"]


# ---- what users do wrong ------------------------------------------------------------------------------


def test_missing_task_file():
    message = message_of("train_sft_lora.py", "--train_path", "nowhere.jsonl", "--model_name", BASE)
    assert "nowhere.jsonl" in message


@pytest.mark.parametrize(
    "script, flag",
    [*((script, "--train_path") for script in SCRIPTS.values()), ("eval_humaneval.py", "--data_path")],
)
def test_malformed_task_file(work, script, flag):
    broken = work / "broken.jsonl"
    first = (work / "train.jsonl").read_text().splitlines()[0]
    task = json.loads(first)
    del task["test"]
    broken.write_text(first + "\n" + json.dumps(task) + "\n")
    message = message_of(script, flag, broken)
    assert "line 2" in message and "test" in message


def test_unknown_model_or_no_network(work):
    message = message_of(
        "train_sft_lora.py", "--train_path", work / "train.jsonl", "--model_name", "nobody/no-such-model"
    )
    assert "nobody/no-such-model" in message and "PROFILE=tiny" in message


def of_sft(work, adapter):
    return "--train_path", work / "train.jsonl", "--sft_model", adapter, "--output_dir", work / "y"


def test_folder_that_is_no_adapter(work):
    message = message_of("train_ppo_lora.py", *of_sft(work, BASE))
    assert f"cannot load {BASE} as an adapter" in message and "adapter_model.safetensors" in message


def test_adapter_of_another_base_model(work):
    """The folder of the base model now holds a model of another shape."""
    other = work / "other_base"
    shutil.copytree(BASE, other)
    config = json.loads((other / "config.json").read_text())
    config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"] = 128, 2, 2
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(other)
    adapter = work / "other_adapter"
    shutil.copytree(work / "sft", adapter)
    adapter_config = json.loads((adapter / "adapter_config.json").read_text())
    adapter_config["base_model_name_or_path"] = str(other)
    (adapter / "adapter_config.json").write_text(json.dumps(adapter_config))
    message = message_of("train_rl_lora.py", *of_sft(work, adapter))
    assert f"cannot load {adapter} as an adapter on its base" in message


def test_damaged_adapter(work):
    shutil.copytree(work / "sft", work / "damaged")
    path = work / "damaged/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert f"cannot load {work}/damaged" in message_of("train_rl_lora.py", *of_sft(work, work / "damaged"))


def test_adapter_that_only_pickle_could_read(work):
    """peft would unpickle it, which runs code from the file."""
    shutil.copytree(work / "sft", work / "pickled")
    (work / "pickled/adapter_model.safetensors").rename(work / "pickled/adapter_model.bin")
    message = message_of("train_ppo_lora.py", *of_sft(work, work / "pickled"))
    assert f"cannot load {work}/pickled as an adapter" in message and "No such file" in message


def test_output_folder_is_the_input(work):
    flags = ("--sft_model", work / "sft", "--output_dir", f"{work}/./sft/")
    for method in "rl", "ppo":
        message = message_of(SCRIPTS[method], *flags)
        assert "--output_dir is --sft_model" in message
    inside = ("--sft_model", work / "sft/best", "--output_dir", work / "sft")  # a new run empties best/
    assert "or holds it" in message_of(SCRIPTS["ppo"], *inside)


def test_numbers_that_are_not_finite():
    for flag, value in ("--length_penalty_alpha", "nan"), ("--learning_rate", "inf"):
        assert f"{flag} must be above" in message_of("train_ppo_lora.py", flag, value)


@pytest.mark.parametrize("method, flag", [("sft", "--model_name"), ("ppo", "--sft_model")])
def test_output_folder_that_cannot_be_made(work, method, flag):
    model = BASE if flag == "--model_name" else work / "sft"
    (work / "a_file").write_text("")
    below = work / "a_file/below"
    flags = ("--train_path", work / "train.jsonl", flag, model, "--output_dir", below)
    assert str(below) in message_of(SCRIPTS[method], *flags)


@pytest.mark.parametrize("method, flag", [("sft", "--model_name"), ("rl", "--sft_model")])
def test_max_length_too_short_for_any_row(work, method, flag):
    model = BASE if flag == "--model_name" else work / "sft"
    arguments = ("--train_path", work / "train.jsonl", flag, model, "--output_dir", work / "short")
    assert "--max_length 10" in message_of(SCRIPTS[method], *arguments, "--max_length", 10)


def test_dev_split_of_all_tasks(work):
    flags = (*of_sft(work, work / "sft"), "--dev_path", work / "train.jsonl")
    assert "--dev_path" in message_of("train_rl_lora.py", *flags)


def test_negative_max_steps_is_off_and_rows_that_are_too_long_are_counted(work):
    flags = {"max_steps": -1, "num_train_epochs": 0.3, "output_dir": work / "epochs", "max_length": 95}
    done = run_here("train_sft_lora.py", train_path=work / "train.jsonl", model_name=BASE, **flags)
    rows, step = done.variables["rows"], done.variables["num_steps"]
    assert step == len(lines(work / "epochs/sft_train_log.jsonl")) == 1
    eos = done.variables["tokenizer"].eos_token_id
    cut = sum(row[0][-1] != eos for row in rows)
    assert f"{len(rows)} of 24 rows have a solution token, {cut} are cut" in done.stdout
    assert 0 < cut < len(rows) and all(max(labels) >= 0 for _, labels in rows)


@pytest.mark.parametrize("method", ["rl", "ppo"])
def test_preflight_stops_the_run(work, method):
    """A reference solution that fails means a reward that cannot be earned."""
    tasks = lines(work / "train.jsonl")
    tasks[3]["canonical_solution"] = "    return None\n"
    (work / "dead.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    flags = ("--sft_model", work / "sft", "--output_dir", work / "dead")
    message = message_of(SCRIPTS[method], "--train_path", work / "dead.jsonl", *flags)
    assert "preflight" in message and tasks[3]["task_id"] in message
    assert not (work / "dead").exists()


@pytest.mark.parametrize(
    "method, flag, value, part",
    [
        ("ppo", "--micro_batch_size", 0, "--micro_batch_size must be above 0"),
        ("ppo", "--batch_size", 1, "must be at least 2"),
        ("ppo", "--clip_range", -0.2, "--clip_range must be above 0"),
        ("ppo", "--temperature", "nan", "--temperature must be above 0"),
        ("rl", "--max_grad_norm", 0, "--max_grad_norm must be above 0"),
        ("rl", "--log_every", 0, "--log_every must be above 0"),
        ("sft", "--gradient_accumulation_steps", 0, "--gradient_accumulation_steps must be above 0"),
        ("sft", "--weight_decay", -1, "--weight_decay is at least 0"),
        ("sft", "--lora_dropout", -0.1, "--lora_dropout and --warmup_ratio go from 0 to 1"),
        ("sft", "--warmup_ratio", 2, "--lora_dropout and --warmup_ratio go from 0 to 1"),
    ],
)
def test_wrong_flags(method, flag, value, part):
    assert part in message_of(SCRIPTS[method], flag, value)


@pytest.mark.parametrize(
    "method, flag, parts",
    [
        ("ppo", "--ratio_level", ("sequence", "token")),
        ("ppo", "--length_penalty_on", ("all", "passed")),
        ("rl", "--baseline", ("none", "batch")),
        ("sft", "--report_to", ("none", "tensorboard", "wandb")),
        ("ppo", "--batchsize", ("unrecognized arguments",)),
        ("rl", "--micro_batch", ("unrecognized arguments",)),  # no abbreviations
        ("sft", "--test_path", ("unrecognized arguments",)),
        ("ppo", "--kl_coef", ("unrecognized arguments",)),  # it has left, as have these
        ("ppo", "--baseline", ("unrecognized arguments",)),
        ("rl", "--samples_per_task", ("unrecognized arguments",)),
    ],
)
def test_wrong_choice_or_name(method, flag, parts):
    done = run_script(SCRIPTS[method], flag, "something")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2  # a line of usage and the mistake
    assert flag in done.stderr and all(part in done.stderr for part in parts)


def test_results_folder_that_cannot_be_made(work):
    (work / "a_results_file").write_text("")
    flags = ("--data_path", work / "test.jsonl", "--results_dir", work / "a_results_file/below")
    assert "--results_dir" in message_of("eval_humaneval.py", *flags, "--model_path", BASE)
