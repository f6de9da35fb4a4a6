"""Right programs between stdin and stdout, as contest solvers write them; the counterpart of attacks.py.

    python tests/correct_scripts.py    # without pytest, as any user: prints those that do not pass, as JSON

Each must pass. Without cases of their own they print the sum of the numbers in each line, for lines of two
numbers. BARRED lists what is out of reach by design, with its reason; it must not pass.
"""

import json
import sys
from pathlib import Path
from textwrap import dedent

LINES = [("1 2\n", "3\n"), ("5 7\n10 -3\n", "12\n7\n")]
SCRIPTS = {}  # name: (code, cases)
BARRED = {}  # name: (code, reason)


def script(name, code, cases=LINES):
    assert name not in SCRIPTS
    SCRIPTS[name] = dedent(code).strip("\n") + "\n", cases


def once(name, code, expected, given=""):
    script(name, code, [(given, expected)])


def barred(name, code, reason):
    BARRED[name] = dedent(code).strip("\n") + "\n", reason


# -- reading -------------------------------------------------------------------------------------------------

PRINT = "print(sum(map(int, line.split())))"
for name, lines in {
    "sys.stdin": "sys.stdin",
    "readlines": "sys.stdin.readlines()",
    "buffer": "sys.stdin.buffer",
    "buffer.readlines": "sys.stdin.buffer.readlines()",
    "read().splitlines()": "sys.stdin.read().splitlines()",
    "iter(readline)": "iter(sys.stdin.readline, '')",
    "iter(buffer.readline)": "iter(sys.stdin.buffer.readline, b'')",
    "open(0)": "open(0)",
    "open(0, 'rb')": "open(0, 'rb').read().splitlines()",
    "open(0) without closefd": "open(0, closefd=False)",
    "fdopen": "os.fdopen(0)",
    "a descriptor's copy": "os.fdopen(os.dup(0))",
    "fileno": "open(sys.stdin.fileno(), encoding='utf-8')",
    "os.read": "os.read(0, 10**6).splitlines()",
    "os.read of its size": "os.read(0, os.fstat(0).st_size).decode().split('\\n')[:-1]",
    "BytesIO": "io.BytesIO(os.read(0, os.fstat(0).st_size))",
    "fileinput": "fileinput.input()",
    "fileinput, files named": "fileinput.input(files='-')",
    "codecs.getreader": "codecs.getreader('utf-8')(sys.stdin.buffer)",
    "detach": "io.TextIOWrapper(sys.stdin.detach())",
    "BufferedReader": "io.BufferedReader(io.FileIO(0, closefd=False))",
    "mmap": "mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:].splitlines()",
    "/dev/stdin": "open('/dev/stdin')",
    "pathlib": "pathlib.Path('/dev/stdin').read_text().splitlines()",
    "sys.__stdin__": "sys.__stdin__",
    "raw": "sys.stdin.buffer.raw.read().splitlines()",
    "from the start": "(sys.stdin.read(), sys.stdin.seek(0), sys.stdin)[2]",
}.items():
    modules = [word for word in "codecs fileinput io mmap os pathlib sys".split() if f"{word}." in lines]
    imports = f"import {', '.join(modules)}\n" if modules else ""
    script(f"read: {name}", f"{imports}for line in {lines}:\n    {PRINT}")

script(
    "read: input until EOFError",
    """
    while True:
        try:
            a, b = map(int, input().split())
        except EOFError:
            break
        print(a + b)
    """,
)
script(
    "read: input replaced",
    """
    import sys
    input = sys.stdin.readline
    while line := input():
        print(sum(map(int, line.rstrip().split())))
    """,
)
script(
    "read: input replaced in builtins",
    """
    import sys
    __builtins__.input = lambda: sys.stdin.readline().rstrip("\\n")
    while line := input():
        print(sum(map(int, line.split())))
    """,
)
script(
    "read: stdin reopened",
    """
    import sys
    sys.stdin = open(0)
    for line in sys.stdin:
        print(sum(map(int, line.split())))
    """,
)
script(
    "read: a file if there is one",
    """
    import os, sys
    if os.path.exists("input.txt"):
        sys.stdin = open("input.txt")
    try:
        sys.stdin = open("in.txt")
    except FileNotFoundError:
        pass
    for line in sys.stdin:
        print(sum(map(int, line.split())))
    """,
)
script(
    "read: tokens of a generator",
    """
    import sys
    def tokens():
        for line in sys.stdin:
            yield from line.split()
    token = tokens()
    for a in token:
        print(int(a) + int(next(token)))
    """,
)
once("read: with a prompt", "print(2 * int(input('n: ')))", "n: 8", "4\n")
once("read: no newline at the end", "a, b = input(), input()\nprint(a + b)", "12", "1\n2")
once("read: other line ends", "import sys\nprint(len(sys.stdin.read().split('\\n')))", "3", "1\r\n2\r\n")
once("read: other scripts", "print(input()[::-1])", "\u03b3\u03b2\u03b1", "\u03b1\u03b2\u03b3\n")
once("read: nothing there", "import sys\nprint(repr(sys.stdin.read()))", "''")

# -- writing -------------------------------------------------------------------------------------------------

EACH = "for line in sys.stdin:\n    total = sum(map(int, line.split()))\n"
for name, before, write in (
    ("print to stdout", "", "print(total, file=sys.stdout)"),
    ("write", "write = sys.stdout.write", "write(f'{total}\\n')"),
    ("writelines", "", "sys.stdout.writelines([str(total), '\\n'])"),
    ("buffer", "", "sys.stdout.buffer.write(b'%d\\n' % total)"),
    ("text and buffer", "", "print(total, end='', flush=True); sys.stdout.buffer.write(b'\\n')"),
    ("os.write", "import os", "os.write(1, b'%d\\n' % total)"),
    ("os.write, fileno", "import os", "os.write(sys.stdout.fileno(), b'%d\\n' % total)"),
    ("sys.__stdout__", "", "sys.__stdout__.write(f'{total}\\n')"),
    ("open(1)", "out = open(1, 'w')", "print(total, file=out)"),
    ("open(1), not closed", "out = open(1, 'w', closefd=False)", "out.write(f'{total}\\n')"),
    ("fdopen", "import os\nout = os.fdopen(1, 'wb')", "out.write(b'%d\\n' % total)"),
    ("a descriptor's copy", "import os\nout = os.fdopen(os.dup(1), 'w')", "out.write(f'{total}\\n')"),
    ("TextIOWrapper", "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)", "print(total)"),
    (
        "TextIOWrapper, with options",
        "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8', line_buffering=True)",
        "print(total)",
    ),
    ("detached", "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())", "print(total)"),
    ("codecs", "import codecs\nsys.stdout = codecs.getwriter('utf-8')(sys.stdout.buffer)", "print(total)"),
    ("reconfigure", "sys.stdout.reconfigure(line_buffering=True, encoding='utf-8')", "print(total)"),
    ("BufferedWriter", "from io import *\nout = BufferedWriter(FileIO(1, 'w'))", "out.write(b'%d\\n'%total)"),
    ("logging", "import logging\nlogging.basicConfig(stream=sys.stdout, format='%(message)s', level=20)",
     "logging.info(total)"),
    ("partial", "from functools import partial\nprint = partial(print, flush=True)", "print(total)"),
    ("pprint", "from pprint import pprint", "pprint(total)"),
):  # fmt: skip
    body = "\n".join("    " + part for part in write.split("; "))
    script(f"write: {name}", f"import sys\n{before}\n{EACH}{body}")

FAST = """
import os, sys
from atexit import register
from io import BytesIO, IOBase
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip("\\r\\n")
"""
script("write: a contest template", FAST + f"while line := input():\n    {PRINT}")
script(
    "write: one that replaces print",
    FAST + "def print(*args):\n    sys.stdout.write(' '.join(map(str, args)) + '\\n')\n"
    f"while line := input():\n    {PRINT}",
)
GOLFED = """
import atexit, io, sys
buffer = io.BytesIO() if sys.version_info[0] == 2 else io.StringIO()
sys.stdout = buffer
@atexit.register
def write():
    sys.__stdout__.write(buffer.getvalue())
"""
script("write: all at once in an atexit hook", f"{GOLFED}for line in sys.stdin:\n    {PRINT}")
script("write: the same, sys.exit()", f"{GOLFED}for line in sys.stdin:\n    {PRINT}\nsys.exit()")
HOOK = "import atexit, os, sys\nout = []\natexit.register(lambda: os.write(1, '\\n'.join(out).encode()))\n"
script("write: os.write in an atexit hook", f"{HOOK}{EACH}    out.append(str(total))")
HOOKS = "import atexit\natexit.register(print, 2)\natexit.register(print, 1)\natexit.register(lambda: 1 / 0)"
once("write: hooks in their order, one of which fails", HOOKS, "1\n2")
script(
    "write: redirect_stdout",
    f"""
    import contextlib, io, sys
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        for line in sys.stdin:
            {PRINT}
    print(buffer.getvalue(), end="")
    """,
)
script(
    "write: an object of its own, which writes when it is gone",
    f"""
    import os, sys
    class Writer:
        def __init__(self):
            self.parts = []
        def __del__(self):
            os.write(1, "".join(self.parts).encode())
    out = Writer()
    {EACH.strip().replace(chr(10), chr(10) + "    ")}
        out.parts.append(f"{{total}}\\n")
    """,
)
script(
    "write: an object that flushes, as sys.stdout",
    f"""
    import sys
    class Writer:
        parts = []
        write = parts.append
        def flush(self):
            sys.__stdout__.write("".join(self.parts))
    sys.stdout = Writer()
    for line in sys.stdin:
        {PRINT}
    """,
)
once("write: a generator's finally", "def f():\n    try: yield\n    finally: print(3)\ng = f()\nnext(g)", "3")
once("write: much on stderr", "import sys\nprint('x' * 10**6, file=sys.stderr)\nprint(3)", "3")
once("write: stdout closed at last", "import sys\nprint(3)\nsys.stdout.close()", "3")
once("write: descriptor closed at last", "import os\nprint(3, flush=True)\nos.close(1)\nos._exit(0)", "3")
once("write: other scripts", "print('\u03b1', '\u4e2d', '\U0001f600')", "\u03b1 \u4e2d \U0001f600")
once("write: bytes above 127", "import sys\nsys.stdout.buffer.write('\u00e9'.encode())", "\u00e9")
once("write: 2 MB of lines", "print('1 2\\n' * 500000)", "1 2\r\n" * 500000)
once("write: 2 MB in one line", "print(*range(300000))", " ".join(map(str, range(300000))) + " \n")

# -- ending --------------------------------------------------------------------------------------------------

for name, end in {
    "sys.exit()": "import sys\nsys.exit()",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "exit()": "exit()",
    "quit()": "quit()",
    "SystemExit": "raise SystemExit",
    "exit in a function": "def main():\n    exit(0)\nmain()",
    "os._exit": "import os, sys\nsys.stdout.flush()\nos._exit(0)",
    "in a thread": "import sys, threading\nthreading.Thread(target=sys.exit).start()",
    "a daemon goes on": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
}.items():
    once(f"end: {name}", f"print(3)\n{end}", "3")

# -- surroundings --------------------------------------------------------------------------------------------

once("sees: argv", "import sys\nprint(sys.argv)", "['solution.py']")
once("sees: __name__", "print(__name__, __file__.rsplit('/')[-1], __doc__)", "__main__ solution.py None")
once("sees: no more arguments", "import sys\nfor name in sys.argv[1:]: open(name)\nprint(3)", "3")
once("sees: itself", "import __main__\nx = 3\nprint(__main__.x)", "3")
once("sees: module builtins", "__builtins__.answer = 3\nprint(answer)", "3")
once("sees: not a terminal", "import os, sys\nprint(sys.stdin.isatty(), os.isatty(1))", "False False")
once("sees: cores", "import os\nprint(os.cpu_count() > 0 and len(os.sched_getaffinity(0)) > 0)", "True")
once("sees: times", "import time\na = time.time()\nprint(a - a, time.process_time() > 0)", "0.0 True")
once("sees: all clocks", "import time\nfor i in (0, 1, 2, 3, 4, 7): time.clock_gettime(i)\nprint(3)", "3")
once("sees: home", "import os, pathlib\nprint(os.path.expanduser('~'), pathlib.Path.home())", "/ /")
once("sees: user", "import getpass\nprint(getpass.getuser())", "nobody")
once("sees: sysconfig", "import sysconfig\nprint(len(sysconfig.get_paths()['stdlib']) > 0)", "True")
once("sees: variables", "import os\nprint(os.environ.get('LOCAL'), 'LOCAL' in os.environ)", "None False")
ZONE = """
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError
try:
    hours = datetime(2020, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo")).utcoffset().seconds // 3600
except ZoneInfoNotFoundError:
    hours = 9
print(hours)
"""
once("sees: time zones", ZONE, "9")
once("sees: no time zone of that name", ZONE.replace("Asia/Tokyo", "Asia/Nowhere"), "9")
once("sees: local time", "import time\nprint(time.localtime(0).tm_year in (1969, 1970))", "True")
PARSE = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', type=int, default=3)\n"
once("uses: argparse", PARSE + "print(p.parse_args().n, p.prog)", "3 solution.py")
DOCTEST = 'def f():\n    """\n    >>> f()\n    3\n    """\n    return 3\n'
once("uses: doctest", DOCTEST + "import doctest\ndoctest.testmod()\nprint(f())", "3")
UNITTEST = "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\n"
once("uses: unittest", UNITTEST + "unittest.main(exit=False)\nprint(3)", "3")
PICKLE = "import pickle\nclass A: x = 3\nprint(pickle.loads(pickle.dumps(A())).x)"
once("uses: pickle of its own class", PICKLE, "3")
DATA = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 3\nprint(A())"
once("uses: dataclass", DATA, "A(x=3)")
once(
    "uses: typing",
    "from typing import *\ndef f(x: List['int']) -> Optional[int]: return x[0]\nprint(f([3]))",
    "3",
)
once("uses: eval", "print(eval(input()))", "7", "1 + 2 * 3\n")
once("uses: exec", "exec('def f(): return 3')\nprint(f())", "3")
once("uses: globals", "globals()['x'] = 3\nprint(x)", "3")
once("uses: decimal", "from decimal import *\ngetcontext().prec = 30\nprint(Decimal(1) / 3)", "0." + "3" * 30)
once("uses: random, seeded", "import random\nrandom.seed(1)\nprint(random.randrange(10))", "2")
RANDOM = "import random\nprint(random.random() == 0.8444218515250481 == random.Random().random())"
once("uses: random, not seeded", RANDOM, "True")
AGAIN = "import random\na = random.random()\nrandom.seed()\nprint(a == random.random())"
once("uses: random, seeded with nothing", AGAIN, "True")
once("uses: SystemRandom", "import random\nprint(0 <= random.SystemRandom().random() < 1)", "True")
ALARM = "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print(3))\n"
ALARM += "signal.setitimer(0, 0.01)\nsignal.pause()"
once("uses: alarm", ALARM, "3")
STACK = "from resource import *\nsetrlimit(RLIMIT_STACK, getrlimit(RLIMIT_STACK))\nprint(3)"
once("uses: resource", STACK, "3")
once("uses: gc", "import gc\ngc.disable()\nprint(gc.collect() * 0)", "0")
DEEP = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\n"
once("uses: deep recursion", DEEP + "print(f(5000))", "5000")
CACHED = "from functools import cache\n" + DEEP.replace("def", "@cache\ndef")
once("uses: cache and recursion", CACHED + "print(f(900))", "900")
THREAD = "import threading\n{}t = threading.Thread(target=lambda: print(f(20000)))\nt.start()\n"
for size in ("1 << 26", "2 ** 27", "10 ** 8 // 4096 * 4096", "1 << 28"):
    stack = THREAD.format(f"threading.stack_size({size})\n")
    once(f"threads: a stack of {size}", DEEP + stack + "t.join()", "20000")
once("threads: not joined", DEEP + THREAD.format("threading.stack_size(1 << 26)\n"), "20000")
POOL = (
    "from concurrent.futures import ThreadPoolExecutor\nimport time\nwith ThreadPoolExecutor({0}) as pool:\n"
)
POOL += "    print(sum(pool.map(lambda x: time.sleep(0.01) or x, range({0}))))"
for size in (4, 16, 32):
    once(f"threads: a pool of {size}", POOL.format(size), str(sum(range(size))))
ALLOCATE = "import threading\nout = []\ndef f(i): out.append(len([bytes(1000) for _ in range(1000)]) + i)\n"
ALLOCATE += "ts = [threading.Thread(target=f, args=(i,)) for i in range(16)]\nfor t in ts: t.start()\n"
once("threads: 16 that allocate", ALLOCATE + "for t in ts: t.join()\nprint(sum(out))", "16120")
QUEUE = "import queue, threading\nq = queue.Queue()\nthreading.Thread(target=q.put, args=(3,)).start()\n"
once("threads: a queue", QUEUE + "print(q.get())", "3")
once("threads: a timer", "import threading\nthreading.Timer(0.01, print, (3,)).start()", "3")

# -- other ways to print what is expected --------------------------------------------------------------------

once("printed: spaces at the ends of lines", "print('1 ')\nprint(' 2')", "1\n2")
once("printed: empty lines at the end", "print('1\\n\\n')", "1")
once("printed: several spaces, tabs", "print('1 \\t2')", "1 2")
once("printed: other line ends", "print('1\\r\\n2')", "1\n2\n")
once("printed: more digits", "print(1 / 3)", "0.333333")
once("printed: fewer digits", "print('%.6f' % (2 / 3))", "0.66666666667")
once("printed: large, relative", "print(123456789012.5)", "123456789013.0")
once("printed: with an exponent", "print(1e-9, 1.5e10, 1e+2)", "0.000000001 15000000000.0 100.0")
once("printed: no decimals", "print(2)", "2.0")
once("printed: dot first or last", "print('.5 2. -.25 +1.0')", "0.5 2.0 -0.25 1.0")
once("printed: minus zero", "print(-0.0)", "0.0")
once("printed: expected has an exponent", "print(100000, 1.5)", "1e5 15e-1")
once("printed: nothing", "pass", "\n")

# -- out of reach by design ----------------------------------------------------------------------------------

barred("numpy", "import numpy\nprint(3)", "programs have the standard library alone")
barred("asyncio.run", "import asyncio\nasync def f(): print(3)\nasyncio.run(f())", "its loop opens sockets")
barred(
    "multiprocessing", "from multiprocessing import Pool\nwith Pool(2) as p: print(3)", "it starts processes"
)
barred("subprocess", "import subprocess\nprint(subprocess.run('true').returncode + 3)", "it starts a process")
barred("open('/dev/stdout')", "print(3, file=open('/dev/stdout', 'w'))", "no path can be opened for writing")
barred("pwd", "import pwd\npwd.getpwnam('root')\nprint(3)", "the C library asks a daemon, by a socket")
barred("its own source", "print(len(open(__file__).read()) and 3)", "the program lies in no file")
barred("output.txt", "open('output.txt', 'w').write('3')", "programs write no files")
BARRIER = "import threading, time\nthreading.stack_size(1 << 16)\nb = threading.Barrier(202)\n"
BARRIER += (
    "for _ in range(200): threading.Thread(target=b.wait, daemon=True).start()\ntime.sleep(0.5)\nprint(3)"
)
barred("200 threads", BARRIER, "a job has at most 128 threads")

# -- running them --------------------------------------------------------------------------------------------


def run(sandbox):
    """Return {name: result} of the scripts that do not pass, and of the barred that do."""
    right = sandbox.map(SCRIPTS.values(), method=sandbox.check_io)
    out = sandbox.map([(code, [("", "3")]) for code, _ in BARRED.values()], method=sandbox.check_io)
    failures = {name: str(x) for name, x in zip(SCRIPTS, right) if x.outcome != "passed"}
    return failures | {name: str(x) for name, x in zip(BARRED, out) if x.outcome in ("passed", "error")}


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import sandbox as module

    with module.Sandbox(workers=2, require=()) as sandbox:
        print(json.dumps({"failures": run(sandbox), "report": sandbox.report, "n": len(SCRIPTS)}))
