"""Supervised fine-tuning of a code model on reference solutions, with the loss on the solution only.

    minimise  mean of -log p(token | everything before)   over the tokens of canonical_solution + EOS

The prompt is input but no target (label -100). The EOS is one: without it the model never learns to stop.
The base model is quantised to 4 bit (NF4, QLoRA: Dettmers et al. 2023, arXiv:2305.14314) and frozen; LoRA
adapters (Hu et al. 2021, arXiv:2106.09685) on all seven projections of each layer are trained, in float32.

    python train_sft_lora.py --train_path data/humaneval_train.jsonl \
        --output_dir checkpoints/deepseek_1_3b_lora_sft_v2

Reads a task file with the fields of HumanEval. Writes to --output_dir: the adapter with its tokenizer,
run_config.json, sft_train_log.jsonl (one line per optimizer step) and state/ (for --resume).
"""

import hashlib
import io
import json
import math
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser
from transformers.optimization import get_linear_schedule_with_warmup

from sandbox import overlap, read_tasks, reference

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --learning_rate 1e-4"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    test_path: str = "data/humaneval_test.jsonl"  # of the later evaluation: only compared with
    model_name: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name or folder
    output_dir: str = "checkpoints/deepseek_1_3b_lora_sft_v2"
    # -- adapter --
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    # -- optimisation --
    per_device_train_batch_size: int = 1  # rows per forward and backward pass, in each process
    gradient_accumulation_steps: int = 8  # passes per optimizer step
    num_train_epochs: float = 1.0
    max_steps: int = 0  # optimizer steps; above 0 it replaces num_train_epochs
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.03  # share of the steps in which the learning rate rises; then it falls to 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 1024  # tokens; longer rows are cut, and left out when no solution token remains
    # -- long runs --
    resume: bool = False  # continue from the last state in output_dir
    save_every: int = 10  # steps between two states
    max_bad_steps: int = 3  # stop after so many steps in a row whose gradient is not finite
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    # -- other --
    seed: int = 42
    log_every: int = 1  # optimizer steps per printed line; the log file has every step


# ---- command line and data: copies, kept equal by tests/test_copies.py ------------------------------


def parse_config(config_class, positive):
    """Config from the command line; SystemExit where a field named in `positive` is not above 0."""
    in_notebook = "kernel_launcher" in sys.argv[0] or "ipykernel" in sys.argv[0]
    flags = [] if in_notebook else None  # there they are the kernel's
    parser = HfArgumentParser(config_class, usage="%(prog)s [--help] [--FLAG VALUE ...]")
    config, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    if unknown:
        raise SystemExit(f"unknown flags: {' '.join(unknown)}; --help lists the known ones")
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise SystemExit(f"--{name} must be above 0, not {getattr(config, name)}")
    return config


def encode_prompt(tokenizer, task: dict) -> list[int]:
    """Token ids of the prompt, BOS included, without its final newline.

    Byte-level BPE merges that newline with the indentation after it; a prompt that ends in a lone newline
    token is one the model never saw. So the newline is the beginning of the completion.
    """
    return tokenizer(task["prompt"].rstrip())["input_ids"]


def draw(rows: list, first: int, count: int, seed: int) -> list:
    """Rows first .. first + count of an endless series of shuffles; the same in a run that was resumed."""
    shuffles = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    drawn = [row for n in shuffles for row in random.Random(f"{seed} {n}").sample(rows, len(rows))]
    return drawn[first % len(rows) :][:count]


# ---- rows -------------------------------------------------------------------------------------------


def encode_row(tokenizer, task: dict, max_length: int) -> tuple[list[int], list[int]]:
    """(ids, labels) of prompt + solution + EOS: labels are -100 on the prompt.

    Prompt and solution are encoded apart and joined as ids, so the border is exact. A row longer than
    max_length is cut on the right and then has no EOS.

        ids    = [BOS, def, f, ..., \\n, return, x, EOS]
        labels = [-100, -100, -100, ..., \\n, return, x, EOS]
    """
    prompt_ids = encode_prompt(tokenizer, task)
    solution_ids = tokenizer(reference(task), add_special_tokens=False)["input_ids"]
    solution_ids = [*solution_ids, tokenizer.eos_token_id]
    ids = prompt_ids + solution_ids
    labels = [-100] * len(prompt_ids) + solution_ids
    return ids[:max_length], labels[:max_length]


def collate(rows: list, pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded (B, T) input_ids, attention_mask and labels; the mask comes from lengths: pad = eos."""
    width = max(len(ids) for ids, _ in rows)
    input_ids = [ids + [pad_token_id] * (width - len(ids)) for ids, _ in rows]
    attention_mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(input_ids), torch.tensor(attention_mask), torch.tensor(labels)


# ---- model: copies, kept equal by tests/test_copies.py ----------------------------------------------


def load_base(model_name, device):
    """The frozen base model in 4-bit NF4 with double quantisation, and its tokenizer."""
    dtype = torch.float32  # of the computation: the fast format on a CPU
    if device.startswith("cuda"):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantization = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype)
    arguments = {"quantization_config": quantization, "dtype": dtype, "device_map": {"": device}}
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, **arguments, use_safetensors=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks come from lengths, so any token will do
    if device == "cpu":  # the same rounded weights, unpacked once and not at every use
        model = model.dequantize()
    return model.requires_grad_(False), tokenizer


# ---- files: copies, kept equal by tests/test_copies.py ----------------------------------------------


def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and, last, run_config.json: a folder that has it is complete."""
    Path(output_dir, "run_config.json").unlink(missing_ok=True)
    model.save_pretrained(output_dir, save_embedding_layers=False, selected_adapters=["default"])
    tokenizer.save_pretrained(output_dir)
    Path(output_dir, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")


def save_state(output_dir, state, trainable, optimizer, logs):
    """Write what --resume needs, atomically, to a file named by its SHA-256; keep the last two."""
    state = state | {"adapter": trainable, "optimizer": optimizer.state_dict()}
    buffer = io.BytesIO()
    torch.save(state | {"log_sizes": [os.path.getsize(log.name) for log in logs]}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = Path(output_dir, "state", f"{state['done']:08d}_{digest}.pt")
    path.with_name("unfinished").write_bytes(buffer.getvalue())
    os.replace(path.with_name("unfinished"), path)
    for old in sorted(path.parent.glob("*.pt"))[:-2]:
        old.unlink()


def load_state(output_dir, identity, trainable, optimizer):
    """Load the newest sound state of the run with this identity; {} if there is none, or SystemExit."""
    paths = sorted(Path(output_dir, "state").glob("*.pt"), reverse=True)
    for path in paths:
        problem = "is damaged"
        if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem[9:]:
            state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
            other = [name for name, value in identity.items() if state["identity"].get(name) != value]
            if not other:
                optimizer.load_state_dict(state.pop("optimizer"))
                for parameter, saved in zip(trainable, state.pop("adapter")):
                    parameter.data.copy_(saved)
                return state
            problem = f"is of a run with another {', '.join(other)}"
        print(f"--resume: {path} {problem}; trying the one before")
    if paths:
        raise SystemExit(f"--resume: nothing in {output_dir}/state fits; delete that folder to start again")
    return {}


def open_logs(output_dir, names, sizes):
    """Create the folder and open its logs, cut to `sizes` bytes; sizes None is a new run, without states."""
    try:
        if sizes is None:
            for name in "state", "best":
                shutil.rmtree(Path(output_dir, name), ignore_errors=True)
        os.makedirs(Path(output_dir, "state"), exist_ok=True)
        logs = [open(Path(output_dir, name), "a") for name in names]
        Path(output_dir, "run_config.json").unlink(missing_ok=True)  # it would call this run finished
    except OSError as error:
        raise SystemExit(f"cannot write to the folder {output_dir} ({error.strerror}); choose another one")
    for log, size in zip(logs, sizes or [0] * len(logs)):
        log.truncate(min(size, os.path.getsize(log.name)))
    return logs


# ---- loss -------------------------------------------------------------------------------------------


def sft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over the labels other than -100. logits: (B, T, V); labels: (B, T), unshifted."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),  # logits[t] predicts labels[t + 1]
        labels[:, 1:].flatten(),
        ignore_index=-100,
        reduction="sum",
    )


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    positive = "per_device_train_batch_size gradient_accumulation_steps num_train_epochs"
    cfg = parse_config(Config, f"{positive} learning_rate max_grad_norm save_every max_bad_steps log_every")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    if tracker and not accelerator.log_with:  # accelerate would only warn
        raise SystemExit(f"--report_to {tracker} needs a package: pip install {tracker}")
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main = accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    tasks = read_tasks(cfg.train_path)
    shared = overlap(tasks, cfg.test_path)
    accelerator.print(shared["summary"])
    try:
        model, tokenizer = load_base(cfg.model_name, device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "it must be a folder with safetensors or, with a network, a name on the Hugging Face hub"
        remedy += "; without one: PROFILE=tiny sh train_PPO.sh"
        raise SystemExit(f"cannot load the base model {cfg.model_name!r} ({reason}); {remedy}")
    text = "def f(x):\n    return x + 1"
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit("the tokenizer of this model does not keep the text; try a newer transformers")
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = {"r": cfg.lora_r, "lora_alpha": cfg.lora_alpha, "lora_dropout": cfg.lora_dropout}
    torch.manual_seed(cfg.seed)  # the same first adapter in every process
    model = get_peft_model(model, LoraConfig(**lora, target_modules=projections, task_type="CAUSAL_LM"))
    trainable = [p for p in model.parameters() if p.requires_grad]

    rows = [encode_row(tokenizer, task, cfg.max_length) for task in tasks]
    rows = [row for row in rows if max(row[1]) >= 0]  # a row without labels has a loss of NaN
    if not rows:
        raise SystemExit(
            f"no row of {cfg.train_path} fits a solution token into --max_length {cfg.max_length}"
        )
    rows_per_process = cfg.per_device_train_batch_size * cfg.gradient_accumulation_steps
    rows_per_step = rows_per_process * world
    num_steps = math.ceil(len(rows) * cfg.num_train_epochs / rows_per_step)
    num_steps = cfg.max_steps if cfg.max_steps > 0 else num_steps
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(cfg.warmup_ratio * num_steps), num_steps)
    cut = sum(row[1][-1] != tokenizer.eos_token_id for row in rows)
    left_out = len(tasks) - len(rows)
    accelerator.print(f"{len(rows)} rows ({left_out} without a solution token left out, {cut} cut), {device}")
    accelerator.print(f"{num_steps} steps x {rows_per_step} rows = {num_steps * rows_per_step} rows")
    accelerator.print(f"{sum(p.numel() for p in trainable)} trained parameters")

    may_change = "output_dir resume save_every max_bad_steps report_to log_every per_device_train_batch_size"
    may_change += " gradient_accumulation_steps test_path"
    identity = {name: value for name, value in asdict(cfg).items() if name not in may_change.split()}
    identity["rows_per_step"] = rows_per_step
    identity["train_sha256"] = hashlib.sha256(Path(cfg.train_path).read_bytes()).hexdigest()
    state: dict = {"done": 0, "bad_steps": 0, "seconds": 0.0, "log_sizes": None}
    state |= {"identity": identity, "good": [p.detach().clone() for p in trainable]}  # before the last step
    state |= load_state(cfg.output_dir, identity, trainable, optimizer) if cfg.resume else {}
    scheduler.last_epoch = state["done"]
    if is_main:
        logs = open_logs(cfg.output_dir, ["sft_train_log.jsonl"], state["log_sizes"])
    if tracker:
        accelerator.init_trackers("sft", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    progress = tqdm(total=num_steps, initial=state["done"], disable=None if is_main else True)
    stopped = ""  # why, where that is not after the last step
    model.train()
    try:
        while state["done"] < num_steps:
            step = state["done"] + 1
            batch = draw(rows, state["done"] * rows_per_step, rows_per_step, cfg.seed)
            # divided by the labels of the whole step, so that the micro-batch size changes nothing
            num_labels = sum(label != -100 for _, labels in batch for label in labels)
            batch = batch[rank * rows_per_process :][:rows_per_process]
            torch.manual_seed(1_000_003 * cfg.seed + step * world + rank)  # dropout
            optimizer.zero_grad()
            loss = torch.zeros((), device=device)
            for first in range(0, rows_per_process, cfg.per_device_train_batch_size):
                mb = collate(batch[first : first + cfg.per_device_train_batch_size], tokenizer.pad_token_id)
                input_ids, attention_mask, labels = (tensor.to(device) for tensor in mb)
                output = model(input_ids, attention_mask=attention_mask, use_cache=False)
                mb_loss = sft_loss(output.logits, labels) / num_labels
                mb_loss.backward()
                loss += mb_loss.detach()
            for p in trainable:  # a sum over processes: each has divided by the labels of all
                p.grad = accelerator.reduce(p.grad, "sum")
            loss = accelerator.reduce(loss, "sum").item()
            grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
            bad = not math.isfinite(loss + grad_norm)
            if not bad:
                state["good"] = [p.detach().clone() for p in trainable]
                optimizer.step()
            row = {"step": step, "loss": loss, "lr": optimizer.param_groups[0]["lr"], "grad_norm": grad_norm}
            row["seconds"] = time.time() - start
            scheduler.step()
            state |= {"done": step, "bad_steps": state["bad_steps"] + 1 if bad else 0}
            state["seconds"] = row["seconds"]

            accelerator.log(row, step=step)
            if is_main:
                logs[0].write(json.dumps(row) + "\n")
                logs[0].flush()
                if step % cfg.save_every == 0 or step == num_steps:
                    save_state(cfg.output_dir, state, trainable, optimizer, logs)
                if step % cfg.log_every == 0:
                    values = f"loss {loss:7.4f}  lr {row['lr']:.1e}  grad_norm {grad_norm:6.3f}"
                    tqdm.write(f"step {step:4d}  {values}  {row['seconds']:5.0f} s")
                if bad:
                    tqdm.write("warning: loss or gradient is not finite, the step is skipped")
            progress.update()
            if state["bad_steps"] >= cfg.max_bad_steps:
                raise FloatingPointError("no finite gradient")
    except KeyboardInterrupt:
        stopped = "interrupted"
    except FloatingPointError as error:
        stopped = f"{error}; lower --learning_rate"
        state["bad_steps"] += 1
    except torch.OutOfMemoryError:
        knob = "--per_device_train_batch_size (and raise --gradient_accumulation_steps by as much)"
        raise SystemExit(f"out of memory: lower {knob} and --resume, or lower --max_length")

    if state["bad_steps"] > 0:  # what the last good one made of the adapter was not good
        for p, saved in zip(trainable, state["good"]):
            p.data.copy_(saved)
    if is_main:
        run_config = {**asdict(cfg), **identity, "method": "SFT", "overlap": shared}
        run_config |= {"steps_done": state["done"], "finished": not stopped}
        save_adapter(model, tokenizer, cfg.output_dir, run_config)
        print(f"saved {cfg.output_dir}" + f" ({stopped} after {state['done']} steps)" * bool(stopped))
    accelerator.end_training()
    if stopped:
        sys.exit(130 if stopped == "interrupted" else 1)  # so that a shell script stops too
