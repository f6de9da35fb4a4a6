"""Evaluate a base model or a LoRA adapter on HumanEval or any task file with the same fields.

    pass_at_1            share of tasks whose completion, as generated, passes all tests
    pass_at_1_truncated  the same completions, cut at the first stop word (a line that starts a new statement
                         at the top level)

The first score asks whether the model is right and stops; the second whether it is right. Base and adapters
are evaluated in the same 4-bit precision. Greedy unless --temperature is above 0.

    python eval_humaneval.py --model_path deepseek-ai/deepseek-coder-1.3b-base --exp_name base
    python eval_humaneval.py --model_path checkpoints/deepseek_1_3b_lora_sft_v2 --exp_name sft

Writes results/<exp_name>_per_task.jsonl (one line per task) and results/<exp_name>_metrics.json.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache
from transformers import HfArgumentParser, TopPLogitsWarper

from sandbox import Sandbox, read_tasks, score

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --temperature 0.2"""

    # -- files --
    data_path: str = "data/humaneval_test.jsonl"
    model_path: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name, model folder or adapter folder
    exp_name: str = "base"
    results_dir: str = "results"
    # -- generation --
    max_length: int = 1024  # tokens of the longest prompt that is accepted
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    batch_size: int = 16  # prompts generated at a time
    # -- scoring --
    time_limit: float = 5.0  # seconds per program
    # -- other --
    device: str = "auto"  # auto, cpu, cuda or cuda:1
    seed: int = 42
    debug_first_n: int = 0  # above 0, only the first n tasks, and their completions are printed


# ---- command line and data: copies, kept equal by tests/test_copies.py ------------------------------


def parse_config(config_class, positive):
    """Config from the command line; SystemExit where a field named in `positive` is not above 0."""
    flags = [] if "kernel_launcher" in sys.argv[0] else None  # in a notebook they are the kernel's
    parser = HfArgumentParser(config_class, usage="%(prog)s [--help] [--FLAG VALUE ...]")
    config, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    if unknown:
        raise SystemExit(f"unknown flags: {' '.join(unknown)}; --help lists the known ones")
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise SystemExit(f"--{name} must be above 0, not {getattr(config, name)}")
    return config


def encode_prompt(tokenizer, task):
    """Token ids of the prompt, BOS included, without its final newline.

    Byte-level BPE merges that newline with the indentation after it; a prompt that ends in a lone newline
    token is one the model never saw. So the newline is the beginning of the completion.
    """
    return tokenizer(task["prompt"].rstrip())["input_ids"]


# ---- stop words -------------------------------------------------------------------------------------


# A base model goes on after the function; what follows its first new top-level statement is not its answer.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "\nimport", "\nfrom", "\nassert")


def truncate(completion):
    """The completion up to its first stop word."""
    cuts = [completion.find(word) for word in STOP_WORDS if word in completion]
    return completion[: min(cuts)] if cuts else completion


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


def load_adapter(adapter_dir, device, is_trainable):
    """(PeftModel, tokenizer) of an adapter folder on its 4-bit base; raises SystemExit with one line."""
    for name in "adapter_config.json", "adapter_model.safetensors":  # peft would also take a pickle: not here
        if not Path(adapter_dir, name).is_file():
            raise SystemExit(f"{adapter_dir} is no adapter folder (no {name}); train_sft_lora.py makes one")
    try:
        base_name = PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
        base, tokenizer = load_base(base_name, device)
        model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=is_trainable, torch_device=device)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        other = "other shapes: it was made for another base model"
        raise SystemExit(f"cannot load {adapter_dir} or its base model: {reason} ({other})")
    return model, tokenizer


# ---- rollout: copies, kept equal by tests/test_copies.py --------------------------------------------


@torch.no_grad()
def generate(model, tokenizer, prompt_ids, max_new_tokens, temperature, top_p, uniform):
    """Yield (i, completion_ids) of prompt i as soon as its completion ends.

    prompt_ids: list of B lists; of equal neighbours only the first is computed. Row i of uniform, (B,
    max_new_tokens) random numbers from [0, 1), picks the tokens of completion i by inverting the cumulative
    distribution, so that it does not depend on the batch around it; None decodes greedily. A completion
    ends with its first EOS, included; one that reached max_new_tokens has no EOS, and none is added.
    Raises FloatingPointError where there is nothing to sample from.
    """
    model.eval()  # in train mode with gradient checkpointing there would be no cache
    prompts = [prompt for prompt, _ in groupby(prompt_ids)]
    rows = [row for row, (_, copies) in enumerate(groupby(prompt_ids)) for _ in copies]  # of each completion
    ids = [torch.tensor(prompt) for prompt in prompts]
    mask = pad_sequence([torch.ones_like(row) for row in ids], True, 0, "left").to(model.device)
    ids = pad_sequence(ids, True, tokenizer.pad_token_id, "left").to(model.device)  # (distinct prompts, T)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # the first real token of each row is at position 0
    cache = DynamicCache(config=model.config)
    cached = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    completion_ids = [[] for _ in prompt_ids]
    running = list(range(len(prompt_ids)))  # completions that have not ended
    for t in range(max_new_tokens):
        output = model(ids, attention_mask=mask, position_ids=positions, **cached)
        logits = output.logits[rows, -1].float() / temperature  # (running, V)
        if uniform is None:
            tokens = logits.argmax(-1)  # (running,)
        else:
            if top_p < 1:
                logits = TopPLogitsWarper(top_p)(None, logits)
            cumulative = logits.double().softmax(-1).cumsum(-1)
            if not cumulative[:, -1].isfinite().all():
                raise FloatingPointError("no finite logits")
            threshold = uniform[running, t, None].to(model.device) * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
        going_on = []
        for k, (i, token) in enumerate(zip(running, tokens.tolist())):
            completion_ids[i].append(token)
            if token == tokenizer.eos_token_id or t == max_new_tokens - 1:
                yield i, completion_ids[i]
            else:
                going_on.append(k)
        if not going_on:
            return
        running, rows = [running[k] for k in going_on], [rows[k] for k in going_on]
        if rows != list(range(len(mask))):  # copy the rows of shared prompts, drop those that have ended
            cache.batch_select_indices(torch.tensor(rows, device=model.device))
            mask, positions = mask[rows], positions[rows]
            rows = list(range(len(rows)))
        ids = tokens[going_on, None]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1


# ---- files ------------------------------------------------------------------------------------------


def write_atomically(path, text):
    """Write to a temporary name, then rename: a reader never finds half a file."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    # ---- setup -----------------------------------------------------------------------------------------
    cfg = parse_config(Config, "max_new_tokens top_p batch_size")
    if cfg.temperature < 0 or "/" in cfg.exp_name:
        raise SystemExit("--temperature must be at least 0, and --exp_name, part of file names, without a /")
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {device}: {str(error).splitlines()[0]}; --device cpu runs anywhere")
    tasks = read_tasks(cfg.data_path)
    if cfg.debug_first_n > 0:
        tasks = tasks[: cfg.debug_first_n]
    try:
        os.makedirs(cfg.results_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.results_dir).close()  # better now than after an hour of generation
    except OSError as error:
        raise SystemExit(
            f"cannot write to {cfg.results_dir} ({error.strerror}); choose another --results_dir"
        )
    is_lora = Path(cfg.model_path, "adapter_config.json").is_file()
    run_config = {}  # of the training run, where the folder has one
    if is_lora:
        model, tokenizer = load_adapter(cfg.model_path, device, is_trainable=False)
        if Path(cfg.model_path, "run_config.json").is_file():
            run_config = json.loads(Path(cfg.model_path, "run_config.json").read_text())
    else:
        try:
            model, tokenizer = load_base(cfg.model_path, device)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            remedy = "it must be a folder with safetensors or, with a network, a name on the Hugging Face hub"
            remedy += "; without one: PROFILE=tiny sh train_PPO.sh"
            raise SystemExit(f"cannot load the base model {cfg.model_path!r} ({reason}); {remedy}")
    text = "def f(x):\n    return x + 1"
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit("the tokenizer of this model does not keep the text; try a newer transformers")
    prompt_ids = [encode_prompt(tokenizer, task) for task in tasks]
    too_long = [task["task_id"] for task, ids in zip(tasks, prompt_ids) if len(ids) > cfg.max_length]
    if too_long:
        raise SystemExit(
            f"the prompt of {too_long[0]} has more than --max_length {cfg.max_length} tokens; raise it"
        )

    # ---- generate and score ----------------------------------------------------------------------------
    start = time.time()
    order = sorted(range(len(tasks)), key=lambda i: len(prompt_ids[i]))  # similar lengths, little padding
    completion_ids = [None] * len(tasks)
    generator = torch.Generator().manual_seed(cfg.seed)
    noise = torch.rand(len(tasks), cfg.max_new_tokens, generator=generator, dtype=torch.float64)
    progress = tqdm(total=len(tasks), desc="generating", disable=not sys.stderr.isatty())
    for first in range(0, len(tasks), cfg.batch_size):
        batch = order[first : first + cfg.batch_size]
        uniform = None if cfg.temperature == 0 else noise[batch]
        batch_prompts = [prompt_ids[i] for i in batch]
        sampling = cfg.max_new_tokens, cfg.temperature or 1.0, cfg.top_p, uniform
        for k, ids in generate(model, tokenizer, batch_prompts, *sampling):
            completion_ids[batch[k]] = ids
        progress.update(len(batch))
    progress.close()
    completions = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    with Sandbox(timeout=cfg.time_limit) as sandbox:
        print(f"sandbox: {sandbox.report}")
        progress = tqdm(total=2 * len(tasks), desc="scoring", disable=not sys.stderr.isatty())
        results = score(sandbox, tasks, completions, progress.update)
        truncated = score(sandbox, tasks, [truncate(text) for text in completions], progress.update)
        progress.close()

    # ---- results ---------------------------------------------------------------------------------------
    rows = []
    for i, task in enumerate(tasks):
        row = {
            "task_id": task["task_id"],
            "passed": results[i].outcome == "passed",
            "passed_truncated": truncated[i].outcome == "passed",
            "outcome": results[i].outcome,
            "outcome_truncated": truncated[i].outcome,
            "message": results[i].message,
            "gen_len": len(completion_ids[i]),
            "hit_token_limit": completion_ids[i][-1] != tokenizer.eos_token_id,
            "completion": completions[i],
        }
        rows.append(row)
        if cfg.debug_first_n > 0:
            print(f"---- {row['task_id']}: {row['outcome']}\n{task['prompt'].rstrip()}{row['completion']}\n")
    num_pass = sum(row["passed"] for row in rows)
    num_pass_truncated = sum(row["passed_truncated"] for row in rows)
    metrics = {
        "exp_name": cfg.exp_name,
        "model_path": cfg.model_path,
        "is_lora": is_lora,
        "base_model": model.peft_config["default"].base_model_name_or_path if is_lora else cfg.model_path,
        "method": run_config.get("method", "LoRA") if is_lora else "base",
        "num_tasks": len(tasks),
        "num_pass": num_pass,
        "pass_at_1": num_pass / len(tasks),
        "num_pass_truncated": num_pass_truncated,
        "pass_at_1_truncated": num_pass_truncated / len(tasks),
        "avg_gen_len": sum(row["gen_len"] for row in rows) / len(rows),
        "num_hit_token_limit": sum(row["hit_token_limit"] for row in rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "outcomes_truncated": dict(Counter(row["outcome_truncated"] for row in rows)),
        "eval_seconds": time.time() - start,
        "device": device,
        "sandbox": sandbox.report,
        **{
            name: value
            for name, value in asdict(cfg).items()
            if name not in ("model_path", "exp_name", "device")
        },
    }
    per_task = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(Path(cfg.results_dir, f"{cfg.exp_name}_per_task.jsonl"), per_task)
    errors = metrics["outcomes"].get("error", 0) + metrics["outcomes_truncated"].get("error", 0)
    if errors:
        raise SystemExit(f"the sandbox itself failed on {errors} programs: no metrics written; run it again")
    write_atomically(
        Path(cfg.results_dir, f"{cfg.exp_name}_metrics.json"), json.dumps(metrics, indent=2) + "\n"
    )
    print(
        f"{cfg.exp_name}: {num_pass}/{len(tasks)} as generated, "
        f"{num_pass_truncated}/{len(tasks)} cut at stop words, {metrics['avg_gen_len']:.1f} tokens on average"
    )
