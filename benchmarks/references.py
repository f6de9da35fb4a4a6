"""Report which reference solutions of APPS fail in the sandbox, and why.

    python benchmarks/references.py FOLDER [--timeout 4] [--list]

Reads   FOLDER/*/: input_output.json and solutions.json, as in the archive of APPS (or FOLDER itself is one)
Prints  a table with one row per problem and, with --list, one line per solution that fails

A solution that fails is a right program that training would punish. As APPS's own checker does, a call-based
problem may hold its results in lists of one, and its solutions may use what `from typing import *` gives.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.prepare_apps import as_text, unwrapped
from sandbox import Sandbox

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which reference solutions of APPS fail, and why.")
    parser.add_argument("folder", type=Path, help="a folder of problems, or one problem")
    parser.add_argument("--timeout", type=float, default=4.0, help="seconds per case; APPS has 4")
    parser.add_argument("--list", action="store_true", help="print each failing solution, too")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.folder.rglob("input_output.json"))
    folders = [folder for folder in folders if (folder / "solutions.json").is_file()]
    if not folders:
        raise SystemExit(f"{args.folder}: no folder with input_output.json and solutions.json")
    with Sandbox(timeout=args.timeout) as sandbox:
        checked = [check(sandbox, folder) for folder in folders]
    print("|", HEADER, "|")
    print("|---|---|---:|---:|---:|---:|---|")
    for row, _ in checked:
        print("|", " | ".join(map(str, row)), "|")
    n_cases, n_solutions, n_failing = (sum(row[column] for row, _ in checked) for column in (2, 3, 4))
    share = f"{100 * n_failing / max(1, n_solutions):.1f} %"
    print(f"| all {len(checked)} | | {n_cases} | {n_solutions} | {n_failing} | {share} | |")
    for row, failing in checked if args.list else []:
        for number, text in failing:
            print(f"{row[0]} solution {number}: {text}")
