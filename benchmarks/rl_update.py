"""Seconds per PPO update: train_ppo_lora.py beside TRL's GRPOTrainer, on the tiny model.

    pip install --no-deps -r benchmarks/requirements-rl.txt
    python benchmarks/rl_update.py                              # about 10 minutes on 2 quiet cores
    python benchmarks/rl_update.py --rounds 1 --no_scaling      # about 3

Reads   data/tiny_coder and data/mini_train.jsonl; an adapter with --sft_model, else it trains one first
Prints  tables and, last, one JSON line with the same figures and those of every single update

What is equal: the base model in float32 with the same adapter, the tasks, the sandbox that rewards, 8 tasks
x 4 samples of at most 96 tokens from the full distribution, and 4 optimizer steps, each on all 32 completions
with a clipped ratio per token and without a KL term. Ours is the script itself, through its command line.
It computes nothing for tasks whose samples all get the same reward; TRL does. In the row "ours" a length
penalty keeps rewards apart, so that hardly anything is skipped (flat tasks: share of those with equal
rewards); the row "no length penalty" has TRL's reward. The row "NF4" is the script as it is, with the base
model rounded to 4 bit; on a CPU it unpacks the weights after loading.

Every run is a process of its own; they take turns. The first update of a run warms up and is left out.
Seconds are medians over updates and rounds; ratios are taken within each round first. Rollout, reward and
update are shares of the time: ours scores programs while others are sampled and then waits for the last ones;
TRL's rollout contains its pass for the old log-probabilities. Peak memory is without the sandbox's processes.
Other work on the machine spoils everything: torch's threads wait for each other many times longer.
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
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GROUP = 4  # completions of each task
SIZES = {"num_completions": 32, "max_new_tokens": 96, "micro_batch_size": 8, "epochs": 4}
SCALING = [{"num_completions": n} for n in (8, 16, 32, 64, 128)]
SCALING += [{"max_new_tokens": n} for n in (48, 96, 192)]
HEADER = "what | s per update | rollout | reward | update | tokens each | tokens/s | flat tasks | peak MB"
PARTS = "seconds rollout reward update gen_len flat".split()  # one number per update in every record


def run_child(script, what, **arguments):
    """Call the function `what` of a benchmark script in a process of its own; returns its record.

    Raises SystemExit with the end of its output where it fails. This process must stay small: the peak memory
    of a child begins with that of the parent it was forked from.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), "--child", json.dumps({"what": what, **arguments})]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} {arguments} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_script(name, flags):
    """Run a training script in this process as the command line would; returns its variables."""
    argv = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    sys.argv = [str(ROOT / name), *argv]
    return runpy.run_path(sys.argv[0], run_name="__main__")


def read_log(path, num_completions, **names):
    """Figures of all updates but the first from a log of ours; `names` are those of its fields."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    record = {name: [row[field] for row in rows[1:]] for name, field in names.items()}
    record["seconds"] = [row["seconds"] - before["seconds"] for before, row in zip(rows, rows[1:])]
    return record | {"num_completions": num_completions}


# -- ours ----------------------------------------------------------------------------------------------------


def ours(sft_model, train_path, sizes, num_updates, seed, nf4=False, alpha=0.01):
    """Run train_ppo_lora.py, in float32 unless nf4; returns its record."""
    import torch
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def load_float32(name, quantization_config, **rest):
        model = load(name, **rest)
        model.dequantize = lambda: model  # which load_base calls on a CPU
        return model

    if not nf4:
        AutoModelForCausalLM.from_pretrained = load_float32
    flags = {"sft_model": sft_model, "train_path": train_path, "num_updates": num_updates, "seed": seed}
    flags |= {"batch_size": sizes["num_completions"] // GROUP, "samples_per_task": GROUP}
    flags |= {"max_new_tokens": sizes["max_new_tokens"], "micro_batch_size": sizes["micro_batch_size"]}
    flags |= {"ppo_epochs": sizes["epochs"], "ratio_level": "token", "baseline": "group"}
    flags |= {"learning_rate": 2e-4, "length_penalty_alpha": alpha}
    with tempfile.TemporaryDirectory() as folder:
        variables = run_script("train_ppo_lora.py", flags | {"output_dir": folder})
        names = {name: f"{name}_seconds" for name in ("rollout", "reward", "update")}
        log = f"{folder}/ppo_train_log.jsonl"
        record = read_log(log, sizes["num_completions"], gen_len="avg_gen_len", flat="flat", **names)
    layers = [m.base_layer for m in variables["model"].modules() if hasattr(m, "base_layer")]
    kinds = {(type(layer), layer.weight.dtype) for layer in layers}
    rounded = len(layers[0].weight.flatten()[:64].unique()) <= 16  # a block of 64 weights in NF4
    if not nf4 and (rounded or kinds != {(torch.nn.Linear, torch.float32)}):
        raise RuntimeError(f"not the layers that were to be measured: {kinds}, rounded: {rounded}")
    return record


# -- TRL -----------------------------------------------------------------------------------------------------


def train_trl(model, tokenizer, tasks, sizes, group, num_updates, seed):
    """Train with GRPOTrainer; returns the record of all updates but the first.

    Raises RuntimeError where TRL did not do the work described above, as after a change of its defaults: a
    number for other work is worse than none.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sandbox import Sandbox, score

    epochs, num_completions = sizes["epochs"], sizes["num_completions"]
    record = {name: [] for name in PARTS}
    generated_at, times, lengths = [], [], []  # optimizer steps before each generation; clock; tokens

    class Clock(TrainerCallback):
        """An update lasts from before its generation to the end of its last optimizer step."""

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % epochs == 0:  # TRL generates within this step, after this call
                times[:] = [time.perf_counter()]

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % epochs == 0:
                (start, generated, scored), end = times, time.perf_counter()
                seconds = end - start, generated - start, scored - generated, end - scored
                for name, value in zip(PARTS, seconds):
                    record[name].append(value)

    def reward(completions, completion_ids, index, trainer_state, **kwargs):
        times.append(time.perf_counter())
        results = score(sandbox, [tasks[i] for i in index], completions)
        rewards = [float(result.outcome == "passed") for result in results]
        times.append(time.perf_counter())
        generated_at.append(trainer_state.global_step)
        lengths.extend(len(ids) for ids in completion_ids)
        record["gen_len"].append(mean(len(ids) for ids in completion_ids))
        groups = [rewards[first : first + group] for first in range(0, len(rewards), group)]
        record["flat"].append(mean(len(set(values)) == 1 for values in groups))
        return rewards

    with tempfile.TemporaryDirectory() as folder, Sandbox(timeout=5.0) as sandbox:
        # one update: a generation, then `epochs` optimizer steps on all of it
        passes = {"gradient_accumulation_steps": num_completions // sizes["micro_batch_size"]}
        passes |= {"per_device_train_batch_size": sizes["micro_batch_size"], "num_generations": group}
        passes |= {"num_iterations": epochs, "max_steps": epochs * num_updates, "seed": seed}
        sampling = {
            "max_completion_length": sizes["max_new_tokens"],
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        }
        loss = {"loss_type": "dapo", "epsilon": 0.2, "beta": 0.0}  # dapo: mean over the tokens of the batch
        loss |= {"disable_dropout": True, "learning_rate": 2e-4, "lr_scheduler_type": "constant"}
        # TRL would take bfloat16 and gradient checkpointing, both slower on a CPU
        where = {"use_cpu": not torch.cuda.is_available(), "bf16": torch.cuda.is_available()}
        where |= {"gradient_checkpointing": False, "output_dir": folder}
        silence = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        config = GRPOConfig(**passes, **sampling, **loss, **where, **silence)
        rows = [{"prompt": task["prompt"].rstrip(), "index": i} for i, task in enumerate(tasks)]
        dataset = Dataset.from_list(rows)
        trainer = GRPOTrainer(model, reward, config, dataset, processing_class=tokenizer, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    if generated_at != list(range(0, epochs * num_updates, epochs)):
        raise RuntimeError(f"not {epochs} optimizer steps per generation, but generated at {generated_at}")
    if len(lengths) != num_completions * num_updates or max(lengths) > sizes["max_new_tokens"]:
        raise RuntimeError(f"not {num_completions} completions per update: {len(lengths)} in all")
    return {name: values[1:] for name, values in record.items()} | {"num_completions": num_completions}


def trl(sft_model, train_path, sizes, num_updates, seed):
    """Train the adapter on its base in float32; returns the record."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from sandbox import read_tasks

    tokenizer = AutoTokenizer.from_pretrained(sft_model)
    model = AutoPeftModelForCausalLM.from_pretrained(sft_model, is_trainable=True, dtype=torch.float32)
    return train_trl(model, tokenizer, read_tasks(train_path), sizes, GROUP, num_updates, seed)


# -- tables --------------------------------------------------------------------------------------------------


def row(what, records):
    """One row of the table from the records of all rounds."""
    pooled = {name: [value for record in records for value in record[name]] for name in PARTS}
    total = sum(pooled["seconds"])
    shares = [f"{100 * sum(pooled[name]) / total:.0f} %" for name in ("rollout", "reward", "update")]
    length, flat = mean(pooled["gen_len"]), mean(pooled["flat"])
    speed = records[0]["num_completions"] * sum(pooled["gen_len"]) / total
    peak = max(record["peak_mb"] for record in records)
    figures = round(length, 1), round(speed), round(flat, 2), peak
    cells = what, round(median(pooled["seconds"]), 3), *shares, *figures
    return dict(zip(HEADER.split(" | "), cells))


def show(rows):
    print("\n|", HEADER, "|\n|---" + "|---:" * (len(HEADER.split(" | ")) - 1), "|", sep=" ")
    for cells in rows:
        print("|", " | ".join(map(str, cells.values())), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_updates", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--no_scaling", action="store_true", help="leave out other sizes of an update")
    parser.add_argument("--sft_model", help="adapter folder on data/tiny_coder (default: train one)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        record = {"ours": ours, "trl": trl}[args.child.pop("what")](**args.child)
        record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(record))
        sys.exit()

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all on the CPU
    runs = {"ours": ("ours", {}), "TRL": ("trl", {})}
    runs |= {"ours, no length penalty": ("ours", {"alpha": 0.0}), "ours, NF4": ("ours", {"nf4": True})}
    if not find_spec("trl"):
        print("trl is not installed (pip install --no-deps -r benchmarks/requirements-rl.txt): ours only")
        del runs["TRL"]
    records, scaling, ratios = {name: [] for name in runs}, [], {}
    with tempfile.TemporaryDirectory() as folder:
        sft_model = args.sft_model or f"{folder}/sft"
        if not args.sft_model:
            flags = ["--model_name", "data/tiny_coder", "--train_path", "data/mini_train.jsonl"]
            command = [sys.executable, "train_sft_lora.py", *flags, "--learning_rate", "3.5e-4"]
            subprocess.run([*command, "--output_dir", sft_model], cwd=ROOT, check=True)
        lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines(keepends=True)

        def measure(kind, sizes, **rest):
            """The record of one run on as many tasks as its updates need."""
            train_path = Path(folder, "train.jsonl")
            number = args.num_updates * sizes["num_completions"] // GROUP
            train_path.write_text("".join(random.Random(0).sample(lines, min(number, len(lines)))))
            rest |= {"sft_model": sft_model, "train_path": str(train_path), "num_updates": args.num_updates}
            return run_child(__file__, kind, sizes=sizes, **rest)

        for number in range(1, args.rounds + 1):
            for name, (kind, arguments) in runs.items():
                records[name].append(measure(kind, SIZES, seed=number, **arguments))
            latest = {name: round(median(rounds[-1]["seconds"]), 2) for name, rounds in records.items()}
            print(f"round {number} of {args.rounds}, s per update: {latest}", file=sys.stderr)
        for change in [] if args.no_scaling else SCALING:
            known = change.items() <= SIZES.items()
            measured = records["ours"] if known else [measure("ours", SIZES | change, seed=1)]
            scaling.append(row("ours, {} {}".format(*change.popitem()), measured))
            print(scaling[-1], file=sys.stderr)

    rows = [row(name, rounds) for name, rounds in records.items()]
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {args.rounds} rounds")
    show(rows)
    for name, rounds in records.items():
        if name != "TRL" and "TRL" in records:
            pairs = zip(records["TRL"], rounds)
            ratios[name] = median(median(trl["seconds"]) / median(own["seconds"]) for trl, own in pairs)
            skipped = mean(value for own in rounds for value in own["flat"])
            print(f"TRL takes {ratios[name]:.2f} times as long as: {name} (skips {skipped:.0%} of the tasks)")
    if scaling:
        show(scaling)
    print(json.dumps({"rows": rows, "ratios": ratios, "scaling": scaling, "records": records}))
