"""GRPO with a pass rate of the tests that a program reached, and with one of all tests of its task.

    python benchmarks/reached_tests.py checkpoints/SFT_1 checkpoints/SFT_2    # adapters of the tiny model

The tasks are those of data/mini_train.jsonl that return a list of numbers, and their tests loop over what
the program returned, as many do: in an empty list, no test of the loop is reached. Run i has seed i. Adds
the mean of the runs to results/tiny/failures.jsonl, of which docs/draw_images.py draws a picture.
"""

import ast
import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import sandbox  # noqa: E402

LOOP = """def check(candidate):
    for numbers, expected in {cases}:
        found = candidate(numbers)
        for x in found:
            assert x in expected
        assert found == expected
"""
TRAIN = "train_grpo_lora.py --max_new_tokens 96 --micro_batch_size 8 --batch_size 4 --samples_per_task 8"
TRAIN += " --learning_rate 5e-4 --num_updates 60 --reward pass_rate"
FIELDS = ("avg_reward", "avg_base_reward", "avg_gen_len")


def with_loops(task):
    """The task with the loop as its test, or None where it does not return a list."""
    if "-> list:" not in task["prompt"]:
        return None
    calls = [
        (line.test.left.args[0], line.test.comparators[0]) for line in ast.parse(task["test"]).body[0].body
    ]
    cases = [(ast.literal_eval(numbers), ast.literal_eval(expected)) for numbers, expected in calls]
    cases = [case for case in cases if len(case[1]) < 30]  # some have thousands of numbers
    return task | {"test": LOOP.format(cases=cases)}


def train_by_reached_tests(command):
    """Run a training script that does not know how many tests a task has."""
    preflight = sandbox.preflight

    def forgetful(box, tasks, *rest):
        line = preflight(box, tasks, *rest)
        for task in tasks:
            del task["n_tests"]
        return line

    sandbox.preflight = forgetful
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def run_once(name, seed, sft_model):
    """Train one model, unless that is done; its log, as {field: a number per update}."""
    folder = f"checkpoints/fraction_{name}_seed{seed}"
    command = [*TRAIN.split(), "--train_path", "checkpoints/loops.jsonl", "--sft_model", sft_model]
    command += ["--seed", str(seed), "--output_dir", folder, "--resume"]
    if name == "reached":
        command = ["benchmarks/reached_tests.py", "--reached", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
    lines = Path(ROOT, folder, "grpo_train_log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {field: [row[field] for row in rows] for field in FIELDS}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reached"]:
        train_by_reached_tests(sys.argv[2:])
        raise SystemExit
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    tasks = [json.loads(line) for line in (ROOT / "data/mini_train.jsonl").read_text().splitlines()]
    tasks = [task for task in map(with_loops, tasks) if task]
    (ROOT / "checkpoints/loops.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    path = ROOT / "results/tiny/failures.jsonl"
    names = {f"fraction_{name}" for name in ("reached", "all")}
    kept = [
        line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["name"] not in names
    ]
    for name in "reached", "all":
        with ThreadPoolExecutor(2) as pool:
            logs = list(pool.map(run_once, cycle([name]), count(1), sys.argv[1:]))
        mean = {field: np.mean([log[field] for log in logs], axis=0).round(4).tolist() for field in FIELDS}
        row = {"name": f"fraction_{name}", "command": f"python {TRAIN}", "seeds": len(logs), "log": mean}
        kept.append(json.dumps(row) + "\n")
    path.write_text("".join(kept))
