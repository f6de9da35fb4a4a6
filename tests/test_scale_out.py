"""scale_out/: what verl is given and, where .ci/verify_verl.sh runs this, what verl makes of it."""

import gzip
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import ExitStack

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, run_script
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from sandbox import Result, encode_prompt, read_tasks, reference, shaped

sys.path.insert(0, str(ROOT / "scale_out"))
import export_verl
import verl_reward

HUMANEVAL = ROOT.parent / "shared/humaneval/HumanEval.jsonl.gz"
TINY = ROOT / "data/tiny_coder"
KEYS = {"score", "acc", "pass_rate", "outcome"}
OURS = {"repository", "export_dir", "hydra", "defaults"}
each_config = pytest.mark.parametrize("name", ["ppo", "grpo"])


def export(trained, folder, *flags):
    """The process of an export of 18 training tasks and 6 others."""
    files = "--train_path", trained / "train.jsonl", "--dev_path", trained / "dev.jsonl"
    command = *files, "--sft_model", trained / "sft", "--output_dir", folder, "--device", "cpu"
    return run_script("scale_out/export_verl.py", *command, "--max_new_tokens", 8, *flags)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "verl"
    done = export(trained, folder)
    assert done.returncode == 0, done.stderr
    assert "preflight: 24/24 reference solutions pass" in done.stdout
    assert "18 training tasks, 6 to validate on" in done.stdout
    return folder


@pytest.fixture
def rewarding(monkeypatch):
    """compute_score, as verl calls it; its sandboxes end with the test."""
    monkeypatch.setattr(verl_reward, "SANDBOXES", {})

    def call(task, completion, **kwargs):
        row = export_verl.rows_of(AutoTokenizer.from_pretrained(TINY), [task], "train")[0]
        truth = row["reward_model"]["ground_truth"]
        named = {"data_source": row["data_source"], "extra_info": {**row["extra_info"], "num_turns": None}}
        return verl_reward.compute_score(solution_str=completion, ground_truth=truth, **named, **kwargs)

    yield call
    for sandbox in verl_reward.SANDBOXES.values():
        sandbox.close()


# ---- export -------------------------------------------------------------------------------------------


def test_rows_are_what_verl_reads(exported, trained):
    """Its columns and types, as pyarrow finds them in the files; in the order of the task files."""
    dev = read_tasks(trained / "dev.jsonl")
    train = [task for task in read_tasks(trained / "train.jsonl") if task not in dev]
    assert (len(train), len(dev)) == (18, 6)
    for split, tasks in {"train": train, "val": dev}.items():
        table = pq.read_table(exported / f"{split}.parquet")
        assert {field.name: str(field.type) for field in table.schema} == {
            "data_source": "string",
            "prompt": "list<element: struct<role: string, content: string>>",
            "ability": "string",
            "reward_model": "struct<style: string, ground_truth: string>",
            "extra_info": "struct<index: int64, task_id: string, split: string>",
        }
        rows = table.to_pylist()
        names = [task["task_id"] for task in tasks]
        told = [{"index": i, "task_id": name, "split": split} for i, name in enumerate(names)]
        assert [row["extra_info"] for row in rows] == told
        assert [row["data_source"] for row in rows] == [name.split("/")[0] for name in names]
        for row, task in zip(rows, tasks):
            truth = json.loads(row["reward_model"]["ground_truth"])
            n_tests = truth.pop("n_tests")
            assert n_tests >= task["test"].count("assert ") > 0  # of the reference: preflight counts them
            assert truth == {name: task[name] for name in task if name != "canonical_solution"}
            assert task["canonical_solution"] not in json.dumps(row)


def test_the_exported_model_gives_our_prompt_ids(exported, trained):
    """By the tokenizer that verl loads, from the files alone, with the BOS."""
    ours, theirs = AutoTokenizer.from_pretrained(TINY), AutoTokenizer.from_pretrained(exported / "model")
    tasks = {task["task_id"]: task for task in read_tasks(trained / "train.jsonl")}
    for row in pq.read_table(exported / "train.parquet").to_pylist():
        ids = export_verl.verl_ids(theirs, row["prompt"])
        assert ids == encode_prompt(ours, tasks[row["extra_info"]["task_id"]])
        assert ids[0] == ours.bos_token_id
    assert json.loads((exported / "model/merge.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("path", [ROOT / "data/mini_train.jsonl", HUMANEVAL], ids=["mini_train", "HumanEval"])
@pytest.mark.parametrize("bos", [True, False], ids=["BOS", "no BOS"])
def test_prompt_ids_are_equal_on_every_task(path, bos):
    """Also where the tokenizer has a BOS and does not set it, as that of Qwen or of GPT-2."""
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    tasks = [json.loads(line) for line in text.splitlines()]
    if not bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert (encode_prompt(tokenizer, tasks[0])[0] == tokenizer.bos_token_id) is bos
    export_verl.check_prompts(tokenizer, tasks, 1024)
    for task in tasks:
        messages = export_verl.messages_of(tokenizer, task)
        assert export_verl.verl_ids(tokenizer, messages) == encode_prompt(tokenizer, task)
    assert len(tasks) == (164 if path == HUMANEVAL else 400)


def test_prompts_with_other_ids_or_too_many_are_refused():
    tokenizer, tasks = AutoTokenizer.from_pretrained(TINY), read_tasks(ROOT / "data/mini_dev.jsonl")
    longest = max(len(encode_prompt(tokenizer, task)) for task in tasks)
    export_verl.check_prompts(tokenizer, tasks, longest)
    with pytest.raises(SystemExit, match=f"its prompt has {longest} tokens, over --max_prompt_length"):
        export_verl.check_prompts(tokenizer, tasks, longest - 1)
    special = [("<|end_of_sentence|>", tokenizer.eos_token_id)]  # in front of every text, and no BOS
    process = TemplateProcessing(single="<|end_of_sentence|> $A", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = process
    with pytest.raises(SystemExit, match=r"^mini\S+: this tokenizer gives its prompt other token ids"):
        export_verl.check_prompts(tokenizer, tasks, longest)


def test_bad_input_ends_in_one_line_and_leaves_nothing(trained, tmp_path):
    weak = json.loads((trained / "dev.jsonl").read_text().splitlines()[0])
    weak["canonical_solution"] = "    return None\n"
    (tmp_path / "weak.jsonl").write_text(json.dumps(weak))
    said = {
        (
            "--sft_model",
            tmp_path,
        ): "is not the folder of a LoRA adapter with its tokenizer: FileNotFoundError",
        ("--train_path", tmp_path / "none"): "none: no such file",
        ("--train_path", trained / "dev.jsonl"): "all of its tasks are in --dev_path",
        ("--dev_path", tmp_path / "weak.jsonl"): "preflight: the reference does not pass for",
        ("--max_prompt_length", 9): "tokens, over --max_prompt_length 9; raise it here and data.max_",
        ("--max_prompt_length", 0): "--max_prompt_length must be above 0",
    }
    for flags, line in said.items():
        done = export(trained, tmp_path / "out", *flags)
        assert done.returncode == 1 and line in done.stderr.splitlines()[-1], (flags, done.stderr)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_leaves_the_earlier_files(exported, trained, monkeypatch):
    before = {path.name: path.read_bytes() for path in exported.glob("*.parquet")}
    write, run = pq.write_table, runpy.run_path

    def full(table, path):
        write(table, path)
        raise OSError("No space left on device")

    def all_but_the_merge(path, **how):
        return {} if path.endswith("merge_lora.py") else run(path, **how)

    monkeypatch.setattr(runpy, "run_path", all_but_the_merge)
    monkeypatch.setattr(pq, "write_table", full)
    done = export(trained, exported)
    assert done.returncode == 1
    assert re.search(r"^cannot write to --output_dir .*No space left", done.stderr.splitlines()[-1])
    assert {path.name: path.read_bytes() for path in exported.glob("*.parquet*")} == before


# ---- reward -------------------------------------------------------------------------------------------


def test_reward_of_every_outcome(rewarding):
    """verl calls by keyword, and takes the columns of all from the first."""
    task = read_tasks(ROOT / "data/mini_dev.jsonl")[0]
    completions = {
        "passed": reference(task),
        "failed": "\n    return None\n",
        "exception": "\n    raise KeyError\n",
        "syntax": "\n    return (\n",
        "timeout": "\n    while True: pass\n",
        "memory": "\n    return bytearray(1 << 40)\n",
        "violation": "\n    open('/etc/passwd')\n",
    }
    for outcome, completion in completions.items():
        scored = rewarding(task, completion, time_limit=1.0, reward="structured", reward_router_address=None)
        assert scored.keys() == KEYS and scored["outcome"] == outcome
        assert {scored["acc"], scored["pass_rate"]} == {float(outcome == "passed")}
        assert scored["score"] == shaped(outcome, scored["pass_rate"], "structured")
    assert [rewarding(task, completions[name])["score"] for name in ("passed", "failed")] == [1.0, 0.0]
    assert len(verl_reward.SANDBOXES) == 2


def test_reward_of_a_part_of_the_tests(rewarding):
    """Of all tests that the reference runs, as export_verl.py has counted them; acc stays 0."""
    test = "def check(f):\n    for x in range(4):\n        assert f(x) == x\n"
    task = {"task_id": "my/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n", "test": test}
    task |= {"entry_point": "f", "n_tests": 4}
    half = "\n    return x if x < 2 else None\n"
    rewards = {name: rewarding(task, half, reward=name)["score"] for name in verl_reward.REWARDS}
    assert rewards == {"binary": 0.0, "pass_rate": 0.5, "structured": pytest.approx(0.35)}
    assert rewarding(task, half, reward="pass_rate")["acc"] == 0.0


def test_reward_of_other_kinds_of_tasks(rewarding):
    """MBPP's asserts, APPS's programs, tests that need numpy: each gets the Sandbox that it needs."""
    base = {
        "task_id": "my/0",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "entry_point": "f",
    }
    cases = {"inputs": ["3\n", "4\n"], "outputs": ["3\n", "4\n"]}
    script = {**base, "prompt": "# print it\n", "canonical_solution": "print(input())\n", "entry_point": ""}
    numpy = "import numpy as np\ndef check(f):\n    assert np.array_equal(f([1]), [1])\n"
    tasks = (
        {**base, "test": "assert f(2) == 2"},
        {**script, "test": "", "input_output": cases},
        {**base, "test": numpy},
    )
    for task in tasks:
        assert rewarding(task, reference(task))["score"] == 1.0
        assert rewarding(task, "\n    return None\n")["score"] == 0.0
    assert len(verl_reward.SANDBOXES) == 2


def test_faults_are_raised(rewarding, monkeypatch):
    """They must not become a reward, whatever verl does with them."""
    task = read_tasks(ROOT / "data/mini_dev.jsonl")[0]
    with pytest.raises(
        RuntimeError, match=r"the sandbox failed on mini.*: the test cannot be used: it has no"
    ):
        rewarding({**task, "test": "def check(f):\n    f\n"}, reference(task))
    with pytest.raises(ValueError, match="reward is binary or pass_rate or structured, not 'passrate'"):
        rewarding(task, reference(task), reward="passrate")
    with pytest.raises(RuntimeError, match="nothing keeps programs from: moon"):
        monkeypatch.setenv("SANDBOX_REQUIRE", "moon")
        rewarding(task, reference(task), time_limit=4.0)


def test_workers_are_the_share_of_the_cores(rewarding, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    asked = []
    monkeypatch.setattr(
        verl_reward, "Sandbox", lambda workers, *_, **__: asked.append(workers) or ExitStack()
    )
    monkeypatch.setattr(verl_reward, "job", lambda *_: Result("failed"))
    task = read_tasks(ROOT / "data/mini_dev.jsonl")[0]
    for i, (processes, nodes) in enumerate([(8, 1), (8, 2), (1, 1), (64, 1)]):
        rewarding(task, "", processes=processes, nodes=nodes, time_limit=i + 1.0)
    assert asked == [1, 2, 8, 1]


def test_reward_needs_the_standard_library_only(tmp_path):
    """verl's environment is not ours. -S: without site-packages; -I: not from the folder it is started in."""
    program = f"import runpy; print(*runpy.run_path({str(ROOT / 'scale_out/verl_reward.py')!r})['REWARDS'])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("binary pass_rate structured\n", "")


# ---- configs and the script ---------------------------------------------------------------------------


def unknown(settings, known, where=""):
    """The settings that verl does not know, or knows with another type."""
    found = []
    for name, value in settings.items():
        expected = known.get(name, "no setting")
        if isinstance(value, dict) and isinstance(expected, dict):
            found += unknown(value, expected, f"{where}{name}.")
        elif expected is not None and not str(value).startswith("${"):
            types = ("float", "int") if expected == "float" else (expected,)
            found += [f"{where}{name}"] * (type(value).__name__ not in types)
    return found


def config_of(name):
    return yaml.safe_load((ROOT / f"scale_out/verl_{name}.yaml").read_text())


@each_config
def test_settings_are_those_of_verl(name):
    """A misspelt one would be kept by verl, and read by nobody."""
    known = json.loads((ROOT / "tests/verl_keys.json").read_text())
    config = config_of(name)
    assert {key for key in config if key not in known} == OURS
    kwargs = config["reward"]["custom_reward_function"].pop("reward_kwargs")
    assert kwargs.keys() <= inspect.signature(verl_reward.compute_score).parameters.keys()
    template = config["data"]["apply_chat_template_kwargs"].pop("chat_template")
    assert template == export_verl.RAW
    assert config["actor_rollout_ref"]["model"].get("override_config", {}) in (
        {},
        {"attn_implementation": "sdpa"},
    )
    config["actor_rollout_ref"]["model"].pop("override_config", None)
    verl = {key: config[key] for key in config if key not in OURS}
    assert unknown(verl, known) == []
    assert len(re.findall(r"^ +\w+: \S", (ROOT / f"scale_out/verl_{name}.yaml").read_text(), re.M)) > 40

    verl["trainer"]["nodes"] = 2
    verl["algorithm"]["adv_estimator"] = 1
    assert unknown(verl, known) == ["algorithm.adv_estimator", "trainer.nodes"]


@each_config
def test_settings_agree_with_the_export(name):
    config, ours = config_of(name), export_verl.Config()
    custom = config["reward"]["custom_reward_function"]
    assert config["reward"]["reward_manager"]["name"] == "naive"
    assert custom["path"] == "${repository}/scale_out/verl_reward.py"
    assert callable(getattr(verl_reward, custom["name"]))
    assert custom["reward_kwargs"]["reward"] in verl_reward.REWARDS
    assert custom["reward_kwargs"]["time_limit"] == ours.time_limit
    assert config["data"]["max_prompt_length"] == ours.max_prompt_length
    assert config["data"]["filter_overlong_prompts"] is True and config["data"]["truncation"] == "error"
    model = config["actor_rollout_ref"]["model"]
    assert model["custom_chat_template"] == "${data.apply_chat_template_kwargs.chat_template}"
    assert model["path"] == config.get("critic", {"model": model})["model"]["path"] == "${export_dir}/model"


@pytest.fixture
def machine(tmp_path):
    """run(*words, **environment): run_verl.sh with a python that says how it was called, and two GPUs."""
    (tmp_path / "bin").mkdir()
    for name, body in {
        "python": '[ "$1" = -m ] || exit "${NO_VERL:-0}"\nprintf "%s\\n" "$RAY_ADDRESS" "$@"',
        "nvidia-smi": "printf 'GPU 0\\nGPU 1\\n'",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "an export").mkdir()
    (tmp_path / "an export/val.parquet").touch()

    def run(*words, **environment):
        command = ["sh", ROOT / "scale_out/run_verl.sh", *words]
        environment |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@each_config
def test_what_the_script_starts(machine, tmp_path, name):
    done = machine(name, "an export", "trainer.total_training_steps=2")
    assert done.returncode == 0, done.stderr
    address, *words = done.stdout.splitlines()
    folder = str(ROOT / "scale_out")
    started = ["-m", "verl.trainer.main_ppo", "--config-path", folder, "--config-name", f"verl_{name}"]
    assert (address, words[:6]) == ("", started)
    settings = dict(word.split("=", 1) for word in words[6:])
    assert settings == {
        "repository": str(ROOT),
        "export_dir": f"{tmp_path}/an export",
        "trainer.nnodes": "1",
        "trainer.n_gpus_per_node": "2",
        "trainer.total_training_steps": "2",
    }
    for setting in settings:  # hydra takes no others without a +
        value = config_of(name)
        for part in setting.split("."):
            value = value[part]
    address, *words = machine(name, "an export", NNODES="3", GPUS="8").stdout.splitlines()
    assert address == "auto" and {"trainer.nnodes=3", "trainer.n_gpus_per_node=8"} < set(words)


def test_wrong_calls_of_the_script_end_in_one_line(machine, tmp_path):
    for words, environment, line in (
        ((), {}, "usage: sh "),
        (("dqn", "an export"), {}, "usage: sh "),
        (("ppo", "nowhere"), {}, "FOLDER holds what export_verl.py wrote"),
        (("ppo", "an export"), {"NO_VERL": "1"}, "pip install -r scale_out/requirements-verl.txt"),
        (("ppo", "an export"), {"GPUS": "0"}, "nvidia-smi finds none here"),
    ):
        done = machine(*words, **environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_one_version_of_verl_everywhere():
    pinned = re.compile(r"verl(?:\[vllm\])?==([\d.]+\d)")
    found = {}
    for path in ("scale_out/requirements-verl.txt", ".ci/verify_verl.sh"):
        found[path] = set(pinned.findall((ROOT / path).read_text()))
    assert set.union(*found.values()) == {"0.9.1"} and all(found.values())


# ---- by verl itself -----------------------------------------------------------------------------------


@pytest.mark.skipif("VERL_PYTHON" not in os.environ, reason="no verl: sh .ci/verify_verl.sh")
def test_verl_reads_and_scores_the_export(trained, tmp_path):
    """Its dataset, prompt ids, reward worker, and reward manager over Ray with two actors."""
    files = {"train_path": ROOT / "data/mini_train.jsonl", "dev_path": ROOT / "data/mini_dev.jsonl"}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert export(trained, tmp_path / "verl", *flags).returncode == 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path)}  # Ray and datasets write there
    environment.pop("PYTHONPATH", None)
    command = [
        os.environ["VERL_PYTHON"],
        ROOT / "tests/verl_check.py",
        tmp_path / "verl",
        files["train_path"],
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])

    assert said["rows"] == [400, 100] and said["critic"] == {"ppo": True, "grpo": False}
    assert said["keys"] == json.loads((ROOT / "tests/verl_keys.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tasks = read_tasks(files["train_path"]) + read_tasks(files["dev_path"])
    assert said["prompt_ids"] == [encode_prompt(tokenizer, task) for task in tasks]
    for way in "worker", "manager":
        assert said[f"{way}, references"] == [1.0] * 60
        assert said[f"{way}, return None"] == [0.0] * 60
        assert "the sandbox failed on x: the test cannot be used: it has no assert" in said[f"{way}, broken"]
    assert said["columns"].keys() == KEYS and set(said["columns"]["outcome"]) == {"failed"}
    for name in "seconds", "rows", "critic", "worker, broken":
        print(f"{name}: {said[name]}")
