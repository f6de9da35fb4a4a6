"""The mini tasks and the pretraining text: disjoint, solvable, and not solved by a stub."""

import doctest
import filecmp
import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

from sandbox import Sandbox, preflight, program, read_tasks, reference, score

sys.path.insert(0, str(ROOT / "data"))

import make_mini_tasks
import pretrain_tiny_coder

SIDES = "train", "dev", "test", "hard_test"
SPLITS = {side: read_tasks(ROOT / f"data/mini_{side}.jsonl") for side in SIDES}
HARD = SPLITS["hard_test"]
UNSEEN = {side: SPLITS[side] for side in SIDES if side != "hard_test"}  # not in the pretraining text


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=5) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def pretraining_text():
    return "\n".join(pretrain_tiny_coder.write_text(pretrain_tiny_coder.NUM_FUNCTIONS))


def test_sizes():
    assert [len(SPLITS[side]) for side in SIDES] == [400, 100, 164, 164]
    for side in "test", "hard_test":
        topics = Counter(make_mini_tasks.SOURCES[task["combination"][0]].topic for task in SPLITS[side])
        assert topics == {"lists": 41, "numbers": 41, "strings": 41, "dicts": 41}


def test_generator_writes_the_committed_bytes(tmp_path):
    script = ROOT / "data/make_mini_tasks.py"
    subprocess.run([sys.executable, script, "--output_dir", tmp_path], check=True, capture_output=True)
    for side in SPLITS:
        assert filecmp.cmp(tmp_path / f"mini_{side}.jsonl", ROOT / f"data/mini_{side}.jsonl", shallow=False)


def test_no_combination_on_two_sides():
    sides = make_mini_tasks.deal_combinations()
    for side, tasks in UNSEEN.items():
        assert [tuple(task["combination"]) for task in tasks] == sides[side]
    hard = {tuple(task["combination"]) for task in HARD}
    assert len(hard) == len(HARD) and hard < set(sides["pretrain"])
    dealt = [combination for members in sides.values() for combination in members]
    assert len(dealt) == len(set(dealt)) == len(make_mini_tasks.combinations())


def test_no_prompt_in_two_splits():
    prompts = [task["prompt"] for tasks in SPLITS.values() for task in tasks]
    assert len(prompts) == len(set(prompts))


def test_hard_tasks_share_nothing_with_the_others():
    """Neither the sentence of a docstring, with whatever constants, nor a program."""

    def sentence_and_program(task):
        return {re.sub(r"\d+", "0", task["prompt"].splitlines()[1]), task["canonical_solution"]}

    others = set().union(*(sentence_and_program(task) for tasks in UNSEEN.values() for task in tasks))
    assert [task["task_id"] for task in HARD if sentence_and_program(task) & others] == []


def test_pretraining_text_holds_no_task(pretraining_text):
    """Neither a prompt, nor the name of a task's function, nor its solution with any constants."""
    names = set(re.findall(r"^def (\w+)\(", pretraining_text, re.M))
    bodies = re.findall(r"^    return .*$", pretraining_text, re.M)
    solutions = {re.sub(r"\d+", "0", line) for line in bodies}
    held_out = [task for tasks in UNSEEN.values() for task in tasks]
    assert len(names) > 5000
    for task in held_out:
        assert task["entry_point"] not in names
        assert task["prompt"].splitlines()[1] not in pretraining_text  # the sentence of the docstring
    allowed = set(make_mini_tasks.deal_combinations()["pretrain"])
    shapes = {}  # two combinations can have the same code, such as x * 2 for doubled and for times 2
    for combination in allowed:
        spec = make_mini_tasks.Spec(combination, 0, 0)
        shapes[re.sub(r"\d+", "0", spec.concise().rstrip())] = combination
    for task in held_out:
        solution = re.sub(r"\d+", "0", task["canonical_solution"].rstrip())
        assert solution in shapes or solution not in solutions, task["task_id"]


def test_tasks_look_like_humaneval():
    for tasks in SPLITS.values():
        for task in tasks:
            assert task["prompt"].endswith('    """\n')
            assert task["prompt"].count(">>>") == 2
            assert task["test"].count("assert candidate(") >= 6
            assert re.search(r"candidate\((\[\]|0|''|\{\})\)", task["test"])  # the empty input
            assert len(task["canonical_solution"].splitlines()) == 1


@pytest.mark.parametrize("side", SPLITS)
def test_references_pass_and_stubs_fail(sandbox, side):
    tasks = SPLITS[side]
    preflight(sandbox, tasks)  # raises unless all references pass and all cheats fail
    stubs = score(sandbox, tasks, ["\n    return None\n"] * len(tasks))
    assert not any(result.outcome == "passed" for result in stubs)


def test_doctest_examples_are_true():
    """The examples in the prompts agree with the reference solution."""
    for task in SPLITS["test"] + HARD:
        namespace = {}
        exec(program(task, reference(task)), namespace)
        examples = doctest.DocTestParser().get_examples(namespace[task["entry_point"]].__doc__)
        assert len(examples) == 2
        for example in examples:
            assert repr(eval(example.source, namespace)) == example.want.rstrip(), task["task_id"]


def test_json_has_the_five_fields():
    for line in (ROOT / "data/mini_train.jsonl").read_text().splitlines():
        task = json.loads(line)
        assert {"task_id", "prompt", "canonical_solution", "test", "entry_point"} <= set(task)


def test_a_share_of_the_pretraining_functions_is_wrong():
    """The text teaches mistakes on purpose; if it did not, reinforcement learning would have no room."""
    rng = random.Random(0)
    combinations = make_mini_tasks.deal_combinations()["pretrain"]
    allowed = set(combinations)
    mistakes = 0
    for _ in range(1000):
        spec = make_mini_tasks.random_spec(rng.choice(combinations), rng)
        body_spec, code_mistakes = pretrain_tiny_coder.with_mistakes(spec, allowed, rng)
        assert body_spec.combination in allowed
        mistakes += body_spec.combination != spec.combination or bool(code_mistakes)
    assert 400 < mistakes < 700


def test_popular_mistakes_fail_the_tests_of_the_tasks():
    """The tests see the difference between right and nearly right: x > k and x >= k, first and last, ..."""
    caught = total = 0
    for task in SPLITS["test"]:
        for piece, wrong in [("x > ", "x >= "), ("x < ", "x <= "), ("n + 1)", "n)"), (", default=0", "")]:
            mutant = task["canonical_solution"].replace(piece, wrong)
            if mutant != task["canonical_solution"]:
                namespace = {}
                exec(task["prompt"] + mutant + task["test"], namespace)
                total += 1
                try:
                    namespace["check"](namespace[task["entry_point"]])
                except Exception:
                    caught += 1
    assert total > 40 and caught >= 0.9 * total


def test_hard_tasks_need_each_of_three_operations():
    """Programs that leave out an operation or make one popular mistake fail; written here once more."""
    wrong = []
    for task in HARD:
        source, filter_name, map_name, reduction = task["combination"]
        others = [
            (source, "all", map_name, reduction),
            (source, filter_name, "same", reduction),
            (source, filter_name, map_name, "list"),
        ]
        k, j = constants(task)
        bodies = [make_mini_tasks.Spec(other, k, j).concise() for other in others]
        assert len({*bodies, task["canonical_solution"]}) == 4
        mistakes = [(f" > {k}", f" >= {k}"), (f" < {k}", f" <= {k}")]
        mistakes += [("x * x", "x * 2"), ("swapcase", "upper"), ("[-2:]", "[:3]"), ("x[-1]", "x[0]")]
        mistakes += [(", reverse=True", ""), (" n + 1", " n"), ("aeiouAEIOU", "aeiou"), ("//", "/")]
        mistakes += [(", default=0", "")]
        body = task["canonical_solution"]
        mistaken = [body.replace(*pair) for pair in mistakes if pair[0] in body]
        assert len(mistaken) >= 2, task["task_id"]
        assert make_mini_tasks.passes(task, body)
        wrong += [(task, text) for text in bodies + mistaken]
    assert [pair for pair in wrong if make_mini_tasks.passes(*pair)] == []


def constants(task):
    """The constants of a task: those with which the combination gives its docstring and solution."""
    pairs = itertools.product(range(2, 7), repeat=2)
    specs = [make_mini_tasks.Spec(tuple(task["combination"]), k, j) for k, j in pairs]
    body = task["canonical_solution"]
    return next(
        (spec.k, spec.j) for spec in specs if spec.docstring() in task["prompt"] and spec.concise() == body
    )
