"""data/prepare_humaneval.py through its command line: the split, the two sources, and every refusal."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_sandbox

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(__file__).resolve().parents[2] / "shared/humaneval/HumanEval.jsonl.gz"
FIELDS = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
# Written down from the published file, not computed here: the split must never move.
TEST_SPLIT = [
    1,
    6,
    7,
    8,
    22,
    23,
    26,
    28,
    35,
    39,
    40,
    50,
    55,
    56,
    57,
    59,
    62,
    70,
    71,
    87,
    107,
    108,
    114,
    129,
    138,
    139,
    143,
    148,
    151,
    152,
    155,
    161,
    163,
]


def make_tasks(n=164):
    return [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'def f{i}(x):\n    """Add {i}, in \u00fcnicode."""\n',
            "entry_point": f"f{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
        }
        for i in range(n)
    ]


def write_tasks(path, tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(*arguments, script=ROOT / "data/prepare_humaneval.py", pythonpath=""):
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(pythonpath)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def assert_refused(done, *words):
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def assert_split(folder, tasks):
    train, test = (read(folder / f"humaneval_{name}.jsonl") for name in ("train", "test"))
    assert test == [tasks[i] for i in TEST_SPLIT]
    assert train == [task for i, task in enumerate(tasks) if i not in TEST_SPLIT]
    assert len(train) == 131
    assert all(list(task) == FIELDS for task in train + test)
    assert read(folder / "humaneval_all.jsonl") == tasks
    dev = read(folder / "humaneval_dev.jsonl")
    assert len(dev) == 16 and all(task in train for task in dev)
    assert [train.index(task) for task in dev] == sorted(train.index(task) for task in dev)


def test_split_of_a_local_file(tmp_path):
    tasks = make_tasks()
    source = write_tasks(tmp_path / "HumanEval.jsonl", [{**task, "extra": 1} for task in tasks])
    done = prepare("--source", source, "--output_dir", tmp_path / "new/folder")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_split(tmp_path / "new/folder", tasks)
    assert len(list((tmp_path / "new/folder").iterdir())) == 4  # no temporary file is left


def test_split_of_the_real_file(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not here: the published tasks are not part of the repository")
    done = prepare("--source", REAL, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_split(tmp_path, [json.loads(line) for line in gzip.open(REAL, "rt", encoding="utf-8")])


def test_default_folder_is_that_of_the_script(tmp_path):
    copy_sandbox(tmp_path, "data/prepare_humaneval.py")
    script = tmp_path / "data/prepare_humaneval.py"
    done = prepare("--source", write_tasks(tmp_path / "HumanEval.jsonl", make_tasks()), script=script)
    assert done.returncode == 0, done.stderr
    assert_split(tmp_path / "data", make_tasks())


def test_download(tmp_path):
    write_tasks(tmp_path / "hub.jsonl", make_tasks())
    (tmp_path / "datasets.py").write_text(
        "import json\n"
        "def load_dataset(name, split):\n"
        "    assert (name, split) == ('openai/openai_humaneval', 'test')\n"
        f"    return [json.loads(line) for line in open({str(tmp_path / 'hub.jsonl')!r})]\n"
    )
    done = prepare("--output_dir", tmp_path / "out", pythonpath=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_split(tmp_path / "out", make_tasks())


def test_download_without_network(tmp_path):
    fake = "def load_dataset(*a, **k):\n    raise ConnectionError('two\\nlines')\n"
    (tmp_path / "datasets.py").write_text(fake)
    done = prepare("--output_dir", tmp_path / "out", pythonpath=tmp_path)
    assert_refused(done, "ConnectionError", "github.com/openai/human-eval", "--source")
    assert not (tmp_path / "out").exists()


def test_missing_source(tmp_path):
    assert_refused(prepare("--source", tmp_path / "absent.jsonl", "--output_dir", tmp_path), "absent.jsonl")


def test_broken_line_is_named(tmp_path):
    tasks = make_tasks()
    del tasks[2]["prompt"]
    source = write_tasks(tmp_path / "a.jsonl", tasks)
    assert_refused(prepare("--source", source, "--output_dir", tmp_path / "out"), "a.jsonl", "3", "prompt")


@pytest.mark.parametrize(
    "tasks, word",
    [
        (make_tasks(163), "163 tasks"),
        (make_tasks(165), "165 tasks"),
        (make_tasks(163) + make_tasks(1), "HumanEval/0"),  # a task twice
    ],
)
def test_wrong_number_of_tasks(tmp_path, tasks, word):
    done = prepare("--source", write_tasks(tmp_path / "a.jsonl", tasks), "--output_dir", tmp_path / "out")
    assert_refused(done, "a.jsonl", word)
    assert not (tmp_path / "out").exists()


def test_another_order_is_announced(tmp_path):
    source = write_tasks(tmp_path / "a.jsonl", make_tasks()[::-1])
    done = prepare("--source", source, "--output_dir", tmp_path)
    assert done.returncode == 0
    assert "not the usual split" in done.stderr


def test_folder_that_cannot_be_written(tmp_path):
    source = write_tasks(tmp_path / "a.jsonl", make_tasks())
    done = prepare("--source", source, "--output_dir", source / "below")
    assert_refused(done, "Cannot write", "--output_dir")
