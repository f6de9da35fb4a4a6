"""Runs that are killed and resumed, measured on the way, shared by processes, or hit by bad numbers.

Each run is a process; all but one are forked from a server that has done the imports: 7 s less each.
"""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import random
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train_ppo_lora", "bitsandbytes", "transformers.models.llama.modeling_llama"])
LOGS = {"sft": "sft_train_log.jsonl", "rl": "rl_train_log.jsonl", "ppo": "ppo_train_log.jsonl"}
STUB = """import json, os

class SummaryWriter:
    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.file = open(f"{folder}/scalars.jsonl", "a")

    def add_scalar(self, name, value, global_step):
        print(json.dumps([global_step, name, value]), file=self.file, flush=True)

    def __getattr__(self, name):
        return lambda *args, **kwargs: None
"""


def child(script, flags, output, preparation):
    """What a forked process does: call preparation[0] if there is one, then run the script as __main__."""
    for stream in 1, 2:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    sys.path[:0] = os.environ["PYTHONPATH"].split(":")
    sys.argv = [str(ROOT / script), *map(str, flags)]
    if preparation:
        preparation[0](*preparation[1:])
    runpy.run_path(sys.argv[0], run_name="__main__")


def start(script, flags, output, *preparation):
    Path(output).unlink(missing_ok=True)
    process = SERVER.Process(target=child, args=(script, flags, str(output), preparation))
    process.start()
    return process


def run(script, flags, *preparation):
    """Run to the end; (exit code, what it printed)."""
    output = Path(os.environ["LONG_RUNS"], "output")
    process = start(script, flags, output, *preparation)
    process.join(300)
    return process.exitcode, output.read_text()


def train(method, folder, *flags):
    """(script, flags) of a short run; later flags replace earlier ones."""
    work = Path(os.environ["LONG_RUNS"])
    if method == "sft":
        own = ("--model_name", ROOT / "data/tiny_coder", "--max_steps", 4, "--lora_dropout", 0.05)
        own += ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2)
    else:
        own = ("--sft_model", work / "sft", "--max_new_tokens", 32, "--learning_rate", 1e-3)
        own += ("--num_steps", 3, "--baseline", "batch") if method == "rl" else ("--num_updates", 5)
        own += ("--ppo_epochs", 2) if method == "ppo" else ()
    shared = ("--train_path", work / "train.jsonl", "--output_dir", folder, "--save_every", 1)
    return f"train_{method}_lora.py", (*shared, *own, *flags)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def log_of(method, folder):
    """The log without its times, the one thing that differs between equal runs."""
    rows = lines(folder / LOGS[method])
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def samples(folder):
    path = folder / "samples.jsonl"
    return path.read_bytes().splitlines() if path.is_file() else []  # SFT has none


def assert_equal_runs(method, one, other):
    assert log_of(method, one) == log_of(method, other)
    assert samples(one) == samples(other)
    assert adapter(one) == adapter(other)


def states(folder):
    return sorted((folder / "state").iterdir())


def copy(folder, name):
    shutil.rmtree(folder.parent / name, ignore_errors=True)
    return shutil.copytree(folder, folder.parent / name)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with 24 tasks, those with the shortest solutions so that many pass, and an SFT adapter."""
    folder = tmp_path_factory.mktemp("long_runs")
    tasks = lines(ROOT / "data/mini_train.jsonl")
    tasks.sort(key=lambda task: len(task["prompt"] + task["canonical_solution"]))
    for name, part in ("train", tasks[:24]), ("dev", tasks[2:8]):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(task) + "\n" for task in part))
    metadata = folder / "stubs/tensorboardX-1.0.dist-info/METADATA"  # accelerate asks for it
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: tensorboardX\nVersion: 1.0\n")
    (folder / "stubs/tensorboardX.py").write_text(STUB)
    with pytest.MonkeyPatch.context() as patch:  # for the server, too
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder / 'stubs'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("LONG_RUNS", str(folder))
        code, output = run(*train("sft", folder / "sft", "--max_steps", 1))
        assert code == 0, output
        yield folder


@pytest.fixture(scope="module")
def whole(work):
    """An uninterrupted PPO run of 5 updates."""
    code, output = run(*train("ppo", work / "whole"))
    assert code == 0, output
    assert sum(row["grad_norm"] > 0 for row in lines(work / "whole" / LOGS["ppo"])) >= 3  # it learned
    return work / "whole"


# ---- kill -9 and --resume -----------------------------------------------------------------------------


def die_at(event, count):
    """Die in the middle of the count-th write of a state ("open"), or before that is named ("os.rename")."""

    def hook(name, arguments):
        nonlocal count
        if name == event and "/state/" in str(arguments[0]) and (event != "open" or "w" in arguments[1]):
            count -= 1
            if count == 0 and event == "open":  # the kernel kills in the next write, at this size
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            elif count == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.addaudithook(hook)


def kill_soon(process, log, luck):
    """kill -9 within about two updates after the first change of the log; all its children end, too."""
    before = log.read_bytes()
    while process.is_alive() and log.read_bytes() == before:
        time.sleep(0.02)
    rows = lines(log)
    time.sleep(luck.uniform(0, 1.5) * rows[-1]["seconds"] / len(rows))
    below = psutil.Process(process.pid).children(recursive=True)
    assert below  # the workers of the sandbox
    process.kill()
    process.join()
    _, left = psutil.wait_procs(below, timeout=10)
    assert not [orphan for orphan in left if orphan.status() != psutil.STATUS_ZOMBIE]


DEATHS = {"ppo": [(die_at, "open", 2), (die_at, "os.rename", 1), None, None]}
DEATHS |= {"rl": [(die_at, "os.rename", 2)], "sft": [(die_at, "open", 3)]}  # step 1 has lr 0


@pytest.mark.parametrize("method", DEATHS)
def test_killed_and_resumed_is_the_run_without_a_kill(work, request, method):
    expected, folder = work / f"{method}_whole", work / f"{method}_killed"
    if method == "ppo":
        expected = request.getfixturevalue("whole")
    else:
        assert run(*train(method, expected))[0] == 0
    (script, flags), log, luck, kept = train(method, folder), folder / LOGS[method], random.Random(7), b""
    for death in DEATHS[method]:
        process = start(script, flags, work / "output", *(death or ()))
        if death:
            process.join(300)
        else:
            kill_soon(process, log, luck)
        assert process.exitcode == -(signal.SIGXFSZ if death and death[1] == "open" else signal.SIGKILL)
        kept = kept or b"".join(log.read_bytes().splitlines(keepends=True)[:-1])  # their states were written
        assert kept and "damaged" not in (work / "output").read_text()  # half a state is not named as one
        flags = (*train(method, folder)[1], "--resume")
    code, output = run(script, flags)
    assert code == 0 and "damaged" not in output, output
    assert log.read_bytes().startswith(kept)  # with its times: it was not computed again
    assert_equal_runs(method, folder, expected)
    assert len(states(folder)) == 2  # and no half one


# ---- the folder of states -----------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_state_is_replaced_by_the_one_before(whole, damage):
    folder = copy(whole, "hurt")
    _, newest = states(folder)
    damage(newest)
    script, flags = train("ppo", folder, "--resume")
    code, output = run(script, flags)
    assert code == 0 and output.count("is damaged") == 1 and newest.name in output, output
    assert_equal_runs("ppo", folder, whole)
    for path in states(folder):
        cut(path)
    code, output = run(script, flags)
    assert code == 1 and "again" in output.splitlines()[-1] and "Traceback" not in output


def test_state_of_another_run_is_refused(work, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*.*")}
    code, output = run(*train("ppo", whole, "--resume", "--learning_rate", 1e-4, "--micro_batch_size", 1))
    assert code == 1 and "another learning_rate;" in output and "Traceback" not in output
    weights = work / "sft/adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(adapter(whole))
    code, output = run(*train("ppo", whole, "--resume"))
    weights.write_bytes(original)
    assert code == 1 and "another sft_sha256;" in output and "Traceback" not in output
    assert before == {path: path.read_bytes() for path in whole.rglob("*.*")}  # a refusal changes nothing


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["LONG_RUNS"] + "/code_ran",)


@pytest.mark.parametrize("dump", [torch.save, pickle.dump])
def test_code_in_a_state_does_not_run(work, whole, dump):
    folder = copy(whole, "code")
    with open(work / "code.pt", "wb") as file:
        dump({"identity": {}, "adapter": Code()}, file)
    digest = hashlib.sha256((work / "code.pt").read_bytes()).hexdigest()
    (work / "code.pt").rename(folder / f"state/00000099_{digest}.pt")
    _, output = run(*train("ppo", folder, "--resume"))
    assert not (work / "code_ran").exists()
    assert digest in output or "weights_only" in output, output  # it was looked at


def test_resume_of_nothing_then_of_a_longer_run_then_no_resume(work, whole):
    folder, log = work / "longer", work / "longer" / LOGS["ppo"]
    assert run(*train("ppo", folder, "--resume", "--num_updates", 1))[0] == 0
    assert log_of("ppo", folder) == log_of("ppo", whole)[:1]
    first = log.read_bytes()
    assert run(*train("ppo", folder, "--resume", "--num_updates", 2, "--micro_batch_size", 4))[0] == 0
    assert log.read_bytes().startswith(first)
    assert samples(folder) == samples(whole)[:8]
    assert lines(log)[1]["grad_norm"] == pytest.approx(log_of("ppo", whole)[1]["grad_norm"], rel=1e-4)
    (folder / "best").mkdir()
    assert run(*train("ppo", folder, "--num_updates", 1))[0] == 0
    assert log_of("ppo", folder) == log_of("ppo", whole)[:1]
    assert samples(folder) == samples(whole)[:4] and len(states(folder)) == 1
    assert not (folder / "best").exists()  # it was of the run before


def test_resume_of_a_finished_run_does_nothing(whole):
    folder = copy(whole, "finished")
    code, output = run(*train("ppo", folder, "--resume"))
    assert code == 0, output
    assert json.loads((folder / "run_config.json").read_text())["finished"]
    assert adapter(folder) == adapter(whole) and samples(folder) == samples(whole)
    assert (folder / LOGS["ppo"]).read_bytes() == (whole / LOGS["ppo"]).read_bytes()
    assert [path.name for path in states(folder)] == [path.name for path in states(whole)]


# ---- dev split ----------------------------------------------------------------------------------------


def test_dev_split_chooses_the_best_adapter(work):
    """The learning rate ruins the policy: an early evaluation is the best, and patience ends the run."""
    folder, flags = work / "dev", ("--dev_path", work / "dev.jsonl", "--eval_every", 2, "--patience", 2)
    code, output = run(*train("ppo", folder, *flags, "--num_updates", 40, "--learning_rate", 2e-2))
    assert code == 0, output
    log = lines(folder / LOGS["ppo"])
    scores = {row["update"]: row["dev_pass_at_1"] for row in log if "dev_pass_at_1" in row}
    best = max(scores, key=scores.get)  # the first of equal ones
    assert list(scores) == list(range(2, len(log) + 1, 2)) and len(log) == best + 2 * 2 < 40
    config = json.loads((folder / "best/run_config.json").read_text())
    assert config["update"] == best and config["dev_pass_at_1"] == scores[best]
    assert json.loads((folder / "run_config.json").read_text())["finished"]
    dev = {task["task_id"] for task in lines(work / "dev.jsonl")}
    drawn = {sample["task_id"] for sample in lines(folder / "samples.jsonl")}
    assert not dev & drawn and len(drawn) > 12
    for name, score in ("best", scores[best]), ("", scores[len(log)]):
        flags = ("--model_path", folder / name, "--data_path", work / "dev.jsonl", "--max_new_tokens", 32)
        code, output = run("eval_humaneval.py", (*flags, "--results_dir", folder, "--exp_name", "dev"))
        assert code == 0, output
        assert json.loads((folder / "dev_metrics.json").read_text())["pass_at_1"] == pytest.approx(score)
    assert scores[best] > scores[len(log)]  # else any adapter would do


# ---- bad numbers, no memory ---------------------------------------------------------------------------


def spoil(calls, error=None):
    """These calls (from 1) of clip_grad_norm_ find a gradient that is not a number, or raise an error."""
    clip, numbers = torch.nn.utils.clip_grad_norm_, iter(range(1, 1000))

    def clip_grad_norm_(*arguments):
        if next(numbers) not in calls:
            return clip(*arguments)
        if error:
            raise error("CUDA out of memory")
        return torch.tensor(float("nan"))

    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_


@pytest.mark.parametrize("method", ["ppo", "rl", "sft"])
def test_bad_gradients_are_skipped_and_then_stop_the_run(work, method):
    folder, unit = work / f"{method}_bad", "updates" if method == "ppo" else "steps"
    script, flags = train(method, folder, f"--max_bad_{unit}", 2)
    flags += ("--kl_coef", 0.1) if method == "ppo" else ()  # so that every update has a gradient
    code, output = run(script, flags, spoil, (1, 2))
    assert code == 1 and output.count("not finite") == 2 and "Traceback" not in output, output
    config = json.loads((folder / "run_config.json").read_text())
    assert not config["finished"] and config[f"{unit}_done"] == len(lines(folder / LOGS[method])) == 2
    weights = load_file(folder / "adapter_model.safetensors")
    if method == "sft":  # a new adapter adds zero
        assert not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    else:
        before = load_file(work / "sft/adapter_model.safetensors")
        assert all(tensor.equal(before[name]) for name, tensor in weights.items())
    code, output = run(script, (*flags, "--resume"), spoil, (1, 2))
    assert code == 1 and len(lines(folder / LOGS[method])) == 3, output  # it goes on counting


def test_single_bad_gradients_do_not_stop_the_run(work):
    folder, flags = work / "single_bad", ("--num_steps", 4, "--max_bad_steps", 2)
    code, output = run(*train("rl", folder, *flags), spoil, (1, 3))
    assert code == 0 and output.count("not finite") == 2, output
    assert adapter(folder) != adapter(work / "sft")


def diverge(at):
    """The optimizer step with this number (from 1) ends in a weight that is no number."""
    step, numbers = torch.optim.AdamW.step, iter(range(1, 1000))

    def wrong_step(optimizer, *arguments):
        step(optimizer, *arguments)
        if next(numbers) == at:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    torch.optim.AdamW.step = wrong_step


@pytest.mark.parametrize("method", ["ppo", "rl", "sft"])
def test_diverged_run_ends_with_the_adapter_before(work, method):
    """The third update finds what the second did to the weights; the adapter after the first is saved."""
    own = {
        "ppo": ("--kl_coef", 0.1, "--ppo_epochs", 1),
        "rl": ("--baseline", "none"),  # so that every step has a gradient
        "sft": ("--warmup_ratio", 0, "--max_bad_steps", 9),  # ends before that
    }[method]
    folder, count = work / "diverged", "--num_updates" if method == "ppo" else "--num_steps"
    code, output = run(*train(method, folder, *own), diverge, 2)
    assert "Traceback" not in output and "finite" in output, output
    assert code == (method != "sft") and ("lower --learning_rate" in output) == code
    saved = adapter(folder)
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "adapter_model.safetensors").values())
    code, output = run(*train(method, folder, *own, "--resume"))  # from a state with the diverged weights
    assert code == (method != "sft") and adapter(folder) == saved, output
    if method != "sft":  # whose learning rate depends on the number of steps
        assert run(*train(method, work / "one", *own, count, 1))[0] == 0
        assert adapter(folder) == adapter(work / "one") != adapter(work / "sft")


KNOBS = {"ppo": "--micro_batch_size", "rl": "--micro_batch_size", "sft": "--per_device_train_batch_size"}


@pytest.mark.parametrize("method", KNOBS)
def test_no_memory_names_the_knob(work, method):
    code, output = run(*train(method, work / "no_memory"), spoil, (1,), torch.OutOfMemoryError)
    assert code == 1 and KNOBS[method] in output.splitlines()[-1] and "Traceback" not in output, output


# ---- two processes ------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def join(rank, port):
    """What torchrun tells a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}


def assert_same_training(method, one, two):
    """Two processes against one: one writer, the same samples, equal numbers up to the order of sums."""
    assert samples(one) == samples(two)
    ours, theirs = log_of(method, one), log_of(method, two)
    assert len(ours) == len(theirs) >= 2 and ours[0]["grad_norm"] > 0
    for row, other in zip(ours, theirs):
        for name in row.keys() - {"sandbox"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    distance = sum((tensor - two[name]).square().sum() for name, tensor in one.items()).sqrt()
    assert distance < 1e-5 * sum(tensor.square().sum() for tensor in one.values()).sqrt()


def test_two_processes_by_their_real_command(work):
    """By torchrun: `accelerate launch --cpu --num_processes 2` starts a single process."""
    script, flags = train("ppo", work / "ppo_two", "--num_updates", 4)
    launch = ("torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port())
    command = [sys.executable, "-m", *map(str, (*launch, ROOT / script, *flags))]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("preflight") == 1  # one of them prints
    assert run(*train("ppo", work / "ppo_one", "--num_updates", 4))[0] == 0
    assert_same_training("ppo", work / "ppo_one", work / "ppo_two")


@pytest.mark.parametrize("method", ["rl", "sft"])
def test_two_processes(work, method):
    own = ("--num_steps", 2) if method == "rl" else ("--max_steps", 2, "--lora_dropout", 0)
    alone = () if method == "rl" else ("--gradient_accumulation_steps", 4)  # 2 in each of two
    script, flags = train(method, work / f"{method}_two", *own)
    port = free_port()
    processes = [start(script, flags, work / f"output_{rank}", join, rank, port) for rank in (0, 1)]
    for rank, process in enumerate(processes):
        process.join(300)
        assert process.exitcode == 0, (work / f"output_{rank}").read_text()
    assert run(*train(method, work / f"{method}_one", *own, *alone))[0] == 0
    assert_same_training(method, work / f"{method}_one", work / f"{method}_two")


# ---- trackers -----------------------------------------------------------------------------------------


def watch_imports():
    def hook(event, arguments):
        if event == "import" and arguments[0] in ("tensorboard", "tensorboardX", "wandb"):
            print("imports", arguments[0])

    sys.addaudithook(hook)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="the stub would not be used")
def test_tracker_gets_the_log_and_is_imported_only_then(work):
    for tracker in "tensorboard", "none":
        flags = ("--num_updates", 1, "--report_to", tracker)
        code, output = run(*train("ppo", work / "tracked", *flags), watch_imports)
        assert code == 0, output
        assert ("imports " in output) == (tracker == "tensorboard")
    row = lines(work / "tracked" / LOGS["ppo"])[0]
    scalars = lines(work / "tracked/ppo/scalars.jsonl")
    assert [1, "avg_reward", row["avg_reward"]] in scalars and [1, "grad_norm", row["grad_norm"]] in scalars


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize("method", LOGS)
def test_missing_tracker_stops_the_run(work, method):
    code, output = run(*train(method, work / "untracked", "--report_to", "wandb"))
    assert code == 1 and "wandb" in output.splitlines()[-1] and "Traceback" not in output
