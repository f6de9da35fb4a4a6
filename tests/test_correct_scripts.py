"""Scripts between stdin and stdout: right ones pass, what counts as the same, what it costs the trainer."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import correct_scripts
import pytest
from conftest import copy_sandbox, run_script
from test_attacks import ORDINARY_USER, is_root, python_for
from test_sandbox import patched_zygotes

from sandbox import Result, Sandbox
from sandbox_worker import MAX_THREADS, same_output

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, require=()) as sandbox:
        yield sandbox


def test_right_scripts_pass(sandbox):
    assert len(correct_scripts.SCRIPTS) >= 140
    assert correct_scripts.run(sandbox) == {}


@pytest.mark.skipif(not is_root, reason="the other test runs as an ordinary user already")
def test_right_scripts_pass_as_an_ordinary_user():
    python = python_for(ORDINARY_USER)
    if not python:
        pytest.skip("an ordinary user may start no Python here")
    with tempfile.TemporaryDirectory() as folder:
        copy_sandbox(folder, "tests/correct_scripts.py")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        identity = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        command = [python, f"{folder}/tests/correct_scripts.py"]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, **identity)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["failures"] == {} and output["report"]["uid"] == ORDINARY_USER


# -- comparison ----------------------------------------------------------------------------------------------

SAME = {
    "1 2\n": ["1 2", " 1\t2 ", "1 2\n\n", "1\x0b2", "1 2\r\n"],
    "1\r\n2": ["1\n2", "1 \n 2\n"],
    "1.5": ["1.50", "+1.5", "15e-1", "1.5000009", ".15E1", "01.5"],
    "1e5": ["100000", "1E5", "100000.05"],
    "1000000.0": ["1000000.9", "1e6", "1000000"],
    "0.0": ["-0", "1e-7", "0"],
    "": ["", "\n \n"],
    "\u00e9": ["\u00e9"],
}
DIFFERENT = {
    "1 2": ["1", "12", "1 2 3", "1\n2", "1\xa02", "2 1", "1,2"],
    "1\n2": ["1 2", "1\n\n2", "2\n1", "1\n2\n3", "1\r2", "1\u20282"],
    "1": ["1.0", "+1", "01", "1e0", "\uff11", "1_0", "\u0661", "1.0000001"],
    "10000000": ["10000001", "1e7"],
    "1.5": ["1_0.5", "1.500003", "1,5", "nan", "inf", "1.5f", "0x1.8p0", "\uff11.5", "1.5.", "1 .5", "1.5\0"],
    "10.5": ["1_0.5", "10.5_0"],
    "1000000.0": ["1000002.0"],
    "1e400": ["1e500", "inf", "7"],
    "nan": ["NaN", "0"],
    "inf": ["1e999", "Infinity"],
    "2.5": ["1e999", "-1e999"],
    "a.b": ["a.B", "a. b"],
    "yes": ["Yes", "YES", "yes."],
    "": ["0", "a"],
    "\ufffd": ["?"],
}


@pytest.mark.parametrize("expected", SAME, ids=ascii)
def test_what_counts_as_the_same(expected):
    for text in SAME[expected]:
        assert same_output(text.encode(), expected.encode()), text


@pytest.mark.parametrize("expected", DIFFERENT, ids=ascii)
def test_what_counts_as_different(expected):
    for text in DIFFERENT[expected]:
        assert not same_output(text.encode(), expected.encode()), text


@pytest.mark.parametrize("output", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbf\xbd\xff"])
def test_bytes_that_are_no_text_equal_none(sandbox, output):
    code = f"import os\nos.write(1, {output!r})"
    expected = ["\ufffd", "\ufffd\ufffd", "?", output.decode("latin-1"), output.decode(errors="ignore")]
    assert sandbox.check_io(code, [("", text) for text in expected]).n_passed == 0
    assert sandbox.check_io("print('\\ud800')", [("", "?")]).outcome == "exception"  # as in Python


@pytest.mark.parametrize("n", [10, 100_000])  # the second is compared in the sandbox
@pytest.mark.parametrize("end, outcome", [("1.50", "passed"), ("1.6", "failed"), ("", "failed")])
def test_long_output(sandbox, n, end, outcome):
    result = sandbox.check_io(f"print('0.50 ' * {n} + '{end}')", [("", "0.5 " * n + "1.5")])
    assert (result.outcome, result.n_passed) == (outcome, int(outcome == "passed"))


def test_no_token_takes_quadratic_time():
    for word in (b"1" * 10**6, b"1" * 10**6 + b"x", b"1" * 10**6 + b".5x", b"e" * 10**6, b"." * 10**6):
        start = time.thread_time()
        assert not same_output(word, word + b"1.5")
        assert not same_output(word, b"1.5")
        assert time.thread_time() - start < 1


def test_each_case_has_its_result(sandbox):
    code = "n = int(input())\nwhile n == 3: pass\nprint(n if n < 9 else 1 / 0)"
    result = sandbox.check_io(code, [("1", "1"), ("2", "3"), ("9", "9"), ("3", "3"), ("4", "4"), ("5", "5")])
    outcomes = [case.outcome for case in result.cases]
    assert outcomes == ["passed", "failed", "exception", "timeout", "timeout", "timeout"]
    assert [case.message for case in result.cases] == [""] * 4 + ["not run"] * 2
    assert (result.outcome, result.n_passed, result.n_tests, result.fraction) == ("failed", 1, 6, 1 / 6)
    calls = sandbox.check_io("def f(x): return abs(x)", [([1], 1), ([-2], -2)], "f")
    assert [case.n_passed for case in calls.cases] == [1, 0]
    assert sandbox.check_io(code, []) == Result("error", message="there is no case")


KEYS = [
    ("{1: 2}", {"1": 2}, "passed"),  # JSON has no numbers as keys
    ("{1: 2, 3: {4: (5,)}}", {"1": 2, "3": {"4": [5]}}, "passed"),
    ("{'1': 2}", {"1": 2}, "passed"),
    ("{'1': 2}", {1: 2}, "failed"),
    ("{1: 2}", {1: 2}, "passed"),
    ("{True: 2}", {"true": 2}, "failed"),
    ("{None: 2}", {"null": 2}, "failed"),
    ("{1.5: 2}", {"1.5": 2}, "failed"),
    ("{1: 2, '1': 3}", {"1": 3}, "failed"),
    ("{1: 3, '1': 3}", {"1": 3, "2": 3}, "failed"),
    ("{1: 3, '1': 3}", {"1": 3}, "failed"),
    ("{}", [], "failed"),
    ("[('a', 1)]", {"a": 1}, "failed"),
    ("{'a': 1}", [["a", 1]], "failed"),
    ("'1'", 1, "failed"),
    ("(1, (2,))", [1, [2]], "passed"),
    ("[1]", [1, 2], "failed"),
    ("float('inf')", float("inf"), "passed"),
]


@pytest.mark.parametrize("value, expected, outcome", KEYS)
def test_json_results(sandbox, value, expected, outcome):
    result = sandbox.check_io(f"def f(): return {value}", [([], expected)], "f")
    assert result.outcome == outcome, result


# -- reference solutions of APPS -----------------------------------------------------------------------------

APPS = {
    "0001": ({"inputs": ["1 2\n"], "outputs": ["3\n"]}, ["print(sum(map(int, input().split())))", "return"]),
    "0002": (
        {"inputs": [["1", "2"]], "outputs": [["3"]]},
        ["print(int(input()) + int(input()))", "print(4)"],
    ),
    "0003": (
        {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1]], [[2]]]},
        ["class Solution:\n    def f(self, x: int) -> List[int]: return [x]"],
    ),
    "0004": ({"fn_name": "f", "inputs": [[1]], "outputs": [1]}, ["def f(x): return x", "f = None"]),
}
TABLE = """\
| problem | form | cases | solutions | fail | share | reasons |
|---|---|---:|---:|---:|---:|---|
| 0001 | stdin | 1 | 2 | 1 | 50 % | 1 syntax |
| 0002 | stdin | 1 | 2 | 1 | 50 % | 1 failed |
| 0003 | calls, results in lists | 2 | 1 | 0 | 0 % | - |
| 0004 | calls | 1 | 2 | 1 | 50 % | 1 exception |
| all 4 | | 5 | 7 | 3 | 42.9 % | |
0001 solution 1: syntax: 'return' outside function (<solution>, line 1)
0002 solution 1: failed: in case 1 ''
"""


def test_references_of_apps(tmp_path):
    for name, (tests, solutions) in APPS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "input_output.json").write_text(json.dumps(tests))
        (tmp_path / name / "solutions.json").write_text(json.dumps(solutions))
    done = run_script("benchmarks/references.py", tmp_path, "--list")
    assert done.stdout.startswith(TABLE) and done.stdout.count("\n") == TABLE.count("\n") + 1, done.stdout
    (tmp_path / "none").mkdir()
    assert "folder" in run_script("benchmarks/references.py", tmp_path / "none").stderr
    assert "no such file" in run_script("benchmarks/references.py", tmp_path / "missing").stderr


# -- what the trainer pays -----------------------------------------------------------------------------------

BIG = 1_000_000  # lines
NASTY = {
    "endless": ("while True: print(1)", "1\n" * BIG),
    "short lines": (f"print('1\\n' * {BIG})", "1\n" * (BIG - 1) + "2\n"),
    "short lines, short expected": ("print('1\\n' * 500000)", "1"),
    "empty lines": (f"print('\\n' * {2 * BIG} + '1')", "1 \n" * BIG),
    "words in one line": (f"print('1 ' * {BIG})", "1 " * (BIG - 1) + "2"),
    "decimals": (f"print('1.50 ' * {BIG // 4})", "1.5 " * (BIG // 4)),
    "decimal lines": (f"print('1.50\\n' * {BIG // 4})", "1.5\n" * (BIG // 4)),
    "white space": (f"print('1' + ' ' * {2 * BIG})", "1\n" * BIG),
    "one long word": (f"print('1' * {2 * BIG})", "1." * BIG),
    "just short enough": ("print('1.50 ' * 6000)", "1.5 " * 6000),
    "just short enough, lines": ("print('1\\n' * 16000)", "1 \n" * 15999 + "2"),
    "not text": ("import os\nos.write(1, b'\\xff' * 4000000)", "1\n" * BIG),
}


@pytest.mark.alone
@pytest.mark.parametrize("name", NASTY)
def test_the_trainer_does_not_compute_on_what_a_program_printed(sandbox, name):
    code, expected = NASTY[name]
    sandbox.check_io("print(1)", [("", "1")])
    start = time.thread_time()
    sandbox.check_io(code, [("", expected)])
    assert time.thread_time() - start < 0.1


# -- isolation -----------------------------------------------------------------------------------------------

CLOCKS = """
import ctypes, os, time
def seen():
    found = []
    for pid in (os.getppid(), os.getppid() + 1, os.getpid() - 1, os.getpid(), 1):
        for flags in (0, 1, 2, 4, 5, 6):
            for call in (time.clock_gettime, time.clock_getres):
                try: found.append(call(~pid << 3 | flags))
                except OSError: pass
            span = (ctypes.c_long * 2)(0, 1)
            number = (ctypes.c_long * 2)()
            if ctypes.CDLL(None).clock_nanosleep(~pid << 3 | flags, 0, span, number) == 0: found.append(pid)
        try: found.append(os.sched_getaffinity(pid))
        except OSError: pass
    return found
"""


def test_clocks_and_cores_of_others(sandbox):
    test = "def check(f):\n    assert f() == []"
    result = sandbox.check(CLOCKS, test, "seen")
    assert result.outcome == "passed", result
    assert sandbox.check_io(CLOCKS + "print(len(seen()))", [("", "0")]).outcome == "passed"


FOLDER = """
import os, sys
def f():
    texts = [repr(sys.argv), repr(sys.orig_argv), repr(sys.path), repr(dict(os.environ))]
    frame = sys._getframe()
    while frame:
        texts += [frame.f_code.co_filename, repr(frame.f_globals.get("__file__"))]
        frame = frame.f_back
    return "\\n".join(texts + [repr(vars(module).get("__file__")) for module in list(sys.modules.values())])
"""


def test_no_program_learns_the_trainers_folder(sandbox):
    test = f"def check(f):\n    assert {str(ROOT)!r} not in f()\n    assert 'solution.py' in f()"
    assert sandbox.check(FOLDER, test, "f").outcome == "passed"
    code = f"{FOLDER}print({str(ROOT)!r} in f(), sys.argv)"
    assert sandbox.check_io(code, [("", "False ['solution.py']")]).outcome == "passed"
    zygotes = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in candidates_parents(sandbox)]
    assert zygotes and all(str(ROOT).encode() not in line for line in zygotes)


def candidates_parents(sandbox):
    """Return the pids of the zygotes, of which each may be below firejail."""
    tops = [worker.process.pid for worker in sandbox.workers if worker.process]
    for pid in tops:
        for task in Path(f"/proc/{pid}/task").iterdir():
            tops += map(int, (task / "children").read_text().split())
    return [pid for pid in tops if Path(f"/proc/{pid}/comm").read_text().startswith("python")]


BOMB = """
import _thread, threading, time
threading.stack_size(1 << 15)
def f(n=3000):
    for _ in range(n):
        try: _thread.start_new_thread(time.sleep, (99,))
        except RuntimeError: break
    time.sleep({})
"""


def test_a_program_with_many_threads_takes_none_from_others():
    pool = correct_scripts.SCRIPTS["threads: a pool of 16"]
    with Sandbox(workers=2, timeout=2, require=()) as sandbox:
        jobs = [(BOMB.format(1) + "f()", [("", "")]), pool] * 5
        results = sandbox.map(jobs, method=sandbox.check_io)
    assert {result.outcome for result in results[1::2]} == {"passed"}


@pytest.mark.parametrize("n, outcome", [(2 * MAX_THREADS, "timeout"), (MAX_THREADS - 8, "passed")])
def test_the_supervisor_ends_what_has_too_many_threads(n, outcome):
    """Where programs share their user with others, as those of an ordinary user do, no limit can."""
    no_limit = "set_limit = worker.resource.setrlimit\n"
    no_limit += "worker.resource.setrlimit = lambda name, pair: name == 6 or set_limit(name, pair)"
    with patched_zygotes(no_limit), Sandbox(workers=1, timeout=9, require=()) as sandbox:
        result = sandbox.check_io(BOMB.format(1) + f"f({n})", [("", "")])
    assert result.outcome == outcome, result
    assert outcome == "passed" or result.wall < 0.9


@pytest.mark.skipif(not is_root, reason="an ordinary user's limit counts the trainer's processes, too")
def test_roots_programs_have_a_limit_of_their_own(sandbox):
    code = "import resource\nprint(*resource.getrlimit(resource.RLIMIT_NPROC))"
    assert sandbox.check_io(code, [("", f"{MAX_THREADS} {MAX_THREADS}")]).outcome == "passed"
