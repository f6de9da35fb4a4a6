"""Pictures and the HTML page of compare_runs.py.

report.html is report_template.html with everything in it: tables, pictures and completions, as one file that
needs no network. What models wrote goes into it as data, and the page shows it as text.
"""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES
from scipy.stats import binomtest

from sandbox import read_tasks

matplotlib.use("Agg")  # draws without a display
import matplotlib.pyplot as plt

METHODS = {"base": "s", "SFT": "D", "REINFORCE": "^", "PPO": "o"}  # in the order of the rows: marker
PANELS: dict[str, tuple] = {  # label in the learning curves: factor, the field in the log of PPO or REINFORCE
    "reward": (1, "avg_reward", "reward"),
    "pass rate (%)": (100, "avg_base_reward", "base_reward"),
    "dev pass@1 (%)": (100, "dev_pass_at_1"),  # greedy, with --dev_path
    "length (tokens)": (1, "avg_gen_len", "gen_len"),
    "approximate KL": (1, "approx_kl"),  # from the policy that sampled: how far one update moved
    "clipped (%)": (100, "clip_frac"),
}
OUTCOMES = {  # in the order of the bars: label, colour
    "passed": ("passed", "#2e9e5b"),
    "failed": ("wrong answer", "#e0a030"),
    "exception": ("exception", "#d9622b"),
    "syntax": ("syntax error", "#b13c4f"),
    "timeout": ("timeout", "#7a4fa3"),
    "memory": ("out of memory", "#4a6fb5"),
    "violation": ("violation", "#555555"),
}
COLORS = plt.get_cmap("tab10").colors


# ---- pictures ----
def first_number(record: dict, fields) -> float | None:
    """The first finite number among these fields of a log record, or None."""
    values = [record.get(field) for field in fields]
    return next((value for value in values if is_number(value)), None)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def interval(run: dict, ending: str = "") -> list[float] | None:
    """95 % interval [low, high] of pass@1: the recorded one, else Wilson's; None if the files do not say."""
    recorded, passed = run.get(f"interval{ending}"), run.get(f"num_pass{ending}")
    if recorded or passed is None or run.get("num_samples") not in (None, run["num_tasks"]):
        return recorded
    found = binomtest(passed, run["num_tasks"]).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def legend_name(i: int, run: dict) -> str:
    """Begins with the number of the run: matplotlib hides names that begin with "_". "$" would be maths."""
    return f"{i + 1}  {run['exp_name']}".replace("$", r"\$")


def finish(figure, path):
    """Write it with a light grid, the legend outside on the right, where it hides no point; the path."""
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path


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
    limits = [100 * np.array(interval(run) or [run["pass_at_1"]] * 2) for run in runs]
    for values, set_limits in ((lengths, axes.set_xlim), (np.append(cuts, limits), axes.set_ylim)):
        pad = max(0.12 * np.ptp(values), 3)  # 3 tokens or points, where all values are equal
        set_limits(values.min() - pad, values.max() + pad)

    spots, tops = (axes.transData.transform(np.stack([lengths, y], axis=1)) for y in (raws, cuts))  # pixels
    scale = figure.dpi / 72  # pixels per point
    taken = list(np.linspace(spots, tops, 30).reshape(-1, 2))  # no label on a marker or a joining line
    for i, (run, x, raw, cut) in enumerate(zip(runs, lengths, raws, cuts)):
        color = COLORS[i % len(COLORS)]
        style = {"marker": METHODS.get(run["method"], "X"), "color": color, "linestyle": "none"}
        axes.vlines(x, *limits[i], color=color, linewidth=6, alpha=0.2)
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
    axes.plot([], [], color="grey", linewidth=6, alpha=0.2, label="bar: its 95 % interval")
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="hollow: truncated")
    axes.set_xlabel("average completion length (tokens)")
    axes.set_ylabel("pass@1 (%)")
    return finish(figure, path)


def plot_outcomes(runs, path):
    """What became of the completions of each run: as generated, and the thinner bar below, truncated."""
    runs = [run for run in runs if run.get("outcomes")]
    if not runs:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.42 * len(runs)), dpi=150)
    for i, run in enumerate(runs):
        for offset, height, counts in (
            (0, 0.42, run["outcomes"]),
            (0.33, 0.2, run.get("outcomes_truncated")),
        ):
            left = 0
            for name in sorted(counts or {}, key=list(OUTCOMES).index):
                width = 100 * counts[name] / sum(counts.values())
                axes.barh(i + offset, width, height, left, color=OUTCOMES[name][1])
                left += width
    shown = {name for run in runs for name in (*run["outcomes"], *(run.get("outcomes_truncated") or ()))}
    for name, (label, color) in OUTCOMES.items():
        if name in shown:
            axes.bar(0, 0, color=color, label=label)
    axes.set_yticks(range(len(runs)), [run["exp_name"].replace("$", r"\$") for run in runs])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("completions (%); thin bars: truncated")
    return finish(figure, path)


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
        return None
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
    return finish(figure, path)


# ---- page ----
CAPTIONS = {
    "pass_vs_length.png": "pass@1 against the average length of a completion. One colour per run: filled as "
    "generated, hollow cut at the first stop word; the bar is the 95 % interval of the former.",
    "outcomes.png": "What became of the completions: thick bars as generated, thin ones cut.",
    "learning_curves.png": "What the training logs say of each update.",
}
SHOWN_SAMPLES = 5  # of each task and run; the files hold all


class Codes(dict):
    """{source: number}; lines() holds the tokens of each, which the page colours."""

    def __missing__(self, source):
        self[source] = len(self)
        return self[source]

    def lines(self):
        """For each source its lines, each a list of [class of pygments, text]."""
        found = []
        for source in self:
            lines = [[]]
            for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(source):
                for i, part in enumerate(text.split("\n")):
                    if i:
                        lines.append([])
                    if part:
                        lines[-1].append([STANDARD_TYPES.get(kind, ""), part])
            found.append(lines)
        return found


def data_of(run: dict) -> str | None:
    """The hash of the task file that a run was evaluated on, where its metrics say so."""
    return (run.get("protocol") or {}).get("dataset_sha256")


def prompts(run):
    """{task_id: prompt} of a run's task file, if that is still what it was evaluated on."""
    try:
        path = Path(run["data_path"] or "")
        if data_of(run) == hashlib.sha256(path.read_bytes()).hexdigest():
            return {task["task_id"]: task["prompt"].rstrip() for task in read_tasks(path)}
    except OSError:
        pass
    return {}


def page_data(runs: list[dict], table: list, notes: str, pairs: list[dict]) -> dict:
    """What the page's script reads, as a dict: see report_template.html."""
    codes = Codes()
    is_mixed = len({data_of(run) for run in runs} - {None}) > 1  # of two task files with the same ids
    tasks = {}
    for i, run in enumerate(runs):
        texts = prompts(run)
        for row in run["rows"] or ():
            name = row["task_id"], data_of(run) if is_mixed else None
            if name not in tasks:
                empty = [{"n": 0, "passed": 0, "passed_truncated": 0, "shown": []} for _ in runs]
                tasks[name] = {"id": name[0], "prompt": None, "runs": empty}
            if name[0] in texts:
                tasks[name]["prompt"] = codes[texts[name[0]]]
            found = tasks[name]["runs"][i]
            found["n"] += 1
            for field in "passed", "passed_truncated":
                known = found[field] is not None and field in row
                found[field] = found[field] + row[field] if known else None
            if len(found["shown"]) < SHOWN_SAMPLES:
                found["shown"].append(shown(row, codes))
    return {
        "table": table,
        "notes": notes,
        "runs": [run["exp_name"] for run in runs],
        "pairs": pairs,
        "outcomes": {name: label for name, (label, _) in OUTCOMES.items()},
        "tasks": list(tasks.values()),
        "codes": codes.lines(),
    }


def shown(row: dict, codes: Codes) -> dict:
    """What the page shows of one completion, as a dict."""
    completion = row.get("completion", "")
    kept = completion[: row.get("cut_at", len(completion))]
    # The newline at the beginning ends the last line of the prompt; "cut" lines stand before the stop word.
    entry = {"code": codes[completion.removeprefix("\n")], "is_cut": kept != completion}
    entry["cut"] = kept.removeprefix("\n").count("\n") + 1 if kept else 0
    fields = "outcome outcome_truncated message message_truncated gen_len passed passed_truncated"
    return entry | {field: row.get(field) for field in fields.split()}


def write_report(path, pictures, runs, table, notes, pairs):
    """Write the page to `path`, with the pictures of these paths and with page_data's arguments."""
    page = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    figures = ""
    for picture in pictures:
        image = base64.b64encode(picture.read_bytes()).decode()
        caption = CAPTIONS[picture.name]
        figures += f'<figure><div><img alt="{caption}" src="data:image/png;base64,{image}"></div>'
        figures += f"<figcaption>{caption}</figcaption></figure>\n"
    # In JSON, < can only stand in a string; escaped, no text can end the element that holds it.
    data = json.dumps(page_data(runs, table, notes, pairs)).replace("<", "\\u003c")
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for marker, text in {"SCRIPT_SHA256": digest, "FIGURES": figures, "DATA": data}.items():
        page = page.replace("{{" + marker + "}}", text)
    path.write_text(page, encoding="utf-8")
