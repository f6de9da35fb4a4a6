"""Measure what firejail around every program stops and costs, beside sandbox.py with and without firejail.

    python benchmarks/firejail.py --load 8        # 6 minutes on 2 cores with other work

Prints a table. Its columns are what public scripts do, and ours:

    subprocess.run       [python, file] with a time limit; exit code 0 is a pass
    firejail             the same with FIREJAIL before it, around each program
    firejail, limits     the same with LIMITS too, as careful scripts have it
    sandbox.py alone     Sandbox(wrapper=())
    sandbox.py           Sandbox(): firejail around each worker, not each program

First, programs try what they must not do. Then, while --load processes keep the cores busy, right programs
run, as many at a time as there are cores: references of mini tasks, which need almost no time, and programs
that need HEAVY of TIMEOUT seconds. Last, without this load, the time of a reference; the columns take turns.
For root there is --noprofile as well: its profile hides /tmp, and no program is found. The table in
docs/safety.md is an ordinary user's.
"""

import argparse
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandbox import Sandbox, program, read_tasks, reference

CORES = len(os.sched_getaffinity(0))
TIMEOUT, HEAVY = 5.0, 1.5  # seconds
ROUNDS, REFERENCES, BURNS = 5, 20, 10
FIREJAIL = ["firejail", "--quiet", "--net=none", "--private", *["--noprofile"] * (os.getuid() == 0)]
LIMITS = ["--rlimit-as=1096m", "--rlimit-nproc=32", "--rlimit-fsize=2m", "--rlimit-nofile=32"]
COMMANDS = {"subprocess.run": [], "firejail": FIREJAIL, "firejail, limits": FIREJAIL + LIMITS}
LASTING = (
    f"61.{os.getpid()}"  # seconds that a child of a program sleeps: no other command line has this number
)
TEST = "def check(f):\n    assert f()\n"
ACTS = {  # the body of f(), which returns whether it got what it wanted
    "connects to a port of this machine": "return bool(socket.create_connection(ADDRESS, 1))",
    "reads a file in the home folder": "return bool(open(HOME).read())",
    "reads a file outside the home folder": "return bool(open(OUTSIDE).read())",
    "empties a file in the home folder": "open(HOME, 'w').close()",
    "empties a file outside the home folder": "open(OUTSIDE, 'w').close()",
    "reads the trainer's environment": "return 'A_TOKEN' in os.environ",
    "kills another process of this user": "os.kill(VICTIM, 9)",
    "leaves a process behind": f"Popen(['sleep', '{LASTING}'], stdout=DEVNULL, stderr=DEVNULL)",
    "starts 100 processes": "pids = [os.fork() or time.sleep(1) or os._exit(1) for _ in range(100)]\n"
    "    return [os.wait() for _ in pids]",  # firejail's exit code is that of the process which ends last
    "gets 1.5 GB of memory": "import mmap; return bool(mmap.mmap(-1, 3 << 29))",
    "passes a test that it fails, by `os._exit(0)`": "os._exit(0)",
}
BURN = f"import time\ndef f():\n    while time.process_time() < {HEAVY}: pass\n    return True\n"


def find_python():
    """Return a Python outside the home folder, which --private hides."""
    home = os.path.expanduser("~/")
    if not any(path.startswith(home) for path in (sys.executable, os.path.realpath(sys.executable))):
        return sys.executable
    return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable


def alone(command, code, test, entry_point):
    """Run program and test in one process, as scripts without a judge do; the exit code is the verdict."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "solution.py")
        path.write_text(f"{code}\n{test}\ncheck({entry_point})\n")
        try:
            done = subprocess.run([*command, find_python(), path], capture_output=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def ours(sandbox, *job):
    return sandbox.check(*job).outcome == "passed"


def left_behind():
    """Kill what programs left running; return whether there was anything."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if LASTING in (folder / "cmdline").read_text().split("\0"):
                found.append(int(folder.name))
                os.kill(found[-1], 9)
    return bool(found)


def succeeds(check, body):
    """Let a program act; return whether it got what it wanted or did what can be seen from outside."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        folders = [tempfile.TemporaryDirectory(dir=path) for path in (os.path.expanduser("~"), None)]
        files = [Path(stack.enter_context(folder), "checkpoint") for folder in folders]
        for file in files:
            file.write_text("weights")
        victim = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(victim.kill)
        names = "import os, socket, time\nfrom subprocess import DEVNULL, Popen\n"
        names += f"ADDRESS, VICTIM = {server.getsockname()}, {victim.pid}\n"
        names += f"HOME, OUTSIDE = {[str(file) for file in files]}\n"
        got = check(f"{names}def f():\n    {body}\n", TEST, "f")
        with suppress(subprocess.TimeoutExpired):
            victim.wait(0.5 * ("VICTIM" in body))  # os.kill does not wait for the end
        are_whole = all(file.read_text() for file in files)
        return got or not are_whole or victim.poll() is not None or left_behind()


def false_verdicts(check, jobs):
    """Run right programs on all cores; return how many got a wrong verdict, as text."""
    with ThreadPoolExecutor(CORES) as pool:
        return f"{sum(not passed for passed in pool.map(lambda job: check(*job), jobs))} of {len(jobs)}"


def seconds(checkers, jobs):
    """Let the checkers take turns on every job; return {name: median seconds}."""
    times = {name: [] for name in checkers}
    for job in jobs * ROUNDS:
        for name, check in checkers.items():
            start = time.perf_counter()
            check(*job)
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What firejail stops and costs, beside sandbox.py.")
    parser.add_argument("--load", type=int, default=8, help="processes that keep the cores busy")
    args = parser.parse_args()
    if not shutil.which("firejail"):
        raise SystemExit("firejail is not installed: apt-get install firejail")
    os.environ["A_TOKEN"] = "secret"
    tasks = read_tasks(Path(__file__).resolve().parents[1] / "data/mini_test.jsonl")[:REFERENCES]
    jobs = [(program(task, reference(task)), task["test"], task["entry_point"]) for task in tasks]
    burns = [(BURN, TEST, "f")] * BURNS
    checkers = {name: partial(alone, command) for name, command in COMMANDS.items()}
    with Sandbox(CORES, TIMEOUT, wrapper=()) as bare, Sandbox(CORES, TIMEOUT) as sandbox:
        if sandbox.report["wrapper"] != "firejail":
            raise SystemExit(f"{sandbox.report['wrapper']} here, as in another sandbox: nothing to measure")
        checkers |= {"sandbox.py alone": partial(ours, bare), "sandbox.py": partial(ours, sandbox)}
        rows = {}
        for act, body in ACTS.items():
            cells = ["**yes**" if succeeds(check, body) else "no" for check in checkers.values()]
            rows[f"a program {act}"] = cells
        with ExitStack() as stack:
            for _ in range(args.load):
                burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(burner.kill)
            for what, some in (("no time", jobs), (f"{HEAVY} s of {TIMEOUT:.0f} s", burns)):
                cells = [false_verdicts(check, some) for check in checkers.values()]
                rows[f"false verdicts under load, right programs that take {what}"] = cells
        medians = seconds(checkers, jobs)
        rows["milliseconds per program, without load"] = [f"{1000 * value:.0f}" for value in medians.values()]
    version = subprocess.run(["firejail", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    print(f"{CORES} cores, load {args.load}, uid {os.getuid()}, Python {platform.python_version()}")
    print(f"{version}: {' '.join(FIREJAIL)}; limits: {' '.join(LIMITS)}\n")
    print("| |", " | ".join(f"`{name}`" for name in checkers), "|")
    print("|---" * (1 + len(checkers)) + "|")
    for what, cells in rows.items():
        print("|", what, "|", " | ".join(cells), "|")
