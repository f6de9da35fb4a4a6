"""EvalPlus's files, and EvalPlus's own scorer on completions as eval_humaneval.py writes them.

The scorer gets some of our tasks, in its form, and some of its own where its files are beside this checkout.
For these tests: pip install --no-deps evalplus==0.3.1 appdirs tempdir wget tree-sitter tree-sitter-python
"""

import ast
import gzip
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_script

from data.evalplus_files import limits
from data.tasks import compile_test, stub
from sandbox import Sandbox, preflight, read_tasks, reference, score

FILES = ROOT.parent / "shared/data/evalplus"
HAVE_FILES = pytest.mark.skipif(not FILES.exists(), reason="EvalPlus's files are not beside this checkout")
SWAPS = {" + ": " - ", " == ": " != ", " < ": " <= ", " > ": " >= ", "True": "False", "1": "2"}
SAME_FOR_BOTH = (  # bodies of a wrapper of the right function; 4.0 == 4, but (4,) != [4]
    "print(args)\n    return right(*args)",
    "return tuple(result) if isinstance(result := right(*args), list) else float(result)",
    "return right(*args) if args[0] else None",
    "raise SystemExit(0)",
)
# The command evalplus.evaluate, but for a thread that looks every 20 s whether the programs have ended.
EVALUATE = """
import time, types
from evalplus import evaluate
evaluate.time = types.SimpleNamespace(time=time.time, sleep=lambda _: time.sleep(1))
evaluate.main()
"""
# Decimals, strings, a helper in the prompt, dicts. Not 32: EvalPlus 0.3.1 fails all programs.
SOME = [f"HumanEval/{number}" for number in (2, 4, 38, 99, 111)]


def completions(task):
    """Return the reference, a stub, a program that does not compile, wrappers and mutants of it."""
    right, name = reference(task), task["entry_point"]
    wrappers = [f"{right}\n\nright = {name}\n\n\ndef {name}(*args):\n    {body}\n" for body in SAME_FOR_BOTH]
    mutants = [right.replace(old, new) for old, new in SWAPS.items() if old in right]
    return [right, "\n    pass\n", "\n    return (\n", *wrappers, *mutants]


def in_evalplus_form(task):
    """Return a task with the arguments of its asserts as inputs; the results come from the reference."""
    calls = [node.test.left for node in ast.parse(task["test"]).body[0].body]
    inputs = [[ast.literal_eval(argument) for argument in call.args] for call in calls]
    assert json.loads(json.dumps(inputs)) == inputs  # no tuple, no number as a key
    return {**task, "base_input": inputs[:5], "plus_input": inputs[5:], "atol": 0, "contract": ""}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def passes(result):
    return result.outcome == "passed"


def as_base(task):
    return {**task, "test": task["base_test"]}


def test_evalplus_gives_the_same_verdicts(tmp_path):
    """Sample by sample, on the first inputs alone and with the further ones."""
    pytest.importorskip("evalplus")
    rows = [in_evalplus_form(task) for task in read_tasks(ROOT / "data/mini_dev.jsonl")[::12]]
    if FILES.exists():
        with gzip.open(FILES / "HumanEvalPlus-Mini.jsonl.gz", "rt") as file:
            rows += [row for row in map(json.loads, file) if row["task_id"] in SOME]
    path = write(tmp_path / "tasks.jsonl", rows)
    pairs = [(task, text) for task in read_tasks(path) for text in completions(task)]
    texts = [text for _, text in pairs]
    with Sandbox(timeout=9.0) as sandbox:  # no `tasks`: of those here, none needs EvalPlus's 60 s
        ours = score(sandbox, [task for task, _ in pairs], texts)
        base = score(sandbox, [as_base(task) for task, _ in pairs], texts)
    samples = [{"task_id": task["task_id"], "sample": 0, "completion": text} for task, text in pairs]
    write(tmp_path / "x_per_task.jsonl", samples)
    command = [sys.executable, "-c", EVALUATE, "--dataset=humaneval"]
    command += [f"--samples={tmp_path}/x_per_task.jsonl", f"--parallel={os.cpu_count()}"]
    command += ["--min_time_limit=9"]  # 1 s is short on a busy machine
    paths = {"HUMANEVAL_OVERRIDE_PATH": str(path), "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "x_per_task_eval_results.json").read_text())["eval"]
    theirs = [row for name in results for row in results[name]]
    assert [row["solution"] for row in theirs] == [task["prompt"] + text for task, text in pairs]
    different = [
        (*mine, row)
        for *mine, row in zip(ours, base, theirs, strict=True)
        if passes(mine[0]) != (row["base_status"] == row["plus_status"] == "pass")
        or passes(mine[1]) != (row["base_status"] == "pass")
    ]
    assert different == []
    assert 10 < sum(map(passes, ours)) < sum(map(passes, base)) < len(ours) - 10  # of all kinds


# ---- the rules of HumanEval+, without its file ----

ROW = {
    "task_id": "HumanEval/900",
    "prompt": 'def mean(xs):\n    """The mean."""\n',
    "canonical_solution": "\n    return sum(xs) / len(xs)\n",
    "entry_point": "mean",
    "test": "def check(candidate):\n    assert candidate([1.0, 3.0]) == 2\n",
    "base_input": [[[1.0, 3.0]], [[4.0]]],
    "plus_input": [[[1.0, 2.0, 6.0]], [[-3.0]]],
    "atol": 0,
    "contract": "",
}
INF = float("inf")
NAN = float("nan")
RULES = [  # what the reference returns, what the program returns, atol, does that pass
    (1.0, 1.0 + 9e-7, 0, True),
    (1.0, 1.0 + 2e-6, 0, False),
    (1e9, 1e9 + 90, 0, True),
    (1e9, 1e9 + 110, 0, False),
    (2.0, 2, 0, True),
    (2.0000001, 2, 0, False),
    (1.0, True, 0, True),
    (1.0, "1.0", 0, False),
    (1.0, None, 0, False),
    (1.0, [1.0], 0, False),
    ([1.0, 2.0], [1.0, 2.0 + 1e-7], 0, True),
    ([1.0, 2.0], [1.0 + 1e-7], 0, False),
    ([1.0, 2.0], (1.0, 2.0), 0, False),
    ([1.0, 2.0], [1.0, "2.0"], 0, False),
    ((1.0, 2.0), (1.0, 2.0 + 1e-7), 0, True),
    ([1.0, 2], [1.0 + 1e-7, 2], 0, False),
    ([1.0, 2], [1.0 + 1e-7, 2], 1e-6, True),
    ([[1.0], [2.0]], [[1.0 + 1e-7], [2.0]], 0, False),
    ([[1.0], [2.0]], [[1.0 + 1e-7], [2.0]], 1e-6, True),
    (7, 7.0, 1e-4, True),
    (7, 7.00001, 1e-4, False),
    (10**9, 10**9 + 1, 0, False),
    ("a", "b", 1e-4, False),
    ({"a": 1.0}, {"a": 1.0 + 1e-7}, 1e-4, False),
    ([], [], 0, True),
    ([], 0.0, 0, False),
    (INF, INF, 0, True),
    (INF, 1.0, 0, False),
    (1.0, INF, 0, False),
    ([INF, 1.0], [INF, 1.0 + 1e-7], 0, True),
    (NAN, NAN, 0, False),
]


@pytest.mark.parametrize("rule", RULES, ids=map(str, RULES))
def test_what_is_equal(tmp_path, sandbox, rule):
    """As in EvalPlus's own function, where that is installed."""
    expected, value, atol, is_right = rule
    head = "    inf, nan = float('inf'), float('nan')\n    return "
    row = {**ROW, "canonical_solution": f"{head}{expected!r}\n", "atol": atol}
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [row]))
    (result,) = score(sandbox, [task], [f"\n{head}{value!r}\n"])
    assert passes(result) is is_right
    evalplus = pytest.importorskip("evalplus.eval")
    code, calls = f"{row['prompt']}{head}{value!r}\n", ROW["base_input"]
    arguments = "humaneval", code, calls, "mean", [expected] * 2, atol, [1.0] * 2
    assert (evalplus.untrusted_check(*arguments, fast_check=True)[0] == "pass") is is_right


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=3.0) as sandbox:
        yield sandbox


def test_further_inputs_count(tmp_path, sandbox):
    """The row's own test is HumanEval's, which this program passes."""
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [ROW]))
    body = "\n    return 11 / 3 if len(xs) == 3 else sum(xs) / len(xs)\n"
    plus, base, own = score(sandbox, [task, as_base(task), {**task, "test": ROW["test"]}], [body] * 3)
    assert (plus.outcome, plus.n_passed, plus.n_tests) == ("failed", 3, 4)
    assert (base.outcome, base.n_passed, base.n_tests) == ("passed", 2, 2)
    assert passes(own)
    assert "1/1 reference solutions pass" in preflight(sandbox, [task])


def test_arguments_may_be_changed_in_place(tmp_path, sandbox):
    body = "    xs.sort()\n    total = xs[0]\n    xs.clear()\n    return total\n"
    row = {**ROW, "canonical_solution": body, "base_input": [[[3, 1, 2]]], "plus_input": []}
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [row]))
    assert (
        list(map(passes, score(sandbox, [task] * 2, [reference(task), "\n    return min(xs)\n"])))
        == [True] * 2
    )


FIND_ZERO = {
    **ROW,
    "task_id": "HumanEval/32",
    "prompt": "def poly(xs, x):\n    return sum(a * x**i for i, a in enumerate(xs))\n\n\n"
    'def find_zero(xs):\n    """A zero of x^2 - a^2."""\n',
    "canonical_solution": "    return (-xs[0]) ** 0.5\n",
    "entry_point": "find_zero",
    "base_input": [[[-4, 0, 1]]],
    "plus_input": [[[-9, 0, 1]]],
    "atol": 1e-4,
}
ON_THE_HUB = """import math
def _poly(xs: list, x: float):
    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])

def check(candidate):
    inputs = [[[-4, 0, 1]], [[-9, 0, 1]]]
    results = [2.0, 3.0]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assert _poly(*candidate(*inp), inp) <= 0.0001
"""
ZEROS = {
    "(-xs[0]) ** 0.5": True,
    "-((-xs[0]) ** 0.5)": True,  # another one
    "(-xs[0]) ** 0.5 + 1e-6": True,
    "(-xs[0]) ** 0.5 + 1e-3": False,
    "0.0": False,  # there the polynomial is negative
    "float('nan')": False,
    "None": False,
    "xs": False,
}


@pytest.mark.parametrize("is_on_the_hub", [False, True])
def test_find_zero(tmp_path, sandbox, capsys, is_on_the_hub):
    row = {**FIND_ZERO, "test": ON_THE_HUB}
    if is_on_the_hub:
        del row["base_input"], row["plus_input"]
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [row]))
    assert ("warning: HumanEval/32" in capsys.readouterr().err) is is_on_the_hub
    results = score(sandbox, [task] * len(ZEROS), [f"\n    return {value}\n" for value in ZEROS])
    assert dict(zip(ZEROS, map(passes, results))) == ZEROS


BROKEN = {
    "base_input": [None, [], {}, "abc", [1], 3],
    "plus_input": [None, {}, "abc", ["abc"]],
    "atol": [None, "0", []],
    "prompt": [None, 3],
    "entry_point": [None, ["mean"]],
    "task_id": [None, 3],
}


@pytest.mark.parametrize("field", BROKEN)
def test_broken_rows(tmp_path, field):
    for value in BROKEN[field]:
        with pytest.raises(SystemExit, match=r"line 1: (not a task of HumanEval|field)"):
            read_tasks(write(tmp_path / "tasks.jsonl", [{**ROW, field: value}]))
    row = {name: value for name, value in ROW.items() if name != field}
    if field.endswith("input"):  # without it, it is a row of HumanEval
        assert read_tasks(write(tmp_path / "tasks.jsonl", [row])) == [row]
    else:
        with pytest.raises(SystemExit, match=r"line 1: (not a task of HumanEval|field)"):
            read_tasks(write(tmp_path / "tasks.jsonl", [row]))


def test_a_base_test_of_another_kind_is_refused(tmp_path):
    row = {name: value for name, value in ROW.items() if not name.endswith("input")}
    for value in 3, None, [], "def check(", "pass":
        with pytest.raises(SystemExit, match="line 1: its test cannot be used"):
            read_tasks(write(tmp_path / "tasks.jsonl", [{**row, "base_test": value}]))


def test_mbpp_plus_without_its_tuples_is_refused(tmp_path):
    path = write(tmp_path / "MbppPlus.jsonl", [{**ROW, "task_id": f"Mbpp/{number}"} for number in range(3)])
    with pytest.raises(SystemExit, match=r"line 1: .*tuples.*evalplus/mbppplus.*MbppPlus-OriginFmt") as stop:
        read_tasks(path)
    assert "\n" not in stop.value.code


NO_ASSERT = """

def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)


inputs = [['annie'], ['dawood']]
results = [True, False]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(check_str(*inp), exp, 0)
"""
COLOURS = """from itertools import combinations_with_replacement

def ref_func(l, n):
    return list(combinations_with_replacement(l, n))

inputs = [[['Red', 'Green'], 2], [['Dog', 'Cat', 'CatBird', 'Bird', 'Fish'], 77]]
for i, inp in enumerate(inputs):
    assert combinations_colors(*inp) == ref_func(*inp)
"""


def test_a_result_of_over_8_gb_is_left_out(tmp_path, sandbox, capsys):
    code = "from itertools import combinations_with_replacement\ndef combinations_colors(l, n):\n"
    row = {
        "task_id": 255,
        "code": f"{code}    return list(combinations_with_replacement(l, n))",
        "prompt": "Write a function to find combinations.",
        "test_imports": [],
        "test_list": ["assert combinations_colors(['Red'], 1) == [('Red',)]"],
        "test": COLOURS,
    }
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [row]))
    assert "warning: Mbpp/255" in capsys.readouterr().err
    (result,) = score(sandbox, [task], [reference(task)])
    assert (result.outcome, result.n_tests) == ("passed", 1)


STARTS = {  # what check_str returns
    "re.search('^[aeiou]', string)": True,
    "string[0] in 'aeiou'": True,
    "None": False,
    "True": False,
    "re.search('', string)": False,
}


@pytest.mark.parametrize("number", [737, 787, 794])
def test_tests_of_mbpp_plus_that_check_nothing(tmp_path, sandbox, capsys, number):
    row = {
        "task_id": number,
        "code": "import re\ndef check_str(string):\n  return re.search('^[aeiou]', string)",
        "prompt": "Does it start with a vowel?",
        "test_imports": [],
        "test_list": ["assert check_str('annie')", "assert not check_str('dawood') and sys.maxsize"],
        "test": NO_ASSERT,
    }
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", [row]))
    assert f"warning: Mbpp/{number}" in capsys.readouterr().err
    texts = [f"\nimport re\ndef check_str(string):\n    return {value}\n" for value in STARTS]
    for form in task, as_base(task):
        results = score(sandbox, [form] * len(STARTS), texts)
        assert dict(zip(STARTS, map(passes, results))) == STARTS


# ---- limits and time ----


def test_limits_of_evalplus(tmp_path):
    """One for preflight, training and evaluation, as all give their tasks to the sandbox."""
    (plus,) = read_tasks(write(tmp_path / "tasks.jsonl", [ROW]))
    hub = {"test": "def assertion(out, exp, atol):\n    assert out == exp\n"}
    plain = {"test": ROW["test"]}
    assert limits([plain], 5.0) == (5.0, 512)
    assert limits([plain, plus], 5.0) == limits([hub], 5.0) == (60.0, 4096)
    assert limits([plus], 90.0, 8192) == (90.0, 8192)
    body = "\n    x = bytearray(600 << 20)\n    return sum(xs) / len(xs)\n"
    with Sandbox(workers=1, timeout=2.0, tasks=[plus]) as sandbox:
        assert sandbox.workers[0].config[2:4] == (60.0, 4096)
        assert passes(score(sandbox, [plus], [body])[0])
    with Sandbox(workers=1, timeout=2.0, tasks=[plain]) as sandbox:
        assert score(sandbox, [plus], [body])[0].outcome == "memory"


def test_long_literals_stay_text(sandbox):
    """Those of the hub's files are up to 800 kB long: as syntax trees they took a minute at each start."""
    loop = "    for inp, exp in zip(inputs, results):\n        assert candidate(*inp) == exp\n"
    inputs = [[[(number, {number}, 1j)] * 30] for number in range(20)]
    test = f"def check(candidate):\n    inputs = {inputs}\n    results = [x[0] for x in inputs]\n{loop}"
    check = next(value for value in compile_test(test, "")[1].co_consts if hasattr(value, "co_consts"))
    assert str(inputs) in check.co_consts
    assert passes(sandbox.check("def f(x): return x", test, "f"))
    assert sandbox.check("def f(x): return x[:9]", test, "f").outcome == "failed"
    head = "def check(candidate):\n    n = 2\n"
    short = f"{head}    inputs = [[k * n] for k in range(n)]\n    results = [0, 2]\n{loop}"
    assert passes(sandbox.check("def f(x): return x", short, "f"))  # an eval() would not see n


# ---- EvalPlus's own files ----


@HAVE_FILES
@pytest.mark.parametrize(
    ("name", "seconds"),
    [("HumanEvalPlus", 5), ("HumanEvalPlus-OriginFmt", 10), ("MbppPlus-OriginFmt", 10)],
)
def test_files_load_fast(name, seconds):
    start = time.process_time()
    tasks = read_tasks(FILES / f"{name}.jsonl.gz")
    assert time.process_time() - start < seconds
    assert len(tasks) == (378 if "Mbpp" in name else 164)
    assert limits(tasks, 5.0) == (60.0, 4096)


@HAVE_FILES
def test_references_of_humaneval_plus(sandbox):
    """On the Mini file; benchmarks/references.py takes minutes for the others."""
    tasks = read_tasks(FILES / "HumanEvalPlus-Mini.jsonl.gz")
    results = score(sandbox, tasks, map(reference, tasks))
    assert [task["task_id"] for task, result in zip(tasks, results) if not passes(result)] == []
    some = [form for task in tasks[::8] for form in (task, as_base(task))]
    assert not any(map(passes, score(sandbox, some, [stub(task, "None") for task in some])))


def test_the_table_of_references(tmp_path):
    wrong = {**ROW, "task_id": "wrong", "canonical_solution": "    return 3.0\n"}
    weak = {**ROW, "task_id": "weak", "canonical_solution": "    return None\n"}
    del wrong["plus_input"]  # a row of HumanEval, then
    write(tmp_path / "plain.jsonl", [wrong])
    write(tmp_path / "plus.jsonl", [weak, ROW])
    done = run_script("benchmarks/references.py", tmp_path / "plain.jsonl", tmp_path / "plus.jsonl")
    _, _, plain, plus, *found = done.stdout.splitlines()
    assert plain.startswith("| plain.jsonl | 1 | 0 | - | 0 |")
    assert plus.startswith("| plus.jsonl | 2 | 2 | 2 | 1 |")
    assert found == [
        "plain.jsonl: wrong: reference: failed 'assert candidate([1.0, 3.0]) == 2'",
        "plus.jsonl: weak: stub: passed ''",
    ]


@HAVE_FILES
def test_the_release_of_mbpp_plus_is_refused():
    with pytest.raises(SystemExit, match="MbppPlus-OriginFmt"):
        read_tasks(FILES / "MbppPlus.jsonl.gz")
