"""pass_at_k.py: pass@k, distinct programs, intervals and p against numbers by hand; tables, plot and page."""

import hashlib
import io
import json

import numpy as np
import pytest
from conftest import run_script
from matplotlib import pyplot as plt
from scipy.stats import permutation_test

import compare_runs
import pass_at_k
import report
from data.scores import over_tasks

RAW, CUT, DISTINCT, PASSING = pass_at_k.MEASURES
TASK = {"task_id": "T/0", "prompt": 'def f(x):\n    """Docs."""\n', "canonical_solution": "    return x\n"}
TASK |= {"test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}


def rows_of(passed, name="T/0", cut=None):
    """The rows of one task from a string of 0 and 1."""
    rows = [{"task_id": name, "sample": i, "passed": mark == "1"} for i, mark in enumerate(passed)]
    for row, mark in zip(rows, cut or ()):
        row["passed_truncated"] = mark == "1"
    return rows


def run_of(name, *tasks):
    """A run from a string of 0 and 1 for each task."""
    rows = [row for i, passed in enumerate(tasks) for row in rows_of(passed, f"T/{i}")]
    return {"exp_name": name, "method": None, "data_path": None, "rows": rows}


def tables_of(*runs):
    pairs = [pair for pair in [compare_runs.compare(*runs)] if pair]
    tables, notes, _ = pass_at_k.section([*runs], pairs, io.BytesIO())
    return dict(tables), notes


@pytest.fixture
def figures(monkeypatch):
    """The figures as they would be saved."""
    caught = []
    monkeypatch.setattr(report, "finish", lambda figure, path: caught.append(figure))
    yield caught
    plt.close("all")


# ---- estimates ----


def test_pass_at_k_by_hand():
    """2 of 4 pass: of the 6 pairs of samples 5 hold one that does. There is no estimate for 5 of 4."""
    (run,) = pass_at_k.sampled([run_of("a", "1100", "0000", "1111")]).values()
    expected = [[1 / 2, 5 / 6, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert pass_at_k.curve(run, RAW, [1, 2, 3, 4]) == pytest.approx(np.array(expected))
    assert run["counts"].keys() == {RAW}  # no verdicts of cut texts, no programs
    with pytest.raises(ValueError, match="pass@5 cannot be estimated from 4 completions"):
        pass_at_k.curve(run, RAW, [4, 5])


def test_distinct_programs_by_hand(tmp_path):
    """A, A with other names, B and C: one of the 6 pairs of samples holds A twice, so 11/6 at k = 2."""
    rows = rows_of("1011", cut="1101")
    texts = ["\n    y = x  # a comment\n    return y\n", "\n    z = x\n    return z\n\n\nprint(f(2))\n"]
    texts += ["\n    return 3\n", "\n    return x\n"]
    for row, text in zip(rows, texts):
        row |= {"completion": text, "cut_at": text.find("\n\n\nprint") if "print" in text else len(text)}
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(TASK) + "\n")
    protocol = {"dataset_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    run = {"exp_name": "a", "data_path": str(path), "protocol": protocol, "rows": rows}
    counts = pass_at_k.counts(run)
    assert counts[DISTINCT] == {"T/0": [2, 1, 1]}
    assert counts[PASSING] == {"T/0": [2, 1]}  # once they are cut: as generated, the second does not pass
    (found,) = pass_at_k.sampled([run]).values()
    assert pass_at_k.curve(found, DISTINCT, [1, 2, 4]) == pytest.approx(np.array([[1, 11 / 6, 3]]))
    assert pass_at_k.curve(found, PASSING, [1, 2, 4]) == pytest.approx(np.array([[3 / 4, 5 / 6 + 1 / 2, 2]]))
    path.write_text(json.dumps(TASK | {"prompt": "def f(y):\n"}) + "\n")  # not what was evaluated
    assert pass_at_k.counts(run).keys() == {RAW, CUT}


def test_intervals_are_those_of_the_other_tables():
    values = np.random.default_rng(1).random((40, 3)) ** [1, 2, 3]
    low, high = pass_at_k.interval(values)
    for i in range(3):
        assert [low[i], high[i]] == pytest.approx(over_tasks(values[:, i]))


def test_p_by_hand():
    """3 and 1, signs flipped: 4, 2, 2, 4 in size; 2 of 4 are as large. Of three equal rises 2 of 8 are."""
    assert pass_at_k.p_value(np.array([3.0, 1.0])) == 0.5
    assert pass_at_k.p_value(np.array([[0.5, 0.5], [0.5, 0.0], [0.5, -0.5]])) == pytest.approx([0.25, 1])
    assert pass_at_k.p_value(np.array([0.7])) == 1  # one task tells nothing


def test_p_of_many_tasks():
    """As scipy has it, but for the luck of 10,000 draws on either side; never 0."""
    change = np.random.default_rng(2).normal(0.4, 1, 20)
    p = permutation_test((change,), np.mean, permutation_type="samples", rng=1).pvalue
    assert 0.01 < p < 0.2
    assert pass_at_k.p_value(change) == pytest.approx(p, abs=4 * (2 * p * (1 - p) / 10_000) ** 0.5)
    assert 0 < pass_at_k.p_value(np.ones(20)) < 0.001  # what was observed is one of the 10,000


# ---- tables and plot ----


def test_no_k_beyond_n():
    """4 samples of a, 2 of b: at k = 4 there is a alone, and no difference."""
    a, b = run_of("a", "1000", "0000", "1100"), run_of("b", "11", "10", "01")
    tables, notes = tables_of(a, b)
    header, of_a, of_b, change = tables[RAW]
    assert header == ["model", "per task", "k = 1", "k = 2", "k = 4"]
    # a: means of 1/4, 0, 1/2; of 1/2, 0, 5/6; of 1, 0, 1. b: of 1, 1/2, 1/2 and of ones.
    assert [text.split(" ")[0] for text in of_a] == ["a", "4", "25.0", "44.4", "66.7"]
    assert [text.split(" ")[0] for text in of_b] == ["b", "2", "66.7", "100.0", "-"]
    assert change[0] == "b minus a" and change[4] == "-"
    assert change[2].startswith("+41.7 (+0.0 to +75.0), p = 0.5")  # 3/4, 1/2, 0: 4 of 8 sign patterns
    assert notes[0].startswith("2 differences at some k are tested; if no two runs differed, 0.1 or so")


def test_tasks_are_paired_by_name():
    a, b = run_of("a", "11", "00", "10"), run_of("b", "11", "00", "10")
    b["rows"] = b["rows"][::-1]
    tables, _ = tables_of(a, b)
    assert tables[RAW][3][2:] == ["+0.0, p = 1"] * 2


def test_more_at_1_and_less_at_4():
    """What RL may do: of 10 tasks, a solves each by one of 4; b half of them always and the others never."""
    a, b = run_of("a", *["1000"] * 10), run_of("b", *["1111"] * 5, *["0000"] * 5)
    tables, _ = tables_of(a, b)
    _, at_1, _, at_4 = tables[RAW][3][1:]
    assert at_1.startswith("+25.0 (") and at_4.startswith("-50.0 (")
    assert at_4.endswith(", p = 0.062")  # 2 of the 2^5 patterns of five losses


def test_one_completion_per_task_is_not_shown(tmp_path):
    runs = [run_of("greedy", "1", "0"), run_of("not all", "11", "0"), {**run_of("none"), "rows": None}]
    assert pass_at_k.section(runs, [], tmp_path / "a.png") == ([], [], None)
    assert list(tmp_path.iterdir()) == []


def test_lengths():
    """Within the tasks the variances are 2 and 8, so their mean is 5."""
    run = run_of("a", "11", "11")
    for row, length in zip(run["rows"], (10, 12, 20, 24)):
        row["gen_len"] = length
    tables, _ = tables_of(run, run_of("b", "11", "11"))
    assert tables["length (tokens)"][1:] == [["a", "4", "11", "16", "23", "2.2"]]


def test_plot(figures):
    a, b = run_of("a$", "1000", "0000", "1100"), run_of("b", "11", "10", "01")
    pass_at_k.plot(pass_at_k.sampled([a, b]), "unused.png")
    (axes,) = figures[0].axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [
        ([1, 2, 3, 4], pytest.approx([25, 400 / 9, 700 / 12, 200 / 3])),
        ([1, 2], pytest.approx([200 / 3, 100])),
    ]
    bands = [band.get_paths()[0].get_extents().get_points() for band in axes.collections]
    assert [(left, right) for (left, _), (right, _) in bands] == [(1, 4), (1, 2)]
    assert bands[0][1][1] == pytest.approx(100)  # at k = 4: 1, 0 and 1
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == [1, 2, 4]
    assert [text.get_text() for text in figures[0].legends[0].texts] == [r" a\$", " b"]


def test_bands_and_looks_of_many_runs(figures):
    """Of 10 tasks 5 are at 1/4. Resamples have 2 to 8 of these: P(at most 1) is 0.011, P(at most 2) 0.055."""
    runs = [run_of(str(i), *["1000"] * 5, *["0000"] * 5) for i in range(20)]
    pass_at_k.plot(pass_at_k.sampled(runs), "unused.png")
    (axes,) = figures[0].axes
    vertices = axes.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in vertices if x == 1} == {5, 20}
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 20


def test_in_the_report(tmp_path):
    """Table and picture are on the page, and the first table is the one of before."""
    for name, passed in ("a", "1000"), ("b", "1100"):
        rows = run_of(name, passed, "0000", "1111")["rows"]
        path = tmp_path / f"{name}_per_task.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_script("compare_runs.py", "--results_dir", tmp_path, "--html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [title for title, _ in data["tables"]] == ["", RAW]
    assert data["tables"][0][1][0][:2] == ["model", "pass@1 raw (95 % interval)"]
    assert report.CAPTIONS["pass_at_k.png"] in page and (tmp_path / "pass_at_k.png").is_file()
    assert f"\n\n{RAW}\n\n| model" in (tmp_path / "results.md").read_text()
    assert data["tables"][1][1][3][2] == "+8.3 (+0.0 to +25.0), p = 1"  # the p of the sentence, at k = 1
    assert data["pairs"][0]["p"] == 1 and any("3 differences" in note for note in data["notes"])


# ---- candidates ----


MANIFEST = {
    "options": {"seed": 1},
    "sha256": {},
    "candidates": {"num_samples": 8, "pass_at_1": 0.25, "interval": [0.1, 0.5]},
    "left_out": {"flaky": 2},
    "kinds": {
        "right_over_wrong": {"pairs": 3, "rejected_outcomes": {"failed": 2, "syntax": 1}},
        "stop": {"pairs": 0, "rejected_outcomes": {}},
    },
}


def test_manifest_of_pairs(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    rows = run_of("a", "10", "11")["rows"]
    (tmp_path / "a_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_script("compare_runs.py", path, "--results_dir", tmp_path, "--html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    tables = json.loads(page.split('id="data">')[1].split("</script>")[0])["tables"]
    assert [title for title, _ in tables] == ["", RAW, str(path), str(path)]
    samples = ["num_samples", "8"], ["pass_at_1", "0.25"], ["interval", "0.1 to 0.5"]
    assert tables[2][1] == [["candidates", "number"], *samples, ["left out: flaky", "2"]]
    assert tables[3][1] == [
        ["pairs", "right_over_wrong", "stop"],
        ["pairs", "3", "0"],
        ["rejected_outcomes", "2 failed, 1 syntax", "-"],
    ]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps(MANIFEST | {"kinds": 3}), '{"kinds": {}}'])
def test_broken_manifest(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"manifest\.json is not of make_pairs\.py: "):
        pass_at_k.candidates([path])


# ---- curves of GRPO and DPO ----


def test_curves_of_grpo_dpo_and_actor_critic(tmp_path, figures):
    """GRPO's x are completions, DPO's steps; what falls below 0 is in its panel; null is left out."""
    grpo = {"batch_size": 4, "num_completions": 32, "avg_base_reward": 0.5, "any_passed": 0.75, "flat": 0.25}
    dpo = {"loss": 0.5, "accuracy": 0.875, "margin": 1.5, "change_chosen": -0.1, "change_rejected": -2.0}
    runs, logs = [], []
    critic = {"batch_size": 8, "value_loss": 0.5, "explained_variance": -0.25}
    for name, row in ("grpo", grpo), ("dpo", dpo), ("actor_critic", critic):
        folder = tmp_path / f"my_{name}"
        folder.mkdir()
        with open(folder / f"{name}_train_log.jsonl", "w") as file:
            for part in row, row, {"batch_size": 8, "explained_variance": None} if row is critic else {}:
                file.write(json.dumps(part | {"seconds": 9}) + "\n")
        runs.append(compare_runs.training_run(folder))
        logs.append(compare_runs.read_log(runs[-1]))
    assert [run["method"] for run in runs] == ["GRPO", "DPO", "ACTOR-CRITIC"]
    assert {"GRPO", "DPO", "ACTOR-CRITIC"} <= report.METHODS.keys()
    report.plot_learning_curves(runs, logs, "unused.png")
    drawn = {}
    for axes in figures[0].axes:
        line = next(line for line in axes.lines if len(line.get_xdata()))
        drawn[axes.get_title()] = (axes.get_xlabel(), *map(list, line.get_data()))
        low = axes.get_ylim()[0]
        assert low < min(line.get_ydata()) < 0 or low == 0 <= min(line.get_ydata())
    sampled, steps = ("sampled completions", [32, 64]), ("steps", [1, 2])
    assert drawn == {
        "pass rate (%)": (*sampled, [50] * 2),
        "tasks with a passing sample (%)": (*sampled, [75] * 2),
        "tasks whose samples are rewarded alike (%)": (*sampled, [25] * 2),
        "critic: loss": ("sampled completions", [8, 16], [0.5] * 2),
        "critic: explained variance (%)": ("sampled completions", [8, 16], [-25] * 2),
        "DPO: pairs in the right order (%)": (*steps, [87.5] * 2),
        "DPO: margin": (*steps, [1.5] * 2),
        "DPO: log-prob of chosen since SFT (per token)": (*steps, [-0.1] * 2),
        "DPO: log-prob of rejected since SFT (per token)": (*steps, [-2] * 2),
    }
