"""Each script through its real command line, a few steps on the tiny model in 4 bit; what users do wrong."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bitsandbytes.nn import Linear4bit
from conftest import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

import train_ppo_lora as ppo

BASE = str(ROOT / "data/tiny_coder")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
RL = ("--max_new_tokens", 40, "--learning_rate", 1e-3)


def run(script, *flags, cwd=ROOT):
    """Run a script in a process of its own; (exit code, stdout, stderr)."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def message_of(script, *flags):
    """The one line with which a script stops; runs in this process, so that torch is imported only once."""
    argv = sys.argv
    sys.argv = [str(ROOT / script), *map(str, flags)]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = argv
    message = stop.value.code
    assert isinstance(message, str) and "\n" not in message  # python prints it and exits with 1
    return message


def run_here(script, *flags):
    """Run a script in this process; its variables, as a notebook would see them."""
    argv = sys.argv
    sys.argv = [str(ROOT / script), *map(str, flags)]
    try:
        return runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = argv


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with 24 training and 8 test tasks, and the adapters that the scripts make from them."""
    work = tmp_path_factory.mktemp("work")
    for side, number in (("train", 24), ("test", 8)):
        head = (ROOT / f"data/mini_{side}.jsonl").read_text().splitlines(keepends=True)[:number]
        (work / f"{side}.jsonl").write_text("".join(head))
    train = ("--train_path", work / "train.jsonl", "--test_path", work / "test.jsonl")
    sft_flags = ("--max_steps", 8, "--learning_rate", 2e-3)  # enough for some completions to end and to pass
    start = (*train, "--sft_model", work / "sft", *RL)
    ppo_flags = ("--num_updates", 2, "--length_penalty_alpha", 0.03, "--batch_size", 6)
    commands = [
        ("train_sft_lora.py", *train, "--model_name", BASE, "--output_dir", work / "sft", *sft_flags),
        ("train_rl_lora.py", *start, "--output_dir", work / "rl", "--num_steps", 2),
        ("train_ppo_lora.py", *start, "--output_dir", work / "ppo", *ppo_flags),
    ]
    for command in commands:
        code, out, err = run(*command)
        assert code == 0, err
        (work / f"{command[0]}.out").write_text(out)
    return work


@pytest.mark.parametrize(
    "name, log", [("sft", "sft_train_log"), ("rl", "rl_train_log"), ("ppo", "ppo_train_log")]
)
def test_output_folder_is_complete(work, name, log):
    folder = work / name
    present = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", f"{log}.jsonl"} <= present
    assert not [path for path in present if path.endswith((".bin", ".pt", ".pkl", ".tmp"))]
    config = json.loads((folder / "run_config.json").read_text())
    assert config["finished"] and config["seed"] == 42
    assert config["method"] == {"sft": "SFT", "rl": "REINFORCE", "ppo": "PPO"}[name]
    assert config["overlap"]["pairs"] == [] and len(config["train_sha256"]) == 64
    script = {"sft": "train_sft_lora.py", "rl": "train_rl_lora.py", "ppo": "train_ppo_lora.py"}[name]
    assert config["overlap"]["summary"] in (work / f"{script}.out").read_text()
    PeftModel.from_pretrained(ppo.load_base(BASE, "cpu")[0], folder)


def test_logs_have_the_documented_fields(work):
    sft = lines(work / "sft/sft_train_log.jsonl")
    assert [row["step"] for row in sft] == list(range(1, 9))
    rl = lines(work / "rl/rl_train_log.jsonl")
    assert [row["step"] for row in rl] == [1, 2]
    assert {"base_reward", "length_penalty", "reward", "gen_len", "loss"} <= set(rl[0])
    assert rl[0]["reward"] == pytest.approx(rl[0]["base_reward"] - 0.01 * rl[0]["gen_len"] / 100)
    updates = lines(work / "ppo/ppo_train_log.jsonl")
    assert [row["update"] for row in updates] == [1, 2]
    assert {"batch_size", "avg_reward", "avg_base_reward", "avg_gen_len", "clip_frac"} <= set(updates[0])
    health = {
        "flat",
        "approx_kl",
        "max_log_ratio",
        "entropy_estimate",
        "truncated",
        "unique",
        "sign_by_length",
    }
    assert health <= set(updates[0])
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


def test_samples_agree_with_the_log(work):
    samples = lines(work / "ppo/samples.jsonl")
    for row in lines(work / "ppo/ppo_train_log.jsonl"):
        mine = [sample for sample in samples if sample["update"] == row["update"]]
        assert len(mine) == row["batch_size"] == 6
        passed = sum(sample["outcome"] == "passed" for sample in mine)
        assert row["avg_base_reward"] == pytest.approx(passed / 6)
        assert row["avg_gen_len"] == pytest.approx(sum(sample["gen_len"] for sample in mine) / 6)
        assert row["avg_reward"] == pytest.approx(sum(sample["reward"] for sample in mine) / 6)
        assert row["truncated"] == pytest.approx(sum(sample["truncated"] for sample in mine) / 6)
        assert row["unique"] == len({(sample["task_id"], sample["completion"]) for sample in mine})
        assert sum(sample["advantage"] for sample in mine) == pytest.approx(0, abs=1e-4)


def test_training_prints_its_preflight_and_no_warning(work):
    for script in ("train_rl_lora.py", "train_ppo_lora.py"):
        out = (work / f"{script}.out").read_text()
        assert "sandbox: {'network': True, " in out
        assert "24/24 reference solutions pass" in out
        assert "warning" not in out


def test_what_the_sandbox_protected_is_written_down(work):
    reports = [json.loads((work / name / "run_config.json").read_text())["sandbox"] for name in ("rl", "ppo")]
    reports += [row["sandbox"] for row in lines(work / "rl/rl_train_log.jsonl")]
    reports += [row["sandbox"] for row in lines(work / "ppo/ppo_train_log.jsonl")]
    assert len(reports) == 6
    for report in reports:
        assert all(report[name] is True for name in ("network", "processes", "write", "read", "signals"))
        assert {"seccomp", "landlock", "uid", "wrapper"} <= set(report)


@pytest.mark.parametrize("name", ["sft", "rl", "ppo"])
def test_training_moves_the_adapter(work, name):
    assert any(tensor.abs().max() > 0 for key, tensor in weights(work / name).items() if "lora_B" in key)
    assert name == "sft" or distance(work / name, work / "sft") > 0


def test_evaluation_of_base_and_adapter_then_table(work):
    results = work / "results"
    flags = ("--data_path", work / "test.jsonl", "--results_dir", results, "--max_new_tokens", 40)
    for name, model in (("base", BASE), ("sft", work / "sft"), ("ppo", work / "ppo")):
        code, out, err = run("eval_humaneval.py", "--model_path", model, "--exp_name", name, *flags)
        assert code == 0, err
        rows = lines(results / f"{name}_per_task.jsonl")
        metrics = json.loads((results / f"{name}_metrics.json").read_text())
        assert [row["task_id"] for row in rows] == [f"mini_test/{i}" for i in range(8)]
        assert metrics["num_tasks"] == 8
        assert metrics["sandbox"]["network"] is True
        assert metrics["is_lora"] == (name != "base")
        trained_on = [work / "train.jsonl"] * {"base": 0, "sft": 1, "ppo": 2}[name]
        assert [file["train_path"] for file in metrics["overlap"]] == list(map(str, trained_on))
        assert all(file["pairs"] == [] and file["summary"] in out for file in metrics["overlap"])
        assert (
            metrics["num_pass"] == sum(row["passed"] for row in rows) == metrics["outcomes"].get("passed", 0)
        )
        assert metrics["pass_at_1"] == metrics["num_pass"] / 8
        assert metrics["num_pass_truncated"] == sum(row["passed_truncated"] for row in rows)
        assert metrics["avg_gen_len"] == pytest.approx(sum(row["gen_len"] for row in rows) / 8)
        assert all(row["gen_len"] <= 40 for row in rows)
    code, out, err = run("compare_runs.py", "--results_dir", results)
    assert code == 0, err
    assert "PPO" in out and "SFT" in out
    for name in ("results.md", "scores.png", "learning_curves.png"):
        assert (results / name).stat().st_size > 200


def test_same_seed_same_adapter(work):
    """Two runs with the same seed end bit-equal on a CPU."""
    flags = ("--train_path", work / "train.jsonl", "--sft_model", work / "sft", "--num_updates", 1)
    flags += ("--max_new_tokens", 40, "--learning_rate", 1e-3, "--length_penalty_alpha", 1.0)
    adapters = []
    for name in ("first", "second"):
        code, _, err = run("train_ppo_lora.py", *flags, "--output_dir", work / name)
        assert code == 0, err
        adapters.append((work / name / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    assert distance(work / "first", work / "sft") > 0


@pytest.mark.parametrize(
    "script, log, few, many",
    [
        ("train_rl_lora.py", "rl", {"--micro_batch_size": 1}, {"--micro_batch_size": 4}),
        ("train_ppo_lora.py", "ppo", {"--micro_batch_size": 1}, {"--micro_batch_size": 4}),
        (
            "train_ppo_lora.py",
            "ppo",
            {"--micro_batch_size": 1, "--ppo_epochs": 2, "--kl_coef": 1000.0},
            {"--micro_batch_size": 4, "--ppo_epochs": 2, "--kl_coef": 1000.0},
        ),
        (
            "train_sft_lora.py",
            "sft",
            {"--per_device_train_batch_size": 1, "--gradient_accumulation_steps": 4},
            {"--per_device_train_batch_size": 4, "--gradient_accumulation_steps": 1},
        ),
    ],
)
def test_micro_batch_size_changes_no_loss_and_no_gradient(work, script, log, few, many):
    """The divisors of the losses are constants of the whole update, in the scripts themselves."""
    flags = {"--train_path": work / "train.jsonl", "--output_dir": work / f"micro_{log}"}
    if log == "sft":
        flags |= {"--model_name": BASE, "--max_steps": 1, "--lora_dropout": 0.0}
    else:
        flags |= {
            "--sft_model": work / "sft",
            "--max_new_tokens": 40,
            "--batch_size": 4,
            "--temperature": 0.8,
        }
        flags |= {"--learning_rate": 1e-3}  # the second epoch is away from the SFT policy
        flags |= {"--ppo_epochs": 1, "--num_updates": 1, "--ratio_level": "token"} if log == "ppo" else {}
        flags |= {"--num_steps": 1} if log == "rl" else {}
        flags |= {"--length_penalty_alpha": 1.0}  # so that no two rewards are equal
    rows = []
    for variant in (few, many):
        run_here(script, *(word for pair in (flags | variant).items() for word in pair))
        rows.append(lines(work / f"micro_{log}/{log}_train_log.jsonl")[0])
    assert rows[0]["grad_norm"] > 0
    for field in ("loss", "grad_norm"):
        assert rows[0][field] == pytest.approx(rows[1][field], rel=1e-4, abs=1e-6)


def test_interrupt_saves_the_adapter(work):
    """Ctrl-C: the adapter is there, the exit code says stopped, and run_config.json does not say finished."""
    flags = [
        "--train_path",
        work / "train.jsonl",
        "--sft_model",
        work / "sft",
        "--output_dir",
        work / "stopped",
    ]
    flags += ["--num_updates", 1000, "--max_new_tokens", 20]
    command = [sys.executable, "-u", str(ROOT / "train_ppo_lora.py"), *map(str, flags)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below `sh -c 'pytest &'`
    )
    log = work / "stopped/ppo_train_log.jsonl"
    deadline = time.time() + 120
    while not (log.is_file() and log.read_text()) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted after" in out
    assert (work / "stopped/adapter_model.safetensors").is_file()
    config = json.loads((work / "stopped/run_config.json").read_text())
    assert not config["finished"] and config["updates_done"] == len(lines(log))


# ---- options ----


def train_here(work, script, output, *flags):
    """(variables, log, samples) of a short run from the SFT adapter, in this process."""
    start = ("--train_path", work / "train.jsonl", "--sft_model", work / "sft", "--output_dir", work / output)
    variables = run_here(script, *start, "--max_new_tokens", 40, *flags)
    kind = "ppo" if "ppo" in script else "rl"
    return variables, lines(work / output / f"{kind}_train_log.jsonl"), lines(work / output / "samples.jsonl")


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def distance(folder, other):
    """Root of the summed squared differences of two adapters."""
    pairs = zip(weights(folder).values(), weights(other).values())
    return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_ratio_stays_1_while_the_policy_does(work, packed, monkeypatch):
    """At a learning rate of nearly 0, all epochs score one policy; dropout of the SFT adapter would show."""
    if packed:  # in 4 bit, as on a GPU
        monkeypatch.setattr(PreTrainedModel, "dequantize", lambda model: model)
    flags = ("--learning_rate", 1e-12, "--num_updates", 1, "--ppo_epochs", 3, "--batch_size", 6)
    for level in "sequence", "token":
        variables, log, _ = train_here(work, "train_ppo_lora.py", "still", *flags, "--ratio_level", level)
        assert log[0]["epochs"] == 3 and log[0]["grad_norm"] > 0
        assert log[0]["max_log_ratio"] < 1e-3
        assert log[0]["clip_frac"] == 0
    assert packed == any(isinstance(module, Linear4bit) for module in variables["model"].modules())
    dropouts = [m.p for m in variables["model"].modules() if type(m).__name__ == "Dropout"]
    assert dropouts and not any(dropouts)
    config = json.loads((work / "sft/adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.05


def test_length_is_charged_to_passing_programs_only(work):
    flags = ("--length_penalty_alpha", 1.0, "--num_updates", 1, "--batch_size", 12)
    rewards = {}
    for on in "all", "passed":
        _, _, samples = train_here(work, "train_ppo_lora.py", "charge", *flags, "--length_penalty_on", on)
        rewards[on] = [(s["outcome"] == "passed", s["gen_len"], s["reward"]) for s in samples]
    for passed, gen_len, reward in rewards["all"]:
        assert reward == pytest.approx(passed - gen_len / 100)
    for passed, gen_len, reward in rewards["passed"]:
        assert reward == pytest.approx(1 - gen_len / 100 if passed else 0)
    assert len({passed for passed, _, _ in rewards["passed"]}) == 2


@pytest.mark.parametrize("script", ["train_ppo_lora.py", "train_rl_lora.py"])
def test_group_baseline_compares_the_samples_of_a_task(work, script):
    count = ("--num_updates", 1) if "ppo" in script else ("--num_steps", 1)
    flags = ("--baseline", "group", "--samples_per_task", 3, "--batch_size", 3, *count)
    _, log, samples = train_here(work, script, "group", *flags, "--temperature", 1.5)
    assert log[0]["num_completions"] == len(samples) == 9
    for first in range(0, 9, 3):
        group = samples[first : first + 3]
        assert len({sample["task_id"] for sample in group}) == 1
        assert sum(sample["advantage"] for sample in group) == pytest.approx(0, abs=1e-5)
        best = max(group, key=lambda sample: sample["reward"])
        assert best["advantage"] == max(sample["advantage"] for sample in group)
    assert len({sample["task_id"] for sample in samples}) == 3
    assert len({sample["completion"] for sample in samples}) > 3
    assert log[0]["flat"] == sum(not any(s["advantage"] for s in samples[k : k + 3]) for k in (0, 3, 6)) / 3


def test_kl_to_the_sft_policy_holds_the_adapter_back(work):
    flags = ("--num_updates", 2, "--batch_size", 6, "--learning_rate", 1e-3, "--length_penalty_alpha", 1.0)
    variables, _, _ = train_here(work, "train_ppo_lora.py", "held", *flags, "--kl_coef", 100.0)
    train_here(work, "train_ppo_lora.py", "free", *flags)
    assert distance(work / "held", work / "sft") < 0.9 * distance(work / "free", work / "sft")
    named = dict(variables["model"].named_parameters())
    for key, tensor in weights(work / "sft").items():  # the reference is still the SFT adapter
        assert named[key.replace(".weight", ".reference.weight")].equal(tensor)
    assert not (work / "held/reference").exists()


def test_target_kl_ends_an_update(work):
    flags = ("--num_updates", 1, "--batch_size", 6, "--learning_rate", 1e-3, "--length_penalty_alpha", 1.0)
    _, log, _ = train_here(work, "train_ppo_lora.py", "target", *flags, "--target_kl", 1e-9)
    train_here(work, "train_ppo_lora.py", "one_step", *flags, "--ppo_epochs", 1)
    assert log[0]["epochs"] == 2 and log[0]["approx_kl"] > 1e-9  # the second was not stepped
    assert distance(work / "target", work / "one_step") == 0


def test_nothing_to_learn_is_said_and_nothing_is_learnt(work, capsys):
    """One token is no program: all rewards are equal."""
    flags = ("--max_new_tokens", 1, "--learning_rate", 1e-3, "--num_updates", 2)
    _, log, samples = train_here(work, "train_ppo_lora.py", "flat", *flags)
    assert "all 4 rewards equal, nothing to learn: raise --temperature" in capsys.readouterr().out
    assert all(row["flat"] == 1 and row["epochs"] == 0 for row in log)
    assert all(sample["advantage"] == 0 for sample in samples)
    assert distance(work / "flat", work / "sft") == 0


def test_sign_by_length(work):
    """Where no program passes, every advantage comes from length alone; never with alpha 0."""
    flags = ("--num_updates", 1, "--batch_size", 6, "--temperature", 2.0, "--max_new_tokens", 96)
    for alpha in 0.5, 0.0:
        penalty = ("--length_penalty_alpha", alpha)
        _, log, samples = train_here(work, "train_ppo_lora.py", "signs", *flags, *penalty)
        turned = sum(sample["advantage"] != 0 for sample in samples) / 6
        assert not any(sample["outcome"] == "passed" for sample in samples)
        assert (turned > 0) == (alpha > 0)  # completions differ in length
        assert log[0]["sign_by_length"] == pytest.approx(turned)


# ---- what users do wrong ----


def test_missing_task_file():
    message = message_of("train_sft_lora.py", "--train_path", "nowhere.jsonl", "--model_name", BASE)
    assert "nowhere.jsonl" in message


@pytest.mark.parametrize("script", ["train_sft_lora.py", "train_rl_lora.py", "train_ppo_lora.py"])
def test_malformed_task_file(work, script):
    broken = work / "broken.jsonl"
    first = (work / "train.jsonl").read_text().splitlines()[0]
    task = json.loads(first)
    del task["test"]
    broken.write_text(first + "\n" + json.dumps(task) + "\n")
    message = message_of(script, "--train_path", broken)
    assert "line 2" in message and "test" in message


def test_malformed_task_file_in_evaluation(work):
    (work / "half.jsonl").write_text((work / "train.jsonl").read_text()[:-20])
    assert "line 24" in message_of("eval_humaneval.py", "--data_path", work / "half.jsonl")


def test_unknown_model_or_no_network(work):
    message = message_of(
        "train_sft_lora.py", "--train_path", work / "train.jsonl", "--model_name", "nobody/no-such-model"
    )
    assert "nobody/no-such-model" in message and "network" in message and "PROFILE=tiny" in message


def test_folder_that_is_no_adapter(work):
    message = message_of("train_ppo_lora.py", "--train_path", work / "train.jsonl", "--sft_model", BASE)
    assert "adapter_config.json" in message and "train_sft_lora.py" in message


def test_adapter_of_another_base_model(work):
    """The folder of the base model now holds a model of another shape."""
    other = work / "other_base"
    shutil.copytree(BASE, other)
    config = json.loads((other / "config.json").read_text())
    config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"] = 128, 2, 2
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(other)
    adapter = work / "other_adapter"
    shutil.copytree(work / "sft", adapter)
    adapter_config = json.loads((adapter / "adapter_config.json").read_text())
    adapter_config["base_model_name_or_path"] = str(other)
    (adapter / "adapter_config.json").write_text(json.dumps(adapter_config))
    for script, flag in (("train_rl_lora.py", "--sft_model"), ("eval_humaneval.py", "--model_path")):
        data_flag = "--data_path" if flag == "--model_path" else "--train_path"
        message = message_of(script, flag, adapter, data_flag, work / "train.jsonl")
        assert "another base model" in message


@pytest.mark.parametrize(
    "script, flag", [("train_sft_lora.py", "--model_name"), ("train_ppo_lora.py", "--sft_model")]
)
def test_output_folder_that_cannot_be_made(work, script, flag):
    model = BASE if flag == "--model_name" else work / "sft"
    (work / "a_file").write_text("")
    message = message_of(
        script, "--train_path", work / "train.jsonl", flag, model, "--output_dir", work / "a_file/below"
    )
    assert "a_file/below" in message


@pytest.mark.parametrize(
    "script, flag", [("train_sft_lora.py", "--model_name"), ("train_rl_lora.py", "--sft_model")]
)
def test_max_length_too_short_for_any_row(work, script, flag):
    model = BASE if flag == "--model_name" else work / "sft"
    arguments = ("--train_path", work / "train.jsonl", flag, model, "--output_dir", work / "short")
    assert "--max_length 10" in message_of(script, *arguments, "--max_length", 10)


def test_dev_split_of_all_tasks(work):
    train = ("--train_path", work / "train.jsonl", "--dev_path", work / "train.jsonl")
    message = message_of("train_rl_lora.py", *train, "--sft_model", work / "sft", "--output_dir", work / "y")
    assert "--dev_path" in message


def test_negative_max_steps_is_off(work):
    flags = ("--max_steps", -1, "--num_train_epochs", 0.3, "--output_dir", work / "epochs")
    variables = run_here(
        "train_sft_lora.py", "--train_path", work / "train.jsonl", "--model_name", BASE, *flags
    )
    assert variables["num_steps"] == len(lines(work / "epochs/sft_train_log.jsonl")) == 1


def test_preflight_stops_the_run(work):
    """A reference solution that fails means a reward that cannot be earned."""
    tasks = lines(work / "train.jsonl")
    tasks[3]["canonical_solution"] = "    return None\n"
    (work / "dead.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    for script in ("train_rl_lora.py", "train_ppo_lora.py"):
        message = message_of(
            script,
            "--train_path",
            work / "dead.jsonl",
            "--sft_model",
            work / "sft",
            "--output_dir",
            work / "y",
        )
        assert tasks[3]["task_id"] in message


@pytest.mark.parametrize(
    "script, flag, value, part",
    [
        ("train_ppo_lora.py", "--batchsize", 4, "--batchsize"),
        ("train_ppo_lora.py", "--micro_batch_size", 0, "--micro_batch_size must be above 0"),
        ("train_ppo_lora.py", "--batch_size", 1, "must be at least 2"),
        ("train_ppo_lora.py", "--baseline", "group", "must be at least 2"),
        ("train_ppo_lora.py", "--clip_range", -0.2, "--clip_range must be above 0"),
        ("train_ppo_lora.py", "--patience", 2, "--dev_path"),
        ("train_ppo_lora.py", "--output_dir", ppo.Config.sft_model, "--output_dir is --sft_model"),
        ("train_rl_lora.py", "--max_grad_norm", 0, "--max_grad_norm must be above 0"),
        ("train_rl_lora.py", "--log_every", 0, "--log_every must be above 0"),
        (
            "train_sft_lora.py",
            "--gradient_accumulation_steps",
            0,
            "--gradient_accumulation_steps must be above 0",
        ),
        ("eval_humaneval.py", "--batch_size", 0, "--batch_size must be above 0"),
        ("eval_humaneval.py", "--exp_name", "a/b", "--exp_name"),
    ],
)
def test_wrong_flags(script, flag, value, part):
    assert part in message_of(script, flag, value)


@pytest.mark.parametrize(
    "script, flag, choices",
    [
        ("train_ppo_lora.py", "--ratio_level", ("sequence", "token")),
        ("train_ppo_lora.py", "--length_penalty_on", ("all", "passed")),
        ("train_rl_lora.py", "--baseline", ("none", "batch", "group")),
        ("train_sft_lora.py", "--report_to", ("none", "tensorboard", "wandb")),
    ],
)
def test_wrong_choice(script, flag, choices, capsys):
    with pytest.raises(SystemExit) as stop:
        run_here(script, flag, "something")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(error.splitlines()) == 2  # a line of usage and the mistake
    assert flag in error and all(choice in error for choice in choices)


def test_damaged_adapter(work):
    shutil.copytree(work / "sft", work / "damaged")
    weights = work / "damaged/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = message_of(
        "eval_humaneval.py", "--model_path", work / "damaged", "--data_path", work / "test.jsonl"
    )
    assert "damaged" in message


def test_results_folder_that_cannot_be_made(work):
    (work / "a_results_file").write_text("")
    flags = ("--data_path", work / "test.jsonl", "--results_dir", work / "a_results_file/below")
    assert "--results_dir" in message_of("eval_humaneval.py", *flags, "--model_path", BASE)


def test_no_cuda_device():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    message = message_of(
        "eval_humaneval.py", "--device", "cuda", "--data_path", ROOT / "data/mini_test.jsonl"
    )
    assert "--device cpu" in message


def test_unknown_profile():
    done = subprocess.run(
        ["sh", "train_PPO.sh"],
        cwd=ROOT,
        env={**ENVIRONMENT, "PROFILE": "huge"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "deepseek or tiny" in done.stderr
