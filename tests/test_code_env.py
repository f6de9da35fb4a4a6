"""The environment in which programs are written rule by rule, its problem files, rewards and evaluator."""

import ast
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter

import gymnasium
import numpy as np
import pytest
from conftest import ROOT
from gymnasium.utils.env_checker import check_env

import code_env
from code_env import (
    CodeEnv,
    likeness,
    read_grammar,
    reward_of,
    run_program,
    same,
    score_program,
    words_of,
)
from data import make_dqn_problems
from data.dqn_problems import make_problem, read_problems
from sandbox import Sandbox

TRAIN, TEST = ROOT / "data/dqn_train.json", ROOT / "data/dqn_test.json"
NUM_PROGRAMS = 2000


@pytest.fixture(scope="module")
def env():
    return CodeEnv()


def write(env, rng, **options):
    """Write a random program; returns its actions and rewards."""
    _, info = env.reset(options=options)
    actions, rewards, ended = [], [], False
    while not ended:
        actions.append(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        _, reward, ended, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        assert not truncated
    return actions, rewards


def rule(env, text):
    """The action that is this rule."""
    left, _, right = text.partition(": ")
    for i, each in enumerate(env.rules):
        holes = [f"{{{type}|{name}}}" if name else f"{{{type}}}" for type, name in each.holes]
        template = "".join(part + hole for part, hole in zip(each.parts, [*holes, ""]))
        if each.type == left.partition("|")[0] and template in (right, f"({right})"):
            return i
    raise AssertionError(text)


# ---- environment ----
def test_gymnasiums_checker_has_no_complaint():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for kwargs in {}, {"reward": "combined", "shaping": True, "vary_length": True}:
            env = gymnasium.make("code_env:WriteFunction-v0", render_mode="ansi", **kwargs)
            check_env(env.unwrapped)
    assert [str(each.message) for each in said if each.category is not ResourceWarning] == []  # of others


def test_example_of_the_docstring(env):
    env = CodeEnv(env.problems, render_mode="ansi")
    env.reset(options={"index": 2})
    seen = [env.render()]
    for action in rule(env, "int: max({int}, {int})"), len(env.rules):
        env.step(action)
        seen.append(env.render())
    head = "def max_of_three(a, b, c): return "
    assert seen == [head + "<int>", head + "max(<int>, <int>)", head + "max(a, <int>)"]
    assert "\n".join(f"    {line}" for line in seen) in code_env.__doc__
    for action in rule(env, "int: max({int}, {int})"), len(env.rules) + 1, len(env.rules) + 2:
        _, reward, ended, _, info = env.step(action)
    assert ended and info["outcome"] == "passed" and reward == pytest.approx(1 - 0.03)
    assert env.render() == head + "max(a, max(b, c))    # passes 13 of 13 tests"


def test_operators_keep_their_brackets(env):
    """(a + b) * (a - b), and what its tests, size and depth earn."""
    env = CodeEnv(env.problems, reward="quality", render_mode="ansi")
    env.reset(options={"index": 0})
    rules = "int: {int} * {int}", "int: {int} + {int}", "a", "b", "int: {int} - {int}", "a", "b"
    for text in rules:
        _, reward, ended, _, _ = env.step(
            len(env.rules) + "ab".index(text) if len(text) == 1 else rule(env, text)
        )
    assert ended and run_program(env.problem, env.program, [[[5, 3], 16]]) == [16]
    assert reward == pytest.approx(1 - (7 + 3) / 14 - 0.03)  # 7 of 7 rules, depth 3
    right = sum((a + b) * (a - b) == a + b for (a, b), _ in env.problem.tests)
    assert env.render().endswith(f"return (a + b) * (a - b)    # passes {right} of 13 tests") and right < 13


def test_words_that_the_vocabulary_lacks_are_not_seen(env):
    """An evaluation has the vocabulary of the training."""
    few = CodeEnv(env.problems, vocabulary=["numbers", "sum", "zebra"])
    seen, _ = few.reset(options={"index": 0})
    assert seen[:3].tolist() == [1, 1, 0] and few.at["types"] == 3


def test_every_episode_ends_in_time_in_a_program_of_its_rules(env):
    rng = np.random.default_rng(0)
    for number in range(300):
        index, limit = number % len(env.problems), int(rng.integers(2, 9))
        actions, rewards = write(env, rng, index=index, max_rules=max(limit, env.prepared[index][-1]))
        assert len(actions) <= limit and env.rules_left >= 0 and "<" not in env.program.replace("<=", "")
        tree = ast.parse(env.program, mode="eval")
        check_names_but(tree, env.problem.parameters)
        assert not env.mask.any() and len(rewards) == len(actions)


def check_names_but(tree, parameters):
    """No name of a program is anything but a function of the grammar, a parameter or a variable."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names <= {*code_env.FUNCTIONS, *parameters, "x", "w", "digit"}


def programs(env, problem, holes, left, actions=()):
    """All sequences of at most `left` actions that fill holes: (type, scope, the action around it) each."""
    if not holes:
        yield actions
    elif len(holes) <= left:
        (type, scope, parent), *others = holes
        given = [code_env.Rule(type, "", ("",), ()) for type in problem.types]
        for action, rule in enumerate([*env.rules, *given]):
            nested = scope and any(opened for _, opened in rule.holes)
            again = action == parent and len(rule.holes) == 1
            if rule.type == type and rule.scope in ("", scope) and not nested and not again:
                inner = [(kind, opened or scope, action) for kind, opened in rule.holes]
                yield from programs(env, problem, inner + others, left - 1, (*actions, action))


def test_mask_is_what_can_still_be_completed(env):
    """Against brute force: all programs of at most three rules, by filling the leftmost hole in every way."""
    for index in 0, 3, 6, 7:
        problem, allowed = env.problems[index], {}
        for actions in programs(env, problem, [(problem.result, "", -1)], 3):
            for n, action in enumerate(actions):
                allowed.setdefault(actions[:n], set()).add(action)
        assert len(allowed) > 20
        for before, after in allowed.items():
            _, info = env.reset(options={"index": index, "max_rules": 3})
            for action in before:
                _, _, _, _, info = env.step(action)
            assert set(np.flatnonzero(info["action_mask"])) == after, before


def test_a_rule_is_not_put_directly_into_itself(env):
    _, info = env.reset(options={"index": [p.name for p in env.problems].index("sort_list")})
    again = rule(env, "ints: sorted({ints})")
    assert info["action_mask"][again]
    _, _, _, _, info = env.step(again)
    assert not info["action_mask"][again] and info["action_mask"].any()


def test_comprehensions_do_not_nest(env):
    sizes = code_env.least_sizes(env.rules, ("ints",))  # (scopes, actions)
    opening = [i for i, each in enumerate(env.rules) if any(opened for _, opened in each.holes)]
    assert len(opening) > 5 and (sizes[1:, opening] == code_env.NEVER).all()
    assert (sizes[0, opening] < code_env.NEVER).any()


def test_illegal_action_ends_the_episode(env):
    _, info = env.reset(options={"index": 0})
    observation, reward, ended, truncated, info = env.step(int(np.argmin(info["action_mask"])))
    assert (reward, ended, truncated, info["outcome"]) == (-1.0, True, False, "illegal")
    assert not info["action_mask"].any() and env.observation_space.contains(observation)


def test_observation_says_where_we_are(env):
    index = 1  # is_even
    at, none = env.at, env.action_space.n
    first, info = env.reset(options={"index": index, "max_rules": 5})
    assert first.dtype == np.int8 and (first[at["mask"] :] == info["action_mask"]).all()
    words = {env.vocabulary[i] for i in np.flatnonzero(first[: at["types"]])}
    assert words == set("return true if a number is even false otherwise".split())
    assert first[at["left"] + none] and first[at["parent"] + none] and first[at["rules_left"] + 5]
    action = rule(env, "bool: {int} == {int}")
    env.step(action)
    second, _, _, _, _ = env.step(len(env.rules))  # its left side is n
    assert (
        second[at["parent"] + action] and second[at["left"] + len(env.rules)] and second[at["position"] + 1]
    )
    assert set(np.flatnonzero(second[at["used"] : at["rules_left"]])) == {action, len(env.rules)}
    assert second[at["rules_left"] + 3] and second[at["rules_left"] : at["mask"]].sum() == 1


def test_observation_does_not_depend_on_the_hash_seed():
    program = "from code_env import CodeEnv; e = CodeEnv(); print(*e.reset(seed=3)[0], e.vocabulary)"
    seen = set()
    for seed in "1", "2":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        seen.add(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=environment))
    assert len(seen) == 1


def test_limits_vary_from_the_shortest_program_on(env):
    env = CodeEnv(env.problems[:8], vary_length=True)
    env.reset(seed=5)
    limits = [(env.reset(options={"index": 1}), env.rules_left)[1] for _ in range(200)]
    assert set(limits) == set(range(3, 8))  # the shortest, n % 2 == 0, has two
    assert {env.reset()[0].sum() and env.index for _ in range(200)} == set(range(8))


# ---- rewards ----
def test_rewards_by_hand():
    tests = [[[1], 1], [[2], 2], [[3], 3], [[4], 3]]
    problem = make_problem("f", "words", None, tests)
    assert problem.constant == 0.5
    assert reward_of(problem, [1.0] * 4, 0.5, "tests") == 1
    assert reward_of(problem, [1.0, 1.0, 1.0, 0.0], 0.5, "tests") == pytest.approx(
        0.25
    )  # 0.5 (.75 - .5) / .5
    assert reward_of(problem, [0.0, 0.0, 1.0, 1.0], 0.5, "tests") == 0  # as a constant does
    assert reward_of(problem, [0.0] * 4, 0.5, "tests") == 0
    assert reward_of(problem, [0.0] * 4, 0.25, "quality") == 0.75
    assert reward_of(problem, [1.0] * 4, 0.25, "combined") == pytest.approx(1.15)
    assert reward_of(problem, [1.0, 1.0, 1.0, 0.0], 0.25, "combined") == pytest.approx(0.25)  # no quality


def test_likeness():
    assert likeness([1, 2], [2, 1], graded=True) == 0.5 and likeness([1, 2], [2, 1]) == 0
    assert likeness([1, 1, 2, 3], [1, 4], graded=True) == pytest.approx(1 / 6)
    assert likeness("abc", "abc") == 1 and likeness("ab", ["a", "b"], graded=True) == 0
    problem = make_problem("f", "words", None, [[[[2, 1]], [1, 2]], [[[1]], [1]]])
    assert [score_program(problem, "nums", graded) for graded in (True, False)] == [[0.5, 1.0], [0.0, 1.0]]
    assert likeness(True, 1, graded=True) == 0 and not same([True], [1]) and same([1], [1])


def test_quality_alone_is_hacked(env):
    """The best program for it is a parameter, whatever the tests say."""
    env = CodeEnv(env.problems, reward="quality", max_rules=3)
    returns = {}
    rng = np.random.default_rng(0)
    for _ in range(300):
        _, rewards = write(env, rng, index=0)
        returns[env.program] = sum(rewards)
    assert max(returns, key=returns.get) in "ab" and returns["a"] > returns.get("(a + b)", -9)


def test_shaping_keeps_the_order_of_all_policies(env):
    """The discounted return of every episode changes by the potential of the start alone (Ng et al. 1999)."""
    plain, shaped = (CodeEnv(env.problems, shaping=shaping, gamma=0.9) for shaping in (False, True))
    rng, steps = np.random.default_rng(1), 0
    for number in range(120):
        index = number % 40
        actions, rewards = write(plain, rng, index=index)
        shaped.reset(options={"index": index})
        start = shaped.potential
        other = [shaped.step(action)[1] for action in actions]
        difference = sum(0.9**t * (b - a) for t, (a, b) in enumerate(zip(rewards, other)))
        assert difference == pytest.approx(-start)
        steps += any(abs(a - b) > 0.01 for a, b in zip(rewards, other))
    assert steps > 20  # and it is there


def test_shaping_keeps_the_best_programs(env):
    """All programs of up to three rules: the best ones with shaping are the best ones without."""
    best = []
    for shaping in False, True:
        each = CodeEnv(env.problems[:1], max_rules=3, shaping=shaping, gamma=0.99)
        returns, queue = {}, [()]
        while queue:
            actions = queue.pop()
            _, info = each.reset()
            total, ended = 0.0, False
            for t, action in enumerate(actions):
                _, reward, ended, _, info = each.step(action)
                total += 0.99**t * reward
            if ended:
                returns[each.program] = total
            else:
                queue += [(*actions, int(a)) for a in np.flatnonzero(info["action_mask"])]
        top = max(returns.values())
        best.append({text for text, value in returns.items() if value > top - 1e-9})
    assert best[0] == best[1] == {"(a + b)", "(b + a)"}


# ---- evaluator ----
RUN = """
def run(i, *args):
    try: return PROGRAMS[i](*args)
    except Exception as error: return "raised " + type(error).__name__
"""


def dispatcher(problem, programs):
    """A function that runs program i, as a candidate of the sandbox; exceptions become values."""
    lines = [f"    lambda {', '.join(problem.parameters)}: {text}," for text in programs]
    return "\n".join(["import math", "PROGRAMS = [", *lines, "]", RUN])


def is_huge(value):
    """Whether Python refuses to print it."""
    return any(
        type(x) is int and x.bit_length() > 14_000 for x in (value if isinstance(value, list) else [value])
    )


def test_evaluator_equals_the_sandbox():
    """Random programs: each result, value and type, is that of the sandbox, but for the limit of range."""
    problems = [*read_problems(TRAIN), *read_problems(TEST)]
    env, rng = CodeEnv(problems), np.random.default_rng(7)
    per_problem, number, beyond = -(-NUM_PROGRAMS // len(problems)), 0, 0
    jobs = []
    for index, problem in enumerate(problems):
        programs = [(write(env, rng, index=index), env.program)[1] for _ in range(per_problem)]
        cases = problem.tests[:6] + problem.hidden[:2]
        lines = ["def check(candidate):"]
        for i, text in enumerate(programs):
            for (given, _), value in zip(cases, run_program(problem, text, cases)):
                if isinstance(value, OverflowError) or is_huge(value):
                    beyond += 1
                    continue
                right = f"raised {type(value).__name__}" if isinstance(value, Exception) else value
                lines.append(f"    assert repr(candidate({i}, *{given!r})) == {repr(right)!r}")
        number += len(programs)
        jobs.append((dispatcher(problem, programs), "\n".join(lines), "run"))
    with Sandbox(timeout=10) as sandbox:
        results = sandbox.map(jobs)
    assert [(r.outcome, r.message) for r in results] == [("passed", "")] * len(jobs)
    assert number >= NUM_PROGRAMS and beyond < 0.01 * number * 8


def test_solutions_pass_and_only_they(env):
    """The score of a program is that of the references' results; what the sandbox confirms, it confirms."""
    by_name = {problem.name: problem for problem in env.problems}
    solutions = {"add_numbers": "(a + b)", "is_even": "(n % 2 == 0)", "max_of_three": "max(a, max(b, c))"}
    solutions["factorial"] = "math.prod(list(range(1, (n) + 1)))"
    with Sandbox(workers=1) as sandbox:
        for name, text in solutions.items():
            assert set(score_program(by_name[name], text)) == {1.0}
            assert sandbox.check(*by_name[name].as_check(text)).outcome == "passed"
        assert sandbox.check(*by_name["is_even"].as_check("1 - n % 2")).outcome == "failed"  # 1 is not True
        assert score_program(by_name["is_even"], "(1 - n % 2)") == [0.0] * 13
    assert min(score_program(by_name["is_even"], "(abs(n) != 3)")) == 0  # five tests let it pass, 13 do not


def test_worst_programs_are_stopped(env):
    problem = next(p for p in env.problems if p.name == "sum_range")
    ones = "list(range(1, (n) + 1))"
    texts = ["sum(list(range(1, (math.prod(list(range(1, (n) + 1)))) + 1)))"]
    texts += [
        f"sum([sum(list(range(1, (x ** 2) + 1))) for x in {ones}])",
        f"math.prod([(x ** 2) for x in {ones}])",
    ]
    for text in texts:
        start = time.perf_counter()
        results = run_program(problem, text, [[[n], 0] for n in (0, 12, 500, 10**9)])
        assert time.perf_counter() - start < 0.5
        assert isinstance(results[-1], OverflowError)
    cases = [[[n], 0] for n in (9_000, 30_000, 9_000, 9_000)]  # each call has a budget of its own
    results = run_program(problem, "sum(list(range(1, (n) + 1)))", cases)
    assert isinstance(results.pop(1), OverflowError) and results == [9_000 * 9_001 // 2] * 3


def test_programs_see_nothing_else(env):
    problem = env.problems[0]
    for name in "open", "__import__", "print", "code_env", "ast":
        assert isinstance(run_program(problem, f"{name}(a)", problem.tests)[0], NameError)


@pytest.mark.parametrize(
    "line, part",
    [
        ("int: open({int})", "the name open"),
        ("int: ().__class__", "the method __class__"),
        ("str: {str}.format({int})", "the method format"),
        ("int: {int} ** {int}", "the exponent must be 2 or 3"),
        ("int: {int} << 9", "the exponent must be 2 or 3"),
        ("int: {float} + 1", "float is not one of"),
        ("int: {int} +", "invalid syntax"),
        ("int {int}", "a rule is like int: {int} + {int}"),
    ],
)
def test_grammar_of_another_kind_is_refused(tmp_path, line, part):
    path = tmp_path / "grammar.txt"
    path.write_text(f"# a comment\nint: 1\n{line}\n")
    with pytest.raises(SystemExit) as stop:
        read_grammar(str(path))
    assert f"{path}, line 3: " in str(stop.value) and part in str(stop.value)
    assert "\n" not in str(stop.value)


def test_names_that_the_grammar_uses_are_refused():
    for name, parameters in ("sum", ["n"]), ("f", ["x"]), ("f", ["digit"]):
        problem = make_problem(name, "words", parameters, [[[1], 1], [[2], 2]])
        with pytest.raises(SystemExit, match="the grammar uses the name"):
            CodeEnv([problem])


# ---- problems ----
def test_files_are_those_that_the_script_writes():
    for side, entries in ("train", make_dqn_problems.TRAIN), ("test", make_dqn_problems.TEST):
        text = make_dqn_problems.text_of([make_dqn_problems.make(*entry) for entry in entries])
        assert (ROOT / f"data/dqn_{side}.json").read_text() == text
    problems = [*read_problems(TRAIN), *read_problems(TEST)]
    assert [len(read_problems(path)) for path in (TRAIN, TEST)] == [40, 14]
    assert len({problem.docstring for problem in problems}) == 54
    fields = {"function_name", "parameters", "docstring", "test_cases", "hidden_cases"}
    assert all(entry.keys() == fields for path in (TRAIN, TEST) for entry in json.loads(path.read_text()))
    for problem in problems:
        assert len(problem.tests) == 13 and len(problem.hidden) >= 15
        assert not {repr(a) for a, _ in problem.tests} & {repr(a) for a, _ in problem.hidden}


def test_held_out_problems_are_new_combinations_of_known_words():
    """Beyond the three of the course: whoever solves them has not read each word once only."""
    seen = Counter(word for problem in read_problems(TRAIN) for word in {*words_of(problem.docstring)})
    tested = read_problems(TEST)[3:]
    assert min(seen[word] for problem in tested for word in words_of(problem.docstring)) >= 2


def read(tmp_path, *entries, name="mine.json"):
    path = tmp_path / name
    path.write_text(json.dumps([{"function_name": "f", "docstring": "words", **entry} for entry in entries]))
    return read_problems(path)


def test_declared_parameters(tmp_path):
    one = {"function_name": "find_min", "parameters": ["v"], "test_cases": [[[[5, 2]], 2], [[[1]], 1]]}
    two = {"function_name": "multiply", "parameters": ["a", "b"], "test_cases": [[[2, 3], 6], [[1, 1], 1]]}
    first, second = read(tmp_path, one, two)
    assert (first.types, first.parameters, first.tests[0]) == (("ints",), ["v"], ([[5, 2]], 2))
    assert (second.types, second.result) == (("int", "int"), "int")


def test_ambiguous_inputs_are_resolved_by_their_lengths_and_announced(tmp_path, capsys):
    (problem,) = read(tmp_path, {"test_cases": [[[2, 3], 6], [[0, 5], 0]]})
    assert problem.types == ("int", "int")
    assert (
        'f: its inputs are read as 2 arguments; if that is wrong, write "parameters"'
        in capsys.readouterr().out
    )
    (problem,) = read(tmp_path, {"test_cases": [[[5, 2, 8, 1], 1], [[1], 1], [[7, 3], 3]]})
    assert (problem.types, problem.parameters) == (("ints",), ["nums"])
    (problem,) = read(tmp_path, {"test_cases": [["hello", 2], ["", 0]]})
    assert (problem.types, problem.parameters, capsys.readouterr().out) == (("str",), ["s"], "")


@pytest.mark.parametrize(
    "entry, part",
    [
        ({"test_cases": []}, "the first not empty"),
        ({"test_cases": [[1]]}, "[input, result]"),
        ({}, "has no 'test_cases'"),
        ({"test_cases": [[[1], 1], [[2], 2]]}, 'may be arguments or one list: write "parameters"'),
        ({"test_cases": [[1, 1], [[2, 3], 2]]}, 'may be arguments or one list: write "parameters"'),
        ({"test_cases": [[1, 1.5], [2, 2.5]]}, "1.5: values are int, bool, str"),
        ({"test_cases": [[1, None], [2, 1]]}, "None: values are"),
        ({"test_cases": [[1, [1, "a"]], [2, []]]}, "values are"),
        ({"test_cases": [[1, 1], [2, True]]}, "values of different types"),
        ({"test_cases": [[1, 1], [2, []]]}, "values of different types"),
        ({"test_cases": [[1, 1], [1, 2], [3, 3]]}, "two results, 1 and 2"),
        ({"test_cases": [[1, 1], [2, 1]]}, "always returns 1"),
        ({"test_cases": [[1, 1], [2, 2]], "function_name": "2f"}, "'2f' cannot be the name"),
        ({"test_cases": [[1, 1], [2, 2]], "function_name": "for"}, "'for' cannot be the name"),
        ({"test_cases": [[1, 1], [2, 2]], "parameters": ["a", "a"]}, "list of its 2 arguments"),
        ({"test_cases": [[[1, 1], 1], [[2, 3], 2]], "parameters": ["a", "a"]}, "parameters ['a', 'a']"),
        ({"test_cases": [[[1, 1, 1, 1], 1], [[2, 2, 2, 2], 2]], "parameters": list("abcd")}, "4 parameters"),
        ({"test_cases": [[1, 1], [2, 2]], "starter_code": "def f(n):"}, "starter_code must be empty"),
        ({"test_cases": [[1, 1], [2, 2]], "docstring": ""}, "must be text"),
    ],
)
def test_broken_problems_end_in_one_line(tmp_path, entry, part):
    with pytest.raises(SystemExit) as stop:
        read(tmp_path, entry)
    message = str(stop.value)
    assert part in message and "mine.json, " in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "[1]", "\xff"])
def test_broken_files_end_in_one_line(tmp_path, text):
    (tmp_path / "mine.json").write_bytes(text.encode("latin-1"))
    for path in tmp_path / "mine.json", tmp_path / "none.json":
        with pytest.raises(SystemExit) as stop:
            read_problems(path)
        assert path.name in str(stop.value) and "\n" not in str(stop.value)


def test_task_files_are_read(capsys):
    problems = read_problems(ROOT / "data/mini_train.jsonl")
    said = capsys.readouterr().out
    assert 200 < len(problems) < 400 and f"{len(problems)} of 400 tasks can be used" in said
    first = problems[0]
    assert (first.name, first.parameters, first.types, first.result) == (
        "last_multiple_list",
        ["nums"],
        ("ints",),
        "ints",
    )
    assert first.docstring == "Return a list of the last two of the numbers in nums that are divisible by 4."
    assert first.tests[4] == ([[3, 4, 5, -4, 4]], [-4, 4]) and len(first.tests) == 10


def test_references_solve_their_problems():
    """In this process: what the grammar's evaluator calls right is what the references return."""
    entries = dict.fromkeys([])
    for name, _, _, reference, _ in [*make_dqn_problems.TRAIN, *make_dqn_problems.TEST]:
        entries[name] = reference
    for problem in [*read_problems(TRAIN), *read_problems(TEST)]:
        for given, right in problem.tests + problem.hidden:
            assert same(entries[problem.name](*given), right)
