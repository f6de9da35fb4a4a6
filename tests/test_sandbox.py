"""sandbox.py: what a program may try to earn a pass, to stay alive or to cost time, and what comes of it."""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path

import pytest

import sandbox as module
from sandbox import Sandbox, decode, encode, preflight, program, read_tasks, reference, score

ROOT = Path(__file__).resolve().parents[1]
HUMANEVAL = Path(__file__).resolve().parents[2] / "shared/humaneval/HumanEval.jsonl.gz"
HEAD = 'def add(a, b):\n    """Return a + b."""\n'
RIGHT = "    return a + b\n"
WRONG = "    return None\n"
TEST = """
MARK = "JUDGES_SECRET"
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-1, 1) == 0
    assert candidate(10**20, 1) == 100000000000000000001
"""
ONCE = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
TASK = {"task_id": "T/0", "prompt": HEAD, "canonical_solution": RIGHT, "test": TEST, "entry_point": "add"}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can become another user")


@pytest.fixture(scope="module")
def sandbox():
    os.environ["MY_TOKEN"] = "hf_secret"
    with Sandbox(workers=2, timeout=0.5, memory_mb=96) as sandbox:
        yield sandbox


def check(sandbox, body, test=TEST, head=HEAD):
    return sandbox.check(head + body, test, "add", head)


def answer(sandbox, body, expected):
    """Assert that a function without arguments returns `expected`, a piece of source."""
    code = "import os, sys\ndef add():\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    test = f"def check(candidate):\n    r = candidate()\n    assert r == {expected}, r"
    result = sandbox.check(code, test, "add")
    assert result.outcome == "passed", result


def descendants(pid):
    with contextlib.suppress(OSError):
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return children + [below for child in children for below in descendants(child)]
    return []


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition, seconds=2.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    return condition()


# -- programs against the task add(a, b) ---------------------------------------------------------------------

CHANNEL = """
def channel():
    import os, stat
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass
def reply(*lines):
    import os
    for line in lines:
        os.write(channel(), line + b"\\n")
"""
EQUAL = "def __eq__(self, other): return True\n        def __ne__(self, other): return False\n"
RELATIVES = """    import os
    def relatives():
        zygote = os.getppid()
        trainer = open(f"/proc/{zygote}/stat").read().split()[3]
        children = open(f"/proc/{zygote}/task/{zygote}/children").read().split()
        return {trainer, str(zygote), *children} - {str(os.getpid())}
"""
KILL_JUDGE = RELATIVES + """
    judge = max(map(int, relatives()))
    os.kill(judge, 9)
"""
ANYTHING_BUT_PASSED = "failed exception timeout memory violation syntax"

PROGRAMS = [
    # controls
    ("right", RIGHT, "passed"),
    ("wrong", WRONG, "failed"),
    ("no body", "", "failed"),
    ("syntax error", "    retur a\n", "syntax"),
    ("mixed tabs", "\treturn a\n        return b\n", "syntax"),
    ("NUL byte", RIGHT + "\0", "syntax"),
    ("lone surrogate", "    return '\ud800'\n", "syntax"),
    ("5000 parentheses", "    return " + "(" * 5000 + ")" * 5000 + "\n", "syntax memory exception"),
    ("async def", "async def add(a, b): return a + b\n", "failed"),
    ("name never defined", "del add\n", "exception"),
    ("main guard", RIGHT + "if __name__ == '__main__':\n    while True: pass\n", "passed"),
    ("dataclass", """\
    return C(a).x + b
from dataclasses import dataclass
@dataclass
class C:
    x: 'int'
""", "passed"),
    ("a module that is not preloaded", "    import xml.etree.ElementTree, codecs\n"
     "    return a + b if codecs.encode('abc', 'rot13') == 'nop' else 0\n", "passed"),
    ("prints a lot", "    print('x' * 10**6)\n    return a + b\n", "passed"),
    ("atexit sleeps", RIGHT + "import atexit, time\natexit.register(time.sleep, 10**6)\n", "passed"),
    # time
    ("loop at import", RIGHT + "while True: pass\n", "timeout"),
    ("loop in call", "    while True: pass\n", "timeout"),
    ("swallow everything", """\
    while True:
        try:
            while True: pass
        except BaseException: pass
""", "timeout"),
    ("sleep", "    import time; time.sleep(10**6)\n", "timeout"),
    ("signals reset and ignored", """\
    import signal
    signal.alarm(0)
    for s in range(1, 65):
        try: signal.signal(s, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
""", "timeout"),
    ("signals blocked", """\
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True: pass
""", "timeout"),
    ("loop in C", "    return sum(range(10**12))\n", "timeout"),
    ("10**10**8", "    return 10**10**8\n", "timeout memory"),
    ("regex", "    import re\n    re.match('(a+)+$', 'a' * 64 + 'b')\n", "timeout"),
    ("endless __str__", """\
    class E(Exception):
        def __str__(self):
            while True: pass
    raise E
""", "timeout"),
    ("thread left behind", """\
    import threading
    def f():
        while True: pass
    threading.Thread(target=f).start()
    return a + b
""", "passed exception"),
    ("collisions", "    return {i * (2**61 - 1) for i in range(200000)}\n", "timeout failed"),
    # memory
    ("64 GB", "    return bytearray(64 << 30)\n", "memory"),
    ("append forever", "    l = []\n    while True: l.append(bytearray(1 << 20))\n", "memory"),
    ("swallow MemoryError", """\
    l = []
    while True:
        try: l.append(bytearray(1 << 20))
        except MemoryError: pass
""", "timeout"),
    ("string doubling", "    s = 'x'\n    while True: s += s\n", "memory exception"),
    ("lift the limit", """\
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return bytearray(1 << 30)
""", "exception memory"),
    ("memfd", """\
    import os
    f = os.memfd_create('x')
    while True: os.write(f, b'x' * (1 << 20))
""", "exception"),
    ("recursion", "    return add(a, b)\n", "exception"),
    ("C stack", """\
    import sys
    sys.setrecursionlimit(10**9)
    class X:
        def __repr__(self): return repr([self])
    return repr(X())
""", "exception memory timeout"),
    ("10**7 numbers", "    return list(range(10**7))\n", "failed timeout memory violation exception"),
    ("cyclic list", "    l = []; l.append(l)\n    return l\n", "exception"),
    ("endless iterator", "    return iter(int, 1)\n", "memory timeout exception"),
    ("iterator of itself", """\
    class T:
        def __iter__(self): return self
        def __next__(self): return T()
    return T()
""", "memory timeout exception"),
    # processes
    ("daemon", """\
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(60)
    return None
""", "exception failed"),
    ("subprocess", "    import subprocess\n    subprocess.run(['sleep', '60'])\n", ANYTHING_BUT_PASSED),
    ("exec", "    import os\n    os.execv('/bin/sh', ['sh', '-c', 'exit 0'])\n", "exception"),
    ("kill own group", "    import os\n    os.killpg(0, 9)\n", "exception"),
    ("kill the zygote", """\
    import os
    os.kill(os.getppid(), 9)
""", "violation" if os.geteuid() == 0 else "error"),
    ("kill the judge", KILL_JUDGE, "violation" if os.geteuid() == 0 else "error"),
    # leaving early
    ("sys.exit(0) at import", RIGHT + "import sys\nsys.exit(0)\n", "exception"),
    ("os._exit(0) at import", RIGHT + "import os\nos._exit(0)\n", "exception"),
    ("exit() at import", RIGHT + "exit()\n", "exception"),
    ("sys.exit(0) in call", "    import sys; sys.exit(0)\n", "exception"),
    ("os._exit(0) in call", "    import os; os._exit(0)\n", "exception"),
    ("quit() in call", "    quit()\n", "exception"),
    ("SystemExit", "    raise SystemExit(0)\n", "exception"),
    ("KeyboardInterrupt", "    raise KeyboardInterrupt\n", "exception"),
    ("AssertionError", "    raise AssertionError\n", "exception"),
    ("PermissionError", "    open('/proc/1/environ').read()\n", "violation exception failed"),
    ("null pointer", "    import ctypes; ctypes.string_at(0)\n", "exception"),
    ("abort", "    import os; os.abort()\n", "exception"),
    ("exception named like ours", """\
    class CandidateDied(BaseException): pass
    raise CandidateDied
""", "exception"),
    ("__str__ that raises", """\
    class E(Exception):
        def __str__(self): raise SystemExit
    raise E
""", "exception"),
    # cheating the comparison
    ("equals everything", """\
    class T:
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        __hash__ = None
    return T()
""", "failed"),
    ("int that equals everything", f"    class T(int):\n        {EQUAL}    return T(7)\n", "failed"),
    ("str that equals everything", f"    class T(str):\n        {EQUAL}    return T()\n", "failed"),
    ("__class__ lies", f"    class T:\n        __class__ = int\n        {EQUAL}    return T()\n", "failed"),
    ("array-like", """\
    class T:
        def __eq__(self, other): return self
        def __bool__(self): return True
    return T()
""", "failed"),
    ("mock.ANY", "    import unittest.mock\n    return unittest.mock.ANY\n", "failed exception"),
    ("NaN", "    return float('nan')\n", "failed"),
    ("patched builtins", """\
    import builtins
    builtins.AssertionError = SystemExit
    builtins.all = builtins.any = lambda *a: True
""", "failed"),
    ("own __builtins__", WRONG + "__builtins__ = {'AssertionError': Exception}\n", "failed"),
    ("integer 3 overwritten", "    import ctypes\n    ctypes.memset(id(3) + 24, 0, 4)\n", "failed exception"),
    ("redefined check", WRONG + "def check(candidate): return True\n", "failed"),
    ("redefined candidate", WRONG + "class candidate: pass\n", "failed"),
    ("patched operator", """\
    import operator, unittest
    operator.eq = lambda a, b: True
    unittest.TestCase.assertEqual = print
""", "failed"),
    ("swapped sys.modules", """\
    import sys
    sys.modules['builtins'] = sys.modules['__main__'] = None
""", "failed exception"),
    ("patched json.dumps", "    import json\n    json.dumps = lambda o, **k: '{\"ok\": true}'\n", "failed"),
    ("print a pass", "    print('passed', 'OK', '[\"passed\", \"\", 3, 3]')\n", "failed"),
    ("trace hooks", """\
    import sys
    sys.settrace(lambda *a: None)
    sys.setprofile(lambda *a: None)
""", "failed"),
    # looking for test and verdict
    ("frame walk", """\
    import sys
    f = sys._getframe()
    while f:
        for d in (f.f_globals, f.f_locals):
            for v in list(d.values()):
                if isinstance(v, dict) and 'outcome' in v: v.update(outcome='passed', n_passed=9, n_tests=9)
                if 'JUDGES' '_SECRET' in repr(v): return a + b
        f = f.f_back
""", "failed"),
    ("gc search", """\
    import gc
    m = '_'.join(['JUDGES', 'SECRET'])
    for o in gc.get_objects():
        for s in gc.get_referents(o):
            if type(s) is str and m in s and s is not m: return a + b
""", "failed timeout"),
    ("memory search", """\
    for line in open('/proc/self/maps'):
        start, end = (int(x, 16) for x in line.split()[0].split('-'))
        try:
            f = open('/proc/self/mem', 'rb'); f.seek(start)
            if b'JUDGES' + b'_SECRET' in f.read(end - start): return a + b
        except (OSError, OverflowError): pass
""", "failed"),
    ("memory of trainer, zygote and judge", RELATIVES + """
    for pid in relatives():
        try: open(f"/proc/{pid}/mem", "rb"); return a + b
        except OSError: pass
""", "failed"),
    ("files of trainer, zygote and judge", RELATIVES + """
    for pid in relatives():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if "memfd" in os.readlink(f"/proc/{pid}/fd/{fd}"): return a + b
        except OSError: pass
""", "failed"),
    ("verdict to every descriptor", """\
    import os
    for fd in range(64):
        try: os.write(fd, b'["passed", "", 3, 3]')
        except OSError: pass
""", ANYTHING_BUT_PASSED),
    # lying on the socket
    ("a reply that says passed", """\
    reply(*[b'{"outcome": "passed", "names": [], "text": ""}'] * 9)
""" + CHANNEL, "violation"),
    ("replies ahead", "    reply(*[b'{\"ok\": [\"o\", 0]}'] * 9)\n" + CHANNEL, "failed"),
    ("garbage", "    reply(b'\\xff' * 99999)\n" + CHANNEL, "violation"),
    ("not a reply", "    reply(b'\"xokx\"')\n" + CHANNEL, "violation"),
    ("unknown tag", "    reply(b'{\"ok\": [\"zz\", 1]}')\n" + CHANNEL, "violation"),
    ("deep reply", "    reply(b'{\"ok\": ' + b'[' * 200000)\n" + CHANNEL, "violation"),
    ("endless line", """\
    import os
    while True: os.write(channel(), b'x' * 65536)
""" + CHANNEL, ANYTHING_BUT_PASSED),
    ("closed channel", "    import os\n    os.close(channel())\n    return a + b\n" + CHANNEL, "exception"),
]


@pytest.mark.parametrize("name, body, outcomes", PROGRAMS, ids=[name for name, *_ in PROGRAMS])
def test_program(sandbox, name, body, outcomes):
    result = check(sandbox, body)
    assert result.outcome in outcomes.split(), result
    assert result.wall < 3.9                           # 5 * timeout + 1, and a little
    running = [worker for worker in sandbox.workers if worker.process]
    assert sorted(descendants(os.getpid())) == sorted(worker.process.pid for worker in running)
    assert all(os.listdir(worker.directory) == [] for worker in running)
    assert check(sandbox, RIGHT).outcome == "passed"


# -- tests with a twist --------------------------------------------------------------------------------------

ALL_MAP = "def check(candidate):\n    assert all(map(candidate, [1, 2, 3], [4, 5, 6]))\n"
CALL_BACK = 'MARK = "ok"\ndef check(candidate):\n    assert candidate(1)(candidate(2)) == "ok"\n'
EITHER = """def check(candidate):
    try:
        assert candidate(1, 2) == 4
    except AssertionError:
        assert candidate(1, 2) == 3
"""
ALSO = EITHER + "    assert candidate(0, 0) == 0\n"
BARE_EXCEPT = """def check(candidate):
    for i in range(3):
        try:
            r = candidate(i, 1)
        except:
            continue
        assert r == i + 1
    assert True
"""
RAISES = """def check(candidate):
    try:
        candidate(1, 2)
        assert False
    except ValueError:
        pass
"""
LOOP = "def check(candidate):\n    for x in candidate(1, 2):\n        assert x == 3\n"
UNCHECKED = "def check(candidate):\n    if candidate(1, 2) != 3:\n        raise RuntimeError\n"
KINDS = "def check(candidate):\n    r = candidate(1, 2)\n    assert (type(r), r) == (dict, {1: 2}), r\n"

TWISTS = [
    ("StopIteration in map", "    raise StopIteration\n", ALL_MAP, "exception"),
    ("a function as result", "    pass\nadd = lambda x: eval if x == 1 else \"'ok'\"\n", CALL_BACK, "passed"),
    ("eval stays away", "    pass\nadd = lambda x: eval if x == 1 else 'MARK'\n", CALL_BACK, "exception"),
    ("alternatives", RIGHT, EITHER, "passed"),
    ("alternatives, one more", RIGHT, ALSO, "passed"),
    ("neither alternative", WRONG, EITHER, "failed"),
    ("AssertionError is no alternative", "    raise AssertionError\n", EITHER, "exception"),
    ("death under a bare except", "    import os; os._exit(0)\n", BARE_EXCEPT, "exception"),
    ("garbage under a bare except", "    reply(b'?')\n" + CHANNEL, BARE_EXCEPT, "violation"),
    ("expected exception", "    raise ValueError('no')\n", RAISES, "passed"),
    ("expected exception, subclass", "    class E(ValueError): pass\n    raise E\n", RAISES, "passed"),
    ("unexpected exception", "    raise TypeError\n", RAISES, "exception"),
    ("no exception", RIGHT, RAISES, "failed"),
    ("a loop that never runs", "    return []\n", LOOP, "exception"),
    ("a loop that runs", "    return [3, 3]\n", LOOP, "passed"),
    ("generator", "    yield 3\n", LOOP, "passed"),
    ("no assert at all, right", RIGHT, UNCHECKED, "passed"),
    ("no assert at all, wrong", WRONG, UNCHECKED, "exception"),
    ("subclass as base", "    import collections as c\n    return c.Counter({1: 2})\n", KINDS, "passed"),
    ("no check", RIGHT, "x = 1\n", "exception"),
    ("test leaves", RIGHT, "raise SystemExit(0)\n", "exception"),
    ("test has an add of its own", WRONG, "def add(a, b):\n    return a + b\n" + TEST, "failed"),
    ("test has a syntax error later", RIGHT, "def check(candidate):\n    eval('(')\n", "exception"),
    ("test hangs", RIGHT, "def check(candidate):\n    while True: pass\n", "timeout"),
    ("test does not compile", RIGHT, "def check(:\n", "error"),
]


@pytest.mark.parametrize("name, body, test, outcome", TWISTS, ids=[name for name, *_ in TWISTS])
def test_twist(sandbox, name, body, test, outcome):
    result = check(sandbox, body, test)
    assert result.outcome == outcome, result


def test_helpers_come_from_the_prompt(sandbox):
    head = "def double(x):\n    return 2 * x\n\ndef add(a, b):"
    test = "def check(candidate):\n    assert candidate(1, 2) == double(2) - 1\n"
    assert check(sandbox, " return a + b\n", test, head).outcome == "passed"
    assert check(sandbox, " return 9\ndef double(x): return 5\n", test, head).outcome == "failed"


# -- counting ------------------------------------------------------------------------------------------------


def test_fraction(sandbox):
    right, part = check(sandbox, RIGHT), check(sandbox, "    return 3\n")
    assert (right.n_passed, right.n_tests, right.fraction, right.message) == (3, 3, 1.0, "")
    assert (part.outcome, part.n_passed, part.n_tests, part.fraction) == ("failed", 1, 3, 1 / 3)
    assert part.message == "assert candidate(-1, 1) == 0"
    assert right.wall > right.cpu > 0
    late = check(sandbox, "    while a < 0: pass\n" + RIGHT)
    assert (late.outcome, late.n_passed, late.n_tests) == ("timeout", 1, 3)
    assert late.wall > 0.4
    death = check(sandbox, "    if a == -1: exit()\n" + RIGHT)
    assert (death.outcome, death.n_passed, death.n_tests) == ("exception", 2, 3)
    assert death.message == "SystemExit: "
    assert check(sandbox, "    return [3] * 4\n", LOOP).n_tests == 4
    after = check(sandbox, RIGHT, TEST + "    while candidate(1, 1): pass\n")
    assert (after.outcome, after.n_passed, after.n_tests) == ("timeout", 3, 4)


# -- what a program finds ------------------------------------------------------------------------------------


def test_surroundings(sandbox):
    answer(sandbox, "return sorted(os.environ)", "['LC_CTYPE', 'PYTHONHASHSEED', 'PYTHONHOME', 'TMPDIR']")
    answer(sandbox, "import signal\nreturn signal.alarm(0)", "4")          # 5 * 0.5 + 1, rounded up
    answer(sandbox, "import importlib.util\nreturn importlib.util.find_spec('sandbox')", "None")
    answer(sandbox, "return 'torch' in sys.modules", "False")
    links = """
links = set()
for fd in range(64):
    try: links.add(os.readlink(f'/proc/self/fd/{fd}').split(':')[0])
    except OSError: pass
return sorted(links)"""
    answer(sandbox, links, repr(sorted({"/dev/null", sys.base_prefix, "socket"})))
    limits = "[r.getrlimit(getattr(r, 'RLIMIT_' + n))[0] for n in 'AS CPU FSIZE CORE NOFILE NPROC'.split()]"
    answer(sandbox, f"import resource as r\nreturn {limits}", "[96 << 20, 3, 1 << 20, 0, 64, 0]")
    answer(sandbox, "return open('/proc/self/status').read().count('CapEff:\\t' + 16 * '0')", "1")
    answer(sandbox, "return open('/proc/self/status').read().count('NoNewPrivs:\\t1')", "1")


def test_judge_holds_one_socket_too(sandbox):
    """A test that could reach the zygote's socket could report for it."""
    test = "import os\ndef check(c):\n    assert channel()\n    os.close(channel())\n    assert not channel()"
    assert check(sandbox, RIGHT, CHANNEL + test).outcome == "passed"


def test_every_job_gets_an_empty_directory(sandbox):
    writes = """    import os, tempfile
    os.makedirs("x/y")
    os.chmod("x", 0)
    open("f", "w")
    tempfile.mkstemp()
    tempfile.mkdtemp()
"""
    before = set(os.listdir("/tmp"))
    for _ in range(3):
        assert check(sandbox, writes + RIGHT, ONCE).outcome == "passed"
        answer(sandbox, "return os.listdir('.') + os.listdir(os.environ['TMPDIR'])", "[]")
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("tmp")]
    assert all(os.listdir(worker.directory) == [] for worker in sandbox.workers)


def test_very_deep_tree_is_removed_too(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")                        # a disk may take seconds
    deep = "    import os\n    for i in range(3000):\n        os.mkdir('x')\n        os.chdir('x')\n"
    with Sandbox(workers=1) as sandbox:
        assert check(sandbox, deep + RIGHT, ONCE).outcome == "passed"
        assert os.listdir(sandbox.workers[0].directory) == []


def test_same_hashes_and_random_numbers_everywhere(sandbox):
    code = "import random\ndef add(a, b): return hash('x'), random.random()\n"
    test = "def check(candidate):\n    assert False, candidate(1, 2)\n"
    results = sandbox.map([(code, test, "add", "")] * 8)
    assert len({result.message for result in results}) == 1


def ask_from_fresh_trainer(expression, **options):
    """Return what `expression` is in a candidate whose trainer was started with `options`."""
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from sandbox import Sandbox
        with Sandbox(workers=1) as sandbox:
            code = "import os, sys\\ndef f(): return {expression}"
            test = "def check(candidate):\\n    assert False, candidate()"
            print(sandbox.check(code, test, "f").message.removeprefix("assert False, candidate() "))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert not done.stderr
    return done.stdout.strip()


def test_stdin_is_empty():
    assert ask_from_fresh_trainer("repr(sys.stdin.read())", input="what the user types") == "''"


@needs_root
def test_root_becomes_somebody_without_rights(sandbox, tmp_path):
    who = "os.getresuid(), os.getresgid(), os.getgroups()"
    nobody = (module.CANDIDATE_UID,) * 3
    assert ask_from_fresh_trainer(who, extra_groups=[0, 4]) == str((nobody, nobody, []))
    mine = Path("/tmp") / f"{tmp_path.name}-{os.getpid()}"
    mine.write_text("mine")
    result = check(sandbox, f"    open({str(mine)!r}, 'w')\n")
    assert (result.outcome, mine.read_text()) == ("violation", "mine")
    mine.unlink()


# -- many jobs -----------------------------------------------------------------------------------------------


def test_map_keeps_the_order_and_uses_all_workers(sandbox):
    nap = "    import time\n    time.sleep({})\n    return a + b + {}\n"
    bodies = [nap.format(random.Random(i).random() / 20, i % 2) for i in range(20)]
    jobs = [(HEAD + body, TEST, "add", HEAD) for body in bodies]
    done = []
    results = sandbox.map(jobs, lambda: done.append(threading.get_ident()))
    assert [result.outcome for result in results] == ["passed", "failed"] * 10
    assert done == [threading.get_ident()] * 20
    start = time.monotonic()
    sandbox.map([(HEAD + nap.format(10, 0), TEST, "add", HEAD)] * 2)
    assert time.monotonic() - start < 0.95                                     # one after the other: 1 s


def test_workers_default_to_the_available_cores():
    with Sandbox() as sandbox:
        assert len(sandbox.workers) == len(os.sched_getaffinity(0))


# -- accidents -----------------------------------------------------------------------------------------------

SLEEP = "    import time; time.sleep(0.4)\n"


def kill_zygotes_in_mid_job(worker, n):
    """Kill n zygotes of a worker, one after the other, each when its children run; return the children."""
    killed, children = [], []
    for _ in range(n):
        def in_mid_job():
            pid = worker.process and worker.process.pid
            return pid not in (None, *killed) and len(descendants(pid)) == 2 and pid

        killed.append(wait_for(in_mid_job, 5))
        children += descendants(killed[-1])
        os.kill(killed[-1], signal.SIGKILL)
    return children


@pytest.mark.parametrize("n, outcome", [(1, "passed"), (2, "error")])
def test_dead_zygote_is_replaced_and_the_job_retried_once(n, outcome):
    with Sandbox(workers=1, timeout=5) as sandbox, ThreadPoolExecutor() as pool:
        children = pool.submit(kill_zygotes_in_mid_job, sandbox.workers[0], n)
        result = check(sandbox, SLEEP + RIGHT)
        assert len(children.result()) == 2 * n
        assert (result.outcome, result.fraction) == (outcome, float(outcome == "passed")), result
        assert ("zygote" in result.message) == (outcome == "error")
        assert check(sandbox, RIGHT).outcome == "passed"
        os.kill(sandbox.workers[0].process.pid, signal.SIGKILL)                    # an idle one
        assert check(sandbox, RIGHT).outcome == "passed"


def test_children_die_with_their_zygote():
    with Sandbox(workers=1, timeout=30) as sandbox, ThreadPoolExecutor() as pool:
        children = pool.submit(kill_zygotes_in_mid_job, sandbox.workers[0], 2)
        check(sandbox, "    import time; time.sleep(20)\n")
        assert wait_for(lambda: not any(map(alive, children.result())))


def test_dead_judge_is_an_error():
    with Sandbox(workers=1, timeout=5) as sandbox:
        test = "import os\ndef check(candidate):\n    os._exit(0)\n"
        assert check(sandbox, RIGHT, test).outcome == "error"
        assert check(sandbox, RIGHT).outcome == "passed"


def test_interrupted_check_leaves_no_late_report():
    def interrupt(*_):
        raise KeyboardInterrupt

    with Sandbox(workers=1, timeout=5) as sandbox:
        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            check(sandbox, SLEEP + RIGHT)
        signal.signal(signal.SIGALRM, old)
        assert check(sandbox, RIGHT).outcome == "passed"
        assert check(sandbox, WRONG).outcome == "failed"


TRAINER = """
import sys
sys.path.insert(0, {root!r})
from sandbox import Sandbox
with Sandbox(workers=2, timeout=60) as sandbox:
    print("ready", flush=True)
    job = ("def f():\\n    while True: pass\\n", "def check(c):\\n    assert c()\\n", "f", "")
    sandbox.map([job] * 2)
"""


def test_nothing_outlives_the_trainer(tmp_path):
    code = TRAINER.format(root=str(ROOT))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    trainer.stdout.readline()
    pids = wait_for(lambda: len(found := descendants(trainer.pid)) == 6 and found, 5)
    assert pids and len(os.listdir(tmp_path)) == 2
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert wait_for(lambda: not any(map(alive, pids)))
    assert wait_for(lambda: os.listdir(tmp_path) == [])


def test_close_removes_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(descendants(os.getpid()))
    with Sandbox(workers=2, timeout=1) as sandbox:
        assert len(os.listdir(tmp_path)) == 2
        sandbox.map([(HEAD + "    open('x', 'w')\n    while True: pass\n", TEST, "add", HEAD)] * 2)
    assert os.listdir(tmp_path) == []
    assert set(descendants(os.getpid())) == before


DAEMON = """
import sys
sys.path.insert(0, {root!r})
from sandbox import Sandbox
code = '''
import os, time
def f():
    out, into = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.write(into, str(os.getpid()).encode())
            time.sleep(5)
        os._exit(0)
    return int(os.read(out, 20))
'''
with Sandbox(workers=1, timeout=3) as sandbox:
    result = sandbox.check(code, "def check(candidate):\\n    assert False, candidate()", "f")
    print(result.message.split()[-1])
    sys.stdin.read()
"""


def test_daemons_are_found_and_killed(tmp_path):
    """Daemons need a fork, so this runs a copy of sandbox.py that allows processes."""
    text = (ROOT / "sandbox.py").read_text()
    assert text.count(', "NPROC": 0') == 1
    (tmp_path / "sandbox.py").write_text(text.replace(', "NPROC": 0', ""))
    command = [sys.executable, "-c", DAEMON.format(root=str(tmp_path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        daemon = int(trainer.stdout.readline())
        assert not alive(daemon)


def test_nobody_may_look_into_the_trainer(sandbox):
    assert module.libc.prctl(3, 0, 0, 0, 0) == 0                               # PR_GET_DUMPABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="all of root's files in /proc are root's")
def test_nobody_may_look_into_a_zygote(sandbox):
    for worker in sandbox.workers:
        assert os.stat(f"/proc/{worker.process.pid}/environ").st_uid == 0      # not dumpable


# -- a busy machine ------------------------------------------------------------------------------------------


def test_a_busy_core_fails_nobody():
    cores = os.sched_getaffinity(0)
    hogs = []
    try:
        os.sched_setaffinity(0, {min(cores)})      # inherited: five processes on one core
        with Sandbox(workers=1, timeout=0.3) as sandbox:
            burn = "    from time import process_time as t\n    end = t() + {}\n    while t() < end: pass\n"
            hog = [sys.executable, "-S", "-c", "while True: pass"]
            hogs = [subprocess.Popen(hog, start_new_session=True) for _ in range(4)]
            result = check(sandbox, burn.format(0.15) + RIGHT, ONCE)
            assert result.outcome == "passed", result
            assert result.wall > 0.4, "the core was not busy, so this test has shown nothing"
            late = check(sandbox, burn.format(5) + RIGHT, ONCE)
            assert late.outcome == "timeout" and late.wall < 4, late
    finally:
        os.sched_setaffinity(0, cores)
        for hog in hogs:
            hog.kill()
            hog.wait()


def test_the_hard_limit_ends_a_job_that_gets_no_core_at_all(monkeypatch):
    class Poller:
        def poll(self, milliseconds):
            time.sleep(min(milliseconds, 100) / 1000)
            return time.monotonic() - start > 5

    monkeypatch.setattr(module, "queued", lambda pid: 1000.0)
    start = time.monotonic()
    assert module.supervise(Poller(), [1, 2], 0.02) is True
    assert 1.1 <= time.monotonic() - start < 2


# -- codec ---------------------------------------------------------------------------------------------------

VALUES = [
    None, True, 0, -1, 2**62, -(2**20000), 1.5, float("inf"), -0.0, 2 + 3j, "\ud800 \u2028 \n", b"\x00\xff",
    [], [1, [2, (3, {4}, frozenset({5}))]], {"a": [1], (1, 2): {3: None}, None: 1, 1.5: b"x"}, (((),),),
    {True: "i", "o": "n"}, range(1, 9, 2),
]


def same(a, b):
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return same(list(a.items()), list(b.items()))
    return repr(a) == repr(b) if type(a) is float else a == b             # -0.0 == 0.0


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_codec_round_trip(value):
    assert same(decode(json.loads(json.dumps(encode(value))), None), value)


def test_codec_sends_the_base_value_of_subclasses():
    class Lying(int):
        def __eq__(self, other):
            return True

    color = IntEnum("color", "red")
    word = type("word", (str,), {"__str__": lambda self: "other"})
    point = namedtuple("point", "x y")(1, color.red)
    pairs = [(Lying(7), 7), (color.red, 1), (word("a"), "a"), (point, (1, 1)), (Counter("a"), {"a": 1})]
    for value, base in pairs:
        assert same(decode(json.loads(json.dumps(encode(value))), None), base)


def test_codec_keeps_other_objects_at_home():
    kept = []
    assert encode([print, len], kept) == ["l", ["o", 0], ["o", 1]] and kept == [print, len]
    assert decode(["o", 7], lambda index: f"handle {index}") == "handle 7"
    with pytest.raises(TypeError, match="cannot pass function"):
        encode([lambda: 1])


MALFORMED = [["zz", 1], [], [[], 1], ["i", 5], ["d", 1], ["s", ["l"]], ["b", "x"], ["c", "a", "b"]]


@pytest.mark.parametrize("message", MALFORMED, ids=str)
def test_codec_refuses(message):
    with pytest.raises((ValueError, TypeError, LookupError)):
        decode(message, None)


# -- tasks and reward ----------------------------------------------------------------------------------------


def lines(*tasks):
    return "".join(json.dumps(task) + "\n" for task in tasks).encode()


def without(field):
    return {key: value for key, value in OTHER.items() if key != field}


OTHER = {**TASK, "task_id": "T/1", "extra": [1]}
BROKEN_FILES = [
    ("empty", b"", "no task"),
    ("blank lines", b"\n \n", "no task"),
    ("broken json", lines(TASK) + b"\n{'a': 1}\n", "line 3: not JSON"),
    ("cut short", lines(TASK)[:-9], "line 1: not JSON"),
    ("not an object", b"[1]\n", "line 1.*task_id"),
    ("no test", lines(TASK, without("test")), "line 2.*test"),
    ("number as prompt", lines({**TASK, "prompt": 3}), "line 1.*prompt"),
    ("null entry point", lines({**TASK, "entry_point": None}), "line 1.*entry_point"),
    ("no solution", lines(without("canonical_solution")), "line 1.*canonical_solution"),
    ("twice", lines(TASK, OTHER, TASK), "line 3.*T/0"),
    ("latin-1", '{"task_id": "\u00e9"}'.encode("latin-1"), "cannot be read.*utf-8"),
]


@pytest.mark.parametrize("name, content, message", BROKEN_FILES, ids=[name for name, *_ in BROKEN_FILES])
def test_read_tasks_refuses_in_one_line(tmp_path, name, content, message):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=message) as stop:
        read_tasks(path)
    assert str(path) in str(stop.value) and "\n" not in str(stop.value)


def test_read_tasks_refuses_what_is_no_file(tmp_path):
    (tmp_path / "a.gz").write_bytes(lines(TASK))
    (tmp_path / "b.gz").write_bytes(gzip.compress(lines(*[TASK] * 99))[:-20])
    none = ("none.jsonl", "no such file.*prepare_humaneval")
    for name, message in (none, (".", "irectory"), ("a.gz", "gzip"), ("b.gz", "cannot be read")):
        with pytest.raises(SystemExit, match=message) as stop:
            read_tasks(tmp_path / name)
        assert "\n" not in str(stop.value)


def test_read_tasks(tmp_path):
    odd = {**TASK, "task_id": "T/2", "prompt": "# \u2028\n"}
    text = lines(TASK) + b"\r\n\n" + lines(OTHER) + json.dumps(odd, ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    assert read_tasks(tmp_path / "a.jsonl") == read_tasks(str(tmp_path / "a.jsonl.gz")) == [TASK, OTHER, odd]


def test_program_and_reference():
    assert reference(TASK) == "\n    return a + b\n"
    assert program(TASK, reference(TASK)) == HEAD + RIGHT


def test_score(sandbox):
    done = []
    results = score(sandbox, [TASK] * 3, ["\n" + RIGHT, "\n" + WRONG, RIGHT], lambda: done.append(1))
    assert [result.outcome for result in results] == ["passed", "failed", "syntax"] and len(done) == 3
    with pytest.raises(ValueError):
        score(sandbox, [TASK] * 2, ["\n" + RIGHT])


def test_preflight_passes(sandbox):
    tasks = [{**TASK, "task_id": f"T/{i}"} for i in range(9)]
    assert preflight(sandbox, tasks) == "preflight: 9/9 reference solutions pass, 0/49 cheats pass"


def test_preflight_stops(sandbox):
    tasks = [{**TASK, "task_id": f"T/{i}"} for i in range(14)]
    broken = [{**task, "canonical_solution": "    return a - b\n"} for task in tasks[:12]]
    message = r"reference.* T/0, .*T/9, \.\.\. and 2 more .*failed.*candidate\(1, 2\) == 3"
    with pytest.raises(SystemExit, match=message):
        preflight(sandbox, broken + tasks[12:])
    weak = {**TASK, "task_id": "W", "test": ONCE.replace("== 3", "in (3, None)")}
    with pytest.raises(SystemExit, match="cheat passes for W "):
        preflight(sandbox, tasks + [weak])
    untested = {**TASK, "task_id": "U", "test": "def check(:\n"}
    with pytest.raises(SystemExit, match="sandbox itself failed on U .*error.*compile") as stop:
        preflight(sandbox, tasks + [untested])
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("test", ["assert candidate", "candidate == 1", "candidate(1, 2)"])
def test_preflight_finds_tests_that_check_nothing(sandbox, test):
    with pytest.raises(SystemExit, match="cheat passes for T/0 "):
        preflight(sandbox, [{**TASK, "test": f"def check(candidate):\n    {test}\n"}])


# -- HumanEval -----------------------------------------------------------------------------------------------

needs_humaneval = pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"{HUMANEVAL.name} is not there")


@needs_humaneval
def test_humaneval_preflight():
    with Sandbox(timeout=5) as sandbox:
        line = preflight(sandbox, read_tasks(HUMANEVAL))
    assert line == "preflight: 164/164 reference solutions pass, 0/204 cheats pass"


HELPERS = [(32, "poly", "0.0"), (38, "encode_cyclic", "s"), (50, "encode_shift", "s")]


@needs_humaneval
@pytest.mark.parametrize("number, helper, value", HELPERS)
def test_humaneval_helpers_cannot_be_redefined(sandbox, number, helper, value):
    task = read_tasks(HUMANEVAL)[number]
    cheat = f"\n    return {value}\n\n\ndef {helper}(s, x=0):\n    return {value}\n"
    together = {}
    exec(program(task, cheat) + task["test"], together)
    together["check"](together[task["entry_point"]])                           # in one process it passes
    result, = score(sandbox, [task], [cheat])
    assert (result.outcome, result.n_passed) == ("failed", 0), result


# -- other systems -------------------------------------------------------------------------------------------


def test_other_systems_get_one_clear_line():
    code = """
import sys, concurrent.futures, subprocess, tempfile, socket, ctypes
sys.platform = "win32"
sys.modules["resource"] = None
import sandbox
sandbox.Sandbox()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("sandbox.py needs Linux")
