"""Time per step of train_dpo_lora.py and of TRL's DPOTrainer, the same DPO: tiny model, on the CPU.

    pip install --no-deps -r benchmarks/requirements-rl.txt
    python benchmarks/dpo_update.py            # about 10 minutes on 2 quiet cores
    python benchmarks/dpo_update.py --quick    # does it run? its figures mean nothing

Reads   data/tiny_coder and data/mini_train.jsonl; an adapter and pairs with --sft_model and --pairs_path,
        else it makes them: SFT, an evaluation with 8 samples per task, make_pairs.py
Prints  differences of losses and gradients, figures of each run and, last, one JSON line with all of them

Both sides have the same model (the base as ours loads it: rounded to 4 bit, unpacked to float32) with the
same adapter, which is the reference; the same pairs in the same order, with the same ids; the same loss (eq.
7, beta 0.1), optimizer and learning rates; steps of 16 pairs in micro-batches of 8. Every completion ends
with EOS, as TRL knows no others. Loss and norm of the gradient must be equal in the first step, and nearly so
in all of a short run. TRL is run twice: as it is by default, and with precompute_ref_log_probs.

What may differ is how it is done. Ours computes a prompt once for all its completions in a micro-batch,
logits of completions alone, and the reference once, before the first step. The pairs of a step go into micro-
batches by length.

Every run is a process of its own; they take turns. The first step warms up and is left out of `seconds`, the
median of the others. `reference` is the time of the reference pass before the first step, divided by the
number of steps (one epoch, so no pair comes twice); `total` is the sum of the two. `cpu` is the CPU time of
all threads from the reference pass to the last step, by step. Ratios are taken within each round, and the
median of the rounds is printed. Where other work runs on the machine, put OMP_NUM_THREADS=1 before the
command; CPU time then hardly changes. The preflight, which TRL has not, is left out (--train_path "").
"""

import argparse
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

from rl_update import ON_CPU, ROOT, run_child

FIGURES = "seconds", "reference", "total", "cpu", "peak_mb"  # in every record
FLAGS = {"learning_rate": 5e-4, "beta": 0.1, "warmup_ratio": 0, "num_epochs": 1, "train_path": "", "seed": 0}
TOLERANCE = 1e-5, 1e-3  # of the first step; of all: differences grow with the steps


def now():
    return time.perf_counter(), time.process_time()


def measured(clocks, start, end, steps):
    """The record of a run, of clocks after each step and around the reference pass, and (loss, norm)s."""
    seconds = median(after[0] - before[0] for before, after in zip(clocks, clocks[1:]))
    reference = (end[0] - start[0]) / len(clocks)
    record = {"seconds": seconds, "reference": reference, "total": seconds + reference}
    return record | {"cpu": (clocks[-1][1] - start[1]) / len(clocks), "steps": steps}


def ours(**flags):
    """The record of one run of train_dpo_lora.py."""
    from accelerate import Accelerator

    rows, clocks, before = [], [], []

    def log(self, values, **rest):
        rows.append((values["loss"], values["grad_norm"]))
        clocks.append(now())

    Accelerator.log = log  # called once per step
    Accelerator.print = lambda *rest: before.append(now())  # the last time before the reference
    Accelerator.init_trackers = lambda *rest: before.append(now())  # after it
    with tempfile.TemporaryDirectory() as folder:
        flags |= {"output_dir": folder}
        sys.argv = ["train_dpo_lora.py", *(f"--{flag}={value}" for flag, value in flags.items())]
        runpy.run_path("train_dpo_lora.py", run_name="__main__")
    return measured(clocks, *before[-2:], rows)


def trl(precompute, **flags):
    """The record of one run of DPOTrainer; RuntimeError where it does not do the work described above."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from sandbox import read_pairs
    from train_dpo_lora import encode_side, load_adapter

    model, tokenizer = load_adapter(flags["sft_model"], "cpu", is_trainable=True)
    model.get_base_model().is_loaded_in_4bit = (
        False  # it is unpacked; TRL would round the adapter to bfloat16
    )
    pairs, _ = read_pairs(flags["pairs_path"], [])
    pairs = random.Random(f"{flags['seed']} 0").sample(pairs, len(pairs))  # in our order
    clocks, before = [], [(0.0, 0.0)] * 2

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **rest):
            if not precompute:
                before[:] = [now()] * 2

        def on_step_end(self, args, state, control, **rest):
            clocks.append(now())

    class Trainer(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *rest):
            before[0] = now()
            dataset = super()._precompute_ref_logps(*rest)
            before[1] = now()
            return dataset

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder,
            loss_type=["sigmoid"],
            beta=flags["beta"],
            precompute_ref_log_probs=precompute,
            per_device_train_batch_size=flags["micro_batch_size"],
            gradient_accumulation_steps=flags["batch_size"] // flags["micro_batch_size"],
            num_train_epochs=flags["num_epochs"],
            learning_rate=flags["learning_rate"],
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            max_length=None,
            disable_dropout=True,
            use_cpu=True,
            bf16=False,  # it would take bfloat16 and gradient checkpointing, both slower on a CPU
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        columns = {"prompt": [pair["task"]["prompt"] for pair in pairs]}
        columns |= {side: [pair[side] for pair in pairs] for side in ("chosen", "rejected")}
        dataset = Dataset.from_dict(columns)
        trainer = Trainer(
            model, None, config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
        )
        for side in "chosen", "rejected":
            mine = [encode_side(tokenizer, pair, side) for pair in pairs]
            for name, column in ("prompt_ids", "prompt_ids"), ("completion_ids", f"{side}_ids"):
                if [sample[name] for sample in mine] != list(map(list, trainer.train_dataset[column])):
                    raise RuntimeError("TRL would have other ids")
        trainer.train()
    if {p.dtype for p in model.parameters()} != {torch.float32}:
        raise RuntimeError("not all in float32")
    steps = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]
    return measured(clocks, *before, steps)


def different(one, other):
    """A line on how far losses and norms of the gradient are apart; SystemExit above the tolerance."""
    apart = []
    for (loss, norm), (their_loss, their_norm) in zip(one, other, strict=True):
        apart.append(max(abs(loss - their_loss), abs(norm - their_norm) / norm))
    line = f"losses, and norms by their size, differ by {apart[0]:.1e} in the first step,"
    line += f" by at most {max(apart):.1e} in {len(apart)} steps"
    if not (apart[0] < TOLERANCE[0] and max(apart) < TOLERANCE[1]):
        raise SystemExit(f"{line}: ours {one}, TRL {other}")
    return line


def make_inputs(folder, args):
    """An adapter and as many pairs as the steps need, in TRL's columns; (path, path)."""
    python = [sys.executable]
    run = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    sft_model, pairs_path = args.sft_model, args.pairs_path
    if not sft_model:
        sft_model = folder / "sft"
        command = [
            *python,
            "train_sft_lora.py",
            "--model_name",
            "data/tiny_coder",
            "--learning_rate",
            "3.5e-4",
        ]
        command += ["--train_path", "data/mini_train.jsonl", "--output_dir", sft_model]
        subprocess.run(command, **run)
    needed = args.num_steps * args.batch_size
    if not pairs_path:
        lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines(keepends=True)
        tasks = folder / "tasks.jsonl"
        tasks.write_text("".join(random.Random(0).sample(lines, min(400, needed))))
        command = [*python, "eval_humaneval.py", "--model_path", sft_model, "--data_path", tasks]
        command += ["--exp_name", "candidates", "--results_dir", folder, "--n_samples", "8"]
        subprocess.run([*command, "--temperature", "1.0", "--max_new_tokens", "96"], **run)
        command = [*python, "make_pairs.py", "--task_path", tasks, "--output_dir", folder / "pairs"]
        subprocess.run([*command, "--candidates", folder / "candidates_per_task.jsonl"], **run)
        pairs_path = folder / "pairs/pairs.jsonl"
    rows = [json.loads(line) for line in pairs_path.read_text().splitlines()]
    if len(rows) < needed:
        raise SystemExit(f"{len(rows)} pairs, but {args.num_steps} steps need {needed}: lower --num_steps")
    path = folder / "trl_pairs.jsonl"
    with open(path, "w") as file:
        for row in rows[:needed]:  # all pairs of a task stand together
            file.write(json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) + "\n")
    return {"sft_model": str(sft_model), "pairs_path": str(path)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_steps", type=int, default=8, help="of each run; the first is left out")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs per step")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="must divide --batch_size")
    parser.add_argument("--sft_model", type=Path, help="adapter on data/tiny_coder (default: train one)")
    parser.add_argument("--pairs_path", type=Path, help="pairs for it (default: make them)")
    parser.add_argument("--quick", action="store_true", help="one round of 2 steps of 4 pairs")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        part = args.child.pop("part")
        record = ours(**args.child) if part == "ours" else trl(part == "trl, precomputed", **args.child)
        print(json.dumps(record | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        sys.exit()

    os.environ |= ON_CPU
    if args.quick:
        args.rounds, args.num_steps, args.batch_size, args.micro_batch_size = 1, 2, 4, 2
    runs = ["ours", "trl", "trl, precomputed"]
    records: dict[str, list] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        flags = FLAGS | make_inputs(Path(folder), args)
        flags |= {"batch_size": args.batch_size, "micro_batch_size": args.micro_batch_size}
        for number in range(args.rounds):
            for name in runs[:: -1 if number % 2 else 1]:  # each is first in turn
                records[name].append(run_child(__file__, part=name, **flags | {"seed": number}))
            print(
                {name: round(rounds[-1]["seconds"], 2) for name, rounds in records.items()}, file=sys.stderr
            )
            for name in runs[1:]:
                print(f"{name}: {different(records['ours'][-1]['steps'], records[name][-1]['steps'])}")
    figures = {}
    for name, rounds in records.items():
        figures[name] = {figure: median(record[figure] for record in rounds) for figure in FIGURES}
    for name in runs[1:]:
        both = list(zip(records[name], records["ours"]))
        ratios = {figure: median(a[figure] / b[figure] for a, b in both if b[figure]) for figure in FIGURES}
        figures[f"{name} / ours"] = ratios
    for name, values in figures.items():
        print(f"{name:24}", "  ".join(f"{figure} {value:<9.3f}" for figure, value in values.items()))
    machine = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    )
    print(json.dumps({"figures": figures, "records": records, "machine": machine}))
