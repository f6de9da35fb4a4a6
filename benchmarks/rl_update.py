"""Time per update of train_grpo_lora.py and of TRL's GRPOTrainer, the same GRPO: tiny model, on the CPU.

    pip install --no-deps -r benchmarks/requirements-rl.txt
    python benchmarks/rl_update.py                        # about 10 minutes on 2 quiet cores
    python benchmarks/rl_update.py --root OTHER_CHECKOUT  # ours there as well; prints ratios this / other
    python benchmarks/rl_update.py --model data/smollm2 --rounds 1 --num_updates 2  # a real model

Reads   data/tiny_coder and data/mini_train.jsonl; an adapter with --sft_model, else it trains one first
Prints  differences in the first update, figures of each run and, last, one JSON line with all of every round;
        with --model also where the time of ours goes, and GFLOP/s beside those of one matrix product

Both sides have the same model (the base as ours loads it: rounded to 4 bit, unpacked to float32) with the
same adapter, the same sandbox for rewards, and the same algorithm: 4 tasks x 8 samples of at most 96 tokens
from the full distribution; advantages divided by the std of the group; loss dapo with a ratio per token,
clipped at 0.2, no KL; 1 or 4 optimizer steps, each on all 32 completions in micro-batches of 8. To begin
with, TRL gets the completions and rewards of one update of ours, and must find the same loss and the same
norm of the gradient in every step of that update. While the clock runs, each side samples its own.

What may differ is how it is done. Ours leaves finished completions out of the batch, computes a prompt once,
runs programs while others are sampled, and computes nothing for tasks whose samples all get the same reward,
as their gradient is 0. With 4 epochs it takes the old log-probs from the first one, TRL from a pass before.

With --model there are 4 tasks x 4 samples of at most 160 tokens and 1 epoch. Every second completion counts
as passed, after the sandbox has run it: a small model solves nothing, and the updates would be skipped. With
CPU_DTYPE=bfloat16 both sides compute in it, and rounding lets losses and norms differ by more.

Every run is a process of its own; they take turns. The first update warms up and is left out. Seconds are
medians over the updates; ratios are taken within each round, and the median of the rounds is printed. Times
per token are of all updates, by sampled token; CPU time is that of all threads of the trainer, without the
sandbox's processes. "samples: equal" says that both checkouts had the same completions. Where other work runs
on the machine, put OMP_NUM_THREADS=1 before the command: threads that wait for each other take many times
longer; CPU time then hardly changes.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"samples_per_task": 8, "max_new_tokens": 96, "micro_batch_size": 8, "learning_rate": 2e-4}
REAL = {"samples_per_task": 4, "max_new_tokens": 160, "micro_batch_size": 4}  # with --model
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}  # a waiting thread uses no CPU time
PHASES = "rollout", "update", "rewards"  # rollout: the model's part of it; rewards: waiting for them
SPENT: dict = {}  # seconds or floating-point operations so far, by phase, if phases() counts them
FIGURES = "seconds", "ms_per_token", "cpu_ms_per_token", "peak_mb"  # in every record
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of losses, and of norms of the gradient: parts of the norm


def run_child(script, root=ROOT, limit=None, **arguments):
    """Run a benchmark script on a checkout in a process of its own, --child; returns its last line, a record.

    Raises SystemExit with the end of its output where it fails, or does not end within `limit` seconds; then
    all that it started ends with it. This process must stay small: the peak memory of a child begins with
    that of the parent it was forked from.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(script), "--child", json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # what is there stays
        how = {"env": environment, "stdout": out, "stderr": err, "start_new_session": True}
        process = subprocess.Popen(command, cwd=root, **how)
        try:
            ending = f"failed ({process.wait(limit)})"
        except BaseException as error:  # too late; or Ctrl-C, which does not reach another session
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            ending = f"was not done after {limit:.0f} s"
        for file in out, err:
            file.seek(0)
        if process.wait():
            output = f"{out.read()[-1000:]}\n{err.read()[-3000:]}"
            raise SystemExit(f"{arguments} {ending} in {root}:\n{output}")
        return json.loads(out.read().splitlines()[-1])


def run_script(name, flags):
    """Run a training script of the folder we are in; returns its variables and the rows of its log.

    A row has the clock and the CPU time of the moment when it was written.
    """
    from accelerate import Accelerator

    rows = []

    def log(self, values, **rest):
        rows.append({**values, **SPENT, "clock": time.perf_counter(), "cpu": time.process_time()})

    Accelerator.log = log  # every script calls it once per update
    sys.argv = [name, *(f"--{flag}={value}" for flag, value in flags.items())]
    variables = runpy.run_path(name, run_name="__main__")
    return variables, rows


def durations(rows):
    """Seconds of all updates but the first."""
    return [row["clock"] - before["clock"] for before, row in zip(rows, rows[1:])]


def measured(rows, tokens):
    """The figures of a run; tokens: those of all updates but the first."""
    record = {"seconds": median(durations(rows)), "tokens": tokens}
    for name, clock in ("ms_per_token", "clock"), ("cpu_ms_per_token", "cpu"):
        record[name] = 1000 * (rows[-1][clock] - rows[0][clock]) / tokens
    for name in SPENT:
        record[name] = (rows[-1][name] - rows[0][name]) / (len(rows) - 1)
    return record


def pass_every_second():
    """A start_scoring for sandbox.py whose every second program has passed, after it was run."""
    from sandbox import job

    outcomes = cycle(["passed", "failed"])

    def start_scoring(box, task, completion):
        outcome = next(outcomes)  # now: the workers end in any order
        return box.pool.submit(lambda: replace(job(box, task, completion), outcome=outcome))

    return start_scoring


def ours(every_second=False, **flags):
    """The record of one run of train_grpo_lora.py."""
    import sandbox

    if every_second:
        sandbox.start_scoring = pass_every_second()  # the preflight does not use it
    with tempfile.TemporaryDirectory() as folder:
        _, rows = run_script("train_grpo_lora.py", flags | {"output_dir": folder})
        samples = list(map(json.loads, Path(folder, "samples.jsonl").read_text().splitlines()))
    if {row["epochs"] for row in rows} != {flags["grpo_epochs"]}:
        raise RuntimeError("an update was skipped or cut short")
    texts = [(sample["task_id"], sample["completion"]) for sample in samples]
    tokens = sum(sample["gen_len"] for sample in samples if sample["update"] > 1)
    return measured(rows, tokens) | {"samples": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}


def train_trl(flags, batch=None, device="cpu", every_second=False):
    """Train by GRPOTrainer with the flags of ours; returns a row per update, and loss and norm of each step.

    batch: samples of our script, which then take the place of TRL's own in the only update; every_second:
    their verdict. Raises RuntimeError where TRL did not do the work described above, as after a change of its
    defaults.
    """
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sandbox import Sandbox, compute_dtype, encode_prompt, read_tasks, score
    from train_grpo_lora import load_adapter

    model, tokenizer = load_adapter(flags["sft_model"], device, is_trainable=True)
    model.get_base_model().is_loaded_in_4bit = False  # or TRL would round the adapter to bfloat16
    tasks = read_tasks(flags["train_path"])
    prompts = [task["prompt"].rstrip() for task in tasks]
    if tokenizer(prompts)["input_ids"] != [encode_prompt(tokenizer, task) for task in tasks]:
        raise RuntimeError("TRL would have other prompts")
    epochs, G = flags["grpo_epochs"], flags["samples_per_task"]
    rows, lengths = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step % epochs == 0:
                rows.append({"clock": time.perf_counter(), "cpu": time.process_time()})

    def reward(completions, completion_ids, index, **rest):
        lengths.append([len(ids) for ids in completion_ids])
        if batch:
            return [sample["reward"] for sample in batch]
        passed = [r.outcome == "passed" for r in score(sandbox, [tasks[i] for i in index], completions)]
        return [float(i % 2 == 0 if every_second else ok) for i, ok in enumerate(passed)]

    def stored(prompts, trainer):
        names = "prompt_ids", "completion_ids"
        return {name: [sample[name] for sample in batch] for name in names} | {"logprobs": None}

    with tempfile.TemporaryDirectory() as folder, Sandbox(timeout=5.0) as sandbox:
        config = GRPOConfig(
            folder,
            per_device_train_batch_size=flags["micro_batch_size"],
            gradient_accumulation_steps=flags["batch_size"] * G // flags["micro_batch_size"],
            num_generations=G,
            num_iterations=epochs,  # optimizer steps on each generation
            max_steps=epochs * flags["num_updates"],
            seed=flags["seed"],
            max_completion_length=flags["max_new_tokens"],
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            loss_type="dapo",
            scale_rewards="group",
            epsilon=0.2,
            beta=0.0,
            disable_dropout=True,
            learning_rate=flags["learning_rate"],
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            use_cpu=device == "cpu",
            bf16=False,  # ours has no autocast; nor gradient checkpointing, which is slower
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": prompts, "index": list(range(len(tasks)))})
        extra = {"rollout_func": stored} if batch else {}
        trainer = GRPOTrainer(
            model, reward, config, dataset, processing_class=tokenizer, callbacks=[Clock()], **extra
        )
        trainer.train()
    expected = [flags["batch_size"] * G] * flags["num_updates"]
    if list(map(len, lengths)) != expected or len(rows) != flags["num_updates"]:
        raise RuntimeError(f"not the completions that were to be measured: {list(map(len, lengths))}")
    if {p.dtype for p in model.parameters() if p.requires_grad} != {torch.float32}:
        raise RuntimeError("the adapter is not in float32")
    if device == "cpu" and {p.dtype for p in model.parameters() if not p.requires_grad} != {
        compute_dtype("cpu")
    }:
        raise RuntimeError("the base is in another format than ours")
    steps = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
    return rows, sum(map(sum, lengths[1:])), steps


def trl(every_second=False, **flags):
    """The record of one run of TRL."""
    rows, tokens, _ = train_trl(flags, every_second=every_second)
    return measured(rows, tokens)


def first_update(every_second=False, **flags):
    """(loss, norm of the gradient) of each step of one update of ours, and of TRL on its completions."""
    import sandbox

    if every_second:
        sandbox.start_scoring = pass_every_second()
    flags |= {"num_updates": 1}
    with tempfile.TemporaryDirectory() as folder:
        variables, _ = run_script("train_grpo_lora.py", flags | {"output_dir": folder})
    steps = [(stats["loss"], stats["grad_norm"]) for stats in variables["epoch_stats"]]
    return {"ours": steps, "trl": train_trl(flags, variables["batch"])[2]}


def phases(count_flops=False, **flags):
    """The record of ours with seconds or floating-point operations per update in each phase, and the GFLOP/s
    of one matrix product. The rest of the seconds is sampling, the optimizer and the log."""
    import torch
    from peft import PeftModelForCausalLM
    from torch.utils.flop_counter import FlopCounterMode

    from sandbox import compute_dtype

    matrix = torch.randn(2048, 2048).to(compute_dtype("cpu"))
    products = []
    for _ in range(6):
        start = time.perf_counter()
        matrix @ matrix
        products.append(time.perf_counter() - start)
    counter = FlopCounterMode(display=False) if count_flops else nullcontext()
    SPENT.update(dict.fromkeys(PHASES, 0.0))

    def now():
        return counter.get_total_flops() if count_flops else time.perf_counter()

    def clocked(function, phase=None):
        def call(*args, **options):
            start = now()
            result = function(*args, **options)
            SPENT[phase or ("update" if torch.is_grad_enabled() else "rollout")] += now() - start
            return result

        return call

    PeftModelForCausalLM.forward = clocked(PeftModelForCausalLM.forward)
    torch.Tensor.backward = clocked(torch.Tensor.backward, "update")
    Future.result = clocked(Future.result, "rewards")
    with counter:
        record = ours(**flags)
    return record | {"peak_gflops": 2 * 2048**3 / min(products) / 1e9}


def where(times, flops):
    """A line on two records of phases(), of seconds and of floating-point operations."""
    texts = [f"{times['seconds']:.1f} s per update of {times['tokens']} tokens"]
    for name in PHASES:
        text = f"{name} {times[name] / times['seconds']:.0%}"
        if flops[name]:
            text += f" ({flops[name] / times[name] / 1e9:.0f} GFLOP/s)"
        texts.append(text)
    return ", ".join(texts) + f"; one matrix product: {times['peak_gflops']:.0f} GFLOP/s"


def different(ours, trl):
    """A line on how far losses and norms of the gradient are apart; SystemExit above the tolerance."""
    losses, norms = [], []
    for (loss, norm), (their_loss, their_norm) in zip(ours, trl, strict=True):
        losses.append(abs(loss - their_loss))
        norms.append(abs(norm - their_norm) / norm)
    line = f"first update, {len(ours)} steps on the same completions: losses differ by {max(losses):.1e},"
    line += f" norms of the gradient by {max(norms):.1e} of the norm"
    tolerance = TOLERANCE[os.environ.get("CPU_DTYPE", "float32")]
    if not all(difference < tolerance for difference in losses + norms):  # not a number is refused, too
        raise SystemExit(f"{line}: ours {ours}, TRL {trl}")
    return line


def report(records, pairs, **others):
    """Print medians of the rounds and, of pairs of runs, medians of the ratios within each round; then JSON.

    records: {name of a run: its records, one per round}; pairs: [(name, name)]; others are in the JSON only.
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
    found = {"medians": medians, "ratios": ratios, "records": records, "machine": machine}
    print(json.dumps(found | others))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_updates", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--batch_size", type=int, default=4, help="tasks per update")
    parser.add_argument("--model", default="data/tiny_coder", help="folder of another base model")
    parser.add_argument("--sft_model", type=Path, help="adapter on it (default: train one)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        parts = {"ours": ours, "trl": trl, "first_update": first_update, "phases": phases}
        record = parts[args.child.pop("part")](**args.child)
        print(json.dumps(record | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        sys.exit()

    os.environ |= ON_CPU
    is_tiny = args.model == "data/tiny_coder"
    all_epochs = (1, 4) if is_tiny else (1,)
    with_trl = find_spec("trl")
    runs = {}  # {name: (checkout, part, epochs)}
    pairs = []
    for epochs in all_epochs:
        name = f"{epochs} epoch" + "s" * (epochs > 1)
        runs[f"this, {name}"] = ROOT, "ours", epochs
        if with_trl:
            runs[f"TRL, {name}"] = ROOT, "trl", epochs
            pairs.append((f"TRL, {name}", f"this, {name}"))
        if args.root:
            runs[f"other, {name}"] = args.root.resolve(), "ours", epochs
            pairs.append((f"this, {name}", f"other, {name}"))
    if not with_trl:
        print("ours only; for TRL: pip install --no-deps -r benchmarks/requirements-rl.txt")
    records, others = {name: [] for name in runs}, {}
    with tempfile.TemporaryDirectory() as folder:
        sft_model = args.sft_model.resolve() if args.sft_model else f"{folder}/sft"
        if not args.sft_model:
            command = [sys.executable, "train_sft_lora.py", "--model_name", args.model]
            command += ["--train_path", "data/mini_train.jsonl", "--learning_rate", "3.5e-4"]
            command += [] if is_tiny else ["--max_steps", "2"]
            command += ["--output_dir", sft_model]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-1000:])
        lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines(keepends=True)
        train_path = Path(folder, "train.jsonl")  # as many tasks as the updates need: the preflight runs all
        train_path.write_text("".join(random.Random(0).sample(lines, args.num_updates * args.batch_size)))
        flags = {**FLAGS, "sft_model": str(sft_model), "train_path": str(train_path)}
        flags |= {"num_updates": args.num_updates, "batch_size": args.batch_size}
        flags |= {} if is_tiny else {**REAL, "every_second": True}
        for epochs in all_epochs if with_trl else ():
            steps = run_child(__file__, part="first_update", grpo_epochs=epochs, seed=0, **flags)
            print(different(steps["ours"], steps["trl"]), flush=True)
        for number in range(args.rounds):
            for name in list(runs)[:: -1 if number % 2 else 1]:  # each is first in turn
                root, part, epochs = runs[name]
                arguments = {"part": part, "grpo_epochs": epochs, "seed": number, **flags}
                records[name].append(run_child(__file__, root, **arguments))
            latest = {name: round(rounds[-1]["seconds"], 2) for name, rounds in records.items()}
            print(f"round {number + 1} of {args.rounds}, seconds per update: {latest}", file=sys.stderr)
        if not is_tiny:
            flags |= {"part": "phases", "grpo_epochs": 1, "seed": 0}
            for name, count in ("times", False), ("flops", True):
                others[name] = run_child(__file__, count_flops=count, **flags)
            print(where(**others))
    if args.root:
        both = [pair for pair in pairs if pair[1].startswith("other")]
        hashes = [[[record["samples"] for record in records[name]] for name in pair] for pair in both]
        equal = all(one == two for one, two in hashes)
        print("samples:", "equal" if equal else "NOT EQUAL, the checkouts did different work")
    report(records, pairs, **others)
