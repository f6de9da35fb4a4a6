"""Supervised fine-tuning of a code model on reference solutions, with the loss on the solution only.

    minimise  mean of -log p(token | everything before)   over the tokens of canonical_solution + EOS

The prompt is input but no target (label -100). The EOS is one: without it the model never learns to stop.
The base model is quantised to 4 bit (NF4, QLoRA: Dettmers et al. 2023, arXiv:2305.14314) and frozen; LoRA
adapters (Hu et al. 2021, arXiv:2106.09685) on all seven projections of each layer are trained, in float32.

    python train_sft_lora.py --train_path data/humaneval_train.jsonl \
        --output_dir checkpoints/deepseek_1_3b_lora_sft_v2

Reads a task file with the fields of HumanEval. Writes to --output_dir: the adapter with its tokenizer,
run_config.json and sft_train_log.jsonl (one line per optimizer step).
"""

import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    HfArgumentParser,
    get_linear_schedule_with_warmup,
    set_seed,
)

from sandbox import read_tasks, reference

# ---------------------------------------------------------------------------------------------------
# Hyperparameters
# ---------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --learning_rate 1e-4"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    model_name: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name or folder
    output_dir: str = "checkpoints/deepseek_1_3b_lora_sft_v2"
    # -- adapter --
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    # -- optimisation --
    per_device_train_batch_size: int = 1  # rows per forward and backward pass
    gradient_accumulation_steps: int = 8  # passes per optimizer step
    num_train_epochs: float = 1.0
    max_steps: int = 0  # optimizer steps; above 0 it replaces num_train_epochs
    learning_rate: float = 5e-5
    warmup_ratio: float = (
        0.03  # share of the steps in which the learning rate rises from 0; then it falls to 0
    )
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 1024  # tokens; longer rows are cut, and left out when no solution token remains
    # -- other --
    seed: int = 42
    log_every: int = 1  # optimizer steps per printed line; the log file has every step


# Same in every script (tests/test_copies.py keeps the copies equal).
def parse_config(config_class, positive):
    """Config from the command line; pasted into a notebook, the kernel's own flags are not parsed.

    Raises SystemExit with one line at an unknown flag and where a field named in `positive` is not above 0.
    """
    flags = [] if "kernel_launcher" in sys.argv[0] else None
    parser = HfArgumentParser(config_class)
    config, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    if unknown:
        raise SystemExit(f"unknown flags: {' '.join(unknown)}; --help lists the known ones")
    for name in positive:
        if getattr(config, name) <= 0:
            raise SystemExit(f"--{name} must be above 0, not {getattr(config, name)}")
    return config


# ---------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------


# Same in every script (tests/test_copies.py keeps the copies equal).
def encode_prompt(tokenizer, task):
    """Token ids of the prompt, BOS included, without its final newline.

    Byte-level BPE merges that newline with the indentation after it; a prompt that ends in a lone newline
    token is one the model never saw. So the newline is the beginning of the completion.
    """
    return tokenizer(task["prompt"].rstrip())["input_ids"]


def encode_row(tokenizer, task, max_length):
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


def collate(rows, pad_token_id):
    """Right-padded (B, T) input_ids, attention_mask and labels; the mask comes from lengths: pad = eos."""
    width = max(len(ids) for ids, _ in rows)
    input_ids = [ids + [pad_token_id] * (width - len(ids)) for ids, _ in rows]
    attention_mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(input_ids), torch.tensor(attention_mask), torch.tensor(labels)


# ---------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------


# Same in every script (tests/test_copies.py keeps the copies equal).
def load_base(model_name, device):
    """The frozen base model in 4-bit NF4 with double quantisation, and its tokenizer.

    Computes in bfloat16 where the GPU has it, else in float16; on a CPU in float32, the fast format there.
    Raises SystemExit with one line when the model cannot be had.
    """
    dtype = torch.float32
    if device.startswith("cuda"):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForCausalLM.from_pretrained(
            model_name,
            quantization_config=quantization,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(
            f"cannot load the base model {model_name!r} ({reason}). It must be a folder with safetensors or "
            "a name on the Hugging Face hub, which needs a network; without one: PROFILE=tiny sh train_PPO.sh"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks come from lengths, so any token will do
    text = "def f(x):\n    return x + 1"
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit(f"the tokenizer of {model_name!r} does not keep the text; try a newer transformers")
    for module in model.modules():  # else generate() repacks the weights for a CPU kernel without gradients
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model, tokenizer


# Same in every train_*.py (tests/test_copies.py keeps the copies equal).
def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and run_config.json to a temporary folder, then move them to output_dir."""
    temporary = Path(output_dir, "unfinished_write")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, save_embedding_layers=False)
    tokenizer.save_pretrained(temporary)
    Path(temporary, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")
    files = sorted(temporary.iterdir(), key=lambda path: path.name == "run_config.json")  # last
    for path in files:
        os.replace(path, Path(output_dir, path.name))
    temporary.rmdir()


# Same in every train_*.py (tests/test_copies.py keeps the copies equal).
def prepare_output_dir(output_dir):
    """Create the folder; remove the run_config.json of an earlier run, which would call this one finished."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        Path(output_dir, "run_config.json").write_text("")
        Path(output_dir, "run_config.json").unlink()
    except OSError as error:
        raise SystemExit(
            f"cannot write to the output folder {output_dir} ({error.strerror}); choose another one"
        )


# ---------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------


def sft_loss(logits, labels):
    """Cross entropy summed over the labels other than -100. logits: (B, T, V); labels: (B, T), unshifted."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),  # logits[t] predicts labels[t + 1]
        labels[:, 1:].flatten(),
        ignore_index=-100,
        reduction="sum",
    )


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------
    # Setup
    # -----------------------------------------------------------------------------------------------
    cfg = parse_config(
        Config,
        ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "log_every"),
    )
    set_seed(cfg.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = read_tasks(cfg.train_path)
    model, tokenizer = load_base(cfg.model_name, device)
    lora = LoraConfig(
        r=cfg.lora_r,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    trainable = [p for p in model.parameters() if p.requires_grad]

    rows = [encode_row(tokenizer, task, cfg.max_length) for task in tasks]
    rows = [
        row for row in rows if any(label != -100 for label in row[1])
    ]  # a row without labels has a loss of NaN
    if not rows:
        raise SystemExit(
            f"no row of {cfg.train_path} keeps a solution token within --max_length {cfg.max_length}"
        )
    rows_per_step = cfg.per_device_train_batch_size * cfg.gradient_accumulation_steps
    num_steps = (
        cfg.max_steps if cfg.max_steps > 0 else math.ceil(len(rows) * cfg.num_train_epochs / rows_per_step)
    )
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    warmup_steps = math.ceil(cfg.warmup_ratio * num_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps, num_steps)

    prepare_output_dir(cfg.output_dir)
    log_file = open(Path(cfg.output_dir, "sft_train_log.jsonl"), "w")
    cut = sum(row[1][-1] != tokenizer.eos_token_id for row in rows)
    print(
        f"{len(rows)} rows ({len(tasks) - len(rows)} without a solution token left out, {cut} cut), {device}"
    )
    print(f"{num_steps} steps x {rows_per_step} rows = {num_steps * rows_per_step} rows")
    print(f"{sum(p.numel() for p in trainable)} trained parameters")

    # -----------------------------------------------------------------------------------------------
    # Training
    # -----------------------------------------------------------------------------------------------
    queue = []  # shuffled rows, refilled when empty: every row is drawn once before any is drawn again
    step = 0
    start = time.time()
    model.train()
    progress = tqdm(total=num_steps, desc="SFT", disable=not sys.stderr.isatty())
    try:
        while step < num_steps:
            while len(queue) < rows_per_step:
                queue += torch.randperm(len(rows)).tolist()
            batch = [rows[queue.pop(0)] for _ in range(rows_per_step)]
            # divided by the labels of the whole step, so that the micro-batch size changes nothing
            num_labels = sum(label != -100 for _, labels in batch for label in labels)
            sum_loss = 0.0
            for first in range(0, rows_per_step, cfg.per_device_train_batch_size):
                mb = batch[first : first + cfg.per_device_train_batch_size]
                input_ids, attention_mask, labels = collate(mb, tokenizer.pad_token_id)
                output = model(
                    input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False
                )
                loss = sft_loss(output.logits, labels.to(device)) / num_labels
                loss.backward()
                sum_loss += loss.item()
            grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1

            row = {
                "step": step,
                "loss": sum_loss,
                "lr": learning_rate,
                "grad_norm": grad_norm,
                "seconds": time.time() - start,
            }
            log_file.write(json.dumps(row) + "\n")
            log_file.flush()
            progress.update()
            if step % cfg.log_every == 0:
                tqdm.write(
                    f"step {step:4d}  loss {sum_loss:7.4f}  lr {learning_rate:.1e}  "
                    f"grad_norm {grad_norm:6.3f}  {row['seconds']:5.0f} s"
                )
    except KeyboardInterrupt:
        print(f"interrupted after {step} steps; saving the adapter")

    run_config = {**asdict(cfg), "method": "SFT", "steps_done": step, "finished": step == num_steps}
    save_adapter(model, tokenizer, cfg.output_dir, run_config)
    print(f"saved {cfg.output_dir}")
    if not run_config["finished"]:
        sys.exit(130)  # 128 + SIGINT, so that a shell script stops too
