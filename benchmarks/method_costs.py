"""Seconds and memory per update of each method at the same work: tiny model, on the CPU.

    python benchmarks/method_costs.py                      # two rounds took eight minutes on a busy machine
    python benchmarks/method_costs.py --sft_model ADAPTER  # instead of training one first

An update has 32 completions of at most 96 tokens, in micro-batches of 8; epochs are those of the scripts.
Every second program counts as passed after the sandbox has run it, so that none skips its update. Each run is
a process of its own, methods take turns, and the first update of each run is left out. Prints medians over
the rounds, ratios to PPO's within each round and, last, one JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rl_update import ON_CPU, ROOT, durations, pass_every_second, run_child, run_script

FLAGS = {"train_path": "data/mini_train.jsonl", "max_new_tokens": 96, "micro_batch_size": 8}
METHODS = {  # script: flags for 5 updates of 32 completions
    "rl": {"batch_size": 32, "num_steps": 5},
    "ppo": {"batch_size": 32, "num_updates": 5},
    "actor_critic": {"batch_size": 32, "num_updates": 5},
    "grpo": {"batch_size": 4, "samples_per_task": 8, "num_updates": 5},
}


def measure(method, sft_model, seed):
    """A run of a training script: median of the seconds per update, and the process's peak memory in MB."""
    import sandbox

    sandbox.start_scoring = pass_every_second()  # the preflight does not use it
    with tempfile.TemporaryDirectory() as folder:
        flags = {**FLAGS, **METHODS[method], "sft_model": sft_model, "seed": seed, "output_dir": folder}
        _, rows = run_script(f"train_{method}_lora.py", flags)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(durations(rows)), "peak_mb": peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sft_model", type=Path, help="adapter on data/tiny_coder (default: train one)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(**args.child)))
        sys.exit()

    os.environ |= ON_CPU
    records = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        sft_model = args.sft_model.resolve() if args.sft_model else f"{folder}/sft"
        if not args.sft_model:
            command = [sys.executable, "train_sft_lora.py", "--model_name", "data/tiny_coder", "--train_path"]
            command += ["data/mini_train.jsonl", "--learning_rate", "3.5e-4", "--output_dir", sft_model]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for seed in range(args.rounds):
            for method in list(METHODS)[:: -1 if seed % 2 else 1]:  # each is first in turn
                record = run_child(__file__, method=method, sft_model=str(sft_model), seed=seed)
                records[method].append(record)
    for method, rounds in records.items():
        for figure in "seconds", "peak_mb":
            ratio = median(a[figure] / b[figure] for a, b in zip(rounds, records["ppo"]))
            value = median(record[figure] for record in rounds)
            print(f"{method:14}{figure:9}{value:8.2f}  {ratio:.2f} of PPO's")
    print(json.dumps(records))
