"""Rows of task files: how each kind is scored, and that mistakes of any kind end in one clear line."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Sandbox, read_tasks, reference, score

ROW = {"task_id": "T/0", "prompt": '"""Double."""\n', "canonical_solution": "", "test": "", "entry_point": ""}
CASES = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
SCRIPT = {**ROW, "canonical_solution": "print(2 * int(input()))\n", "input_output": CASES}
CALLED = {**ROW, "entry_point": "f", "canonical_solution": "def f(x):\n    return 2 * x\n"}
CALLED |= {"task_id": "T/1", "input_output": {"inputs": [[1], [[3]]], "outputs": [2, [3, 3]], "fn_name": "f"}}
MBPP = {**CALLED, "task_id": "T/2", "test": "assert f(1) == 2\nassert f('a') == 'aa'"}
CHECK = {**MBPP, "task_id": "T/3", "test": "def check(g):\n    assert g(1) == 2\n    assert g(0) == 0\n"}
del MBPP["input_output"], CHECK["input_output"]
TASKS = [SCRIPT, CALLED, MBPP, CHECK]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_row_says_how_it_is_scored(tmp_path):
    tasks = read_tasks(write(tmp_path / "tasks.jsonl", *TASKS))
    halves = [
        "\nprint(2)\n",
        *["\ndef f(x):\n    return 2\n"] * 2,
        "\ndef f(x):\n    return 2 * x * (x < 1)\n",
    ]
    with Sandbox(workers=1, timeout=1) as sandbox:
        results = score(sandbox, tasks, map(reference, tasks))
        assert [(result.outcome, result.n_tests) for result in results] == [("passed", 2)] * 4
        results = score(sandbox, tasks, halves)
        assert [(result.outcome, result.fraction) for result in results] == [("failed", 0.5)] * 4


@pytest.mark.parametrize(
    "cases",
    [
        None,
        3,
        [],
        {},
        {"inputs": ["1"]},
        {"inputs": [], "outputs": []},
        {"inputs": ["1"], "outputs": ["1", "2"]},
        {"inputs": [1], "outputs": ["1"]},
        {"inputs": ["1"], "outputs": [1]},
        {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"},
        {"inputs": "1", "outputs": 1},
    ],
)
def test_cases_that_are_none(tmp_path, cases):
    with pytest.raises(SystemExit, match=r"tasks.jsonl, line 1: field 'input_output' is not usable: \w+: "):
        read_tasks(write(tmp_path / "tasks.jsonl", {**SCRIPT, "input_output": cases}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    *ROW,
    "input_output",
    "base_input",
    "plus_input",
    "atol",
    "code",
    "test_list",
    "test_imports",
    "base_test",
]


@given(st.sampled_from(TASKS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values(tmp_path, task, changes):
    path = write(tmp_path / "tasks.jsonl", {**task, **changes})
    try:
        (task,) = read_tasks(path)
    except SystemExit as error:
        assert str(error).startswith(f"{path}, line 1: ") and "\n" not in str(error)
    else:
        assert all(isinstance(task[name], str) for name in ROW)


@given(st.binary(max_size=60), st.integers(0, 400))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path, noise, place):
    whole = "".join(json.dumps(row) + "\r\n" for row in TASKS).encode("utf-8-sig")
    for name, opener in ("tasks.jsonl", open), ("tasks.jsonl.gz", gzip.open):
        with opener(tmp_path / name, "wb") as file:
            file.write(whole[:place] + noise + whole[place:])
        try:
            assert read_tasks(tmp_path / name)
        except SystemExit as error:
            assert str(error).startswith(str(tmp_path / name)) and "\n" not in str(error)
    assert len(read_tasks(write(tmp_path / "whole.jsonl", *TASKS))) == 4
