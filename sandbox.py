"""Runs untrusted programs and says whether they pass their test: the reward of all scripts.

    trainer (torch, CUDA, tokens)    never forks; starts one zygote per worker
       |  socket                     down: open files, the job and a place for its result; up: how it ended
    zygote (sandbox_worker.py)       without environment; forks, supervises, reaps; reads no file of a job
       |-- candidate                 runs the program; holds one socket to the judge, no test and no verdict
       `-- judge                     runs the test, calls the candidate over that socket, writes the verdict

A program that shares an interpreter with its test can write its own mark: `sys.exit(0)`, an object equal to
all others, a walk up the stack. Only plain data crosses this socket: a program can return values or die. With
stdin/stdout tests there is no judge, and no process gets the expected output before the program has ended.

What holds programs back on this machine is measured at each start; `python sandbox.py` shows it. NOT stopped:
holes of the kernel, weak tests, marks in files' access times. A program has the standard library without
sockets, processes and files; its arguments are copies, so no test sees what it changes in place.
"""

import ctypes
import errno
import fcntl
import functools
import importlib.util
import json
import marshal
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import sandbox_worker
from data.checks import (  # noqa: F401 (some are for the scripts, which share this file)
    check_logprobs,
    check_model,
    check_supported,
    compute_dtype,
    parse_config,
    stop_ids,
    stop_with,
    trained_tokenizer,
    within,
)
from data.evalplus_files import limits
from data.tasks import (  # noqa: F401
    CALL_CHECK,
    compile_test,
    decoded,
    defines_check,
    encode_prompt,
    io_cases,
    lossy,
    program,
    read_pairs,
    read_tasks,
    reference,
    stub,
)
from sandbox_worker import FAULTS, PR_SET_DUMPABLE, read_all, same_output, wall_limit

getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # ASCII terminals; not in notebooks

# -- what programs may ask of the kernel; all else fails with EPERM ------------------------------------------

SCMP_ALLOW, SCMP_KILL, SCMP_ERRNO, SCMP_LE, SCMP_EQ, SCMP_MASKED_EQ = 0x7FFF0000, 0x80000000, 0x50000, 3, 4, 7
SCMP_OPTIMIZE, CLONE_THREAD, F_GETFL, F_DUPFD_CLOEXEC = 8, 0x10000, 3, 1030
HARMLESS = """read write readv writev pread64 close close_range lseek mmap munmap mremap mprotect madvise
 brk futex stat fstat lstat newfstatat statx access faccessat faccessat2 getdents64 getcwd readlink
 readlinkat poll ppoll select pselect6 pipe pipe2 dup dup2 dup3 rt_sigaction rt_sigprocmask rt_sigreturn
 sigaltstack alarm getitimer setitimer pause nanosleep gettimeofday time times restart_syscall sched_yield
 getpid getppid gettid getuid geteuid getgid getegid getrlimit getrusage sysinfo uname getrandom
 set_robust_list rseq membarrier exit exit_group"""
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
    (SCMP_ALLOW, "prlimit64 sched_getaffinity", 0, SCMP_EQ, 0, 0),  # 0 is the process itself
    (SCMP_ALLOW, "clock_gettime clock_getres clock_nanosleep", 0, SCMP_LE, 15, 0),  # no CPU clock by pid
)


@functools.cache
def seccomp_filter():
    """Return RULES as code for the kernel, b"" without libseccomp."""
    try:  # it knows the numbers of system calls on all processors, and comes with apt and systemd
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(SCMP_ERRNO | errno.EPERM))
    library.seccomp_attr_set(context, SCMP_OPTIMIZE, 2)  # a tree of numbers: installed in half the time
    for action, names, *condition in RULES:
        compare = struct.pack("IIQQ", *condition) if condition else b""
        for name in names.split():
            number = library.seccomp_syscall_resolve_name(name.encode())
            library.seccomp_rule_add_array(context, ctypes.c_uint(action), number, bool(compare), compare)
    with open(os.memfd_create("code"), "rb") as file:
        library.seccomp_export_bpf(context, file.fileno())
        return read_all(file.fileno())


# -- trusted side: what a test is, who runs it, what came of it ----------------------------------------------

LAYERS = "seccomp", "landlock"  # take one out to see what the report says without it


@dataclass(frozen=True)
class Result:
    """What became of one program. `message` is partly the program's own text: print its repr."""

    outcome: str  # passed | failed | exception | syntax | timeout | memory | violation | error
    n_passed: int = 0  # asserts or cases that held
    n_tests: int = 0  # those that were executed, or that the test has if these are more
    fraction: float = 0.0  # n_passed / n_tests, below 1 unless passed; 0 if the end is early and n unknown
    message: str = ""
    cpu: float = 0.0  # seconds of the candidate
    wall: float = 0.0  # seconds of the job
    cases: tuple = ()  # of check_io: the Result of each case


def ending(status: int, late: bool) -> str:
    """Name the outcome for how a program's process ended; "passed" if it did well."""
    if late or status & 127 in (signal.SIGXCPU, signal.SIGALRM):
        return "timeout"
    if status & 127 == signal.SIGSYS:
        return "violation"
    return {0: "passed", **dict(enumerate(FAULTS.values(), 100))}.get(status >> 8 or status, "exception")


def judged(known, n_asserts: int, verdict, status: int, late: bool, cpu: float, wall: float) -> Result:
    """Make a Result of what the judge counted and how the candidate ended; `known`: how much there was."""
    ended = b'["timeout", "", 0, 0, false]' if late else b""  # the test itself ran out of time
    outcome, message, n_passed, n_tests, is_whole = json.loads(verdict or ended)
    if late or outcome == "died":
        outcome = ending(status or 1, late)
    if outcome != "passed":  # a loop may go round as often as it likes
        if not is_whole:
            n_passed = min(n_passed, known)
        elif 0 < known < n_tests:
            n_passed, n_tests = max(0, known - n_tests + n_passed), known
        n_tests = max(n_tests, n_asserts, n_passed + 1, known)
    return Result(outcome, n_passed, n_tests, n_passed / n_tests, message, cpu, wall)


class Worker:
    """One zygote, replaced when it has died."""

    def __init__(self, wrapper, timeout, memory_mb, numpy_folder):
        python = os.path.realpath(sys.executable)
        self.command = [*wrapper, python, "-s", "-S", "-B", os.path.abspath(sandbox_worker.__file__)]
        bpf = seccomp_filter() if "seccomp" in LAYERS else b""
        self.config = bpf.hex(), "landlock" in LAYERS, timeout, memory_mb, numpy_folder
        self.process = None

    def start(self):
        """Start the zygote and return what it says of itself; raises OSError or ValueError if it does not."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = subprocess.DEVNULL
        with theirs:  # a session of its own: Ctrl-C is for the trainer
            self.process = subprocess.Popen(
                self.command, env={}, cwd="/", stdin=theirs, stdout=null, stderr=null, start_new_session=True
            )
        self.control.settimeout(wall_limit(self.config[2]) + 10)
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
CALL = """import json, marshal
def same(value, right):
    if isinstance(value, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(value) == len(right) and all(map(same, value, right))
    if not (isinstance(value, dict) and isinstance(right, dict)):
        return value == right
    keys = [str(key) if type(key) is int and key not in right else key for key in value]  # JSON: "1" for 1
    rights = map(right.get, keys)
    return len(keys) == len(right) and {{*keys}} == {{*right}} and all(map(same, value.values(), rights))
def check(candidate):
    args, expected = marshal.loads({!r})
    json.dumps(result := candidate(*args))  # or a TypeError
    assert same(result, expected)
"""
SHORT = 1 << 16  # bytes that the trainer compares itself


def firejail(numpy_folder=""):
    """Return the command that takes network and home from a zygote, [] where firejail is not installed."""
    path, home = shutil.which("firejail"), os.path.expanduser("~/")
    needed = sys.base_prefix, os.path.abspath(sandbox_worker.__file__), numpy_folder
    files = [f"--whitelist={path}" for path in needed if path.startswith(home)] or ["--private"]
    return [path, "--quiet", "--noprofile", "--net=none", *files] if path else []


class Sandbox(ExitStack):
    """Checks programs, `workers` at a time (None: one per available core). Use `with`, or call close().

    A program has memory_mb of address space and `timeout` seconds; 5 * timeout + 1 if it queues for a core.
    Where the tests of `tasks` need numpy, as those of HumanEval+ do, tests can import it, programs cannot.
    Where they are EvalPlus's, both limits are at least its own.
    wrapper: a command around each zygote; "auto" is firejail, where it has an effect. require: what must be
    true in `report`; None is all of ACTS, or the words in the environment variable SANDBOX_REQUIRE. Raises
    SystemExit where something of that is not true, or nothing runs.
    """

    def __init__(self, workers=None, timeout=2.0, memory_mb=512, wrapper="auto", require=None, tasks=()):
        super().__init__()
        if sys.platform != "linux":
            raise SystemExit("sandbox.py needs Linux (on Windows use WSL2, on a Mac a Linux container)")
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = workers or max(1, cores)
        timeout, memory_mb = limits(tasks, timeout, memory_mb)
        numpy = any("numpy" in task["test"] for task in tasks) and importlib.util.find_spec("numpy")
        numpy_folder = os.path.dirname(os.path.dirname(numpy.origin)) if numpy else ""
        tried = []
        for command in [firejail(numpy_folder), []] if wrapper == "auto" else [list(wrapper)]:
            self.workers = [Worker(command, timeout, memory_mb, numpy_folder) for _ in range(workers)]
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
            sandbox_worker.libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
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

    def __del__(self):
        with suppress(Exception):  # it is half made, or a thread of its own pool drops it
            self.close()  # what an exception in a notebook left open, when the cell runs again

    def _measure(self):
        """Let programs try what they must not do; return which promises hold."""
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(tcp.getsockname())
        # A folder that other users reach, or the file would be out of reach by itself.
        folder = next((path for path in ("/tmp", "/dev/shm") if os.access(path, os.W_OK)), None)
        with tcp, udp, tempfile.TemporaryDirectory(dir=folder) as directory:
            path = os.path.join(directory, "file")
            open(path, "w").close()
            os.chmod(path, 0o666)
            os.chmod(directory, 0o777)

            def attempt(act):
                names = f"import os, resource, socket\nPATH, ADDRESS = {path!r}, {tcp.getsockname()}\n"
                return self.check(f"{names}def f():\n    {act}", "def check(f):\n    assert f() is None", "f")

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

    def _test(self, code, test, entry_point, prompt, has_program_names, n_tests=None):
        try:
            compiled = compile_test(test, prompt)
        except (SyntaxError, ValueError) as error:
            return Result("error", message=f"the test cannot be used: {error}")
        job = marshal.dumps((code, entry_point, has_program_names, prompt + test, *compiled))
        return self._run([job], functools.partial(judged, n_tests or compiled[3], compiled[2]))

    def check(self, code, test, entry_point, prompt="", n_tests=None):
        """Run the program `code`; `test` defines check(candidate) and gets the function named `entry_point`.

        The test's helpers come from `prompt`, never from the program. Outcome "error": our own fault.
        n_tests: what the reference's Result says; without it, programs that end early may have no credit.
        """
        return self._test(code, test + CALL_CHECK, entry_point, prompt, False, n_tests)

    def check_asserts(self, code, asserts, setup="", entry_point="", n_tests=None):
        """Run the program `code` and asserts on its names, as in MBPP; entry_point: if it is a builtin's."""
        return self._test(code, "\n".join([setup, *asserts]), entry_point, "", True, n_tests)

    def check_io(self, code, cases, fn_name=None):
        """Run the program `code` once per case: (stdin, stdout), or (arguments, result) of `fn_name`.

        For APPS and TACO; the rules of comparison stand in docs/reward.md. Ends at the first timeout, as each
        would cost as much: the cases left did not pass.
        """
        if not cases:
            return Result("error", message="there is no case")
        results = []
        for given, expected in cases:
            if fn_name:
                results.append(self.check(code, CALL.format(marshal.dumps((given, expected))), fn_name))
            else:
                texts = [text.encode(errors="surrogatepass") for text in (code, given, expected)]
                results.append(self._script(*texts))
            if results[-1].outcome == "timeout":
                break
        results += [Result("timeout", 0, 1, message="not run")] * (len(cases) - len(results))
        n_passed = sum(result.outcome == "passed" for result in results)
        worst = min(results, key=lambda result: (result.outcome != "error", result.outcome == "passed"))
        cpu, wall = sum(result.cpu for result in results), sum(result.wall for result in results)
        counts = n_passed, len(cases), n_passed / len(cases)
        return Result(worst.outcome, *counts, worst.message, cpu, wall, tuple(results))

    def _script(self, source, given, expected):
        """Run a program between two files, and compare what it wrote: if that is long, by another job."""
        printed = []

        def ended(output, status, late, cpu, wall):
            printed.append(output)
            passed = (outcome := ending(status, late)) == "passed"
            return Result(outcome, int(passed), 1, float(passed), "", cpu, wall)

        limit = max(1 << 20, 2 << len(expected).bit_length())  # does not tell the length
        result = self._run((source, given), ended, limit)
        if result.outcome != "passed" or printed[-1].strip() == expected.strip():
            return result
        if len(printed[-1]) + len(expected) > SHORT:
            outcome = self._run((printed[-1], expected), ended, 0).outcome.replace("exception", "failed")
        else:
            outcome = "passed" if same_output(printed[-1], expected) else "failed"
        return result if outcome == "passed" else replace(result, outcome=outcome, n_passed=0, fraction=0.0)

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

ATTACKS = ("", "import sys\nsys.exit(0)", "import os\nos._exit(0)", "def check(f): pass", "candidate = print")
CHEATS = [*(("None", attack) for attack in ATTACKS), ("type('', (), {'__eq__': lambda *_: True})()",)]


def open_log(path):
    """Open a log to append to it, and its folder; BlockingIOError while another process has it open."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = open(path, "a", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BlockingIOError("another run is writing there") from None
    except OSError:  # a file system without locks
        return file
    return file


def job(sandbox, task: dict, completion: str) -> Result:
    """Run a completion against its task. What rewards the policy and what evaluates it is this alone."""
    code, name, n_tests = program(task, completion), task["entry_point"], task.get("n_tests")
    if "input_output" in task:
        return sandbox.check_io(code, io_cases(task["input_output"]), task["input_output"].get("fn_name"))
    if defines_check(task["test"]):
        return sandbox.check(code, task["test"], name, task["prompt"], n_tests)
    return sandbox.check_asserts(code, [task["test"]], "", name, n_tests)


def start_scoring(sandbox, task, completion):
    """Score a completion on the next idle worker; return a Future of its Result."""
    return sandbox.pool.submit(job, sandbox, task, completion)


def score(sandbox, tasks, completions, progress=None):
    """Score completions, all workers at once; return one Result per (task, completion)."""
    pairs = zip(tasks, completions, strict=True)
    return sandbox.map([(sandbox, *pair) for pair in pairs], progress, job)


def shaped(outcome: str, fraction: float, reward: str) -> float:
    """Return the reward for a Result: what the option `reward` of the training scripts means.

    binary: whether it passed. pass_rate: the share of its tests. structured: -1 if it does not compile, -0.6
    if it raises or breaks a limit (CodeRL, 2207.01780), else -0.3 + 1.3 * that share (RLTF, 2307.04349).
    """
    if outcome == "error":
        print("warning: the sandbox itself failed on a program, which counts as wrong", file=sys.stderr)
    elif reward == "structured" and outcome not in ("passed", "failed"):
        return -1.0 if outcome == "syntax" else -0.6
    return {"binary": float(outcome == "passed"), "pass_rate": fraction}.get(reward, 1.3 * fraction - 0.3)


def preflight(sandbox, tasks, tokenizer=None, cut=None):
    """Score reference solutions (must pass) and cheats (must not); return one line or raise SystemExit.

    Also the references as they come back from a tokenizer, or from cut(task, completion), where given.
    """
    cheats = [
        (task, stub(task, *cheat)) for i, task in enumerate(tasks) for cheat in CHEATS[: 6 if i < 8 else 1]
    ]
    right = [(task, reference(task)) for task in tasks]
    again = [(task, decoded(tokenizer, task)) for task in (lossy(tokenizer, tasks) if tokenizer else [])]
    again += [(task, cut(task, text)) for task, text in right if cut and cut(task, text) != text]
    pairs = right + again + cheats
    results = score(sandbox, [task for task, _ in pairs], [completion for _, completion in pairs])
    n, m = len(tasks), len(right + again)
    scored = [(task["task_id"], result) for (task, _), result in zip(pairs, results)]
    for task, result in zip(tasks, results):
        task["n_tests"] = result.n_tests  # for the credit of programs that end early
    findings = {
        "the sandbox itself failed on": [item for item in scored if item[1].outcome == "error"],
        "the reference does not pass for": [item for item in scored[:n] if item[1].outcome != "passed"],
        "encoded or cut, the reference fails of": [x for x in scored[n:m] if x[1].outcome != "passed"],
        "a cheat passes for": [item for item in scored[m:] if item[1].outcome == "passed"],
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
            outcome = sandbox.check(f"def f(a):\n {body}", "def check(f): assert f(3) == 4", "f").outcome
            print(f"{body:60}{outcome:12}{'as expected' if outcome == expected else 'NOT ' + expected}")
