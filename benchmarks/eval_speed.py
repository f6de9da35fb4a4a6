"""Seconds per evaluation: eval_humaneval.py beside generating and scoring one task at a time.

    python benchmarks/eval_speed.py                # about 10 minutes on 2 quiet cores
    python benchmarks/eval_speed.py --rounds 1 --num_tasks 40

Prints a table and, last, one JSON line with the same figures

"one at a time" is a loop of transformers' generate() and Sandbox.check(), first as generated, then cut;
"batch of N" is the script itself with --batch_size N; it scores one batch while it generates the next.
All decode greedily, with the same 4-bit model; every completion and every outcome must be equal, or the
benchmark stops. Every run is a process of its own and they take turns; times are without imports and loading.
Peak memory is without the sandbox's processes.
"""

import argparse
import json
import os
import platform
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BATCHES = 16, 32, 64, 164
MODEL = ROOT / "data/tiny_coder"
NEW_TOKENS = 96


def one_at_a_time(data_path):
    """[seconds, rows] of a loop over tasks."""
    import eval_humaneval as ev
    from sandbox import Sandbox, job

    tasks = ev.read_tasks(data_path)
    model, tokenizer = ev.load_base(str(MODEL), "cpu")
    rows = []
    start = time.time()
    with Sandbox(timeout=ev.Config.time_limit) as sandbox:
        for task in tasks:
            inputs = tokenizer(task["prompt"].rstrip(), return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            ids = output[0, inputs["input_ids"].shape[1] :]
            completion = tokenizer.decode(ids, skip_special_tokens=True)
            raw, cut = (
                sandbox.check(*job(task, text)) for text in (completion, ev.truncate(task, completion))
            )
            rows.append([task["task_id"], completion, len(ids), raw.outcome, cut.outcome])
    return time.time() - start, rows


def script(data_path, batch_size):
    """[seconds, rows] of eval_humaneval.py."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model_path": MODEL, "data_path": data_path, "results_dir": folder, "exp_name": "run"}
        flags |= {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "device": "cpu"}
        sys.argv = ["eval_humaneval.py", *(f"--{name}={value}" for name, value in flags.items())]
        runpy.run_path(str(ROOT / "eval_humaneval.py"), run_name="__main__")
        rows = [json.loads(line) for line in Path(folder, "run_per_task.jsonl").read_text().splitlines()]
        metrics = json.loads(Path(folder, "run_metrics.json").read_text())
    names = "task_id", "completion", "gen_len", "outcome", "outcome_truncated"
    return metrics["eval_seconds"], [[row[name] for name in names] for row in rows]


def measure(data_path, batch_size):
    """Run one of them in a process of its own, whose last line is its record."""
    command = [sys.executable, __file__, "--child", json.dumps([str(data_path), batch_size])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"batch size {batch_size} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed of the evaluation.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_tasks", type=int, default=164)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        data_path, batch_size = json.loads(args.child)
        seconds, rows = script(data_path, batch_size) if batch_size else one_at_a_time(data_path)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": seconds, "rows": rows, "peak_mb": peak_mb}))
        sys.exit()

    lines = (ROOT / "data/mini_test.jsonl").read_text().splitlines(keepends=True)[: args.num_tasks]
    records = {batch_size: [] for batch_size in (0, *BATCHES)}  # 0 is one at a time
    with tempfile.TemporaryDirectory() as folder:
        data_path = Path(folder, "tasks.jsonl")
        data_path.write_text("".join(lines))
        for _ in range(args.rounds):
            for batch_size, found in records.items():
                found.append(measure(data_path, batch_size))
                if found[-1]["rows"] != records[0][0]["rows"]:
                    raise SystemExit(f"batch size {batch_size}: other completions or outcomes")

    table = {}
    print(f"{'what':15}{'seconds':>9}{'times faster':>14}{'peak MB':>9}")
    for batch_size, found in records.items():
        ratios = [naive["seconds"] / mine["seconds"] for naive, mine in zip(records[0], found)]
        row = {
            "what": f"batch of {batch_size}" if batch_size else "one at a time",
            "seconds": round(median(record["seconds"] for record in found), 2),
            "ratio": round(median(ratios), 2),
            "peak_mb": max(record["peak_mb"] for record in found),
        }
        print(f"{row['what']:15}{row['seconds']:9.1f}{row['ratio']:14.1f}{row['peak_mb']:9}")
        table[batch_size] = row
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(
        json.dumps({"rows": list(table.values()), "num_tasks": len(lines), "equal": True, "machine": machine})
    )
