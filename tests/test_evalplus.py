"""EvalPlus's own scorer on completions as eval_humaneval.py writes them.

Its tasks are on GitHub alone, so it gets some of ours, in its form.
For this test: pip install --no-deps evalplus==0.3.1 appdirs tempdir wget tree-sitter tree-sitter-python
"""

import ast
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from sandbox import Sandbox, read_tasks, reference, score

SWAPS = {" + ": " - ", " == ": " != ", " < ": " <= ", " > ": " >= ", "True": "False", "1": "2"}
SAME_FOR_BOTH = (  # bodies of a wrapper of the right function; 4.0 == 4, but (4,) != [4]
    "print(args)\n    return right(*args)",
    "return tuple(result) if isinstance(result := right(*args), list) else float(result)",
    "return right(*args) if args[0] else None",
    "raise SystemExit(0)",
)


def completions(task):
    """Return the reference, a stub, a program that does not compile, wrappers and mutants of it."""
    right, name = reference(task), task["entry_point"]
    wrappers = [f"{right}\n\nright = {name}\n\n\ndef {name}(*args):\n    {body}\n" for body in SAME_FOR_BOTH]
    mutants = [right.replace(old, new) for old, new in SWAPS.items() if old in right]
    return [right, "\n    pass\n", "\n    return (\n", *wrappers, *mutants]


def in_evalplus_form(task):
    """Return a task with the arguments of its asserts as inputs; the results come from the reference."""
    calls = [node.test.left for node in ast.parse(task["test"]).body[0].body]
    inputs = [[ast.literal_eval(argument) for argument in call.args] for call in calls]
    assert json.loads(json.dumps(inputs)) == inputs  # no tuple, no number as a key
    return {**task, "base_input": inputs[:5], "plus_input": inputs[5:], "atol": 0, "contract": ""}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_evalplus_gives_the_same_verdicts(tmp_path):
    """Sample by sample, on the first and the further inputs together."""
    pytest.importorskip("evalplus")
    tasks = read_tasks(ROOT / "data/mini_dev.jsonl")[::12]
    pairs = [(task, text) for task in tasks for text in completions(task)]
    with Sandbox(timeout=3.0) as sandbox:
        ours = score(sandbox, [task for task, _ in pairs], [text for _, text in pairs])
    rows = [{"task_id": task["task_id"], "sample": 0, "completion": text} for task, text in pairs]
    write(tmp_path / "tasks.jsonl", map(in_evalplus_form, tasks))
    write(tmp_path / "x_per_task.jsonl", rows)
    command = [f"{os.path.dirname(sys.executable)}/evalplus.evaluate", "--dataset=humaneval"]
    command += [f"--samples={tmp_path}/x_per_task.jsonl", f"--parallel={os.cpu_count()}"]
    command += ["--min_time_limit=9"]  # 1 s is short on a busy machine
    paths = {"HUMANEVAL_OVERRIDE_PATH": f"{tmp_path}/tasks.jsonl", "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "x_per_task_eval_results.json").read_text())["eval"]
    theirs = [row for task in tasks for row in results[task["task_id"]]]  # in the order of the samples
    assert [row["solution"] for row in theirs] == [task["prompt"] + text for task, text in pairs]
    different = [
        (mine, row)
        for mine, row in zip(ours, theirs, strict=True)
        if (mine.outcome == "passed") != (row["base_status"] == row["plus_status"] == "pass")
    ]
    assert different == []
    assert 10 < sum(mine.outcome == "passed" for mine in ours) < len(ours) - 10  # of both kinds
