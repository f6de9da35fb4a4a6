"""The benchmarks of training and evaluation: what a machine without a GPU can know about them."""

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec

import psutil
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, run_script
from peft import PeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CompileConfig

import sandbox

sys.path.insert(0, str(ROOT / "benchmarks"))
import constant_answers
import eval_speed
import explained_variance
import firejail
import gpu
import method_costs
import reached_tests
import rl_update
import smol_seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What gpu.py builds for its sections."""
    path = tmp_path_factory.mktemp("gpu")
    gpu.build(path, tiny=True)
    return path


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch):
    """Undo what a benchmark does to the process of its own that it would have."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(Accelerator, "log", Accelerator.log)
    monkeypatch.setattr(sandbox, "start_scoring", sandbox.start_scoring)
    monkeypatch.setattr(CompileConfig, "_compile_all_devices", None)
    monkeypatch.setattr(sandbox.Sandbox, "__init__", sandbox.Sandbox.__init__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_benchmark_without_a_gpu_says_so():
    assert "no CUDA device: --tiny tries all" in run_script("benchmarks/gpu.py").stderr
    assert "the sections are versions, tests, build" in run_script("benchmarks/gpu.py", "--only", "x").stderr


CHILD = """import json, subprocess, sys, time
part = json.loads(sys.argv[2])["part"]
if part == "fails":
    raise ValueError("what went wrong")
if part == "hangs":
    print("as far as this", flush=True)
    print(subprocess.Popen(["sleep", "60"]).pid, file=open(json.loads(sys.argv[2])["pids"], "w"), flush=True)
    time.sleep(60)
print("not a record" if part == "odd" else json.dumps({"seconds": [2.0], "tokens_per_s": {"ours": 7}}))
"""


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_section_that_fails_or_hangs_does_not_end_the_others(tmp_path, capsys):
    script, path, pids = tmp_path / "child.py", tmp_path / "out.jsonl", tmp_path / "pids"
    script.write_text(CHILD)
    path.write_text('{"section": "older"}\n')
    limits = {"fails": 20, "hangs": 3, "odd": 20, "works": 20}
    assert not gpu.drive(script, limits, path, 60, pids=str(pids))
    assert gpu.drive(script, {"works": 20}, path, 60)
    assert not gpu.drive(script, {"late": 20}, path, 0)
    older, fails, hangs, odd, works, again, late = map(json.loads, path.read_text().splitlines())
    names = [record["section"] for record in (older, fails, hangs, odd, works, again, late)]
    assert names == ["older", *limits, "works", "late"]
    assert "failed (1)" in fails["error"] and fails["error"].rstrip().endswith("ValueError: what went wrong")
    assert "was not done after 3 s" in hangs["error"] and "as far as this" in hangs["error"]
    assert 3 <= hangs["wall_s"] < 10
    assert not runs(int(pids.read_text()))  # what it had started
    assert "error" in odd and late["error"] == "not begun: the 0 s of all sections are over"
    assert works["seconds"] == [2.0] and "error" not in works
    printed = capsys.readouterr().out
    assert printed.count("\nworks") == 2 and "2.00 s per update  ours 7 tokens/s" in printed
    assert "ValueError: what went wrong" in printed


def test_ending_the_gpu_benchmark_ends_its_section(tmp_path):
    """SIGTERM, as `timeout` sends it; no line is left half."""
    run = [sys.executable, "benchmarks/gpu.py", "--tiny", "--only", "build", "--out", str(tmp_path)]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    below = []
    while not any("--child" in child.cmdline() for child in below):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        below = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(30) != 0
    assert not [child for child in psutil.wait_procs(below, timeout=2)[1] if runs(child.pid)]  # not later
    assert not (tmp_path / "gpu.jsonl").exists()


def test_gpu_benchmark_builds_the_architecture_of_deepseek_coder():
    config = gpu.architecture(tiny=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    projections = 4 * 2048 * 2048 + 3 * 2048 * 5504  # of a layer: q, k, v, o and gate, up, down
    assert model.num_parameters() == 24 * (projections + 2 * 2048) + 2 * 32256 * 2048 + 2048 == 1_346_471_936
    rotary = model.model.rotary_emb
    assert rotary.config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}


def test_sections_of_the_gpu_benchmark(folder, tmp_path, monkeypatch):
    """Two updates of each script, each with a gradient; full rollouts; what is not there is said."""
    monkeypatch.setenv("SMOLLM2", str(tmp_path))
    section = {name: partial(part, folder, True) for name, (_, part) in gpu.SECTIONS.items()}
    records = [section[name]() for name in ("sft", "rl", "ppo", "grpo", "actor_critic")]
    assert all(len(record["seconds"]) == 1 and 0 < min(record["grad_norm"]) for record in records)
    samples = (folder / "ppo/samples.jsonl").read_text().splitlines()
    outcomes = sorted(json.loads(line)["outcome"] for line in samples)
    assert outcomes == ["failed"] * 4 + ["passed"] * 4
    ways = section["rollout"]()["tokens_per_s"]
    assert min(ways.values()) > 0 and {*ways} == {"ours", "transformers"}
    versions = section["versions"]()
    assert versions["torch"] == torch.__version__ and versions["pytest"] == pytest.__version__
    assert section["smollm2"]() == {"skipped": f"no model in {tmp_path} (SMOLLM2=folder names another)"}
    if not find_spec("trl"):
        assert section["trl"]() == {"skipped": "trl is not installed"}


def test_the_gpu_benchmark_says_what_pytest_says(tmp_path):
    test = tmp_path / "test_card.py"
    test.write_text("import pytest\n\n\n@pytest.mark.skip(reason='no such card')\ndef test_x(): pass\n")
    record = gpu.tests(tmp_path, True, str(test))
    assert "1 skipped" in record["summary"] and "no such card" in record["skipped"][0]
    test.write_text("def test_x():\n    assert 1 == 2, 'ratio'\n")
    with pytest.raises(SystemExit, match=r"(?s)AssertionError: ratio.*1 failed"):
        gpu.tests(tmp_path, True, str(test))


def test_gpu_benchmark_gives_a_verdict_on_memory():
    record = {"wall_s": 61.5, "reserved_gb": 13.9, "seconds": [1.0, 2.0, 9.0]}
    assert "61.5 s  13.90 GB: OK  2.00 s per update" in gpu.line("ppo", record)
    assert "TOO MUCH" in gpu.line("ppo", record | {"reserved_gb": 14.0})


def test_child_runs_in_another_checkout(tmp_path):
    """Its scripts and its sandbox.py are those of that checkout."""
    script, root = tmp_path / "child.py", tmp_path / "other"
    root.mkdir()
    (root / "sandbox.py").write_text("")
    script.write_text(
        "import json, os, sys, sandbox\nprint(json.dumps([os.getcwd(), sandbox.__file__, sys.argv[2]]))"
    )
    folder, module, arguments = rl_update.run_child(script, root, seed=3)
    assert (folder, module) == (os.path.realpath(root), str(root / "sandbox.py"))
    assert json.loads(arguments) == {"seed": 3}
    script.write_text("raise SystemExit('what went wrong')")
    with pytest.raises(SystemExit, match="what went wrong"):
        rl_update.run_child(script, root)


@pytest.fixture
def flags(folder, monkeypatch):
    """Of a short run, 3 tasks x 2 samples x 4 tokens; every second program has passed."""
    lines = (ROOT / "data/mini_dev.jsonl").read_text().splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:9]))
    monkeypatch.setattr(sandbox, "start_scoring", rl_update.pass_every_second())
    flags = {"sft_model": str(folder / "adapter"), "train_path": str(folder / "few.jsonl")}
    flags |= {"num_updates": 3, "micro_batch_size": 2, "learning_rate": 2e-4}
    return flags | {"batch_size": 3, "samples_per_task": 2, "max_new_tokens": 4, "grpo_epochs": 2, "seed": 1}


def test_one_measured_update(flags, monkeypatch):
    """Figures are of all updates but the first; other samples have another hash; nothing may be skipped."""
    record, again = rl_update.ours(**flags), rl_update.ours(**flags)
    other = rl_update.ours(**flags | {"seed": 2})
    assert record["tokens"] == 2 * 6 * 4  # of two updates
    assert 0 < record["cpu_ms_per_token"] and 0 < record["seconds"] < 60
    assert record["ms_per_token"] * record["tokens"] == pytest.approx(2000 * record["seconds"], rel=0.8)
    assert record["samples"] == again["samples"] != other["samples"]
    monkeypatch.undo()  # now nothing passes, all programs have 4 tokens
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match="skipped"):
        rl_update.ours(**flags)


def test_where_the_time_of_an_update_goes(flags, folder, monkeypatch):
    """Operations of the linear layers by hand; no second is counted twice."""
    records = []
    for count in False, True:
        with monkeypatch.context() as patch:
            patch.setattr(rl_update, "SPENT", {})
            for owner, name in (
                (PeftModelForCausalLM, "forward"),
                (torch.Tensor, "backward"),
                (Future, "result"),
            ):
                patch.setattr(owner, name, getattr(owner, name))  # undone at the end
            records.append(rl_update.phases(count_flops=count, **flags | {"grpo_epochs": 1}))
    times, flops = records
    assert 0 < sum(times[phase] for phase in rl_update.PHASES) < 1.05 * times["seconds"]
    assert times["samples"] == flops["samples"] and flops["rewards"] == 0
    tokenizer = AutoTokenizer.from_pretrained(flags["sft_model"])
    tasks = sandbox.read_tasks(flags["train_path"])
    prompts = [len(sandbox.encode_prompt(tokenizer, task)) for task in tasks]
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    layers = sum(p.numel() for name, p in base.named_parameters() if "proj" in name)
    layers += sum(p.numel() for p in load_file(folder / "adapter/adapter_model.safetensors").values())
    tokens = sum(prompts) / 3 + 3 * 6  # of 3 prompts; 3 of the 4 sampled tokens are fed again
    expected = 2 * layers * tokens + 2 * base.lm_head.weight.numel() * (3 + 3 * 6)
    assert expected < flops["rollout"] < 1.1 * expected  # which leaves attention
    assert 1.8 < flops["update"] / flops["rollout"] < 3  # forward, and the gradient by the inputs
    line = rl_update.where(
        {"seconds": 4, "tokens": 9, "rollout": 1, "update": 2, "rewards": 0, "peak_gflops": 5},
        {"rollout": 3e9, "update": 8e9, "rewards": 0},
    )
    assert line.startswith(
        "4.0 s per update of 9 tokens, rollout 25% (3 GFLOP/s), update 50% (4 GFLOP/s), rew"
    )


@pytest.mark.skipif(not find_spec("trl"), reason="trl is not installed")
def test_trl_does_the_same_update(flags):
    steps = rl_update.first_update(**flags)
    assert len(steps["ours"]) == 2 and min(norm for _, norm in steps["ours"]) > 0
    assert "2 steps on the same completions" in rl_update.different(**steps)
    record = rl_update.trl(**flags)
    assert record["tokens"] <= 2 * 6 * 4 and 0 < record["seconds"] < 60


def test_another_loss_or_gradient_than_that_of_trl_is_refused():
    ours = [(0.2, 0.01), (0.1, 0.02)]
    line = rl_update.different(ours, [(0.2, 0.01), (0.100001, 0.02)])
    assert line.endswith("losses differ by 1.0e-06, norms of the gradient by 0.0e+00 of the norm")
    for other in (
        [(0.2, 0.01), (0.1001, 0.02)],
        [(0.2, 0.01001), (0.1, 0.02)],
        [(0.2, 0.01), (math.nan, 0.02)],
    ):
        with pytest.raises(SystemExit, match="losses differ by"):
            rl_update.different(ours, other)


def test_report_has_ratios_within_rounds(capsys):
    """Of seconds 2/1, 9/3 and 4/8: 2, where the medians say 4/3."""
    records = {"a": [], "b": []}
    for one, two in (2, 1), (9, 3), (4, 8):
        records["a"].append(dict.fromkeys(rl_update.FIGURES, one))
        records["b"].append(dict.fromkeys(rl_update.FIGURES, two))
    rl_update.report(records, [("a", "b")])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["a", "seconds", "4"], ["b", "seconds", "3"]]
    assert lines[2].startswith("a / b") and "cpu_ms_per_token 2 " in lines[2]
    assert json.loads(last)["ratios"]["a / b"] == dict.fromkeys(rl_update.FIGURES, 2)


def test_evaluation_benchmark_compares_equal_work(tmp_path, monkeypatch):
    """Loop and script give the same completions and verdicts, also in a last batch that is not full."""
    lines = (ROOT / "data/mini_test.jsonl").read_text().splitlines(keepends=True)
    some = [lines[i] for i in (0, 64, 81)]  # the last two are right once they are cut
    (tmp_path / "tasks.jsonl").write_text("".join(some))
    monkeypatch.setattr(eval_speed, "NEW_TOKENS", 48)
    flags = {"model": str(ROOT / "data/tiny_coder"), "data_path": str(tmp_path / "tasks.jsonl")}
    *naive, rows = eval_speed.one_at_a_time(**flags)
    *mine, same = eval_speed.script(**flags, batch_size=2)
    assert rows == same and len(rows) == 3 and all(0 < row[2] <= 48 for row in rows)
    assert [row[4] for row in rows].count("passed") == 2 and "passed" not in [row[3] for row in rows]
    assert min(naive + mine) > 0


def test_explained_variance_over_updates():
    """Residual variances 1 - 0.5 and 4 - 1 of 1 and 4 to explain; the third update has nothing to explain."""
    assert explained_variance.pooled([(1.0, 0.5), (2.0, 0.25), (0.0, None)]) == pytest.approx(1.5 / 5)


def test_table_of_explained_variances():
    runs = [
        {"name": "ac_x", "seed": seed, "updates": [(1.0, 0.1)] * 2 + [(1.0, 0.2)] * 2 + [(1.0, last)] * 2}
        for seed, last in ((1, -0.1), (2, 0.3))
    ]
    assert explained_variance.table(runs).splitlines()[2:] == ["| ac_x | 0.10 | 0.20 | 0.10 | -0.10, 0.30 |"]
    stored = (ROOT / "results/tiny/critic.jsonl").read_text().splitlines()
    shown = explained_variance.table([json.loads(line) for line in stored])
    assert shown in (ROOT / "docs/actor_critic.md").read_text()


def test_acts_are_seen(monkeypatch):
    """What programs do to the trainer: all of it in a bare subprocess, nothing in the sandbox."""
    monkeypatch.setenv("A_TOKEN", "secret")
    slow = "starts 100 processes", "gets 1.5 GB of memory"
    acts = {name: body for name, body in firejail.ACTS.items() if name not in slow}
    assert len(acts) == len(firejail.ACTS) - len(slow)
    bare = partial(firejail.alone, [])
    assert [name for name, body in acts.items() if not firejail.succeeds(bare, body)] == []
    assert not firejail.succeeds(bare, "pass")
    with sandbox.Sandbox(1, firejail.TIMEOUT, wrapper=()) as held:
        ours = partial(firejail.ours, held)
        assert [name for name, body in firejail.ACTS.items() if firejail.succeeds(ours, body)] == []


def test_false_verdicts_are_counted():
    right = "def f():\n    return True\n", firejail.TEST, "f"
    wrong = "def f():\n    return False\n", firejail.TEST, "f"
    assert firejail.false_verdicts(partial(firejail.alone, []), [right, wrong, right]) == "1 of 3"
    assert firejail.seconds({"bare": lambda *job: None}, [right]).keys() == {"bare"}


def test_without_firejail_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert (
        run_script("benchmarks/firejail.py").stderr == "firejail is not installed: apt-get install firejail\n"
    )


def test_what_an_empty_list_earns_in_a_loop_of_tests():
    """It reaches the last assert of each of three cases, and passes one; the loops have three more."""
    test = "def check(f):\n    assert f([]) == []\n    assert f([1]) == [1]\n    assert f([2, 3]) == [2, 3]\n"
    task = {"task_id": "x", "prompt": "def f(v) -> list:\n", "entry_point": "f", "test": test}
    task = reached_tests.with_loops(task) | {"canonical_solution": "    return v\n"}
    with sandbox.Sandbox(require=()) as box:
        reached = sandbox.score(box, [task], ["    return []\n"])[0]
        sandbox.preflight(box, [task])
        of_all = sandbox.score(box, [task], ["    return []\n"])[0]
    assert (reached.n_passed, reached.n_tests, of_all.n_passed, of_all.n_tests) == (1, 3, 1, 6)


def test_methods_have_the_same_work(flags, monkeypatch):
    """Five updates of 32 completions, and a measured run of one of them."""
    for method in method_costs.METHODS.values():
        samples = method["batch_size"] * method.get("samples_per_task", 1)
        assert (samples, method.get("num_updates", method.get("num_steps"))) == (32, 5)
    short = {name: flags[name] for name in ("train_path", "max_new_tokens")}
    monkeypatch.setattr(method_costs, "FLAGS", {**short, "num_updates": 2, "micro_batch_size": 2})
    monkeypatch.setattr(method_costs, "METHODS", {"ppo": {"batch_size": 2}})
    record = method_costs.measure("ppo", flags["sft_model"], 1)
    assert 0 < record["seconds"] < 60 and record["peak_mb"] > 100


def test_the_table_of_smollm2_is_that_of_its_rows():
    """And the rows are those of the metrics beside them: how many of the 500 tasks each run solves."""
    folder = ROOT / "results/smol"
    results = smol_seeds.read_seeds(folder)
    assert smol_seeds.summary(results) == (folder / "seeds.md").read_text()
    for name, runs in results.items():
        for seed, tasks in runs.items():
            run = name if name == "base" else f"{name}_s{seed}"
            metrics = json.loads((folder / f"smol_{run}_metrics.json").read_text())
            assert tasks.shape == (3, 500) and metrics["num_pass"] == tasks[0].sum() / 100
    assert len(results["sft"]) >= 3


def test_constant_answers():
    """One literal, wherever the function returns: no branch that answers otherwise, no variable."""
    constants = ["return 12", "x += 1\n    return [1, 'a']", "if x:\n        return -1\n    return -1"]
    others = ["return x", "if x:\n        return 1\n    return 2", "pass", "return", "return (", "return a.b"]
    for body in constants + others:
        found = constant_answers.is_constant(f"def f(x):\n    {body}\n", "f")
        assert found == (body in constants), body
    assert not constant_answers.is_constant("def g(x):\n    return 1\n", "f")
    task = {"prompt": '"""Add."""\n', "entry_point": "f", "test": "assert f(1) == 2\nassert f(2) == 3\n"}
    completions = ["\ndef f(x):\n    return 2\n", "\ndef f(x):\n    return x + 1\n"]
    samples = [
        {"update": update, "task_id": "a", "completion": completions[k], "reward": [0.5, 1.0][k]}
        | {"outcome": ["failed", "passed"][k]}
        for update, k in ((2, 0), (2, 0), (1, 0), (1, 1), (1, 1), (1, 1))
    ]
    assert constant_answers.by_update({"a": task}, samples) == [
        {"update": 1, "reward": 0.875, "reward_of_constants": 0.125, "constants": 0.25, "passed": 0.75},
        {"update": 2, "reward": 0.5, "reward_of_constants": 0.5, "constants": 1, "passed": 0},
    ]
