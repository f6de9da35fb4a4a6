"""Bring the tasks of MBPP into HumanEval's form, split as their authors split them.

    python data/prepare_mbpp.py                                       # from the Hugging Face hub
    python data/prepare_mbpp.py --source mbpp.jsonl                   # from a local file, no network
    python data/prepare_mbpp.py --source sanitized-mbpp.json          # the 427 tasks checked by hand

Reads   google-research-datasets/mbpp, or --source (files of github.com/google-research/google-research)
Writes  mbpp_train.jsonl (tasks 601-974), mbpp_dev.jsonl (511-600) and mbpp_test.jsonl (11-510) in
        --output_dir (default: this folder). Tasks 1-10 are the authors' few-shot prompts: left out.

A prompt is a docstring: what to write, and the first assert, which shows the function's name. The test is
MBPP's setup code and asserts, without challenge_test_list. Every reference runs, as it is and cut as in
evaluation: a task whose reference fails leaves its file. Near-duplicates of test tasks leave the training
file. Weak tasks, whose test a stub such as `return 0` passes, are named. A pass rate also pays for the assert
that is shown: with `return` and its value a program passes it. --hidden_tests leaves it out in training.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from data.check_tasks import near_duplicates, stubs  # noqa: E402
from data.tasks import defines_check, read_task  # noqa: E402
from data.truncation import IMPORTS, bound, parse, truncate  # noqa: E402
from sandbox import Sandbox, read_tasks, reference, score  # noqa: E402

SPLITS = {"train": range(601, 975), "dev": range(511, 601), "test": range(11, 511)}
SIZES = 974, 427  # tasks in mbpp.jsonl and in sanitized-mbpp.json
TYPES = {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list}
HUB = "google-research-datasets/mbpp"
FILES = "mbpp.jsonl or sanitized-mbpp.json from github.com/google-research/google-research (folder mbpp)"
MAX_SIZE = 16_000_000  # characters of a file; MBPP has half a million
SLOW = 2.0  # seconds of CPU
ONLY_EVALUATE = (
    "Warning: prompts hold the whole test, so these files are for evaluation only: in training, a policy "
    "would be rewarded for copying answers from its prompt."
)


def download_rows():
    """The rows from the hub; SystemExit with the way around it where the hub is out of reach."""
    print(f"Downloading {HUB} (about half a minute of retries without a network) ...")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the retries bury the one line that helps
    try:
        from datasets import load_dataset  # slow to import, and not needed with --source

        return list(load_dataset(HUB, "full", split="prompt+test+validation+train"))
    except Exception as error:  # the hub libraries raise a dozen unrelated types when offline
        name = type(error).__name__
        raise SystemExit(
            f"Cannot download {HUB} ({name}). Download {FILES} and pass it: "
            "python data/prepare_mbpp.py --source FILE"
        )


def read_rows(path):
    """The rows of a file: one per line, as in mbpp.jsonl, or one array, as in sanitized-mbpp.json."""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(MAX_SIZE + 1)
    if len(text) > MAX_SIZE:
        raise ValueError(f"it has more than {MAX_SIZE:,} characters")
    if text.lstrip().startswith("["):
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
    return rows


def clean(text: str) -> str:
    """A text with Unix line ends, no white space before them, and no empty lines around it."""
    return "\n".join(line.rstrip(" \t") for line in re.split(r"\r\n|\r|\n", text)).strip("\n")


def clean_code(code: str) -> str:
    """Code that also has no tabs in its indentation; strings that would change keep their white space."""
    unix = "\n".join(re.split(r"\r\n|\r|\n", code))
    cleaned = clean(re.sub(r"^[ \t]+", lambda indent: indent[0].expandtabs(4), unix, flags=re.M))
    before, after = parse(unix), parse(cleaned)
    if before is None:
        raise ValueError("its code is not Python 3")
    return (cleaned if after and ast.dump(after) == ast.dump(before) else unix.strip("\n")) + "\n"


def docstring(text: str) -> str:
    """A docstring that shows a text as it is; ValueError if there is none."""
    quotes = "'''" if '"""' in text else '"""'
    prompt = "r" * ("\\" in text) + f"{quotes}\n{text}\n{quotes}\n"
    tree = parse(prompt)
    if tree is None or ast.get_docstring(tree, clean=False) != f"\n{text}\n":
        raise ValueError("its text cannot stand in a docstring")
    return prompt


def first_called(test: str, code: str) -> str:
    """The first name that a test calls and the code defines, not imports; ValueError if there is none."""
    program, tree = parse(code), parse(test)
    if not program or not tree:
        raise ValueError("its first assert is not Python 3")
    defined = {name for node in program.body if not isinstance(node, IMPORTS) for name in bound(node)}
    names = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = [name for name in names if isinstance(name, ast.Name) and name.id in defined]
    if not called:
        raise ValueError("its first assert calls nothing that its code defines")
    return min(called, key=lambda name: (name.lineno, name.col_offset)).id


def to_task(row, tests_in_prompt: int, hidden_tests: bool = False) -> dict:
    """A row of MBPP in HumanEval's form, with so many tests in its prompt; ValueError with what is wrong.

    hidden_tests: these are left out of its test, if there are others.
    """
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    if "test" in row:
        raise ValueError("it has a field 'test': tasks of MBPP+, or from this script, are read as they are")
    imports = row.get("test_imports", [])
    if not isinstance(imports, list) or not all(isinstance(line, str) for line in imports):
        raise ValueError("field 'test_imports' is not a list of strings")
    if "text" not in row and "test_imports" in row:  # sanitized-mbpp.json
        row = {**row, "text": row.get("prompt"), "test_setup_code": "\n".join(imports)}
    for field, kind in TYPES.items():
        if type(row.get(field)) is not kind:
            raise ValueError(f"field {field!r} is missing or not of type {kind.__name__}")
    if row["task_id"] not in range(1, 975):
        raise ValueError("its task_id is not one of 1 to 974")
    if not row["test_list"] or not all(isinstance(test, str) for test in row["test_list"]):
        raise ValueError("field 'test_list' is empty or not a list of strings")
    tests = [clean(test).strip() for test in row["test_list"]]
    asserts = (tests[tests_in_prompt:] if hidden_tests else []) or tests
    code = clean_code(row["code"])
    task = {
        "task_id": f"MBPP/{row['task_id']}",
        "prompt": docstring("\n".join([clean(row["text"]).strip(), *tests[:tests_in_prompt]])),
        "canonical_solution": code,
        "test": "\n".join(filter(None, [clean(row["test_setup_code"]), *asserts])) + "\n",
        "entry_point": first_called(tests[0], code),
    }
    if defines_check(task["test"]):
        raise ValueError("its test defines check, as only tests in HumanEval's form may")
    return read_task(json.dumps(task))  # what the scripts would refuse is refused here


def run(sandbox, tasks, progress=None):
    """Return, by task_id, how references fail, which stubs pass, and what slow references take."""
    pairs = [(task, reference(task)) for task in tasks]
    pairs += [(task, cut) for task, text in pairs if (cut := truncate(task, text)) != text]
    constants = [(task, *kind_and_text) for task in tasks for kind_and_text in stubs(task)]
    jobs = pairs + [(task, text) for task, _, text in constants]
    results = score(sandbox, [task for task, _ in jobs], [text for _, text in jobs], progress)
    fails, weak, slow = {}, {}, {}
    for (task, _), result in zip(pairs, results):
        if result.outcome != "passed":
            fails[task["task_id"]] = result.outcome
        elif result.cpu > SLOW:
            slow[task["task_id"]] = f"{result.cpu:.1f} s"
    for (task, value, _), result in zip(constants, results[len(pairs) :]):
        if result.outcome == "passed":
            weak.setdefault(task["task_id"], value)
    return fails, weak, slow


def duplicates(train: list[dict], test: list[dict], others: list[dict]) -> dict[str, str]:
    """{task_id of a training row: what it is a near-duplicate of}, whatever --tests_in_prompt is.

    It has all 8-grams of a test task's text, or 70 % of those of text and code, with or without first assert.
    """
    found = {}
    for n_tests, share_needed in (0, 1.0), (0, 0.0), (1, 0.0):
        sides = [[to_task(row, n_tests) for row in rows] for rows in (train, test)]
        for task in sides[0] + sides[1]:
            task["canonical_solution"] *= not share_needed
        for test_id, train_id, share in near_duplicates(sides[0], sides[1] + others * (not share_needed)):
            if share >= share_needed:
                found.setdefault(train_id, test_id)
    return found


def write_files(folder: Path, files: dict[str, list[dict]]):
    """Write all under temporary names, then rename them: an interrupted run leaves no half file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    # A name that git ignores.
    with tempfile.TemporaryDirectory(dir=folder, prefix="mbpp_", suffix=".jsonl") as temporary:
        for name, tasks in files.items():
            lines = "".join(json.dumps(task) + "\n" for task in tasks)
            Path(temporary, name).write_text(lines, encoding="utf-8")
        for name in files:
            os.replace(Path(temporary, name), folder / name)


def read_tasks_of(path, tests_in_prompt, hidden_tests=False):
    """Return the tasks by task_id, and the rows of each split; SystemExit where one is wrong.

    hidden_tests: those of the training tasks are the ones that their prompt does not show.
    """
    tasks, splits = {}, {name: [] for name in SPLITS}
    try:
        rows = read_rows(path) if path else download_rows()
        for number, row in enumerate(rows, 1):
            try:
                task = to_task(row, tests_in_prompt)
                if hidden_tests and row["task_id"] in SPLITS["train"]:
                    task = to_task(row, tests_in_prompt, hidden_tests)
                if task["task_id"] in tasks:
                    raise ValueError(f"task_id {row['task_id']} was there before")
            except (
                ValueError,
                RecursionError,
                MemoryError,
            ) as error:  # the last two: of ast, deep expressions
                raise ValueError(f"row {number} of {len(rows)}: {error}") from None
            tasks[task["task_id"]] = task
            for name, numbers in SPLITS.items():
                splits[name] += [row] * (row["task_id"] in numbers)
        if missing := [name for name in SPLITS if not splits[name]]:
            raise ValueError(f"of its {len(rows)} tasks none is of the {missing[0]} split")
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(f"{path or HUB} cannot be used: {error}. Take {FILES}.") from None
    if len(tasks) not in SIZES:
        print(f"Warning: {len(tasks)} tasks; MBPP has {SIZES[0]}, or sanitized {SIZES[1]}.", file=sys.stderr)
    return tasks, splits


def counted(words: str, found: dict[str, str]) -> str:
    """The number of tasks that were found, with their names and what was found."""
    names = sorted(found, key=lambda name: int(name.rpartition("/")[2]))
    return " ".join([f"{len(found)} {words}", *(f"({name}: {found[name]})" for name in names)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bring MBPP into HumanEval's form.")
    parser.add_argument("--source", help="local mbpp.jsonl or sanitized-mbpp.json (default: download)")
    parser.add_argument("--output_dir", default=str(HERE), help="default: the folder of this script")
    parser.add_argument(
        "--tests_in_prompt", type=int, choices=(0, 1, 3), default=1, help="3: to evaluate only"
    )
    parser.add_argument(
        "--hidden_tests",
        action="store_true",
        help="train on the asserts not shown, for partial credit; drops the weak",
    )
    parser.add_argument("--test_path", nargs="*", default=[], help="other evaluation files, as HumanEval's")
    parser.add_argument("--drop_weak", action="store_true", help="leave weak tasks out of the training file")
    parser.add_argument("--time_limit", type=float, default=10.0, help="seconds per program")
    args = parser.parse_args()
    args.drop_weak |= args.hidden_tests  # the preflight of a training run would refuse some of them

    others = [task for path in args.test_path for task in read_tasks(path)]
    tasks, splits = read_tasks_of(args.source, args.tests_in_prompt, args.hidden_tests)
    if args.tests_in_prompt == 3:
        print(ONLY_EVALUATE, file=sys.stderr)
    all_tasks = list(tasks.values())
    bar = tqdm(desc="programs", disable=not sys.stderr.isatty())
    with bar, Sandbox(timeout=args.time_limit, tasks=all_tasks) as sandbox:
        fails, weak, slow = run(sandbox, all_tasks, bar.update)
    near = duplicates(splits["train"], splits["test"], others)

    files = {}
    for name, rows in splits.items():
        dropped = {*fails, *(near if name == "train" else ())}
        dropped |= {*(weak if name == "train" and args.drop_weak else ())}
        names = [f"MBPP/{row['task_id']}" for row in rows]
        files[f"mbpp_{name}.jsonl"] = [tasks[name] for name in names if name not in dropped]
        if not files[f"mbpp_{name}.jsonl"]:
            raise SystemExit(f"No task is left for mbpp_{name}.jsonl; failing references: {', '.join(fails)}")
    try:
        write_files(Path(args.output_dir), files)
    except OSError as error:
        raise SystemExit(f"Cannot write to {args.output_dir}: {error.strerror}. Choose another --output_dir.")
    for name, kept in files.items():
        ids = f"{kept[0]['task_id']} ... {kept[-1]['task_id']}"
        print(f"{Path(args.output_dir, name)}: {len(kept)} tasks, {ids}")
    print(
        f"{len(tasks) - len(fails)} of {len(tasks)} references pass",
        counted("fail and are left out", fails),
        counted("near-duplicates of test tasks, left out of train", near),
        counted("weak" + ", those of train left out" * args.drop_weak, weak),
        counted(f"need over {SLOW:.0f} s", slow),
        sep="; ",
    )
