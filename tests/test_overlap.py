"""What training and evaluation files share is found and reported by data/check_tasks.py."""

import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT

from data.check_tasks import ngrams, overlap
from sandbox import read_tasks

HUMANEVAL = ROOT.parent / "shared/humaneval/HumanEval.jsonl.gz"


def task(name, text, solution="    return x\n"):
    prompt = f'def f(x):\n    """{text}"""\n'
    test = "def check(candidate):\n    assert candidate(1) == 1\n"
    fields = {"prompt": prompt, "canonical_solution": solution, "test": test, "entry_point": "f"}
    return {"task_id": name, **fields}


def write(path, tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def words(first, last):
    return " ".join(f"w{i}" for i in range(first, last))


def test_ngrams_ignore_case_and_punctuation():
    expected = {tuple("def f x a b return x".split())}  # fewer than eight words: one gram of all
    assert ngrams(task("a", "A, b!")) == ngrams(task("a", "a b")) == expected
    assert len(ngrams(task("a", words(0, 10)))) == 3 + 10 + 2 - 8 + 1


def test_share_is_that_of_one_training_task(tmp_path):
    """The test task has 23 words, so 16 grams; at 70 % of them, which is 11.2, a training task counts."""
    test_path = write(tmp_path / "test.jsonl", [task("Test/0", words(0, 18))])

    def shared(*texts):
        trained = [task(f"Train/{i}", text, "    pass\n") for i, text in enumerate(texts)]
        return overlap(trained, test_path)["pairs"]

    assert shared(words(0, 15)) == []  # 11 of 16 grams are 69 %
    assert shared(words(0, 16)) == [("Test/0", "Train/0", 12 / 16)]
    assert shared(words(0, 9), words(9, 18)) == []  # together enough, each alone not
    both = [("Test/0", "Train/1", 14 / 16), ("Test/0", "Train/2", 12 / 16)]
    assert shared("other", words(0, 18), words(0, 16)) == both  # the largest first


def test_no_overlap_and_no_file(tmp_path):
    test_path = write(tmp_path / "test.jsonl", [task("Test/0", words(0, 18))])
    found = overlap([task("Train/0", words(20, 40))], test_path)
    assert found["pairs"] == [] and found["same_benchmark"] == []
    assert "0 of 1 tasks" in found["summary"] and "warning" not in found["summary"]
    missing = overlap([task("Train/0", "a")], tmp_path / "missing.jsonl")
    assert "pairs" not in missing and "nothing compared" in missing["summary"]


def test_same_benchmark_is_a_warning(tmp_path):
    test_path = write(tmp_path / "test.jsonl", [task("Bench/0", words(0, 18))])
    found = overlap([task("Bench/1", words(20, 40)), task("Other/1", words(40, 60))], test_path)
    assert found["same_benchmark"] == ["Bench"]
    assert "warning: both files are from Bench" in found["summary"]


@pytest.mark.skipif(not HUMANEVAL.exists(), reason="HumanEval's file is not beside the checkout")
def test_humaneval_split(tmp_path):
    """The 33 are from the benchmark of the 131, and one is another's twin, with other brackets."""
    tasks = read_tasks(HUMANEVAL)
    order = list(range(164))
    random.Random(42).shuffle(order)
    test_path = write(tmp_path / "test.jsonl", [tasks[i] for i in sorted(order[131:])])
    found = overlap([tasks[i] for i in sorted(order[:131])], test_path)
    assert found["same_benchmark"] == ["HumanEval"]
    assert found["pairs"] == [("HumanEval/56", "HumanEval/61", 1.0)]


def test_a_script_finds_it_from_every_folder(tmp_path):
    """Another package called data, which is not in the script's own folder, is not in its way."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/__init__.py").touch()
    code = f"import sys; sys.path[:1] = [{str(ROOT)!r}, '']; from data.check_tasks import overlap"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
