"""What k completions of a task achieve: pass@k, paired tests at each k, and how different the programs are.

compare_runs.py adds these tables and this plot where runs have several completions per task. If n were drawn
and c of them are of one kind, k hold one of that kind with chance 1 - C(n - c, k) / C(n, k). So there is an
unbiased estimate for each k up to n, and none beyond:

    pass@k               the chance of one that passes (Chen et al. 2021, arXiv:2107.03374, equation 1)
    distinct programs    the chances of all distinct programs, summed (Hurlbert 1971, doi:10.2307/1934145)

Programs are distinct if their syntax trees are, once they are cut after the answer and variables are numbered
(data/signature.py). Intervals are a bootstrap over tasks. Two runs are compared on the same tasks, by
flipping the signs of their differences.
"""

import json
import math
from collections import Counter
from functools import cache
from itertools import cycle, product
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import report
from data.scores import by_task
from data.scores import pass_at_k as estimate
from data.signature import signature
from data.tasks import program
from sandbox import stop_with

MEASURES = RAW, CUT, DISTINCT, PASSING = (
    "pass@k (%), as generated",
    "pass@k (%), truncated",
    "distinct programs among k",
    "distinct passing programs among k",
)
KS = 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000  # of the tables, and the n of each run
COLORS = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"  # Okabe and Ito's, for all eyes
MARKERS = "os^DvP*"  # one more than colours, so that 42 lines differ
estimate, signature = cache(estimate), cache(signature)


# ---- estimates ----
def counts(run: dict) -> dict[str, dict[str, list[int]]]:
    """{measure: {task_id: how often each thing was drawn}}, of the measures that the files tell."""
    found = {}
    for measure, field in (RAW, "passed"), (CUT, "passed_truncated"):
        if passed := by_task(run["rows"], field):
            found[measure] = {name: [sum(values)] for name, values in passed.items()}
    tasks, trees = report.tasks_of(run), {}
    for row in run["rows"]:
        if row["task_id"] not in tasks or "completion" not in row:
            return found
        task = tasks[row["task_id"]] | {"whole_program": row.get("whole_program")}
        tree = signature(program(task, row["completion"][: row.get("cut_at")]))
        trees.setdefault(row["task_id"], []).append((tree, row.get("passed_truncated", row["passed"])))
    for name, drawn in trees.items():
        found.setdefault(DISTINCT, {})[name] = [*Counter(tree for tree, _ in drawn).values()]
        found.setdefault(PASSING, {})[name] = [*Counter(tree for tree, passed in drawn if passed).values()]
    return found


def sampled(runs: list[dict]) -> dict[str, dict]:
    """{name: what the functions below read} of the runs with several completions of each task."""
    found = {}
    for run in runs:
        drawn = Counter(row["task_id"] for row in run["rows"] or ())
        if drawn and min(drawn.values()) > 1:
            found[run["exp_name"]] = {"n": min(drawn.values()), "drawn": drawn, "counts": counts(run)}
            found[run["exp_name"]]["gen_len"] = by_task(run["rows"], "gen_len")
    return found


def curve(run: dict, measure: str, ks, names=None) -> np.ndarray:
    """(tasks, ks): the estimates for the tasks of these names, or all; ValueError if one has fewer than k."""
    drawn, counts = run["drawn"], run["counts"][measure]
    names = names or drawn
    return np.array([[sum(estimate(drawn[name], c, k) for c in counts[name]) for k in ks] for name in names])


def factor(measure: str) -> int:
    return 100 if measure in (RAW, CUT) else 1


@cache
def resamples(n: int) -> np.ndarray:
    """(9999, n): the weight of each task in each resample, the same as those of data.scores.over_tasks."""
    drawn = np.random.default_rng(0).integers(0, n, (9999, n))
    return np.stack([np.bincount(row, minlength=n) for row in drawn]) / n


def interval(values: np.ndarray) -> np.ndarray:
    """95 % interval (2, ks) of the means of values (tasks, ks), as over_tasks has it."""
    return np.percentile(resamples(len(values)) @ values, (2.5, 97.5), axis=0)


@cache
def signs(n: int) -> np.ndarray:
    """(patterns, n) of 1 and -1, the first all 1: every pattern if they are few, else random ones."""
    if 2**n < 10_000:
        return np.array([*product((1.0, -1.0), repeat=n)])
    patterns = np.random.default_rng(0).choice((1.0, -1.0), (10_000, n))
    patterns[0] = 1  # what was observed is one of them, so that no p is 0
    return patterns


def p_value(changes: np.ndarray):
    """How often flipped signs make the mean of changes (tasks,) or (tasks, ks) as large: two-sided."""
    sums = np.abs(signs(len(changes)) @ changes)
    return (sums >= sums[0] - 1e-9).mean(axis=0)


# ---- tables ----
def cell(name: str) -> str:
    """A name as a table shows it, whatever is in it."""
    return " ".join(name.replace("|", "\\|").split())


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def cells(values: np.ndarray, measure: str, sign: str = "") -> list[str]:
    """The mean of each column with its interval, which is left out where all tasks are equal."""
    texts, digits = [], 1 if factor(measure) == 100 else 2
    for mean, low, high in factor(measure) * np.vstack([values.mean(axis=0), interval(values)]).T:
        between = f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})" if high - low > 1e-9 else ""
        texts.append(f"{mean:{sign}.{digits}f}{between}")
    return texts


def table(runs: dict[str, dict], pairs: list[dict], measure: str) -> list[list[str]]:
    """A row per run, and one per pair: what changes from the first to the second, with its p."""
    runs = {name: run for name, run in runs.items() if measure in run["counts"]}
    ks = sorted({k for run in runs.values() for k in (*KS, run["n"]) if k <= run["n"]})
    ks = [k for k in ks if k > 1 or measure in (RAW, CUT)]  # one program is always one
    rows = [["model", "per task", *(f"k = {k}" for k in ks)]]
    for name, run in runs.items():
        texts = cells(curve(run, measure, [k for k in ks if k <= run["n"]]), measure)
        rows.append([cell(name), str(run["n"]), *texts])
    for pair in pairs:
        if pair["a"] in runs and pair["b"] in runs:
            a, b = runs[pair["a"]], runs[pair["b"]]
            both = [k for k in ks if k <= min(a["n"], b["n"])]
            change = curve(b, measure, both, a["drawn"]) - curve(a, measure, both)
            texts = [f"{text}, {p_text(p)}" for text, p in zip(cells(change, measure, "+"), p_value(change))]
            rows.append([cell(f"{pair['b']} minus {pair['a']}"), "", *texts])
    return [row + ["-"] * (len(rows[0]) - len(row)) for row in rows]


def lengths(runs: dict[str, dict]) -> list[list[str]]:
    """How lengths spread: over all completions, and among those of one task."""
    rows = [["model", "completions", "10 %", "median", "90 %", "standard deviation within a task"]]
    for name, run in runs.items():
        if tasks := [*run["gen_len"].values()]:
            every = np.concatenate(tasks)
            texts = [f"{length:.0f}" for length in np.percentile(every, (10, 50, 90))]
            spread = np.mean([np.var(task, ddof=1) for task in tasks]) ** 0.5
            rows.append([cell(name), str(len(every)), *texts, f"{spread:.1f}"])
    return rows


def candidates(paths) -> list[list]:
    """[title, table] of each part of the manifest.json of make_pairs.py among paths: what candidates were."""

    def text(value):
        if isinstance(value, dict):
            return ", ".join(f"{text(number)} {name}" for name, number in value.items()) or "-"
        if isinstance(value, list):
            return " to ".join(map(text, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    found = []
    for path in (path for path in paths if Path(path).name == "manifest.json"):
        with stop_with(f"{path} is not of make_pairs.py"):
            manifest = json.loads(Path(path).read_bytes())
            kinds, rows = manifest.pop("kinds"), []
            for part in [*manifest][[*manifest].index("candidates") :]:  # before it: options, sources
                start = "" if part == "candidates" else f"{part.replace('_', ' ')}: "
                rows += [[f"{start}{name}", text(value)] for name, value in manifest[part].items()]
            found.append([report.name_of(path), [["candidates", "number"], *rows]])
            fields = dict.fromkeys(name for kind in kinds.values() for name in kind)
            rows = [[name, *(text(kind[name]) for kind in kinds.values())] for name in fields]
            found.append([report.name_of(path), [["pairs", *kinds], *rows]])
    return found


# ---- plot ----
def plot(runs: dict[str, dict], path):
    """A panel per measure: means over tasks against k, with bands; None if there is nothing to draw."""
    measures = [measure for measure in MEASURES if any(measure in run["counts"] for run in runs.values())]
    if not measures:
        return None
    num_rows = math.ceil(len(measures) / 2)
    figure, grid = plt.subplots(num_rows, 2, figsize=(9, 0.6 + 2.8 * num_rows), squeeze=False)
    for axes in grid.flat[len(measures) :]:
        axes.remove()
    most = max(run["n"] for run in runs.values())
    ticks = [*(k for k in KS if 1.3 * k < most), most]  # their numbers do not touch
    lines = {}  # one of each run, for the legend
    for axes, measure in zip(grid.flat, measures):
        for (name, run), color, marker in zip(runs.items(), cycle(COLORS), cycle(MARKERS)):
            if measure in run["counts"]:
                ks = sorted({*np.geomspace(1, run["n"], 30).round().astype(int).tolist()})
                values = factor(measure) * curve(run, measure, ks)
                axes.fill_between(ks, *interval(values), color=color, alpha=0.15, linewidth=0)
                (lines[name],) = axes.plot(ks, values.mean(axis=0), color=color, marker=marker, markersize=4)
        axes.set_xscale("log")
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)
        axes.set_title(measure, fontsize=10)
        axes.set(xlabel="k", ylim=(0, 103) if factor(measure) == 100 else (0, None))
    labels = [report.as_text(name) for name in lines]
    figure.legend(lines.values(), labels, loc="outside upper center", ncols=min(3, len(lines)))
    return report.finish(figure, path)


def section(runs: list[dict], pairs: list[dict], path) -> tuple[list[list], list[str], Path | None]:
    """([title, table] of each, notes, the plot) of the runs with several completions of each task."""
    found = sampled(runs)
    tables = [[measure, table(found, pairs, measure)] for measure in MEASURES]
    tables = [each for each in [*tables, ["length (tokens)", lengths(found)]] if len(each[1]) > 1]
    tests = sum(", p " in text for _, rows in tables for row in rows for text in row[2:])
    note = (
        f"{tests} differences at some k are tested; if no two runs differed, {tests / 20:.1f} or so of them "
        "would have p < 0.05. Those of two runs at several k rest on the same completions."
    )
    return tables, [note] * bool(tests), plot(found, path)
