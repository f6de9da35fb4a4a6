"""Time per PPO update of train_ppo_lora.py: 32 tasks, one completion each, with the tiny model on the CPU.

    python benchmarks/rl_update.py                        # about 2 minutes on 2 cores
    python benchmarks/rl_update.py --root OTHER_CHECKOUT  # both take turns; prints ratios this / other

Reads   data/tiny_coder and data/mini_train.jsonl; an adapter with --sft_model, else it trains one first
Prints  figures of each checkout and, last, one JSON line with those of every round

Every run is a process of its own. Its first update warms up and is left out. Seconds are medians over the
updates; ratios are taken within each round, and the median of the rounds is printed. CPU time is that of all
threads of the trainer, without the sandbox's processes, by sampled token; "samples: equal" says that both
checkouts had the same completions. Where other work runs on the machine, put OMP_NUM_THREADS=1 before the
command: threads that wait for each other take many times longer; CPU time then hardly changes.

The comparison with TRL's GRPO waits for train_grpo_lora.py; the figures of it in docs/performance.md and
results/tiny/rl_update.jsonl are of the scripts at commit 4572bde.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"max_new_tokens": 96, "micro_batch_size": 8, "ratio_level": "token", "learning_rate": 2e-4}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}  # a waiting thread uses no CPU time
FIGURES = "seconds", "cpu_ms_per_token", "peak_mb"  # in every record


def run_child(script, root=ROOT, **arguments):
    """Run a benchmark script on a checkout in a process of its own, --child; returns its last line, a record.

    Raises SystemExit with the end of its output where it fails. This process must stay small: the peak memory
    of a child begins with that of the parent it was forked from.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), "--child", json.dumps(arguments)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{arguments} failed ({done.returncode}) in {root}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def run_script(name, flags):
    """Run a training script of the folder we are in; returns its log, with clock and CPU time of each row."""
    from accelerate import Accelerator

    rows = []

    def log(self, values, **rest):
        rows.append({**values, "clock": time.perf_counter(), "cpu": time.process_time()})

    Accelerator.log = log  # every script calls it once per update
    sys.argv = [name, *(f"--{flag}={value}" for flag, value in flags.items())]
    runpy.run_path(name, run_name="__main__")
    return rows


def durations(rows):
    """Seconds of all updates but the first."""
    return [row["clock"] - before["clock"] for before, row in zip(rows, rows[1:])]


def measure(**flags):
    """The record of one run of train_ppo_lora.py."""
    with tempfile.TemporaryDirectory() as folder:
        rows = run_script("train_ppo_lora.py", flags | {"output_dir": folder})
        samples = list(map(json.loads, Path(folder, "samples.jsonl").read_text().splitlines()))
    if {row["epochs"] for row in rows} != {4}:
        raise RuntimeError("an update was skipped or cut short")
    texts = [(sample["task_id"], sample["completion"]) for sample in samples]
    tokens = sum(sample["gen_len"] for sample in samples[flags["batch_size"] :])
    record = {"seconds": median(durations(rows)), "tokens": tokens}
    record["cpu_ms_per_token"] = 1000 * (rows[-1]["cpu"] - rows[0]["cpu"]) / tokens
    return record | {"samples": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}


def report(records, pairs):
    """Print medians of the rounds and, of pairs of runs, medians of the ratios within each round; then JSON.

    records: {name of a run: its records, one per round}; pairs: [(name, name)].
    """
    medians = {
        name: {figure: round(median(record[figure] for record in rounds), 3) for figure in FIGURES}
        for name, rounds in records.items()
    }
    ratios = {
        f"{one} / {two}": {
            figure: round(median(a[figure] / b[figure] for a, b in zip(records[one], records[two])), 3)
            for figure in FIGURES
        }
        for one, two in pairs
    }
    for name, figures in {**medians, **ratios}.items():
        print(f"{name:40}", "  ".join(f"{figure} {value:<8g}" for figure, value in figures.items()))
    machine = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    )
    print(json.dumps({"medians": medians, "ratios": ratios, "records": records, "machine": machine}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_updates", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--sft_model", type=Path, help="adapter on data/tiny_coder (default: train one)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        record = measure(**args.child)
        print(json.dumps(record | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        sys.exit()

    os.environ |= ON_CPU
    roots = {"this": ROOT} | ({"other": args.root.resolve()} if args.root else {})
    records = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as folder:
        sft_model = args.sft_model.resolve() if args.sft_model else f"{folder}/sft"
        if not args.sft_model:
            command = [sys.executable, "train_sft_lora.py", "--model_name", "data/tiny_coder"]
            command += ["--train_path", "data/mini_train.jsonl", "--learning_rate", "3.5e-4"]
            subprocess.run([*command, "--output_dir", sft_model], cwd=ROOT, check=True, capture_output=True)
        lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines(keepends=True)
        train_path = Path(folder, "train.jsonl")  # as many tasks as the updates need: the preflight runs all
        train_path.write_text("".join(random.Random(0).sample(lines, args.num_updates * args.batch_size)))
        flags = {**FLAGS, "sft_model": str(sft_model), "train_path": str(train_path)}
        flags |= {"num_updates": args.num_updates, "batch_size": args.batch_size}
        for number in range(args.rounds):
            for name, root in sorted(roots.items(), reverse=number % 2 == 0):  # each is first in turn
                records[name].append(run_child(__file__, root, seed=number, **flags))
    if args.root:
        pairs = zip(records["this"], records["other"])
        equal = all(one["samples"] == two["samples"] for one, two in pairs)
        print("samples:", "equal" if equal else "NOT EQUAL, the checkouts did different work")
    report(records, [("this", "other")] if args.root else [])
