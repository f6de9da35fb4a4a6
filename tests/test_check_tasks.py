"""data/check_tasks.py through its command line: one task for each mistake, and none where there is none."""

import json
import subprocess
import sys

from conftest import ROOT

from data import check_tasks

GOOD = {
    "task_id": "my/good",
    "prompt": 'def double(x):\n    """Return twice the number.\n\n    >>> double(4)\n    8\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
}
EXAM = {  # the task of an evaluation; its twin has another name, other spaces and other punctuation
    "task_id": "exam/1",
    "prompt": 'def area(a, b):\n    """Return the area of a box with the sides a and b, in metres."""\n',
    "entry_point": "area",
    "canonical_solution": "    return a * b\n",
    "test": "def check(candidate):\n    assert candidate(3, 4) == 12\n",
}


def one_assert(line):
    return f"def check(candidate):\n    {line}\n"


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / "data/check_tasks.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


def write(path, *tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def test_each_mistake_is_named(tmp_path):
    helper = (
        "def check(candidate):\n    import unittest\n    unittest.TestCase().assertEqual(candidate(3), 6)\n"
    )
    wrong = {
        "my/fails": {"canonical_solution": "    return 3 * x\n"},
        "my/crashes": {"canonical_solution": "    return y\n"},
        "my/zero": {"test": one_assert("assert candidate(0) == 0")},
        "my/silent": {"test": one_assert("candidate(3)")},
        "my/leak": {"prompt": 'def double(x):\n    """Return twice x: return 2*x."""\n'},
        "my/twin": {**EXAM, "prompt": EXAM["prompt"].replace(", in metres.", " in METRES!\n")},
        "my/fine": {  # of its two lines only one stands in the prompt
            "prompt": 'def double(x):\n    """Return twice the number. Begin with y = x."""\n',
            "canonical_solution": "    y = x\n    return 2 * y\n",
            "test": helper,
        },
        "my/whole": {  # as in MBPP+: the completion begins the function itself
            "prompt": '"""Write a function that doubles a number."""\n',
            "canonical_solution": "def double(x):\n    return 2 * x\n",
            "test": one_assert("assert candidate(0) == 0"),
        },
        "my/object": {"test": one_assert("class C: pass\n    assert candidate(C())")},
    }
    tasks = [GOOD, *({**GOOD, **fields, "task_id": name} for name, fields in wrong.items())]
    path = write(tmp_path / "my_tasks.jsonl", *tasks)
    path.write_text(path.read_text() + '{"task_id": "my/half"}\nno JSON\n' + json.dumps(GOOD) + "\n")
    code, out, _ = run(path, "--test_path", write(tmp_path / "exam.jsonl", EXAM), cwd=tmp_path)
    assert code == 1
    expected = [
        "line 11: field 'prompt' is missing or not a string",
        "line 12: not JSON: Expecting value: line 1 column 1 (char 0)",
        "line 13: task_id 'my/good' was there before",
        "my/fails: its reference fails: failed: assert candidate(3) == 6",
        "my/crashes: its reference fails: exception: NameError: name 'y' is not defined",
        "my/zero: its test passes for a stub: return False or return 0 or return args[0]",
        "line 5: its test cannot be used: it has no assert",
        "my/whole: its test passes for a stub: return False or return 0 or return args[0]",
        "my/leak: its prompt holds the solution",
        "my/object: its reference fails: exception: TypeError('cannot pass C to the candidate')",
        f"my/twin: 100% of the 8-grams of test task exam/1 in {tmp_path}/exam.jsonl are in it",
        "a constant answer, the best of each task, passes 44.4% of the tests on average",
        f"2 of 13 tasks are fine, 11 are not (compared with {tmp_path}/exam.jsonl)",
    ]
    assert sorted(out) == sorted(expected)


def test_a_good_file(tmp_path):
    code, out, _ = run(write(tmp_path / "my_tasks.jsonl", GOOD), cwd=tmp_path)
    assert code == 0 and len(out) == 2
    assert out[1].startswith("1 of 1 tasks are fine (compared with ") and "data/mini_test.jsonl" in out[1]


def test_rates_of_constant_answers(tmp_path):
    """A script's are printed, also YES and NO; of n, as many tests as the reference has."""
    cases = {"inputs": ["1\n", "2\n", "3\n", "4\n"], "outputs": ["YES\n", "NO\n", "YES\n", "YES\n"]}
    script = {**GOOD, "task_id": "my/script", "test": "", "entry_point": "", "input_output": cases}
    script |= {"prompt": '"""Print YES for 1, 3 and 4, else NO."""\n'}
    script |= {"canonical_solution": "print('NO' if int(input()) == 2 else 'YES')\n"}
    even = {**GOOD, "task_id": "my/even", "canonical_solution": "    return x % 2 == 0\n"}
    even["test"] = one_assert("for x in range(1000): assert candidate(x) == (x % 2 == 0)")
    code, out, _ = run(write(tmp_path / "my.jsonl", script, even), "--rates", "--test_path", cwd=tmp_path)
    assert code == 0 and out == [
        "my/script: 0.75 of its tests pass for print 'YES'",
        "my/even: 0.50 of its tests pass for return True",
        "a constant answer, the best of each task, passes 62.5% of the tests on average",
        "2 of 2 tasks are fine (compared with no evaluation file)",
    ]


def test_values_that_a_prompt_shows_are_constant_answers(tmp_path):
    """Of an assert and of a doctest, if they are literals; one of two tests is passed by a copied value."""
    prompt = '"""Double.\nassert f(4) == 8\nassert f(5) == g(1)\n\n>>> f([1])\n[1, 1]\n>>> f(0)\n0\n"""\n'
    task = {"task_id": "my/1", "prompt": prompt, "entry_point": "f"}
    task |= {
        "canonical_solution": "def f(x):\n    return x * 2\n",
        "test": "assert f(4) == 8\nassert f(5) == 10\n",
    }
    assert check_tasks.shown(task) == ["8", "[1, 1]", "0"]
    task["prompt"] = prompt.partition(">>>")[0] + '"""\n'
    code, out, _ = run(write(tmp_path / "my.jsonl", task), "--rates", "--test_path", cwd=tmp_path)
    assert code == 0 and out[0] == "my/1: 0.50 of its tests pass for return 8"
    task["test"] = "assert f(4) == 8\n"
    code, out, _ = run(write(tmp_path / "my.jsonl", task), "--test_path", cwd=tmp_path)
    assert code == 1 and out[0] == "my/1: its test passes for a stub: return 8"


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    for name, part in (("missing.jsonl", "no such file"), ("empty.jsonl", "there is no task in it")):
        code, _, err = run(tmp_path / name, cwd=tmp_path)
        assert code == 1 and part in err and len(err.splitlines()) == 1
    path = write(tmp_path / "my.jsonl", GOOD)
    code, _, err = run(path, "--test_path", tmp_path / "missing.jsonl", cwd=tmp_path)
    assert code == 1 and "no such file" in err


def test_a_file_with_nothing_but_mistakes(tmp_path):
    (tmp_path / "broken.jsonl").write_text("{}\n")
    code, out, _ = run(tmp_path / "broken.jsonl", "--test_path", cwd=tmp_path)
    assert code == 1 and out[-1] == "0 of 1 tasks are fine, 1 are not (compared with no evaluation file)"
