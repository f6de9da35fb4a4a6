"""Compare evaluated runs: a table, paired tests of all pairs, pictures and, with --html, a report.

    python compare_runs.py                                  # everything in results/
    python compare_runs.py a_per_task.jsonl other_results   # these files and folders only
    python compare_runs.py checkpoints/my_run results       # with the curves of a run that still trains
    python compare_runs.py --html                           # also results/report.html

Reads   results/*_metrics.json, the *_per_task.jsonl beside each and, where it still exists, the training log
        in the run's adapter folder
Writes  results.md, pairs.jsonl (tasks gained and lost), pass_vs_length.png, outcomes.png and, of REINFORCE
        and PPO, learning_curves.png in --results_dir

Two runs solve the same tasks, so they are compared task by task: by McNemar's exact test (McNemar 1947),
which asks whether chance would gain and lose so unequally many; or, with several completions per task, by a
permutation test, with a bootstrap interval over tasks. What B gains is split: a task that A solves, too, once
its completion is cut at the first stop word is gained only because B stops; for the others B's code is right
where A's was wrong.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

import report
from report import METHODS, data_of, interval, is_number

REQUIRED = {"exp_name": str, "num_tasks": int, "num_pass": int, "pass_at_1": float, "avg_gen_len": float}
OPTIONAL = {
    "method": str,
    "model_path": str,
    "data_path": str,
    "num_samples": int,
    "num_pass_truncated": int,
    "pass_at_1_truncated": float,
    "interval": list,
    "interval_truncated": list,
    "outcomes": dict,
    "outcomes_truncated": dict,
    "protocol": dict,
}
ROW = {"task_id": str, "passed": bool}  # of a *_per_task.jsonl; what other tools write may lack the following
ROW_OPTIONAL = {
    "sample": int,
    "completion": str,
    "cut_at": int,
    "gen_len": int,
    "passed_truncated": bool,
    "outcome": str,
    "outcome_truncated": str,
    "message": str,
    "message_truncated": str,
}
LOGS = {"SFT": "sft_train_log.jsonl", "REINFORCE": "rl_train_log.jsonl", "PPO": "ppo_train_log.jsonl"}
RANGES = (("num_tasks", 1, 1e9), ("pass_at_1", 0, 1), ("pass_at_1_truncated", 0, 1), ("avg_gen_len", 0, 1e9))
HEADER = (
    "model",
    "method",
    "pass@1 raw (95 % interval)",
    "pass@1 truncated",
    "passed",
    "average length (tokens)",
    "wall time (training)",
)


# ---- reading ----
def read_metrics(path):
    """One metrics file as a dict, with None for optional fields it lacks; SystemExit if it is broken."""
    field = "the file"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        for field, kind in {**REQUIRED, **OPTIONAL}.items():
            run[field] = None if field in OPTIONAL and run.get(field) is None else kind(run[field])
            if kind is str and run[field] and (len(run[field].encode()) > 1000 or "\0" in run[field]):
                raise ValueError("too long, or no text")
        if not isinstance((run["protocol"] or {}).get("versions", {}), dict):
            raise ValueError("its versions are no object")
        for field, low, high in RANGES:
            if run[field] is not None and not low <= run[field] <= high:  # NaN is in no range
                raise ValueError(f"{run[field]} is not between {low} and {high:g}")
        for field in "interval", "interval_truncated":
            low, high = run[field] or (0, 1)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{run[field]} is no interval")
        for field in "outcomes", "outcomes_truncated":
            counts = run[field] or {}
            if counts.keys() - report.OUTCOMES.keys() or not all(type(n) is int for n in counts.values()):
                raise ValueError(f"{counts} are not counts of outcomes")
            if counts and not (min(counts.values()) >= 0 and 0 < sum(counts.values()) < 1e9):
                raise ValueError(f"{counts} are not counts of outcomes")
        for field in "num_pass", "num_pass_truncated":
            if not 0 <= (run[field] or 0) <= (run["num_samples"] or run["num_tasks"]):
                raise ValueError(f"{run[field]} of {run['num_samples'] or run['num_tasks']}")
    except (OSError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SystemExit(
            f"{path}: {field} is missing or broken ({type(error).__name__}: {error}). "
            "Evaluate that run again or move the file away."
        )
    return run


def read_rows(path):
    """The rows of a *_per_task.jsonl; SystemExit names the first line that is broken, or there twice."""
    rows, seen, number = [], set(), 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            for field, kind in {**ROW, **ROW_OPTIONAL}.items():
                if type(row[field] if field in ROW else row.get(field, kind())) is not kind:
                    raise TypeError(f"{field} is not {kind.__name__}")
            if not 0 <= row.get("gen_len", 0) < 1e9:
                raise ValueError("gen_len is not between 0 and 1e9")
            row["task_id"].encode()  # half a surrogate pair is no text
            name = row["task_id"], row.get("sample", 0)
            if name in seen:
                raise ValueError(f"{name[0]!r} is there twice")
            seen.add(name)
            rows.append(row)
        if not rows:
            raise ValueError("there is no row in it")
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SystemExit(f"{path}, line {number}: {reason}. Evaluate that run again or move the file away.")
    return rows


def stem_of(path: Path) -> str:
    """What the names of a run's two files have in common."""
    return re.sub(r"_(metrics\.json|per_task\.jsonl)$", "", str(path))


def figures(rows: list[dict]) -> dict:
    """What of a run's metrics follows from its rows; None for what they lack."""
    found = dict.fromkeys(OPTIONAL)
    found |= {"num_tasks": len({row["task_id"] for row in rows}), "num_samples": len(rows)}
    for ending in "", "_truncated":
        rates = pass_rates(rows, f"passed{ending}")
        if rates:
            found[f"num_pass{ending}"] = sum(row[f"passed{ending}"] for row in rows)
            found[f"pass_at_1{ending}"] = sum(rates.values()) / len(rates)
        if all(row.get(f"outcome{ending}") in report.OUTCOMES for row in rows):
            found[f"outcomes{ending}"] = dict(Counter(row[f"outcome{ending}"] for row in rows))
    if all("gen_len" in row for row in rows):
        found["avg_gen_len"] = sum(row["gen_len"] for row in rows) / len(rows)
    return found


def read_run(path):
    """A run from its metrics or its per-task file: its metrics and, in "rows", its completions (or None).

    SystemExit where the two files disagree. A per-task file alone, as other tools write it, is enough.
    """
    stem = stem_of(path)
    metrics_path, rows_path = Path(f"{stem}_metrics.json"), Path(f"{stem}_per_task.jsonl")
    if path != rows_path and not rows_path.exists():
        return {**read_metrics(path), "rows": None}
    rows = read_rows(rows_path)
    found = figures(rows)
    if not metrics_path.exists():
        return {"avg_gen_len": 0.0, **found, "exp_name": Path(stem).name, "rows": rows}
    run = read_metrics(metrics_path)
    for field, value in found.items():
        if value is None or run.get(field) is None:
            continue
        if run[field] != value and not (isinstance(value, float) and math.isclose(run[field], value)):
            raise SystemExit(f"{metrics_path} and {rows_path} disagree on {field}: evaluate that run again.")
    return {**run, "rows": rows}


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


# ---- pairs ----
def pass_rates(rows: list[dict], field: str) -> dict[str, float] | None:
    """{task_id: share of its completions that pass}; None where a row lacks the field."""
    found = {}
    for row in rows:
        found.setdefault(row["task_id"], []).append(row.get(field))
    if any(None in passed for passed in found.values()):
        return None
    return {task_id: sum(passed) / len(passed) for task_id, passed in found.items()}


def compare(a: dict, b: dict) -> dict | None:
    """What changes from run a to run b, as a dict; None where they do not have the same tasks, or no rows.

    "p" is of McNemar's exact test where each task has one completion, else of a permutation test; then
    "interval" is that of the mean change, by a bootstrap over tasks (percentile).
    """
    if not a["rows"] or not b["rows"] or len({data_of(run) for run in (a, b)} - {None}) > 1:
        return None
    before, after = pass_rates(a["rows"], "passed"), pass_rates(b["rows"], "passed")
    if not before or not after or before.keys() != after.keys():
        return None
    change = np.array([after[task_id] - before[task_id] for task_id in before])
    pair = {"a": a["exp_name"], "b": b["exp_name"], "num_tasks": len(change), "change": change.mean().item()}
    pair["gained"] = [task_id for task_id in before if after[task_id] > before[task_id]]
    pair["lost"] = [task_id for task_id in before if after[task_id] < before[task_id]]
    num_changed = len(pair["gained"]) + len(pair["lost"])
    pair["p"] = 1.0  # nothing has changed, or one task alone, which tells nothing
    if len(a["rows"]) == len(b["rows"]) == len(change):
        if num_changed:
            pair["p"] = float(binomtest(len(pair["gained"]), num_changed).pvalue)
    elif len(change) > 1:
        pair["p"] = float(permutation_test((change,), np.mean, permutation_type="samples", rng=0).pvalue)
        limits = [pair["change"]] * 2
        if np.ptp(change) > 0:
            limits = bootstrap((change,), np.mean, method="percentile", rng=0).confidence_interval
        pair["interval"] = [float(limit) for limit in limits]
    cut_before, cut_after = (pass_rates(run["rows"], "passed_truncated") for run in (a, b))
    if cut_before and cut_after:
        pair["change_truncated"] = float(np.mean([cut_after[name] - cut_before[name] for name in before]))
        pair["gained_by_stopping"] = [name for name in pair["gained"] if cut_before[name] >= after[name]]
    return pair


def sentence(pair: dict) -> str:
    """The comparison in words."""
    verdict = "distinguishable from chance" if pair["p"] < 0.05 else "not distinguishable from chance"
    verdict += " (p < 0.001)" if pair["p"] < 0.001 else f" (p = {pair['p']:.2g})"
    change = pair["change"]
    if "interval" in pair:
        low, high = (100 * limit for limit in pair["interval"])
        than = f"{100 * abs(change):.1f} points {'more' if change > 0 else 'less'} often than"
        text = f"{pair['b']} passes {than if change else 'as often as'} {pair['a']} "
        text += f"(95 % interval {low:.1f} to {high:.1f}); {verdict}."
        if change and "change_truncated" in pair:
            code = pair["change_truncated"]
            text += f" Of {100 * change:+.1f}, {100 * (change - code):+.1f} come from stopping and"
            text += f" {100 * code:+.1f} from the code."
        return text
    number = abs(round(change * pair["num_tasks"]))
    how = "more" if change > 0 else "fewer"
    than = f"{number} {how} of {pair['num_tasks']} than" if number else f"as many of {pair['num_tasks']} as"
    split = ""
    if pair["gained"] and "gained_by_stopping" in pair:
        stops = len(pair["gained_by_stopping"])
        split = f" ({stops} only because it stops, {len(pair['gained']) - stops} because the code is right)"
    text = f"{pair['b']} solves {than} {pair['a']}; {verdict}."
    return f"{text} It gains {len(pair['gained'])}{split} and loses {len(pair['lost'])}."


def describe_pairs(runs: list[dict], pairs: list[dict]) -> str:
    """All comparisons in words, as a list in Markdown."""
    lines = [f"- {pair['text']}" for pair in pairs]
    if len(pairs) == 1:
        lines += [f"- {word}: {', '.join(pairs[0][word]) or 'none'}" for word in ("gained", "lost")]
    left_out = len(runs) * (len(runs) - 1) // 2 - len(pairs)
    if left_out:
        lines.append(
            f"- {left_out} pairs are not compared: other tasks, or no *_per_task.jsonl beside the metrics"
        )
    if len(pairs) > 1:
        chance = f"{len(pairs) / 20:.1f}"  # at most: an exact test of few tasks errs on the safe side
        lines.append(
            f"- {len(pairs)} pairs at once: with no difference anywhere, about {chance} would still seem real"
        )
    return "\n".join(lines)


# ---- table ----
def score_cell(run: dict, ending: str = "") -> str:
    """Score and interval in percent; "-" where the files do not say."""
    if run[f"pass_at_1{ending}"] is None:
        return "-"
    limits = interval(run, ending)
    between = f" ({100 * limits[0]:.1f} to {100 * limits[1]:.1f})" if limits else ""
    return f"{100 * run[f'pass_at_1{ending}']:.1f} %{between}"


def duration(seconds) -> str:
    """m:ss, or h:mm:ss from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def table_row(run: dict, log: list[dict]) -> tuple[str, ...]:
    """The cells of one run, in the order of HEADER; "-" where the files do not say."""
    seconds = log[-1].get("seconds") if log else None
    return (
        " ".join(run["exp_name"].replace("|", "\\|").split()),
        run["method"] or "-",
        score_cell(run),
        score_cell(run, "_truncated"),
        f"{run['num_pass']} / {run.get('num_samples') or run['num_tasks']}",
        f"{run['avg_gen_len']:.1f}",
        duration(seconds) if is_number(seconds) else "-",
    )


def markdown_table(rows: list) -> str:
    """Aligned, so that it reads well on a terminal too: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows)]
    aligns = "<<" + ">" * (len(HEADER) - 2)
    rule = ["-" * width if align == "<" else "-" * (width - 1) + ":" for width, align in zip(widths, aligns)]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths)) + " |"
        for row in [HEADER, rule, *rows]
    )


def notes(runs: list[dict]) -> str:
    """What a reader must know before comparing two rows."""
    lines = []
    protocols = [{**(run.get("protocol") or {}), "num_tasks": run["num_tasks"]} for run in runs]
    for protocol, run in zip(protocols, runs):
        protocol.setdefault("dataset_sha256", run["data_path"])
        versions = protocol.pop("versions", None) or {}
        protocol |= {f"version of {name}": version for name, version in versions.items()}
    for field in sorted({field for protocol in protocols for field in protocol}):
        values = {}
        for protocol, run in zip(protocols, runs):
            values.setdefault(json.dumps(protocol.get(field)), []).append(run["exp_name"])
        if len(values) > 1:
            found = "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())
            lines.append(f"Warning: unequal protocols, {field} differs: {found}.")
    sizes = " or ".join(str(n) for n in sorted({run["num_tasks"] for run in runs}))
    scores = [(run["pass_at_1"], run["num_tasks"]) for run in runs]
    error = max(math.sqrt(p * (1 - p) / n) for p, n in scores)
    lines.append(
        f"With {sizes} tasks one pass@1 carries a standard error of up to {100 * error:.1f} points "
        "(sqrt(p (1 - p) / n)). Whether two runs differ is not told by their intervals, but by a paired test."
    )
    return "\n\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Table, paired tests and pictures of evaluated runs.")
    parser.add_argument(
        "paths",
        nargs="*",
        help="*_per_task.jsonl or *_metrics.json files, folders of them, or adapter folders with a log "
        "(default: results_dir)",
    )
    parser.add_argument("--results_dir", default="results", help="where to write (default: %(default)s)")
    parser.add_argument("--html", action="store_true", help="write report.html, too")
    in_notebook = "kernel_launcher" in sys.argv[0] or "ipykernel" in sys.argv[0]
    args = parser.parse_args([] if in_notebook else None)  # there the flags are the kernel's

    sources = [Path(path) for path in args.paths or [args.results_dir]]
    files = []
    training = []  # runs that have curves, but no scores and so no row
    for path in sources:
        if run := training_run(path):
            training.append(run)
            continue
        found = [path]
        if path.suffix not in (".json", ".jsonl"):
            found = [*path.glob("*_metrics.json"), *path.glob("*_per_task.jsonl")]
        if not found:
            raise SystemExit(f"No *_metrics.json or training log in {path}: run eval_humaneval.py first.")
        files += sorted(found)
    files = {stem_of(file): file for file in files}  # a run may be named by both of its files
    runs = [read_run(file) for file in files.values()]
    names = [run["exp_name"] for run in runs]
    for run, stem in zip(runs, files):
        if names.count(run["exp_name"]) > 1:  # from two folders
            run["exp_name"] = stem
    runs.sort(key=lambda run: ((*METHODS, run["method"]).index(run["method"]), run["exp_name"]))
    evaluated = [Path(run["model_path"]).resolve() for run in runs if run["model_path"]]
    training = [run for run in training if Path(run["model_path"]).resolve() not in evaluated]
    logs = [read_log(run) for run in runs + training]
    pairs = [pair for pair in (compare(a, b) for a, b in combinations(runs, 2)) if pair]
    for pair in pairs:
        pair["text"] = sentence(pair)

    results_dir = Path(args.results_dir)
    pictures = []
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        if runs:
            table = [table_row(run, log) for run, log in zip(runs, logs)]
            text = f"{markdown_table(table)}\n\n{notes(runs)}"
            if len(runs) > 1:
                text += f"\n\n{describe_pairs(runs, pairs)}"
            print(text)
            (results_dir / "results.md").write_text(text + "\n", encoding="utf-8")
            lines = [json.dumps(pair) + "\n" for pair in pairs]
            (results_dir / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
            pictures.append(report.plot_pass_vs_length(runs, results_dir / "pass_vs_length.png"))
            pictures.append(report.plot_outcomes(runs, results_dir / "outcomes.png"))
        pictures.append(
            report.plot_learning_curves(runs + training, logs, results_dir / "learning_curves.png")
        )
        if runs and args.html:
            page, drawn = results_dir / "report.html", filter(None, pictures)
            report.write_report(page, drawn, runs, [HEADER, *table], notes(runs), pairs)
    except OSError as error:
        raise SystemExit(f"Cannot write to {results_dir}: {error.strerror}. Choose another --results_dir.")
