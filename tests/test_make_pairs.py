"""make_pairs.py: what always holds of a pair, which programs are the same, and what users do wrong."""

import hashlib
import json
import random
from collections import Counter
from functools import cache
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from data.signature import signature
from data.tasks import program, read_tasks
from data.truncation import truncate
from make_pairs import KINDS, pairs_of, sorted_out, summary_of
from sandbox import Sandbox, score

PROMPT = 'def f(a, b):\n    """Add."""\n'
TASK = {"task_id": "T/0", "prompt": PROMPT, "canonical_solution": "    return a + b\n", "entry_point": "f"}
TASK["test"] = "def check(f):\n    assert f(1, 2) == 3\n"
RIGHT = (
    "\n    return a + b",
    "\n    s = a + b\n    return s",
    "\n    x = a\n    return x + b",
    "\n    return b + a",
)
SAME = "\n    total = a + b\n\n    return (total)  # as the second"
WRONG = "\n    return a - b", "\n    return 3 +", "\n    return a * b", "\n    x = a\n    return x"
GOES_ON = tuple(text + "\nprint(undefined)" for text in RIGHT[:2])
CUT = RIGHT[0] + "\nx = 5"  # passes, and is cut
TEXTS = *RIGHT, SAME, *WRONG, *GOES_ON, "", CUT


@cache
def passes(text):
    """The verdict of these programs, without the sandbox."""
    try:
        exec(PROMPT.rstrip() + text, names := {})
        return names["f"](1, 2) == 3
    except Exception:
        return False


def row_of(text, at_limit=False, sample=0, name="T/0"):
    """A row as an evaluation writes it."""
    cut = truncate(TASK, text)
    row = {"task_id": name, "sample": sample, "completion": text, "gen_len": len(text), "cut_at": len(cut)}
    row |= {"hit_token_limit": at_limit, "passed": passes(text), "passed_truncated": passes(cut)}
    return row | {"outcome": "passed" if row["passed"] else "failed"}


def make(rows, **options):
    """(pairs, numbers of usable candidates, numbers of those left out by reason)"""
    defaults = {"rejected": "nearest", "pairs_per_chosen": 1, "stop_pairs": 1, "n_best": 3}
    kinds, left_out = sorted_out(TASK, rows)
    usable = {kind: len(found) for kind, found in kinds.items()}
    return pairs_of(TASK, kinds, SimpleNamespace(**{**defaults, **options})), usable, left_out


def short(pairs):
    return [(pair["kind"], pair["chosen"], pair["rejected"]) for pair in pairs]


candidates = st.lists(st.builds(row_of, st.sampled_from(TEXTS), st.booleans()), max_size=14)
counts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(candidates, st.sampled_from(["nearest", "longest"]), counts, st.randoms())
def test_what_always_holds(rows, rejected, counts, luck):
    n_best, per_chosen, stop_pairs = counts
    options = {
        "rejected": rejected,
        "n_best": n_best,
        "pairs_per_chosen": per_chosen,
        "stop_pairs": stop_pairs,
    }
    pairs, usable, left_out = make(rows, **options)
    ended = {row["completion"] for row in rows if not row["hit_token_limit"]}
    cut_off = {row["completion"] for row in rows if row["hit_token_limit"]}
    for pair in pairs:
        assert pair["prompt"] + pair["chosen"] == program(TASK, pair["chosen"])
        assert passes(pair["chosen"]) and passes(truncate(TASK, pair["chosen"]))
        assert pair["chosen"] in ended and not pair["chosen_truncated"]
        assert pair["rejected"].strip() and not passes(pair["rejected"])
        assert pair["rejected_passes_cut"] == passes(truncate(TASK, pair["rejected"]))
        assert signature(PROMPT + pair["chosen"]) != signature(PROMPT + pair["rejected"])
        assert pair["rejected"] in (cut_off if pair["rejected_truncated"] else ended)
        goes_on = pair["rejected_truncated"] or pair["rejected_passes_cut"]
        assert pair["kind"] == KINDS[goes_on]
    kinds = Counter(pair["kind"] for pair in pairs)
    assert kinds["stop"] <= stop_pairs and kinds["right_over_wrong"] <= n_best * per_chosen
    same = [(kind, signature(PROMPT + a), signature(PROMPT + b)) for kind, a, b in short(pairs)]
    assert len(same) == len(set(same))
    assert usable["right"] == len({signature(PROMPT + truncate(TASK, x)) for x in ended if passes(x)})
    assert sum(usable.values()) + sum(left_out.values()) == len(rows)
    assert short(make(luck.sample(rows, len(rows)), **options)[0]) == short(pairs)
    assert pairs or not usable["right"] or not (usable["wrong"] or (stop_pairs and usable["goes_on"]))


def test_pairs_by_hand():
    rows = [row_of(text) for text in (RIGHT[1], SAME, RIGHT[0], WRONG[1], WRONG[3], GOES_ON[0])]
    pairs, usable, left_out = make(rows)
    assert short(pairs) == [
        ("right_over_wrong", RIGHT[0], WRONG[1]),  # 17 characters and 15
        ("right_over_wrong", RIGHT[1], WRONG[3]),  # 27 and 23
        ("stop", RIGHT[0], GOES_ON[0]),
    ]
    assert usable == {"right": 2, "wrong": 2, "goes_on": 1} and left_out == {"same program as another": 1}
    assert [pair["rejected"] for pair in make(rows, rejected="longest")[0][:2]] == [WRONG[3], WRONG[3]]
    assert short(make(rows, n_best=1, stop_pairs=0)[0]) == short(pairs)[:1]
    more = [pair["rejected"] for pair in make(rows, pairs_per_chosen=2)[0]]
    assert more == [WRONG[1], WRONG[3], WRONG[3], WRONG[1], GOES_ON[0]]


def test_summary_by_hand():
    pairs, *_ = make([row_of(text) for text in (RIGHT[0], RIGHT[1], WRONG[0], GOES_ON[0])])
    assert summary_of(pairs) == {
        "pairs": 3,
        "tasks": 1,
        "distinct_chosen": 2,
        "distinct_rejected": 2,
        "mean_length_chosen": (17 + 27 + 17) / 3,
        "mean_length_rejected": (17 + 17 + 34) / 3,
        "share_chosen_shorter": 1 / 3,
        "share_chosen_longer": 1 / 3,
        "rejected_outcomes": {"failed": 3},
        "rejected_passes_cut": 1,
        "rejected_at_token_limit": 0,
    }


def test_right_that_goes_on_comes_before_wrong_that_goes_on():
    rows = [row_of(RIGHT[0]), row_of(WRONG[0], at_limit=True), row_of(GOES_ON[1])]
    assert [pair["rejected"] for pair in make(rows)[0]] == [GOES_ON[1]]
    assert [pair["rejected_truncated"] for pair in make(rows, stop_pairs=2)[0]] == [False, True]


@pytest.mark.parametrize("at_limit", [False, True])
@pytest.mark.parametrize(
    "right, failed, verdicts",
    [(RIGHT[1], SAME, [False, False]), (RIGHT[0], GOES_ON[0], [False, False]), (CUT, CUT, [False, True])],
)
def test_flaky_programs_are_left_out(right, failed, verdicts, at_limit):
    """Ones that passed and failed: as generated and cut, only cut, only as generated."""
    failed = row_of(failed, at_limit) | dict(zip(("passed", "passed_truncated"), verdicts))
    pairs, usable, left_out = make([row_of(right), failed, row_of(WRONG[0])])
    assert pairs == [] and usable == {"right": 0, "wrong": 1, "goes_on": 0}
    assert left_out == {"flaky: the same program passed and failed": 2}


def test_what_was_not_run_as_prompt_and_completion_is_left_out():
    whole = {**row_of(RIGHT[0]), "completion": "def f(a, b):\n    return a + b", "whole_program": True}
    pairs, _, left_out = make([whole, row_of(WRONG[0]), row_of("  ")])
    assert pairs == [] and left_out == {"empty, or no completion of the prompt": 2}


@pytest.mark.parametrize(
    "one, other, equal",
    [
        ("def f(a):\n    x = a\n    return x", "def f(a):\n    y = a  # no\n\n    return (y)", True),
        ("def f(a):\n    'Doc.'\n    return a", "def f(a):\n    return a", True),
        ("class A:\n    'Doc.'\n    def m(self, x): return x", "class A:\n    def m(me, y): return y", True),
        ("def g(x): return x\ndef f(x): return g(x)", "def g(y): return y\ndef f(x): return g(x)", True),
        ("n = int(input())\nprint(n)", "k = int(input())\nprint(k)", True),
        ("n = int(input())\nprint(n)", "k = int(input())\nprint(n)", False),
        ("def f(a):\n    return (a", "def f(a):\n  return  (a", True),
        ("def f(a):\n    return (a", "def f(a):\n    return (b", False),
        ("def f(a):\n    x = a\n    return x", "def f(a):\n    x = a\n    return y", False),
        ("def f(a):\n    return a", "def f(a: int):\n    return a", False),  # annotations run
        ("def f(a):\n    return max(a)", "def f(a):\n    return min(a)", False),
        ("def f(a, b):\n    return a - b", "def f(a, b):\n    return b - a", False),
        ("x = 1\ndef f(a): return x", "x = 1\ndef f(x): return x", False),
        ("def f(a):\n    global x\n    x = a", "def f(a):\n    global y\n    y = a", False),
        ("def g(x, y): return x - y\ng(x=1, y=2)", "def g(y, x): return y - x\ng(x=1, y=2)", False),
        ("e = 1\ntry: f()\nexcept E as e: print(e)", "z = 1\ntry: f()\nexcept E as e: print(z)", False),
    ],
)
def test_signature(one, other, equal):
    assert (signature(one) == signature(other)) is equal


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(folder, rows, name="c"):
    """Write rows, and the metrics that an evaluation would write beside them."""
    write(folder / f"{name}_per_task.jsonl", rows)
    digest = hashlib.sha256((folder / "tasks.jsonl").read_bytes()).hexdigest()
    metrics = {"model_path": "m", "protocol": {"dataset_sha256": digest, "prompt_format": "completion"}}
    metrics |= {"num_samples": len(rows), "num_pass": sum(row["passed"] for row in rows)}
    metrics["num_pass_truncated"] = sum(row["passed_truncated"] for row in rows)
    (folder / f"{name}_metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def files(tmp_path):
    """Three tasks, and an evaluation of four completions of each."""
    names = "T/0", "T/1", "T/2"
    write(tmp_path / "tasks.jsonl", [{**TASK, "task_id": name, "difficulty": "easy"} for name in names])
    texts = [RIGHT[1], RIGHT[0], WRONG[0], GOES_ON[0]], [SAME, RIGHT[1], WRONG[0], WRONG[0]], WRONG
    found = [(text, False, n, name) for name, each in zip(names, texts) for n, text in enumerate(each)]
    evaluate(tmp_path, [row_of(*row) for row in found])
    return tmp_path


def run(files, *flags, candidates=("c",)):
    paths = [files / f"{name}_per_task.jsonl" for name in candidates]
    named = "--task_path", files / "tasks.jsonl", "--output_dir", files / "out", "--candidates", *paths
    return run_script("make_pairs.py", *named, *flags)


def test_files(files):
    done = run(files, "--write_tasks", files / "best.jsonl")
    assert done.returncode == 0, done.stderr
    assert "tasks left out: nothing to choose: 1" in done.stdout
    pairs, manifest = lines(files / "out/pairs.jsonl"), json.loads((files / "out/manifest.json").read_text())
    for kind in KINDS:
        assert manifest["kinds"][kind] == summary_of([pair for pair in pairs if pair["kind"] == kind])
    assert [pair["kind"] for pair in pairs] == ["right_over_wrong"] * 2 + ["stop"] + ["right_over_wrong"]
    found = manifest["candidates"]
    assert found["pass_at_1"] == pytest.approx(4 / 12) and found["pass_at_1_truncated"] == pytest.approx(
        5 / 12
    )
    assert found["pass_at_3"] == pytest.approx(2 / 3) and "pass_at_5" not in found  # C(2, 3) is 0
    assert found["distinct_programs"] == (3 + 2 + 4) / 3 and found["distinct_passing"] == (2 + 1 + 0) / 3
    assert manifest["usable"] == {"right": 3, "wrong": 6, "goes_on": 1}
    assert manifest["left_out"] == {"same program as another": 2}
    assert manifest["tasks"] == {"in_file": 3, "with_pairs": 2}
    assert manifest["tasks_left_out"] == {"nothing to choose": 1}
    inputs = {str(files / name): files / name for name in ("tasks.jsonl", "c_per_task.jsonl")}
    for name, path in {**inputs, "pairs.jsonl": files / "out/pairs.jsonl"}.items():
        assert manifest["sha256"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(row["task_id"], row["rank"], row["sample"]) for row in lines(files / "out/nbest.jsonl")] == [
        ("T/0", 1, 1),
        ("T/0", 2, 0),
        ("T/1", 1, 1),
    ]
    best = read_tasks(files / "best.jsonl")
    assert [task["canonical_solution"] for task in best] == [RIGHT[0][1:], RIGHT[1][1:]]
    assert best[1]["difficulty"] == "easy"

    def written():
        kept = {name: (files / "out" / name).read_bytes() for name in ("nbest.jsonl", "pairs.jsonl")}
        return kept, {path.name for path in (files / "out").iterdir()}

    before = written()
    assert before[1] == {"nbest.jsonl", "pairs.jsonl", "manifest.json"}
    evaluate(files, random.Random(0).sample(rows := lines(files / "c_per_task.jsonl"), len(rows)))
    assert run(files).returncode == 0 and written() == before


def test_pairs_of_published_evaluations(tmp_path):
    """Real rows, several files, and the sandbox's own verdicts on some of the pairs."""
    paths = [ROOT / f"results/tiny/tiny_{name}_per_task.jsonl" for name in ("base", "sft", "ppo_alpha0.03_8")]
    tasks = {task["task_id"]: task for task in read_tasks(ROOT / "data/mini_test.jsonl")}
    named = "--task_path", "data/mini_test.jsonl", "--output_dir", tmp_path, "--candidates", *paths
    done = run_script("make_pairs.py", *named)
    assert done.returncode == 0, done.stderr
    pairs, manifest = lines(tmp_path / "pairs.jsonl"), json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["candidates"]["num_samples"] == 3 * 164 and len(manifest["sources"]) == 3
    assert min(manifest["kinds"][kind]["pairs"] for kind in KINDS) > 20
    sides = {(pair["task_id"], pair[side]): side for pair in pairs[::8] for side in ("chosen", "rejected")}
    with Sandbox(tasks=[*tasks.values()]) as sandbox:
        results = score(sandbox, [tasks[name] for name, _ in sides], [text for _, text in sides])
    assert [result.outcome == "passed" for result in results] == [side == "chosen" for side in sides.values()]


def message(done, files):
    """What a run said that ended in one line and wrote nothing."""
    assert done.returncode == 1 and not (files / "out").exists()
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_wrong_options_end_in_one_line(files):
    assert "--n_best is at least 1" in message(run(files, "--n_best", "0"), files)
    assert "--stop_pairs are at least 0" in message(run(files, "--stop_pairs", "-1"), files)
    assert "would overwrite" in message(run(files, "--write_tasks", files / "tasks.jsonl"), files)
    assert "candidates are a" in message(run(files, "--candidates", files / "tasks.jsonl"), files)
    assert "no_per_task.jsonl cannot be read" in message(run(files, candidates=["no"]), files)
    assert "no such file" in message(run(files, "--task_path", files / "no.jsonl"), files)
    done = run(files, "--output_dir", files / "tasks.jsonl")
    assert "the files cannot be written" in message(done, files)
    assert "cannot be written" in run(files, "--write_tasks", files).stderr and not [
        *files.parent.glob("*.tmp")
    ]
    assert [*(files / "out").iterdir()] == []


def test_wrong_candidates_end_in_one_line(files):
    good = lines(files / "c_per_task.jsonl")

    def said(rows):
        evaluate(files, rows)
        return message(run(files), files)

    assert "row 2: hit_token_limit is missing" in said([good[0], {**good[1], "hit_token_limit": None}])
    assert "'T/9' is not in --task_path" in said([good[0], {**good[0], "task_id": "T/9"}])
    assert "one completion per task" in said(good[::4])
    assert "no pair (tasks left out: nothing to reject: 1, no candidate: 2)" in said(good[:2])
    assert "no pair (tasks left out: no candidate: 2, nothing to choose: 1)" in said(good[8:])
    assert "there is no row in it" in said([])
    write(files / "c_per_task.jsonl", good[:-1])
    assert "is not complete" in message(run(files), files)
    write(files / "c_per_task.jsonl", [*good[:2], {**good[2], "passed": None}])
    assert "line 3" in message(run(files), files)
    (files / "c_per_task.jsonl").write_text("PK\n")
    assert "line 1" in message(run(files), files)


@pytest.mark.parametrize(
    "protocol, said",
    [
        ({"dataset_sha256": "0"}, "another task file"),
        ({"prompt_format": "chat"}, "--prompt_format chat"),
        (None, "c_metrics.json cannot be used"),
    ],
)
def test_metrics_of_another_evaluation(files, protocol, said):
    metrics = json.loads((files / "c_metrics.json").read_text())
    metrics["protocol"] = protocol and metrics["protocol"] | protocol
    (files / "c_metrics.json").write_text(json.dumps(metrics))
    assert said in message(run(files), files)


def test_metrics_missing(files):
    (files / "c_metrics.json").unlink()
    assert "needs the metrics" in message(run(files), files)
