"""Compare evaluated runs: one table and two pictures.

    python compare_runs.py                                  # everything in results/
    python compare_runs.py a_metrics.json other_results     # these files and folders only
    python compare_runs.py checkpoints/my_run results       # with the curves of a run that still trains

Reads   results/*_metrics.json and, where it still exists, the training log in each run's adapter folder
Writes  results.md, pass_vs_length.png and learning_curves.png (REINFORCE and PPO) in --results_dir
"""

import argparse
import json
import math
import re
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # draws without a display
import matplotlib.pyplot as plt  # noqa: E402

REQUIRED = {"exp_name": str, "num_tasks": int, "num_pass": int, "pass_at_1": float, "avg_gen_len": float}
OPTIONAL = {"method": str, "model_path": str, "data_path": str, "pass_at_1_truncated": float}
METHODS = {"base": "s", "SFT": "D", "REINFORCE": "^", "PPO": "o"}  # in the order of the rows: marker
LOGS = {"SFT": "sft_train_log.jsonl", "REINFORCE": "rl_train_log.jsonl", "PPO": "ppo_train_log.jsonl"}
PANELS = {  # label in the learning curves: factor, the field in the log of PPO or REINFORCE
    "reward": (1, "avg_reward", "reward"),
    "pass rate (%)": (100, "avg_base_reward", "base_reward"),
    "length (tokens)": (1, "avg_gen_len", "gen_len"),
    "approximate KL": (1, "approx_kl"),  # from the policy that sampled: how far one update moved
    "clipped (%)": (100, "clip_frac"),
}
RANGES = (("num_tasks", 1, 1e9), ("pass_at_1", 0, 1), ("pass_at_1_truncated", 0, 1), ("avg_gen_len", 0, 1e9))
HEADER = (
    "model",
    "method",
    "pass@1 raw",
    "pass@1 truncated",
    "passed / tasks",
    "average length (tokens)",
    "wall time (training)",
)
COLORS = plt.get_cmap("tab10").colors


# ---- reading ----
def read_metrics(path):
    """One metrics file as a dict, with None for optional fields it lacks; SystemExit if it is broken."""
    field = "the file"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        for field, kind in {**REQUIRED, **OPTIONAL}.items():
            run[field] = None if field in OPTIONAL and run.get(field) is None else kind(run[field])
        for field, low, high in RANGES:
            if run[field] is not None and not low <= run[field] <= high:  # NaN is in no range
                raise ValueError(f"{run[field]} is not between {low} and {high:g}")
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise SystemExit(
            f"{path}: {field} is missing or broken ({type(error).__name__}: {error}). "
            "Evaluate that run again or move the file away."
        )
    return run


def read_log(run):
    """The records of the run's training log; none for the base model or where the folder has moved."""
    try:
        path = Path(run["model_path"]) / LOGS[run["method"]]
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except (KeyError, OSError, TypeError):
        return []
    records = []
    for line in lines:
        try:
            records.append(dict(json.loads(line)))
        except (TypeError, ValueError):  # half-written: the training still runs, or was killed here
            continue
    return records


def training_run(folder):
    """What the curves need of a run without metrics; None where folder holds no log of REINFORCE or PPO."""
    for method in ("REINFORCE", "PPO"):
        if (folder / LOGS[method]).is_file():
            return {"exp_name": folder.resolve().name, "method": method, "model_path": str(folder)}
    return None


def first_number(record, fields):
    """The first finite number among these fields of a log record, or None."""
    values = [record.get(field) for field in fields]
    return next((value for value in values if is_number(value)), None)


def is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


# ---- table ----
def duration(seconds):
    """m:ss, or h:mm:ss from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def table_row(run, log):
    """The cells of one run, in the order of HEADER; "-" where the files do not say."""
    truncated = run["pass_at_1_truncated"]
    seconds = log[-1].get("seconds") if log else None
    return (
        run["exp_name"],
        run["method"] or "-",
        f"{100 * run['pass_at_1']:.1f} %",
        "-" if truncated is None else f"{100 * truncated:.1f} %",
        f"{run['num_pass']} / {run['num_tasks']}",
        f"{run['avg_gen_len']:.1f}",
        duration(seconds) if is_number(seconds) else "-",
    )


def markdown_table(rows):
    """Aligned, so that it reads well on a terminal too: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows)]
    aligns = "<<" + ">" * (len(HEADER) - 2)
    rule = ["-" * width if align == "<" else "-" * (width - 1) + ":" for width, align in zip(widths, aligns)]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths)) + " |"
        for row in [HEADER, rule, *rows]
    )


def notes(runs):
    """What a reader must know before comparing two rows."""
    lines = []
    for field in ("data_path", "num_tasks"):
        values = sorted({run[field] for run in runs if run[field] is not None})
        if len(values) > 1:
            lines.append(f"Warning: these runs are not comparable, {field} differs: {values}.")
    sizes = " or ".join(str(n) for n in sorted({run["num_tasks"] for run in runs}))
    scores = [(run["pass_at_1"], run["num_tasks"]) for run in runs]
    error = max(math.sqrt(p * (1 - p) / n) for p, n in scores)
    lines.append(
        f"With {sizes} tasks one pass@1 carries a standard error of up to {100 * error:.1f} points "
        "(sqrt(p (1 - p) / n)), the difference of two rows 1.4 times that: below twice this, read nothing "
        "into a difference without a paired test."
    )
    return "\n\n".join(lines)


# ---- pictures ----
def legend_name(i, run):
    """Begins with the number of the run: matplotlib hides names that begin with "_". "$" would be maths."""
    return f"{i + 1}  {run['exp_name']}".replace("$", r"\$")


def finish(figure, path):
    """Light grid, and the legend outside on the right, where it hides no point."""
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def place_label(spot, taken, scale):
    """First place around spot (pixels) that is 11 points clear of all in taken; the offset in points."""
    for radius in (14, 21, 29, 38):
        for angle in np.arange(0, 2 * np.pi, np.pi / 4):
            offset = radius * np.array([np.cos(angle), np.sin(angle)])
            if all(math.dist(spot + scale * offset, other) > 11 * scale for other in taken):
                taken.append(spot + scale * offset)
                return offset
    return offset  # too crowded: better on top of something than missing


def plot_pass_vs_length(runs, path):
    """One filled marker per run (raw), joined to a hollow one (truncated); numbers refer to the legend."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), dpi=150)
    lengths = np.array([run["avg_gen_len"] for run in runs])
    raws = np.array([100 * run["pass_at_1"] for run in runs])
    cuts = np.array(
        [
            raw if run["pass_at_1_truncated"] is None else 100 * run["pass_at_1_truncated"]
            for run, raw in zip(runs, raws)
        ]
    )
    for values, set_limits in ((lengths, axes.set_xlim), (np.append(raws, cuts), axes.set_ylim)):
        pad = max(0.12 * np.ptp(values), 3)  # 3 tokens or points, where all values are equal
        set_limits(values.min() - pad, values.max() + pad)

    spots, tops = (axes.transData.transform(np.stack([lengths, y], axis=1)) for y in (raws, cuts))  # pixels
    scale = figure.dpi / 72  # pixels per point
    taken = list(np.linspace(spots, tops, 30).reshape(-1, 2))  # no label on a marker or a joining line
    for i, (run, x, raw, cut) in enumerate(zip(runs, lengths, raws, cuts)):
        color = COLORS[i % len(COLORS)]
        style = {"marker": METHODS.get(run["method"], "X"), "color": color, "linestyle": "none"}
        # Of several runs in one spot the first are drawn larger, so that each still shows as a ring.
        size = 7 + 4 * sum(math.dist(spots[i], later) < 8 for later in spots[i + 1 :])
        if run["pass_at_1_truncated"] is not None:
            axes.plot([x, x], [raw, cut], color=color, linewidth=0.8)
            axes.plot(x, cut, markerfacecolor="none", markersize=size + 3, **style)
        axes.plot(x, raw, markeredgecolor="white", markersize=size, **style)
        axes.plot([], [], label=legend_name(i, run), **style)
        axes.annotate(
            str(i + 1),
            (x, raw),
            place_label(spots[i], taken, scale),
            textcoords="offset points",
            ha="center",
            va="center",
            color=color,
            fontsize=9,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 0},
        )
    axes.plot([], [], "o", color="grey", label="filled: raw")
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="hollow: truncated")
    axes.set_xlabel("average completion length (tokens)")
    axes.set_ylabel("pass@1 (%)")
    finish(figure, path)


def learning_curves(log):
    """{panel: (sampled completions, values)}, without the records and panels that have no number."""
    counts = [first_number(record, ("num_completions", "batch_size")) or 1 for record in log]
    curves = {}
    for panel, (factor, *fields) in PANELS.items():
        values = [first_number(record, fields) for record in log]
        points = [(x, factor * y) for x, y in zip(np.cumsum(counts), values) if y is not None]
        if points:
            curves[panel] = np.array(points).T  # (2, number of points)
    return curves


def moving_average(curve):
    """A curve (2, n) averaged over a tenth of its points, each average at its last point."""
    samples, values = curve
    window = math.ceil(len(values) / 10)
    return np.stack([samples[window - 1 :], np.convolve(values, np.ones(window) / window, "valid")])


def draw_curve(axes, curves, color):
    """The points of one run and their moving average; of several seeds, theirs and the mean of these."""
    thin = curves
    bold = moving_average(curves[0])
    if len(curves) > 1:
        thin = [moving_average(curve) for curve in curves]
        shortest = min(curve.shape[1] for curve in thin)  # a seed that still trains
        bold = np.mean([curve[:, :shortest] for curve in thin], axis=0)
    marker = "o" if bold.shape[1] == 1 else None
    for curve in thin:
        axes.plot(*curve, color=color, linewidth=0.7, alpha=0.25, marker=marker)
    axes.plot(*bold, color=color, linewidth=1.8, marker=marker)


def plot_learning_curves(runs, logs, path):
    """What the training logs say of each update, over the number of completions sampled so far.

    Runs whose names differ in "_seed1" at their end only are drawn as one.
    """
    curves = [learning_curves(log) for log in logs]
    panels = [panel for panel in PANELS if any(panel in curve for curve in curves)]
    if not panels:
        print(f"No REINFORCE or PPO training log found: {path} not drawn.")
        return
    groups = {}  # name: the numbers of its runs
    for i, run in enumerate(runs):
        if curves[i]:
            groups.setdefault(re.sub(r"_seed\d+$", "", run["exp_name"]), []).append(i)
    has_seeds = any(len(members) > 1 for members in groups.values())
    size = (6.5, 0.7 + 1.9 * len(panels))
    figure, grid = plt.subplots(len(panels), 1, figsize=size, dpi=150, sharex=True, squeeze=False)
    for n, (name, members) in enumerate(groups.items()):
        first = members[0]
        label = f"{len(members)} seeds of {name}" if has_seeds else legend_name(first, runs[first])
        color = COLORS[(n if has_seeds else first) % len(COLORS)]  # of single runs: as in the other picture
        grid[0, 0].plot([], [], color=color, linewidth=1.8, label=label)
        for axes, panel in zip(grid[:, 0], panels):
            found = [curves[i][panel] for i in members if panel in curves[i]]
            if found:
                draw_curve(axes, found, color)
    for axes, panel in zip(grid[:, 0], panels):
        axes.set_ylabel(panel)
        if panel != "reward":  # a length penalty can make it negative
            axes.set_ylim(bottom=0)
    title = "faint: single updates, bold: moving average over a tenth of the run"
    if has_seeds:
        title = "moving average over a tenth of each run; faint: single seeds, bold: their mean"
    grid[0, 0].set_title(title, fontsize=9)
    grid[-1, 0].set_xlabel("sampled completions")
    grid[-1, 0].set_xlim(left=0)
    figure.align_ylabels()
    finish(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Table and pictures of all evaluated runs.")
    parser.add_argument(
        "paths",
        nargs="*",
        help="*_metrics.json files, folders of them, or adapter folders with a log (default: results_dir)",
    )
    parser.add_argument("--results_dir", default="results", help="where to write (default: %(default)s)")
    args = parser.parse_args()

    sources = [Path(path) for path in args.paths or [args.results_dir]]
    files = []
    training = []  # runs that have curves, but no scores and so no row
    for path in sources:
        if run := training_run(path):
            training.append(run)
        else:
            files += [path] if path.suffix == ".json" else sorted(path.glob("*_metrics.json"))
    if not files and not training:
        names = ", ".join(map(str, sources))
        raise SystemExit(f"No *_metrics.json or training log in {names}: run eval_humaneval.py first.")
    runs = [read_metrics(file) for file in files]
    runs.sort(key=lambda run: ((*METHODS, run["method"]).index(run["method"]), run["exp_name"]))
    evaluated = [Path(run["model_path"]).resolve() for run in runs if run["model_path"]]
    training = [run for run in training if Path(run["model_path"]).resolve() not in evaluated]
    logs = [read_log(run) for run in runs + training]

    results_dir = Path(args.results_dir)
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        if runs:
            text = (
                markdown_table([table_row(run, log) for run, log in zip(runs, logs)]) + "\n\n" + notes(runs)
            )
            print(text)
            (results_dir / "results.md").write_text(text + "\n", encoding="utf-8")
            plot_pass_vs_length(runs, results_dir / "pass_vs_length.png")
        plot_learning_curves(runs + training, logs, results_dir / "learning_curves.png")
    except OSError as error:
        raise SystemExit(f"Cannot write to {results_dir}: {error.strerror}. Choose another --results_dir.")
