"""Time per evaluation: eval_humaneval.py beside generating and scoring one task at a time, on the CPU.

    python benchmarks/eval_speed.py                # about 10 minutes on 2 quiet cores
    python benchmarks/eval_speed.py --batches 64 --root OTHER_CHECKOUT  # ratios this / other, in one run

"one at a time" is a loop of transformers' generate() and Sandbox.check(), first as generated, then cut;
"batch of N" is the script itself with --batch_size N; it scores one batch while it generates the next.
All decode greedily, with the same 4-bit model; every completion and every outcome must be equal, or the
benchmark stops. Every run is a process of its own and they take turns; times are without imports and loading.
Ratios are taken within each round; CPU time and peak memory are without the sandbox's processes. What is
printed is that of rl_update.py.
"""

import argparse
import json
import os
import resource
import runpy
import sys
import tempfile
import time
from pathlib import Path

from rl_update import ON_CPU, ROOT, report, run_child

NEW_TOKENS = 96


def one_at_a_time(model, data_path):
    """(seconds, CPU seconds, rows) of a loop over tasks."""
    import eval_humaneval as ev
    from sandbox import Sandbox, job

    tasks = ev.read_tasks(data_path)
    model, tokenizer = ev.load_base(model, "cpu")
    rows = []
    start, cpu = time.time(), time.process_time()
    with Sandbox(timeout=ev.Config.time_limit) as sandbox:
        for task in tasks:
            inputs = tokenizer(task["prompt"].rstrip(), return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            ids = output[0, inputs["input_ids"].shape[1] :]
            completion = tokenizer.decode(ids, skip_special_tokens=True)
            texts = completion, ev.truncate(task, completion)
            outcomes = [job(sandbox, task, text).outcome for text in texts]
            rows.append([task["task_id"], completion, len(ids), *outcomes])
    return time.time() - start, time.process_time() - cpu, rows


def script(model, data_path, batch_size):
    """(seconds, CPU seconds, rows) of eval_humaneval.py, in the folder we are in."""
    import sandbox

    make, started = sandbox.Sandbox.__init__, []

    def init(self, *arguments, **options):  # the model is loaded by now
        started.append(time.process_time())
        make(self, *arguments, **options)

    sandbox.Sandbox.__init__ = init
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model_path": model, "data_path": data_path, "results_dir": folder, "exp_name": "run"}
        flags |= {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "device": "cpu"}
        sys.argv = ["eval_humaneval.py", *(f"--{name}={value}" for name, value in flags.items())]
        runpy.run_path("eval_humaneval.py", run_name="__main__")
        cpu = time.process_time() - started[0]
        rows = [json.loads(line) for line in Path(folder, "run_per_task.jsonl").read_text().splitlines()]
        metrics = json.loads(Path(folder, "run_metrics.json").read_text())
    names = "task_id", "completion", "gen_len", "outcome", "outcome_truncated"
    return metrics["eval_seconds"], cpu, [[row[name] for name in names] for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_tasks", type=int, default=164)
    parser.add_argument("--batches", default="0,16,32,64,164", help="batch sizes; 0 is one at a time")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        seconds, cpu, rows = (script if "batch_size" in args.child else one_at_a_time)(**args.child)
        record = {"seconds": seconds, "cpu_ms_per_token": 1000 * cpu / sum(row[2] for row in rows)}
        record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(record | {"rows": rows}))
        sys.exit()

    os.environ |= ON_CPU
    roots = {"this": ROOT} | ({"other": args.root.resolve()} if args.root else {})
    names = {n: f"batch of {n}" if n else "one at a time" for n in map(int, args.batches.split(","))}
    records = {f"{side}, {name}": [] for name in names.values() for side in roots}
    lines = (ROOT / "data/mini_test.jsonl").read_text().splitlines(keepends=True)[: args.num_tasks]
    first = None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.jsonl").write_text("".join(lines))
        flags = {"model": str(ROOT / "data/tiny_coder"), "data_path": f"{folder}/tasks.jsonl"}
        for number in range(args.rounds):
            for batch_size, name in names.items():
                for side, root in sorted(roots.items(), reverse=number % 2 == 0):  # each is first in turn
                    size = {"batch_size": batch_size} if batch_size else {}
                    record = run_child(__file__, root, **flags, **size)
                    rows = record.pop("rows")
                    first = first or rows
                    if rows != first:
                        raise SystemExit(f"{side}, {name}: other completions or outcomes")
                    records[f"{side}, {name}"].append(record)
    pairs = [(f"this, {names[0]}", f"this, {name}") for n, name in names.items() if n] if 0 in names else []
    pairs += [(f"this, {name}", f"other, {name}") for name in names.values() if args.root]
    report(records, pairs)
