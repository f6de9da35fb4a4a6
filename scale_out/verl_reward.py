"""The reward of verl 0.9.1: a completion against the tests of its task, in the sandbox of this repository.

verl loads this file by its path, in each of its `reward.num_workers` processes, and calls compute_score in
threads of theirs. sandbox.py, beside whose folder this one must lie, needs nothing but the standard library.
An exception must not become a reward of 0, as it does in verl's reward manager "rate_limited"; with "naive"
its trainer logs the exception and leaves the completion out, and ends where a whole batch is left out.
"""

import json
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.evalplus_files import limits
from sandbox import Sandbox, job, shaped

REWARDS = "binary", "pass_rate", "structured"
SANDBOXES: dict = {}  # of this process, by what Sandbox makes of a task; each is started by its first program
LOCK = threading.Lock()


def sandbox_for(task, time_limit, workers):
    """The Sandbox for a task; those of HumanEval+ need other limits, and some need numpy."""
    key = "numpy" in task["test"], limits([task], time_limit)
    with LOCK:
        if key not in SANDBOXES:
            SANDBOXES[key] = Sandbox(workers, time_limit, tasks=[task])
        return SANDBOXES[key]


def compute_score(
    data_source,
    solution_str,
    ground_truth,
    extra_info=None,
    reward="binary",
    time_limit=5.0,  # seconds per program
    processes=1,  # of all machines that score, and the machines: a process takes its share of the cores
    nodes=1,
    **kwargs,  # what verl adds when it also has a reward model
):
    """Return "score", the reward, "acc", 1.0 if all tests pass, "pass_rate" and "outcome".

    verl calls it by keyword and wants the same keys every time; it averages "acc" in validation. Raises
    ValueError if `reward` is none of REWARDS, RuntimeError if the sandbox fails.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward is {' or '.join(REWARDS)}, not {reward!r}")
    task = json.loads(ground_truth)
    workers = max(1, len(os.sched_getaffinity(0)) * nodes // processes)
    try:
        result = job(sandbox_for(task, time_limit, workers), task, solution_str)
    except SystemExit as stop:  # Ray would take it for the wish of this process to end
        raise RuntimeError(str(stop)) from None
    if result.outcome == "error":
        raise RuntimeError(f"the sandbox failed on {task['task_id']}: {result.message}")
    score = shaped(result.outcome, result.fraction, reward)
    acc = float(result.outcome == "passed")
    return {"score": score, "acc": acc, "pass_rate": result.fraction, "outcome": result.outcome}
