"""The critic's explained variance in the actor-critic runs of tiny_seeds.py, by thirds of a run.

    python benchmarks/explained_variance.py checkpoints/tiny_seeds
    python benchmarks/explained_variance.py                          # only the table, from the stored numbers

The first form reads the logs and stores their numbers in results/tiny/critic.jsonl. The variances of the
updates are summed and then divided: 1 - sum Var(G - V) / sum Var(G). A mean of quotients would be ruled by
the few updates in which nearly all returns are equal.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pooled(updates):
    """Explained variance over updates, each (return_std, explained_variance); None is left out."""
    known = [(std**2, explained) for std, explained in updates if explained is not None]
    total = sum(variance for variance, _ in known)
    return sum(variance * explained for variance, explained in known) / total


def read_logs(folder):
    """A dict per run below the folder: name, seed, and (return_std, explained_variance) of each update."""
    runs = []
    for log in sorted(folder.glob("checkpoints/ac_*_seed*/actor_critic_train_log.jsonl")):
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        name, _, seed = log.parent.name.rpartition("_seed")
        numbers = [(row["return_std"], row["explained_variance"]) for row in rows]
        updates = [(round(std, 4), explained and round(explained, 4)) for std, explained in numbers]
        runs.append({"name": name, "seed": int(seed), "updates": updates})
    return runs


def table(runs):
    """Markdown: the mean over the seeds of each third, then the last third of each seed."""
    lines = [
        "| configuration | first third | second | last | last third of each seed |",
        "|---|---:|---:|---:|---|",
    ]
    for name in dict.fromkeys(run["name"] for run in runs):
        thirds = []
        for run in runs:
            if run["name"] == name:
                n, updates = len(run["updates"]), run["updates"]
                parts = updates[: n // 3], updates[n // 3 : 2 * n // 3], updates[2 * n // 3 :]
                thirds.append([pooled(part) for part in parts])
        means = [f"{sum(column) / len(thirds):.2f}" for column in zip(*thirds)]
        last = ", ".join(f"{third[2]:.2f}" for third in thirds)
        lines.append("| " + " | ".join([name, *means, last]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    path = ROOT / "results/tiny/critic.jsonl"
    if len(sys.argv) > 1:
        runs = read_logs(Path(sys.argv[1]))
        if not runs:
            raise SystemExit(
                f"{sys.argv[1]} has no finished run: python benchmarks/tiny_seeds.py --methods ac"
            )
        path.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    print(table([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))
