"""Where an answer ends: data/truncation.py."""

import gzip
import json

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data.truncation import truncate
from sandbox import Sandbox, read_tasks, reference, score

SHARED = ROOT.parent / "shared"
PROMPT = 'def f(x):\n    """As def f(x) says:\n\n    >>> f(1)\n    1\n    """\n'
TASK = {"prompt": PROMPT, "entry_point": "f"}
MBPP = {"prompt": '"""\nWrite a function, as in\ndef f(x)\nassert f(1) == 1\n"""\n', "entry_point": "f"}
BODY = "\n    return x\n"

KEPT = {  # what is all answer
    "its end": BODY,
    "nothing": "",
    "blank lines and a comment": BODY + "\n\n# the end\n",
    "a comment at column 0": "\n# first\n    y = x\n# then\n    return y\n",
    "statements at column 0 in a string": '\n    s = """\nif x:\n# y\nf()\n"""\n    return x\n',
    "helpers after it": "\n    return g(x)\n\n\ndef g(x):\n    return h(x) + ONE - 1\n\nh = abs\nONE = 1\n",
    "helpers of helpers": "\n    return b(x)\n\na = lambda x: c(x)\nb = lambda x: a(x)\nc = abs\n",
    "an import after it": "\n    return math.floor(x)\n\n\nimport math\n",
    "a star import after it": "\n    return floor(x)\n\n\nfrom math import *\n",
    "the header once more": "\n\n\ndef f (x):\n    return x\n",
    "the header with a decorator": " pass\n\n\n@staticmethod\ndef f(x):\n    return x\n",
    "a table filled before": "\n    return T[x]\n\n\nT = {}\nT[1] = 1\nT |= {2: 2}\n",
    "a new name for itself": BODY + "\n\nf = abs(f)\n",
    "Windows line ends": "\r\n    y = x\r\n    return y\r\n",
    "a function that is broken": "\n    return ((x\n",
    "a text that is no Python at all": " the answer is 1",
}
CUT = {  # what comes after it
    "a call": "print(f(1))",
    "a call, cut off": "print(f(1",
    "the next exercise": "\ndef g(x):\n    return 2\n",
    "the next exercise, cut off": "\ndef g(x):\n    retu",
    "the next exercise with a decorator": "\n@cache\ndef g(x):\n    return 2\n",
    "itself once more, and wrong": "\ndef f(x):\n    return 3\n",
    "a class": "\nclass A:\n    pass\n",
    "a main block": 'if __name__ == "__main__":\n    f(1)\n',
    "a test": "assert f(1) == 1\n",
    "a fence and prose": "```\nThis function returns x.\n",
    "prose": "This function returns x.\n",
    "an import that it does not need": "import os\n",
    "a text": '"""\nWrite a function g.\n"""\n',
    "half of a text": '"""\nWrite a function g.\n',
    "a loop": "for n in range(3):\n    print(n)\n",
    "a byte that Python does not take": "x = '\0'\n",
}


@pytest.mark.parametrize("name", KEPT)
def test_all_of_it_is_the_answer(name):
    assert truncate(TASK, KEPT[name]) == KEPT[name]


@pytest.mark.parametrize("name", CUT)
def test_what_follows_is_cut(name):
    for task, answer in (TASK, BODY), (MBPP, "\nimport re\ndef f (x):\n# one\n    return x\n"):
        assert truncate(task, answer + CUT[name]) == answer.rstrip("\n")


def test_other_forms_of_a_function():
    for answer in "\nclass f:\n    pass\n", "\nf = lambda x: x\n", "\nasync def f(x):\n    pass\n":
        assert truncate(MBPP, answer + "if f:\n    f(1)\n") == answer.rstrip("\n")
    solution = {"prompt": "class Solution:\n    def f(self, x):\n", "entry_point": "Solution"}
    assert truncate(solution, "\n        return x\nSolution().f(1)\n") == "\n        return x"


SCRIPT = {"prompt": 'r"""\nAdd.\n"""\n', "entry_point": "", "input_output": {"inputs": [], "outputs": []}}
LONG_SCRIPT = """
import sys
def read():
    return int(input())
if True:
    n = read()
# a comment
for i in range(n):
    print(i)
class A: pass
@staticmethod
def last(): '''own'''
print(n, '''a text''', '---')
assert n
from math import pi
"""


def test_scripts_end_at_words_of_their_own():
    assert truncate(SCRIPT, LONG_SCRIPT) == LONG_SCRIPT
    assert truncate(SCRIPT, "\nprint(((") == "\nprint((("
    for end in '\n"""\nNext', '\nr"""', "\n'''", "\n```\nThis", "\nQUESTION:", "\n-----Note-----", "\nANSWER":
        assert truncate(SCRIPT, LONG_SCRIPT + end + LONG_SCRIPT) == LONG_SCRIPT
    assert truncate({**SCRIPT, "input_output": {"fn_name": "f"}, "entry_point": "f"}, "\nprint(1)") == ""


def test_a_class_solution_defines_its_methods():
    prompt = 'r"""\nWrite the function f.\n"""\nfrom typing import *\n'
    beginning = "\nONE = 1\nclass Solution:\n    def g(self): return h\n    def f(self, x):\n        return "
    answer = beginning + "x\nh = 1\n"
    for entry_point in "f", "Solution().f":
        task = {"prompt": prompt, "entry_point": entry_point, "input_output": {"fn_name": "f"}}
        assert truncate(task, answer) == answer
        assert truncate(task, answer + "print(Solution().f(1))\n") == answer.rstrip("\n")
        assert truncate(task, answer + "\ndef f(x):\n    return 3\n") == answer.rstrip("\n")
        assert truncate(task, beginning + "((\nprint(1)") == beginning + "(("


def test_where_nothing_parses_stop_words_cut():
    assert truncate(TASK, "\n    return ((x\nprint(1)") == "\n    return ((x"
    assert (
        truncate(MBPP, "\nprint(1)\ndef f(x):\n    return x\nprint(2)")
        == "\nprint(1)\ndef f(x):\n    return x"
    )


@given(st.text(alphabet="fgx()=:\n\r\t #'\"1\\@", max_size=40), st.sampled_from([TASK, MBPP, SCRIPT]))
def test_any_text_is_cut_to_a_beginning_of_it(text, task):
    cut = truncate(task, text)
    assert text.startswith(cut)
    assert truncate(task, cut) == cut


def test_references_are_not_cut():
    for task in read_tasks(ROOT / "data/mini_test.jsonl") + read_tasks(ROOT / "data/mini_dev.jsonl"):
        assert truncate(task, reference(task)) == reference(task)


def test_committed_rows_have_the_cuts_and_verdicts_of_this_rule():
    """The base model's completions, nearly all of which go on after the function."""
    tasks = {task["task_id"]: task for task in read_tasks(ROOT / "data/mini_test.jsonl")}
    for name in "base", "sft":
        rows = list(map(json.loads, open(ROOT / f"results/tiny/tiny_{name}_per_task.jsonl")))
        cuts = [truncate(tasks[row["task_id"]], row["completion"]) for row in rows]
        assert [len(cut) for cut in cuts] == [row["cut_at"] for row in rows]
        with Sandbox(timeout=2) as sandbox:
            results = score(sandbox, [tasks[row["task_id"]] for row in rows], cuts)
        assert [r.outcome for r in results] == [row["outcome_truncated"] for row in rows]


def test_human_eval_references_pass_when_cut():
    path = SHARED / "humaneval/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("HumanEval's file is not there")
    with gzip.open(path, "rt") as file:
        tasks = list(map(json.loads, file))
    assert [truncate(task, reference(task)) for task in tasks] == [reference(task) for task in tasks]
