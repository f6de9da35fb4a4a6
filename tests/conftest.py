import fcntl
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: with more threads than cores all are slow
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, and inherited by processes

LOCK = open(__file__)  # one for all workers
FIRST = "long_runs", "notebooks", "sandbox", "scripts", "evaluation", "attacks", "docs"  # they take longest


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them while the others have ended."""
    names = [f"test_{name}.py" for name in FIRST]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def is_alone(item):
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Before tests marked `alone`, which measure time, the other workers end theirs and wait."""
    fcntl.flock(LOCK, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        if not (is_alone(item) and is_alone(nextitem)):
            fcntl.flock(LOCK, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder, made once for all workers: tasks and sft/, an adapter by the script's real command line.

    train.jsonl has 24 short tasks, so that many are solved; dev.jsonl has 6 of them, test.jsonl 8 others.
    sft.out and sft.err are what the script printed. Nothing may be changed here: copy what you change.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "sft/run_config.json").is_file():
            tasks = {}
            for side in "train", "test":
                lines = (ROOT / f"data/mini_{side}.jsonl").read_text().splitlines(keepends=True)
                tasks[side] = sorted(lines, key=lambda line: len(json.loads(line)["prompt"] + line))
            parts = {"train": tasks["train"][:24], "dev": tasks["train"][2:8], "test": tasks["test"][:8]}
            for name, part in parts.items():
                (folder / f"{name}.jsonl").write_text("".join(part))
            command = f"train_sft_lora.py --train_path {folder}/train.jsonl --output_dir {folder}/sft"
            command += f" --model_name {ROOT}/data/tiny_coder --max_steps 8 --learning_rate 2e-3"
            command += " --per_device_train_batch_size 8 --gradient_accumulation_steps 1"
            with open(folder / "sft.out", "w") as out, open(folder / "sft.err", "w") as err:
                subprocess.run(
                    [sys.executable, *command.split()], cwd=ROOT, stdout=out, stderr=err, check=True
                )
    return folder


def copy_sandbox(folder, *more):
    """Copy what a Sandbox needs, and more of our files, to a folder."""
    for name in (
        "sandbox.py",
        "sandbox_worker.py",
        "data/checks.py",
        "data/tasks.py",
        "data/evalplus_files.py",
        *more,
    ):
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())


def run_script(script, *arguments, cwd=ROOT):
    """Run a script in this process as from its command line; returns what subprocess.run would.

    Its `variables` are what a notebook would see. torch is imported once for all scripts, not for each.
    """
    arguments = [script, *map(str, arguments)]
    out, err, code, variables = io.StringIO(), io.StringIO(), None, {}
    folder, argv = os.getcwd(), sys.argv
    try:
        os.chdir(cwd)
        sys.argv = arguments
        with redirect_stdout(out), redirect_stderr(err):
            variables = runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(folder)
        sys.argv = argv
    if isinstance(code, str):  # as Python does
        err.write(code + "\n")
        code = 1
    done = subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())
    done.variables = variables
    return done
