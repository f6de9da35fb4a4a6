"""Supervised fine-tuning of a code model on reference solutions, with the loss on the solution only.

    minimise  mean of -log p(token | everything before)   over the tokens of canonical_solution + EOS

The prompt is input but no target (label -100). The EOS is one: without it the model never learns to stop.
The base model is quantised to 4 bit (NF4, QLoRA: Dettmers et al. 2023, arXiv:2305.14314) and frozen; LoRA
adapters (Hu et al. 2021, arXiv:2106.09685) on all its linear layers are trained, in float32.

    python train_sft_lora.py --train_path data/humaneval_train.jsonl --output_dir checkpoints/NAME_sft

Reads a task file with the fields of HumanEval. Writes to --output_dir: the adapter and its tokenizer,
run_config.json, sft_train_log.jsonl (a line per step) and state.pt (for --resume after Ctrl-C or kill -9).
"""

import hashlib
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.optimization import get_linear_schedule_with_warmup

from sandbox import compute_dtype, encode_prompt, lossy, open_log, parse_config, read_tasks, reference

from sandbox import stop_with, within  # isort: skip

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --learning_rate 1e-4"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    model_name: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name or folder
    output_dir: str = "checkpoints/deepseek_1_3b_lora_sft_v2"
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    # -- adapter --
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    target_modules: str = "all-linear"  # or names, as in "q_proj v_proj": the layers that get an adapter
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
    # -- long runs and logs --
    resume: bool = False  # continue from output_dir/state.pt
    save_every: int = 10  # steps between two saves of adapter and state
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    seed: int = 42
    log_every: int = 1  # optimizer steps per printed line; the log file has every step


# ---- model and files: copies, kept equal by tests/test_copies.py ----------------------------------------


def load_base(model_name, device, revision=None):
    """The frozen base model in 4-bit NF4 with double quantisation, and its tokenizer; or SystemExit."""
    dtype = compute_dtype(device)
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    args = {"quantization_config": BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype), "dtype": dtype}
    args |= {"device_map": device, "use_safetensors": True, "revision": revision, "output_loading_info": True}
    with stop_with(f"cannot load {model_name} (offline: PROFILE=tiny; moved: mend adapter_config.json)"):
        tokenizer = AutoTokenizer.from_pretrained(model_name, revision=revision)
        model, info = AutoModelForCausalLM.from_pretrained(model_name, **args)
        if info["missing_keys"]:  # transformers only warns, and makes random ones
            raise ValueError(f"its files have no {', '.join(sorted(info['missing_keys'])[:3])}")
    tokenizer.pad_token = tokenizer.eos_token  # its own may have no embedding; masks come from lengths
    if device == "cpu":
        model = model.dequantize()  # the same rounded weights, unpacked once and not at every use
    return model.requires_grad_(False), tokenizer


def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and, last, run_config.json: a folder that has it is complete."""
    Path(output_dir, "run_config.json").unlink(missing_ok=True)
    model.save_pretrained(output_dir, save_embedding_layers=False)
    tokenizer.save_pretrained(output_dir)
    Path(output_dir, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")


# ---- rows and loss ------------------------------------------------------------------------------------


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


def collate(rows: list, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) input_ids and labels, padded on the right, where no real token sees the padding."""
    ids = pad_sequence([torch.tensor(ids) for ids, _ in rows], True, pad_token_id)
    labels = pad_sequence([torch.tensor(labels) for _, labels in rows], True, -100)
    return ids, labels


def sft_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over the labels other than -100. logits: (B, T, V); labels: (B, T), unshifted."""
    logits = logits[:, :-1].float().flatten(0, 1)  # logits[t] predicts labels[t + 1]
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    cfg = parse_config(Config, free="lora_dropout max_steps warmup_ratio weight_decay seed")
    if not (0 <= cfg.lora_dropout < 1 and 0 <= cfg.warmup_ratio <= 1 and cfg.weight_decay >= 0):
        raise SystemExit("--lora_dropout and --warmup_ratio go from 0 to 1, --weight_decay is at least 0")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes

    tasks = read_tasks(cfg.train_path, cfg.prompt_format)
    folder = Path(cfg.model_name).resolve()  # of a local base the adapter keeps the full path
    model, tokenizer = load_base(str(folder) if folder.is_dir() else cfg.model_name, device)
    if lossy(tokenizer, tasks) == tasks:
        raise SystemExit("the tokenizer of this model does not keep the text; try a newer transformers")
    lora = {"r": cfg.lora_r, "lora_alpha": cfg.lora_alpha, "lora_dropout": cfg.lora_dropout}
    names = cfg.target_modules if cfg.target_modules == "all-linear" else cfg.target_modules.split()
    torch.manual_seed(cfg.seed % 2**64)  # the same first adapter in every process
    with stop_with("cannot add the adapter (--target_modules all-linear suits every model)"):
        model = get_peft_model(model, LoraConfig(**lora, target_modules=names, task_type="CAUSAL_LM"))
    trainable = [p for p in model.parameters() if p.requires_grad]
    within(model, tokenizer, 0)
    rows = [encode_row(tokenizer, task, cfg.max_length) for task in tasks]
    rows = [row for row in rows if max(row[1]) >= 0]  # a row without labels has a loss of NaN
    if not rows:
        raise SystemExit(f"{cfg.train_path}: no solution token fits into --max_length {cfg.max_length}")
    within(model, tokenizer, max(len(ids) for ids, _ in rows))
    rows_per_process = cfg.per_device_train_batch_size * cfg.gradient_accumulation_steps
    rows_per_step = rows_per_process * world
    num_steps = math.ceil(len(rows) * cfg.num_train_epochs / rows_per_step)
    num_steps = cfg.max_steps if cfg.max_steps > 0 else num_steps
    order = []  # every row once before one comes again
    for n in range(math.ceil(num_steps * rows_per_step / len(rows))):
        order += random.Random(f"{cfg.seed} {n}").sample(rows, len(rows))
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(cfg.warmup_ratio * num_steps), num_steps)
    cut = sum(row[1][-1] != tokenizer.eos_token_id for row in rows)
    accelerator.print(f"{len(rows)} of {len(tasks)} rows have a solution token, {cut} are cut; on {device}")
    num_adapted = len(model.targeted_module_names)
    accelerator.print(f"{num_steps} steps x {rows_per_step} rows, adapters on {num_adapted} layers")

    may_change = "output_dir resume save_every report_to log_every per_device_train_batch_size".split()
    may_change.append("gradient_accumulation_steps")  # only their product matters, with the processes
    settings = {name: value for name, value in asdict(cfg).items() if name not in may_change}
    settings |= {"rows_per_step": rows_per_step}
    settings[cfg.train_path] = hashlib.sha256(Path(cfg.train_path).read_bytes()).hexdigest()
    state: dict = {"settings": settings, "step": 0, "seconds": 0.0, "log_size": 0}
    state_path = Path(cfg.output_dir, "state.pt")
    if cfg.resume and state_path.exists():
        with stop_with(f"--resume: {state_path} cannot be used; repeat its settings or delete it"):
            state = torch.load(state_path, "cpu", weights_only=True)  # runs no code from the file
            changed = [name for name, value in settings.items() if state["settings"].get(name) != value]
        if changed:
            raise SystemExit(f"--resume: {state_path} was made with another {', '.join(changed)}; delete it")
        for p, saved in zip(trainable, state.pop("lora")):
            p.data.copy_(saved)
        optimizer.load_state_dict(state.pop("optimizer"))
    scheduler.last_epoch = state["step"]
    if state["step"] >= num_steps:
        accelerator.print(f"{cfg.output_dir} is finished")
        sys.exit()
    run_config = {**asdict(cfg), **settings, "method": "SFT"}
    if is_main:
        with stop_with(f"cannot write to --output_dir {cfg.output_dir}"):
            log = open_log(f"{cfg.output_dir}/sft_train_log.jsonl")
        if state["step"] == 0:  # a new run: what an older one left must not be taken for its own
            state_path.unlink(missing_ok=True)
            Path(cfg.output_dir, "run_config.json").unlink(missing_ok=True)
        log.truncate(min(state["log_size"], log.tell()))  # drop the lines of steps after the state
    accelerator.init_trackers("sft", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    model.train()
    for step in tqdm(range(state["step"] + 1, num_steps + 1), disable=None if is_main else True):
        batch = order[(step - 1) * rows_per_step : step * rows_per_step]
        # divided by the labels of the whole step, so that the micro-batch size changes nothing
        num_labels = sum(label != -100 for _, labels in batch for label in labels)
        mine = batch[rank * rows_per_process :][:rows_per_process]
        torch.manual_seed((1_000_003 * cfg.seed + step * world + rank) % 2**64)  # dropout
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for first in range(0, rows_per_process, cfg.per_device_train_batch_size):
            mb = collate(mine[first : first + cfg.per_device_train_batch_size], tokenizer.pad_token_id)
            ids, labels = (tensor.to(device) for tensor in mb)  # (mb, T)
            mb_loss = sft_loss(model(ids, use_cache=False).logits, labels) / num_labels
            mb_loss.backward()
            loss += mb_loss.detach()
        for p in trainable:  # a sum over processes: each has divided by the labels of all
            p.grad = accelerator.reduce(p.grad, "sum")
        loss = accelerator.reduce(loss, "sum").item()
        grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
        row = {"step": step, "loss": loss, "lr": optimizer.param_groups[0]["lr"], "grad_norm": grad_norm}
        if math.isfinite(loss + grad_norm):
            optimizer.step()
        scheduler.step()

        # ---- log ----
        row["seconds"] = time.time() - start
        accelerator.log(row, step=step)
        if not is_main:
            continue
        if step % cfg.log_every == 0:
            values = f"loss {loss:7.4f}  lr {row['lr']:.1e}  grad_norm {grad_norm:6.3f}"
            tqdm.write(f"step {step:4d}  {values}  {row['seconds']:5.0f} s")
        if not math.isfinite(loss + grad_norm):
            tqdm.write("warning: the gradient is not finite, the step is skipped: lower --learning_rate")

        # ---- save: log and adapter, then state.pt in one step; --resume reads only state.pt ----
        with stop_with(f"cannot write to {cfg.output_dir} (make room, then go on with --resume)"):
            log.write(json.dumps(row) + "\n")
            log.flush()
            is_last = step == num_steps
            if step % cfg.save_every == 0 or is_last:
                run_config |= {"step": step, "finished": is_last}
                save_adapter(model, tokenizer, cfg.output_dir, run_config)
                state |= {"step": step, "seconds": row["seconds"], "log_size": log.tell()}
                weights = {"lora": trainable, "optimizer": optimizer.state_dict()}
                torch.save(state | weights, f"{state_path}.tmp")
                Path(f"{state_path}.tmp").replace(state_path)  # a kill leaves the old state or the new one
    accelerator.end_training()
