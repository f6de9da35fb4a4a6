"""Make preference pairs for train_dpo_lora.py from an evaluation of the training tasks. Needs no model.

    right_over_wrong   both ended by themselves; the rejected one fails, also when it is cut after its answer
    stop               the rejected one goes on: it passes only when it is cut, or ran into the token limit

The chosen one ended by itself and passes, as generated and cut. Pairs teach what they differ in: the first
kind, of similar lengths, what is right; the second, one for each task, where to stop. A completion that is
right but goes on is never the rejected one of the first kind.

    python eval_humaneval.py --model_path checkpoints/NAME_sft --data_path data/humaneval_train.jsonl \\
        --exp_name candidates --n_samples 16 --temperature 1.0
    python make_pairs.py --task_path data/humaneval_train.jsonl --candidates results/candidates_per_task.jsonl

Reads the rows of one evaluation or several, and the *_metrics.json beside each. Writes to --output_dir
nbest.jsonl (of each task the shortest distinct programs that pass), pairs.jsonl (TRL's columns prompt, chosen
and rejected, and more) and, last, manifest.json (what the candidates were, and what became of them). With
--write_tasks also a task file whose solutions are the best programs: train_sft_lora.py on it is rejection
sampling. docs/pairs.md explains the fields.
"""

import argparse
import hashlib
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

from data.scores import read_rows, verdicts
from data.signature import signature
from data.tasks import program, read_tasks
from sandbox import stop_with

KINDS = "right_over_wrong", "stop"
NEEDED = "sample", "completion", "cut_at", "gen_len", "hit_token_limit", "outcome", "passed_truncated"


# ---- candidates ----
def sha256(path) -> str:
    with stop_with(f"{path} cannot be read"):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_candidates(path: str, digest: str, tasks: dict[str, dict]) -> tuple[list[dict], dict]:
    """(rows of an evaluation of the task file with this hash, what its metrics say of it), or SystemExit."""
    if not path.endswith("_per_task.jsonl"):
        raise SystemExit(f"{path}: candidates are a *_per_task.jsonl that eval_humaneval.py wrote")
    rows = read_rows(path)
    beside = Path(path.removesuffix("_per_task.jsonl") + "_metrics.json")
    with stop_with(f"{path} needs the metrics of its evaluation beside it, but {beside} cannot be used"):
        metrics = json.loads(beside.read_bytes())
        protocol = dict(metrics["protocol"])
        recorded = metrics["num_samples"], metrics["num_pass"], metrics["num_pass_truncated"]
    if protocol.get("dataset_sha256") != digest:
        raise SystemExit(f"{path} is an evaluation of another task file than --task_path, says {beside}")
    if protocol.get("prompt_format") == "chat":
        raise SystemExit(f"{path} has answers of --prompt_format chat; pairs are made of completions")
    for number, row in enumerate(rows, 1):
        if missing := [field for field in NEEDED if field not in row]:
            raise SystemExit(f"{path}, row {number}: {missing[0]} is missing, which no pair can do without")
        if row["task_id"] not in tasks:
            raise SystemExit(f"{path}, row {number}: {row['task_id']!r:.100} is not in --task_path")
    counted = len(rows), *(sum(row[name] for row in rows) for name in ("passed", "passed_truncated"))
    if counted != recorded:
        raise SystemExit(f"{path} is not complete, or {beside} is of another evaluation: evaluate again")
    names = "model_path", "model_sha256", "completions_path", "completions_sha256"
    return rows, {name: metrics[name] for name in names if name in metrics} | {"protocol": protocol}


def sorted_out(task: dict, rows: list[dict]) -> tuple[dict[str, list[dict]], Counter]:
    """({"right", "wrong", "goes_on": distinct candidates of a task}, how many are left out, by reason).

    By length and text, so that the order of the rows plays no part. Adds the signatures to the rows.
    """
    verdicts_of = defaultdict(set)  # a program, as generated or cut, that passed and failed is flaky
    for row in rows:
        whole = {**task, "whole_program": row.get("whole_program", False)}
        row["raw"] = signature(program(whole, row["completion"]))
        row["cut"] = signature(program(whole, row["completion"][: row["cut_at"]]))
        verdicts_of[row["raw"]].add(row["passed"])
        verdicts_of[row["cut"]].add(row["passed_truncated"])
    kinds: dict[str, dict[str, dict]] = {"right": {}, "wrong": {}, "goes_on": {}}
    left_out = Counter()
    for row in sorted(rows, key=lambda row: (row["gen_len"], row["completion"], row["sample"])):
        at_limit, passes_cut = row["hit_token_limit"], row["passed_truncated"]
        if row.get("whole_program") or not row["completion"].strip():
            left_out["empty, or no completion of the prompt"] += 1
        elif 2 in (len(verdicts_of[row["raw"]]), len(verdicts_of[row["cut"]])):
            left_out["flaky: the same program passed and failed"] += 1
        elif row["passed"] and (at_limit or not passes_cut):
            left_out["passes, but at the token limit or only uncut"] += 1
        else:
            kind = "right" if row["passed"] else "goes_on" if at_limit or passes_cut else "wrong"
            key = row["raw"] if kind == "goes_on" else row["cut"]
            left_out["same program as another"] += key in kinds[kind]
            kinds[kind].setdefault(key, row)
    return {kind: list(found.values()) for kind, found in kinds.items()}, +left_out


# ---- pairs ----
def pairs_of(task: dict, kinds: dict[str, list[dict]], args) -> list[dict]:
    """The pairs of one task."""

    def pair(kind, rank, rejected):
        chosen = kinds["right"][rank]
        row = {"task_id": task["task_id"], "kind": kind, "prompt": task["prompt"].rstrip()}
        row |= {"chosen": chosen["completion"], "rejected": rejected["completion"], "chosen_rank": rank + 1}
        row |= {"chosen_gen_len": chosen["gen_len"], "rejected_gen_len": rejected["gen_len"]}
        row |= {"chosen_truncated": False, "rejected_truncated": rejected["hit_token_limit"]}
        passes = rejected["passed_truncated"]
        return row | {"rejected_outcome": rejected["outcome"], "rejected_passes_cut": passes}

    pairs = []
    for rank, chosen in enumerate(kinds["right"][: args.n_best]):
        wrong = kinds["wrong"][::-1]
        if args.rejected == "nearest":
            wrong = sorted(kinds["wrong"], key=lambda row: abs(row["gen_len"] - chosen["gen_len"]))
        pairs += [pair(KINDS[0], rank, row) for row in wrong[: args.pairs_per_chosen]]
    # First those that are right but go on: they differ from the chosen one in nothing else.
    goes_on = sorted(kinds["goes_on"], key=lambda row: not row["passed_truncated"])
    return pairs + [pair(KINDS[1], 0, row) for row in goes_on[: args.stop_pairs] if kinds["right"]]


# ---- manifest ----
def mean(values) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def summary_of(pairs: list[dict]) -> dict:
    """What the pairs of one kind are; lengths in tokens."""
    lengths = [(pair["chosen_gen_len"], pair["rejected_gen_len"]) for pair in pairs]
    return {
        "pairs": len(pairs),
        "tasks": len({pair["task_id"] for pair in pairs}),
        "distinct_chosen": len({(pair["task_id"], pair["chosen"]) for pair in pairs}),
        "distinct_rejected": len({(pair["task_id"], pair["rejected"]) for pair in pairs}),
        "mean_length_chosen": mean(chosen for chosen, _ in lengths),
        "mean_length_rejected": mean(rejected for _, rejected in lengths),
        "share_chosen_shorter": mean(chosen < rejected for chosen, rejected in lengths),
        "share_chosen_longer": mean(chosen > rejected for chosen, rejected in lengths),
        "rejected_outcomes": dict(Counter(pair["rejected_outcome"] for pair in pairs)),
        "rejected_passes_cut": sum(pair["rejected_passes_cut"] for pair in pairs),
        "rejected_at_token_limit": sum(pair["rejected_truncated"] for pair in pairs),
    }


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, text: str):
    """Replace a file in one step, or leave it as it was."""
    try:
        Path(f"{path}.tmp").write_text(text, encoding="utf-8")
        os.replace(f"{path}.tmp", path)
    finally:
        Path(f"{path}.tmp").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make preference pairs from the rows of an evaluation.")
    parser.add_argument("--task_path", required=True, help="the task file that was evaluated")
    parser.add_argument(
        "--candidates", nargs="+", required=True, help="results/*_per_task.jsonl, one or more"
    )
    parser.add_argument("--output_dir", default="data/pairs")
    parser.add_argument("--n_best", type=int, default=3, help="programs of a task that are chosen, at most")
    parser.add_argument("--pairs_per_chosen", type=int, default=1, help="right over wrong")
    parser.add_argument("--rejected", choices=("nearest", "longest"), default="nearest", help="in tokens")
    parser.add_argument("--stop_pairs", type=int, default=1, help="of a task, at most")
    parser.add_argument(
        "--write_tasks", help="also write this task file, with the best programs as solutions"
    )
    args = parser.parse_args()
    if args.n_best < 1 or min(args.pairs_per_chosen, args.stop_pairs) < 0:
        raise SystemExit("--n_best is at least 1, --pairs_per_chosen and --stop_pairs are at least 0")
    if args.write_tasks and os.path.realpath(args.write_tasks) == os.path.realpath(args.task_path):
        raise SystemExit("--write_tasks would overwrite --task_path")

    # ---- read ----
    tasks = {task["task_id"]: task for task in read_tasks(args.task_path)}
    hashes = {path: sha256(path) for path in (args.task_path, *args.candidates)}
    rows_of, sources = {name: [] for name in tasks}, {}
    for path in dict.fromkeys(args.candidates):
        rows, sources[path] = read_candidates(path, hashes[args.task_path], tasks)
        for row in rows:
            rows_of[row["task_id"]].append(row)
    counts = [len(rows) for rows in rows_of.values() if rows]
    if max(counts) < 2:
        raise SystemExit(f"{path}: one completion per task makes no pair: --n_samples 8 --temperature 1.0")

    # ---- pairs ----
    pairs, nbest, solved = [], [], []
    usable, left_out, tasks_left_out = Counter(), Counter(), Counter()
    for name, rows in rows_of.items():
        kinds, reasons = sorted_out(tasks[name], rows)
        usable += Counter({kind: len(distinct) for kind, distinct in kinds.items()})
        left_out += reasons
        found = pairs_of(tasks[name], kinds, args)
        pairs += found
        if not found:
            reason = "nothing to reject" if kinds["right"] else "nothing to choose"
            tasks_left_out[reason if rows else "no candidate"] += 1
        for rank, row in enumerate(kinds["right"][: args.n_best], 1):
            nbest.append({"task_id": name, "rank": rank})
            nbest[-1] |= {field: row[field] for field in ("sample", "completion", "gen_len")}
        best = kinds["right"][0]["completion"] if kinds["right"] else ""
        if best.startswith("\n"):  # as a solution does, once it is joined with its prompt
            solved.append({**tasks[name], "canonical_solution": best[1:]})
    reasons = ", ".join(f"{reason}: {count}" for reason, count in tasks_left_out.items()) or "none"
    if not pairs:
        raise SystemExit(f"no pair (tasks left out: {reasons}): raise --n_samples or --temperature")
    by_kind = {kind: summary_of([pair for pair in pairs if pair["kind"] == kind]) for kind in KINDS}
    evaluated = [rows for rows in rows_of.values() if rows]
    ks = [k for k in (1, 3, 5, 10) if k <= min(counts)]
    passing = [{row["cut"] for row in rows if row["passed_truncated"]} for rows in evaluated]
    manifest = {
        "options": vars(args),
        "sha256": hashes,
        "sources": sources,
        "candidates": {
            **verdicts([row for rows in evaluated for row in rows], ks),
            "distinct_programs": mean(len({row["cut"] for row in rows}) for rows in evaluated),
            "distinct_passing": mean(map(len, passing)),
        },
        "usable": usable,
        "left_out": left_out,
        "tasks": {"in_file": len(tasks), "with_pairs": len({pair["task_id"] for pair in pairs})},
        "tasks_left_out": tasks_left_out,
        "kinds": by_kind,
    }

    # ---- write ----
    folder = Path(args.output_dir)
    with stop_with("the files cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if args.write_tasks:
            Path(args.write_tasks).parent.mkdir(parents=True, exist_ok=True)
            write(args.write_tasks, jsonl(solved))
            print(f"{args.write_tasks}: {len(solved)} of {len(tasks)} tasks, with their best programs")
        (folder / "manifest.json").unlink(missing_ok=True)  # a folder that has it is complete
        write(folder / "nbest.jsonl", jsonl(nbest))
        write(folder / "pairs.jsonl", jsonl(pairs))
        hashes["pairs.jsonl"] = sha256(folder / "pairs.jsonl")
        write(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    for kind, what in by_kind.items():
        print(f"{kind}: {what['pairs']} pairs of {what['tasks']} tasks")
    print(f"tasks left out: {reasons}")
