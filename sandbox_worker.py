"""What runs below the trainer: one zygote, and for each job a candidate and a judge.

Started by sandbox.py, never by you; the drawing there shows who holds what. Before they start, candidate and
judge give up root, resources, system calls (seccomp) and files (Landlock); firejail, where installed,
surrounds the zygote. This file imports little: every fork copies what its zygote has loaded.
"""

import atexit
import builtins
import collections
import ctypes
import functools
import gc
import io
import itertools
import json
import marshal
import operator
import os
import pkgutil
import re
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

if sys.platform == "linux":  # elsewhere the import succeeds and Sandbox() says what is missing
    import resource

    libc = ctypes.CDLL(None)

# -- kernel layers: rights that a process gives up for good --------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_FILTER = 1, 4, 22, 2
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 36, 38, 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_VERSION, PATH_BENEATH = 444, 445, 446, 1, 1
READ_FILE, READ_DIR, TCP_RIGHTS, SCOPES, CPUCLOCK_SCHED, M_ARENA_MAX = 4, 8, 3, 3, 2, -8
FILE_RIGHTS = 0, 13, 14, 15, 15, 16  # how many, by version of Landlock; since version 5 all
HOME_FD, MAX_THREADS, NOBODY, OUR_USERS = 63, 128, 65534, 1 << 30


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

# What JSON has itself (None, bool, float, str, an int of less than 63 bits) crosses as it is. All else is a
# list of a tag and parts, which are encoded in their turn:
#   1 << 62            ["i", "0x4000000000000000"]             decimal digits would take quadratic time
#   Text("a")          ["u", "a"]                              a subclass of str, of float: ["e", 1.5]
#   b"\x00\xff", 2j   ["b", "00ff"], ["c", 0.0, 2.0]         range(4): ["r", 0, 4, 1]
#   {"a": None}        ["d", ["t", "a", null]]
#   [1], (1,), {1}     ["l", 1], ["t", 1], ["s", 1]            a frozenset: ["f", 1]; views: "k", "v", "w"
#   Decimal, Point, int  ["x", "decimal.Decimal", "0.1"], ["q", "Point", ["t", "x"], 1], ["y", "builtins.int"]
#   iter([1]), sqrt, lambda x: x  ["n", 1], ["o", "math:sqrt"], ["o", -1]    to the candidate only
#   Node(1) of the prompt  ["o", "Node", ["t"], ["d", ["t", "value", 1]]]    as copy.copy would make it
#   other objects      ["o", 0, "__len__"], ["o", "f"]         a place in `kept`, a name of the program
FORMS: tuple = (  # tag, type, its parts, the way back
    ("i", int, lambda value: [hex(value)], lambda parts: int(parts[0], 16)),
    ("e", float, lambda value: [float(value)], lambda parts: float(parts[0])),
    ("u", str, lambda value: [str.__str__(value)], lambda parts: str(parts[0])),
    ("b", bytes, lambda value: [value.hex()], lambda parts: bytes.fromhex(parts[0])),
    ("c", complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    ("r", range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    ("k", type({}.keys()), list, lambda parts: dict.fromkeys(parts).keys()),
    ("v", type({}.values()), list, lambda parts: dict(enumerate(parts)).values()),
    ("w", type({}.items()), list, lambda parts: dict(parts).items()),
    ("d", dict, dict.items, dict),
    *((tag, base, list, base) for tag, base in zip("ltsf", (list, tuple, set, frozenset))),
)
STANDARD = """array.array builtins.bytearray builtins.slice collections.Counter collections.OrderedDict
 collections.defaultdict collections.deque datetime.date datetime.datetime datetime.time datetime.timedelta
 datetime.timezone decimal.Decimal fractions.Fraction""".split()  # not their subclasses
KINDS = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and kind is not type}
EXCEPTIONS = {name: kind for name, kind in KINDS.items() if issubclass(kind, Exception)}
TYPES = [*STANDARD, *(f"builtins.{name}" for name in KINDS)]
tuple_type = functools.cache(collections.namedtuple)  # raises ValueError where a name is no identifier


BUILD = {tag: back for tag, _, _, back in FORMS}
BUILD["n"] = iter
BUILD["q"] = lambda parts: tuple_type(parts[0], parts[1])(*parts[2:])
BUILD["x"] = lambda parts: pkgutil.resolve_name(STANDARD[STANDARD.index(parts[0])])(*parts[1:])
BUILD["y"] = lambda parts: pkgutil.resolve_name(TYPES[TYPES.index(parts[0])])


def encode(value, rest):
    """Make JSON of plain data. Subclasses go as their base; rest(value) is asked for all other objects."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 1 << 62):
        return value
    if kind is getattr(rest, "classes", {}).get(kind.__name__) and not issubclass(
        kind, (list, dict, set, frozenset)
    ):
        return share(value, rest)
    if (name := f"{kind.__module__}.{kind.__name__}") in STANDARD:
        _, args, _, items, pairs = (*value.__reduce_ex__(2), None, None, None)[:5]
        args = [list(items), *args[1:]] if items else [*args, list(pairs)] if pairs else args
        return ["x", name, *(encode(part, rest) for part in args)]
    if kind is type and (name := f"{value.__module__}.{value.__name__}") in TYPES:
        return ["y", name]
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return ["q", kind.__name__, ["t", *kind._fields], *(encode(part, rest) for part in value)]
    for tag, base, parts, _ in FORMS:
        if issubclass(kind, base):
            return [tag, *(encode(part, rest) for part in parts(value))]
    return rest(value)


def decode(message, find):
    """Undo encode. Whatever the other side sent, only exact builtins, STANDARD and find(*parts) come out."""
    if type(message) is not list:
        return message
    tag, parts = message[0], [decode(part, find) for part in message[1:]]
    return find(*parts) if tag == "o" else BUILD[tag](parts)


def share(value, rest):
    """Encode an object of a class that both sides have from the prompt."""
    if hasattr(type(value), "__members__"):
        return ["o", type(value).__name__, value.name, None]
    _, args, state = (*value.__reduce_ex__(2), None)[:3]
    args = args[args[:1] == (type(value),) :]
    state = {**(state[0] or {}), **state[1]} if isinstance(state, tuple) else state or {}  # of slots
    return ["o", type(value).__name__, encode(args, rest), encode(state, rest)]


def revive(kind, args, state):
    """Undo share, without any method of the class; raises ValueError where an attribute would replace one."""
    if hasattr(kind, "__members__"):
        return kind[args]
    base = next(base for base in kind.__mro__ if base.__module__ == "builtins")  # no __new__ of the prompt's
    value = base.__new__(kind, args) if base is tuple else base.__new__(kind, *args)
    for name, part in state.items():
        if callable(getattr(kind, name, None)):
            raise ValueError(f"{name} is a method")
        object.__setattr__(value, name, part)
    return value


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
OPERATIONS = {"get": getattr, "set": setattr, "__bool__": bool, **vars(operator)}
OPERATIONS["__call__"] = lambda function, /, *args, **kwargs: function(*args, **kwargs)
OPERATIONS["__eq__"] = lambda a, b: not callable(a) and a == b  # to return a function is no way to be equal
OPERATIONS["isinstance"] = lambda kind, value: isinstance(value, kind)


def load(name, source):
    """Compile and run a program as the module `name`; return its namespace."""
    builtins.exit = builtins.quit = sys.exit  # python -S leaves them out
    for module in TESTS_ONLY:
        del sys.modules[module]
    seed_random(0, source)
    module = sys.modules[name] = type(sys)(name)  # a module: dataclasses look it up
    module.__dict__.update(__file__="/solution.py", __builtins__=builtins)
    try:
        code = compile(source, "<candidate>", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes, lone surrogates
        raise SourceError(error) from None
    exec(code, module.__dict__)
    return module.__dict__


def seed_random(seed, source):
    """Make random numbers the same each time, if the source mentions them."""
    if "random" in source:
        random = __import__("random")
        random.Random.__init__.__defaults__ = (seed,)  # random.Random(), too
        random.Random.seed.__defaults__ = (seed, 2)
        random.seed()


def classify(error: BaseException) -> str:
    """Name the outcome for what a program raised."""
    return next(outcome for kind, outcome in FAULTS.items() if isinstance(error, kind))


def serve(fd):
    """Run the program that comes first, then answer requests until the judge hangs up."""
    namespace, kept, classes = {}, [], {}

    def find(target, *parts):
        if parts:
            return revive(classes[target], *parts)
        if type(target) is int:
            return kept[target] if target >= 0 else lambda *args, **kwargs: call_back(~target, args, kwargs)
        if ":" in target:
            return pkgutil.resolve_name(target)
        solution = namespace.get("Solution")  # LeetCode's form, in APPS and TACO
        if solution and (hasattr(solution, target) or target not in namespace):
            return getattr(solution(), target)
        return namespace[target]

    def keep(value):
        kept.append(value)
        return ["o", len(kept) - 1, " ".join(dir(type(value)))]

    keep.classes = classes

    def call_back(place, *call):
        send(fd, {"call": [place, *(encode(part, keep) for part in call)]})
        return answer()

    def answer():
        """Do what the judge asks, until it returns what the program has asked it for."""
        nonlocal namespace
        while True:
            operation, target, args, kwargs = receive(fd)
            if operation == "return":
                return decode(args, find)
            if operation == "raise":
                raise EXCEPTIONS[target](*args)
            try:
                if operation == "load":
                    namespace, value = load("solution", target), None
                    classes.update((name, namespace[name]) for name in args[1:] if name in namespace)
                else:
                    value = find(target)
                    act = OPERATIONS.get(operation) or getattr(type(value), operation)
                    value = act(value, *decode(args, find), **decode(kwargs, find))
                send(fd, {"ok": encode(value, keep)})
            except BaseException as error:
                names = [kind.__name__ for kind in type(error).__mro__]
                reply = {"outcome": classify(error), "names": names, "text": f"{names[0]}: {error}"[:300]}
                send(fd, {**reply, "args": encode(error.args, keep), "state": encode(vars(error), keep)})
                if not isinstance(error, Exception):  # SystemExit ends a program
                    os._exit(1)

    answer()


def run_script(source, stdin, stdout):
    """Run a program between two files; exit status: 0, 1 or 100 + the place of its outcome in FAULTS."""
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    # Twice, as Python has them: a program that replaces one must not close the other's file.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]
    try:
        load("__main__", read_all(source).decode(errors="surrogatepass"))
        status = 0
    except SystemExit as error:
        status = int(error.code not in (None, 0))
    except BaseException as error:
        status = 100 + list(FAULTS.values()).index(classify(error))
    with suppress(BaseException):
        end_script()
        os._exit(status)


def end_script():
    """Do what Python does at the end, but fast: programs write in hooks and when their objects are gone."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # waits for its threads
    atexit._run_exitfuncs()
    last, sys.stdout = sys.stdout, sys.__stdout__
    if last is not None and not getattr(last, "closed", False):
        last.flush()
    del last, sys.modules["__main__"]
    gc.collect()  # of an open file, too, which this flushes
    with suppress(ValueError):  # it was closed or detached
        sys.stdout.flush()


def same_output(output: bytes, expected: bytes) -> bool:
    """Compare what a program printed with what is expected, line by line, by the rules in docs/reward.md."""
    number = rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"

    def same(word, right):
        if word == right:
            return True
        if not (re.fullmatch(rb"(?=.*[.eE])" + number, right) and re.fullmatch(number, word)):
            return False
        a, b = float(word), float(right)
        return abs(a - b) <= 1e-6 * max(1, min(abs(a), abs(b)))  # false if one is infinite

    texts = (io.BytesIO(text.strip()) for text in (output, expected))
    for lines in itertools.zip_longest(*texts, fillvalue=b""):
        if lines[0].rstrip() != lines[1].rstrip():
            words = itertools.zip_longest(*(re.finditer(rb"\S+", line) for line in lines))
            if not all(a and b and same(a[0], b[0]) for a, b in words):
                return False
    return True


def compare(output, expected, _):
    """Tell by the exit status whether two files hold the same."""
    os._exit(not same_output(read_all(output), read_all(expected)))


# -- judge: the only process with the test, the expected values and the verdict ------------------------------

# Of a function's result a test may use little: what shows the program no value, and does not stand for data.
ORDER = "__lt__ __le__ __gt__ __ge__".split()
OPERATORS = [*ORDER, *"__add__ __sub__ __mul__ __truediv__ __pow__ __mod__ __and__ __or__ __xor__".split()]
OF_RESULTS = "__call__ __bool__ __hash__ __next__ send throw close __enter__ __exit__".split()
OF_OBJECTS = "__len__ __iter__ __getitem__ __setitem__ __delitem__ __str__ __repr__ __neg__ __abs__".split()


class CandidateDied(BaseException):
    """The candidate is gone; no `except Exception` of a test catches that."""


class Handle:  # noqa: PLW1641 - handle() adds it
    """An object that stayed in the candidate. No data is equal to it, whatever its own __eq__ says."""

    def __init__(self, target, ask):
        vars(self).update(_target=target, _ask=ask)

    def __getattr__(self, name):
        if name.startswith("__array"):  # numpy would take an address in memory from the program
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name, value):
        self._ask("set", name, value)

    def __eq__(self, other):
        return self is other or (isinstance(other, Handle) and self._ask("__eq__", other) is True)

    def __instancecheck__(self, other):
        return isinstance(other, Handle) and self._ask("isinstance", other) is True

    def _special(self, name, /, *args, **kwargs):
        value = self._ask(name, *args, **kwargs)
        is_object = isinstance(value, Handle) and name not in ORDER  # Vector(1, 2) * 3
        if name in OPERATORS and not (isinstance(args[0], Handle) or is_object):
            return NotImplemented  # data that it made of data in the test, which may be what is expected
        return value


def handle(ask, is_object, target, names="__call__ __hash__"):
    """Return a handle with those special methods in `names` that a test may use."""
    usable = {"__bool__", *names.split()} & {*OF_RESULTS, *(OF_OBJECTS + OPERATORS) * is_object}
    methods = {name: functools.partialmethod(Handle._special, name) for name in usable}
    if "__next__" in usable:
        methods["__iter__"] = lambda self: self
    return type("Handle", (Handle,), methods)(target, functools.partial(ask, is_object, target))


class Names(dict):
    """The names of a test. With `ask`, those that neither it nor Python defines are the program's."""

    ask = None

    def __missing__(self, name):
        if not self.ask or hasattr(builtins, name):
            raise KeyError(name)
        is_module = name in sys.stdlib_module_names
        return __import__(name) if is_module else handle(self.ask, name[0].isupper(), name)


def judge(fd, job, verdict):
    """Run the test in the file `job` against the candidate and write the verdict (all file descriptors)."""
    code, entry_point, has_program_names, source, helpers, test, n_asserts, _ = marshal.loads(read_all(job))
    seed_random(source, source)  # unknown to the candidate
    counted = {"outcome": "passed", "message": "", "n_passed": 0, "n_tests": 0, "is_whole": True}
    names, classes, given = Names(__name__="test"), {}, []

    def count(error, source=""):
        counted["n_tests"] += 1
        counted["n_passed"] += error is None
        if error is not None and counted["outcome"] == "passed":  # the first failure wins
            is_failure = type(error) is AssertionError and not hasattr(error, "outcome")
            counted["outcome"] = "failed" if is_failure else getattr(error, "outcome", "exception")
            with suppress(Exception):  # even this may fail: an int of 5000 digits has no str()
                text = f"{source} {error}" if is_failure else getattr(error, "text", None) or repr(error)
                counted["message"] = text.strip()[:300]

    def give(value):
        if isinstance(value, Handle):
            return ["o", vars(value)["_target"]]
        if hasattr(type(value), "__next__"):
            return ["n", *(encode(part, give) for part in value)]
        home = getattr(getattr(value, "__objclass__", value), "__module__", None)  # of str.lower: builtins
        is_bound = not isinstance(getattr(value, "__self__", sys), type(sys))  # to an object, as [].append
        if home in sys.stdlib_module_names and hasattr(value, "__qualname__") and not is_bound:
            return ["o", f"{home}:{value.__qualname__}"]
        if callable(value) and not isinstance(value, type):
            given.append(value)
            return ["o", -len(given)]
        raise TypeError(f"cannot pass {type(value).__name__} to the candidate")

    give.classes = classes

    def found(is_object, target, *parts):
        if len(parts) == 2:
            return revive(classes[target], *parts)
        return handle(ask, is_object, target, *parts)

    def call_back(place, *call):
        """Call a function of the test for the candidate. An assert in it can fail, but gives no credit."""
        before = counted["n_passed"], counted["n_tests"]
        try:
            args, kwargs = (decode(part, functools.partial(found, False)) for part in call)
            return "return", None, encode(given[place](*args, **kwargs), give), None
        except Exception as error:
            names = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in EXCEPTIONS]
            return "raise", names[0], list(map(str, error.args)), None
        finally:
            counted["n_passed"], counted["n_tests"] = before

    def ask(is_object, target, operation, /, *args, **kwargs):
        """Let the candidate do something; return what it returned or raise what it raised."""
        request = operation, target, encode(args, give), encode(kwargs, give)
        find, known = functools.partial(found, is_object), EXCEPTIONS | classes
        try:
            send(fd, request)
            while "call" in (reply := receive(fd)):
                send(fd, call_back(*reply["call"]))
            if "ok" in reply:
                return decode(reply["ok"], find)
            kind = next((known[name] for name in reply["names"] if name in known), CandidateDied)
            if issubclass(kind, StopIteration) and operation not in ("__next__", "send", "throw"):
                kind = Exception  # it would end `all(map(candidate, xs))`
            args, state = decode(reply.get("args", ["t"]), find), decode(reply.get("state"), find)
            error = revive(kind, args, state) if kind.__name__ in classes else kind(*args)
            error.outcome = reply["outcome"] if reply["outcome"] in FAULTS.values() else "violation"
            error.text = str(reply["text"])
        except Exception as fault:  # no reply, or none that encode() could have made
            error = CandidateDied()
            error.outcome = "died" if isinstance(fault, OSError) else "violation"
            error.text = "the program ended early or broke its connection"
        if isinstance(error, CandidateDied):
            counted["is_whole"] = False
            count(error)  # noted now: a bare `except:` of the test may swallow it
        raise error

    try:
        with suppress(Exception):
            exec(helpers, names)  # trusted helpers from the prompt, e.g. poly() of HumanEval/32
        name = entry_point.rpartition(".")[2]  # of Solution().f
        classes |= {n: kind for n, kind in names.items() if getattr(kind, "__module__", None) == "test"}
        classes.pop(entry_point.partition(".")[0].removesuffix("()"), None)  # it is the program's
        names["__count__"], names.ask = count, ask if has_program_names else None
        names["__candidate__"] = names[name] = handle(ask, name[:1].isupper(), name)
        ask(False, code, "load", *classes)
        exec(test, names)
        if not n_asserts:
            count(None)  # nothing to count: the test as a whole is one case
        elif not counted["n_tests"]:
            count(Exception("no assert of the test was reached"))
    except BaseException as error:
        counted["is_whole"] = False
        if not isinstance(error, CandidateDied):
            count(error)
    os.write(verdict, json.dumps(list(counted.values())).encode())


# -- zygote: forks, supervises, kills and reaps; reads no file of a job --------------------------------------

# What many programs import. More would make every fork slower, hashlib alone by a tenth.
PRELOAD = "bisect collections copy datetime functools heapq itertools math operator re string typing".split()


def fork(function, fds, gate, timeout, rights):
    """Run function(*fds) in a confined child without other descriptors; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        confine(*rights)
        signal.alarm(int(wall_limit(timeout)) + 1)  # third line of defence: a candidate may reset its own
        os.write(gate, b".")
        for low, high in itertools.pairwise([2, *sorted(fds), HOME_FD]):
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
    """Wait for the end of a job; return True if out of time, or threads. Waiting for a core costs none."""
    start, left = time.monotonic(), timeout
    while not poller.poll(max(10, 1000 * min(left, 0.02))):
        if any(os.stat(f"/proc/{pid}/task").st_nlink > MAX_THREADS + 2 for pid in pids):
            return True
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
    """Run one job; return [was it confined, wait status, did its time run out, CPU seconds, wall seconds].

    With two files there is a judge; with three a script, or a comparison if it may not write.
    """
    start = time.monotonic()
    confined, gate = os.pipe()
    ours, theirs = socket.socketpair()
    roles = {run_script if rights[0][resource.RLIMIT_FSIZE] else compare: files}
    if len(files) == 2:
        roles = {serve: [theirs.fileno()], judge: [ours.fileno(), *files]}
    with ours, theirs:
        pids = [fork(role, fds, gate, timeout, rights) for role, fds in roles.items()]
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


def import_numpy(folder):
    """Import numpy, for tests alone."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.path.append(folder)
    __import__("numpy.testing")
    sys.path.pop()
    TESTS_ONLY.extend(name for name in sys.modules if name.split(".")[0] == "numpy")


def become_nobody():
    """Give up root and its capabilities; let nobody look into this process; adopt daemons of programs."""
    # A user of its own, who shares no limit with other zygotes; some containers know fewer users.
    for user in (OUR_USERS | int.from_bytes(os.urandom(3), "big"), NOBODY):
        with suppress(OSError):  # not root, or not any more
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    libc.capset(struct.pack("II", CAPABILITY_VERSION, 0), bytes(24))  # for a root that cannot change user
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1), (PR_SET_CHILD_SUBREAPER, 1)):
        libc.prctl(option, value, 0, 0, 0)


def zygote():
    """Serve jobs until the trainer closes its socket or dies."""
    if "PYTHONHOME" not in os.environ:  # a descriptor, so that another user can use a Python below /root
        os.dup2(os.open(sys.base_prefix, os.O_PATH), HOME_FD)
        home = {"PYTHONHOME": f"/proc/self/fd/{HOME_FD}", "PYTHONHASHSEED": "0"}
        home |= {"HOME": "/", "USER": "nobody"}  # or the C library would ask a daemon, by a socket
        script = os.memfd_create("worker", 0)  # no frame and no command line tells where the trainer is
        os.write(script, open(sys.argv[0], "rb").read())
        os.execve(sys.executable, [*sys.orig_argv[:-1], f"/proc/self/fd/{script}"], home)
    del sys.path[0]  # the trainer's own scripts
    sys.argv[:] = ["solution.py"]
    for name in PRELOAD:
        __import__(name)
    control = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)  # /dev/null
    bpf, landlock, timeout, memory_mb, numpy_folder = json.loads(control.recv(9999))
    if numpy_folder:  # now, as nothing outside the standard library can be read later
        import_numpy(numpy_folder)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, the kernel takes us and not the trainer
    network = os.readlink("/proc/self/ns/net")
    become_nobody()
    code = ctypes.create_string_buffer(bytes.fromhex(bpf))
    program = struct.pack("HP", len(bpf) // 16, ctypes.addressof(code)) if bpf else b""
    ruleset, version = landlock_ruleset() if landlock else (-1, 0)
    memory_mb += 128 * bool(numpy_folder)  # what numpy takes of it
    limits = {"AS": memory_mb << 20, "CPU": int(timeout) + 3, "CORE": 0, "NOFILE": HOME_FD + 1}
    n_threads = MAX_THREADS if os.getuid() >= OUR_USERS else 1 << 20  # other users have more than our jobs
    limits["NPROC"] = n_threads if bpf else 0  # without seccomp neither processes nor threads
    limits = {getattr(resource, f"RLIMIT_{name}"): limit for name, limit in limits.items()}
    for name, limit in limits.items():
        limits[name] = min(limit, resource.getrlimit(name)[1] % (1 << 64))  # -1 is no limit
    user = min(os.getuid(), OUR_USERS)  # that one for all of our users: a report is the same each time
    report = {"seccomp": bool(bpf), "landlock": version, "uid": user, "network namespace": network}
    control.send(json.dumps(report).encode())
    libc.mallopt(M_ARENA_MAX, 1)  # each thread would reserve 64 MB of the address space
    gc.freeze()  # forks copy less
    with suppress(ConnectionError):
        while files := (message := socket.recv_fds(control, 16, 3))[1]:
            rights = {**limits, resource.RLIMIT_FSIZE: int(message[0])}, ruleset, program
            control.send(json.dumps(run_job(control, files, timeout, rights)).encode())


if __name__ == "__main__":
    sys.exit(zygote())
