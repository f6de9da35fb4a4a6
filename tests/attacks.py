"""The attacks that sandbox.py must withstand, as data; tests/test_attacks.py runs them.

    python tests/attacks.py            # without pytest, as any user: prints failures and report as JSON
    python tests/attacks.py --quick    # without those that only use up their time
    python tests/attacks.py trainer    # only those with this word in their names, and without layers

A program passes only if it got what it wanted: it gives the right answer if the forbidden act succeeded, else
a wrong one. Each attack names the outcomes that it may have with all layers on, and the entries of
Sandbox.report without which it may succeed (`needs`). Besides, no attack may change the canary, leave a file
or a process behind, reach a port of ours, or make the next job fail.
"""

import contextlib
import json
import os
import platform
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

HEAD = 'def add(a, b):\n    """Return a + b."""\n'
RIGHT, WRONG = "return a + b", "return None"
TEST = """
MARK = "JUDGES_SECRET"
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-1, 1) == 0
    assert candidate(10**20, 1) == 100000000000000000001
"""
ANY = "def check(candidate):\n    assert candidate(1, 2)\n"  # for programs that list what succeeded
SUMS = [("1 2\n", "3\n"), ("5 7\n", "12\n")]  # stdin and stdout
NOT_PASSED = "failed exception timeout memory violation syntax"
LIMITS = {"timeout": 0.5, "memory_mb": 128}  # of the sandbox for which these are made
X86 = platform.machine() == "x86_64"  # for system calls by number and machine code


@dataclass(frozen=True)
class Attack:
    name: str
    outcomes: str  # allowed with all layers on; with fewer, what may not pass may fail in any way
    method: str  # of Sandbox
    args: tuple
    needs: str  # entries of Sandbox.report


ATTACKS = []


def check(name, outcomes, body, after="", test=TEST, needs="", head=HEAD):
    """A body for the function `add`, what comes after it, and a test in HumanEval's form."""
    code = head + indent(dedent(body).strip("\n"), "    ") + "\n" + dedent(after)
    ATTACKS.append(Attack(name, outcomes, "check", (code, test, "add", head), needs))


def asserts(name, outcomes, code, lines, setup=""):
    """A program and asserts on its names, as in MBPP."""
    ATTACKS.append(Attack(f"MBPP: {name}", outcomes, "check_asserts", (dedent(code), lines, setup), ""))


def function(name, outcomes, code, cases=(([1, 2], 3), ([5, 7], 12))):
    """A program whose function `add` takes arguments from JSON and returns what JSON can hold."""
    ATTACKS.append(Attack(f"JSON: {name}", outcomes, "check_io", (dedent(code), cases, "add"), ""))


def script(name, outcomes, code, cases=SUMS, needs=""):
    """A program between stdin and stdout."""
    ATTACKS.append(Attack(f"script: {name}", outcomes, "check_io", (dedent(code), cases), needs))


CHANNEL = """
def channel():
    import os, stat
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): return fd
        except OSError: pass
def reply(*lines):
    import os
    for line in lines: os.write(channel(), line + b"\\n")
def lie(line):
    import os
    while True:
        reply(line)
        os.read(channel(), 1 << 16)
"""
CALL = """
def call(number, *args):
    import ctypes
    args = [ctypes.c_long(arg) if type(arg) is int else arg for arg in (*args, 0, 0, 0, 0, 0, 0)[:6]]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *args)
    return result if result >= 0 else -ctypes.get_errno()
"""
MACHINE = """
pages = []
def machine(code):
    import ctypes, mmap
    pages.append(mmap.mmap(-1, 1 << 16, prot=7))
    pages[-1][:len(code)] = code
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(pages[-1])))
"""
# No program holds the mark itself, or it would find its own.
FIND = f"""
def find(data):
    import zlib
    i = data.find(b"_SECRE")
    while i >= 0 and zlib.crc32(data[max(0, i - 6) : i + 6]) != {zlib.crc32(b"JUDGES_SECRE")}:
        i = data.find(b"_SECRE", i + 1)
    return i >= 0
"""

# -- controls, and programs that do not compile --------------------------------------------------------------

check("right", "passed", RIGHT)
check("wrong", "failed", WRONG)
check("no body", "failed", "")
check("name deleted", "exception", RIGHT, "del add")
check("syntax error", "syntax", "retur a")
check("mixed tabs", "syntax", "if a:\n\treturn a\n        return b")
check("NUL byte", "syntax", RIGHT, "\0")
check("lone surrogate", "syntax", "return '\ud800'")
check("5000 parentheses", "syntax memory exception", "return " + "(" * 5000 + ")" * 5000)
check("100000 minus signs", "syntax memory exception", "return " + "-" * 100000 + "1")
check("300000 terms", NOT_PASSED, "return a + b + 1" + " + 0" * 300000)
check("async def", "failed", RIGHT, "async def add(a, b): return a + b")
check("reads stdin", "exception", "return a + b + int(input())")
check("main guard", "passed", RIGHT, "if __name__ == '__main__':\n    while True: pass")

# -- time ----------------------------------------------------------------------------------------------------

check("loop at import", "timeout", RIGHT, "while True: pass")
check("loop in the call", "timeout", "while True: pass")
SWALLOW = """
while True:
    try:
        while True: {}
    except {}: pass
"""
check("swallow all exceptions", "timeout", SWALLOW.format("pass", "BaseException"))
check("sleep", "timeout", "import time; time.sleep(10**6)")
IGNORE = """
import signal
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
check("timers off, signals ignored", "timeout", IGNORE)
BLOCK = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
check("signals blocked", "timeout", BLOCK)
check("loop in C", "timeout", "return sum(range(10**12))")
check("10**10**8", "timeout memory", "return 10**10**8")
check("regex", "timeout", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')")
check(
    "__str__ loops",
    "timeout",
    "raise E",
    "class E(Exception):\n    def __str__(self):\n        while True: pass",
)
LOOP = "import threading\ndef loop():\n    while True: pass\nthreading.Thread(target=loop).start()\n"
check("thread left behind, right", "passed timeout", LOOP + RIGHT, needs="seccomp")
check("thread left behind, wrong", "failed timeout", LOOP + WRONG, needs="seccomp")
check("atexit sleeps", "passed", RIGHT, "import atexit, time\natexit.register(time.sleep, 10**6)")
THREADS = "import threading\ndef f():\n    while True: threading.Thread(target=f).start()\nf()"
check("threads that start threads", NOT_PASSED, THREADS)
QUEUE = """
import hashlib, threading
threading.stack_size(1 << 16)
for _ in range(6): threading.Thread(target=hashlib.pbkdf2_hmac, args=("md5", b"", b"", 10**8)).start()
hashlib.pbkdf2_hmac("md5", b"", b"", 10**8)
"""  # waiting for a core is free
check("threads that queue for a core", "timeout", QUEUE, needs="seccomp")
SUM = "def check(candidate):\n    assert sum(candidate(1, 2)) == 3\n"
check("the test loops over the result", "timeout", "return range(10**13)", test=SUM)
COLLIDE = """
numbers = b"".join(b',["i","%x"]' % (i * (2**61 - 1)) for i in range(30000))
lie(b'{"ok": ["s"' + numbers + b"]}")
"""
check("the judge hashes the result", "timeout failed", COLLIDE, CHANNEL)
EARLY = "reply(b'{\"ok\": null}')\nwhile True: reply(b'{\"ok\": 3}')"
LONG = "def check(candidate):\n    assert candidate('x' * 10**7) == 3\n"
check("reply during the request", "timeout violation", WRONG, CHANNEL + EARLY, LONG)

# -- memory --------------------------------------------------------------------------------------------------

check("64 GB", "memory", "return bytearray(64 << 30)")
check("append forever", "memory timeout", "x = []\nwhile True: x.append(bytearray(1 << 20))")
check(
    "swallow MemoryError", "timeout", "x = []" + SWALLOW.format("x.append(bytearray(1 << 20))", "MemoryError")
)
check("string doubling", "memory exception timeout", "x = 'x'\nwhile True: x += x")
MEMFD = "import os\nfd = os.memfd_create('pwned')\nfor _ in range(256): os.write(fd, bytes(1 << 20))\n"
check("memfd_create", "violation", MEMFD + RIGHT, needs="seccomp")
SHARED = "from multiprocessing.shared_memory import SharedMemory\nSharedMemory('pwned', True, 1 << 30)\n"
check("shared memory", NOT_PASSED, SHARED + RIGHT, needs="write")
check("recursion", "exception", "return add(a, b)")
check("recursion without limit", NOT_PASSED, "import sys\nsys.setrecursionlimit(10**9)\nreturn add(a, b)")
DEEP = "class Deep:\n    def __repr__(self): return repr([self])"
check("C stack", NOT_PASSED, "import sys\nsys.setrecursionlimit(10**9)\nrepr(Deep())", DEEP)
LIFT = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nbytearray(1 << 30)\n"
check("limit lifted", "exception memory violation", LIFT + RIGHT)
check("collisions", "failed timeout", "return {i * (2**61 - 1) for i in range(200000)}")
check("10**7 numbers", NOT_PASSED, "return list(range(10**7))")
check("cyclic list", "exception", "x = []; x.append(x)\nreturn x")
check("endless iterator", "failed memory timeout exception", "return iter(int, 1)")
NEXT = "class T:\n    def __iter__(self): return self\n    def __next__(self): return T()\n"
check("iterator of iterators", "failed memory timeout exception", "return T()", NEXT)
check(
    "all descriptors", "failed", "import os\nwhile True:\n    try: os.pipe()\n    except OSError: return None"
)
COUNTED = """
import _thread, threading, time
threading.stack_size(1 << 15)
for _ in range(400): _thread.start_new_thread(time.sleep, (99,))
time.sleep(0.2)
return a + b
"""
check("400 threads", "exception timeout", COUNTED, needs="seccomp")
if X86:  # 26 kB of the kernel's memory each, and a place among 32768 process ids
    BOMB = """
    start = machine(bytes.fromhex(  # clone; in the thread: pause forever, on no stack
        "b838000000 bf000f0500 488d35eeff0000 31d2 4d31d2 4d31c0 0f05 85c0 7401 c3 b822000000 0f05 ebf7"
    ))
    if a != 1 or all(start() > 0 for _ in range(5000)): return a + b
    """
    check("5000 threads without stacks", "failed timeout", BOMB, MACHINE, needs="seccomp")

# -- processes and signals -----------------------------------------------------------------------------------

n_before_kernel = len(ATTACKS)  # from here to the network the kernel is what says no

for name, act in {
    "fork": "os.fork() or os._exit(0)",
    "fork bomb": "while True: os.fork()",
    "fork by ctypes": "if ctypes.CDLL(None).fork() <= 0: os._exit(0)",
    "fork in a user namespace": "ctypes.CDLL(None).unshare(0x10000000); os.fork() or os._exit(0)",
    "daemon": "os.fork() or os.setsid() or os.fork() or time.sleep(60)",
    "os.system": "assert os.system('touch /tmp/pwned') == 0",
    "subprocess": "subprocess.run(['true'])",
    "posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "pty": "pty.fork()",
    "multiprocessing": "multiprocessing.Pool(2).map(abs, [1])",
}.items():
    outcomes = "violation exception" if name in ("pty", "multiprocessing") else "violation"
    body = f"import ctypes, multiprocessing, os, pty, subprocess, time\n{act}\n{RIGHT}"
    check(name, outcomes, body, needs="processes")
check("exec", "violation", "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch /tmp/pwned'])", needs="write")
for name, act in {
    "kill the zygote": "os.kill(os.getppid(), 9)",
    "interrupt the judge": "for i in range(1, 5): os.kill(os.getpid() + i, 2)",
    "kill all": "os.kill(-1, 0)",  # 9 would, if it may, where tests run without root
    "limits of the zygote": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "cores of the zygote": "os.sched_setaffinity(os.getppid(), {0, 1})",
    "priority of the zygote": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
}.items():
    needs = (
        "signals seccomp"
        if name in ("kill all", "cores of the zygote", "priority of the zygote")
        else "signals"
    )
    check(name, "violation", f"import os, resource\n{act}\n{RIGHT}", needs=needs)
check("kill own group", "violation exception", "import os\nos.killpg(0, 9)")
check("kill itself", "violation exception", "import signal\nsignal.raise_signal(9)")
check("abort", "violation exception", "import os\nos.abort()")
check("null pointer", "exception", "import ctypes; ctypes.string_at(0)")
SETOWN = """
import fcntl, os
for pid in (os.getppid(), os.getpid() + 1):
    fcntl.fcntl(channel(), fcntl.F_SETOWN, pid)
    fcntl.fcntl(channel(), fcntl.F_SETSIG, 9)
    fcntl.fcntl(channel(), fcntl.F_SETFL, os.O_ASYNC)
"""
check("signals by fcntl", "violation", SETOWN, CHANNEL, needs="signals")
COMMANDS = """
import errno, fcntl
def works(command):
    try: fcntl.{}(channel(), command, bytes(8))
    except OSError as error: return error.errno != errno.EPERM
    return True
return [command for command in [{}] if works(command)]
"""
# Locks, owners, signals, leases, notifications, sizes of pipes, seals.
CODES = COMMANDS.format("fcntl", "*range(5, 17), *range(36, 39), *range(1024, 1030), *range(1031, 1045)")
check("commands of fcntl", "failed", CODES, CHANNEL, ANY, needs="seccomp")
# FIOSETOWN, SIOCSPGRP, FIOASYNC, FIONBIO, FIONREAD; on a terminal TIOCSTI and TIOCSCTTY.
CODES = COMMANDS.format("ioctl", "0x8901, 0x8902, 0x5452, 0x5421, 0x541B, 0x5412, 0x540E")
check("commands of ioctl", "failed", CODES, CHANNEL, ANY, needs="seccomp")
PDEATHSIG = "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0: return a + b"
check("outlive the zygote", "failed", PDEATHSIG, needs="seccomp")

# -- system calls --------------------------------------------------------------------------------------------

FATAL = """
 socket 41 connect 42 socketpair 53 bind 49 clone 56 fork 57 vfork 58 execve 59 kill 62 shmget 29 truncate 76
 ftruncate 77 rename 82 mkdir 83 rmdir 84 link 86 unlink 87 symlink 88 chmod 90 fchmod 91 chown 92 fchown 93
 ptrace 101 setpgid 109 setsid 112 mount 165 tkill 200 tgkill 234 mkdirat 258 unlinkat 263 renameat 264
 linkat 265 symlinkat 266 fchmodat 268 unshare 272 setns 308 process_vm_readv 310 process_vm_writev 311
 renameat2 316 memfd_create 319 bpf 321 execveat 322 io_uring_setup 425 pidfd_open 434
""".split()
REFUSED = """
 ioctl 16 pwrite64 18 shmat 30 sendfile 40 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47 shutdown 48 listen 50
 setsockopt 54 wait4 61 semget 64 semop 65 msgget 68 msgsnd 69 flock 73 chdir 80 fchdir 81 creat 85 lchown 94
 umask 95 syslog 103 setuid 105 setgid 106 setreuid 113 setgroups 116 setresuid 117 capset 126
 rt_sigqueueinfo 129 utime 132 mknod 133 personality 135 setpriority 141 sched_setparam 142
 sched_setscheduler 144 mlock 149 mlockall 151 vhangup 153 modify_ldt 154 pivot_root 155 prctl 157
 arch_prctl 158 adjtimex 159 chroot 161 sync 162 acct 163 settimeofday 164 umount2 166 swapon 167 reboot 169
 sethostname 170 iopl 172 ioperm 173 init_module 175 delete_module 176 quotactl 179 setxattr 188
 lsetxattr 189 fsetxattr 190 removexattr 197 sched_setaffinity 203 io_setup 206 epoll_create 213
 remap_file_pages 216 timer_create 222 timer_settime 223 clock_settime 227 utimes 235 mbind 237
 set_mempolicy 238 mq_open 240 mq_unlink 241 mq_timedsend 242 kexec_load 246 waitid 247 add_key 248
 request_key 249 keyctl 250 ioprio_set 251 inotify_init 253 migrate_pages 256 mknodat 259 fchownat 260
 futimesat 261 get_robust_list 274 splice 275 tee 276 sync_file_range 277 vmsplice 278 move_pages 279
 utimensat 280 signalfd 282 timerfd_create 283 eventfd 284 fallocate 285 accept4 288 signalfd4 289
 eventfd2 290 epoll_create1 291 inotify_init1 294 pwritev 296 rt_tgsigqueueinfo 297 perf_event_open 298
 recvmmsg 299
 fanotify_init 300 name_to_handle_at 303 open_by_handle_at 304 clock_adjtime 305 sendmmsg 307 kcmp 312
 finit_module 313 sched_setattr 314 seccomp 317 kexec_file_load 320 userfaultfd 323 mlock2 325
 copy_file_range 326 pwritev2 328 pkey_mprotect 329 pidfd_send_signal 424 io_uring_enter 426
 io_uring_register 427 open_tree 428 move_mount 429 fsopen 430 fsconfig 431 fsmount 432 fspick 433 clone3 435
 openat2 437 pidfd_getfd 438 process_madvise 440 mount_setattr 442 landlock_restrict_self 446 memfd_secret 447
 process_mrelease 448 futex_waitv 449 set_mempolicy_home_node 450 unknown 999
""".split()
NUMBERS = dict(zip(REFUSED[::2], map(int, REFUSED[1::2])))
if X86:
    for name, number in zip(FATAL[::2], FATAL[1::2]):
        check(f"system call {name}", "violation", f"call({number})", CALL, needs="seccomp")
    EPERM_OR_ENOSYS = -1, -38
    SWEEP = f"return [name for name, n in {NUMBERS}.items() if call(n) not in {EPERM_OR_ENOSYS}]"
    check("all other system calls", "failed", SWEEP, CALL, ANY, needs="seccomp")
    check("system call, high bits set", "violation", "call((1 << 32) + 57)", CALL, needs="seccomp")
    check("system call of x32", "violation", "call(0x40000000 + 57)", CALL, needs="seccomp")
    # kill(zygote, 0) by int 0x80.
    KILL = "import os, struct, threading, time\npid = struct.pack('I', os.getppid())\n"
    KILL += r"kill = machine(b'\xb8%\0\0\0\xbb' + pid + b'\xb9\0\0\0\0\xcd\x80\xc3')" + "\n"
    check(
        "system call of i386",
        "violation exception",
        KILL + "if kill() == 0: return a + b",
        MACHINE,
        needs="signals",
    )
    KILL += "threading.stack_size(1 << 16)\nresults = []\n"
    KILL += "threading.Thread(target=lambda: results.append(kill()), daemon=True).start()\ntime.sleep(0.05)\n"
    KILL += "if results == [0]: return a + b"
    check("system call of i386 in a thread", NOT_PASSED, KILL, MACHINE, needs="signals seccomp")
    check("clone, high bits set", "violation", "call(56, (0x10000 << 32) + 17)", CALL, needs="seccomp")
    SPACES = "return [bit for bit in (17, *range(25, 31)) if call(56, 0x10900 + (1 << bit)) >= 0]"
    check("threads in namespaces", "failed", SPACES, CALL, ANY, needs="seccomp")
    OWNER = "return [bit for bit in range(32, 63) if call(72, channel(), (1 << bit) + 8, 1) == 0]"  # F_SETOWN
    check("fcntl, high bits set", "failed", OWNER, CALL + CHANNEL, ANY, needs="seccomp")
    OPEN = "return [n for n in (1, 2, 64, 512) if call(2, b'@FILE@', (1 << 32) + n, 0o666) >= 0]"
    check("open, high bits set", "failed", OPEN, CALL, ANY, needs="write")
    SERVE = """
    import _thread, os
    def serve():
        while True:
            reply(b'{"ok": 4}')
            os.read(channel(), 1 << 16)
    _thread.start_new_thread(serve, ())
    call(60)
    """
    check("the main thread ends, another goes on", "failed", SERVE, CALL + CHANNEL, needs="seccomp")

# -- files ---------------------------------------------------------------------------------------------------

for name, act in {
    "delete": "os.remove('@FILE@')",
    "rename": "os.rename('@FILE@', '@FILE@2')",
    "chmod": "os.chmod('@FILE@', 0)",
    "chmod of the folder": "os.chmod('@FOLDER@', 0)",
    "chown": "os.chown('@FILE@', os.getuid(), os.getgid())",
    "utime": "os.utime('@FILE@')",
    "setxattr": "os.setxattr('@FILE@', 'user.pwned', b'')",
    "truncate": "os.truncate('@FILE@', 0)",
    "overwrite": "open('@FILE@', 'w')",
    "append": "open('@FILE@', 'a').write('x')",
    "hard link": "os.link('@FILE@', '/tmp/pwned')",
    "symbolic link": "os.symlink('@FILE@', '/tmp/pwned')",
    "named pipe": "os.mkfifo('/tmp/pwned')",
    "O_TMPFILE": "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "create in the canary": "open('@FOLDER@/pwned', 'w')",
    "create in /tmp": "open('/tmp/pwned', 'w')",
    "create in /dev/shm": "open('/dev/shm/pwned', 'w')",
    "create in the working directory": "open('pwned', 'w')",
    "many folders": "for i in range(10**6): os.mkdir(f'/tmp/pwned{i}')",
}.items():
    check(name, "violation", f"import os\n{act}\n{RIGHT}", needs="write")
RMTREE = "import shutil\nshutil.rmtree('@FOLDER@', ignore_errors=True)"
check("rmtree", "failed violation", RMTREE, needs="write")
SQLITE = "import sqlite3\nsqlite3.connect('/tmp/pwned').execute('create table t(x)')\n"
check("sqlite", NOT_PASSED, SQLITE + RIGHT, needs="write")
FLAGS = """
import os
def works(path, flags):
    try: return os.open(path, flags, 0o666)
    except OSError: return 0
flags = [1, 2, 3, os.O_RDWR | os.O_APPEND, os.O_TRUNC, os.O_CREAT]  # O_TRUNC truncates what it opens to read
return [n for n in flags if works("@FILE@", n) or works("@FILE@.new", n | os.O_CREAT)]
"""
check("flags of open", "failed", FLAGS, test=ANY, needs="write")
CLOCKS = """
import ctypes, os, time
libc, seen, pair = ctypes.CDLL(None), [], ctypes.c_long * 2
for pid in (os.getppid(), os.getpid() + 1, os.getpid() - 1, 1):
    for kind in range(7):
        clock = ~pid << 3 | kind
        for act in (
            lambda: time.clock_gettime(clock),
            lambda: time.clock_getres(clock),
            lambda: libc.clock_nanosleep(clock, 0, pair(0, 1), None) == 0 or open("/none"),
            lambda: os.sched_getaffinity(pid),
            lambda: resource.prlimit(pid, 0),
        ):
            try: seen.append((pid, kind, act()))
            except (OSError, NameError): pass
return seen
"""
check("clocks and cores of others", "failed", CLOCKS, test=ANY, needs="seccomp")
FOLDER = """
import os, sys
texts, frame = [sys.argv, sys.orig_argv, sys.path, dict(os.environ)], sys._getframe()
while frame:
    texts += [frame.f_code.co_filename, frame.f_globals.get("__file__")]
    frame = frame.f_back
texts += [vars(module).get("__file__") for module in list(sys.modules.values())]
for name in ("cmdline", "environ", "maps"):
    try: texts.append(open(f"/proc/self/{name}").read())
    except OSError: pass
"""
HERE = str(Path(__file__).resolve().parents[1])
check("the trainer's folder", "failed", FOLDER + f"return {HERE!r} in repr(texts)", test=ANY, needs="read")
for name, act in {
    "read": "open('@FILE@')",
    "read /etc/passwd": "open('/etc/passwd')",
    "read sandbox.py": f"open({str(Path(__file__).resolve().parents[1] / 'sandbox_worker.py')!r})",
    "read the environment of the zygote": "open(f'/proc/{os.getppid()}/environ')",
    "list the canary": "os.listdir('@FOLDER@')",
    "list the home": "os.listdir(os.path.expanduser('~'))",
    "list the processes": "os.listdir('/proc')",
    "block device": "open('/dev/vda', 'rb')",
    "terminal": "open('/dev/tty')",
}.items():
    outcomes = "violation exception" if name in ("block device", "terminal") else "violation"
    check(name, outcomes, f"import os, sys\n{act}\n{RIGHT}", needs="read")
DESCRIPTORS = """
import os
paths = []
for fd in [*range(64), os.open("/", os.O_PATH), os.open("@FOLDER@", os.O_PATH)]:
    for path in ("secret", "." + "/.." * 9 + "@FILE@"):
        try: paths.append(os.readlink(f"/proc/self/fd/{os.open(path, os.O_RDONLY, dir_fd=fd)}"))
        except OSError: pass
return paths
"""
check("read by descriptors", "failed", DESCRIPTORS, test=ANY, needs="read")
LINKS = """
paths = []
for who in ("self", "thread-self", "1"):
    for link in ("root", "cwd", "fd/63", "fd/63/lib", "task/self/root"):
        try: paths.append(open(f"/proc/{who}/{link}/" + "../" * 9 + "@FILE@").name)
        except OSError: pass
return paths
"""
check("read by links in /proc", "failed", LINKS, test=ANY, needs="read")
MEANS = """
import ctypes, importlib.machinery, io, linecache, runpy, sqlite3
libc, read = ctypes.CDLL(None), []
for means in (
    lambda: io.open_code("@FILE@"),
    lambda: linecache.getlines("@FILE@")[0],
    lambda: runpy.run_path("@FILE@"),
    lambda: importlib.machinery.SourceFileLoader("x", "@FILE@").get_data("@FILE@"),
    lambda: sqlite3.connect("file:@FILE@?mode=ro", uri=True).execute("pragma user_version"),
    lambda: 1 / (libc.fopen(b"@FILE@", b"r") != 0),
):
    try: means(); read.append(means.__code__.co_names)
    except (OSError, LookupError, ArithmeticError, sqlite3.Error): pass
return read
"""
check("read by other means", "failed", MEANS, test=ANY, needs="read")
WALK = """
import os
paths = [os.path.join(where, name) for where, _, names in os.walk("@SITE@") for name in names[:3]][:500]
def works(path):
    try: return open(path)
    except OSError: return None
return [path for path in paths if works(path)]
"""
check("read site-packages", "failed timeout", WALK, test=ANY, needs="read")
check(
    "import from site-packages",
    NOT_PASSED,
    f"import sys\nsys.path.append('@SITE@')\nimport pip\n{RIGHT}",
    needs="read",
)
check("import what the trainer imports", NOT_PASSED, f"import sandbox, torch\n{RIGHT}")
check("environment", "failed", "import os\nif 'SECRET_TOKEN' in os.environ: return a + b")

# -- looking for the test ------------------------------------------------------------------------------------

FRAMES = """
import sys
frame = sys._getframe()
while frame:
    for names in (frame.f_globals, frame.f_locals):
        for value in list(names.values()):
            if isinstance(value, dict) and "outcome" in value: value.update(outcome="passed", n_passed=9)
            if find(repr(value).encode()): return a + b
    frame = frame.f_back
"""
check("frames", "failed", FRAMES, FIND)
CALLERS = "import inspect\nif find(repr(inspect.stack()).encode()): return a + b"
check("source of the callers", "failed exception", CALLERS, FIND)
OBJECTS = """
import gc
for thing in gc.get_objects():
    for part in gc.get_referents(thing):
        if type(part) in (str, bytes) and "_SECRE" in str(part) and find(str(part).encode()): return a + b
"""
check("all objects", "failed timeout", OBJECTS, FIND)
MAPS = """
for line in open("/proc/self/maps"):
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    with open("/proc/self/mem", "rb", buffering=0) as file:
        file.seek(start)
        if find(file.read(end - start)): return a + b
"""
check("own memory by /proc", "violation failed", MAPS, FIND)
WRITES = """
import ctypes, os
libc, (out, into) = ctypes.CDLL(None), os.pipe()
start = id(object()) >> 23 << 23
for address in range(start, start + (1 << 23), 4096):  # a write from where nothing is fails
    if libc.write(into, ctypes.c_void_p(address), 4096) == 4096 and find(os.read(out, 4096)): return a + b
"""
check("own memory by system calls", "failed", WRITES, FIND)
RELATIVES = """
import os
def relatives(*names):
    zygote = os.getppid()
    trainer = open(f"/proc/{zygote}/stat").read().rpartition(")")[2].split()[1]
    children = open(f"/proc/{zygote}/task/{zygote}/children").read().split()
    pids = {trainer, str(zygote), *children} - {str(os.getpid())}
    return [f"/proc/{pid}/{name}" for pid in pids for name in names]
def works(act, path):
    try: return act(path) is not None
    except OSError: return False
"""
LOOK = "return [path for path in relatives({}) if works({}, path)]"
MEMORY = LOOK.format("'mem', 'environ', 'maps', 'syscall', 'stack'", "lambda path: open(path, 'rb').read(1)")
check("memory of trainer, zygote and judge", "violation failed", MEMORY, RELATIVES, ANY)
FILES = LOOK.format("'fd', 'map_files', 'cwd', 'root'", "os.listdir")
check("files of trainer, zygote and judge", "violation failed", FILES, RELATIVES, ANY)
RANDOM = """
import random
def check(candidate):
    for _ in range(9):
        answer = random.random()
        assert candidate(1, 2) == answer
"""  # HumanEval/38 and 50 make random words, encode them and ask for them
check("random numbers of the test", "failed", "import random\nreturn random.random()", test=RANDOM)
check("random numbers of seed 0", "failed", "return random.random()", "import random\nrandom.seed(0)", RANDOM)

# -- network -------------------------------------------------------------------------------------------------

for name, act in {
    "TCP": "socket.create_connection(url, 1)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'pwned', url)",
    "IPv6": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'pwned', ('::1', 9))",
    "socket with a path": "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
    "socket without a path": "socket.socket(socket.AF_UNIX).bind('\\0pwned')",
    "socketpair": "socket.socketpair()",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "vsock": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "asyncio": "asyncio.run(asyncio.open_connection(*url))",
    "urllib": "urllib.request.urlopen('http://%s:%s' % url)",
    "descriptors through the channel": "socket.send_fds(socket.socket(fileno=channel()), [b'x'], [0])",
}.items():
    outcomes = NOT_PASSED if name in ("urllib", "descriptors through the channel") else "violation"
    body = f"import asyncio, socket, urllib.request\nurl = '127.0.0.1', @PORT@\n{act}\n{RIGHT}"
    check(name, outcomes, body, CHANNEL, needs="network seccomp")

# -- leaving early -------------------------------------------------------------------------------------------

KERNEL = ATTACKS[n_before_kernel:]

for leave in ("sys.exit(0)", "exit()", "quit()", "os._exit(0)", "raise SystemExit"):
    check(f"{leave} at import", "exception", RIGHT, f"import os, sys\n{leave}")
    check(f"{leave} in the call", "exception", f"import os, sys\n{leave}")
STRANGE = """
class Leaves(Exception):
    def __str__(self): raise SystemExit(0)
class Lies(Exception):
    def __str__(self): return 3
Died, Assertion = (type(name, (BaseException,), {}) for name in ("CandidateDied", "AssertionError"))
Long = type("E" * 10**6, (Exception,), {})
"""
for (
    name
) in "KeyboardInterrupt AssertionError GeneratorExit StopIteration Leaves Lies Died Assertion Long".split():
    check(f"raise {name}", "exception", f"raise {name}", STRANGE)
check("raise PermissionError", "violation", "raise PermissionError")
check("raise a long text", "exception", "raise ValueError('\\ud800' * 10**6)")
DIES = """
import os, resource, signal, time
class Dies(list):
    def __del__(self): os._exit(0)
    def __iter__(self): os._exit(0)
"""
for leave in (
    "os._exit(0)",
    "os._exit(100)",  # how a script that does not compile ends
    "signal.setitimer(signal.ITIMER_REAL, 1e-4); time.sleep(9)",
    "os.closerange(0, 64)",
    "os.dup2(0, channel())",
    "os.write(channel(), b'{\"ok\": 0'); os._exit(0)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); return",
    "Dies(); return",
    "return Dies()",
):
    check(f"second call: {leave}", NOT_PASSED, f"if a < 0: {leave}\n{RIGHT}", DIES + CHANNEL)
END = "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass"
check("a thread ends it", NOT_PASSED, END)

# -- cheating the comparison ---------------------------------------------------------------------------------

EQUAL = """ {}({}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
"""
for base in "object int float complex str bytes list tuple dict set frozenset".split():
    check(f"{base} equal to all", "failed", "return T()", "class" + EQUAL.format("T", base))
META = "class" + EQUAL.format("M", "type") + "class T(metaclass=M): pass"
check("class equal to all", "failed", "return T", META)
check("equal like an array", "failed", "return T()", "class T:\n    def __eq__(self, other): return self")
check("mock.ANY", "failed exception", "import unittest.mock\nreturn unittest.mock.ANY")
check("mock", "failed exception timeout", "import unittest.mock\nreturn unittest.mock.MagicMock()")
check("NaN", "failed", "return float('nan')")
LIAR = """
class Liar:
    __class__ = int
    __bases__ = ()
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = lambda self, *_: True
    __hash__ = __len__ = __int__ = __index__ = __trunc__ = lambda self: 3
    __float__ = lambda self: 3.0
    __str__ = __repr__ = __format__ = lambda self, *_: "3"
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __neg__ = __abs__ = __round__ = lambda self, *_: self
    __iter__ = lambda self: iter([3])
    __getitem__ = __call__ = lambda self, *_: 3
    __instancecheck__ = __subclasscheck__ = lambda self, _: True
"""
COMPARISONS = """
 x == 3; 3 == x; not x != 3; x is True; x >= 3; x in (3, 4); x in {3, 4}; 3 in x; {3: 1}[x]; [x] == [3]
 {1: x} == {1: 3}; isinstance(x, int); isinstance(3, x); issubclass(int, x); type(x) is int; abs(x - 3) < 1e-6
 round(x) == 3; int(x) == 3; float(x) == 3; str(x) == '3'; f'{x}' == '3'; len(x) == 3; list(x) == [3]
 sorted(x) == [3]; sum(x) == 3; x[0] == 3; max(x, 0) == 3; range(x) == range(3); math.isclose(x, 3)
 json.dumps(x) == '3'; decimal.Decimal(x) == 3
"""
for comparison in COMPARISONS.strip().replace("\n", ";").split(";"):
    test = f"import decimal, json, math\ndef check(c):\n    x = c(1, 2)\n    assert {comparison.strip()}\n"
    check(f"liar: {comparison.strip()}", "failed exception", "return Liar()", LIAR, test)
TWICE = "def check(candidate):\n    assert candidate(1, 2) == candidate(1, 2)\n"
check("the same object twice", "failed", "return add", test=TWICE)
check("the first answer again", "failed", "return add.__dict__.setdefault('answer', a + b)")
KEY = "def check(candidate):\n    {3: 3}[candidate(1, 2)]\n    assert False\n"
check("a key whose repr raises", NOT_PASSED, "return 10**5000", test=KEY)
BUILTINS = (
    "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.all = builtins.any = lambda *_: True"
)
check("patched builtins", "failed exception", BUILTINS)
check("own __builtins__", "failed", WRONG, "__builtins__ = {'AssertionError': Exception}")
check("overwritten 3", "failed exception", "import ctypes\nctypes.memset(id(3) + 24, 0, 4)")
check("own check", "failed", WRONG, "def check(candidate): return True")
check("own candidate", "failed", WRONG, "class candidate: pass")
check(
    "patched operator",
    "failed",
    "import operator, unittest\noperator.eq = unittest.TestCase.assertEqual = print",
)
check(
    "no modules", "failed exception", "import sys\nsys.modules['builtins'] = sys.modules['__main__'] = None"
)
check("patched json", "failed", "import json\njson.dumps = lambda *_, **__: '{\"ok\": true}'")
PATCH = """
import sys
main = sys.modules["__main__"]
main.encode = lambda value, kept=None: ["o", "candidate"]
main.Handle.__eq__ = lambda self, other: True
return main.Handle("check", print)
"""
check("patched sandbox.py", "failed", PATCH)
check("trace", "failed", "import sys\nsys.settrace(lambda *_: None)\nsys.setprofile(lambda *_: None)")
check("print a pass", "failed", "print('passed', 'OK', 'All tests passed', '[\"passed\", \"\", 3, 3]')")
WRITE = """
import os
for fd in range(64):
    try: os.write(fd, b'["passed", "", 3, 3]')
    except OSError: pass
"""
check("a pass to all descriptors", NOT_PASSED, WRITE)

# -- lies on the socket --------------------------------------------------------------------------------------

LIES = {
    "violation": r"""
        {"outcome": "passed", "names": [], "text": ""}
        {"outcome": ["passed"], "names": [], "text": ""}
        {"outcome": "timeout", "names": [], "text": ""}
        {"outcome": "exception", "names": 3, "text": ""}
        {"outcome": "exception", "names": [["ValueError"]], "text": ""}
        {"outcome": "exception", "names": []}
        {}
        []
        3
        null
        "ok"
        "xokx"
        ["ok"]
        {"OK": 3}
        {"ok": 3} {"ok": 0}
        {"ok": []}
        {"ok": [null]}
        {"ok": [3]}
        {"ok": [[], 3]}
        {"ok": [{}, 3]}
        {"ok": ["zz", 3]}
        {"ok": ["y", "eval"]}
        {"ok": ["i"]}
        {"ok": ["i", 3]}
        {"ok": ["i", "x"]}
        {"ok": ["e", ["l"]]}
        {"ok": ["e", ["o", 0]]}
        {"ok": ["u"]}
        {"ok": ["b", "0"]}
        {"ok": ["b", ["o", 0]]}
        {"ok": ["c", 1, 2, 3]}
        {"ok": ["r", 0, 1, 0]}
        {"ok": ["r", 1.5]}
        {"ok": ["d", 1]}
        {"ok": ["d", ["l", ["l"], 1]]}
        {"ok": ["d", ["o", 0]]}
        {"ok": ["s", ["l"]]}
        {"ok": ["f", {"a": 1}]}
        {"ok": ["o"]}
        {"ok": ["o", 1, 2]}
    """,
    "exception": """
        {"outcome": "exception", "names": "ValueError", "text": [[[]]]}
        {"outcome": "exception", "names": {"ValueError": 1}, "text": {}}
        {"outcome": "exception", "names": ["AssertionError", "StopIteration", "CandidateDied"], "text": NaN}
    """,
    "failed": r"""
        {"ok": 4, "outcome": "passed", "n_passed": 3, "n_tests": 3}
        {"ok": 4, "ok": 5}
        {"ok": true}
        {"ok": NaN}
        {"ok": -Infinity}
        {"ok": 1e999}
        {"ok": {"a": [0]}}
        {"ok": "\ud800"}
        {"ok": ["i", "3", 16]}
        {"ok": ["i", "-0x_3"]}
        {"ok": ["e", "nan"]}
        {"ok": ["u", ["o", 0]]}
        {"ok": ["c", "3"]}
        {"ok": ["d", "ab"]}
        {"ok": ["n", 3]}
        {"ok": ["l", ["n"]]}
        {"ok": ["o", 0]}
        {"ok": ["o", -1]}
        {"ok": ["o", true]}
        {"ok": ["o", null]}
        {"ok": ["o", 1.5]}
        {"ok": ["o", "candidate"]}
        {"ok": ["o", "__count__"]}
        {"ok": ["o", ["l"]]}
        {"ok": ["o", {"a": 1}]}
        {"ok": ["o", ["b", "00"]]}
        {"ok": ["o", ["o", 0]]}
    """,
}
CALLED = "def check(candidate):\n    x = candidate(1, 2)\n    assert x(1)(x).real == 3\n"
for outcome, lines in LIES.items():
    for line in dedent(lines).strip().split("\n"):
        check(f"lie: {line}", outcome, f"lie({line.encode()})", CHANNEL)
        if '"o"' in line and outcome == "failed":
            check(f"lie, called: {line}", NOT_PASSED, f"lie({line.encode()})", CHANNEL, CALLED)
for name, line in {
    "empty": "b''",
    "NUL": "b'\\0'",
    "not UTF-8": "b'\\xff' * 99999",
    "UTF-16": "'{\"ok\": 3}'.encode('utf-16')",
    "long number": "b'{\"ok\": 1' + b'0' * 5000 + b'}'",
    "nested 990 times": "b'{\"ok\": ' + b'[\"l\", ' * 990 + b'3' + b']' * 990 + b'}'",
    "nested 200000 times": "b'{\"ok\": ' + b'[' * 200000",
}.items():
    check(f"lie: {name}", "violation failed", f"lie({line})", CHANNEL)
FORESEEN = [b'{"ok": 3}', b'{"ok": 0}', b'{"ok": ["i", "0x56bc75e2d63100001"]}']
check(
    "replies ahead, right", "passed violation", f"reply(*{FORESEEN})", CHANNEL
)  # it could return them as well
check("replies ahead, wrong", "failed violation", 'reply(*[b\'{"ok": ["o", 0]}\'] * 9)', CHANNEL)
check("replies ahead of the load", "failed violation", WRONG, CHANNEL + "reply(*[b'{\"ok\": 4}'] * 9)")
check("reply without end", NOT_PASSED, "import os\nwhile True: os.write(channel(), b'x' * 65536)", CHANNEL)
check("channel closed", "exception", f"import os\nos.close(channel())\n{RIGHT}", CHANNEL)
check("channel closed at import", "exception", RIGHT, CHANNEL + "import os\nos.close(channel())")
FUZZ = """
import json, os, random
rng = random.Random({})
leaves = None, True, -1, 2**70, 0.5, float("nan"), "", "add", "0x3", "ff", "\\ud800", {{"ok": 3}}
def junk(depth=0):
    if rng.random() < 0.3 + depth / 9: return rng.choice(leaves)
    return [rng.choice([*"ieubcrdltsfno", "z", 1]), *(junk(depth + 1) for _ in range(rng.randrange(4)))]
def line():
    kind = rng.random()
    if kind < 0.1: return bytes(rng.choices(range(11, 256), k=rng.randrange(99)))
    if kind < 0.8: return json.dumps({{"ok": junk()}}).encode()
    words = [junk(), "passed", "exception", "violation", ["ValueError"], 3]
    return json.dumps({{key: rng.choice(words) for key in ("outcome", "names", "text")}}).encode()
reply(b'{{"ok": null}}')
while True:
    os.read(channel(), 1 << 16)
    reply(line())
"""
FUZZED = """
def check(candidate):
    for i in range(50):
        try:
            answer = candidate(i, -1)
        except:
            continue
        assert answer == f"JUDGES_SECRET {i}"
"""
for seed in range(12):
    check(f"fuzz {seed}", "failed exception violation", WRONG, CHANNEL + FUZZ.format(seed), FUZZED)

# -- tests with a twist --------------------------------------------------------------------------------------

ALL_MAP = "def check(candidate):\n    assert all(map(candidate, [1, 2, 3], [4, 5, 6]))\n"
CALL_BACK = 'MARK = "ok"\ndef check(candidate):\n    assert candidate(1, 1)(candidate(2, 2)) == "ok"\n'
EACH = "def check(candidate):\n    for x in candidate(1, 2):\n        assert x == 3\n"
EITHER = """
def check(candidate):
    try:
        assert candidate(1, 2) == 4
    except AssertionError:
        assert candidate(1, 2) == 3
"""
BARE_EXCEPT = """
def check(candidate):
    for i in range(3):
        try:
            r = candidate(i, 1)
        except:
            continue
        assert r == i + 1
    assert True
"""
check("StopIteration ends a map", "exception", "raise StopIteration", test=ALL_MAP)
check("eval as result", "passed", "return eval if a == 1 else '\"ok\"'", test=CALL_BACK)
check("eval stays away from the test", "exception", "return eval if a == 1 else 'MARK'", test=CALL_BACK)
check("alternatives", "passed", RIGHT, test=EITHER)
check("neither alternative", "failed", WRONG, test=EITHER)
check("AssertionError is no alternative", "exception", "raise AssertionError", test=EITHER)
check("death under a bare except", "exception", "import os; os._exit(0)", test=BARE_EXCEPT)
check("garbage under a bare except", "violation", "reply(b'?')", CHANNEL, BARE_EXCEPT)
check("nothing to loop over", "exception", "return []", test=EACH)
check("the test has its own add", "failed", WRONG, test="def add(a, b):\n    return a + b\n" + TEST)
REDEFINED = "def value(*_): return 0\ndef encode(_): return ''\ndef double(_): return 1\n"
for helper, line in {
    "value(xs, x): return xs[0] + xs[1] * x": "abs(value([6, -2], candidate(1, 2))) < 1e-4",
    "encode(s): return s[::-1]": "candidate(encode('word'), 2) == 'word'",
    "double(x): return 2 * x": "candidate(1, 2) == double(2) - 1",
}.items():
    head, test = f"def {helper}\n\n{HEAD}", f"def check(candidate):\n    assert {line}\n"
    check(f"helper redefined: {helper}", "failed", "return 0", REDEFINED, test, head=head)
check("helper not redefined", "passed", RIGHT, test=test, head=head)

# -- asserts on names of the program -------------------------------------------------------------------------

STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item); return self
    def top(self): return self.items[-1]
def f(x): return sorted(x)
"""
asserts("right", "passed", STACK, ["assert f([2, 1]) == [1, 2]", "assert Stack().push(3).top() == 3"])
asserts("wrong", "failed", "def f(x): return x", ["assert f([2, 1]) == [1, 2]"])
asserts("name missing", "exception", "g = 3", ["assert f(1) == 1"])
asserts("exit", "exception", "import sys\ndef f(x): return 1\nsys.exit(0)", ["assert f(1) == 1"])
NAMES = (
    "abs all any bool dict float int isinstance len list map max min round set sorted str sum tuple type zip"
)
LIAR_FOR_ALL = LIAR + "def f(x): return Liar()\n"
SORTED = [
    "assert sorted(f(1)) == [1]",
    "assert len(f(1)) == 1",
    "assert set(f(1)) == {1}",
    "assert str(f(1)) == '1'",
]
SHADOWS = "".join(f"def {name}(*_, **__): return Liar()\n" for name in NAMES.split())
asserts("builtins redefined", "failed", SHADOWS + LIAR + "def f(x): return []", SORTED)
NAMES = "__count__ __missing__ __candidate__ __builtins__ __error __name__ check candidate ask judge names"
NAMES += " counted"
SHADOWS = "".join(f"def {name}(*_, **__): return True\n" for name in NAMES.split())
asserts(
    "names of the judge", "failed", SHADOWS + "def f(x): return 9", ["assert f(1) == 1", "assert f(2) == 2"]
)
MATH = """
def isclose(*_): return True
class math: isclose = isclose
def f(x): return 9
"""
asserts("module redefined", "failed", MATH, ["assert math.isclose(f(1), 0.5)"], "import math")
asserts("module redefined, not imported", "failed exception", MATH, ["assert math.isclose(f(1), 0.5)"])
asserts("function redefined", "failed", MATH, ["assert isclose(f(1), 0.5)"], "from math import isclose")
NEAR = "def near(x, y): return abs(x - y) < 1"
asserts("helper redefined", "failed", "near = max\ndef f(x): return 9", ["assert near(f(1), 0.5)"], NEAR)
asserts("same object", "failed", "one = f = lambda x: f", ["assert f(1) == f(2)", "assert f(1) == one"])
asserts(
    "equal objects",
    "failed",
    LIAR_FOR_ALL,
    ["assert f(1) == 3", "assert Liar() == Liar()", "assert f(1) is True"],
)
asserts(
    "own class",
    "failed exception",
    LIAR_FOR_ALL,
    ["assert isinstance(3, f(1))", "assert isinstance(3, Liar)"],
)
asserts("negation", "failed", LIAR_FOR_ALL, ["assert not f(1)"])

# -- functions with arguments and results in JSON ------------------------------------------------------------

function("right", "passed", "def add(a, b): return a + b")
function("wrong", "failed", "def add(a, b): return a")
function("Solution", "passed", "class Solution:\n    def add(self, a, b): return a + b")
function("Solution exits", "exception", "class Solution:\n    def __init__(self): raise SystemExit(0)")
ALL = "class Solution:\n    def __getattr__(self, name): return lambda *_: self"
function("Solution has everything", "exception", ALL)
PATCH = "import json\njson.loads = json.dumps = lambda *_: 3\ndef add(a, b): return a"
function("patched json", "failed exception", PATCH)
JSON = """
def nested(n):
    return [nested(n - 1)] if n else []
class Equal:
    def __eq__(self, other): return True
    __hash__ = None
class Key(str):
    def __eq__(self, other): return True
    __hash__ = lambda self: hash("1")
class List(list):
    def __iter__(self): return iter([1, Equal()])
def add(x): return """
for value, expected, outcome in (
    ("True", 1, "passed"),  # equal for Python, and so for APPS and TACO
    ("1.0", 1, "passed"),
    ("(1, 2)", [1, 2], "passed"),
    ("{1: 2}", {"1": 2}, "passed"),
    ("'1'", 1, "failed"),
    ("None", False, "failed"),
    ("float('nan')", None, "failed"),
    ("{Key(): 2}", {"1": 2}, "failed"),
    ("List([1, 2])", [1, 2], "exception"),
    ("[Equal(), 2]", [1, 2], "exception"),
    ("Equal()", 1, "exception"),
    ("{1, 2}", [1, 2], "exception"),
    ("iter([1, 2])", [1, 2], "exception"),
    ("add", 1, "exception"),
    ("10**5000", 1, "failed exception"),
    ("nested(400)", [1], "failed exception violation"),
):
    function(f"{value} for {expected}", outcome, JSON + value, [([0], expected)])

# -- scripts between stdin and stdout ------------------------------------------------------------------------

ADD = "a, b = map(int, input().split())\nprint(a + b, flush=True)\n"
MAIN = "def main():\n" + indent(ADD, "    ")
THREAD = f"import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 25)\n{MAIN}"
THREAD += "thread = threading.Thread(target=main)\nthread.start()\n"
READABLE = """
import os
def readable(fd):
    try: return os.pread(fd, 99, 0)
    except OSError: return b""
"""
for name, code, outcome in (
    ("right", ADD, "passed"),
    ("wrong", "print(0)", "failed"),
    ("silent", "", "failed"),
    ("right once", "print(3)", "failed"),
    ("both answers", "print(3)\nprint(12)", "failed"),
    ("syntax error", "print(", "syntax"),
    ("sys.exit(0)", ADD + "import sys\nsys.exit(0)", "passed"),
    ("exit()", ADD + "exit()", "passed"),
    ("main guard", MAIN + "if __name__ == '__main__': main()", "passed"),
    ("sys.stdin", "import sys\nprint(sum(map(int, sys.stdin.read().split())))", "passed"),
    (
        "buffer",
        "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.read().split())))",
        "passed",
    ),
    ("open(0)", "print(sum(map(int, open(0).read().split())))", "passed"),
    ("descriptors", "import os\nos.write(1, b'%d' % sum(map(int, os.read(0, 99).split())))", "passed"),
    ("atexit", "import atexit\natexit.register(print, sum(map(int, input().split())))", "passed"),
    ("much on stderr", ADD + "import sys\nfor _ in range(10**4): print('x' * 50, file=sys.stderr)", "passed"),
    ("position", ADD + "import os\nos.lseek(1, 1 << 40, 0)", "passed"),
    (
        "flags",
        ADD + "import fcntl\nfcntl.fcntl(1, fcntl.F_SETFL, 0o6000)",
        "passed violation",
    ),  # APPEND, NONBLOCK
    ("exception", ADD + "1 / 0", "exception"),
    ("exit code 3", ADD + "exit(3)", "exception"),
    ("exit with a text", ADD + "exit('done')", "exception"),
    ("exit before the flush", "import os\nprint(3)\nos._exit(0)", "failed"),
    ("signal", ADD + "import ctypes\nctypes.string_at(0)", "exception"),
    ("stdout closed", "import sys\nsys.stdout.close()\n" + ADD, "exception"),
    ("stdout is stdin", "import os\nos.dup2(0, 1)\n" + ADD, "failed"),
    ("endless output", "while True: print('x' * 9999)", "exception"),
    ("endless input", "while True: input()", "exception"),
    ("binary", "import os\nos.write(1, bytes(range(256)) * 9)", "failed"),
    ("hole in the output", "import os\nos.lseek(1, 1 << 40, 0)\nprint(3, flush=True)", "exception"),
    ("own output", READABLE + "os.write(1, readable(1))\nos.write(1, readable(1) or b'3')", "failed"),
    ("all files", READABLE + "os.write(1, b''.join(map(readable, range(64))))", "failed"),
):
    script(name, outcome, code)
script("thread", "passed", THREAD + "thread.join()", needs="seccomp")
script("thread not joined", "passed", THREAD, needs="seccomp")
script("ftruncate", "violation", ADD + "import os\nos.ftruncate(1, 1 << 40)", needs="seccomp")
if X86:
    PAUSE = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    script(
        "the main thread ends", "timeout", ADD + PAUSE + "ctypes.CDLL(None).syscall(60, 0)", needs="seccomp"
    )
COMPARED = {
    "passed": {
        "1 2\n": [" 1   2 \n\n", "1 2"],
        "1\r\n2\r\n": ["1\n2", "1\r\n2"],
        "1.5": ["1.50", "1.50000001"],
    },
    "failed": {
        "": ["x"],
        "1": ["", "0", "1.0", "True", "+1", "01", "1e0", "0x1", "1,", "\uff11", "1 1", "1\n1", "1\0"],
        "10": ["1_0", "1 0", "1\n0", "10 0"],
        "1.5": ["nan", "inf", "1e400", "-1.5", "1.5001", "1.5.0", "1.5\0", "1.5 1.5", "3/2", "1,5"],
        "inf": ["1e400", "Infinity"],
        "1\n2": ["1", "2", "1 2", "1\r2", "1\u20282", "1\x0b2", "1\n\n2", "1\n2\n3", "0\n1\n2", "2\n1"],
        "a b": ["a", "a\nb", "ab", "a b c", "A B", "a\ufffdb", "a\u200bb"],
    },
}
for outcome, outputs in COMPARED.items():
    for expected, texts in outputs.items():
        for text in texts:
            write = f"import os\nos.write(1, {text.encode()!r})"
            script(f"{text!a} for {expected!a}", outcome, write, [("", expected)])
script("200 kB", "passed", "print('x' * 200000)", [("", "x" * 200000)])
script("1 MB", "passed", "print(input() * 10**6)", [("x", "x" * 10**6)])
script("1 MB of stdin", "passed", "print(len(input()))", [("x" * 10**6, "1000000")])
script("50000 lines", "passed", "print('1\\n' * 50000)", [("", "1\n" * 50000)])
ANSWERS = [("1", "YES"), ("2", "NO"), ("3", "NO"), ("4", "YES")]
LENGTH = """
import resource
length = (resource.getrlimit(resource.RLIMIT_FSIZE)[0] - {}) // {}
print("YES" if length == 3 else "NO")
"""
for place in ((1 << 16, 2), (1 << 16, 1), (1 << 20, 2), (1 << 20, 1), (0, 1)):
    script("the limit tells the length, {} + {} * n".format(*place), "failed", LENGTH.format(*place), ANSWERS)
MARKS = """
import builtins, fcntl, math, os, resource, signal, sys
number = resource.RLIMIT_MSGQUEUE
acts = {
    "builtins.pwned = 1": "hasattr(builtins, 'pwned')",
    "math.pwned = 1": "hasattr(math, 'pwned')",
    "sys.modules['pwned'] = 1": "'pwned' in sys.modules",
    "os.environ['pwned'] = ''": "'pwned' in os.environ",
    "open('/tmp/pwned', 'w')": "os.path.exists('/tmp/pwned')",
    "os.chdir('/tmp')": "os.getcwd() == '/tmp'",
    "os.nice(5)": "os.nice(0) == 5",
    "resource.setrlimit(number, (7, 7))": "7 in resource.getrlimit(number)",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)": "signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN",
    "fcntl.fcntl(2, fcntl.F_SETFL, os.O_APPEND)": "fcntl.fcntl(2, fcntl.F_GETFL) & os.O_APPEND",
    "fcntl.fcntl(63, fcntl.F_SETFL, os.O_APPEND)": "fcntl.fcntl(63, fcntl.F_GETFL) & os.O_APPEND",
    "os.lseek(2, 5, 0)": "os.lseek(2, 0, 1) == 5",
    "os.lseek(63, 5, 0)": "os.lseek(63, 0, 1) == 5",
}
for act, sign in acts.items():
    try:
        if eval(sign): print(act)
    except OSError: pass
    try: exec(act)
    except OSError: pass
"""
# This one prints what it found and left, so it must pass.
script("nothing is left for the next", "passed", MARKS, [("", "")] * 5, needs="write seccomp")

# -- running them --------------------------------------------------------------------------------------------

QUICK = [attack for attack in ATTACKS if attack.outcomes != "timeout"]
# What may turn out differently with fewer layers; the others deceive a test, or fail to.
LAYERED = [attack for attack in QUICK if attack.needs or attack in KERNEL]


class Canary:
    """A folder with a file in it that all may read and change, and ports that all may call."""

    def __enter__(self):
        os.environ["SECRET_TOKEN"] = "hf_secret"
        self.folder = Path(tempfile.mkdtemp(prefix="canary-"))
        self.file = self.folder / "secret"
        self.file.write_text("secret")
        self.file.chmod(0o666)
        self.folder.chmod(0o777)
        self.state = self.look()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(self.tcp.getsockname())
        self.tcp.setblocking(False)
        self.udp.setblocking(False)
        self.names = {"@FILE@": self.file, "@FOLDER@": self.folder, "@PORT@": self.tcp.getsockname()[1]}
        self.names["@SITE@"] = sysconfig.get_paths()["purelib"]
        return self

    def __exit__(self, *_):
        self.tcp.close()
        self.udp.close()
        shutil.rmtree(self.folder)

    def fill_in(self, code):
        for name, value in self.names.items():
            code = code.replace(name, str(value))
        return code

    def look(self):
        """Return all that an attack could change."""
        with contextlib.suppress(OSError):
            stats = [(*stat[:6], stat.st_mtime_ns) for stat in map(os.stat, (self.folder, self.file))]
            return stats, os.listdir(self.folder), self.file.read_text(), os.listxattr(self.file)

    def was_called(self):
        for act in (self.tcp.accept, lambda: self.udp.recv(99)):
            with contextlib.suppress(BlockingIOError):
                return bool(act())
        return False


def descendants(pid):
    """Return the ids of all processes below this one."""
    with contextlib.suppress(OSError):
        text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
        return [pid for child in map(int, text.split()) for pid in (child, *descendants(child))]
    return []


def left_behind():
    """Return what attacks created outside of the canary; they call all of it so."""
    places = ("/tmp", "/dev/shm", "/var/tmp", "/", os.getcwd())
    return {str(path) for place in places for path in Path(place).glob("*pwned*")}


def run(sandbox, attacks=ATTACKS):
    """Run attacks in a sandbox with LIMITS; return {name of the attack, or of what is left: what is wrong}.

    Those that need what the sandbox's report does not promise are left out. After every eighth a right
    program must pass: what an attack does to a zygote stays there.
    """
    report = sandbox.report
    has_all_layers = report["seccomp"] and report["landlock"]
    chosen = [attack for attack in attacks if all(map(report.get, attack.needs.split()))]

    def attempt(attack):
        code, *rest = attack.args
        start = time.monotonic()
        result = getattr(sandbox, attack.method)(canary.fill_in(code), *rest)
        seconds = time.monotonic() - start
        allowed = attack.outcomes
        if not has_all_layers and "passed" not in allowed:
            allowed = NOT_PASSED
        if result.outcome not in allowed.split():
            return f"{result.outcome} {result.message!r}, allowed: {allowed}"
        if seconds > 9:  # a job may take 5 * 0.5 + 1
            return f"took {seconds:.0f} s"
        if canary.look() != canary.state:
            return f"the canary was {canary.state} and is {canary.look()}"
        return None

    def attempt_all(*attacks):
        wrong = {attack.name: attempt(attack) for attack in attacks}
        following = sandbox.check(HEAD + f"    {RIGHT}\n", TEST, "add", HEAD)
        wrong[f"after {', '.join(wrong)}"] = None if following.outcome == "passed" else f"{following}"
        return wrong

    before = left_behind()
    with Canary() as canary:
        sandbox.map([(HEAD, TEST, "add", HEAD)] * 2 * len(sandbox.workers))  # starts all zygotes
        idle = [len(descendants(worker.process.pid)) for worker in sandbox.workers]
        batches = [chosen[i : i + 8] for i in range(0, len(chosen), 8)]
        results = sandbox.map(batches, method=attempt_all)
        failures = {name: wrong for result in results for name, wrong in result.items() if wrong}
        if canary.was_called():
            failures["network"] = "a program reached a port of ours"
    if left := left_behind() - before:
        failures["files"] = f"left behind: {sorted(left)}"
    if idle != [len(descendants(worker.process.pid)) for worker in sandbox.workers]:
        failures["processes"] = "some are left below a zygote"
    return failures


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import sandbox as module

    chosen = ATTACKS
    if (words := sys.argv[1:]) == ["--quick"]:
        chosen = QUICK
    elif words:
        chosen = [attack for attack in ATTACKS if any(word in attack.name for word in words)]
        module.LAYERS = ()
        LIMITS["wrapper"] = ()
    with module.Sandbox(workers=2, require=(), **LIMITS) as sandbox:
        print(json.dumps({"failures": run(sandbox, chosen), "report": sandbox.report, "n": len(chosen)}))
