"""correct_programs.py in one sandbox; credit of programs that end early; what preflight learns."""

import pytest
from correct_programs import PROGRAMS, REFUSED, WRONG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Sandbox, preflight, score


@pytest.fixture(scope="module")
def sandbox():
    numpy = [{"test": "import numpy"}]
    with Sandbox(workers=2, timeout=2, memory_mb=160, tasks=numpy) as sandbox:
        yield sandbox


def run(sandbox, programs):
    """Return {name: Result}."""
    results = sandbox.map(
        list(programs.values()), method=lambda method, args: getattr(sandbox, method)(*args)
    )
    return dict(zip(programs, results, strict=True))


def test_right_programs_pass(sandbox):
    results = run(sandbox, PROGRAMS)
    assert {name: result for name, result in results.items() if result.outcome != "passed"} == {}
    assert len(results) >= 150 and all(result.fraction == 1 for result in results.values())


def test_wrong_programs_fail(sandbox):
    results = run(sandbox, WRONG)
    lies = {name for name in results if name.startswith("a method of the prompt's class replaced")}
    for name, result in results.items():
        assert result.outcome in (("violation",) if name in lies else ("failed", "exception")), (name, result)
    assert all(result.fraction < 1 for result in results.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_cross_says_why(sandbox, name):
    code, test, reason = REFUSED[name]
    body = "".join(f"    {line}\n" for line in test.split("\n"))
    result = sandbox.check(code, f"def check(candidate):\n{body}", "f")
    assert result.outcome == "exception" and reason in result.message, result


# -- credit --------------------------------------------------------------------------------------------------

FORMS = {  # how tests compare; each makes len(expected) comparisons
    "flat": "".join(f"    assert candidate({i}) == expected[{i}]\n" for i in range(8)),
    "loop": "    for i, value in enumerate(expected):\n        assert candidate(i) == value\n",
    "while": "    i = 0\n    while i < 8:\n        assert candidate(i) == expected[i]\n        i += 1\n",
    "helper": "    def same(i): assert candidate(i) == expected[i]\n    for i in range(8): same(i)\n",
    "map": "    for value, right in zip(map(candidate, range(8)), expected): assert value == right\n",
    "call first": "    for i in range(8):\n        x = candidate(i)\n        assert x == expected[i]\n",
    "swallows": "    for i in range(8):\n        try: value = candidate(i)\n        except: value = None\n"
    "        assert value == expected[i]\n",
}
ENDS = {
    "raise ValueError": "exception",
    "raise SystemExit": "exception",
    "raise KeyboardInterrupt": "exception",
    "os._exit(0)": "exception",
    "os.closerange(3, 64)": "exception",
    "os.fork()": "violation",
    "return object()": "failed",
    "while True: pass": "timeout",
}


def program(answers, end, place):
    return f"import os\ndef f(i):\n    if i == {place}:\n        {end}\n    return {answers}[i]\n"


def share(sandbox, answers, form, end, place, n_tests):
    test = f"def check(candidate):\n    expected = list(range(8))\n{FORMS[form]}"
    return sandbox.check(program(answers, end, place), test, "f", "", n_tests)


answers = st.lists(st.booleans(), min_size=8, max_size=8).map(
    lambda right: [i if is_right else -1 for i, is_right in enumerate(right)]
)


@given(
    answers,
    st.sampled_from([*FORMS]),
    st.sampled_from([*ENDS][:-1]),
    st.integers(0, 9),
    st.sampled_from([8, None]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_early_end_raises_the_credit(sandbox, answers, form, end, place, n_tests):
    """The fraction is never above the share of comparisons that the program, without its end, would pass.

    And where it ends at comparison k, never above the share of those before.
    """
    result = share(sandbox, answers, form, end, place, n_tests)
    right = [answer == i for i, answer in enumerate(answers)]
    honest = sum(right) / 8
    assert result.fraction <= honest, result
    if place < 8:
        assert result.fraction <= sum(right[:place] + right[place + 1 :]) / 8 and result.outcome != "passed"
        if end not in ("raise ValueError", "return object()"):
            assert result.fraction <= sum(right[:place]) / 8, result
    elif n_tests:
        assert result.fraction == honest, result


@pytest.mark.parametrize("form", FORMS)
def test_credit_for_a_hang(sandbox, form):
    results = [share(sandbox, list(range(8)), form, "while True: pass", 3, n_tests) for n_tests in (8, None)]
    assert {result.outcome for result in results} == {"timeout"}
    known, unknown = (result.fraction for result in results)
    assert known == 3 / 8 or (form == "swallows" and 0 < known < 3 / 8)  # which counts each try to go on
    assert unknown == (3 / 8 if form == "flat" else 0)


ENDLESS = "def check(candidate):\n    for x in candidate():\n        assert x == 3\n"


def test_a_loop_over_its_own_values_gives_no_credit(sandbox):
    """However many it gives before it ends: the reference gave two."""
    code = "def f():\n    for _ in range(500): yield 3\n    raise SystemExit"
    known, unknown = (sandbox.check(code, ENDLESS, "f", "", n_tests) for n_tests in (2, None))
    assert (known.n_passed, known.n_tests) == (2, 501) and unknown.fraction == 0


def test_a_longer_loop_gives_no_more_credit_than_the_reference_had(sandbox):
    """It runs to the end of the test, so it is whole; but it has chosen how often it is asked."""
    test = (
        "def check(f):\n    r = f()\n    for x in r:\n        assert x > 0\n    assert r == [1, 2, 3, 4, 5]\n"
    )
    result = sandbox.check("def f(): return [1] * 100000", test, "f", "", 6)
    assert (result.outcome, result.n_passed, result.n_tests) == ("failed", 5, 6)
    many = sandbox.check("def f(): return [1, 0] * 5", test, "f", "", 6)
    assert (many.outcome, many.n_passed) == ("failed", 0)


def test_asserts_in_a_function_of_the_test_give_no_credit(sandbox):
    code = "def f(g):\n    for _ in range(99): g(2)\n    return 1"
    result = sandbox.check(
        code, "def check(f):\n    def g(x):\n        assert x == 2\n    assert f(g) == 2", "f"
    )
    assert (result.outcome, result.n_passed) == ("failed", 0)


def test_preflight_notes_how_many_comparisons_there_are(sandbox):
    test = "def check(candidate):\n    for i in range(1000):\n        assert candidate(i) == i\n"
    task = {
        "task_id": "T/0",
        "prompt": "def f(i):",
        "canonical_solution": "    return i\n",
        "test": test,
        "entry_point": "f",
    }
    early = "\n    if i == 9: raise SystemExit\n    return i\n"
    assert score(sandbox, [task], [early])[0].fraction == 0
    preflight(sandbox, [task])
    assert task["n_tests"] == 1000
    (result,) = score(sandbox, [task], [early])
    assert (result.n_passed, result.n_tests, result.fraction) == (9, 1000, 0.009)
