"""Runs that are killed and resumed, measured on the way, shared by processes, or hit by bad numbers.

Each run is a process; all but one are forked from a server that has done the imports: 7 s less each.
"""

import fcntl
import importlib.util
import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import peft
import psutil
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import sandbox

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train_ppo_lora", "bitsandbytes", "transformers.models.llama.modeling_llama"])
METHODS = "sft", "rl", "ppo", "grpo", "dpo", "actor_critic"
LOGS = {method: f"{method}_train_log.jsonl" for method in METHODS}
OLDER = "sft", "rl", "ppo", "grpo"  # code that others share is tried on these alone: each run takes seconds
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
    sys.stdout.reconfigure(line_buffering=True)  # as both streams go into one file
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
    elif method == "dpo":
        own = ("--sft_model", work / "sft", "--pairs_path", work / "pairs.jsonl", "--learning_rate", 1e-3)
        own += ("--num_epochs", 1.5, "--batch_size", 4, "--warmup_ratio", 0)  # 5 steps
    else:
        own = ("--sft_model", work / "sft", "--max_new_tokens", 32, "--learning_rate", 1e-3)
        own += {
            "rl": ("--num_steps", 3, "--baseline", "batch"),
            "ppo": (
                "--num_updates",
                5,
                "--ppo_epochs",
                2,
                "--dev_path",
                work / "dev.jsonl",
                "--eval_every",
                1,
            ),
            "grpo": ("--num_updates", 3, "--batch_size", 2, "--samples_per_task", 3, "--grpo_epochs", 2)
            + ("--max_rounds", 2, "--kl_coef", 0.1),
            "actor_critic": ("--num_updates", 2, "--batch_size", 4, "--ppo_epochs", 2, "--lam", 0.9),
        }[method]
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
    if method == "ppo":
        assert adapter(one / "best") == adapter(other / "best")


def copy(folder, name):
    shutil.rmtree(folder.parent / name, ignore_errors=True)
    return shutil.copytree(folder, folder.parent / name)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def work(trained, tmp_path_factory):
    """A copy of the shared tasks and SFT adapter, and a stand-in for TensorBoard."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("long_runs") / "work")
    with open(folder / "pairs.jsonl", "w") as file:
        for task in lines(folder / "train.jsonl")[:12]:
            pair = {
                "prompt": task["prompt"],
                "chosen": task["canonical_solution"],
                "rejected": "    return\n",
            }
            file.write(json.dumps(pair) + "\n")
    metadata = folder / "stubs/tensorboardX-1.0.dist-info/METADATA"  # accelerate asks for it
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: tensorboardX\nVersion: 1.0\n")
    (folder / "stubs/tensorboardX.py").write_text(STUB)
    with pytest.MonkeyPatch.context() as patch:  # for the server, too
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder / 'stubs'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("LONG_RUNS", str(folder))
        yield folder


def watch_imports():
    def hook(event, arguments):
        if event == "import" and arguments[0] in ("tensorboard", "tensorboardX", "wandb"):
            print("imports", arguments[0])

    sys.addaudithook(hook)


def make_whole(method, work):
    code, output = run(*train(method, work / f"{method}_whole"), watch_imports)
    assert code == 0 and "imports" not in output, output  # no tracker was asked for
    assert sum(row["grad_norm"] > 0 for row in lines(work / f"{method}_whole" / LOGS[method])) >= 2
    return work / f"{method}_whole"


@pytest.fixture(scope="module")
def whole(work):
    """Uninterrupted runs: PPO and DPO of 5 updates or steps, GRPO and REINFORCE of 3, SFT of 4, AC of 2."""
    return {method: make_whole(method, work) for method in LOGS}


# ---- kill -9 and --resume -----------------------------------------------------------------------------


def die(where, count):
    """Die in the middle of writing the count-th adapter or state, before ("rename") it has its name, or
    before the count-th optimizer step.

    In the middle: the kernel kills in the write that makes a file larger than 100 kB.
    """
    module, name, path, limit = {
        "adapter": (peft.PeftModel, "save_pretrained", r"(?<!/best)$", 100_000),
        "best": (peft.PeftModel, "save_pretrained", "/best$", 100_000),
        "state": (torch, "save", "/state.pt", 100_000),
        "rename": (os, "replace", "/state.pt$", None),
        "step": (torch.optim.AdamW, "step", "", None),
    }[where]
    original = getattr(module, name)

    def last_call(*arguments, **options):
        nonlocal count
        count -= bool(re.search(path, str(arguments[-1])))
        if count == 0 and limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        elif count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    setattr(module, name, last_call)


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


# The last save: an adapter that came after its state would stay half, as the state says finished.
LAST = 0
DEATHS = {"ppo": [(die, "state", 2), (die, "rename", 1), None, None, (die, "adapter", LAST)]}
DEATHS |= {"rl": [(die, "adapter", 3)], "sft": [(die, "rename", 1), (die, "state", 4)]}
DEATHS |= {"grpo": [(die, "state", 2), None], "dpo": [(die, "state", 2), (die, "adapter", 3)]}
# In the second update between the policy's two steps and the critic's: an update has three.
DEATHS |= {"actor_critic": [(die, "step", 6)]}


@pytest.mark.parametrize("method", DEATHS)
def test_killed_and_resumed_is_the_run_without_a_kill(work, whole, method):
    folder = work / f"{method}_killed"
    (script, flags), log, luck, kept = train(method, folder), folder / LOGS[method], random.Random(7), b""
    for death in DEATHS[method]:
        if death and death[2] == LAST:
            done = torch.load(folder / "state.pt", weights_only=True)["update"]
        count = (5 - done,) if death and death[2] == LAST else ()
        process = start(script, flags, work / "output", *(death or ())[: 3 - len(count)], *count)
        if death:
            process.join(300)
        else:
            kill_soon(process, log, luck)
        in_a_write = death and death[1] not in ("rename", "step")
        assert process.exitcode == -(signal.SIGXFSZ if in_a_write else signal.SIGKILL)
        if (folder / "state.pt").exists():  # never half a state under this name
            state = torch.load(folder / "state.pt", weights_only=True)
            size = state["log_size"] if method in ("sft", "dpo") else state["log_sizes"][0]
            assert log.read_bytes()[:size].startswith(kept)  # with its times: it was not computed again
            kept = log.read_bytes()[:size]
        flags = (*train(method, folder)[1], "--resume")
    code, output = run(script, flags)
    assert code == 0, output
    assert kept and log.read_bytes().startswith(kept)
    assert_equal_runs(method, folder, whole[method])
    left = content(folder).keys() - content(whole[method]).keys()
    assert all(path.name.startswith(".tmp") for path in left)  # no half state; those are of safetensors


def test_state_of_another_run_is_refused(work, whole):
    before = content(whole["ppo"])
    change = ("--resume", "--learning_rate", 1e-4, "--micro_batch_size", 1, "--num_updates", 9)
    code, output = run(*train("ppo", whole["ppo"], *change))
    message = output.splitlines()[-1]
    assert code == 1 and "made with another learning_rate;" in message and "Traceback" not in output
    weights = work / "sft/adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(adapter(whole["ppo"]))
    code, output = run(*train("ppo", whole["ppo"], "--resume"))
    weights.write_bytes(original)
    message = output.splitlines()[-1]
    assert code == 1 and f"made with another {weights};" in message and "Traceback" not in output
    code, output = run(*train("rl", whole["ppo"], "--resume"))  # of another method
    assert code == 1 and re.search("another .*baseline", output) and "Traceback" not in output
    assert before == content(whole["ppo"])  # a refusal changes nothing


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["LONG_RUNS"] + "/code_ran",)


def test_code_in_a_state_does_not_run(work, whole):
    folder = copy(whole["ppo"], "code")
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | {"lora": Code()}, folder / "state.pt")
    code, output = run(*train("ppo", folder, "--resume"))
    message = output.splitlines()[-1]
    assert (
        code == 1
        and "state.pt cannot be used; repeat its settings or delete it" in message
        and "Traceback" not in output
    )
    assert "weights_only" in message  # it was looked at
    assert not (work / "code_ran").exists()


@pytest.mark.parametrize("method, size", [("sft", None), ("rl", 20_000), ("ppo", 0)])
def test_a_state_that_is_damaged_or_of_something_else(work, whole, method, size):
    folder = copy(whole["ppo"], f"damaged_{method}")
    if size is None:
        torch.save({"epoch": 1}, folder / "state.pt")
    else:
        os.truncate(folder / "state.pt", size)
    code, output = run(*train(method, folder, "--resume"))
    message = output.splitlines()[-1]
    assert code == 1 and "state.pt cannot be used; repeat its settings or delete it" in message, output
    assert "Traceback" not in output


def test_resume_of_nothing_then_of_a_longer_run_then_no_resume(work, whole):
    folder, log, whole = work / "longer", work / "longer" / LOGS["ppo"], whole["ppo"]
    assert run(*train("ppo", folder, "--resume", "--num_updates", 1))[0] == 0
    assert log_of("ppo", folder) == log_of("ppo", whole)[:1]
    first = log.read_bytes()
    assert run(*train("ppo", folder, "--resume", "--num_updates", 2, "--micro_batch_size", 4))[0] == 0
    assert log.read_bytes().startswith(first)
    assert samples(folder) == samples(whole)[:8]
    assert lines(log)[1]["grad_norm"] == pytest.approx(log_of("ppo", whole)[1]["grad_norm"], rel=1e-4)
    assert (folder / "best/adapter_model.safetensors").exists()
    assert run(*train("ppo", folder, "--num_updates", 1), die, "best", 1)[0] == -signal.SIGXFSZ
    for name in "best/adapter_model.safetensors", "state.pt", "run_config.json":
        assert not (folder / name).exists()  # they were of the run before
    assert run(*train("ppo", folder, "--num_updates", 1, "--resume"))[0] == 0
    assert log_of("ppo", folder) == log_of("ppo", whole)[:1] and samples(folder) == samples(whole)[:4]


@pytest.mark.parametrize("method", OLDER)
def test_resume_of_a_finished_run_does_nothing(whole, method):
    before = content(whole[method])
    code, output = run(*train(method, whole[method], "--resume"))
    assert code == 0 and f"{whole[method]} is finished" in output, output
    assert before == content(whole[method])


# ---- no room, no place --------------------------------------------------------------------------------


def limit_files(size):
    """What a full disk does to larger files, from the first step on: the sandbox has files, too."""
    step = torch.optim.AdamW.step

    def last_step(optimizer, *arguments):
        step(optimizer, *arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # Python turns the signal into an OSError

    torch.optim.AdamW.step = last_step


@pytest.mark.parametrize("method, part", [("rl", "adapter"), ("sft", "adapter"), ("ppo", "state")])
def test_disk_full_ends_in_one_line_and_resume_goes_on(work, whole, method, part):
    folder = work / f"{method}_{part}_full"
    room = {"adapter": 10_000, "state": 10_000 + len(adapter(whole[method]))}[part]
    code, output = run(*train(method, folder), limit_files, room)
    last = output.splitlines()[-1]
    assert code == 1 and "Traceback" not in output, output
    assert last.startswith(f"cannot write to {folder} (make room, then go on with --resume): ")
    assert run(*train(method, folder, "--resume"))[0] == 0
    assert_equal_runs(method, folder, whole[method])


@pytest.mark.parametrize("method", OLDER)
def test_a_second_run_in_the_same_folder_is_refused(work, whole, method):
    folder = copy(whole[method], f"{method}_locked")
    before = content(folder)
    with open(folder / LOGS[method], "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # as the other run does
        code, output = run(*train(method, folder))
    assert code == 1 and "Traceback" not in output
    assert output.splitlines()[-1].endswith(f"{folder}: BlockingIOError: another run is writing there")
    assert content(folder) == before


# ---- dev split ----------------------------------------------------------------------------------------


def ruin(at):
    """After the optimizer step with this number (from 1) the adapter writes nonsense."""
    step, numbers = torch.optim.AdamW.step, iter(range(1, 1000))

    def wrong_step(optimizer, *arguments):
        step(optimizer, *arguments)
        for p in optimizer.param_groups[0]["params"] if next(numbers) == at else ():
            p.data.mul_(50)

    torch.optim.AdamW.step = wrong_step


def test_dev_split_chooses_the_best_adapter(work):
    """The second update ruins the policy: the first is the best, and the state remembers its score."""
    folder = work / "dev"
    code, output = run(*train("ppo", folder, "--num_updates", 2), ruin, 3)
    assert code == 0, output
    code, output = run(*train("ppo", folder, "--num_updates", 3, "--resume"))
    assert code == 0, output
    log = lines(folder / LOGS["ppo"])
    scores = {row["update"]: row["dev_pass_at_1"] for row in log if "dev_pass_at_1" in row}
    best = max(scores, key=scores.get)  # the first of equal ones
    assert list(scores) == [1, 2, 3]
    config = json.loads((folder / "best/run_config.json").read_text())
    assert config["update"] == best and config["dev_pass_at_1"] == scores[best]
    assert json.loads((folder / "run_config.json").read_text())["finished"]
    dev = {task["task_id"] for task in lines(work / "dev.jsonl")}
    drawn = {sample["task_id"] for sample in lines(folder / "samples.jsonl")}
    assert not dev & drawn and len(drawn) == 12
    for name, score in ("best", scores[best]), ("", scores[len(log)]):
        flags = ("--model_path", folder / name, "--data_path", work / "dev.jsonl", "--max_new_tokens", 32)
        code, output = run("eval_humaneval.py", (*flags, "--results_dir", folder, "--exp_name", "dev"))
        assert code == 0, output
        assert json.loads((folder / "dev_metrics.json").read_text())["pass_at_1"] == pytest.approx(score)
    assert scores[best] > scores[len(log)]  # else any adapter would do


# ---- bad numbers --------------------------------------------------------------------------------------


def spoil(number):
    """The gradient that this call (from 1) of clip_grad_norm_ finds is NaN. Each call prints the weights."""
    clip, calls = torch.nn.utils.clip_grad_norm_, iter(range(1, 1000))

    def clip_grad_norm_(parameters, *arguments):
        print("weights", sum(p.detach().double().abs().sum().item() for p in parameters))
        if next(calls) == number:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, *arguments)

    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_


@pytest.mark.parametrize("method", OLDER)
def test_a_bad_gradient_skips_its_step_and_the_run_goes_on(work, method):
    own = {
        "ppo": ("--ppo_epochs", 2, "--num_updates", 2, "--length_penalty_alpha", 1),
        "grpo": ("--num_updates", 2),
        "rl": ("--baseline", "none"),  # so that every step has a gradient
        "sft": ("--warmup_ratio", 0),  # the first learning rate is not 0
    }[method]
    folder = work / f"{method}_bad"
    code, output = run(*train(method, folder, *own), spoil, 2)
    assert code == 0 and output.count("gradient is not finite, the step is skipped") == 1, output
    first, second, third, *_ = (line for line in output.splitlines() if line.startswith("weights"))
    assert first != second == third
    log = lines(folder / LOGS[method])
    bad = [row for row in log if row["grad_norm"] != row["grad_norm"]]
    assert len(bad) == 1 and bad[0] is log[0 if method in ("ppo", "grpo") else 1]
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    total = sum(tensor.double().abs().sum().item() for tensor in saved.values())
    assert total != pytest.approx(float(third.split()[1]), rel=1e-9)  # later steps were taken


def diverge(at):
    """The optimizer step with this number (from 1) ends in a weight that is no number."""
    step, numbers = torch.optim.AdamW.step, iter(range(1, 1000))

    def wrong_step(optimizer, *arguments):
        step(optimizer, *arguments)
        if next(numbers) == at:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    torch.optim.AdamW.step = wrong_step


def test_a_diverged_policy_stops_the_run_in_one_line(work):
    code, output = run(*train("ppo", work / "diverged", "--ppo_epochs", 1), diverge, 1)
    assert code == 1 and "Traceback" not in output, output
    assert "logits are not finite" in output.splitlines()[-1] and "--learning_rate" in output.splitlines()[-1]


# ---- two processes ------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def join(rank, port):
    """What torchrun tells a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    preflight = sandbox.preflight

    def counting(box, tasks, *rest):
        line = preflight(box, tasks, *rest)
        print(f"{sum(task['n_tests'] > 0 for task in tasks)} tasks with counted tests")
        return line

    sandbox.preflight = counting


def assert_same_training(method, one, two):
    """Two processes against one: one writer, the same samples, equal numbers up to the order of sums."""
    ours, theirs = ([json.loads(line) for line in samples(folder)] for folder in (one, two))
    for row, other in zip(ours, theirs):  # a critic's V is rounded
        assert row.pop("value", 0) == pytest.approx(other.pop("value", 0), rel=1e-4, abs=1e-6)
    assert ours == theirs
    ours, theirs = log_of(method, one), log_of(method, two)
    assert len(ours) == len(theirs) >= 2 and ours[0]["grad_norm"] > 0
    for row, other in zip(ours, theirs):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    distance = sum((tensor - two[name]).square().sum() for name, tensor in one.items()).sqrt()
    assert distance < 1e-5 * sum(tensor.square().sum() for tensor in one.values()).sqrt()


def deprecations_of_the_cache(text):
    """As in test_scripts.py: train_ppo_lora.py has its real command line here."""
    return [
        line for line in text.splitlines() if re.search(r"past_key_values?\b.*(deprecat|warn)", line, re.I)
    ]


def test_two_processes_by_their_real_command(work, whole):
    """By torchrun: `accelerate launch --cpu --num_processes 2` starts a single process."""
    script, flags = train("ppo", work / "ppo_two")
    launch = ("torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port())
    command = [sys.executable, "-m", *map(str, (*launch, ROOT / script, *flags))]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("preflight") == 1  # one of them prints
    assert not deprecations_of_the_cache(done.stderr)
    assert_same_training("ppo", whole["ppo"], work / "ppo_two")


@pytest.mark.parametrize("method", ["rl", "grpo", "sft", "dpo", "actor_critic"])
def test_two_processes(work, whole, method):
    own = (
        ("--max_steps", 2, "--lora_dropout", 0) if method == "sft" else ()
    )  # each process has its own dropout
    script, flags = train(method, work / f"{method}_two", *own)
    port = free_port()
    processes = [start(script, flags, work / f"output_{rank}", join, rank, port) for rank in (0, 1)]
    for rank, process in enumerate(processes):
        process.join(300)
        printed = (work / f"output_{rank}").read_text()
        assert process.exitcode == 0, printed
        # Partial credit needs the counts: without them, one process would reward what another would not.
        assert method not in ("rl", "grpo") or "24 tasks with counted tests" in printed
    if method == "sft":  # 2 passes in each of two processes
        alone = train(method, work / "sft_one", *own, "--gradient_accumulation_steps", 4)
        assert run(*alone)[0] == 0
    one = work / "sft_one" if method == "sft" else whole[method]
    assert_same_training(method, one, work / f"{method}_two")


def test_two_processes_stop_together(work):
    """What the main process finds in the preflight ends both; the other one would wait for it."""
    text = (work / "pairs.jsonl").read_text().replace('"chosen": "    ', '"chosen": "    not ')
    (work / "wrong_pairs.jsonl").write_text(text)
    script, flags = train("dpo", work / "dpo_wrong", "--pairs_path", work / "wrong_pairs.jsonl")
    port = free_port()
    processes = [start(script, flags, work / f"output_{rank}", join, rank, port) for rank in (0, 1)]
    for rank, process in enumerate(processes):
        process.join(100)
        last = (work / f"output_{rank}").read_text().splitlines()[-1]
        assert process.exitcode == 1 and last.startswith("preflight: 12 of 12 pairs have a chosen that fails")
    assert not (work / "dpo_wrong").exists()


# ---- trackers -----------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="the stub would not be used")
def test_tracker_gets_the_log(work):
    flags = ("--num_updates", 1, "--report_to", "tensorboard")
    code, output = run(*train("ppo", work / "tracked", *flags), watch_imports)
    assert code == 0 and "imports " in output, output
    row = lines(work / "tracked" / LOGS["ppo"])[0]
    scalars = lines(work / "tracked/ppo/scalars.jsonl")
    assert [1, "avg_reward", row["avg_reward"]] in scalars and [1, "grad_norm", row["grad_norm"]] in scalars


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize("method", OLDER)
def test_missing_tracker_stops_the_run(work, method):
    code, output = run(*train(method, work / "untracked", "--report_to", "wandb"))
    assert code == 1 and "wandb" in output.splitlines()[-1] and "Traceback" not in output
