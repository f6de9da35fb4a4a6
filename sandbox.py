"""Runs untrusted programs and says whether they pass their test.

    trainer (torch, CUDA, tokens)    never forks; starts one zygote per worker
       |  socket                     down: two open files, job and verdict; up: how the candidate ended
    zygote (empty environment)       forks, supervises, kills and reaps; reads neither job nor verdict
       |-- candidate                 runs the program; holds one socket to the judge, no test and no verdict
       `-- judge                     runs the test, calls the candidate over that socket, writes the verdict

A program that shares an interpreter with its test can write its own mark: `sys.exit(0)`, an object equal to
all others, a walk up the stack. Only plain data crosses this socket: a program can return values or die.

NOT stopped by this version: reading what its user may read (a test file on the disk!), the network, writing
where everybody may write, filling the disk. Started by root, programs run as a user without rights; started
by another user they run as that user, whose files they can change and whose processes, the trainer included,
they can kill. So train in a container. A program cannot start threads or processes; its arguments are copies.
"""

import ast
import builtins
import contextlib
import ctypes
import functools
import gzip
import json
import marshal
import os
import queue
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

if sys.platform == "linux":  # elsewhere the import succeeds and Sandbox() says what is missing
    import resource

    libc = ctypes.CDLL(None)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CANDIDATE_UID, JUDGE_UID = 65534, 65533  # two users: a candidate cannot signal its judge
PRELOAD = """bisect cmath collections copy datetime decimal enum fractions functools hashlib heapq itertools
math numbers operator re statistics string textwrap threading typing""".split()

# -- codec ---------------------------------------------------------------------------------------------------

FORMS = (  # tag, type, its parts, the way back
    ("i", int, lambda value: [hex(value)], lambda parts: int(parts[0], 16)),
    ("e", float, lambda value: [float(value)], lambda parts: float(parts[0])),
    ("u", str, lambda value: [str.__str__(value)], lambda parts: str(parts[0])),
    ("b", bytes, lambda value: [value.hex()], lambda parts: bytes.fromhex(parts[0])),
    ("c", complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    ("r", range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    ("d", dict, dict.items, dict),
    *((kind.__name__[0], kind, kind, kind) for kind in (list, tuple, set, frozenset)),
)
BUILD = {"n": iter, **{tag: back for tag, _, _, back in FORMS}}


def encode(value, kept=None):
    """Make JSON of plain data. Subclasses (Counter) go as their base, other objects stay here, in `kept`."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or kind is int and abs(value) < 1 << 62:
        return value
    for tag, base, parts, _ in FORMS:
        if issubclass(kind, base):
            return [tag, *(encode(part, kept) for part in parts(value))]
    if kind is Handle:
        return ["o", value.target]
    if kept is None:
        raise TypeError(f"cannot pass {kind.__name__} to the candidate")
    if hasattr(kind, "__next__"):
        return ["n", *(encode(part, kept) for part in value)]
    kept.append(value)
    return ["o", len(kept) - 1]


def decode(message, handle):
    """Undo encode. Whatever the other side sent, only exact builtins and handle(index) come out."""
    if type(message) is not list:
        return message
    tag, *parts = message[0], *(decode(part, handle) for part in message[1:])
    return handle(*parts) if tag == "o" else BUILD[tag](parts)


def send(stream, message):
    """Write a message as one line of JSON."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream):
    """Read a message; raises ConnectionError if the other side is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("closed")
    return json.loads(line)


# -- candidate: may lie about everything, holds nothing worth stealing ---------------------------------------


class SourceError(Exception):
    """The program does not compile."""


FAULTS = {SourceError: "syntax", MemoryError: "memory", PermissionError: "violation", object: "exception"}


def load(source):
    """Compile and run a program; return its namespace."""
    try:
        code = compile(source, "<candidate>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes, lone surrogates
        raise SourceError(error) from None
    builtins.exit = builtins.quit = sys.exit  # python -S leaves them out
    module = sys.modules["solution"] = types.ModuleType("solution")  # dataclasses look it up
    exec(code, module.__dict__)
    return module.__dict__


def serve(end):
    """Run the program that comes first, then answer calls until the judge hangs up."""
    stream = end.makefile("rwb")
    namespace, kept = None, []

    def find(target):
        return kept[target] if type(target) is int else namespace[target]

    send(stream, "ready")  # from here on a failure is the program's, not the sandbox's
    while True:
        request = receive(stream)
        try:
            if namespace is None:
                namespace, value = load(request), None
            else:
                target, args, kwargs = request
                value = find(target)(*decode(args, find), **decode(kwargs, find))
            send(stream, {"ok": encode(value, kept)})
        except BaseException as error:  # SystemExit too
            outcome = next(name for kind, name in FAULTS.items() if isinstance(error, kind))
            names = [kind.__name__ for kind in type(error).__mro__]
            send(stream, {"outcome": outcome, "names": names, "text": f"{names[0]}: {error}"[:300]})


# -- judge: the only process with the test, the expected values and the verdict ------------------------------

# What the candidate may raise in a test. Not AssertionError, which the judge finds, nor StopIteration, which
# would end `all(map(candidate, xs))`: these and all others become Exception.
EXPECTED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
EXPECTED = {kind.__name__: kind for kind in (*EXPECTED, IndexError, KeyError, ZeroDivisionError)}


class CandidateDied(BaseException):
    """The candidate is gone; no `except Exception` of a test catches that."""


class Handle:
    """An object that stayed in the candidate. Equality is identity: its own __eq__ is never asked."""

    def __init__(self, target, ask):
        self.target, self.ask = target, ask

    def __call__(self, *args, **kwargs):
        return self.ask([self.target, encode(args), encode(kwargs)])


def judge(end, job, verdict):
    """Run the test in the file `job` against the candidate and write the verdict (both file descriptors)."""
    with open(job, "rb") as file:
        code, test, helpers, entry_point, n_asserts = marshal.load(file)
    stream = end.makefile("rwb")
    receive(stream)  # without "ready" there is no verdict, which makes outcome "error"
    found = {"outcome": "passed", "message": "", "n_passed": 0, "n_tests": 0}

    def count(error, source=""):
        found["n_tests"] += 1
        found["n_passed"] += error is None
        if error is not None and found["outcome"] == "passed":  # the first failure wins
            outcome, message = getattr(error, "outcome", "exception"), getattr(error, "text", repr(error))
            if type(error) is AssertionError:
                outcome, message = "failed", f"{source} {error}".strip()
            found.update(outcome=outcome, message=str(message)[:300])

    def ask(request):
        """Send a request; return what the candidate returned or raise what it raised."""
        try:
            send(stream, request)
            reply = receive(stream)
            if "ok" in reply:
                return decode(reply["ok"], lambda index: Handle(index, ask))
            kind = next((EXPECTED[name] for name in reply["names"] if name in EXPECTED), Exception)
            outcome = reply["outcome"] if reply["outcome"] in FAULTS.values() else "violation"
            text = str(reply["text"])
        except Exception as fault:  # no reply, or none that encode() could have made
            kind, text = CandidateDied, "the program ended early or broke its connection"
            outcome = "died" if isinstance(fault, OSError) else "violation"
        error = kind()
        error.outcome, error.text = outcome, text
        if kind is CandidateDied:
            count(error)  # noted now: a bare `except:` of the test may swallow it
        raise error

    try:
        namespace = {"__name__": "test", "__count__": count}
        with contextlib.suppress(Exception):
            exec(helpers, namespace)  # trusted helpers from the prompt, e.g. poly() of HumanEval/32
        candidate = namespace[entry_point] = Handle(entry_point, ask)
        ask(code)
        exec(test, namespace)
        namespace["check"](candidate)
        if not n_asserts:
            count(None)  # nothing to count: the test as a whole is one case
        elif not found["n_tests"]:
            count(Exception("no assert of the test was reached"))
    except CandidateDied:
        pass
    except BaseException as error:
        count(error)
    os.write(verdict, json.dumps(list(found.values())).encode())


# -- zygote: forks, supervises, kills and reaps; reads neither job nor verdict -------------------------------


def hard_limit(timeout):
    """Wall-clock seconds after which a job ends, however busy the machine is."""
    return 5 * timeout + 1


def fork(function, args, unwanted, uid, directory, timeout, memory_mb):
    """Run function(*args) in a confined child without the `unwanted` descriptors; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for fd in unwanted:
            os.close(fd)
        os.dup2(0, 2)  # /dev/null: programs do not write on the trainer's terminal
        os.setsid()
        os.chdir(directory)
        os.environ["TMPDIR"] = directory
        cpu, memory, one_mb = int(timeout) + 3, memory_mb << 20, 1 << 20
        limits = {"CPU": cpu, "AS": memory, "FSIZE": one_mb, "CORE": 0, "NOFILE": 64, "NPROC": 0}
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit + (name == "CPU")))
        if os.geteuid() == 0 and os.stat(directory).st_uid == CANDIDATE_UID:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        libc.capset((ctypes.c_uint32 * 2)(0x20080522), bytes(24))  # for a root that cannot change user
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            return None
        signal.alarm(int(hard_limit(timeout)) + 1)  # soft: a candidate may reset its own
        random.seed(0)
        function(*args)
    finally:
        os._exit(0)


def queued(pid):
    """Seconds for which a process was ready to run but had no core."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


def supervise(poller, pids, timeout):
    """Wait for the judge; return True if the time ran out. Queueing for a core costs none, sleeping does."""
    start = time.monotonic()
    while True:
        wall = time.monotonic() - start
        left = min(timeout + sum(map(queued, pids)), hard_limit(timeout)) - wall
        if left <= 0:
            return True
        if poller.poll(max(10, 1000 * left)):
            return False


def kill(pid):
    """Kill a process and its group."""
    for send_signal in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            send_signal(pid, signal.SIGKILL)


def reap_all():
    """Kill and reap all that is left below this process; as subreaper it inherits daemons too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                with open(f"/proc/self/task/{os.getpid()}/children") as file:
                    for pid in file.read().split():
                        kill(int(pid))


def remove(directory):
    """Delete a directory with all that a program left in it; shutil.rmtree would fail at a deep tree."""
    try:
        os.rmdir(directory)
    except OSError:
        subprocess.run(["sh", "-c", 'chmod -R u+rwx "$0"; rm -rf "$0"', directory], stderr=subprocess.DEVNULL)


def run_job(control, files, directory, timeout, memory_mb):
    """Run one job; return [wait status of the candidate, time ran out, CPU seconds, wall-clock seconds]."""
    start = time.monotonic()
    if os.stat(os.__file__).st_mode & 0o004:  # otherwise another user could import nothing
        with contextlib.suppress(OSError):
            os.chown(directory, CANDIDATE_UID, -1)
    limits = directory, timeout, memory_mb
    ours, theirs = socket.socketpair()
    unwanted = control.fileno(), ours.fileno(), *files
    candidate = fork(serve, [theirs], unwanted, CANDIDATE_UID, *limits)
    theirs.close()
    referee = fork(judge, [ours, *files], [control.fileno()], JUDGE_UID, *limits)
    ours.close()
    poller = select.poll()
    done = os.pidfd_open(referee)
    poller.register(done, select.POLLIN)
    poller.register(control, 0)  # hang-up only: the trainer is gone
    late = supervise(poller, (candidate, referee), timeout)
    kill(candidate)
    poller.poll(1000 * late)  # the judge sees the death and writes what it counted
    kill(referee)
    os.waitpid(referee, 0)
    _, status, usage = os.wait4(candidate, 0)
    reap_all()
    for fd in (done, *files):
        os.close(fd)
    return status, late, usage.ru_utime + usage.ru_stime, time.monotonic() - start


def zygote(control_fd, timeout, memory_mb):
    """Serve jobs until the trainer closes its socket or dies."""
    del sys.path[0]  # the trainer's own scripts
    for name in PRELOAD:
        __import__(name)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, the kernel takes us and not the trainer
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1), (PR_SET_CHILD_SUBREAPER, 1)):
        libc.prctl(option, value, 0, 0, 0)
    control = socket.socket(fileno=control_fd)
    control.send(b"ready")
    with contextlib.suppress(ConnectionError):
        while files := socket.recv_fds(control, 16, 2)[1]:
            directory = tempfile.mkdtemp(dir=os.getcwd())
            report = run_job(control, files, directory, timeout, memory_mb)
            remove(directory)
            control.send(json.dumps(report).encode())
    remove(os.getcwd())


# -- trusted side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one program. `message` is partly the program's own text: print its repr."""

    outcome: str  # passed | failed | exception | syntax | timeout | memory | violation | error
    n_passed: int = 0  # asserts that held
    n_tests: int = 0  # asserts that were executed, or that the test has if those are more
    fraction: float = 0.0  # n_passed / n_tests, below 1 unless passed
    message: str = ""
    cpu: float = 0.0  # seconds of the candidate
    wall: float = 0.0  # seconds of the job


class CountAsserts(ast.NodeTransformer):
    """Make every assert report to the judge instead of ending the test."""

    template = "try:\n pass\n __count__(None)\nexcept Exception as __error:\n __count__(__error, '')"
    n_asserts = 0

    def visit_Assert(self, node):
        self.n_asserts += 1
        wrapper = ast.parse(self.template).body[0]
        wrapper.body[0] = node
        wrapper.handlers[0].body[0].value.args[1].value = ast.unparse(node)
        return ast.copy_location(wrapper, node)

    def visit_Try(self, node):
        return node  # a handler may wait for this very assert

    visit_TryStar = visit_With = visit_Try


@functools.lru_cache(maxsize=4096)
def compile_test(test, prompt):
    """Return (code of the test, code of the prompt, number of counted asserts)."""
    counter = CountAsserts()
    tree = ast.fix_missing_locations(counter.visit(ast.parse(test)))
    helpers = compile("", "<prompt>", "exec")
    for source in (prompt.rstrip() + " pass", prompt):  # " pass" completes a header without docstring
        with contextlib.suppress(SyntaxError, ValueError):
            helpers = compile(source, "<prompt>", "exec", dont_inherit=True)
    return compile(tree, "<test>", "exec", dont_inherit=True), helpers, counter.n_asserts


def combine(report, verdict, n_asserts):
    """Make a Result of how the candidate ended (zygote) and of what was counted (judge)."""
    status, late, cpu, wall = json.loads(report)
    outcome, message, n_passed, n_tests = json.loads(verdict or '["error", "the judge died", 0, 0]')
    if late or outcome == "died" and status & 127 in (signal.SIGXCPU, signal.SIGALRM):
        outcome, message = "timeout", "out of time"
    elif outcome == "died":
        outcome = "exception"
    if outcome != "passed":
        n_tests = max(n_tests, n_asserts, n_passed + 1)
    return Result(outcome, n_passed, n_tests, n_passed / n_tests, message, cpu, wall)


class Worker:
    """One zygote, replaced when it has died."""

    def __init__(self, timeout, memory_mb):
        self.limits = timeout, memory_mb
        self.process = None

    def start(self):
        """Start the zygote; raises OSError if it does not answer."""
        self.directory = tempfile.mkdtemp(prefix="sandbox-")
        os.chmod(self.directory, 0o711)  # candidates pass through to their own directory
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(hard_limit(self.limits[0]) + 10)
        home = os.open(sys.base_prefix, os.O_PATH)  # keeps a Python below /root importable for another user
        python = [sys.executable, "-s", "-S", "-B", os.path.abspath(__file__)]
        self.process = subprocess.Popen(
            [*python, "--zygote", str(theirs.fileno()), *map(str, self.limits)],
            env={"PYTHONHASHSEED": "0", "PYTHONHOME": f"/proc/self/fd/{home}"},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), home),
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        theirs.close()
        os.close(home)
        if self.control.recv(16) != b"ready":
            raise OSError("the zygote did not start")

    def stop(self):
        """Hang up: the zygote kills its children and ends."""
        if self.process:
            self.control.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process.kill()
            self.process.wait()
            remove(self.directory)
            self.process = None

    def run(self, job, n_asserts):
        """Run one job; outcome "error" if the zygote or the judge died."""
        report = b""
        try:
            if not self.process:
                self.start()
            with open(os.memfd_create("job"), "r+b") as body, open(os.memfd_create("out"), "r+b") as verdict:
                body.write(job)
                body.seek(0)
                socket.send_fds(self.control, [b"job"], [body.fileno(), verdict.fileno()])
                report = self.control.recv(1024)
                verdict.seek(0)
                return combine(report, verdict.read(), n_asserts)
        except (OSError, ValueError) as error:  # ValueError: no report, or a verdict cut short
            return Result("error", message=f"the zygote died: {error}")
        finally:
            if not report:  # Ctrl-C too: a late report must not be taken for the next job's
                self.stop()


class Sandbox(contextlib.ExitStack):
    """Checks programs, `workers` at a time (None: one per available core). Use `with`, or call close().

    A program has memory_mb of address space and `timeout` seconds; 5 * timeout + 1 if it queues for a core.
    """

    def __init__(self, workers=None, timeout=2.0, memory_mb=512):
        super().__init__()
        if sys.platform != "linux":
            raise SystemExit("sandbox.py needs Linux (on Windows use WSL2, on a Mac a Linux container)")
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # we hold the tests, and candidates may share our user
        self.workers = [Worker(timeout, memory_mb) for _ in range(workers or len(os.sched_getaffinity(0)))]
        self.idle = queue.SimpleQueue()
        for worker in self.workers:
            self.callback(worker.stop)
            worker.start()
            self.idle.put(worker)
        self.pool = ThreadPoolExecutor(len(self.workers))
        self.callback(self.pool.shutdown, cancel_futures=True)

    def check(self, code, test, entry_point, prompt=""):
        """Run the program `code`; `test` defines check(candidate) and gets the function named `entry_point`.

        The test's helpers come from `prompt`, never from the program. Outcome "error": our own fault.
        """
        try:
            test_code, helpers, n_asserts = compile_test(test, prompt)
        except (SyntaxError, ValueError) as error:
            return Result("error", message=f"the test does not compile: {error}")
        job = marshal.dumps((code, test_code, helpers, entry_point, n_asserts))
        worker = self.idle.get()
        try:
            result = worker.run(job, n_asserts)
            return worker.run(job, n_asserts) if result.outcome == "error" else result  # retried once
        finally:
            self.idle.put(worker)

    def map(self, jobs, progress=None):
        """Check many (code, test, entry_point, prompt), in order; calls progress() after each."""
        futures = [self.pool.submit(self.check, *job) for job in jobs]
        for _ in as_completed(futures):
            if progress:
                progress()
        return [future.result() for future in futures]


# -- reward: what all scripts share --------------------------------------------------------------------------

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
ATTACKS = ("", "import sys\nsys.exit(0)", "import os\nos._exit(0)", "def check(f): pass", "candidate = print")
EQUAL = "\n    class Equal:\n        def __eq__(self, other):\n            return True\n    return Equal()\n"
CHEATS = [*(f"\n    return None\n\n\n{attack}\n" for attack in ATTACKS), EQUAL]


def read_tasks(path):
    """Read tasks in HumanEval's format (.jsonl or .jsonl.gz); a mistake in it ends in one clear line."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")  # splitlines() would split at U+2028, which JSON strings may hold
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file; for HumanEval: python data/prepare_humaneval.py") from None
    except Exception as error:  # a directory, no permission, not UTF-8, not gzip, cut short
        raise SystemExit(f"{path}: cannot be read: {error}") from None
    tasks = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            task = json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{where}: not JSON: {error}") from None
        for field in FIELDS:
            if not isinstance(task, dict) or not isinstance(task.get(field), str):
                raise SystemExit(f"{where}: field {field!r} is missing or not a string")
        if task["task_id"] in tasks:
            raise SystemExit(f"{where}: task_id {task['task_id']!r} was there before")
        tasks[task["task_id"]] = task
    if not tasks:
        raise SystemExit(f"{path}: there is no task in it")
    return list(tasks.values())


def program(task, completion):
    """Join a prompt and its completion, which starts with the newline.

    Byte-level BPE merges that newline with the indentation after it, so all scripts tokenise prompt.rstrip().
    """
    return task["prompt"].rstrip() + completion


def reference(task):
    """Return the reference solution as a completion."""
    return "\n" + task["canonical_solution"]


def score(sandbox, tasks, completions, progress=None):
    """Return one Result per (task, completion). This is THE function that rewards the policy."""
    pairs = zip(tasks, completions, strict=True)
    jobs = [(program(task, text), task["test"], task["entry_point"], task["prompt"]) for task, text in pairs]
    return sandbox.map(jobs, progress)


def preflight(sandbox, tasks):
    """Score reference solutions (must pass) and cheats (must not); return one line or raise SystemExit."""
    cheats = [(task, cheat) for i, task in enumerate(tasks) for cheat in CHEATS[: 6 if i < 8 else 1]]
    pairs = [(task, reference(task)) for task in tasks] + cheats
    results = score(sandbox, [task for task, _ in pairs], [completion for _, completion in pairs])
    n = len(tasks)
    scored = [(task["task_id"], result) for (task, _), result in zip(pairs, results)]
    findings = {
        "the sandbox itself failed on": [item for item in scored if item[1].outcome == "error"],
        "the reference does not pass for": [item for item in scored[:n] if item[1].outcome != "passed"],
        "a cheat passes for": [item for item in scored[n:] if item[1].outcome == "passed"],
    }
    for finding, bad in findings.items():
        if bad:
            names = list(dict.fromkeys(name for name, _ in bad))
            more = f", ... and {len(names) - 10} more" if len(names) > 10 else ""
            first = f"first: {bad[0][1].outcome} {bad[0][1].message!r}"
            raise SystemExit(f"preflight: {finding} {', '.join(names[:10])}{more} ({first})")
    return f"preflight: {n}/{n} reference solutions pass, 0/{len(cheats)} cheats pass"


if __name__ == "__main__" and sys.argv[1:2] == ["--zygote"]:
    zygote(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
