"""Make a task file from APPS, TACO or TACO-verified: problems with solutions, and cases of input and output.

    python data/prepare_apps.py --source APPS --difficulty introductory --out data/apps_train.jsonl.gz
    python data/prepare_apps.py --source APPS --split test --max_tasks 200 --out data/apps_dev.jsonl.gz
    python data/prepare_apps.py --dataset TACO --source TACO/train-*.parquet --out data/taco_train.jsonl.gz
    python data/prepare_apps.py --dataset TACO-verified --max_tasks 2000 --out data/taco_train.jsonl.gz

Reads   --source: folders as in the archive of APPS (SPLIT/0000/question.txt, ...), or files with its rows
        (.json, .jsonl, .jsonl.gz, .parquet); without it, the hub's copy of --dataset
Writes  --out: one task per line. A problem becomes one only if what training will ask of it holds: a
        reference solution passes all its cases, a constant answer does not, no evaluation file has it.

The prompt is a docstring, as a base model goes on with Python only where it sees Python; the completion is a
whole program, which is called (entry_point) or reads and prints. docs/data.md says what is left out, and why.
"""

import argparse
import ast
import gzip
import json
import os
import random
import re
import sys
import typing
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from data.check_tasks import leaks, near_duplicates, stubs  # noqa: E402
from data.tasks import int_keys, read_tasks, reference  # noqa: E402
from data.truncation import parse, truncate  # noqa: E402
from sandbox import Sandbox, job  # noqa: E402

SEED = 42
MAX_CASES, MAX_BYTES = 20, 256_000  # that a task keeps
NUM_SOLUTIONS = 5  # that are run for each problem
STDIN = "Read from standard input and write to standard output."
SEVERAL_ANSWERS = re.compile(
    r"(print|output|return|find) any (of|one|such|valid|correct|possible)|\bany of them\b|also be accepted"
    r"|(multiple|several|many) (possible |correct |valid |right |optimal )*(answers|solutions|outputs)\b"
    r"|(print|output|return)[^.\n]* in any order",
    re.I,
)
HUB = {  # the data sets' own scripts are refused by datasets >= 4, and APPS's other folders repeat "all"
    "APPS": "codeparrot/apps@refs/convert/parquet/all/{split}/*.parquet",
    "TACO": "BAAI/TACO/ALL/{split}-*.parquet",
    "TACO-verified": "likaixin/TACO-verified@refs/convert/parquet/default/{split}/*.parquet",
}


class Dropped(Exception):
    """Why a problem becomes no task."""


# -- reading: a list of functions, each of which returns the fields of one problem ---------------------------


def read_bytes(path, size=-1) -> bytes:
    """The bytes of a file; SystemExit where it cannot be read or Git LFS has left a pointer in its place."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            data = file.read(size)
    except (OSError, EOFError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read: {error}") from None
    if data.startswith(b"version https://git-lfs"):
        raise SystemExit(f"{path}: Git LFS has left a pointer here, not the file; run `git lfs pull` there")
    return data


def read_folder(folder) -> dict:
    """A problem in the layout of APPS's archive, one file for each field."""
    files = [path for path in folder.iterdir() if path.is_file()]
    problem = {path.stem: read_bytes(path).decode(errors="replace") for path in files}
    with suppress(ValueError, TypeError):
        problem |= json.loads(problem.get("metadata", "{}"))
    return {"solutions": "", "input_output": "", **problem, "problem_id": folder.name}


def read_json(path) -> list[dict]:
    """The rows of a file: one JSON array, or one object per line."""
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    with suppress(ValueError):
        if isinstance(rows := json.loads(text), list):
            return rows
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise SystemExit(f"{path}, line {number}: not JSON: {error}") from None
    return rows


def read_parquet(path):
    """The rows of a local parquet file or of the hub's; they stay on the disk until each is asked for."""
    try:
        from datasets import load_dataset  # slow to import, and not needed for other formats

        return load_dataset("parquet", data_files=path, split="train")
    except Exception as error:  # a dozen unrelated types: not installed, offline, no parquet
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        hint = "is `datasets` installed (requirements.txt)? Without a network, pass local files by --source"
        raise SystemExit(f"{path}: cannot be read: {text}; {hint}") from None


def read_source(source, split) -> list:
    """The problems of a folder or file."""
    path = Path(source)
    if path.is_dir():
        path = path / split if (path / split).is_dir() else path
        folders = sorted(file.parent for file in path.rglob("question.txt"))
        if not folders:
            raise SystemExit(f"{path}: no folder with a question.txt; name the files that hold rows")
        return [partial(read_folder, folder) for folder in folders]
    if path.suffix == ".parquet":
        read_bytes(path, 99)
        return rows_of(read_parquet(str(path)))
    return rows_of(read_json(path))


def rows_of(rows) -> list:
    return [partial(rows.__getitem__, number) for number in range(len(rows))]


def name_of(problem, prefix: str, number: int) -> str:
    """The task_id of a problem; SystemExit if it is none of APPS or TACO."""
    if not isinstance(problem, dict) or not {"question", "solutions", "input_output"} <= problem.keys():
        why = "a row of APPS or TACO has question, solutions, input_output (pickled tests are not read)"
        raise SystemExit(f"problem {number}: {why}")
    name = problem.get("problem_id", number)
    return f"{prefix}/{name:04d}" if isinstance(name, int) else f"{prefix}/{name}"


# -- normalising: what a problem means, or Dropped -----------------------------------------------------------


def from_json(value, kind, reason):
    """What a field holds, as JSON or, in some copies, as it is."""
    with suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, kind) or not value:
        raise Dropped(reason)
    return value


def as_text(value) -> str:
    """What a script reads or prints: some cases are lists of lines, some numbers."""
    text = "\n".join(map(as_text, value)) if isinstance(value, list) else str(value)
    return text.replace("\r\n", "\n")


def unwrapped(outputs: list) -> list | None:
    """Results taken out of lists of one; None if these are other lists."""
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    return [output[0] for output in outputs] if wrapped else None


def readings(problem: dict) -> list[dict]:
    """What the cases of a problem may mean, as the field "input_output" of a task; references decide."""
    tests = from_json(problem.get("input_output"), dict, "no tests")
    inputs, outputs, fn_name = (tests.get(key) for key in ("inputs", "outputs", "fn_name"))
    if not (isinstance(inputs, list) and isinstance(outputs, list) and inputs and outputs):
        raise Dropped("no tests")
    if len(inputs) != len(outputs) or not (fn_name is None or isinstance(fn_name, str)):
        raise Dropped("its tests are not usable")
    if not fn_name:
        return [{"inputs": list(map(as_text, inputs)), "outputs": list(map(as_text, outputs))}]
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise Dropped("its tests are not usable")
    forms: list[dict] = [{"inputs": inputs, "outputs": outputs, "fn_name": fn_name}]
    if bare := unwrapped(outputs):
        forms.append({**forms[0], "outputs": bare})
    if int_keys(inputs) != inputs:
        forms += [{**form, "int_keys": True} for form in forms]
    return forms


def plain(value) -> str:
    """A value as text, alike for tuple and list, number and line of input."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def hard_codes(code: str, inputs: list) -> bool:
    """Whether two inputs of three letters or more stand in a program."""
    values = [value for given in inputs for value in (given if isinstance(given, list) else [given])]
    found = set()
    for node in ast.walk(parse(code) or ast.Module([], [])):
        with suppress(ValueError, TypeError, RecursionError):
            found.add(plain(ast.literal_eval(node)))  # type: ignore[arg-type]
    return sum(len(text) > 2 for text in found & set(map(plain, values)) - {"true", "false", "null"}) > 1


def usable_solutions(problem: dict, inputs: list) -> list[str]:
    """The first solutions that are worth running."""
    codes, reason = {}, "no solutions"
    for text in from_json(problem.get("solutions"), list, reason):
        code = str(text).replace("\r\n", "\n").strip() + "\n"
        if not code.strip() or len(codes) == NUM_SOLUTIONS:
            continue
        if not parse(code):
            reason = "no solution is Python 3"
        elif hard_codes(code, inputs):
            reason = "its solutions hold its inputs"
        else:
            codes[code] = True
    if not codes:
        raise Dropped(reason)
    return list(codes)


def needs_typing(code: str) -> bool:
    """Whether a program, or the header of one, uses names of typing that it does not import."""
    tree = parse(code) or parse(code.rstrip() + " pass") or ast.Module([], [])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    return bool(used & set(typing.__all__) - imported)


def make_prompt(problem: dict, fn_name: str, code: str) -> str:
    """The statement as a docstring that no statement can break: raw, for LaTeX's \\x and \\N."""
    question = problem["question"].replace("\r\n", "\n").strip()
    starter = (problem.get("starter_code") or "").replace("\r\n", "\n").strip()
    parts = [question]
    if starter:  # not after the docstring: a completion could not be a whole program then
        parts.append(f"Complete this beginning:\n{starter}")
    parts.append(f"Write the function {fn_name}." if fn_name else STDIN)
    text = "\n\n".join(parts).replace('"""', "'''")
    prelude = "from typing import *\n" * (needs_typing(starter) or needs_typing(code))
    return f'r"""\n{text}\n"""\n{prelude}'


def capped(tests: dict, name: str) -> dict:
    """At most MAX_CASES and MAX_BYTES: the first two, the statement's examples, and a sample of the rest."""
    pairs = list(zip(tests["inputs"], tests["outputs"]))
    order = list(range(2, len(pairs)))
    random.Random(f"{SEED} {name}").shuffle(order)
    kept, size = [], 0
    for number in [0, 1, *order][: len(pairs)]:
        size_of_case = len(json.dumps(pairs[number]))
        if len(kept) < MAX_CASES and size + size_of_case <= MAX_BYTES:
            kept.append(number)
            size += size_of_case
    if not kept:
        raise Dropped("its cases are too large")
    return part(tests, sorted(kept))


def part(tests: dict, numbers: list[int]) -> dict:
    """Some of the cases."""
    return {**tests, **{key: [tests[key][number] for number in numbers] for key in ("inputs", "outputs")}}


# -- choosing: what passes -----------------------------------------------------------------------------------


def build(problem: dict, task_id: str, code: str, tests: dict) -> dict:
    """The task with this reference and these cases; the reference is cut as evaluation cuts a completion."""
    fn_name = tests.get("fn_name", "")
    task = {
        "task_id": task_id,
        "prompt": make_prompt(problem, fn_name, code),
        "canonical_solution": code,
        "test": "",
        "entry_point": fn_name,
        "input_output": tests,
        "difficulty": level(problem),
        "source": str(problem.get("url") or problem.get("source") or task_id.split("/")[0]),
        "num_cases": len(tests["inputs"]),
    }
    return {**task, "canonical_solution": truncate(task, reference(task)).strip() + "\n"}


def level(problem: dict) -> str:
    return str(problem.get("difficulty") or "unknown")


def run(sandbox, task: dict, completion: str):
    """The Result of a program."""
    result = job(sandbox, task, completion)
    if result.outcome == "error":
        raise Dropped(f"the sandbox failed ({result.message})")
    return result


def choose(sandbox, problem: dict, task_id: str) -> tuple[dict, bool]:
    """The task with the first solution that passes all cases; whether several answers may be right."""
    passing, nearly = [], 0
    forms = readings(problem)
    for code in usable_solutions(problem, forms[0]["inputs"]):
        tasks = [build(problem, task_id, code, tests) for tests in forms]
        results = [run(sandbox, task, reference(task)) for task in tasks]
        best = max(range(len(tasks)), key=lambda n: (results[n].outcome == "passed", results[n].fraction))
        if results[best].outcome == "passed":
            passing.append(tasks[best])
            forms = [forms[best]]  # now it is known what the cases mean
        nearly += results[best].outcome == "failed" and results[best].fraction >= 0.5
    if not passing:
        raise Dropped("no solution passes")
    says_so = SEVERAL_ANSWERS.search(problem["question"])
    return passing[0], bool(says_so) or nearly >= len(passing)


def constant_passes(sandbox, task: dict) -> bool:
    """Whether a program that always gives the same answer passes."""
    first = {**task, "input_output": part(task["input_output"], [0])}  # nearly all of them end here
    likely = [text for _, text in stubs(task) if run(sandbox, first, text).outcome == "passed"]
    return any(run(sandbox, task, text).outcome == "passed" for text in likely)


def make_task(sandbox, read, task_id: str, keep_many_answers: bool) -> tuple[dict | None, str]:
    """(the task that a problem becomes, "") or (None, why it becomes none)."""
    try:
        problem = read()
        if not isinstance(problem["question"], str) or not problem["question"].strip():
            raise Dropped("no question")
        pictures = re.findall(r"!\[|<image>|<img\b", problem["question"])
        if pictures or str(problem.get("picture_num") or 0) != "0":
            raise Dropped("it needs a picture")
        task, many_answers = choose(sandbox, problem, task_id)
        if many_answers and not keep_many_answers:
            raise Dropped("several right answers")
        task["input_output"] = capped(task["input_output"], task_id)
        if constant_passes(sandbox, task):
            raise Dropped("a constant answer passes")
        if leaks(task):
            raise Dropped("the question holds the solution")
        if many_answers:
            task["maybe_many_answers"] = True
        return task, ""
    except Dropped as reason:
        return None, str(reason)


def statement(task: dict) -> dict:
    """A task without its solution: two tasks are one if they ask the same."""
    return {**task, "canonical_solution": ""}


def stratified(numbers: list[int], levels: list[str]) -> list[int]:
    """The problems in an order whose beginnings have all levels in proportion; by chance within a level."""
    random.Random(SEED).shuffle(numbers)
    totals, ranks, place = Counter(levels[number] for number in numbers), Counter(), {}
    for number in numbers:
        ranks[levels[number]] += 1
        place[number] = (ranks[levels[number]] - 0.5) / totals[levels[number]]
    return sorted(numbers, key=lambda number: place[number])


def listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def write_tasks(path, tasks):
    """Write under a temporary name, then rename: an interrupted run leaves no half file behind."""
    data = "".join(json.dumps(task) + "\n" for task in tasks).encode()
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)
    os.replace(temporary, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a task file from APPS, TACO or TACO-verified.")
    parser.add_argument("--dataset", choices=HUB, default="APPS", help="names the tasks; default: APPS")
    parser.add_argument("--source", nargs="+", help="a folder, or files with rows; default: the hub")
    parser.add_argument("--split", default="train", help="its part, also of task_id; default: train")
    parser.add_argument("--out", required=True, help="task file to write (.jsonl or .jsonl.gz)")
    parser.add_argument("--difficulty", nargs="+", help="levels to take, as the data set names them")
    parser.add_argument("--max_tasks", type=int, default=1 << 40, help="all levels in proportion")
    default = [str(path) for path in sorted(HERE.glob("*_test.jsonl"))]
    parser.add_argument("--apart_from", nargs="*", default=default, help="files whose questions are left out")
    parser.add_argument("--keep_many_answers", action="store_true", help='keep and mark "maybe_many_answers"')
    parser.add_argument("--time_limit", type=float, default=4.0, help="seconds per case")
    args = parser.parse_args()

    if args.max_tasks < 1 or not args.time_limit > 0:
        raise SystemExit("--max_tasks and --time_limit must be positive")
    if not args.out.endswith((".jsonl", ".jsonl.gz")):
        raise SystemExit(f"--out {args.out}: its name must end in .jsonl or .jsonl.gz")
    others = [statement(task) for path in args.apart_from for task in read_tasks(path)]
    problems = [problem for source in args.source or [] for problem in read_source(source, args.split)]
    if not args.source:
        problems = rows_of(read_parquet(f"hf://datasets/{HUB[args.dataset]}".format(split=args.split)))
    names, levels = [], []
    for number, read in enumerate(problems):
        problem = read()
        names.append(name_of(problem, f"{args.dataset}/{args.split}", number))
        levels.append(level(problem))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SystemExit(f"{len(twice)} ids are there twice, as {twice[0]}: name each file once")
    asked = {name.lower() for name in args.difficulty or levels}
    if odd := sorted(asked - {name.lower() for name in levels}) or not levels:
        raise SystemExit(f"no problem has --difficulty {odd}; there are: {listed(Counter(levels))}")
    left = stratified([n for n, name in enumerate(levels) if name.lower() in asked], levels)
    tasks, seen, dropped = {}, set(), Counter()
    bar = tqdm(total=len(left), desc="problems", disable=not sys.stderr.isatty())
    with bar, Sandbox(timeout=args.time_limit) as sandbox:
        while left and (missing := args.max_tasks - len(tasks)):
            batch, left = left[:missing], left[missing:]
            jobs = [(sandbox, problems[number], names[number], args.keep_many_answers) for number in batch]
            results = sandbox.map(jobs, bar.update, make_task)
            made = [statement(task) for task, _ in results if task]
            known = {name for _, name, _ in near_duplicates(made, others)}
            for number, (task, reason) in zip(batch, results):
                question = re.sub(r"\W+", " ", task["prompt"].lower()) if task else ""
                if reason:
                    dropped[reason] += 1
                elif question in seen:
                    dropped["the same question as another"] += 1
                elif names[number] in known:
                    dropped["in a file of --apart_from"] += 1
                else:
                    tasks[number] = task
                    seen.add(question)
    reasons = f"dropped {dropped.total()}: {listed(dropped)}"
    if not tasks:
        raise SystemExit(f"no task is left, {args.out} is not written; {reasons}")
    try:
        write_tasks(args.out, [tasks[number] for number in sorted(tasks)])
    except OSError as error:
        raise SystemExit(f"cannot write {args.out}: {error.strerror}; choose another --out") from None
    print(f"{args.out}: {len(tasks)} tasks: {listed(Counter(levels[number] for number in tasks))}")
    print(reasons + f"; not needed: {len(left)}" * bool(left))
