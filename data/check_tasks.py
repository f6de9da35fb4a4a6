"""Says what is wrong with each task of your own problem file, before you train on it.

    python data/check_tasks.py my_tasks.jsonl
    python data/check_tasks.py my_train.jsonl --test_path my_test.jsonl
    python data/check_tasks.py my_tasks.jsonl --rates    how far a constant answer gets in each task, too

A task is wrong if its reference solution fails, as it is or cut as in evaluation (with --tokenizer also
encoded and decoded), if its test passes for a stub such as `return []`, or for one that returns the value of
an example in its prompt, if its prompt holds the solution, or if it is a task of the evaluation: the same, or
with 70 % of that task's 8-grams. Exit status: 0 if nothing is wrong, else 1. What it cannot find: a test that
is too weak for more than a stub, a docstring that says something else, a paraphrase of a test task.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from data.tasks import is_script, read_task_lines, stub  # noqa: E402
from data.truncation import truncate  # noqa: E402
from sandbox import Sandbox, decoded, lossy, read_tasks, reference, score, stop_with  # noqa: E402

STUBS = "None", "True", "False", "0", "1", "-1", "''", "[]", "{}", "()", "set()", "args[0]"  # what it returns
ANSWERS = "'YES'", "'NO'", "'Yes'", "'No'"  # of scripts, in addition
EXAMPLE = re.compile(r"^ *(?:assert .*== *|>>> .*\n *)(.+?) *$", re.M)  # its value
NGRAM, SHARED = 8, 0.7  # PaLM calls a task contaminated from here on (arXiv:2204.02311, section 8)


def shown(task):
    """The values of the examples in a prompt that are literals, as Python writes them."""
    values = []
    for text in EXAMPLE.findall(task["prompt"]):
        with suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            values.append(repr(ast.literal_eval(text)))
    return values


def stubs(task):
    """(what it does, completion) of each constant answer to a task, also of those that its prompt shows."""
    if is_script(task):
        return [(f"print {value}", stub(task, value)) for value in STUBS + ANSWERS]
    return [(f"return {value}", stub(task, value)) for value in dict.fromkeys([*STUBS, *shown(task)])]


def leaks(task):
    """Whether each line of the reference solution stands in the prompt, spaces aside."""
    prompt = "".join(task["prompt"].split())
    lines = ["".join(line.split()) for line in task["canonical_solution"].splitlines()]
    return all(line in prompt for line in lines if line)


def ngrams(task: dict) -> set[tuple[str, ...]]:
    """Return the set of 8-grams of words in prompt and solution, without case and punctuation."""
    words = re.findall(r"\w+", (task["prompt"] + task["canonical_solution"]).lower())
    return {tuple(words[first : first + NGRAM]) for first in range(max(1, len(words) - NGRAM + 1))}


def near_duplicates(train_tasks: list[dict], test_tasks: list[dict]) -> list[tuple[str, str, float]]:
    """Return (test task_id, training task_id, share of the former's 8-grams in the latter), from 70 % on.

    The largest share comes first. Paraphrases are not found.
    """
    holders = defaultdict(list)  # of an n-gram: the training tasks that have it
    for task in train_tasks:
        for gram in ngrams(task):
            holders[gram].append(task["task_id"])
    pairs = []
    for task in test_tasks:
        grams = ngrams(task)
        common = Counter(name for gram in grams for name in holders.get(gram, ()))
        pairs += [(task["task_id"], name, count / len(grams)) for name, count in common.items()]
    return sorted((pair for pair in pairs if pair[2] >= SHARED), key=lambda pair: -pair[2])


def overlap(train_tasks: list[dict], test_path) -> dict:
    """Return what training tasks share with the tasks of an evaluation: a dict, its "summary" one line."""
    if not os.path.exists(test_path):
        return {"test_path": test_path, "summary": f"overlap: {test_path} is not there: nothing compared"}
    test_tasks = read_tasks(test_path)
    pairs = near_duplicates(train_tasks, test_tasks)
    files = [{task["task_id"].split("/")[0] for task in tasks} for tasks in (train_tasks, test_tasks)]
    benchmarks = sorted(set.intersection(*files))
    count = len({test_id for test_id, _, _ in pairs})
    summary = f"overlap: {count} of {len(test_tasks)} tasks in {test_path} have {SHARED:.0%} or more of "
    summary += f"their {NGRAM}-grams in one training task"
    if pairs:
        summary += f" (most: {pairs[0][0]} with {pairs[0][1]}, {pairs[0][2]:.0%})"
    if benchmarks:
        names = ", ".join(benchmarks)
        summary += f"; warning: both files are from {names}, so the score is not one on new tasks"
    return {"test_path": test_path, "pairs": pairs, "same_benchmark": benchmarks, "summary": summary}


def read_run_config(folder) -> dict:
    """Return what the training run that made this adapter wrote about itself; {} where it wrote nothing."""
    path = Path(folder, "run_config.json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{path} is damaged: {error}; delete it") from None


def overlaps(run_config: dict, test_path) -> list[dict]:
    """Return the overlap with each file that an adapter, or the one it started from, has learnt from."""
    files = []
    while "train_path" in run_config and len(files) < 9:  # two adapters may name each other
        path = run_config["train_path"]
        # run_config.json holds the hash of each file that was read, under the file's path.
        if os.path.isfile(path) and hashlib.sha256(Path(path).read_bytes()).hexdigest() == run_config.get(
            path
        ):
            files.append({"train_path": path, **overlap(read_tasks(path), test_path)})
        else:
            summary = f"overlap: {path} is not the file that was trained on: nothing compared"
            files.append({"train_path": path, "summary": summary})
        run_config = read_run_config(run_config["sft_model"]) if "sft_model" in run_config else {}
    return files


def check(sandbox, tasks, test_paths, progress=None, tokenizer=None):
    """{task_id: what is wrong with it, lines} and {task_id: (passing rate, kind) of its best stub}."""
    wrong, best = defaultdict(list), {}
    for task, result in zip(tasks, score(sandbox, tasks, map(reference, tasks), progress)):
        task["n_tests"] = result.n_tests  # for the passing rates
        if result.outcome != "passed":
            wrong[task["task_id"]].append(f"its reference fails: {result.outcome}: {result.message}")
    jobs = [(task, "fails once it is cut", truncate(task, reference(task))) for task in tasks]
    if tokenizer:
        again = [(task, decoded(tokenizer, task)) for task in lossy(tokenizer, tasks)]
        jobs += [(task, "fails once it is encoded and decoded", text) for task, text in again]
    jobs += [(task, *kind_and_text) for task in tasks for kind_and_text in stubs(task)]
    results = score(sandbox, [task for task, _, _ in jobs], [text for _, _, text in jobs], progress)
    passing = defaultdict(list)  # of a task: what its stubs return that pass
    for (task, kind, _), result in zip(jobs, results):
        name = task["task_id"]
        if kind.startswith("fails") and result.outcome != "passed" and name not in wrong:
            wrong[name].append(f"its reference {kind}: {result.outcome}: {result.message}")
        if not kind.startswith("fails"):
            best[name] = max(best.get(name, (0.0, "")), (result.fraction, kind), key=lambda rate: rate[0])
            if result.outcome == "passed":
                passing[name].append(kind)
    for task in tasks:
        name = task["task_id"]
        if passing[name]:
            wrong[name].append(f"its test passes for a stub: {' or '.join(passing[name])}")
        if leaks(task):
            wrong[name].append("its prompt holds the solution")
    for path in test_paths:
        for test_id, name, share in near_duplicates(tasks, read_tasks(path)):
            wrong[name].append(f"{share:.0%} of the 8-grams of test task {test_id} in {path} are in it")
    return wrong, best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Say what is wrong with each task of a problem file.")
    parser.add_argument("path", help="your problem file (.jsonl or .jsonl.gz, fields of HumanEval)")
    default = [str(path) for path in sorted(HERE.glob("*_test.jsonl"))]
    parser.add_argument("--test_path", nargs="*", default=default, help="evaluation files to compare with")
    parser.add_argument("--time_limit", type=float, default=5.0, help="seconds per program")
    parser.add_argument("--rates", action="store_true", help="print the best constant answer of each task")
    parser.add_argument("--tokenizer", help="model folder or hub name: does it keep the references?")
    args = parser.parse_args()

    tasks, mistakes = read_task_lines(args.path)
    for path in args.test_path:
        read_tasks(path)  # ends here if it cannot be read
    total = len(tasks) + len(mistakes)
    bar = tqdm(
        total=sum(2 + len(stubs(task)) for task in tasks), desc="programs", disable=not sys.stderr.isatty()
    )
    tokenizer = None
    if args.tokenizer:
        from transformers import AutoTokenizer  # slow to import, and seldom needed

        with stop_with(f"cannot load the tokenizer of {args.tokenizer}"):
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    with bar, Sandbox(timeout=args.time_limit, tasks=tasks) as sandbox:
        wrong, best = check(sandbox, tasks, args.test_path, bar.update, tokenizer)
    for number, mistake in mistakes.items():
        print(f"line {number}: {mistake}")
    for name, lines in wrong.items():
        for line in lines:
            print(f"{name}: {line}")
    for name, (rate, kind) in best.items() if args.rates else ():
        print(f"{name}: {rate:.2f} of its tests pass" + f" for {kind}" * bool(kind))
    if best:
        mean = sum(rate for rate, _ in best.values()) / len(best)
        print(f"a constant answer, the best of each task, passes {mean:.1%} of the tests on average")
    bad = len(mistakes) + len(wrong)
    compared = f" (compared with {', '.join(args.test_path) or 'no evaluation file'})"
    print(f"{total - bad} of {total} tasks are fine" + f", {bad} are not" * bool(bad) + compared)
    sys.exit(bool(bad))
