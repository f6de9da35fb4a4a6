"""sandbox.py: what a program may try to earn a pass, to stay alive or to cost time, and what comes of it."""

import contextlib
import ctypes
import datetime
import gc
import gzip
import json
import os
import pkgutil
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path

import pytest
from attacks import CHANNEL, EITHER, HEAD, TEST
from conftest import copy_sandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandbox as module
import sandbox_worker
from sandbox import Sandbox, preflight, program, read_tasks, reference, score, shaped
from sandbox_worker import decode, encode

ROOT = Path(__file__).resolve().parents[1]
HUMANEVAL = Path(__file__).resolve().parents[2] / "shared/humaneval/HumanEval.jsonl.gz"
RIGHT = "    return a + b\n"
WRONG = "    return None\n"
ONCE = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
TASK = {"task_id": "T/0", "prompt": HEAD, "canonical_solution": RIGHT, "test": TEST, "entry_point": "add"}
needs_firejail = pytest.mark.skipif(not shutil.which("firejail"), reason="firejail is not installed")
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


@contextlib.contextmanager
def layers(*names, **options):
    """A sandbox with these kernel layers only, which runs whatever is not protected."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "LAYERS", names)
        with Sandbox(**{"workers": 1, "timeout": 1, "wrapper": (), "require": (), **options}) as sandbox:
            yield sandbox


PATCHED = """import os, sys
here = {here!r}
sys.path.insert(0, {root!r})
import sandbox_worker as worker
{patch}
worker.zygote()
"""


@contextlib.contextmanager
def patched_zygotes(patch):
    """Let new zygotes run this code first; return a folder that they can read, as `here`."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        os.chmod(folder, 0o755)
        Path(folder, "patched.py").write_text(PATCHED.format(here=folder, root=str(ROOT), patch=patch))
        monkeypatch.setattr(sandbox_worker, "__file__", f"{folder}/patched.py")
        yield folder


def descendants(pid):
    """Return the pids below a process, whichever of its threads started them."""
    children = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [below for child in children for below in descendants(child)]


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


# -- tests with a twist --------------------------------------------------------------------------------------

ALSO = EITHER + "    assert candidate(0, 0) == 0\n"
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
    ("alternatives, one more", RIGHT, ALSO, "passed"),
    ("expected exception", "    raise ValueError('no')\n", RAISES, "passed"),
    ("expected exception, subclass", "    class E(ValueError): pass\n    raise E\n", RAISES, "passed"),
    ("unexpected exception", "    raise TypeError\n", RAISES, "exception"),
    ("no exception", RIGHT, RAISES, "failed"),
    ("a loop that never runs", "    return []\n", LOOP, "exception"),
    ("a loop that runs", "    return [3, 3]\n", LOOP, "passed"),
    ("generator", "    yield 3\n", LOOP, "passed"),
    ("no assert at all, right", RIGHT, UNCHECKED, "passed"),
    ("no assert at all, wrong", WRONG, UNCHECKED, "exception"),
    ("subclass as base", "    return type('D', (dict,), {})({1: 2})\n", KINDS, "passed"),
    ("Counter as Counter", "    import collections as c\n    return c.Counter({1: 2})\n", KINDS, "failed"),
    ("no check", RIGHT, "assert 1\n", "exception"),
    ("test leaves", RIGHT, "raise SystemExit(0)\n", "exception"),
    ("test has an add of its own", WRONG, "def add(a, b):\n    return a + b\n" + TEST, "failed"),
    ("test has a syntax error later", RIGHT, "def check(candidate):\n    assert eval('(')\n", "exception"),
    ("test hangs", RIGHT, "def check(candidate):\n    while True: pass\n    assert 1\n", "timeout"),
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


REWARDS = {  # outcome, share of the tests: binary, pass_rate, structured
    ("passed", 1.0): (1, 1, 1),
    ("failed", 0.0): (0, 0, -0.3),
    ("failed", 0.5): (0, 0.5, 0.35),
    ("syntax", 0.0): (0, 0, -1),
    ("exception", 0.5): (0, 0.5, -0.6),
    ("timeout", 0.25): (0, 0.25, -0.6),
    ("memory", 0.0): (0, 0, -0.6),
    ("violation", 0.0): (0, 0, -0.6),
}


def test_rewards_for_partial_success(capfd):
    names = "binary", "pass_rate", "structured"
    for (outcome, fraction), expected in REWARDS.items():
        assert [shaped(outcome, fraction, name) for name in names] == pytest.approx(expected), outcome
    assert capfd.readouterr().err == ""
    assert shaped("error", 0.0, "binary") == 0
    assert "the sandbox itself failed on a program" in capfd.readouterr().err  # never in silence


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
    assert (death.outcome, death.n_passed, death.n_tests) == ("exception", 1, 3)
    assert death.message == "SystemExit:"
    assert check(sandbox, "    return [3] * 4\n", LOOP).n_tests == 4
    after = check(sandbox, RIGHT, TEST + "    while candidate(1, 1): pass\n")
    assert (after.outcome, after.n_passed, after.n_tests) == ("timeout", 3, 4)


# -- what a program finds ------------------------------------------------------------------------------------


def test_surroundings(sandbox):
    answer(
        sandbox, "return sorted(os.environ)", "['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'PYTHONHOME', 'USER']"
    )
    answer(sandbox, "import signal\nreturn signal.alarm(0)", "4")  # 5 * 0.5 + 1, rounded up
    for name in ("sandbox", "sandbox_worker"):
        answer(sandbox, f"import importlib.util\nreturn importlib.util.find_spec('{name}')", "None")
    answer(sandbox, "return 'torch' in sys.modules", "False")
    links = """
links = set()
for fd in range(64):
    try: links.add(os.readlink(f'/proc/self/fd/{fd}').split(':')[0])
    except OSError: pass
return sorted(links)"""
    answer(sandbox, links, repr(sorted({"/dev/null", sys.base_prefix, "socket"})))
    limits = "[r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in 'AS CPU FSIZE CORE NOFILE'.split()]"
    expected = [(limit, limit) for limit in (96 << 20, 3, 1 << 20, 0, 64)]
    answer(sandbox, f"import resource as r\nreturn {limits}", repr(expected))


def test_alarm_is_armed_in_the_judge_too(sandbox):
    test = "import signal\ndef check(c):\n    assert signal.alarm(0) == 4"
    assert check(sandbox, RIGHT, test).outcome == "passed"


def test_status_of_candidate_and_judge():
    """Without Landlock they can read it."""
    with layers() as sandbox:
        for name, value in (("CapEff", 16 * "0"), ("CapPrm", 16 * "0"), ("NoNewPrivs", "1")):
            code = f"'{name}:\\t{value}' in open('/proc/self/status').read()"
            assert (
                sandbox.check(f"def f(): return {code}", "def check(f):\n    assert f()", "f").fraction == 1
            )
            assert sandbox.check("def f(): pass", f"def check(f):\n    assert {code}", "f").fraction == 1


def test_judge_holds_one_socket_too(sandbox):
    """A test that could reach the zygote's socket could report for it."""
    test = "import os\ndef check(c):\n    assert channel()\n    os.close(channel())\n    assert not channel()"
    assert check(sandbox, RIGHT, CHANNEL + test).outcome == "passed"


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
def test_root_becomes_somebody_without_rights():
    code = "def f():\n    import os\n    return os.getresuid(), os.getresgid(), os.getgroups()"
    with layers() as sandbox, layers() as another:
        status = [
            Path(f"/proc/{box.workers[0].process.pid}/status").read_text() for box in (sandbox, another)
        ]
        users = [int(re.search(r"Uid:\t(\d+)", text)[1]) for text in status]
        assert users[0] != users[1] and min(users) >= 1 << 30  # they share no limit
        assert sandbox.report == another.report
        for box, user in zip((sandbox, another), users):
            ids = (user,) * 3
            result = box.check(code, f"def check(f):\n    assert f() == {(ids, ids, [])}", "f")
            assert result.outcome == "passed", result


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
    assert time.monotonic() - start < 0.95  # one after the other: 1 s


def test_compiling_tests_in_many_threads(sandbox):
    """In Python 3.11 ast.parse fails if a finalizer lets another thread parse in the middle of it."""

    class Slow:
        def __init__(self):
            self.me = self

        def __del__(self):
            time.sleep(1e-4)

    def job(number):
        for _ in range(5):
            Slow()
        return sandbox.check(HEAD + RIGHT, f"{TEST}    assert {list(range(200))} # {number}", "add")

    threshold = gc.get_threshold()
    gc.set_threshold(100)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert {result.outcome for result in pool.map(job, range(50))} == {"passed"}
    finally:
        gc.set_threshold(*threshold)


def test_workers_default_to_the_available_cores():
    with Sandbox() as sandbox:
        assert len(sandbox.workers) == len(os.sched_getaffinity(0))


# -- accidents -----------------------------------------------------------------------------------------------

SLEEP = "    import time; time.sleep(0.4)\n"
wrapped = pytest.mark.parametrize(
    "wrapper", ["()", pytest.param("'auto'", marks=needs_firejail)], ids=["bare", "firejail"]
)


def zygote_at_work(worker):
    """Return the pid of a worker's zygote, which may be below firejail, while it has its two children."""
    top = worker.process and worker.process.pid
    for pid in [top, *descendants(top)] if top else []:
        with contextlib.suppress(OSError):
            if len(descendants(pid)) == 2 and Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                return pid
    return None


def kill_zygotes_in_mid_job(worker, n):
    """Kill n zygotes of a worker, one after the other, each when its children run; return the children."""
    killed, children = [], []
    for _ in range(n):
        pid = wait_for(lambda: (pid := zygote_at_work(worker)) not in killed and pid, 5)
        assert pid
        children += descendants(pid)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    return children


@pytest.mark.parametrize("n, outcome", [(1, "passed"), (2, "error")])
def test_dead_zygote_is_replaced_and_the_job_retried_once(n, outcome):
    with Sandbox(workers=1, timeout=5) as sandbox, ThreadPoolExecutor() as pool:
        children = pool.submit(kill_zygotes_in_mid_job, sandbox.workers[0], n)
        result = check(sandbox, SLEEP + RIGHT)
        assert len(children.result()) == 2 * n
        assert (result.outcome, result.fraction) == (outcome, float(outcome == "passed")), result
        assert ("the sandbox failed" in result.message) == (outcome == "error")
        assert check(sandbox, RIGHT).outcome == "passed"
        os.kill(sandbox.workers[0].process.pid, signal.SIGKILL)  # an idle one
        assert check(sandbox, RIGHT).outcome == "passed"


@wrapped
def test_children_die_with_their_zygote(wrapper):
    with Sandbox(workers=1, timeout=30, wrapper=eval(wrapper)) as sandbox, ThreadPoolExecutor() as pool:
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
with Sandbox(workers=2, timeout=60, wrapper={wrapper}) as sandbox:
    print("ready", flush=True)
    job = ("def f():\\n    while True: pass\\n", "def check(c):\\n    assert c()\\n", "f", "")
    sandbox.map([job] * 2)
"""


@wrapped
def test_nothing_outlives_the_trainer(wrapper):
    code = TRAINER.format(root=str(ROOT), wrapper=wrapper)
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    trainer.stdout.readline()

    def all_at_work():  # two zygotes, each with two children; firejail itself is two or three processes more
        pids = descendants(trainer.pid)
        names = [Path(f"/proc/{pid}/comm").read_text() for pid in pids]
        return sum(name.startswith("python") for name in names) == 6 and pids

    pids = wait_for(all_at_work, 5)
    assert pids
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert wait_for(lambda: not any(map(alive, pids)), 1)


@wrapped
def test_close_leaves_no_process(wrapper):
    before = set(descendants(os.getpid()))
    with Sandbox(workers=2, timeout=0.3, wrapper=eval(wrapper)) as sandbox, ThreadPoolExecutor() as pool:
        jobs = [(HEAD + "    while True: pass\n", TEST, "add", HEAD)] * 2
        started = pool.submit(sandbox.map, jobs)
        pids = wait_for(lambda: len(pids := set(descendants(os.getpid())) - before) >= 6 and pids, 5)
        started.result()
    assert pids and wait_for(lambda: not any(map(alive, pids)), 1)
    assert set(descendants(os.getpid())) == before


def test_a_sandbox_that_nobody_holds_closes_itself():
    """As in a notebook, where an exception left the loop and the cell runs again."""
    before = set(descendants(os.getpid()))
    sandbox = Sandbox(workers=1, wrapper=())
    running = sandbox.pool.submit(sandbox.check, HEAD + SLEEP + RIGHT, ONCE, "add")
    pids = set(descendants(os.getpid())) - before
    sandbox = Sandbox(workers=1, wrapper=())  # the first is dropped by its own thread, after the job
    assert running.result().outcome == "passed" and pids
    assert wait_for(lambda: not any(map(alive, pids)))
    del sandbox
    assert set(descendants(os.getpid())) - before - pids == set()  # waited for, no zombie
    with pytest.raises(TypeError):
        Sandbox(no_such_option=1)


def test_files_of_a_job_are_closed(sandbox):
    check(sandbox, RIGHT)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        check(sandbox, RIGHT)
        sandbox.check_io("print(1)", [("", "1")])
        sandbox.check(HEAD + RIGHT, "def check(:", "add")
    assert len(os.listdir("/proc/self/fd")) == before


DAEMON = """
import os, sys, time
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
"""


def test_daemons_are_found_and_killed():
    """Daemons need a fork, so this takes away the limit that forbids processes."""
    no_limit = "set_limit = worker.resource.setrlimit\n"
    no_limit += (
        "worker.resource.setrlimit = lambda name, pair: name == 6 or set_limit(name, pair)"  # RLIMIT_NPROC
    )
    with patched_zygotes(no_limit), layers() as sandbox:
        assert not sandbox.report["processes"]
        message = sandbox.check(DAEMON, "def check(f):\n    assert False, f()", "f").message
        daemon = int(message.split()[-1])
        assert daemon > 1 and not alive(daemon)


@pytest.mark.parametrize("names, dumpable", [("'landlock',", 1), ("'seccomp',", 0)])
def test_without_landlock_nobody_may_look_into_the_trainer(names, dumpable):
    code = f"""
import sandbox
sandbox.LAYERS = ({names})
with sandbox.Sandbox(workers=1, wrapper=(), require=()):
    print(sandbox.sandbox_worker.libc.prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""
    assert run_python(code) == (0, f"{dumpable}\n", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="all of root's files in /proc are root's")
def test_nobody_may_look_into_a_zygote():
    with layers() as sandbox:
        assert os.stat(f"/proc/{sandbox.workers[0].process.pid}/environ").st_uid == 0  # not dumpable


# -- a busy machine ------------------------------------------------------------------------------------------


BURN = """    from time import process_time
    end = process_time() + {}
    while process_time() < end: pass
"""


@pytest.mark.alone
def test_a_busy_machine_fails_nobody():
    """A program that needs 35 % of its time passes 8 of 8 times beside four endless loops per core."""
    hog = [sys.executable, "-S", "-c", "while True: pass"]
    hogs = [subprocess.Popen(hog, start_new_session=True) for _ in range(4 * len(os.sched_getaffinity(0)))]
    try:
        with Sandbox(timeout=0.4) as sandbox:
            endless = (HEAD + "    while True: pass\n", ONCE, "add")
            late, *results = sandbox.map(
                [endless, *[(HEAD + BURN.format(0.35 * 0.4) + RIGHT, ONCE, "add")] * 8]
            )
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert [result.outcome for result in results] == ["passed"] * 8
    assert max(result.wall for result in results) > 0.4, "the cores were not busy: this has shown nothing"
    assert late.outcome == "timeout" and late.wall < 3.5, late  # 5 * 0.4 + 1 and the judge's end


@pytest.mark.alone
def test_an_endless_program_is_stopped_within_twice_its_limit():
    """In CPU seconds where it computes, in wall-clock seconds where it sleeps."""
    with Sandbox(workers=1, timeout=0.5) as sandbox:
        loop = check(sandbox, "    while True: pass\n")
        assert loop.outcome == "timeout" and loop.wall >= 0.5 and 0.3 < loop.cpu < 1, loop
        sleep = check(sandbox, "    import time; time.sleep(60)\n")
        assert sleep.outcome == "timeout" and 0.5 <= sleep.wall < 1, sleep


@pytest.mark.alone
def test_the_hard_limit_ends_a_job_that_gets_no_core_at_all(monkeypatch):
    class Poller:
        def poll(self, milliseconds):
            time.sleep(min(milliseconds, 100) / 1000)
            return time.monotonic() - start > 5

    monkeypatch.setattr(sandbox_worker, "queued", lambda pid: 1000.0)
    with subprocess.Popen(["sleep", "9"]) as process:
        start = time.monotonic()
        assert sandbox_worker.supervise(Poller(), [process.pid], 0.02) is True
        assert 1.1 <= time.monotonic() - start < 2
        process.kill()


@pytest.mark.alone
def test_threads_give_a_program_no_more_time():
    """They make its first thread wait for a core, which costs nothing; so the CPU time counts, too."""
    body = """    import hashlib, threading
    data = bytes(1 << 24)
    def spin():
        while True: hashlib.sha256(data)  # without the GIL
    for _ in range(9): threading.Thread(target=spin).start()
    spin()
"""
    with Sandbox(workers=1, timeout=0.5) as sandbox:
        result = check(sandbox, body)
    allowed = 0.5 * len(os.sched_getaffinity(0)) + 0.5  # all cores for 0.5 s; the hard limit would be 3.5 s
    assert result.outcome == "timeout" and result.cpu < allowed, result


# -- codec ---------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    0,
    -1,
    2**62,
    -(2**20000),
    1.5,
    float("inf"),
    -0.0,
    2 + 3j,
    "\ud800 \u2028 \n",
    b"\x00\xff",
    [],
    [1, [2, (3, {4}, frozenset({5}))]],
    {"a": [1], (1, 2): {3: None}, None: 1, 1.5: b"x"},
    (((),),),
    {True: "i", "o": "n"},
    range(1, 9, 2),
    Decimal("1.50"),
    [Fraction(1, 3), {datetime.timedelta(1, 2, 3): bytearray(b"\xff")}],
    datetime.datetime(2024, 2, 29, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)), fold=1),
    (datetime.date(1, 1, 1), datetime.time(1, 2, 3, 4), slice(1, None, -1)),
    [deque([1, [2]], 3), deque(), array("d", [1.5]), array("i")],
    [OrderedDict([(2, 1), (1, [3])]), Counter("aab"), defaultdict(list, {1: [2]}), Counter(), OrderedDict()],
    [{1: [2]}.items(), {1: 2}.keys(), int, ValueError, Decimal],
    namedtuple("Point", "x y")(1, [2]),
]


def data(value):
    """Encode what has no other objects in it."""
    return encode(value, None)


def same(a, b):
    if hasattr(a, "_fields"):
        return (type(a).__name__, a._asdict()) == (type(b).__name__, b._asdict())
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return same(list(a.items()), list(b.items()))
    return repr(a) == repr(b) if type(a) is float else a == b  # -0.0 == 0.0


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_codec_round_trip(value):
    assert same(decode(json.loads(json.dumps(data(value))), None), value)


def test_codec_as_its_comment_says():
    word, number = type("word", (str,), {})("a"), type("number", (float,), {})(1.5)
    pairs = [
        (1 << 62, ["i", "0x4000000000000000"]),
        (word, ["u", "a"]),
        (number, ["e", 1.5]),
        (b"\x00\xff", ["b", "00ff"]),
        (2 + 3j, ["c", 2.0, 3.0]),
        (range(4), ["r", 0, 4, 1]),
        ({"a": None}, ["d", ["t", "a", None]]),
        ([1], ["l", 1]),
        ((1,), ["t", 1]),
        ({1}, ["s", 1]),
        (frozenset({1}), ["f", 1]),
        ({1: 2}.keys(), ["k", 1]),
        ({1: 2}.values(), ["v", 2]),
        ({1: 2}.items(), ["w", ["t", 1, 2]]),
        (Decimal("0.1"), ["x", "decimal.Decimal", "0.1"]),
        (namedtuple("Point", "x")(1), ["q", "Point", ["t", "x"], 1]),
        (int, ["y", "builtins.int"]),
        (print, ["o", 0]),
    ]
    for value, message in pairs:
        assert encode(value, lambda rest: ["o", 0]) == message
    assert {message[0] for _, message in pairs} == {*sandbox_worker.BUILD, "o"} - {"n"}


def test_codec_sends_the_base_value_of_subclasses():
    class Lying(int):
        def __eq__(self, other):
            return True

    color = IntEnum("color", "red")
    word = type("word", (str,), {"__str__": lambda self: "other"})
    counter = type("counter", (Counter,), {})
    pairs = [
        (Lying(7), 7),
        (color.red, 1),
        (word("a"), "a"),
        (counter("a"), {"a": 1}),
    ]
    for value, base in pairs:
        assert same(decode(json.loads(json.dumps(data(value))), None), base)


def test_codec_keeps_other_objects_at_home():
    kept = []
    assert encode([print, len], lambda value: kept.append(value) or ["o", len(kept)]) == [
        "l",
        ["o", 1],
        ["o", 2],
    ]
    assert kept == [print, len]
    assert decode(["o", 7, "x"], lambda index, names: f"handle {index} {names}") == "handle 7 x"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.booleans(), st.text()), inner)
        | st.frozensets(st.integers() | st.binary())
        | st.sets(st.text() | st.none())
    ),
    max_leaves=20,
)


@given(plain)
def test_codec_round_trip_of_anything(value):
    assert same(decode(json.loads(json.dumps(data(value))), None), value)


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([*sandbox_worker.BUILD, "o"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.builds(
            lambda tag, parts: [tag, *parts],
            st.sampled_from([*sandbox_worker.BUILD, "o"]),
            st.lists(inner, max_size=3),
        )
    ),
    max_leaves=20,
)
EXACT = {
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    complex,
    range,
    dict,
    list,
    tuple,
    set,
    frozenset,
    type(iter([])),
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    type,
    *map(pkgutil.resolve_name, sandbox_worker.STANDARD),
}


def parts(value):
    if type(value) in (list, tuple, set, frozenset, dict, type(iter([]))):
        for part in value.items() if type(value) is dict else value:
            yield part
            yield from parts(part)


@given(any_json)
@settings(max_examples=200)
def test_decode_makes_exact_builtins_only(message):
    handle = object()
    try:
        value = decode(json.loads(json.dumps(message)), lambda index, names="": handle)
    except Exception:  # judge() ends the job at any of them
        return
    for part in [value, *parts(value)]:
        is_tuple = isinstance(part, tuple) and hasattr(part, "_fields")
        assert part is handle or type(part) in EXACT or is_tuple
        assert type(part) is not type or part is not type


reply = st.builds(json.dumps, any_json) | st.builds(
    lambda *pairs: json.dumps(dict(pairs)),
    *[st.tuples(st.sampled_from(["ok", "outcome", "names", "text", "x"]), any_json)] * 3,
)
UNGUESSABLE = "def check(candidate):\n    assert candidate() == 'a value that nobody sends'\n    assert True"


@given(st.lists(reply.map(str.encode) | st.binary(), min_size=1, max_size=3), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_reply_passes_or_kills_the_judge(sandbox, replies, in_call):
    lie = f"for line in {replies!r}: reply(line)"
    code = f"{CHANNEL}\ndef add():\n    {lie}\n" if in_call else f"{CHANNEL}\n{lie}\ndef add(): pass\n"
    result = sandbox.check(code, UNGUESSABLE, "add")
    assert result.outcome in ("failed", "exception", "violation", "memory", "timeout"), result


MALFORMED = [
    ["x", "os.system", "true"],
    ["x", "builtins.type", "T", ["t"], ["d"]],
    ["x", "builtins.eval", "1"],
    ["x", "datetime.date", "no"],
    ["y", "builtins.type"],
    ["y", "builtins.eval"],
    ["y", "os.system"],
    ["q", "Point", ["t", "x=print()"], 1],
    ["q", "os, x", ["t", "x"], 1],
    ["zz", 1],
    [],
    [[], 1],
    ["i", 5],
    ["d", 1],
    ["s", ["l"]],
    ["b", "x"],
    ["c", "a", "b"],
]


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
    ("not an object", b"1\n", "line 1.*task_id"),
    ("an array", json.dumps([TASK] * 164).encode(), "one JSON object; this is an array of 164"),
    ("an array over lines", json.dumps([TASK] * 3, indent=2).encode(), "this is an array of 3"),
    ("an object over lines", json.dumps(TASK, indent=2).encode(), "this is one object over several lines"),
    ("no assert", lines({**TASK, "test": "def check(f):\n    f(1, 2)\n"}), "line 1.*has no assert"),
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
    none = [("none.jsonl", "no such file$")]
    none += [
        (f"{name}_test.jsonl", f"file; python data/prepare_{name}.py")
        for name in ("humaneval", "mbpp", "apps")
    ]
    for name, message in (*none, (".", "irectory"), ("a.gz", "gzip"), ("b.gz", "cannot be read")):
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
    with pytest.raises(SystemExit, match=r"sandbox itself failed on U .*error.*cannot be used") as stop:
        preflight(sandbox, tasks + [untested])
    assert "\n" not in str(stop.value)


CHECKS_NOTHING = {
    "assert candidate": "a cheat passes for T/0 ",
    "candidate == 1": "failed on T/0 .*it has no assert",
    "candidate(1, 2)": "failed on T/0 .*it has no assert",
}


@pytest.mark.parametrize("test", CHECKS_NOTHING)
def test_preflight_finds_tests_that_check_nothing(sandbox, test):
    with pytest.raises(SystemExit, match=CHECKS_NOTHING[test]):
        preflight(sandbox, [{**TASK, "test": f"def check(candidate):\n    {test}\n"}])


class Upper:
    """A tokenizer that does not keep the text."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": text.upper()}

    def decode(self, ids, skip_special_tokens):
        return ids


def test_preflight_runs_what_the_tokenizer_and_the_cut_leave_of_a_reference(sandbox):
    tasks = [{**TASK, "task_id": f"T/{i}"} for i in range(3)]
    with pytest.raises(SystemExit, match=r"encoded or cut, the reference fails of T/0, T/1, T/2 .*syntax"):
        preflight(sandbox, tasks, Upper())
    cuts = {"T/0": RIGHT, "T/1": "\n    return 3\n", "T/2": RIGHT + "\n"}
    with pytest.raises(SystemExit, match=r"encoded or cut, the reference fails of T/1 .*failed"):
        preflight(sandbox, tasks, cut=lambda task, _: "\n" + cuts[task["task_id"]])


# -- whatever the caller's flags -----------------------------------------------------------------------------

VERDICTS = """import sandbox
with sandbox.Sandbox(workers=1, timeout=1, wrapper=(), require=()) as box:
    for value in 4, 1:
        code = f"def f(x):\\n    'doc'\\n    assert x == 3\\n    return {value} if f.__doc__ else 0"
        print(box.check(code, "def check(c):\\n    assert c(3) == 4", "f").outcome, end=" ")
        print(box.check_asserts(code, ["assert f(3) == 4"]).outcome, end=" ")
        print(box.check_io(code, [([3], 4)], "f").outcome, end=" ")
    print(box.check(code, "def check(c):\\n    assert c(4) == 4", "f").outcome)
"""
AS_EVER = "passed passed passed failed failed failed exception"


@pytest.mark.parametrize("flag", ["", "-O", "-OO", "PYTHONOPTIMIZE=1"])
def test_flags_of_the_caller_change_no_verdict(flag):
    environment = {**os.environ, "PYTHONOPTIMIZE": flag.partition("=")[2]}
    command = [sys.executable, *[flag] * flag.startswith("-"), "-c", VERDICTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == AS_EVER, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("folders", ["/tmp", "/tmp /dev/shm"])
def test_read_only_tmp(folders, tmp_path):
    """As in a container with a read-only root; TMPDIR says where there is room."""
    (tmp_path / "check.py").write_text(VERDICTS)
    copy_sandbox(tmp_path)  # the checkout may itself lie below /tmp
    mounts = " && ".join(f"mount -t tmpfs -o ro none {folder}" for folder in folders.split())
    keep = f"mount --bind {tmp_path} /mnt"
    python = f"TMPDIR=/mnt {sys.executable} /mnt/check.py"
    command = ["unshare", "--mount", "sh", "-c", f"{keep} && {mounts} && {python}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.stdout.strip() == AS_EVER, done.stderr


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
    together["check"](together[task["entry_point"]])  # in one process it passes
    (result,) = score(sandbox, [task], [cheat])
    assert (result.outcome, result.n_passed) == ("failed", 0), result


# -- lists of asserts, stdin and stdout ----------------------------------------------------------------------

PAIR = "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
ASSERTS = [
    ("functions", "def f(x): return x + 1", ["assert f(1) == 2", "assert f(2) == 3"], "", "passed 2/2"),
    ("one wrong", "def f(x): return 2", ["assert f(1) == 2", "assert f(2) == 3"], "", "failed 1/2"),
    ("not there", "def g(x): return 2", ["assert f(1) == 2", "assert True"], "", "exception 1/2"),
    (
        "builtins are the test's",
        "def f(x): return {x}\ndef set(x): return 7",
        ["assert set(f(1)) == {1}"],
        "",
        "passed 1/1",
    ),
    (
        "imports of the setup",
        "def f(x): return x + 1e-12",
        ["assert math.isclose(f(1), 1)"],
        "import math",
        "passed 1/1",
    ),
    (
        "classes",
        PAIR + "def f(p): return p.a + p.b",
        ["assert f(Pair(1, 2)) == 3", "assert Pair(1, 2).b == 2"],
        "",
        "passed 2/2",
    ),
    (
        "attributes",
        PAIR + "def f(p): return p.a",
        ["assert f(root) == 5"],
        "root = Pair(1, 2)\nroot.a = 5",
        "passed 1/1",
    ),
    (
        "an object equal to all",
        "class E:\n    def __eq__(self, o): return True\ndef f(x): return E()",
        ["assert f(1) == 2"],
        "",
        "failed 0/1",
    ),
    ("test does not compile", "def f(x): return 1", ["assert f(1) =="], "", "error 0/0"),
]


@pytest.mark.parametrize("name, code, asserts, setup, expected", ASSERTS, ids=[name for name, *_ in ASSERTS])
def test_check_asserts(sandbox, name, code, asserts, setup, expected):
    result = sandbox.check_asserts(code, asserts, setup)
    assert f"{result.outcome} {result.n_passed}/{result.n_tests}" == expected, result


def test_function_named_like_a_builtin(sandbox):
    """MBPP/126 asks for a function called sum."""
    code, asserts = "def sum(a, b): return a * b", ["assert sum(2, 3) == 6"]
    assert sandbox.check_asserts(code, asserts).outcome == "exception"
    assert sandbox.check_asserts(code, asserts, entry_point="sum").outcome == "passed"


DOUBLE = "print(2 * int(input()))"
IO = [
    ("one case", DOUBLE, [("3", "6")], "passed 1/1"),
    ("first wrong", "print(6)", [("4", "8"), ("3", "6\n")], "failed 1/2"),
    ("first failure wins", "print([6][int(input())])", [("0", "7"), ("1", "8"), ("0", "6")], "failed 1/3"),
    ("syntax", "print(", [("", "")], "syntax 0/1"),
    ("memory", "bytearray(1 << 40)", [("", "")], "memory 0/1"),
    (
        "ends at the first timeout",
        "if input() == '0':\n  while True: pass",
        [("1", ""), ("0", "")] * 5,
        "timeout 1/10",
    ),
    ("numbers", "print(1e9, 0.1 + 0.2, -1.0000001)", [("", "1000000000.0 0.3 -1.0")], "passed 1/1"),
    ("integers are exact", "print(10**17 + 1)", [("", str(10**17))], "failed 0/1"),
    ("not a number", "print('nan')", [("", "1.0")], "failed 0/1"),
    ("lines count", "print(1, 2)", [("", "1\n2")], "failed 0/1"),
    ("nothing expected", "pass", [("", "")], "passed 1/1"),
    ("no output", "pass", [("", "1")], "failed 0/1"),
    ("200 kB", "print('12345 ' * 40000)", [("", "12345 " * 40000)], "passed 1/1"),
    ("50,000 lines", "print(open(0).read())", [("1\n" * 50000, "1\r\n" * 50000)], "passed 1/1"),
]


@pytest.mark.parametrize("name, code, cases, expected", IO, ids=[name for name, *_ in IO])
def test_check_io(sandbox, name, code, cases, expected):
    result = sandbox.check_io(code, cases)
    assert f"{result.outcome} {result.n_passed}/{result.n_tests}" == expected, result


CALLS = [
    ("function", "def f(a, b): return a + b", [([1, 2], 3), ([[1], [2]], [1, 2])], "passed 2/2"),
    ("one wrong", "def f(a): return 2", [([1], 2), ([2], 3)], "failed 1/2"),
    ("tuples are lists", "def f(a): return (a, (1,))", [([0], [0, [1]])], "passed 1/1"),
    (
        "LeetCode",
        "class Solution:\n    def f(self, a): return {'x': a}",
        [([None], {"x": None})],
        "passed 1/1",
    ),
    (
        "cases do not share state",
        "n = []\ndef f(a): n.append(a); return n",
        [([1], [1]), ([2], [2])],
        "passed 2/2",
    ),
    ("not data", "def f(a): return print", [([1], 1)], "exception 0/1"),
    ("quotes", "def f(a): return a", [(["'\\\"{}\n"], "'\\\"{}\n")], "passed 1/1"),
]


@pytest.mark.parametrize("name, code, cases, expected", CALLS, ids=[name for name, *_ in CALLS])
def test_check_io_by_calls(sandbox, name, code, cases, expected):
    result = sandbox.check_io(code, cases, "f")
    assert f"{result.outcome} {result.n_passed}/{result.n_tests}" == expected, result


def test_check_io_without_cases(sandbox):
    assert sandbox.check_io(DOUBLE, []) == module.Result("error", message="there is no case")


def test_map_of_other_methods(sandbox):
    results = sandbox.map([(DOUBLE, [("1", "2")]), (DOUBLE, [("1", "3")])], method=sandbox.check_io)
    assert [result.outcome for result in results] == ["passed", "failed"]


# -- what protects, and what happens where it does not -------------------------------------------------------


def run_python(code, *prefix, **variables):
    """Run code in a fresh interpreter, behind the words `prefix`; return (exit status, stdout, stderr)."""
    environment = {**os.environ, **variables}
    command = [*prefix, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_report_of_this_machine(sandbox):
    promises = {name: sandbox.report[name] for name in module.ACTS}
    assert promises == dict.fromkeys(["network", "processes", "write", "read", "signals"], True)


def test_what_is_required_and_missing_stops():
    code = """
import sandbox, sys
sandbox.LAYERS = ()
with sandbox.Sandbox(workers=1, wrapper=()) as box:
    print(box.check("def f(): return 1", "def check(f): assert f() == 1", "f").outcome)
"""
    status, out, err = run_python(code)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "nothing keeps programs from: network, write, read, signals." in err
    assert "Put SANDBOX_REQUIRE='processes' before the command" in err
    assert run_python(code, SANDBOX_REQUIRE="processes")[:2] == (0, "passed\n")
    assert run_python(code, SANDBOX_REQUIRE="")[:2] == (0, "passed\n")
    status, out, err = run_python(code, SANDBOX_REQUIRE="processes neutrality")
    assert (status, out) == (1, "") and "neutrality" in err


@pytest.fixture
def no_libseccomp(monkeypatch):
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: load("libnone.so" if "seccomp" in name else name))
    module.seccomp_filter.cache_clear()
    yield
    module.seccomp_filter.cache_clear()


def test_kernel_without_layers(no_libseccomp):
    """As on gVisor or Linux 5.10: no libseccomp, and Landlock's system calls fail."""
    with patched_zygotes("worker.LANDLOCK_CREATE = 999"):
        with pytest.raises(SystemExit, match=r"nothing keeps programs from: network, .*read"):
            Sandbox(workers=1, wrapper=())
        with Sandbox(workers=1, wrapper=(), require=["processes"]) as sandbox:
            assert (sandbox.report["seccomp"], sandbox.report["landlock"]) == (False, 0)
            assert check(sandbox, RIGHT).outcome == "passed"
            assert check(sandbox, WRONG).outcome == "failed"


def test_a_child_that_cannot_be_confined_runs_nothing():
    """A layer that worked at the start and fails later is our fault, not the program's."""
    broken = "prctl = worker.libc.prctl\n"
    broken += "worker.libc.prctl = lambda *args: -1 if os.path.exists(f'{here}/broken') else prctl(*args)"
    with patched_zygotes(broken) as folder, layers() as sandbox:
        assert check(sandbox, RIGHT).outcome == "passed"
        Path(folder, "broken").touch()
        assert check(sandbox, RIGHT).outcome == "error"
        assert sandbox.check_io("print(1)", [("", "1")]).outcome == "error"


@needs_firejail
def test_firejail_is_used_and_works():
    with Sandbox(workers=1) as sandbox:
        assert sandbox.report["wrapper"] == "firejail" and sandbox.report["network namespace"]
        name = Path(f"/proc/{sandbox.workers[0].process.pid}/comm").read_text()
        assert name == "firejail\n"
        assert check(sandbox, RIGHT).outcome == "passed"
    with layers(wrapper=module.firejail()) as sandbox:  # what it protects all by itself
        assert sandbox.report["network"]


WRAPPED = """
import sandbox
with sandbox.Sandbox(workers=1, require=()) as box:
    print(box.report["wrapper"], box.report["network namespace"], box.check("def f(): return 1",
          "def check(f): assert f() == 1", "f").outcome, sep="; ")
"""
INEFFECTIVE = "firejail has no effect, none; False; passed\n"


@needs_firejail
@pytest.mark.parametrize(
    "prefix", ["bwrap --dev-bind / / --unshare-pid --proc /proc", "firejail --quiet --noprofile"]
)
def test_firejail_in_another_sandbox_is_found_out(prefix):
    if not shutil.which(prefix.split()[0]):
        pytest.skip("bubblewrap is not installed")
    status, out, err = run_python(WRAPPED, *prefix.split())
    assert out == INEFFECTIVE, (status, out, err)


@needs_firejail
@needs_root
def test_firejail_without_new_privileges_is_found_out():
    """An ordinary user's firejail starts as root (SUID), which no_new_privs forbids."""
    users = [user for user in pwd.getpwall() if 1000 <= user.pw_uid < 60000 and os.path.isdir(user.pw_dir)]
    if not users:
        pytest.skip("there is no ordinary user with a home on this machine")
    user = f"setpriv --reuid={users[0].pw_uid} --regid={users[0].pw_gid} --clear-groups".split()
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        copy_sandbox(directory)
        subprocess.run(["chmod", "-R", "a+rX", directory], check=True)
        for more, expected in (([], "firejail; True; passed\n"), (["--no-new-privs"], INEFFECTIVE)):
            command = [*user, *more, python, "-c", WRAPPED]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
            assert done.stdout == expected, done


@pytest.mark.parametrize(
    "content", ["exit 1", "sleep 0.1", 'exec "$@"'], ids=["fails", "runs nothing", "does nothing"]
)
def test_ineffective_wrappers(tmp_path, monkeypatch, content):
    wrapper = tmp_path / "firejail"  # as if its profiles were missing
    wrapper.write_text(f'#!/bin/sh\nwhile [ "${{1#--}}" != "$1" ]; do shift; done\n{content}\n')
    wrapper.chmod(0o755)
    with pytest.raises(SystemExit, match="firejail has no effect on this machine"):
        Sandbox(workers=1, wrapper=[str(wrapper)])
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Sandbox(workers=1) as sandbox:
        assert sandbox.report["wrapper"] == "firejail has no effect, none"
        assert check(sandbox, RIGHT).outcome == "passed"


def test_command_line_prints_the_report():
    done = subprocess.run([sys.executable, "sandbox.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in module.ACTS:
        assert f"\n{name} " in "\n" + done.stdout
    assert done.stdout.count("as expected") == 6 and "NOT" not in done.stdout


# -- other systems -------------------------------------------------------------------------------------------


def test_other_systems_get_one_clear_line():
    code = """
import sys, concurrent.futures, subprocess, tempfile, socket, ctypes
sys.platform = "win32"
sys.modules["resource"] = None
import sandbox
sandbox.Sandbox()
"""
    status, out, err = run_python(code)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("sandbox.py needs Linux")


# -- soak ----------------------------------------------------------------------------------------------------

HOSTILE = {
    "import os\n    os._exit(0)": "exception",
    "import os\n    os.fork()": "violation",
    "import os\n    os.kill(os.getppid(), 9)": "violation",
    "return bytearray(1 << 40)": "memory",
    "open('/tmp/soak', 'w')": "violation",
    "import socket\n    socket.socket()": "violation",
    "reply(b'x' * 10**6)": "violation",
    "import threading\n    while True: threading.Thread(target=input).start()": "exception memory timeout",
    "return add(a, b)": "exception",
}


def megabytes(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def owner(entry):
    with contextlib.suppress(OSError):  # others may delete theirs meanwhile
        return entry.stat(follow_symlinks=False).st_uid


def is_of_programs(uid):
    return uid is not None and (uid >= 1 << 30 if os.geteuid() == 0 else uid == os.geteuid())


def footprint():
    """Return what may leak: number of processes and descriptors, temporary files, megabytes per process."""
    pids = descendants(os.getpid())
    folders = "/tmp", "/dev/shm"
    files = {entry.name for path in folders for entry in os.scandir(path) if is_of_programs(owner(entry))}
    visible = ["self", *pids] if os.geteuid() == 0 else ["self"]
    fds = sorted(len(os.listdir(f"/proc/{pid}/fd")) for pid in visible)  # sorted: a new zygote has a new pid
    return len(pids), fds, files, sorted(megabytes(pid) for pid in (os.getpid(), *pids))


def test_soak():
    """Thousands of jobs of all kinds, a tenth of them hostile; now and then a zygote is killed in mid-job.

    SOAK=20 in the environment runs 20,000 of them; else it is 2,000.
    """
    rng = random.Random(0)
    thousands = int(os.environ.get("SOAK", "2"))

    def program(body):
        return CHANNEL + HEAD + f"    {body}\n", TEST, "add"

    with Sandbox(timeout=0.3, memory_mb=128) as sandbox:
        benign = [
            (sandbox.check, program(RIGHT.strip()), "passed"),
            (sandbox.check, program(WRONG.strip()), "failed"),
            (sandbox.check_io, (DOUBLE, [("4", "8")]), "passed"),
            (sandbox.check_asserts, ("f = abs", ["assert f(1) == 2"]), "failed"),
        ]
        hostile = [(sandbox.check, program(body), outcomes) for body, outcomes in HOSTILE.items()]
        endless = (sandbox.check, program("while True: pass"), "timeout")

        def run_1000():
            jobs = benign * 225 + hostile * 10 + hostile[:8] + [endless] * 2
            rng.shuffle(jobs)
            calls = [(method, *arguments) for method, arguments, _ in jobs]
            results = sandbox.map(calls, method=lambda method, *arguments: method(*arguments))
            wrong = [
                (result, arguments[0])
                for result, (_, arguments, outcomes) in zip(results, jobs, strict=True)
                if result.outcome not in outcomes.split()
            ]
            assert len(jobs) == 1000 and not wrong, wrong

        run_1000()
        before = footprint()
        for thousand in range(1, thousands):
            with ThreadPoolExecutor() as pool:
                running = pool.submit(run_1000)
                if thousand % 4 == 1:
                    kill_zygotes_in_mid_job(sandbox.workers[0], 1)  # costs one retry, no result
                running.result()
        after = footprint()
    assert after[:3] == before[:3]
    assert all(then - now < 10 for now, then in zip(before[3], after[3])), (before[3], after[3])
