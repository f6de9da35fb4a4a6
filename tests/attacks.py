"""The attacks that sandbox.py must withstand, as data; tests/test_attacks.py runs them.

    python tests/attacks.py    # without pytest, as any user: prints {"failures": ..., "report": ..., "n": ...}

A program passes only if it got what it wanted: it gives the right answer if the forbidden act succeeded, and a wrong
one otherwise. Each attack names the outcomes that it may have with all layers on, and the entries of Sandbox.report
that it `needs`: without these it may succeed. Besides, no attack may change the canary files, leave a file or a
process behind, reach a port of the trainer, or make the next job fail.
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
from dataclasses import dataclass, replace
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
ANY = "def check(candidate):\n    assert candidate(1, 2)\n"  # for programs that return a list of what succeeded
SUMS = [("1 2\n", "3\n"), ("5 7\n", "12\n")]  # stdin and stdout
ARGUMENTS = [([1, 2], 3), ([5, 7], 12)]  # arguments and result
NOT_PASSED = "failed exception timeout memory violation syntax"
LIMITS = {"timeout": 0.5, "memory_mb": 128}  # of the sandbox that the attacks are made for
X86 = platform.machine() == "x86_64"  # for system calls by number, and machine code

os.environ["SECRET_TOKEN"] = "hf_secret"  # programs look for it


@dataclass(frozen=True)
class Attack:
    name: str
    outcomes: str  # allowed with all layers on; with fewer layers, all that may not pass may also fail otherwise
    method: str  # of Sandbox
    args: tuple
    needs: str  # entries of Sandbox.report


ATTACKS = []


def check(name, outcomes, body, after="", test=TEST, needs="", head=HEAD):
    """A body for the function `add`, and what comes after it."""
    code = head + indent(dedent(body).strip("\n"), "    ") + "\n" + dedent(after)
    ATTACKS.append(Attack(name, outcomes, "check", (code, test, "add", head), needs))


def asserts(name, outcomes, code, lines, setup="", needs=""):
    """A program and asserts on its names."""
    ATTACKS.append(Attack(name, outcomes, "check_asserts", (dedent(code), lines, setup), needs))


def script(name, outcomes, code, cases=SUMS, needs=""):
    """A program between stdin and stdout."""
    ATTACKS.append(Attack(name, outcomes, "check_io", (dedent(code), cases), needs))


def function(name, outcomes, code, cases=ARGUMENTS, needs=""):
    """A program whose function `add` takes and returns what JSON can hold."""
    ATTACKS.append(Attack(name, outcomes, "check_io", (dedent(code), cases, "add"), needs))


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
"""
CALL = """
def call(number, *args):
    import ctypes
    args = [ctypes.c_long(arg) if type(arg) is int else arg for arg in args]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *args)
    return result if result >= 0 else -ctypes.get_errno()
"""
MACHINE = """
def machine(code):
    import ctypes, mmap
    page = mmap.mmap(-1, 1 << 16, prot=7)
    page[:len(code)] = code
    function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return lambda: (page, function())[1]
"""
# No program holds the marker itself, or it would find its own.
FIND = f"""
def find(data):
    import zlib
    starts = [i - 6 for i in range(6, len(data)) if data.startswith(b"_SECRE", i)] if b"_SECRE" in data else []
    return any(zlib.crc32(data[i : i + 12]) == {zlib.crc32(b"JUDGES_SECRE")} for i in starts)
"""

# -- controls, programs that do not compile ------------------------------------------------------------------

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
check(
    "swallow all exceptions",
    "timeout",
    """
    while True:
        try:
            while True: pass
        except BaseException: pass
    """,
)
check("sleep", "timeout", "import time; time.sleep(10**6)")
check(
    "timers off, signals ignored",
    "timeout",
    """
    import signal
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
    """,
)
check(
    "signals blocked",
    "timeout",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
)
check("loop in C", "timeout", "return sum(range(10**12))")
check("10**10**8", "timeout memory", "return 10**10**8")
check("regex", "timeout", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')")
LEAVE_THREAD = "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()\n"
check("thread left behind, right", "passed timeout", LEAVE_THREAD + RIGHT, needs="seccomp")
check("thread left behind, wrong", "failed timeout", LEAVE_THREAD + WRONG, needs="seccomp")
check("atexit sleeps", "passed", RIGHT, "import atexit, time\natexit.register(time.sleep, 10**6)")
check(
    "threads that start threads",
    NOT_PASSED,
    """
    import threading
    def f():
        while True: threading.Thread(target=f).start()
    f()
    """,
)
check(
    "threads that queue behind each other",  # while a program waits for a core, its clock stands still
    "timeout",
    """
    import hashlib, threading
    threading.stack_size(1 << 16)
    for _ in range(6): threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 10**8)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    """,
    needs="seccomp",
)
check("__str__ loops", "timeout", "raise E", "class E(Exception):\n    def __str__(self):\n        while True: pass")
check("the test loops over it", "timeout", "return range(10**13)", test=TEST.replace("candidate(1", "sum(candidate(1"))
check(
    "the test hashes it",
    "timeout",
    """
    import os
    os.write(channel(), b'{"ok": ["s"' + b"".join(b',["i","%x"]' % (i * (2**61 - 1)) for i in range(40000)) + b"]}\\n")
    """,
    CHANNEL,
)
check(
    "a reply in the middle of the request",
    "timeout",
    "return 3",
    CHANNEL + "reply(b'{\"ok\": null}')\nwhile True: reply(b'{\"ok\": 3}')",
    "def check(candidate):\n    assert candidate('x' * 10**7) == 3\n",
)

# -- memory --------------------------------------------------------------------------------------------------

check("64 GB", "memory", "return bytearray(64 << 30)")
check("append forever", "memory", "l = []\nwhile True: l.append(bytearray(1 << 20))")
check(
    "swallow MemoryError",
    "timeout",
    """
    l = []
    while True:
        try: l.append(bytearray(1 << 20))
        except MemoryError: pass
    """,
)
check("string doubling", "memory exception", "s = 'x'\nwhile True: s += s")
check(
    "memfd_create",
    "violation",
    "import os\nf = os.memfd_create('pwned')\nfor _ in range(256): os.write(f, bytes(1 << 20))\nreturn a + b",
    needs="seccomp",
)
check(
    "shared memory",
    NOT_PASSED,
    """
    from multiprocessing import shared_memory
    shared_memory.SharedMemory("pwned", create=True, size=1 << 30)
    return a + b
    """,
    needs="write",
)
check("recursion", "exception", "return add(a, b)")
check("recursion without limit", NOT_PASSED, "import sys\nsys.setrecursionlimit(10**9)\nreturn add(a, b)")
check(
    "C stack",
    NOT_PASSED,
    """
    import sys
    sys.setrecursionlimit(10**9)
    class X:
        def __repr__(self): return repr([self])
    return repr(X())
    """,
)
check(
    "lift the limit",
    "exception memory violation",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nbytearray(1 << 30)\nreturn a + b",
)
check("collisions", "failed timeout", "return {i * (2**61 - 1) for i in range(200000)}")
check("10**7 numbers", NOT_PASSED, "return list(range(10**7))")
check("cyclic list", "exception", "l = []; l.append(l)\nreturn l")
check("endless iterator", "memory timeout exception", "return iter(int, 1)")
check(
    "iterator of iterators",
    "memory timeout exception",
    "return T()",
    "class T:\n    def __iter__(self): return self\n    def __next__(self): return T()",
)
check("all descriptors", "failed", "import os\nwhile True:\n    try: os.pipe()\n    except OSError: return None")
if X86:
    check(
        "9000 threads without stacks",  # 26 kB each in the kernel, and a place among 32768 pids
        "failed",
        """
        flags = 0x50F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD and SYSVSEM; then it pauses forever
        start = machine(bytes.fromhex(
            "b838000000 bf000f0500 488d35eeff0000 31d2 4d31d2 4d31c0 0f05 85c0 7401 c3 b822000000 0f05 ebf7"
        ))
        return a + b if all(start() > 0 for _ in range(9000)) else None
        """,
        MACHINE,
        needs="seccomp",
    )

# -- processes and signals -----------------------------------------------------------------------------------

check("fork", "violation", "import os\nos.fork() or os._exit(0)\nreturn a + b", needs="processes")
check("fork bomb", "violation", "import os\nwhile True: os.fork()", needs="processes")
check(
    "fork by ctypes",
    "violation",
    "import ctypes, os\npid = ctypes.CDLL(None).fork()\nif pid == 0: os._exit(0)\nreturn a + b if pid > 0 else None",
    needs="processes",
)
check(
    "fork in a namespace",
    "violation",
    "import ctypes, os\nctypes.CDLL(None).unshare(0x10000000)\nos.fork() or os._exit(0)\nreturn a + b",
    needs="processes",
)
check(
    "daemon",
    "violation",
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\nreturn a + b",
    needs="processes",
)
check("os.system", "violation", "import os\nif os.system('touch /tmp/pwned') == 0: return a + b", needs="processes")
check("subprocess", "violation", "import subprocess\nsubprocess.run(['true'])\nreturn a + b", needs="processes")
check("posix_spawn", "violation", "import os\nos.posix_spawn('/bin/true', [''], {})\nreturn a + b", needs="processes")
check("pty", NOT_PASSED, "import os, pty\npty.fork()[0] or os._exit(0)\nreturn a + b", needs="processes")
check("exec", "violation", "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch /tmp/pwned'])", needs="write")
check(
    "multiprocessing",
    NOT_PASSED,
    "import multiprocessing\nmultiprocessing.Pool(2).map(abs, [1])\nreturn a + b",
    needs="processes write",
)
check("kill the zygote", "violation", "import os\nos.kill(os.getppid(), 9)", needs="signals")
check(
    "interrupt the judge",  # its pid is one of the next
    "violation",
    "import os\nfor pid in range(os.getpid() + 1, os.getpid() + 5): os.kill(pid, 2)",
    needs="signals",
)
# Signal 0 would tell whether 9 had killed every process of the user who runs this.
check("kill all", "violation", "import os\nos.kill(-1, 0)\nreturn a + b", needs="signals")
check("kill own group", "violation exception", "import os\nos.killpg(0, 9)")
check("kill itself", "violation exception", "import signal\nsignal.raise_signal(9)")
check("abort", "violation exception", "import os\nos.abort()")
check("null pointer", "exception", "import ctypes; ctypes.string_at(0)")
check("setsid", "violation", "import os\nos.setsid()\nreturn a + b", needs="seccomp")
check(
    "signals by fcntl",
    "violation",
    """
    import fcntl, os
    for pid in (os.getppid(), os.getpid() + 1):
        fcntl.fcntl(channel(), fcntl.F_SETOWN, pid)
        fcntl.fcntl(channel(), fcntl.F_SETSIG, 9)
        fcntl.fcntl(channel(), fcntl.F_SETFL, os.O_ASYNC)
    """,
    CHANNEL,
    needs="signals",
)
check(
    "signals by ioctl",
    "violation",
    "import fcntl, os, struct\nfcntl.ioctl(channel(), 0x8901, struct.pack('i', os.getppid()))\nreturn a + b",
    CHANNEL,
    needs="seccomp",
)
check(
    "commands of fcntl",  # locks, owners, signals, leases, notifications, sizes, seals, hints
    "failed",
    """
    import errno, fcntl
    def works(command):
        try: fcntl.fcntl(channel(), command, 0)
        except OSError as error: return error.errno != errno.EPERM
        return True
    return [n for n in (*range(5, 17), *range(36, 39), *range(1024, 1030), *range(1031, 1045)) if works(n)]
    """,
    CHANNEL,
    ANY,
    needs="seccomp",
)
check(
    "commands of ioctl",  # owners, FIOASYNC, FIONBIO, FIONREAD; on a terminal TIOCSTI and TIOCSCTTY
    "failed",
    """
    import errno, fcntl, struct
    def works(command):
        try: fcntl.ioctl(channel(), command, bytes(8))
        except OSError as error: return error.errno != errno.EPERM
        return True
    return [n for n in (0x8901, 0x8902, 0x5452, 0x5421, 0x541B, 0x5412, 0x540E) if works(n)]
    """,
    CHANNEL,
    ANY,
    needs="seccomp",
)
check(
    "limits of the zygote",
    "violation",
    "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))\nreturn a + b",
    needs="signals",
)
check(
    "cores of the zygote",
    "violation",
    "import os\nos.sched_setaffinity(os.getppid(), {0, 1})\nreturn a + b",
    needs="seccomp",
)
check(
    "outlive the zygote",  # PR_SET_PDEATHSIG
    "failed",
    "import ctypes\nreturn a + b if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0 else None",
    needs="seccomp",
)

# -- system calls --------------------------------------------------------------------------------------------

FATAL = """
 socket 41 connect 42 socketpair 53 bind 49 clone 56 fork 57 vfork 58 execve 59 kill 62 shmget 29 truncate 76
 ftruncate 77 rename 82 mkdir 83 rmdir 84 link 86 unlink 87 symlink 88 chmod 90 fchmod 91 chown 92 fchown 93 ptrace 101
 setpgid 109 setsid 112 mount 165 tkill 200 tgkill 234 mkdirat 258 unlinkat 263 renameat 264 linkat 265 symlinkat 266
 fchmodat 268 unshare 272 setns 308 process_vm_readv 310 process_vm_writev 311 renameat2 316 memfd_create 319 bpf 321
 execveat 322 io_uring_setup 425 pidfd_open 434
"""
REFUSED = """
 ioctl 16 pwrite64 18 shmat 30 sendfile 40 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47 shutdown 48 listen 50 setsockopt
 54 wait4 61 semget 64 semop 65 msgget 68 msgsnd 69 flock 73 chdir 80 fchdir 81 creat 85 lchown 94 umask 95 syslog 103
 setuid 105 setgid 106 setreuid 113 setgroups 116 setresuid 117 capset 126 rt_sigqueueinfo 129 utime 132 mknod 133
 personality 135 setpriority 141 sched_setparam 142 sched_setscheduler 144 mlock 149 mlockall 151 vhangup 153
 modify_ldt 154 pivot_root 155 prctl 157 arch_prctl 158 adjtimex 159 chroot 161 sync 162 acct 163 settimeofday 164
 umount2 166 swapon 167 reboot 169 sethostname 170 iopl 172 ioperm 173 init_module 175 delete_module 176 quotactl 179
 setxattr 188 lsetxattr 189 fsetxattr 190 removexattr 197 sched_setaffinity 203 io_setup 206 epoll_create 213
 remap_file_pages 216 timer_create 222 timer_settime 223 clock_settime 227 utimes 235 mbind 237 set_mempolicy 238
 mq_open 240 mq_unlink 241 mq_timedsend 242 kexec_load 246 waitid 247 add_key 248 request_key 249 keyctl 250
 ioprio_set 251 inotify_init 253 migrate_pages 256 mknodat 259 fchownat 260 futimesat 261 get_robust_list 274
 splice 275 tee 276 sync_file_range 277 vmsplice 278 move_pages 279 utimensat 280 signalfd 282 timerfd_create 283
 eventfd 284 fallocate 285 accept4 288 signalfd4 289 eventfd2 290 epoll_create1 291 inotify_init1 294 pwritev 296
 rt_tgsigqueueinfo 297 perf_event_open 298 recvmmsg 299 fanotify_init 300 name_to_handle_at 303 open_by_handle_at 304
 clock_adjtime 305 sendmmsg 307 kcmp 312 finit_module 313 sched_setattr 314 seccomp 317 kexec_file_load 320
 userfaultfd 323 mlock2 325 copy_file_range 326 pwritev2 328 pkey_mprotect 329 pidfd_send_signal 424 io_uring_enter 426
 io_uring_register 427 open_tree 428 move_mount 429 fsopen 430 fsconfig 431 fsmount 432 fspick 433 clone3 435
 openat2 437 pidfd_getfd 438 process_madvise 440 mount_setattr 442 landlock_restrict_self 446 memfd_secret 447
 process_mrelease 448 futex_waitv 449 set_mempolicy_home_node 450 unknown 999
"""
if X86:
    for name, number in zip(FATAL.split()[::2], FATAL.split()[1::2]):
        check(f"system call {name}", "violation", f"call({number})", CALL, needs="seccomp")
    check(
        "other system calls",  # Operation not permitted, or Function not implemented
        "failed",
        f"""
        words = {REFUSED.split()}
        return [name for name, number in zip(words[::2], words[1::2]) if call(int(number)) not in (-1, -38)]
        """,
        CALL,
        ANY,
        needs="seccomp",
    )
    check("system call, high bits set", "violation", "call((1 << 32) + 57)", CALL, needs="seccomp")
    check("system call of x32", "violation", "call(0x40000000 + 57)", CALL, needs="seccomp")
    SIGNAL_ZYGOTE = "import os, struct\npid = struct.pack('I', os.getppid())\n"
    SIGNAL_ZYGOTE += "f = machine(b'\\xb8%\\0\\0\\0\\xbb' + pid + b'\\xb9\\0\\0\\0\\0\\xcd\\x80\\xc3')\n"  # int 0x80
    check(
        "system call of i386",
        "violation exception",
        SIGNAL_ZYGOTE + "if f() == 0: return a + b",
        MACHINE,
        needs="signals",
    )
    check(
        "system call of i386 in a thread",
        "failed violation",
        SIGNAL_ZYGOTE + "import threading, time\nthreading.stack_size(1 << 16)\nresults = []\n"
        "threading.Thread(target=lambda: results.append(f()), daemon=True).start()\n"
        "time.sleep(0.05)\nif results == [0]: return a + b",
        MACHINE,
        needs="signals seccomp",
    )
    check("clone, high bits set", "violation", "call(56, (0x10000 << 32) + 17)", CALL, needs="seccomp")
    check(
        "threads in namespaces of their own",
        "failed",
        """
        flags = [1 << 7, 1 << 17, *(1 << bit for bit in range(25, 31))]
        return [flag for flag in flags if call(56, 0x10900 + flag) >= 0]
        """,
        CALL,
        ANY,
        needs="seccomp",
    )
    check(
        "fcntl, high bits set",  # F_SETOWN
        "failed",
        "import os\nreturn [n for n in (1 << 32, 1 << 63) if call(72, channel(), n + 8 - (n >> 63 << 64), os.getppid()) == 0]",
        CALL + CHANNEL,
        ANY,
        needs="seccomp",
    )
    check(
        "open, high bits set",
        "failed",
        "return [n for n in (1, 2, 64, 512) if call(2, b'@FILE@', (1 << 32) + n, 0o666) >= 0]",
        CALL,
        ANY,
        needs="write",
    )
    check(
        "the main thread ends, another goes on",
        "failed",
        """
        import _thread
        def serve():
            import os
            while True:
                reply(b'{"ok": 4}')
                os.read(channel(), 1 << 16)
        _thread.start_new_thread(serve, ())
        call(60, 0)
        """,
        CALL + CHANNEL,
        needs="seccomp",
    )

# -- files ---------------------------------------------------------------------------------------------------

check("delete", "violation", "import os\nos.remove('@FILE@')\nreturn a + b", needs="write")
check("rename", "violation", "import os\nos.rename('@FILE@', '@FILE@2')\nreturn a + b", needs="write")
check("chmod", "violation", "import os\nos.chmod('@FILE@', 0)\nreturn a + b", needs="write")
check("chown", "violation", "import os\nos.chown('@FILE@', os.getuid(), os.getgid())\nreturn a + b", needs="write")
check("utime", "violation", "import os\nos.utime('@FILE@')\nreturn a + b", needs="write")
check("setxattr", "violation", "import os\nos.setxattr('@FILE@', 'user.pwned', b'')\nreturn a + b", needs="write")
check("truncate", "violation", "import os\nos.truncate('@FILE@', 0)\nreturn a + b", needs="write")
check("overwrite", "violation", "open('@FILE@', 'w')\nreturn a + b", needs="write")
check("append", "violation", "open('@FILE@', 'a').write('x')\nreturn a + b", needs="write")
check("hard link", "violation", "import os\nos.link('@FILE@', '/tmp/pwned')\nreturn a + b", needs="write")
check("symbolic link", "violation", "import os\nos.symlink('@FILE@', '/tmp/pwned')\nreturn a + b", needs="write")
check("pipe with a name", "violation", "import os\nos.mkfifo('/tmp/pwned')\nreturn a + b", needs="write")
check(
    "open for writing, all ways",  # the last but one truncates although it only reads
    "failed",
    """
    import os
    def works(path, flags):
        try: return os.open(path, flags, 0o666)
        except OSError: return 0
    flags = (1, 2, 3, os.O_RDWR | os.O_APPEND, os.O_TRUNC, os.O_CREAT)
    return [n for n in flags if works("@FILE@", n)] + [n for n in flags[3:] if works("@FILE@.new", n | os.O_CREAT)]
    """,
    test=ANY,
    needs="write",
)
check("O_TMPFILE", "violation", "import os\nos.open('/tmp', os.O_TMPFILE | os.O_RDWR)\nreturn a + b", needs="write")
for path in ("/tmp/pwned", "/dev/shm/pwned", "/var/tmp/pwned", "pwned", "@FOLDER@/pwned"):
    check(f"create {path}", "violation exception", f"open('{path}', 'w')\nreturn a + b", needs="write")
check("rmtree", "failed violation", "import shutil\nshutil.rmtree('@FOLDER@', ignore_errors=True)", needs="write")
check(
    "many folders",
    "violation exception",
    "import os\nfor i in range(10**6): os.mkdir(f'/tmp/pwned{i}')\nreturn a + b",
    needs="write",
)
check("sqlite", NOT_PASSED, "import sqlite3\nsqlite3.connect('/tmp/pwned').execute('create table t(x)')\nreturn a + b",
      needs="write")  # fmt: skip
check("read a file", "violation", "open('@FILE@')\nreturn a + b", needs="read")
check("read /etc/passwd", "violation", "open('/etc/passwd')\nreturn a + b", needs="read")
check("read sandbox.py", "violation", "import sys\nopen(sys.modules['__main__'].__file__)\nreturn a + b", needs="read")
check("list a folder", "violation", "import os\nos.listdir('@FOLDER@')\nreturn a + b", needs="read")
check("list the home", "violation", "import os\nos.listdir(os.path.expanduser('~'))\nreturn a + b", needs="read")
check("list processes", "violation", "import os\nos.listdir('/proc')\nreturn a + b", needs="read")
check("block device", "violation exception", "open('/dev/vda', 'rb')\nreturn a + b", needs="read")
check(
    "read by descriptors",
    "failed",
    """
    import os
    paths = []
    for fd in [*range(64), os.open("/", os.O_PATH), os.open("@FOLDER@", os.O_PATH)]:
        for path in ("secret", "." + "/.." * 9 + "@FILE@"):
            try: paths.append(os.readlink(f"/proc/self/fd/{os.open(path, os.O_RDONLY, dir_fd=fd)}"))
            except OSError: pass
    return paths
    """,
    test=ANY,
    needs="read",
)
check(
    "read by links of /proc",
    "failed",
    """
    paths = []
    for link in ("root", "cwd", "fd/63", "task/self/root"):
        for who in ("self", "thread-self", "1"):
            path = f"/proc/{who}/{link}/" + "../" * 9 + "@FILE@"
            try: paths.append(open(path).name)
            except OSError: pass
    return paths
    """,
    test=ANY,
    needs="read",
)
check(
    "read by other means",
    "failed",
    """
    import ctypes, importlib.machinery, io, linecache, os, runpy, sqlite3
    libc = ctypes.CDLL(None)
    read = []
    for means in (
        lambda: io.open_code("@FILE@"),
        lambda: linecache.getlines("@FILE@")[0],
        lambda: runpy.run_path("@FILE@"),
        lambda: importlib.machinery.SourceFileLoader("x", "@FILE@").get_data("@FILE@"),
        lambda: sqlite3.connect("file:@FILE@?mode=ro", uri=True).execute("pragma user_version"),
        lambda: [1][not libc.fopen(b"@FILE@", b"r")],
        lambda: ctypes.CDLL("@FILE@"),
    ):
        try: means(); read.append(means.__code__.co_firstlineno)
        except (OSError, IndexError, sqlite3.Error): pass
    return read
    """,
    test=ANY,
    needs="read",
)
check(
    "read site-packages",
    "failed",
    """
    import os
    paths = [os.path.join(where, name) for where, _, names in os.walk("@SITE@") for name in names[:3]]
    def works(path):
        try: return open(path)
        except OSError: return None
    return [path for path in paths[:500] if works(path)]
    """,
    test=ANY,
    needs="read",
)
check("import pip", NOT_PASSED, "import sys\nsys.path.append('@SITE@')\nimport pip\nreturn a + b", needs="read")
check("import modules of the trainer", NOT_PASSED, "import torch, sandbox\nreturn a + b", needs="read")
check("environment", "failed", "import os\nreturn a + b if 'SECRET_TOKEN' in os.environ else None")
check(
    "own memory by /proc",
    "violation failed",
    """
    for line in open("/proc/self/maps"):
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        with open("/proc/self/mem", "rb", buffering=0) as file:
            file.seek(start)
            if find(file.read(end - start)): return a + b
    """,
    FIND,
)
check(
    "own memory by system calls",  # a write from an address that is not there fails
    "failed",
    """
    import ctypes, os
    libc, (out, into) = ctypes.CDLL(None), os.pipe()
    start = id(object()) >> 24 << 24
    for address in range(start, start + (1 << 24), 4096):
        if libc.write(into, ctypes.c_void_p(address), 4096) == 4096 and find(os.read(out, 4096)): return a + b
    """,
    FIND,
)
RELATIVES = """
import os
def relatives():
    zygote = os.getppid()
    trainer = open(f"/proc/{zygote}/stat").read().rpartition(")")[2].split()[1]
    children = open(f"/proc/{zygote}/task/{zygote}/children").read().split()
    return {trainer, str(zygote), *children} - {str(os.getpid())}
def works(act, path):
    try: return act(path) is not None
    except OSError: return False
"""
check(
    "memory of trainer, zygote and judge",
    "violation failed",
    """
    files = [f"/proc/{pid}/{name}" for pid in relatives() for name in ("mem", "environ", "maps", "auxv", "syscall")]
    return [file for file in files if works(lambda file: open(file, "rb").read(1), file)]
    """,
    RELATIVES,
    ANY,
)
check(
    "files of trainer, zygote and judge",
    "violation failed",
    """
    folders = [f"/proc/{pid}/{name}" for pid in relatives() for name in ("fd", "map_files", "cwd", "root")]
    return [folder for folder in folders if works(os.listdir, folder)]
    """,
    RELATIVES,
    ANY,
)

# -- network -------------------------------------------------------------------------------------------------

SOCKET = "import asyncio, os, socket\nurl = ('127.0.0.1', @PORT@)\n"
for name, act in (
    ("TCP", "socket.create_connection(url, 1)"),
    ("UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'pwned', url)"),
    ("IPv6", "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'pwned', ('::1', @PORT@))"),
    ("socket with a path", "socket.socket(socket.AF_UNIX).connect('@FOLDER@/socket')"),
    ("socket without a path", "socket.socket(socket.AF_UNIX).bind('\\0pwned')"),
    ("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    ("vsock", "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)"),
    ("asyncio", "asyncio.run(asyncio.open_connection(*url))"),
    ("descriptors over the channel", "socket.send_fds(socket.socket(fileno=channel()), [b'x'], [0])"),
):
    check(name, NOT_PASSED if name == "descriptors over the channel" else "violation", SOCKET + act + "\nreturn a + b",
          CHANNEL, needs="network seccomp" if "path" in name or name in ("netlink", "vsock", "asyncio") else "network")  # fmt: skip
check("urllib", NOT_PASSED, "from urllib.request import urlopen\nurlopen('http://127.0.0.1:@PORT@')\nreturn a + b",
      needs="network")  # fmt: skip
