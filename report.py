"""Plots and the HTML page of compare_runs.py.

report.html is report_template.html with all tables, plots and completions in it: it needs no network. What
models wrote goes into it as data, and the page shows it as text.
"""

import base64
import hashlib
import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

from data.scores import ENDINGS, interval_of
from data.tasks import read_tasks

matplotlib.use("Agg")  # draws without a display
import matplotlib.pyplot as plt

plt.rcParams.update({"savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True})
plt.rcParams.update({"axes.grid": True, "axes.axisbelow": True, "grid.color": "0.9", "legend.frameon": False})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.fontsize": 9})

METHODS = {"base": "0.5", "SFT": "C2", "REINFORCE": "C1", "PPO": "C0"}  # colour; in this order
METHODS |= {"ACTOR-CRITIC": "C4", "GRPO": "C9", "DPO": "C6", "DQN": "C5"}
PANELS: dict[str, tuple] = {  # label in the learning curves: factor, the names of its field in the logs
    "pass rate (%)": (100, "avg_base_reward", "base_reward"),
    "dev pass@1 (%)": (100, "dev_pass_at_1"),  # greedy, with --dev_path
    "length (tokens)": (1, "avg_gen_len", "gen_len"),
    "approximate KL": (1, "approx_kl"),  # from the policy that sampled: how far one update moved
    "clipped (%)": (100, "clip_frac"),
    "tasks with a passing sample (%)": (100, "any_passed"),
    "tasks whose samples are rewarded alike (%)": (100, "flat"),  # from these GRPO learns nothing
    "critic: loss": (1, "value_loss"),
    "critic: explained variance (%)": (100, "explained_variance"),  # below 0: worse than a constant
    "DPO: pairs in the right order (%)": (100, "accuracy"),
    "DPO: margin": (1, "margin"),
    "DPO: log-prob of chosen since SFT (per token)": (1, "change_chosen"),  # may fall, too
    "DPO: log-prob of rejected since SFT (per token)": (1, "change_rejected"),
}
DQN = "avg_return", "train_greedy", "test_greedy", "td_loss", "epsilon", "q_mean"  # see docs/dqn.md
PANELS |= {f"DQN: {name}": (1, name) for name in DQN}
OUTCOMES = {  # in the order of the bars: label, colour
    "passed": ("passed", "#2e9e5b"),
    "failed": ("wrong answer", "#e0a030"),
    "exception": ("exception", "#d9622b"),
    "syntax": ("syntax error", "#b13c4f"),
    "timeout": ("timeout", "#7a4fa3"),
    "memory": ("out of memory", "#4a6fb5"),
    "violation": ("violation", "#555555"),
}
CAPTIONS = {
    "scores.png": "pass@1 and length. Filled: as generated, with 95 % interval. Hollow: truncated.",
    "outcomes.png": "What became of the completions. Thick bars: as generated; thin bars: cut.",
    "learning_curves.png": "Training: pass rate, length and size of the updates, from the logs.",
    "pass_at_k.png": "What k completions of a task achieve: means over tasks, with 95 % intervals.",
}
SHOWN_SAMPLES = 5  # of each task and run; the files hold all


def name_of(path) -> str:
    """A path as the text of its UTF-8 bytes, whatever the locale."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def path_of(name: str) -> Path:
    """The path of such a text: name_of backwards."""
    return Path(os.fsdecode(name.encode("utf-8", "surrogateescape")))


# ---- plots ----
def is_number(value) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15  # NaN is not, nor is what no float holds


def as_text(name: str) -> str:
    """A name as matplotlib shows it literally: "$" is no maths, and a leading "_" does not hide it."""
    return " " + name.replace("$", r"\$").encode(errors="replace").decode()


def finish(figure, path):
    """Write the figure; return the path."""
    figure.savefig(path)
    plt.close(figure)
    return path


def plot_scores(runs, path):
    """A row per run: pass@1 raw (filled, with its interval) and truncated (hollow); beside it the length."""
    size = (8, 1.1 + 0.3 * len(runs))
    figure, (scores, lengths) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 1))
    bar, hollow = {"linewidth": 7, "alpha": 0.25}, {"markersize": 10, "markerfacecolor": "none"}
    for y, run in enumerate(runs):
        color = METHODS.get(run["method"], "black")
        raw, cut = 100 * run["pass_at_1"], run["pass_at_1_truncated"]
        if limits := interval_of(run):
            scores.plot([100 * limit for limit in limits], [y, y], color=color, solid_capstyle="butt", **bar)
        if cut is not None:
            scores.plot([raw, 100 * cut], [y, y], color=color, linewidth=0.8)
            scores.plot(100 * cut, y, "o", color=color, **hollow)
        scores.plot(raw, y, "o", color=color, markersize=5)
        if run["avg_gen_len"] is not None:
            lengths.bar_label(lengths.barh(y, run["avg_gen_len"], 0.5, color=color), fmt="%.0f", padding=3)
    scores.plot([], [], "o", color="0.3", markersize=5, label="raw: as generated")
    scores.plot([], [], color="0.3", label="its 95 % interval", **bar)
    scores.plot([], [], "o", color="0.3", label="truncated: cut after the answer", **hollow)
    figure.legend(loc="outside upper center", ncols=3)
    scores.set_yticks(range(len(runs)), [as_text(run["exp_name"]) for run in runs])
    scores.set(xlim=(-2, 102), ylim=(len(runs) - 0.4, -0.6), xlabel="pass@1 (%)")  # the first run on top
    lengths.margins(x=0.25)  # room for the numbers
    lengths.set_xlabel("average length (tokens)")
    return finish(figure, path)


def plot_outcomes(runs, path):
    """What became of the completions of each run: as generated, and the thinner bar below, truncated."""
    runs = [run for run in runs if run.get("outcomes")]
    if not runs:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.1 + 0.42 * len(runs)))
    bars = {}  # name of an outcome: one of its bars, for the legend
    for y, run in enumerate(runs):
        for field, offset, height in ("outcomes", 0, 0.42), ("outcomes_truncated", 0.33, 0.2):
            counts, left = run.get(field) or {}, 0
            for name in sorted(counts, key=list(OUTCOMES).index):
                width = 100 * counts[name] / sum(counts.values())
                bars[name] = axes.barh(y + offset, width, height, left, color=OUTCOMES[name][1])
                left += width
    names = [name for name in OUTCOMES if name in bars]
    labels = [OUTCOMES[name][0] for name in names]
    figure.legend([bars[name] for name in names], labels, loc="outside upper center", ncols=4)
    axes.set_yticks(range(len(runs)), [as_text(run["exp_name"]) for run in runs])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="completions (%); thick bars: as generated, thin bars: truncated")
    return finish(figure, path)


def first_number(record: dict, fields) -> float | None:
    """The first finite number among these fields of a log record, or None."""
    return next((record[field] for field in fields if is_number(record.get(field))), None)


def learning_curves(log: list[dict]) -> dict[str, np.ndarray]:
    """{panel: (sampled completions, values)}, without the records and panels that have no number."""
    counts = [first_number(record, ("num_completions", "batch_size")) or 1 for record in log]
    curves = {}
    for panel, (factor, *fields) in PANELS.items():
        values = [first_number(record, fields) for record in log]
        points = [(x, factor * y) for x, y in zip(np.cumsum(counts), values) if y is not None]
        if points:
            curves[panel] = np.array(points).T  # (2, number of points)
    return curves


def moving_average(curve: np.ndarray) -> np.ndarray:
    """A curve (2, n), each value averaged with those before it, as many as a tenth of the run has."""
    samples, values = curve
    window = np.ones(math.ceil(len(values) / 10))
    sums, counts = (np.convolve(each, window)[: len(values)] for each in (values, np.ones(len(values))))
    return np.stack([samples, sums / counts])


def draw_curve(axes, curves, color):
    """The moving average of one run over its single updates; of several seeds, their mean and range."""
    smooth = [moving_average(curve) for curve in curves]
    shortest = min(curve.shape[1] for curve in smooth)  # a seed that still trains
    samples, values = np.stack([curve[:, :shortest] for curve in smooth], axis=1)  # (seeds, shortest) each
    if len(curves) == 1:
        axes.plot(*curves[0], color=color, linewidth=0.7, alpha=0.25)
    x, low, high = samples.mean(axis=0), values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axes.plot(x, values.mean(axis=0), color=color, linewidth=1.8, marker="o" if shortest == 1 else None)


def plot_learning_curves(runs, logs, path):
    """What the training logs say of each update, over the number of completions sampled so far.

    Runs whose names differ only in "_seed1" at the end are drawn as one.
    """
    curves = [learning_curves(log) for log in logs]
    panels = [panel for panel in PANELS if any(panel in curve for curve in curves)]
    if not panels:
        print(f"No training log of RL or DPO found: {path} not drawn.")
        return None
    groups = {}  # name: the curves of its seeds
    for run, curve in zip(runs, curves):
        if curve:
            groups.setdefault(re.sub(r"_seed\d+$", "", run["exp_name"]), []).append(curve)
    num_rows = math.ceil(len(panels) / 2)
    figure, grid = plt.subplots(num_rows, 2, figsize=(9, 0.6 + 2.4 * num_rows), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels):
        for i, (name, seeds) in enumerate(groups.items()):
            color = f"C{i % 10}"
            label = as_text(name) + (f" ({len(seeds)} seeds)" if len(seeds) > 1 else "")
            axes.plot([], [], color=color, linewidth=1.8, label=label)
            if drawn := [seed[panel] for seed in seeds if panel in seed]:
                draw_curve(axes, drawn, color)
        axes.set_title(panel, fontsize=10)
        xlabel = "steps" if panel.startswith("DPO") else "sampled completions"
        axes.set(xlabel=xlabel, xlim=(0, None), ylim=(None if axes.dataLim.y0 < 0 else 0, None))
    ncols = 1 if len(groups) <= 4 else 2  # low enough to stay below the curves
    grid[0, 0].legend(loc="lower right", ncols=ncols, fontsize=7, handlelength=1, frameon=True)
    smoothing = "Lines: mean over the last tenth of a run's updates (fewer at its start)"
    figure.suptitle(f"{smoothing}. Faint: single updates. Bands: lowest to highest seed.", fontsize=9)
    return finish(figure, path)


# ---- page ----
def token_lines(source: str) -> list[list[list[str]]]:
    """The lines of a source, each a list of [class of pygments, text], for the page to colour."""
    lines = [[]]
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(source):
        for i, part in enumerate(text.split("\n")):
            if i:
                lines.append([])
            if part:
                lines[-1].append([STANDARD_TYPES.get(kind, ""), part])
    return lines


def data_of(run: dict) -> str | None:
    """The hash of the task file that a run was evaluated on, if its metrics say so."""
    return (run.get("protocol") or {}).get("dataset_sha256")


def tasks_of(run: dict) -> dict[str, dict]:
    """{task_id: task} of a run's task file, if that is still what it was evaluated on."""
    with suppress(OSError):
        path = path_of(run["data_path"] or "")
        if data_of(run) == hashlib.sha256(path.read_bytes()).hexdigest():
            return {task["task_id"]: task for task in read_tasks(path, run["protocol"].get("prompt_format"))}
    return {}


def shown(row: dict) -> dict:
    """What the page shows of one completion, as a dict."""
    completion = row.get("completion", "")
    kept = completion[: row.get("cut_at", len(completion))]
    # The newline at the beginning ends the last line of the prompt; "cut" lines are the answer.
    entry = {"code": completion.removeprefix("\n"), "is_cut": kept != completion}
    entry["cut"] = kept.removeprefix("\n").count("\n") + 1 if kept else 0
    names = "outcome", "message", "passed", "passed_base", "pass_rate"
    fields = [f"{name}{ending}" for name in names for ending in ENDINGS]
    return entry | {field: row.get(field) for field in ("gen_len", *fields)}


def of_one_task(rows: list[dict]) -> dict:
    """What the page reads of a run's completions of one task: counts of all, and the first few."""
    counts = {}
    for field in "passed", "passed_truncated":
        counts[field] = sum(row[field] for row in rows) if all(field in row for row in rows) else None
    return {"n": len(rows), **counts, "shown": [shown(row) for row in rows[:SHOWN_SAMPLES]]}


def page_data(runs: list[dict], tables: list, notes: list[str], pairs: list[dict]) -> dict:
    """What the page's script reads, as a dict: see report_template.html; tables: [title, table] of each."""
    is_mixed = len({data_of(run) for run in runs} - {None}) > 1  # of two task files with the same ids
    tasks = {}
    for i, run in enumerate(runs):
        texts = {name: known["prompt"].rstrip() for name, known in tasks_of(run).items()}
        for row in run["rows"] or ():
            name = row["task_id"]
            empty = {"id": name, "prompt": None, "level": row.get("difficulty"), "runs": [[] for _ in runs]}
            task = tasks.setdefault((name, data_of(run) if is_mixed else None), empty)
            task["prompt"] = texts.get(name, task["prompt"])
            task["runs"][i].append(row)
    for task in tasks.values():
        task["runs"] = [of_one_task(rows) for rows in task["runs"]]
    sources = {task["prompt"] for task in tasks.values()} - {None}
    sources |= {e["code"] for task in tasks.values() for run in task["runs"] for e in run["shown"]}
    return {
        "tables": tables,
        "notes": notes,
        "runs": [run["exp_name"] for run in runs],
        "pairs": pairs,
        "outcomes": {name: label for name, (label, _) in OUTCOMES.items()},
        "tasks": list(tasks.values()),
        "codes": {source: token_lines(source) for source in sorted(sources)},
    }


def write_report(path, plots, runs, tables, notes, pairs):
    """Write the page to `path`, with the plots of these paths (or None) and with page_data's arguments."""
    page = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    figures = ""
    for plot in filter(None, plots):
        image = base64.b64encode(plot.read_bytes()).decode()
        caption = CAPTIONS[plot.name]
        figures += f'<figure><div><img alt="{caption}" src="data:image/png;base64,{image}"></div>'
        figures += f"<figcaption>{caption}</figcaption></figure>\n"
    # In JSON, < can only stand in a string; escaped, no text can end the element that holds it.
    data = json.dumps(page_data(runs, tables, notes, pairs)).replace("<", "\\u003c")
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for marker, text in {"SCRIPT_SHA256": digest, "FIGURES": figures, "DATA": data}.items():
        page = page.replace("{{" + marker + "}}", text)
    path.write_text(page, encoding="utf-8")
