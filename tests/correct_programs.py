"""Right programs that must pass, the counterpart of attacks.py: tests/test_correct_programs.py runs them.

As students and the authors of MBPP, APPS, TACO and LeetCode write them, in the forms of Sandbox.check,
check_asserts and check_io with a function's name. WRONG holds counterparts that must not pass.
"""

from textwrap import dedent, indent

PROGRAMS, WRONG = {}, {}  # name: (method of Sandbox, its arguments)


def add(programs, name, method, *args):
    assert name not in programs, name
    programs[name] = method, args


def returns(name, body, *lines, imports="", programs=PROGRAMS):
    """A function f(x) with this body, and asserts on r = f(1) in HumanEval's form."""
    code = f"{imports}\ndef f(x):\n" + indent(dedent(body).strip(), "    ") + "\n"
    test = f"{imports}\ndef check(candidate):\n    r = candidate(1)\n"
    add(programs, name, "check", code, test + "".join(f"    assert {line}\n" for line in lines), "f")


def tested(name, code, test, entry_point="f", prompt="", programs=PROGRAMS):
    """A program and the body of check(candidate)."""
    test = "def check(candidate):\n" + indent(dedent(test).strip(), "    ") + "\n"
    code = dedent(code).strip() + "\n"
    add(programs, name, "check", prompt + code, test, entry_point, prompt)


def asserts(name, code, *lines, setup="", entry_point="", programs=PROGRAMS):
    """A program and asserts on its names, as in MBPP."""
    add(programs, f"MBPP: {name}", "check_asserts", dedent(code), list(lines), setup, entry_point)


def called(name, code, *cases, fn_name="f", programs=PROGRAMS):
    """A program, arguments and results in JSON, as in APPS and TACO."""
    add(programs, f"JSON: {name}", "check_io", dedent(code), list(cases), fn_name)


# -- values with their types ---------------------------------------------------------------------------------

STDLIB = "from array import array\nfrom collections import *\nfrom datetime import *\n"
STDLIB += "from decimal import Decimal\nfrom fractions import Fraction\n"
VALUES = {
    "Decimal": ("Decimal('1.50')", "str(r) == '1.50'", "r + 1 == Decimal('2.5')", "r < 2"),
    "Decimal NaN": ("Decimal('NaN')", "r.is_nan()"),
    "Fraction": ("Fraction(1, 3)", "r == Fraction(2, 6)", "r.denominator == 3", "str(r) == '1/3'"),
    "date": ("date(2024, 2, 29)", "r == date(2024, 2, 29)", "r.isoformat() == '2024-02-29'"),
    "datetime": ("datetime(2024, 2, 29, 1, 2)", "r - timedelta(1) == datetime(2024, 2, 28, 1, 2)"),
    "datetime with a zone": ("datetime(2024, 1, 1, tzinfo=timezone.utc)", "r.tzinfo == timezone.utc"),
    "time": ("time(1, 2, 3)", "r == time(1, 2, 3)", "r.hour == 1"),
    "timedelta": ("timedelta(hours=36)", "r.days == 1", "r == timedelta(1.5)"),
    "deque": ("deque([1, 2], maxlen=2)", "r == deque([1, 2])", "r.maxlen == 2", "list(r) == [1, 2]"),
    "OrderedDict": (
        "OrderedDict([(2, 1), (1, 2)])",
        "r == OrderedDict([(2, 1), (1, 2)])",
        "r != OrderedDict([(1, 2), (2, 1)])",
        "r == {1: 2, 2: 1}",
    ),
    "Counter": ("Counter('aab')", "r == Counter(a=2, b=1)", "r['z'] == 0", "r.most_common(1) == [('a', 2)]"),
    "defaultdict": (
        "defaultdict(list, {1: [2]})",
        "r == {1: [2]}",
        "r[7] == []",
        "isinstance(r, defaultdict)",
    ),
    "defaultdict of a function": ("defaultdict(lambda: 5)", "r == {}", "r[7] == 5"),
    "bytearray": ("bytearray(b'ab')", "r == bytearray(b'ab')", "type(r) is bytearray", "r[0] == 97"),
    "array": ("array('i', [1, 2])", "r == array('i', [1, 2])", "r.typecode == 'i'", "sum(r) == 3"),
    "keys": ("{1: 2, 3: 4}.keys()", "r == {1, 3}", "list(r) == [1, 3]", "r & {3} == {3}"),
    "values": ("{1: 2, 3: 4}.values()", "sorted(r) == [2, 4]", "len(r) == 2", "4 in r"),
    "items": ("{1: 2}.items()", "list(r) == [(1, 2)]", "r == {(1, 2)}", "dict(r) == {1: 2}"),
    "namedtuple": (
        "namedtuple('Point', 'x y')(1, [2])",
        "r == (1, [2])",
        "r.y == [2]",
        "type(r).__name__ == 'Point'",
        "r._replace(x=3) == (3, [2])",
    ),
    "complex": ("complex(1, -2)", "r == 1 - 2j", "abs(r) ** 2 - 5 < 1e-9"),
    "range": (
        "range(1, 9, 2)",
        "r == range(1, 9, 2)",
        "3 in r",
        "r[-1] == 7",
        "hash(r) == hash(range(1, 9, 2))",
    ),
    "slice": ("slice(1, 3)", "[0, 1, 2, 3][r] == [1, 2]"),
    "type": ("int", "r is int", "isinstance(3, r)"),
    "type of the library": ("Decimal", "r is Decimal", "r('0.5') == 0.5"),
    "class of an exception": ("KeyError", "issubclass(r, LookupError)"),
    "bytes": ("'\\u00e9'.encode()", "r == b'\\xc3\\xa9'"),
    "frozenset": ("frozenset([1, (2, 3)])", "r == {1, (2, 3)}", "hash(r) is not None"),
    "long int": ("7 ** 9999", "r % 10 == 3", "r == 7 ** 9999"),
    "nested": ("{'a': [Counter('a'), (Decimal(1), {Fraction(1, 2)})]}", "r['a'][1][1] == {0.5}"),
    "infinity": ("[float('inf'), -0.0]", "r[0] > 10 ** 300", "str(r[1]) == '-0.0'"),
    "surrogate": ("'\\ud800'", "len(r) == 1", "ord(r) == 0xd800"),
    "None and True": ("[None, True, 1]", "r[0] is None", "r[1] is True", "r[2] is not True"),
}
for name, (value, *lines) in VALUES.items():
    returns(name, f"return {value}", *lines, imports=STDLIB)
    echo = f"import datetime, decimal\n{STDLIB}def f(x): return x"
    asserts(f"{name} there and back", echo, f"assert repr(f({value})) == repr({value})", setup=STDLIB) if (
        not any(word in value for word in ("lambda", "namedtuple", "**"))
    ) else None
returns("int enum", "return Color.RED", "r == 1", imports="import enum\nclass Color(enum.IntEnum): RED = 1")
returns("str subclass", "return type('S', (str,), {})('abc')", "r == 'abc'", "r.upper() == 'ABC'")
returns(
    "dict with __missing__", "return D(a=1)", "r == {'a': 1}", imports="class D(dict):\n    __missing__ = len"
)
asserts(
    "type as an argument",
    "def remove(xs, kind): return [x for x in xs if not isinstance(x, kind)]",
    "assert remove([1, 'a', 2.5], int) == ['a', 2.5]",
    "assert remove((1, 'a'), (int, str)) == []",
)

# -- generators and iterators --------------------------------------------------------------------------------

returns("generator", "yield from range(3)", "list(r) == [0, 1, 2]", "list(r) == []")
returns("generator, type", "yield 1", "hasattr(r, '__next__')", "iter(r) is r", "not isinstance(r, list)")
returns("map", "return map(str, [x, 2])", "list(r) == ['1', '2']")
returns("zip", "return zip([1], 'a')", "dict(r) == {1: 'a'}")
returns("filter", "return filter(None, [0, 1])", "next(r) == 1", "next(r, None) is None")
returns("reversed", "return reversed([1, 2])", "[*r] == [2, 1]")
returns("enumerate", "return enumerate('ab')", "[i for i, _ in r] == [0, 1]")
returns("iterator", "return iter([1, 2])", "next(r) == 1", "sum(r) == 2")
returns("any of a generator", "yield 0\nyield 1", "any(r)")
returns("product", "return itertools.product('ab', repeat=2)", "('a', 'b') in r", imports="import itertools")
PRIMES = """
def primes():
    n = 2
    while True:
        if all(n % d for d in range(2, n)):
            yield n
        n += 1
"""
tested(
    "endless generator",
    PRIMES,
    "g = candidate()\nassert [next(g) for _ in range(4)] == [2, 3, 5, 7]",
    "primes",
)
ISLICE = "import itertools\nassert list(itertools.islice(candidate(), 3)) == [2, 3, 5]"
tested("endless generator, sliced", PRIMES, ISLICE, "primes")
tested("zip with an endless one", PRIMES, "assert dict(zip('ab', candidate())) == {'a': 2, 'b': 3}", "primes")
tested("count", "import itertools\ndef f(n): return itertools.count(n)", "assert next(candidate(5)) == 5")
SEND = """
def f():
    total = 0
    while True:
        total += (yield total) or 0
"""
tested("send", SEND, "g = candidate()\nnext(g)\nassert g.send(3) == 3\nassert g.send(4) == 7\ng.close()")
THROW = """
def f():
    try:
        yield 1
    except ValueError as error:
        yield str(error)
"""
tested("throw", THROW, "g = candidate()\nassert next(g) == 1\nassert g.throw(ValueError, 'no') == 'no'")
LATE = "def f():\n    yield 1\n    raise ValueError('late')"
SEES = """
g = candidate()
assert next(g) == 1
try:
    next(g)
    assert False
except ValueError as error:
    assert str(error) == "late"
"""
tested("exception after the first value", LATE, SEES)
RETURNED = (
    "g = candidate()\nnext(g)\ntry:\n    next(g)\nexcept StopIteration as stop:\n    assert stop.value == 7"
)
tested("value of the end", "def f():\n    yield 1\n    return 7", RETURNED)
LAZY = """
log = []
def f(n):
    for i in range(n):
        log.append(i)
        yield i
def seen(): return log
"""
asserts("lazy", LAZY, "assert next(f(9)) == 0 and seen() == [0]")
COUNTDOWN = """
class Countdown:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if self.n == 0: raise StopIteration
        self.n -= 1
        return self.n + 1
"""
tested("class of an iterator", COUNTDOWN, "assert list(candidate(3)) == [3, 2, 1]", "Countdown")
asserts(
    "iterator in a for",
    COUNTDOWN,
    "assert [x for x in Countdown(2)] == [2, 1]",
    "assert sum(Countdown(4)) == 10",
)
returns("generator of lists", "yield [x]\nyield [x, x]", "max(r, key=len) == [1, 1]")

# -- functions and other objects as results ------------------------------------------------------------------

returns("closure", "return lambda y: x + y", "callable(r)", "r(2) == 3", "r")
returns("closure of a closure", "return lambda y: lambda z: x + y + z", "r(2)(3) == 6")
returns("partial", "return functools.partial(max, x)", "r(5) == 5", "callable(r)", imports="import functools")
returns("keywords", "return lambda *a, **k: (a, k)", "r(1, b=2) == ((1,), {'b': 2})")
returns("bound method", "return [1, 2].index", "r(2) == 1")
returns("builtin function", "return len", "r([1, 2]) == 2", "callable(r)")
returns(
    "match",
    "return re.match('(a)b', 'ab')",
    "r",
    "r.group(1) == 'a'",
    "r.span() == (0, 2)",
    imports="import re",
)
returns("no match", "return re.match('b', 'ab')", "r is None", "not r", imports="import re")
returns("not callable", "return object()", "not callable(r)", "r is not None", "r != 3", "hash(r) == hash(r)")
returns(
    "set of objects",
    "return [object() for _ in range(3)]",
    "len(set(r)) == 3",
    "r[0] != r[1]",
    "r[0] == r[0]",
)
COUNTER = (
    "def f():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n        return n\n    return g"
)
tested(
    "state of a closure", COUNTER, "g, h = candidate(), candidate()\ng()\nassert g() == 2\nassert h() == 1"
)
MEMO = """
import functools
@functools.lru_cache(None)
def f(n): return n if n < 2 else f(n - 1) + f(n - 2)
"""
tested(
    "lru_cache", MEMO, "assert candidate(80) == 23416728348467685\nassert candidate.cache_info().misses == 81"
)
tested(
    "docstring",
    "def f():\n    'Doc.'",
    "assert candidate.__name__ == 'f'",
)
WITH = """
import contextlib
@contextlib.contextmanager
def f(x): yield x + 1
"""
tested("with", WITH, "with candidate(1) as y:\n    z = y\nassert z == 2")

# -- functions, iterators and other objects as arguments -----------------------------------------------------

APPLY = "def f(g, xs): return [g(x) for x in xs]"
tested("builtin functions", APPLY, "assert candidate(abs, [-1]) == [1]\nassert candidate(len, ['ab']) == [2]")
tested("types", APPLY, "assert candidate(str, [1]) == ['1']\nassert candidate(int, ['1']) == [1]")
tested("function of a module", APPLY, "import math\nassert candidate(math.sqrt, [4]) == [2]")
tested(
    "iterator as an argument",
    "def f(xs): return sum(xs)",
    "assert candidate(iter([1, 2])) == 3\nassert candidate(x for x in [4]) == 4",
)
tested(
    "range and dict views",
    "def f(xs): return sorted(xs)",
    "assert candidate(range(3)) == [0, 1, 2]\nassert candidate({2: 0, 1: 0}.keys()) == [1, 2]",
)
tested(
    "result as an argument", "def f(x=None): return x or (lambda: 5)", "assert candidate(candidate())() == 5"
)
NODE = """class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right


"""
SOLUTION = """
class Solution:
    def maxDepth(self, root):
        return 1 + max(map(self.maxDepth, (root.left, root.right))) if root else 0
"""
tested("LeetCode, Solution().f", SOLUTION, "assert candidate(None) == 0", "Solution().maxDepth", NODE)
tested("LeetCode, Solution.f", SOLUTION, "assert candidate(None) == 0", "Solution.maxDepth", NODE)

# -- classes -------------------------------------------------------------------------------------------------

STACK = """
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise IndexError("pop from an empty stack")
        return self.items.pop()
    def copy(self): return Stack(self.items)
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __contains__(self, item): return item in self.items
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, item): self.items[i] = item
    def __repr__(self): return f"Stack({self.items})"
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __hash__(self): return hash(tuple(self.items))
    def __enter__(self): return self
    def __exit__(self, *_): self.items.clear()
"""
S = "s = Stack([1, 2]); "
for name, line in {
    "length": "len(Stack()) == 0 and len(Stack([1])) == 1",
    "truth": "not Stack() and Stack([1])",
    "iteration": "list(Stack([1, 2])) == [1, 2] and sorted(Stack([2, 1])) == [1, 2]",
    "in": "1 in Stack([1]) and 2 not in Stack([1])",
    "index": "Stack([1, 2])[-1] == 2 and Stack([1, 2, 3])[1:] == [2, 3]",
    "str": "str(Stack([1])) == repr(Stack([1])) == f'{Stack([1])}' == 'Stack([1])'",
    "equality": "Stack([1]) == Stack([1]) and Stack([1]) != Stack([2])",
    "hash": "len({Stack([1]), Stack([1]), Stack([2])}) == 2",
    "method": "Stack([1, 2]).pop() == 2",
    "method that makes one": "len(Stack([1]).copy()) == 1 and Stack([1]).copy() == Stack([1])",
    "attribute": "Stack([1]).items == [1]",
    "list of them": "Stack([1]) in [Stack([2]), Stack([1])]",
}.items():
    asserts(f"Stack: {name}", STACK, f"assert {line}")
asserts(
    "Stack: items set", STACK, "assert s[0] == 5 and s.items == [5, 2]", setup="s = Stack([1, 2])\ns[0] = 5"
)
asserts("Stack: with", STACK, "assert len(s) == 0", setup="with Stack([1]) as s: s.push(2)")
EMPTY = """
s = candidate()
try:
    s.pop()
    assert False
except IndexError as error:
    assert 'empty' in str(error)
"""
tested(
    "class as the entry point", STACK, f"{EMPTY}\ns.push(3)\nassert len(s) == 1\nassert s.pop() == 3", "Stack"
)
VECTOR = """
import functools
@functools.total_ordering
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, k):
        return Vector(self.x * k, self.y * k) if isinstance(k, int) else self.x * k.x + self.y * k.y
    def __neg__(self): return Vector(-self.x, -self.y)
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __lt__(self, other): return (self.x, self.y) < (other.x, other.y)
    def __str__(self): return f"({self.x}, {self.y})"
    @classmethod
    def zero(cls): return cls(0, 0)
    @property
    def norm(self): return (self.x ** 2 + self.y ** 2) ** 0.5
"""
for name, line in {
    "sum": "str(Vector(1, 2) + Vector(3, 4)) == '(4, 6)'",
    "sum, equal": "Vector(1, 2) + Vector(3, 4) == Vector(4, 6)",
    "product": "Vector(1, 2) * Vector(3, 4) == 11",
    "times a number": "(Vector(1, 2) * 3).x == 3 and Vector(1, 2) * 2 == Vector(2, 4)",
    "minus": "-Vector(1, 2) == Vector(-1, -2)",
    "order": "Vector(1, 2) < Vector(1, 3) and max(Vector(1, 2), Vector(2, 0)).x == 2",
    "sorted": "[v.x for v in sorted([Vector(3, 0), Vector(1, 0)])] == [1, 3]",
    "class method": "Vector.zero() == Vector(0, 0)",
    "property": "Vector(3, 4).norm == 5",
    "attribute": "hasattr(Vector(1, 2), 'x') and not hasattr(Vector(1, 2), 'z')",
}.items():
    asserts(f"Vector: {name}", VECTOR, f"assert {line}")
LINKED = """
class Node:
    def __init__(self, v, next=None): self.v, self.next = v, next
def last(n):
    while n.next: n = n.next
    return n
"""
asserts("nodes of the program", LINKED, "assert last(Node(1, Node(2))).v == 2", "assert Node(1).next is None")

# -- exceptions ----------------------------------------------------------------------------------------------

RAISES = """
try:
    candidate({argument})
    assert False
except {kind} as error:
    assert type(error) is {kind}
    assert {line}
"""


def raises(name, statement, kind, line, argument="1"):
    tested(
        f"raises {name}",
        f"def f(x):\n    {statement}",
        RAISES.format(argument=argument, kind=kind, line=line),
    )


raises("ValueError", "raise ValueError('no', x)", "ValueError", "error.args == ('no', 1)")
raises("KeyError", "return {}[x]", "KeyError", "error.args == (1,) and str(error) == '1'")
raises("IndexError", "return [][x]", "IndexError", "'out of range' in str(error)")
raises("ZeroDivisionError", "return 1 / (x - 1)", "ZeroDivisionError", "'division' in str(error)")
raises("OverflowError", "return float(10) ** 999", "OverflowError", "error.args")
raises("NotImplementedError", "raise NotImplementedError", "NotImplementedError", "error.args == ()")
raises("RecursionError", "return f(x)", "RecursionError", "'recursion' in str(error)")
raises("TypeError", "return x + 'a'", "TypeError", "'unsupported' in str(error)")
raises("UnicodeDecodeError", "return b'\\xff'.decode()", "UnicodeDecodeError", "error.start == 0")
raises("FileNotFoundError", "raise FileNotFoundError(2, 'gone')", "FileNotFoundError", "error.errno == 2")
raises("TimeoutError", "raise TimeoutError('late')", "TimeoutError", "str(error) == 'late'")
raises("AssertionError", "assert x > 1, 'too small'", "AssertionError", "str(error) == 'too small'")
raises("its own class", "raise type('Mine', (ValueError,), {})('m')", "ValueError", "str(error) == 'm'")
raises("AttributeError", "return x.no_such", "AttributeError", "'no_such' in str(error)")
UNITTEST = """
import unittest
class T(unittest.TestCase):
    def test(self):
        with self.assertRaisesRegex(ValueError, "neg.tive"):
            candidate(-1)
        self.assertEqual(candidate(4), 2)
        self.assertRaises(TypeError, candidate)
result = unittest.TestResult()
T("test").run(result)
assert result.wasSuccessful(), result.errors + result.failures
"""
SQRT = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5"
tested("unittest", SQRT, UNITTEST)

# -- in JSON -------------------------------------------------------------------------------------------------

called("numbers", "def f(a, b): return a + b", ([1, 2], 3), ([0.5, 0.5], 1.0))
called("tuples", "def f(a): return tuple(a), (1,)", ([[1, 2]], [[1, 2], [1]]))
called("dict", "def f(a): return {k: len(k) for k in a}", ([["a", "bb"]], {"a": 1, "bb": 2}))
called("Counter", "from collections import Counter\ndef f(a): return Counter(a)", (["aab"], {"a": 2, "b": 1}))
called("deep", "def f(a): return a", ([[[[[[]]]]]], [[[[[]]]]]), ([{"a": {"b": None}}], {"a": {"b": None}}))
called("LeetCode", "class Solution:\n    def f(self, a): return a[::-1]", ([[1, 2]], [2, 1]), (["ab"], "ba"))
called("LeetCode, static", "class Solution:\n    @staticmethod\n    def f(a): return -a", ([1], -1))
BOTH = "def f(a):\n    return None\n\nclass Solution:\n    def f(self, a):\n        return a * 2"
called("Solution before a function", BOTH, ([2], 4))
HELPED = """
from typing import List
class Solution:
    def f(self, a: List[int]) -> int:
        return self.g(a)
    def g(self, a): return sum(a)
"""
called("LeetCode, helper method", HELPED, ([[1, 2]], 3), ([[]], 0))
called(
    "nested function",
    "def f(n):\n    def g(k): return 1 if k < 2 else k * g(k - 1)\n    return g(n)",
    ([20], 2432902008176640000),
)
called(
    "heap",
    "import heapq\ndef f(a):\n    heapq.heapify(a)\n    return [heapq.heappop(a) for _ in range(len(a))]",
    ([[3, 1, 2]], [1, 2, 3]),
)
called("bisect", "from bisect import *\ndef f(a, x): return bisect_left(a, x)", ([[1, 3, 5], 3], 1))
called(
    "global counter",
    "calls = 0\ndef f():\n    global calls\n    calls += 1\n    return calls",
    ([], 1),
    ([], 1),
)
called("text", "def f(s): return ' '.join(reversed(s.split()))", (["a b \u00e9"], "\u00e9 b a"))
called(
    "entry point Solution().f",
    "class Solution:\n    def f(self, a): return a",
    ([1], 1),
    fn_name="Solution().f",
)

# -- numpy in the test ---------------------------------------------------------------------------------------

for name, line in {
    "assert_allclose": "np.testing.assert_allclose(r, [1.0, 2.0])",
    "assert_array_equal": "np.testing.assert_array_equal(r, [1, 2])",
    "assert_array_less": "np.testing.assert_array_less(r, [5, 5])",
    "assert_equal": "np.testing.assert_equal(r, [1, 2])",
    "assert_almost_equal": "np.testing.assert_array_almost_equal(r, np.array([1, 2]))",
    "array_equal": "assert np.array_equal(r, [1, 2])",
    "isclose": "assert np.isclose(r, [1, 2]).all()",
    "allclose": "assert np.allclose(np.array(r), np.array([1, 2]), atol=1e-3)",
    "==": "assert (np.array(r) == np.array([1, 2])).all()",
    "== list": "assert (np.array(r) == [1, 2]).all()",
    "!=": "assert not (np.array(r) != np.array([1, 2])).any()",
    "difference": "assert np.abs(np.array(r) - np.array([1, 2])).max() < 1e-6",
    "equal": "assert np.all(np.equal(r, [1, 2]))",
    "literal": "assert (np.array(r) > 0).all() and (np.array(r) != 0).all() and (np.array(r) - 1)[0] == 0",
    "mean": "x = np.array(r)\n    assert abs((x - x.mean()).sum()) < 1e-9",
}.items():
    for programs, value in ((PROGRAMS, "[1, 2]"), (WRONG, "[[1, 2]] * 2"), (WRONG, "[]"), (WRONG, "1")):
        if programs is WRONG and name in ("literal", "mean"):
            continue  # to compare an array with one number is often meant so
        test = f"import numpy as np\ndef check(candidate):\n    r = candidate(1)\n    {line}\n"
        add(programs, f"numpy: {name}, {value}", "check", f"def f(x): return {value}", test, "f")

# -- functions of the test, and classes that the prompt defines ----------------------------------------------

tested("function of the test", APPLY, "assert candidate(lambda x: x * 2, [1, 2]) == [2, 4]")
tested(
    "method of the test's object",
    APPLY,
    "seen = []\ncandidate(seen.append, [1, [2]])\nassert seen == [1, [2]]",
)
tested("a function that calls back", APPLY, "assert candidate(lambda x: candidate(abs, [x]), [-1]) == [[1]]")
tested(
    "its exception is caught by the program",
    """
def f(g, x):
    try: return g(x)
    except ZeroDivisionError as error: return str(error)
""",
    "assert candidate(lambda x: 1 / x, 0) == 'division by zero'\nassert candidate(lambda x: x, 1) == 1",
)
tested(
    "its exception reaches the test",
    APPLY,
    """
def g(x): raise KeyError('no')
try: candidate(g, [1])
except KeyError as error: assert error.args == ('no',)
else: assert False
""",
)
tested(
    "a decorator",
    """
def f(g):
    seen = {}
    def cached(x):
        if x not in seen: seen[x] = g(x)
        return seen[x]
    return cached
""",
    "seen = []\ng = candidate(lambda x: seen.append(x) or x + 1)\nassert g(1) == g(1) == 2 and seen == [1]",
)
tested(
    "function with keywords",
    "def f(g): return g(1, b=2)",
    "assert candidate(lambda a, b=0, *, c=3: (a, b, c)) == (1, 2, 3)",
)
tested(
    "key of sorted",
    "def f(xs, key): return sorted(xs, key=key)",
    "assert candidate([3, -4], key=lambda x: -x) == [3, -4]",
)
NODE = """class Node:
    def __init__(self, value, left=None, right=None):
        self.value = value
        self.left = left
        self.right = right


"""
TREE = "def f(root):\n    return root and Node(root.value, f(root.right), f(root.left))\n"
TREE_TEST = """
root = candidate(Node(1, Node(2), Node(3, Node(4))))
assert isinstance(root, Node) and root.value == 1
assert [root.left.value, root.right.value, root.left.right.value, root.left.left] == [3, 2, 4, None]
assert candidate(None) is None
"""
tested("tree of the prompt", TREE, TREE_TEST, prompt=NODE)
tested(
    "nodes in a list",
    "def f(nodes): return sum(node.value for node in nodes)",
    "assert candidate([Node(1), Node(2)]) == 3",
    prompt=NODE,
)
POINT = """from dataclasses import dataclass
from enum import Enum


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    colour: Colour


"""
tested(
    "dataclass and enumeration of the prompt",
    "def f(p): return Point(p.x + 1, Colour.BLUE)",
    """
assert candidate(Point(1, Colour.RED)) == Point(2, Colour.BLUE)
assert candidate(Point(1, Colour.RED)).colour is Colour.BLUE
assert len({candidate(Point(1, Colour.RED)), Point(2, Colour.BLUE)}) == 1
""",
    prompt=POINT,
)
FUNDS = """class Missing(ValueError):
    def __init__(self, amount, name):
        super().__init__(f"{amount} of {name}")
        self.amount = amount


"""
FUNDS_TEST = """
try: candidate(3)
except Missing as error: assert (str(error), error.amount) == ('3 of x', 3)
else: assert False
"""
tested("exception of the prompt", "def f(x): raise Missing(x, 'x')", FUNDS_TEST, prompt=FUNDS)
asserts(
    "isinstance of a class of the program",
    STACK,
    "assert isinstance(Stack([1]), Stack)",
    "assert not isinstance(3, Stack)",
)

tested(
    "arguments named as our own",
    "def f(name, target=0, operation=1, self=2, function=3): return name, target, operation, self, function",
    "assert candidate(name='a', target=5, operation=6, self=7, function=8) == ('a', 5, 6, 7, 8)",
)
tested(
    "method of an object of the library",
    "def f(g, xs): return [g(x) for x in xs]",
    """
import random, statistics
assert candidate(statistics.NormalDist(0, 1).cdf, [0]) == [0.5]
assert candidate({'a': 1}.get, ['a', 'b']) == [1, None]
assert candidate(str.upper, ['a']) == ['A']
assert candidate(random.Random(3).randint, []) == []
""",
)
tested("str.upper stays what it is", "def f(g): return g is str.upper", "assert candidate(str.upper)")
OPEN = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        \"\"\"Put an item on top.\"\"\"
"""
PUSH = "        self.items.append(item)\n\n    def top(self):\n        return self.items[-1]\n"
add(
    PROGRAMS,
    "the class that the prompt begins",
    "check",
    OPEN + PUSH,
    "def check(candidate):\n    s = candidate()\n    s.push(4)\n    assert s.top() == 4\n",
    "Stack",
    OPEN,
)
SLOTS = """from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


@dataclass(slots=True)
class Slots:
    x: int


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Pair(NamedTuple):
    a: int
    b: int

    def total(self):
        return self.a + self.b


class Made:
    def __new__(cls, x):
        self = object.__new__(cls)
        self.x = x
        return self


"""
tested(
    "slots, IntEnum, NamedTuple and __new__ of the prompt",
    """
def f(value):
    if isinstance(value, Slots): return Slots(value.x + 1)
    if isinstance(value, Level): return Level.HIGH
    if isinstance(value, Pair): return Pair(value.total(), 0)
    return Made(value.x + 1)
""",
    """
assert candidate(Slots(1)) == Slots(2)
assert candidate(Level.LOW) is Level.HIGH
assert candidate(Pair(1, 2)).total() == 3 and isinstance(candidate(Pair(1, 2)), Pair)
assert candidate(Made(1)).x == 2
""",
    prompt=SLOTS,
)
tested(
    "ragged lists",
    "def f(): return [[1, 2], [3]]",
    "import numpy as np\nnp.testing.assert_equal(candidate(), [[1, 2], [3]])",
)

# -- wrong counterparts --------------------------------------------------------------------------------------

OTHERS = {
    "Decimal": "1.5",
    "Fraction": "Decimal('0.3')",
    "date": "datetime(2024, 2, 29)",
    "datetime": "datetime(2024, 2, 28)",
    "timedelta": "timedelta(1)",
    "deque": "[1, 2]",
    "OrderedDict": "{1: 2, 2: 1}",
    "Counter": "{'a': 2, 'b': 1}",
    "defaultdict": "{1: [2]}",
    "bytearray": "b'ab'",
    "array": "[1, 2]",
    "keys": "[1, 3]",
    "namedtuple": "(1, [2])",
    "complex": "1",
    "range": "[1, 3, 5, 7]",
    "type": "float",
    "class of an exception": "ValueError",
}
for name, value in OTHERS.items():
    returns(f"no {name}", f"return {value}", *VALUES[name][1:], imports=STDLIB, programs=WRONG)
ALL_TRUE = """
class Liar:
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = lambda self, *_: True
    __hash__ = __len__ = lambda self: 3
    __str__ = __repr__ = lambda self: "3"
    __add__ = __sub__ = __mul__ = __truediv__ = __mod__ = __neg__ = __abs__ = lambda self, *_: 0
    __iter__ = lambda self: iter([3])
    __getitem__ = lambda self, *_: 3
    x = y = 0
"""
for line in (
    "r == 3; 3 == r; not r != 3; [r] == [3]; {'a': r} == {'a': 3}; r in (3, 4); r in {3}; (r, r) == (3, 3)",
    "r - 3 == 0; not r - 3; abs(r - 3) < 1; r < 4; r > 2; r % 2 == 0; 3 in r; r[0] == 3; list(r) == [3]",
    "all(k in r for k in (1, 2)); len(r) == 3; str(r) == '3'; sum(r) == 3; isinstance(r, int); not r",
    "math.isclose(r, 3); r is True; type(r) is int; isinstance(3, r); callable(r); iter(r); next(r) == 3",
    "r == Decimal(3); r == Fraction(3); r == date(1, 1, 1); r == Counter(); r == deque(); r == int; r() == 3",
    "{3: 1}[r]; r.x - 0 == 3; r.x == 3; r.z; 3 == r.x; Counter([r]) == {3: 1}; sorted([r, 2]) == [2, 3]",
):
    for part in line.split("; "):
        imports = f"import math\n{STDLIB}"
        returns(f"liar: {part}", "return Liar()", part, imports=imports + ALL_TRUE, programs=WRONG)
ITEMS = """
class Stack:
    def __init__(self, *_): pass
    items = property(lambda self: Liar())
    pop = push = lambda *_: Liar()
"""
for line in (
    "s.items == [1]",
    "1 in s.items",
    "s.pop() == 1",
    "s.pop() - 1 == 0",
    "s.pop() < 2",
    "s == 3",
    "s in [3]",
):
    asserts(
        f"liar of a class: {line}", ALL_TRUE + ITEMS, f"assert {line}", setup="s = Stack([1])", programs=WRONG
    )
asserts(
    "tuple of a liar", ALL_TRUE + "def f(): return Liar(), [Liar()]", "assert f() == (3, [3])", programs=WRONG
)
asserts("two different objects", STACK, "assert Stack([1]) == Stack([2])", programs=WRONG)
asserts("truth of an empty one", STACK, "assert Stack()", programs=WRONG)
asserts("set of equal ones", STACK, "assert len({Stack([1]), Stack([1])}) == 2", programs=WRONG)
returns("object() is true, but no True", "return object()", "r is True or r == True", programs=WRONG)
returns("unhashable", "return U()", "len({r}) == 1", imports="class U:\n    __hash__ = None", programs=WRONG)
returns("no iterator", "return object()", "list(r) is not None", programs=WRONG)
returns("no iterator, asked for its type", "return object()", "hasattr(r, '__next__')", programs=WRONG)
returns("ends too early", "yield 0\nyield 1", "list(r) == [0, 1, 2]", programs=WRONG)
returns("StopIteration in a generator", "yield 0\nraise StopIteration", "list(r) == [0]", programs=WRONG)
tested("another generator", PRIMES.replace("yield n", "yield n + 1"), ISLICE, "primes", programs=WRONG)
EVAL = 'def f(g): return g(\'__import__("sys").modules["__main__"].read_all\')'
tested(
    "eval of the test runs in the program",
    EVAL,
    "assert 'judge' in candidate(eval).__module__",
    programs=WRONG,
)
NOT_RAISED = RAISES.format(argument="1", kind="Exception", line="True")
for statement in (
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "import os; os._exit(0)",
):
    tested(f"no exception: {statement}", f"def f(x): {statement}", NOT_RAISED, programs=WRONG)
    swallowed = "try:\n    candidate(1)\nexcept:\n    pass\nassert True"
    tested(f"swallowed: {statement}", f"def f(x): {statement}", swallowed, programs=WRONG)
SUPPRESS = "import contextlib\ndef f(x): return contextlib.suppress(BaseException)"
tested(
    "swallows what fails below its with",
    SUPPRESS,
    "with candidate(1) as y:\n    assert y == 3",
    programs=WRONG,
)
tested(
    "another exception",
    "def f(x): raise KeyError('no')",
    RAISES.format(argument="1", kind="ValueError", line="True"),
    programs=WRONG,
)
tested(
    "another message",
    "def f(x): raise ValueError('yes')",
    RAISES.format(argument="1", kind="ValueError", line="str(error) == 'no'"),
    programs=WRONG,
)
called(
    "Solution is wrong, the function is not",
    BOTH.replace("a * 2", "a").replace("None", "a * 2"),
    ([2], 4),
    programs=WRONG,
)

tested(
    "calls the function of the test with something else",
    "def f(g, xs): return [g(x + 1) for x in xs]",
    "assert candidate(lambda x: x * 2, [1, 2]) == [2, 4]",
    programs=WRONG,
)
tested(
    "swallows what fails in a function of the test",
    """
def f(g):
    try: return g(1)
    except BaseException: return None
""",
    "def g(x):\n    assert x == 2\ncandidate(g)\nassert True",
    programs=WRONG,
)
tested(
    "credit by calls",
    "def f(g):\n    for _ in range(99): g(2)\n    return 1",
    "def g(x):\n    assert x == 2\nassert candidate(g) == 2",
    programs=WRONG,
)
tested(
    "another tree",
    TREE.replace("f(root.right), f(root.left)", "f(root.left), f(root.right)"),
    TREE_TEST,
    prompt=NODE,
    programs=WRONG,
)
LIAR = POINT.replace("    colour: Colour\n", "    colour: Colour\n    def __eq__(self, other): return True\n")
LIAR += "def f(p): return Point(p.x, Colour.BLUE)"
asserts_equal = "assert candidate(Point(1, Colour.RED)) == Point(2, Colour.BLUE)"
add(
    WRONG,
    "a class of the prompt, redefined",
    "check",
    LIAR,
    f"def check(candidate):\n    {asserts_equal}\n",
    "f",
    POINT,
)
tested(
    "an enumeration changed in the judge",
    """
def f(p):
    Colour.__reduce_ex__ = lambda self, _: (Colour, (1,), {"_value_": 2, "_name_": "BLUE"})
    return Point(2, Colour.RED)
""",
    "p = candidate(Point(1, Colour.RED))\nassert p.colour.value == 2 and Colour.RED.value == 2",
    prompt=POINT,
    programs=WRONG,
)
tested(
    "another exception than the prompt's",
    "def f(x): raise ValueError('3 of x')",
    FUNDS_TEST,
    prompt=FUNDS,
    programs=WRONG,
)
tested(
    "the prompt's exception, of another amount",
    "def f(x): raise Missing(x + 1, 'x')",
    FUNDS_TEST,
    prompt=FUNDS,
    programs=WRONG,
)
asserts("no instance", STACK + "\ndef f(): return object()", "assert isinstance(f(), Stack)", programs=WRONG)
BOX = """class Box:
    def __init__(self, value):
        self.value = value

    def is_right(self, value):
        return self.value == value

    def __eq__(self, other):
        return self.is_right(other.value)


"""
for method in ("lambda *_: True", "bool"):
    code = f"def f(x):\n    box = Box(0)\n    box.is_right = {method}\n    return box"
    for line in ("candidate(1).is_right(1)", "candidate(1) == Box(1)"):
        tested(
            f"a method of the prompt's class replaced by {method}: {line}",
            code,
            f"assert {line}",
            prompt=BOX,
            programs=WRONG,
        )
CONFIG = """class Config:
    only = None
    size = 5

    def __new__(cls):
        if cls.only is None:
            cls.only = object.__new__(cls)
        return cls.only


"""
tested(
    "the judge's own singleton changed",
    "def f(x):\n    c = Config()\n    c.size = 0\n    return c if x == 0 else 0",
    "Config()\ncandidate(0)\nassert candidate(1) == Config().size",
    prompt=CONFIG,
    programs=WRONG,
)
DONE = "class Done(StopIteration):\n    pass\n\n\n"
tested(
    "a StopIteration of the prompt",
    "def f(x): raise Done",
    "assert all(map(candidate, [1, 2, 3]))",
    prompt=DONE,
    programs=WRONG,
)
AREA = """
class T:
    def __lt__(self, other): return T()
    __gt__ = __le__ = __ge__ = __sub__ = __lt__
class Circle:
    def __init__(self, r): pass
    def area(self): return T()
"""
for line in (
    "12.5 < Circle(2).area() < 12.6",
    "-1e-6 < Circle(2).area() - 12.566 < 1e-6",
    "12 <= Circle(2).area()",
):
    asserts(f"order by objects that are true: {line}", AREA, f"assert {line}", programs=WRONG)
for line in (
    "np.allclose(*[candidate(), [5.0]])",
    "np.allclose(a=candidate(), b=5.0)",
    "all(map(np.allclose, [candidate()], [5.0]))",
    "np.array(candidate()) == np.mean([5.0])",
    "(np.array(candidate()) == 5).all()",
    "np.abs(np.array(candidate()) / e - 1).max(initial=0) < 1e-6",
    "(np.abs(np.array(candidate()) - np.mean([5.0])) < 1e-6).all()",
    "(np.array(candidate()) == -e).all()",
):
    tested(
        f"numpy stretches: {line}",
        "def f(): return []",
        f"import numpy as np\ne = np.array([5.0])\nassert {line} is not False",
        programs=WRONG,
    )
tested(
    "numpy stretches: desired",
    "def f(): return []",
    "import numpy as np\nnp.testing.assert_allclose(candidate(), desired=5.0)",
    programs=WRONG,
)

CLOSE = "import numpy as np\nclose = np.allclose\nassert close(candidate(), [1, 1])"
tested("numpy by another name", "def f(): return []", CLOSE, programs=WRONG)

# Not within reach, and why. A reference that needs one of these fails in the preflight, with this message.
NUMBER = "class N:\n    def __len__(self): return 1\ndef f(*_): return N()"
REFUSED = {  # code, body of the test, what the message says
    "class of the test": (APPLY, "class C: pass\nassert candidate(C, [])", "cannot pass type"),
    "object of a class of the test": (APPLY, "class C: pass\nassert candidate(abs, [C()])", "cannot pass C "),
    "array": (
        APPLY,
        "import numpy as np\nassert candidate(abs, np.ones(2)) == [1, 1]",
        "cannot pass ndarray",
    ),
    "length of a function's object": (NUMBER, "assert len(candidate()) == 1", "has no len()"),
}
