"""train_dqn.py over several seeds, with its parts one at a time: trains, and writes tables to results/tiny.

    python benchmarks/dqn_seeds.py --seeds 5 --jobs 2
    python benchmarks/dqn_seeds.py --summary_only       # the tables of what is in the .jsonl; runs nothing
    python benchmarks/dqn_seeds.py --names eight_all --seeds 1 --steps 2000 --out /tmp/dqn --table /tmp/dqn.md

eight_*: the eight problems of a course, the first of data/dqn_train.json; its three others are held out.
forty_*: data/dqn_train.json, and the 14 of data/dqn_test.json held out. All else is as in train_dqn.py.
Runs that are in the .jsonl beside the table are kept. A line is a run; of the last greedy program of each
problem it has 1 or 0, for right (tests and, in the sandbox, hidden cases) or wrong. CPU seconds are of one
thread and without imports.
"""

import argparse
import json
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tiny_seeds import comparison_row, half_interval, markdown_table

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "--double False --dueling False --per_alpha 0 --lower_bound False"
RUNS = {  # name: options of train_dqn.py
    "eight_random": "--epsilon_end 1 --learning_starts 1000000",
    "eight_plain": PLAIN,
    "eight_double": f"{PLAIN} --double True",
    "eight_dueling": f"{PLAIN} --dueling True",
    "eight_per": f"{PLAIN} --per_alpha 0.6",
    "eight_nstep": f"{PLAIN} --n_step 7",
    "eight_bound": f"{PLAIN} --lower_bound True",
    "eight_all": "",
    "eight_all_one_epsilon": "--epsilon_unsolved 0",
    "forty_plain": PLAIN,
    "forty_nstep": "--lower_bound False --n_step 7",
    "forty_bound": f"{PLAIN} --lower_bound True",
    "forty_all": "",
}
OUT = ROOT / "checkpoints/dqn_seeds"
STEPS = {"eight": 60_000, "forty": 200_000}
QUESTIONS = {
    "eight": [(f"eight_{part}", "eight_plain") for part in "double dueling per nstep bound all".split()]
    + [("eight_all", "eight_bound"), ("eight_all", "eight_all_one_epsilon")],
    "forty": [("forty_nstep", "forty_plain"), ("forty_bound", "forty_plain"), ("forty_all", "forty_plain")]
    + [("forty_all", "forty_nstep"), ("forty_all", "forty_bound")],
}


# ---- runs ----
def problem_files(out):
    """{"eight": (training, held out), "forty": ...}; writes the files of the first."""
    forty = ROOT / "data/dqn_train.json", ROOT / "data/dqn_test.json"
    eight = out / "eight.json", out / "three.json"
    out.mkdir(parents=True, exist_ok=True)
    for source, path, count in zip(forty, eight, (8, 3)):
        path.write_text(json.dumps(json.loads(source.read_text())[:count]))
    return {"eight": eight, "forty": forty}


def train(task):
    """Train as RUNS[name] says, in this process; the run's line of the .jsonl file."""
    name, seed, out, steps = task
    folder, side = out / f"{name}_seed{seed}", name.split("_")[0]
    paths = problem_files(out)[side]
    command = ["train_dqn.py", "--train_path", paths[0], "--test_path", paths[1], "--output_dir", folder]
    command += ["--seed", seed, "--total_steps", steps, "--save_every", steps, *RUNS[name].split()]
    sys.argv = [*map(str, command)]
    os.chdir(ROOT)
    before = cpu_seconds()
    with open(f"{folder}.log", "w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            runpy.run_path("train_dqn.py", run_name="__main__")
        except SystemExit as stop:  # a Pool would wait for ever
            raise RuntimeError(f"{' '.join(sys.argv)}: {stop}") from None
    lines, samples = (read(folder / f"{file}.jsonl") for file in ("dqn_train_log", "samples"))
    reached = [line["step"] for line in lines if line["train_greedy"] == 1]
    last = [row for row in samples if row["step"] == lines[-1]["step"]]
    sides = {s: "".join("01"[row["passed"]] for row in last if row["side"] == s) for s in ("train", "test")}
    row = {"name": name, "seed": seed, "steps": steps, "options": RUNS[name]}
    row |= {"found": lines[-1]["found"], "steps_to_all": reached[0] if reached else None}
    return row | sides | {"cpu_seconds": round(cpu_seconds() - before, 1)}


def cpu_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    return sum(os.times()[:4])


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# ---- tables ----
def marks(rows, name, side) -> dict:
    """{seed: (problems,) of 0 and 1} of the training problems or of those held out."""
    return {row["seed"]: np.array([*map(int, row[side])]) for row in rows if row["name"] == name}


def counted(values) -> str:
    """Mean, half of its 95 % interval, and the values, for one per seed."""
    half = half_interval(np.array(values, float))
    around = "" if np.isnan(half) else f" ± {half:.1f}"
    return f"{np.mean(values):.1f}{around} ({', '.join(map(str, values))})"


def result_row(rows, name):
    mine = [row for row in rows if row["name"] == name]
    solved = [[row[side].count("1") for row in mine] for side in ("train", "test")]
    steps = [f"{row['steps_to_all']:,}" if row["steps_to_all"] else "-" for row in mine]
    found, seconds = ([row[key] for row in mine] for key in ("found", "cpu_seconds"))
    return [name, *map(counted, solved), counted(found), ", ".join(steps), f"{np.mean(seconds):.0f}"]


def difference_row(rows, one, two, side):
    """Problems solved more by one than by two, paired by seed and problem."""
    first, second = (marks(rows, name, side) for name in (one, two))
    gaps = np.array([first[seed] - second[seed] for seed in first if seed in second])
    gaps = gaps * gaps.shape[1]  # of a mean over problems: a number of them
    cells = comparison_row(f"{one} - {two}", gaps, gaps)
    return cells[:4] + cells[6:]  # nothing here is cut, which is what the two between are about


def summary(rows):
    """The whole text of the table's file."""
    text = """# train_dqn.py over several seeds

Greedy programs of the last network, one for each problem: how many are right. Mean ± half of the 95 %
t-interval over seeds (each seed). Found: problems whose tests some program passed while training. Each of
double, dueling, per, nstep and bound adds that one part to plain DQN; all has these but n-step. CPU seconds
of one thread, with an evaluation every 10,000 steps and without imports.
"""
    for part, (train, test) in {"eight": (8, 3), "forty": (40, 14)}.items():
        names = [name for name in RUNS if any(row["name"] == name for row in rows) and name.startswith(part)]
        if not names:
            continue
        steps = sorted({row["steps"] for row in rows if row["name"] in names})
        header = ["run", f"solved of {train}", f"held out, of {test}", "found", "steps to all", "CPU s"]
        table = markdown_table(header, *(result_row(rows, name) for name in names))
        text += (
            f"\n## {part.capitalize()} problems, {' or '.join(f'{s:,}' for s in steps)} steps\n\n{table}\n"
        )
        header = ["difference", "problems", "95 % interval", "seeds alone", "seeds", "verdict"]
        for side, what in ("train", "Trained"), ("test", "Held out"):
            pairs = [(a, b) for a, b in QUESTIONS[part] if {*marks(rows, a, side)} & {*marks(rows, b, side)}]
            if pairs and (part, side) != ("eight", "test"):
                lines = [difference_row(rows, *pair, side) for pair in pairs]
                text += f"\n**{what}: paired over problems and seeds**\n\n{markdown_table(header, *lines)}\n"
    text += "\n## Options\n\n" + "".join(
        f"- {name}: `{options or 'none'}`\n" for name, options in RUNS.items()
    )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--names", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--steps", type=int, default=0, help="of every run; default 60,000 and 200,000")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", type=Path, default=ROOT / "results/tiny/dqn_seeds.md")
    parser.add_argument("--summary_only", action="store_true")
    args = parser.parse_args()
    lines = args.table.with_suffix(".jsonl")
    rows = read(lines) if lines.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    jobs = [(name, seed) for seed in range(1, args.seeds + 1) for name in args.names]
    lines.parent.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    tasks = [(*job, out, args.steps or STEPS[job[0].split("_")[0]]) for job in jobs if job not in done]
    if not args.summary_only:
        # torch, and what its optimizer imports, are loaded once; each run has a process of its own
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        with get_context("fork").Pool(args.jobs, maxtasksperchild=1) as pool:
            for row in pool.imap_unordered(train, tasks, chunksize=1):
                rows.append(row)
                rows.sort(key=lambda row: ([*RUNS].index(row["name"]), row["seed"]))
                lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                print(json.dumps(row), flush=True)
    if not rows:
        raise SystemExit(f"{lines} has no runs yet: start this without --summary_only")
    args.table.write_text(summary(rows), encoding="utf-8")
