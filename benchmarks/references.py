"""Report which reference solutions of task files and of APPS fail in the sandbox, and why.

    python benchmarks/references.py data/mini_test.jsonl HumanEvalPlus.jsonl.gz FOLDER [--timeout 5] [--list]

Reads   task files, as training and evaluation do (data/tasks.py), and folders of APPS: FOLDER/*/ has
        input_output.json and solutions.json, as in its archive (or FOLDER itself is one problem)
Prints  a table with one row per file, and one line per reference that fails; for folders a table with one row
        per problem and, with --list, one line per solution that fails

A solution that fails is a right program that training would punish; a stub, which returns None, should never
pass. "base" counts references on HumanEval's or MBPP's inputs alone, where the file has those of EvalPlus.
As APPS's own checker does, a call-based problem may hold its results in lists of one, and its solutions may
use what `from typing import *` gives.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.prepare_apps import as_text, unwrapped
from sandbox import Sandbox, read_tasks, reference, score, stub

FILE_HEADER = "file | rows | references | base | stubs | load, s | run, s"
HEADER = "problem | form | cases | solutions | fail | share | reasons"


def read_problem(folder):
    """Return (solutions, cases, name of the function or None)."""
    tests = json.loads((folder / "input_output.json").read_text(encoding="utf-8"))
    solutions = json.loads((folder / "solutions.json").read_text(encoding="utf-8"))
    cases, fn_name = list(zip(tests["inputs"], tests["outputs"])), tests.get("fn_name")
    if fn_name is None:  # some have lists of lines
        return solutions, [tuple(map(as_text, case)) for case in cases], None
    return ["from typing import *\n" + code for code in solutions], cases, fn_name


def reason(code, result):
    """Say in a few words why a solution did not pass; Python itself says what is wrong with the syntax."""
    first = next(number for number, case in enumerate(result.cases) if case.outcome != "passed")
    text = f"in case {first + 1} {result.cases[first].message[:60]!r}"
    if result.outcome == "syntax":
        try:
            compile(code, "<solution>", "exec")
        except (SyntaxError, ValueError) as error:
            text = str(error)
    return f"{result.outcome}: {text}"


def check(sandbox, folder):
    """Return a row of the table and the failing solutions, as (number, reason)."""
    solutions, cases, fn_name = read_problem(folder)
    forms = [("calls" if fn_name else "stdin", cases)]
    if fn_name and (bare := unwrapped([result for _, result in cases])):
        forms.append(("calls, results in lists", [(given, value) for (given, _), value in zip(cases, bare)]))
    best = None
    for form, given in forms:
        results = sandbox.map([(code, given, fn_name) for code in solutions], method=sandbox.check_io)
        pairs = enumerate(zip(solutions, results))
        failing = [(number, reason(*pair)) for number, pair in pairs if pair[1].outcome != "passed"]
        if best is None or len(failing) < len(best[1]):
            best = form, failing
    form, failing = best
    kinds = Counter(text.split(":")[0] for _, text in failing)
    reasons = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "-"
    share = f"{100 * len(failing) / len(solutions):.0f} %"
    return (folder.name, form, len(cases), len(solutions), len(failing), share, reasons), failing


def check_file(path, timeout):
    """Return a row of the table and, as (task_id, reason), references that fail and stubs that pass."""
    start = time.perf_counter()
    tasks = read_tasks(path)
    loaded = time.perf_counter()
    base = [{**task, "test": task["base_test"]} for task in tasks if "base_test" in task]
    counts, bad = [], []
    with Sandbox(timeout=timeout, tasks=tasks) as sandbox:
        for name, some in (("reference", tasks), ("base", base), ("stub", tasks)):
            texts = [stub(task, "None") if name == "stub" else reference(task) for task in some]
            results = score(sandbox, some, texts)
            counts.append(sum(result.outcome == "passed" for result in results))
            for task, result in zip(some, results):
                if (result.outcome == "passed") == (name == "stub"):
                    bad.append((task["task_id"], f"{name}: {result.outcome} {result.message[:60]!r}"))
    seconds = f"{loaded - start:.1f}", f"{time.perf_counter() - loaded:.0f}"
    return (path.name, len(tasks), counts[0], counts[1] if base else "-", counts[2], *seconds), bad


def print_files(paths, timeout):
    """Print the table of task files, each row once it is there, and what is wrong in them."""
    print("|", FILE_HEADER, "|")
    print("|---|" + "---:|" * FILE_HEADER.count("|"))
    found = []
    for path in paths:
        row, bad = check_file(path, timeout)
        print("|", " | ".join(map(str, row)), "|", flush=True)
        found += [(path.name, *pair) for pair in bad]
    for name, task, text in found:
        print(f"{name}: {task}: {text}")


def print_folders(paths, timeout, is_long):
    """Print the table of folders of APPS."""
    folders = sorted(found.parent for path in paths for found in path.rglob("input_output.json"))
    folders = [folder for folder in folders if (folder / "solutions.json").is_file()]
    if not folders:
        names = ", ".join(map(str, paths))
        raise SystemExit(f"{names}: no folder with input_output.json and solutions.json")
    with Sandbox(timeout=timeout) as sandbox:
        checked = [check(sandbox, folder) for folder in folders]
    print("|", HEADER, "|")
    print("|---|---|---:|---:|---:|---:|---|")
    for row, _ in checked:
        print("|", " | ".join(map(str, row)), "|")
    n_cases, n_solutions, n_failing = (sum(row[column] for row, _ in checked) for column in (2, 3, 4))
    share = f"{100 * n_failing / max(1, n_solutions):.1f} %"
    print(f"| all {len(checked)} | | {n_cases} | {n_solutions} | {n_failing} | {share} | |")
    for row, failing in checked if is_long else []:
        for number, text in failing:
            print(f"{row[0]} solution {number}: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which reference solutions fail, and why.")
    parser.add_argument("paths", type=Path, nargs="+", help="task files, and folders of problems of APPS")
    limit = "seconds per program, or case of APPS; at least 60 for files of EvalPlus"
    parser.add_argument("--timeout", type=float, default=5.0, help=limit)
    parser.add_argument("--list", action="store_true", help="print each failing solution of APPS, too")
    args = parser.parse_args()
    files = [path for path in args.paths if not path.is_dir()]
    if files:
        print_files(files, args.timeout)
    if len(files) < len(args.paths):
        print_folders([path for path in args.paths if path.is_dir()], args.timeout, args.list)
