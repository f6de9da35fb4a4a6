"""What a training run earned by programs that return the same value whatever they are given.

    python benchmarks/constant_answers.py data/mbpp_train.jsonl checkpoints/RUN/samples.jsonl out.jsonl

Writes a line per update: the mean reward, the part of it that such programs earned, the share of completions
that were such programs, and of those that passed all tests. MBPP's prompts show a test: a value copied from
there passes that one, which is a third of a pass rate. docs/draw_images.py draws the file.
"""

import ast
import json
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sandbox import program, read_tasks  # noqa: E402


def is_constant(source, name):
    """Whether the last function of this name returns one literal, wherever it returns."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about its escapes
            body = ast.parse(source).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
        returns = [node.value for node in ast.walk(functions[-1]) if isinstance(node, ast.Return)]
        return len({repr(ast.literal_eval(value)) for value in returns}) == 1
    except (SyntaxError, ValueError, TypeError, IndexError, RecursionError, MemoryError):
        return False  # no program, no such function, or more than a literal


def by_update(tasks, samples):
    """A record for each update of the samples, in order."""
    groups = defaultdict(list)
    for sample in samples:
        task = tasks[sample["task_id"]]
        constant = is_constant(program(task, sample["completion"]), task["entry_point"])
        groups[sample["update"]].append((sample["reward"], constant, sample["outcome"] == "passed"))
    return [
        {
            "update": update,
            "reward": mean(reward for reward, _, _ in group),
            "reward_of_constants": mean(reward * constant for reward, constant, _ in group),
            "constants": mean(constant for _, constant, _ in group),
            "passed": mean(passed for _, _, passed in group),
        }
        for update, group in sorted(groups.items())
    ]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    task_path, samples_path, target = sys.argv[1:]
    tasks = {task["task_id"]: task for task in read_tasks(task_path)}
    samples = map(json.loads, Path(samples_path).read_text(encoding="utf-8").splitlines())
    lines = [json.dumps(record) + "\n" for record in by_update(tasks, samples)]
    Path(target).write_text("".join(lines))
