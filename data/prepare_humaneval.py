"""Split the 164 HumanEval tasks into 131 for training and 33 for testing.

16 of the 131 are also written as a dev split: with --dev_path the trainers evaluate on them and do not train
on them. A further file has all 164, a test for models that were trained on other tasks.

    python data/prepare_humaneval.py                                  # from the Hugging Face hub
    python data/prepare_humaneval.py --source HumanEval.jsonl.gz      # from a local file, no network

Reads   openai/openai_humaneval, or --source (.jsonl or .jsonl.gz of github.com/openai/human-eval)
Writes  humaneval_train.jsonl, _dev.jsonl, _test.jsonl and _all.jsonl in --output_dir (default: this folder)

HumanEval has no training split of its own. A model trained on the 131 may be compared with others
on the 33 only, never on all 164.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from sandbox import read_tasks  # noqa: E402

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
NUM_TASKS = 164
SEED = 42  # with TRAIN_FRACTION it defines the split: other values give results that compare with nothing
TRAIN_FRACTION = 0.8
NUM_DEV = 16  # of the training tasks; the test tasks choose no adapter


def split_indices(n):
    """Indices of the train and of the test tasks, each ascending, so that files keep dataset order."""
    indices = list(range(n))
    random.Random(SEED).shuffle(indices)
    cut = int(TRAIN_FRACTION * n)
    return sorted(indices[:cut]), sorted(indices[cut:])


def download_tasks():
    """The tasks from the hub; SystemExit with the way around it where the hub is out of reach."""
    print("Downloading openai/openai_humaneval (about half a minute of retries without a network) ...")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the retries bury the one line that helps
    try:
        from datasets import load_dataset  # slow to import, and not needed with --source

        return list(load_dataset("openai/openai_humaneval", split="test"))
    except Exception as error:  # the hub libraries raise a dozen unrelated types when offline
        raise SystemExit(
            f"Cannot download openai/openai_humaneval ({type(error).__name__}). Download HumanEval.jsonl.gz "
            "from github.com/openai/human-eval (folder data) and pass it: "
            "python data/prepare_humaneval.py --source HumanEval.jsonl.gz"
        )


def write_jsonl(path, tasks):
    """Write under a temporary name, then rename: an interrupted run leaves no half file behind."""
    temporary = path.with_suffix(".tmp.jsonl")  # git ignores it like the file itself
    with open(temporary, "w", encoding="utf-8") as file:
        for task in tasks:
            file.write(json.dumps({field: task[field] for field in FIELDS}) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Split HumanEval into 131 train and 33 test tasks.")
    parser.add_argument("--source", help="local HumanEval.jsonl or .jsonl.gz (default: download)")
    parser.add_argument("--output_dir", default=str(HERE), help="default: the folder of this script")
    args = parser.parse_args()

    tasks = read_tasks(args.source) if args.source else download_tasks()
    task_ids = [task["task_id"] for task in tasks]
    if len(tasks) != NUM_TASKS:
        raise SystemExit(
            f"{args.source or 'The download'} has {len(tasks)} tasks, HumanEval has {NUM_TASKS}. "
            "Pass the complete HumanEval.jsonl.gz with --source."
        )
    if task_ids != [f"HumanEval/{i}" for i in range(NUM_TASKS)]:  # the split goes by position, not by name
        print(
            "Warning: the tasks are not HumanEval/0 ... 163 in order, so this is not the usual split.",
            file=sys.stderr,
        )

    train, test = split_indices(NUM_TASKS)
    dev = sorted(random.Random(SEED).sample(train, NUM_DEV))
    splits = {"train": train, "dev": dev, "test": test, "all": range(NUM_TASKS)}
    for name, indices in splits.items():
        path = Path(args.output_dir) / f"humaneval_{name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, [tasks[i] for i in indices])
        except OSError as error:
            raise SystemExit(f"Cannot write {path}: {error.strerror}. Choose another --output_dir.")
        print(f"{path}: {len(indices)} tasks, {task_ids[indices[0]]} ... {task_ids[indices[-1]]}")
