"""Runs untrusted programs and says whether they pass their test: the reward of all scripts.

    trainer (torch, CUDA, tokens)    never forks; starts one zygote per worker
       |  socket                     down: open files, the job and a place for its result; up: how it ended
    zygote (empty environment)       forks, supervises, kills and reaps; reads no file of a job
       |-- candidate                 runs the program; holds one socket to the judge, no test and no verdict
       `-- judge                     runs the test, calls the candidate over that socket, writes the verdict

A program that shares an interpreter with its test can write its own mark: `sys.exit(0)`, an object equal to
all others, a walk up the stack. Only plain data crosses this socket: a program can return values or die. With
stdin/stdout tests there is no judge, and the expected output never leaves the trainer.

Before they start, candidate and judge give up root, resources, system calls (seccomp) and files (Landlock);
firejail, where installed, surrounds the zygote. What of that works on this machine is measured at each start:
`python sandbox.py` shows it. NOT stopped: holes of the kernel, weak tests, marks in files' access times.
A program has the standard library without sockets, processes and files; its arguments are copies, so no test
sees what it changes in place.
"""

import atexit
import builtins
import ctypes
import errno
import gc
import json
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
import types
from contextlib import ExitStack, suppress

IS_ZYGOTE = sys.argv[1:] == ["--zygote"]
if not IS_ZYGOTE:  # every fork would copy what the zygote does not need
    import ast
    import functools
    import gzip
    import importlib.util
    import math
    import queue
    import re
    import shutil
    import subprocess
    import tempfile
    import threading
    from collections import Counter, defaultdict
    from concurrent.futures import ThreadPoolExecutor, as_completed
    from dataclasses import dataclass
    from itertools import chain
if sys.platform == "linux":  # elsewhere the import succeeds and Sandbox() says what is missing
    import resource

    libc = ctypes.CDLL(None)

# -- kernel layers: rights that a process gives up for good --------------------------------------------------

LAYERS = "seccomp", "landlock"  # take one out to see what the report says without it
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_FILTER = 1, 4, 22, 2
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 36, 38, 0x20080522
SCMP_ALLOW, SCMP_KILL, SCMP_ERRNO, SCMP_LE, SCMP_EQ, SCMP_MASKED_EQ = 0x7FFF0000, 0x80000000, 0x50000, 3, 4, 7
CLONE_THREAD, F_GETFL, F_DUPFD_CLOEXEC = 0x10000, 3, 1030
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_VERSION, PATH_BENEATH = 444, 445, 446, 1, 1
READ_FILE, READ_DIR, TCP_RIGHTS, SCOPES = 4, 8, 3, 3
FILE_RIGHTS = 0, 13, 14, 15, 15, 16  # how many, by version of Landlock; since version 5 all
SCMP_OPTIMIZE, CPUCLOCK_SCHED, HOME_FD, NOBODY = 8, 2, 63, 65534

HARMLESS = """read write readv writev pread64 close close_range lseek mmap munmap mremap mprotect madvise
 brk futex stat fstat lstat newfstatat statx access faccessat faccessat2 getdents64 getcwd readlink
 readlinkat poll ppoll select pselect6 pipe pipe2 dup dup2 dup3 rt_sigaction rt_sigprocmask rt_sigreturn
 sigaltstack alarm getitimer setitimer pause nanosleep clock_nanosleep clock_gettime clock_getres
 gettimeofday time times restart_syscall sched_yield sched_getaffinity getpid getppid gettid getuid geteuid
 getgid getegid getrlimit getrusage sysinfo uname getrandom set_robust_list rseq membarrier exit exit_group"""
HARMFUL = """socket socketpair connect bind fork vfork execve execveat kill tkill tgkill pidfd_open ptrace
 process_vm_readv process_vm_writev unlink unlinkat rmdir rename renameat renameat2 link linkat symlink
 symlinkat truncate ftruncate chmod fchmod fchmodat chown fchown mkdir mkdirat mount unshare setns bpf
 io_uring_setup memfd_create shmget setsid setpgid"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
RULES = (  # what to do, with which system calls, if which argument compares how
    (SCMP_ALLOW, HARMLESS),
    (SCMP_KILL, HARMFUL),
    (SCMP_ALLOW, "open", 1, SCMP_MASKED_EQ, WRITING, 0),
    (SCMP_ALLOW, "openat", 2, SCMP_MASKED_EQ, WRITING, 0),
    (SCMP_ALLOW, "clone", 0, SCMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD),
    (SCMP_KILL, "clone", 0, SCMP_MASKED_EQ, CLONE_THREAD, 0),
    (SCMP_ERRNO | errno.ENOSYS, "clone3"),  # its flags lie in memory; the C library goes back to clone
    (SCMP_ALLOW, "fcntl", 1, SCMP_LE, F_GETFL, 0),  # not F_SETOWN, which sends signals
    (SCMP_ALLOW, "fcntl", 1, SCMP_EQ, F_DUPFD_CLOEXEC, 0),
    (SCMP_ALLOW, "prlimit64", 0, SCMP_EQ, 0, 0),  # 0 is the process itself
)


def seccomp_filter():
    """Return RULES as code for the kernel; unknown calls get EPERM. Raises OSError without libseccomp."""
    # It knows the numbers of system calls on all processors, and comes with apt and systemd.
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(SCMP_ERRNO | errno.EPERM))
    library.seccomp_attr_set(context, SCMP_OPTIMIZE, 2)  # a tree of numbers: installed in half the time
    for action, names, *condition in RULES:
        compare = struct.pack("IIQQ", *condition) if condition else b""
        for name in names.split():
            number = library.seccomp_syscall_resolve_name(name.encode())
            library.seccomp_rule_add_array(context, ctypes.c_uint(action), number, bool(compare), compare)
    fd = os.memfd_create("code")
    library.seccomp_export_bpf(context, fd)
    return os.pread(fd, 1 << 16, 0)


def landlock_ruleset():
    """Return (file descriptor, version): only the standard library can be read; (-1, 0) without Landlock."""
    fd, version = -1, libc.syscall(LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)
    while fd < 0 < version:
        rights = struct.pack("QQQ", (1 << FILE_RIGHTS[min(version, 5)]) - 1, TCP_RIGHTS, SCOPES)
        fd = libc.syscall(LANDLOCK_CREATE, rights, 24 if version > 5 else 16 if version > 3 else 8, 0)
        version -= fd < 0  # RHEL 9 announces version 6, but refuses its scopes
    stdlib = os.path.dirname(os.__file__)
    paths = f"/dev/null /dev/urandom /usr/share/zoneinfo /lib64 /lib/{os.uname().machine}-linux-gnu".split()
    for folder in (stdlib, os.path.dirname(stdlib)):  # not site-packages: a benchmark may be installed there
        names = (name for name in os.listdir(folder) if not name.startswith(("python", "site-", "dist-")))
        paths += [f"{folder}/{name}" for name in names]
    for right, path in ((READ_DIR, stdlib), *((READ_FILE, path) for path in paths)):
        with suppress(OSError):  # some are not there
            path_fd = os.open(path, os.O_PATH)
            rule = struct.pack("=Qi", right | READ_DIR * os.path.isdir(path), path_fd)
            libc.syscall(LANDLOCK_ADD, fd, PATH_BENEATH, rule, 0)
            os.close(path_fd)
    return fd, max(version, 0)


def confine(limits, ruleset, program):
    """Give up the rights of this process: RLIMIT_*, a Landlock ruleset, a seccomp program."""
    os.setsid()
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    failed = libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    failed |= ruleset >= 0 and libc.syscall(LANDLOCK_RESTRICT, ruleset, 0)
    failed |= bool(program) and libc.prctl(PR_SET_SECCOMP, SECCOMP_FILTER, program, 0, 0)
    if failed:
        raise OSError("a right could not be given up")


def wall_limit(timeout: float) -> float:
    """Seconds after which a job ends, however busy the machine is."""
    return 5 * timeout + 1


def read_all(fd):
    """Read a file from its start."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


# -- plain-data codec ----------------------------------------------------------------------------------------

FORMS: tuple = (  # tag, type, its parts, the way back
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


def encode(value, kept: list | None = None):
    """Make JSON of plain data. Subclasses (Counter) go as their base, other objects stay here, in `kept`."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 1 << 62):
        return value
    for tag, base, parts, _ in FORMS:
        if issubclass(kind, base):
            return [tag, *(encode(part, kept) for part in parts(value))]
    if kind is Handle:
        return ["o", vars(value)["_target"]]
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
    tag, parts = message[0], [decode(part, handle) for part in message[1:]]
    return handle(*parts) if tag == "o" else BUILD[tag](parts)


def send(fd, message):
    """Write a message as one line of JSON. By write and read: the calls for sockets are not allowed here."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def receive(fd):
    """Read a message; raises ConnectionError if the other side is gone, ValueError if it is more than one."""
    data = bytearray()
    while not data.endswith(b"\n"):
        part = os.read(fd, 1 << 16)
        if not part:
            raise ConnectionError("closed")
        data += part
    return json.loads(data)


# -- candidate: may lie about everything, holds nothing worth stealing ---------------------------------------


TESTS_ONLY = []  # modules of the zygote that a program does not get: it has the standard library alone


class SourceError(Exception):
    """The program does not compile."""


FAULTS = {SourceError: "syntax", MemoryError: "memory", PermissionError: "violation", object: "exception"}
OPERATIONS = {"call": lambda f, *args, **kwargs: f(*args, **kwargs), "get": getattr, "set": setattr}


def load(name, source):
    """Compile and run a program as the module `name`; return its namespace."""
    builtins.exit = builtins.quit = sys.exit  # python -S leaves them out
    for module in TESTS_ONLY:
        del sys.modules[module]
    seed_random(0, source)
    module = sys.modules[name] = types.ModuleType(name)  # dataclasses look it up
    try:
        code = compile(source, "<candidate>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes, lone surrogates
        raise SourceError(error) from None
    exec(code, module.__dict__)
    return module.__dict__


def seed_random(seed, source):
    """Make random numbers the same each time, if the source mentions them."""
    if "random" in source:
        __import__("random").seed(seed)


def classify(error: BaseException) -> str:
    """Name the outcome for what a program raised."""
    return next(outcome for kind, outcome in FAULTS.items() if isinstance(error, kind))


def serve(fd):
    """Run the program that comes first, then answer requests until the judge hangs up."""
    namespace, kept = None, []

    def find(target):
        if type(target) is int:
            return kept[target]
        if target not in namespace and "Solution" in namespace:  # LeetCode's form, in APPS and TACO
            return getattr(namespace["Solution"](), target)
        return namespace[target]

    while True:
        operation, target, args, kwargs = receive(fd)
        try:
            if operation == "load":
                namespace, value = load("solution", target), None
            else:
                value = OPERATIONS[operation](find(target), *decode(args, find), **decode(kwargs, find))
            send(fd, {"ok": encode(value, kept)})
        except BaseException as error:  # SystemExit too
            names = [kind.__name__ for kind in type(error).__mro__]
            send(fd, {"outcome": classify(error), "names": names, "text": f"{names[0]}: {error}"[:300]})


def run_script(source, stdin, stdout):
    """Run a program between two files; exit status: 0, 1 or 100 + the place of its outcome in FAULTS."""
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    sys.stdin, sys.stdout = open(0, errors="replace"), open(1, "w", errors="replace")
    try:
        load("__main__", read_all(source).decode(errors="surrogatepass"))
        status = 0
    except SystemExit as error:
        status = int(error.code not in (None, 0))
    except BaseException as error:
        status = 100 + list(FAULTS.values()).index(classify(error))
    with suppress(BaseException):
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # waits for its threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


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
        vars(self).update(_target=target, _ask=ask)

    def __call__(self, *args, **kwargs):
        return self._ask("call", self._target, encode(args), encode(kwargs))

    def __getattr__(self, name):
        if name.startswith("__array"):  # numpy would take an address in memory from the program
            raise AttributeError(name)
        return self._ask("get", self._target, encode([name]), encode({}))

    def __setattr__(self, name, value):
        self._ask("set", self._target, encode([name, value]), encode({}))


class Names(dict):
    """The names of a test. With `ask`, those that neither it nor Python defines are the program's."""

    ask = None

    def __missing__(self, name):
        if not self.ask or hasattr(builtins, name):
            raise KeyError(name)
        return __import__(name) if name in sys.stdlib_module_names else Handle(name, self.ask)


def judge(fd, job, verdict):
    """Run the test in the file `job` against the candidate and write the verdict (all file descriptors)."""
    code, entry_point, has_program_names, source, helpers, test, n_asserts = marshal.loads(read_all(job))
    seed_random(source, source)  # unknown to the candidate
    found = {"outcome": "passed", "message": "", "n_passed": 0, "n_tests": 0}

    def count(error, source=""):
        found["n_tests"] += 1
        found["n_passed"] += error is None
        if error is not None and found["outcome"] == "passed":  # the first failure wins
            is_failure = type(error) is AssertionError
            found["outcome"] = "failed" if is_failure else getattr(error, "outcome", "exception")
            with suppress(Exception):  # even this may fail: an int of 5000 digits has no str()
                text = f"{source} {error}" if is_failure else getattr(error, "text", None) or repr(error)
                found["message"] = text.strip()[:300]

    def ask(*request):
        """Send a request; return what the candidate returned or raise what it raised."""
        try:
            send(fd, request)
            reply = receive(fd)
            if "ok" in reply:
                return decode(reply["ok"], lambda index: Handle(index, ask))
            error = next((EXPECTED[name] for name in reply["names"] if name in EXPECTED), Exception)()
            error.outcome = reply["outcome"] if reply["outcome"] in FAULTS.values() else "violation"
            error.text = str(reply["text"])
        except Exception as fault:  # no reply, or none that encode() could have made
            error = CandidateDied()
            error.outcome = "died" if isinstance(fault, OSError) else "violation"
            error.text = "the program ended early or broke its connection"
            count(error)  # noted now: a bare `except:` of the test may swallow it
        raise error

    names = Names(__name__="test", __count__=count)
    try:
        with suppress(Exception):
            exec(helpers, names)  # trusted helpers from the prompt, e.g. poly() of HumanEval/32
        names.ask = ask if has_program_names else None
        names["__candidate__"] = names[entry_point] = Handle(entry_point, ask)
        ask("load", code, None, None)
        exec(test, names)
        if not n_asserts:
            count(None)  # nothing to count: the test as a whole is one case
        elif not found["n_tests"]:
            count(Exception("no assert of the test was reached"))
    except CandidateDied:
        pass
    except BaseException as error:
        count(error)
    os.write(verdict, json.dumps(list(found.values())).encode())


# -- zygote: forks, supervises, kills and reaps; reads no file of a job --------------------------------------

# What many programs import. More would make every fork slower, hashlib alone by a tenth.
PRELOAD = "bisect collections copy datetime functools heapq itertools math operator re string typing".split()


def fork(function, fds, gate, alarm, rights):
    """Run function(*fds) in a confined child without other descriptors; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        confine(*rights)
        signal.alarm(alarm)  # third line of defence: a candidate may reset its own
        os.write(gate, b".")
        kept = [2, *sorted(fds), HOME_FD]
        for low, high in zip(kept, kept[1:]):
            os.closerange(low + 1, high)
        if os.getppid() == parent:  # it did not die before PR_SET_PDEATHSIG
            function(*fds)
    finally:
        os._exit(1)


def queued(pid):
    """Seconds for which a process was ready to run but had no core."""
    with suppress(OSError), open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


def supervise(poller, pids, timeout):
    """Wait for the end of a job; return True if out of time. Waiting for a core costs none."""
    start, left = time.monotonic(), timeout
    while not poller.poll(max(10, 1000 * left)):
        wall = time.monotonic() - start
        cpu = sum(time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) for pid in pids)  # of all their threads
        spent = max(wall - sum(map(queued, pids)), cpu)  # threads of its own do not give a program more
        left = min(timeout - spent, wall_limit(timeout) - wall)
        if left <= 0:
            return True
    return False


def reap(pids):
    """Kill and reap processes and what they leave to this one; return {pid: [wait status, usage]}."""
    ended = {}
    while pids:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            _, *ended[pid] = os.wait4(pid, 0)
        with open(f"/proc/self/task/{os.getpid()}/children") as file:  # daemons, too
            pids = list(map(int, file.read().split()))
    return ended


def run_job(control, files, timeout, rights):
    """Run one job; return [was it confined, wait status, did its time run out, CPU seconds, wall seconds]."""
    start = time.monotonic()
    confined, gate = os.pipe()
    ours, theirs = socket.socketpair()
    roles = (
        {run_script: files} if len(files) == 3 else {serve: [theirs.fileno()], judge: [ours.fileno(), *files]}
    )
    alarm = int(wall_limit(timeout)) + 1
    pids = [fork(role, fds, gate, alarm, rights) for role, fds in roles.items()]
    ours.close()
    theirs.close()
    done = os.pidfd_open(pids[-1])
    poller = select.poll()
    poller.register(done, select.POLLIN)
    poller.register(control, 0)  # hang-up only: the trainer is gone
    late = supervise(poller, pids, timeout)
    os.kill(pids[0], signal.SIGKILL)
    poller.poll(1000 * late)  # the judge sees the death and writes what it counted
    status, usage = reap(pids)[pids[0]]
    os.close(gate)
    was_confined = len(os.read(confined, 9)) == len(pids)
    for fd in (done, confined, *files):
        os.close(fd)
    return was_confined, status, late, usage.ru_utime + usage.ru_stime, time.monotonic() - start


def of_one_shape(compare, shape):
    """Return numpy's comparison without broadcasting: it would find [] close to every number."""

    def compare_strictly(found, expected, *args, **kwargs):
        assert shape(found) == shape(expected), "another shape"
        return compare(found, expected, *args, **kwargs)

    return compare_strictly


def zygote():
    """Serve jobs until the trainer closes its socket or dies."""
    if "PYTHONHOME" not in os.environ:  # a descriptor, so that another user can use a Python below /root
        os.dup2(os.open(sys.base_prefix, os.O_PATH), HOME_FD)
        home = {"PYTHONHOME": f"/proc/self/fd/{HOME_FD}", "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, sys.orig_argv, home)
    del sys.path[0]  # the trainer's own scripts
    for name in PRELOAD:
        __import__(name)
    control = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)  # /dev/null
    layers, timeout, memory_mb, numpy_folder = json.loads(control.recv(9999))
    if numpy_folder:  # now, as nothing outside the standard library can be read later
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        sys.path.append(numpy_folder)
        numpy = __import__("numpy.testing")
        sys.path.pop()
        for module, name in ((numpy, "allclose"), (numpy.testing, "assert_allclose")):
            setattr(module, name, of_one_shape(getattr(module, name), numpy.shape))
        TESTS_ONLY.extend(name for name in sys.modules if name.split(".")[0] == "numpy")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, the kernel takes us and not the trainer
    network = os.readlink("/proc/self/ns/net")
    with suppress(OSError):  # not root
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.capset(struct.pack("II", CAPABILITY_VERSION, 0), bytes(24))  # for a root that cannot change user
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1), (PR_SET_CHILD_SUBREAPER, 1)):
        libc.prctl(option, value, 0, 0, 0)
    bpf = b""
    with suppress(OSError):
        bpf = seccomp_filter() if "seccomp" in layers else b""
    code = ctypes.create_string_buffer(bpf)
    program = struct.pack("HP", len(bpf) // 8, ctypes.addressof(code)) if bpf else b""
    ruleset, version = landlock_ruleset() if "landlock" in layers else (-1, 0)
    memory_mb += 128 * bool(numpy_folder)  # what numpy takes of it
    limits = {"AS": memory_mb << 20, "CPU": int(timeout) + 3, "CORE": 0, "NOFILE": HOME_FD + 1}
    limits["NPROC"] = 4096 if bpf else 0  # of the user; without seccomp neither processes nor threads
    limits = {getattr(resource, f"RLIMIT_{name}"): limit for name, limit in limits.items()}
    for name, limit in limits.items():
        limits[name] = min(limit, resource.getrlimit(name)[1] % (1 << 64))  # -1 is no limit
    report = {"seccomp": bool(bpf), "landlock": version, "uid": os.getuid(), "network namespace": network}
    control.send(json.dumps(report).encode())
    gc.freeze()  # forks copy less
    with suppress(ConnectionError):
        while files := (message := socket.recv_fds(control, 16, 3))[1]:
            rights = {**limits, resource.RLIMIT_FSIZE: int(message[0])}, ruleset, program
            control.send(json.dumps(run_job(control, files, timeout, rights)).encode())


if IS_ZYGOTE:
    sys.exit(zygote())

# -- trusted side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one program. `message` is partly the program's own text: print its repr."""

    outcome: str  # passed | failed | exception | syntax | timeout | memory | violation | error
    n_passed: int = 0  # asserts or cases that held
    n_tests: int = 0  # those that were executed, or that the test has if these are more
    fraction: float = 0.0  # n_passed / n_tests, below 1 unless passed
    message: str = ""
    cpu: float = 0.0  # seconds of the candidate
    wall: float = 0.0  # seconds of the job


class CountAsserts(ast.NodeTransformer):
    """Make every assert, or call into numpy.testing, report to the judge instead of ending the test."""

    n_asserts = 0

    def visit_Assert(self, node):
        self.n_asserts += 1
        report = f"__count__(__error, {ast.unparse(node)!r})"
        source = f"try: pass\nexcept Exception as __error: {report}\nelse: __count__(None)"
        wrapper = ast.parse(source).body[0]
        wrapper.body = [node]
        return ast.copy_location(wrapper, node)

    def visit_Expr(self, node):
        return self.visit_Assert(node) if ast.unparse(node).startswith("np.testing.assert") else node

    def visit_Try(self, node):
        return node  # a handler may wait for this very assert

    visit_TryStar = visit_With = visit_Try


CALL_CHECK = "\n\ncheck(__candidate__)\n"
COMPILING = threading.Lock()  # ast.parse is not thread-safe in Python 3.11: "recursion depth mismatch"


@functools.lru_cache(maxsize=4096)
def compile_test(test: str, prompt: str) -> tuple:
    """Return (code of the prompt, code of the test, number of counted asserts)."""
    counter = CountAsserts()
    tree = ast.fix_missing_locations(counter.visit(ast.parse(test)))
    helpers = compile("", "<prompt>", "exec")
    for source in (prompt.rstrip() + " pass", prompt):  # " pass" completes a header without docstring
        with suppress(SyntaxError, ValueError):
            helpers = compile(source, "<prompt>", "exec", dont_inherit=True)
    return helpers, compile(tree, "<test>", "exec", dont_inherit=True), counter.n_asserts


def ending(status: int, late: bool) -> str:
    """Name the outcome for how a program's process ended; "passed" if it did well."""
    if late or status & 127 in (signal.SIGXCPU, signal.SIGALRM):
        return "timeout"
    if status & 127 == signal.SIGSYS:
        return "violation"
    return {0: "passed", **dict(enumerate(FAULTS.values(), 100))}.get(status >> 8 or status, "exception")


def judged(n_asserts: int, verdict, status: int, late: bool, cpu: float, wall: float) -> Result:
    """Make a Result of what the judge counted and how the candidate ended."""
    if late and not verdict:  # the test itself ran out of time
        verdict = '["timeout", "", 0, 0]'
    outcome, message, n_passed, n_tests = json.loads(verdict)
    if late or outcome == "died":
        outcome = ending(status or 1, late)
    if outcome != "passed":
        n_tests = max(n_tests, n_asserts, n_passed + 1)
    return Result(outcome, n_passed, n_tests, n_passed / n_tests, message, cpu, wall)


def compared(expected: str, output: bytes, status: int, late: bool, cpu: float, wall: float) -> Result:
    """Make a Result of what a script printed: the same words in the same lines, decimals to 1e-6."""

    def same(word, right):
        with suppress(ValueError):
            return word == right or ("." in right and math.isclose(float(word), float(right), abs_tol=1e-6))

    texts = output.decode(errors="replace"), expected
    lines, targets = ([line.split() for line in text.strip().split("\n")] for text in texts)
    is_same = [*map(len, lines)] == [*map(len, targets)] and all(map(same, chain(*lines), chain(*targets)))
    outcome = ending(status, late)
    if outcome == "passed" and not is_same:
        outcome = "failed"
    return Result(outcome, int(outcome == "passed"), 1, float(outcome == "passed"), "", cpu, wall)


class Worker:
    """One zygote, replaced when it has died."""

    def __init__(self, wrapper, timeout, memory_mb, numpy_folder):
        python = os.path.realpath(sys.executable)
        self.command = [*wrapper, python, "-s", "-S", "-B", os.path.abspath(__file__), "--zygote"]
        self.config = LAYERS, timeout, memory_mb, numpy_folder
        self.process = None

    def start(self):
        """Start the zygote and return what it says of itself; raises OSError or ValueError if it does not."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = subprocess.DEVNULL
        with theirs:  # a session of its own: Ctrl-C is for the trainer
            self.process = subprocess.Popen(
                self.command, env={}, cwd="/", stdin=theirs, stdout=null, stderr=null, start_new_session=True
            )
        self.control.settimeout(wall_limit(self.config[1]) + 10)
        self.control.send(json.dumps(self.config).encode())
        return json.loads(self.control.recv(999))

    def stop(self):
        """End the zygote, and with it all that is below it."""
        if self.process:
            self.control.close()  # it notices
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            self.process.kill()
            self.process.wait()
            self.process = None

    def run(self, parts, output_limit):
        """Run one job, whose files are `parts`; return (what it wrote, *how it ended)."""
        report = b""
        files = [os.memfd_create("job") for _ in (*parts, "output")]
        try:
            if not self.process:
                self.start()
            for file, part in zip(files, parts):
                os.write(file, part)
                os.lseek(file, 0, os.SEEK_SET)
            socket.send_fds(self.control, [b"%d" % output_limit], files)
            report = self.control.recv(999)
            was_confined, *how = json.loads(report)
            if not was_confined:
                raise OSError("a process could not be confined")
            return read_all(files[-1]), *how
        finally:
            for file in files:
                os.close(file)
            if not report:  # Ctrl-C too: a late report must not be taken for the next job's
                self.stop()


ACTS = {  # what must not succeed for a promise to hold
    "network": (
        "socket.create_connection(ADDRESS, 1)",
        "s = socket.socket(type=socket.SOCK_DGRAM); s.connect(ADDRESS); s.send(b'x'); s.send(b'x')",
    ),
    "processes": ("os.fork() or os._exit(0)",),
    "write": ("open(PATH, 'a')", "open(PATH + '.new', 'x')", "os.utime(PATH)", "os.chmod(PATH, 0o666)"),
    "read": ("open(PATH)", "os.listdir('/')"),
    "signals": ("os.kill(os.getppid(), 0)", "resource.prlimit(os.getppid(), 0)"),  # a limit sends them, too
}
SELF_CHECK = {
    "passed": "return a + 1",
    "failed": "return type('', (), {'__eq__': lambda *_: True})()",
    "exception": "exit(0)",
    "timeout": "while True: pass",
    "memory": "return bytearray(1 << 40)",
    "violation": "open('/etc/passwd')",
}
CALL = """import json
def check(candidate):
    args, expected = json.loads({!r})
    assert json.loads(json.dumps(candidate(*args))) == expected
"""


def firejail(numpy_folder=""):
    """Return the command that takes network and home from a zygote, [] where firejail is not installed."""
    path, home = shutil.which("firejail"), os.path.expanduser("~/")
    needed = (sys.base_prefix, os.path.abspath(__file__), numpy_folder)
    needed = [path for path in needed if path.startswith(home)]
    files = [f"--whitelist={path}" for path in needed] or ["--private"]
    return [path, "--quiet", "--noprofile", "--net=none", *files] if path else []


class Sandbox(ExitStack):
    """Checks programs, `workers` at a time (None: one per available core). Use `with`, or call close().

    A program has memory_mb of address space and `timeout` seconds; 5 * timeout + 1 if it queues for a core.
    Where the tests of `tasks` need numpy, as those of HumanEval+ do, tests can import it, programs cannot.
    wrapper: a command around each zygote; "auto" is firejail, where it has an effect. require: what must be
    true in `report`; None is all of ACTS, or the words in the environment variable SANDBOX_REQUIRE. Raises
    SystemExit where something of that is not true, or nothing runs.
    """

    def __init__(self, workers=None, timeout=2.0, memory_mb=512, wrapper="auto", require=None, tasks=()):
        super().__init__()
        if sys.platform != "linux":
            raise SystemExit("sandbox.py needs Linux (on Windows use WSL2, on a Mac a Linux container)")
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        numpy_folder = ""
        if any("numpy" in task["test"] for task in tasks):
            numpy_folder = os.path.dirname(os.path.dirname(importlib.util.find_spec("numpy").origin))
        tried = []
        for command in [firejail(numpy_folder), []] if wrapper == "auto" else [list(wrapper)]:
            self.workers = [
                Worker(command, timeout, memory_mb, numpy_folder) for _ in range(workers or max(1, cores))
            ]
            tried.append(os.path.basename(command[0]) if command else "none")
            with suppress(OSError, ValueError):
                layers = self.workers[0].start()
                layers["network namespace"] = layers["network namespace"] != os.readlink("/proc/self/ns/net")
                if layers["network namespace"] or not command:
                    break
            self.workers[0].stop()
            tried[-1] += " has no effect"
        else:
            raise SystemExit(f"sandbox: {tried[-1]} on this machine")
        if not layers["landlock"]:  # programs of our user could read our memory
            libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.idle = queue.SimpleQueue()
        for worker in self.workers:
            self.callback(worker.stop)
            self.idle.put(worker)
        self.pool = ThreadPoolExecutor(len(self.workers))
        self.callback(self.pool.shutdown, cancel_futures=True)
        self.report = {**self._measure(), **layers, "wrapper": ", ".join(tried)}
        if require is None:
            require = os.environ.get("SANDBOX_REQUIRE", " ".join(ACTS)).split()
        if broken := [promise for promise in require if not self.report.get(promise)]:
            self.close()
            kept = " ".join(promise for promise in require if promise not in broken)
            raise SystemExit(
                f"sandbox: nothing keeps programs from: {', '.join(broken)}. Needs Landlock and libseccomp. "
                f"Put SANDBOX_REQUIRE='{kept}' before the command to run them anyway (see python sandbox.py)"
            )

    def _measure(self):
        """Let programs try what they must not do; return which promises hold."""
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(tcp.getsockname())
        with tcp, udp, tempfile.TemporaryDirectory(dir="/tmp") as directory:
            path = os.path.join(directory, "file")
            open(path, "w").close()
            os.chmod(path, 0o666)
            os.chmod(directory, 0o777)

            def attempt(act):
                names = f"import os, resource, socket\nPATH, ADDRESS = {path!r}, {tcp.getsockname()}\n"
                return self.check(f"{names}def f():\n    {act}", "def check(f):\n    f()", "f")

            if (result := attempt("pass")).outcome != "passed":
                self.close()
                raise SystemExit(f"sandbox: no program runs on this machine: {result.message!r}")
            bad = {"passed", "error"}
            return {name: not {attempt(act).outcome for act in acts} & bad for name, acts in ACTS.items()}

    def _run(self, parts, make_result, output_limit=1 << 20):
        """Run a job on an idle worker and make a Result of what came of it; retry our own faults once."""
        worker = self.idle.get()
        try:
            for _ in range(2):
                try:
                    return make_result(*worker.run(parts, output_limit))
                except (OSError, ValueError) as error:
                    fault = Result("error", message=f"the sandbox failed: {error}")
            return fault
        finally:
            self.idle.put(worker)

    def _test(self, code, test, entry_point, prompt, has_program_names):
        try:
            with COMPILING:
                compiled = compile_test(test, prompt)
        except (SyntaxError, ValueError) as error:
            return Result("error", message=f"the test does not compile: {error}")
        job = marshal.dumps((code, entry_point, has_program_names, prompt + test, *compiled))
        return self._run([job], functools.partial(judged, compiled[-1]))

    def check(self, code, test, entry_point, prompt=""):
        """Run the program `code`; `test` defines check(candidate) and gets the function named `entry_point`.

        The test's helpers come from `prompt`, never from the program. Outcome "error": our own fault.
        """
        return self._test(code, test + CALL_CHECK, entry_point, prompt, False)

    def check_asserts(self, code, asserts, setup="", entry_point=""):
        """Run the program `code` and a list of asserts that use its names, as in MBPP.

        Names of builtins are the test's own; if the function is called `sum`, `entry_point` must say so.
        """
        return self._test(code, "\n".join([setup, *asserts]), entry_point, "", True)

    def check_io(self, code, cases, fn_name=None):
        """Run the program `code` once per case: (stdin, stdout), or (arguments, result) of `fn_name`.

        For APPS and TACO. Ends at the first timeout, as each would cost as much; the cases left did not pass.
        """
        results = [] if cases else [Result("error", message="there is no case")]
        for given, expected in cases:
            if fn_name:
                test = CALL.format(json.dumps([given, expected]))
                results.append(self.check(code, test, fn_name))
            else:
                files = code.encode(errors="surrogatepass"), given.encode()
                limit = max(1 << 20, 4 << len(expected.encode()).bit_length())  # does not tell the length
                results.append(self._run(files, functools.partial(compared, expected), limit))
            if results[-1].outcome == "timeout":
                break
        n_passed = sum(result.outcome == "passed" for result in results)
        worst = min(results, key=lambda result: (result.outcome != "error", result.outcome == "passed"))
        cpu, wall = sum(result.cpu for result in results), sum(result.wall for result in results)
        return Result(
            worst.outcome, n_passed, len(cases), n_passed / max(1, len(cases)), worst.message, cpu, wall
        )

    def map(self, jobs, progress=None, method=None):
        """Call `method` (default: check) with each tuple of arguments, on all workers; results in order."""
        futures = [self.pool.submit(method or self.check, *job) for job in jobs]
        try:
            for _ in as_completed(futures):
                if progress:
                    progress()
            return [future.result() for future in futures]
        finally:  # after Ctrl-C nobody waits for the others
            for future in futures:
                future.cancel()


# -- reward: what all scripts share --------------------------------------------------------------------------

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
ATTACKS = ("", "import sys\nsys.exit(0)", "import os\nos._exit(0)", "def check(f): pass", "candidate = print")
EQUAL = "\n    class Equal:\n        def __eq__(self, other):\n            return True\n    return Equal()\n"
CHEATS = [*(f"\n    return None\n\n\n{attack}\n" for attack in ATTACKS), EQUAL]


def read_tasks(path) -> list[dict]:
    """Read tasks in HumanEval's format, or MBPP+'s (.jsonl or .jsonl.gz); mistakes end in one clear line."""
    tasks, mistakes = read_task_lines(path)
    if mistakes:
        number, error = next(iter(mistakes.items()))
        some = ", ".join(map(str, list(mistakes)[:20])) + ", ..." * (len(mistakes) > 20)
        more = f" ({len(mistakes)} broken lines: {some})" if len(mistakes) > 1 else ""
        raise SystemExit(f"{path}, line {number}: {error}{more}")
    return tasks


def read_task_lines(path):
    """Return the tasks of a file and, by line number, what is wrong with other lines; or raise SystemExit."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")  # splitlines() would split at U+2028, which JSON strings may hold
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file; for HumanEval: python data/prepare_humaneval.py") from None
    except Exception as error:  # a directory, no permission, not UTF-8, not gzip, cut short
        raise SystemExit(f"{path}: cannot be read: {error}") from None
    tasks, mistakes = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                task = read_task(line)
                if task["task_id"] in tasks:
                    raise ValueError(f"task_id {task['task_id']!r} was there before")
                tasks[task["task_id"]] = task
        except (ValueError, RecursionError) as error:
            mistakes[number] = error
    if not tasks and not mistakes:
        raise SystemExit(f"{path}: there is no task in it")
    return list(tasks.values()), mistakes


def read_task(line: str) -> dict:
    """Return one line of a task file with its five FIELDS; raises ValueError with what is wrong."""
    try:
        task = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if isinstance(task, dict) and {"code", "test_list", "test"} <= task.keys():
        task = from_mbpp_plus(task)
    for field in FIELDS:
        if not isinstance(task, dict) or not isinstance(task.get(field), str):
            raise ValueError(f"field {field!r} is missing or not a string")
        task[field].encode()  # a UnicodeEncodeError, for half a surrogate pair, is a ValueError
    try:
        compile_test(task["test"] + CALL_CHECK, task["prompt"])  # which is kept for its first use
    except SyntaxError as error:
        raise ValueError(f"its test does not compile: {error}") from None
    return task


def from_mbpp_plus(task: dict) -> dict:
    """Bring a task of the hub's evalplus/mbppplus into HumanEval's form, with the prompt that EvalPlus uses.

    Its test calls the function by its name, or as `candidate`, in statements at the top level.
    """
    try:
        names = [node.name for node in ast.parse(task["code"]).body if isinstance(node, ast.FunctionDef)]
        called = [name for name in names if re.search(rf"\b{name}\b", task["test_list"][0])]
        test = [f"candidate = {called[-1]}", task["test"], "def check(candidate): pass"]
        return {
            "task_id": f"Mbpp/{task['task_id']}",
            "prompt": f'"""\n{task["prompt"]}\n{task["test_list"][0]}\n"""\n',
            "canonical_solution": task["code"].strip("\n") + "\n",
            "test": "\n".join(task["test_imports"] + test),
            "entry_point": called[-1],
        }
    except (LookupError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"not a task of MBPP+: {type(error).__name__}: {error}") from None


NGRAM, SHARED = 8, 0.7  # PaLM calls a task contaminated from here on (arXiv:2204.02311, section 8)


def ngrams(task: dict) -> set[tuple[str, ...]]:
    """Return the set of 8-grams of words in prompt and solution, without case and punctuation."""
    words = re.findall(r"\w+", (task["prompt"] + task["canonical_solution"]).lower())
    return {tuple(words[first : first + NGRAM]) for first in range(max(1, len(words) - NGRAM + 1))}


def near_duplicates(train_tasks: list[dict], test_tasks: list[dict]) -> list[tuple[str, str, float]]:
    """Return (test task_id, training task_id, share of the former's 8-grams in the latter), from 70 % on.

    The largest share comes first. Paraphrases are not found.
    """
    holders = defaultdict(list)  # of an n-gram: the training tasks that have it
    for task in train_tasks:
        for gram in ngrams(task):
            holders[gram].append(task["task_id"])
    pairs = []
    for task in test_tasks:
        grams = ngrams(task)
        common = Counter(name for gram in grams for name in holders.get(gram, ()))
        pairs += [(task["task_id"], name, count / len(grams)) for name, count in common.items()]
    return sorted((pair for pair in pairs if pair[2] >= SHARED), key=lambda pair: -pair[2])


def overlap(train_tasks: list[dict], test_path) -> dict:
    """Return what training tasks share with the tasks of an evaluation: a dict, its "summary" one line."""
    if not os.path.exists(test_path):
        return {"test_path": test_path, "summary": f"overlap: {test_path} is not there: nothing compared"}
    test_tasks = read_tasks(test_path)
    pairs = near_duplicates(train_tasks, test_tasks)
    files = [{task["task_id"].split("/")[0] for task in tasks} for tasks in (train_tasks, test_tasks)]
    benchmarks = sorted(set.intersection(*files))
    count = len({test_id for test_id, _, _ in pairs})
    summary = (
        f"overlap: {count} of {len(test_tasks)} tasks in {test_path} have {SHARED:.0%} or more of their "
    )
    summary += f"{NGRAM}-grams in one training task"
    if pairs:
        summary += f" (most: {pairs[0][0]} with {pairs[0][1]}, {pairs[0][2]:.0%})"
    if benchmarks:
        summary += (
            f"; warning: both files are from {', '.join(benchmarks)}, so the score is not one on new tasks"
        )
    return {"test_path": test_path, "pairs": pairs, "same_benchmark": benchmarks, "summary": summary}


def program(task: dict, completion: str) -> str:
    """Join a prompt and its completion, which starts with the newline.

    Byte-level BPE merges that newline with the indentation after it, so all scripts tokenise prompt.rstrip().
    """
    return task["prompt"].rstrip() + completion


def reference(task: dict) -> str:
    """Return the reference solution as a completion."""
    return "\n" + task["canonical_solution"]


def job(task: dict, completion: str) -> tuple[str, str, str, str]:
    """Return the arguments of Sandbox.check. What rewards the policy and what evaluates it is this alone."""
    return program(task, completion), task["test"], task["entry_point"], task["prompt"]


def start_scoring(sandbox, task, completion):
    """Score a completion on the next idle worker; return a Future of its Result."""
    return sandbox.pool.submit(sandbox.check, *job(task, completion))


def score(sandbox, tasks, completions, progress=None):
    """Score completions, all workers at once; return one Result per (task, completion)."""
    return sandbox.map([job(*pair) for pair in zip(tasks, completions, strict=True)], progress)


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


if __name__ == "__main__":
    with Sandbox(timeout=1, require=()) as sandbox:
        for name, value in sandbox.report.items():
            print(f"{name:20}{value}")
        for expected, body in SELF_CHECK.items():
            outcome = sandbox.check(
                f"def f(a):\n    {body}", "def check(f):\n    assert f(3) == 4", "f"
            ).outcome
            print(f"{body:60}{outcome:12}{'as expected' if outcome == expected else 'NOT ' + expected}")
