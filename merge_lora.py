"""Merge a LoRA adapter into its base: a folder of its own for plain transformers, vLLM, a converter.

    weights = dequantised NF4 weights + scale * B A, in float32, then stored as --dtype

The NF4 weights are those that the adapter was trained on; into the unquantised ones it does not fit. Then the
folder is loaded from disk and compared with the adapter on some tasks, in float32 arithmetic: its greedy
completions, and their log-probabilities. Only the rounding to --dtype may make a difference.

    python merge_lora.py --adapter checkpoints/NAME_ppo --output_dir checkpoints/NAME_merged
    python eval_humaneval.py --model_path checkpoints/NAME_merged --exp_name merged

Reads   --adapter, its base, --compare_path
Writes  --output_dir, whole or not at all: weights (safetensors), configuration, tokenizer, run_config.json of
        the training run and merge.json, which says what was merged and what was measured. An earlier merge
        is replaced. What differs too much stays in OUTPUT_DIR.unverified; the next try replaces that.

Needs the memory of the model in float32 twice, on the device or with --device cpu: 11 GB for 1.3B parameters.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from peft import PeftModel

from eval_humaneval import check_model, generate, load_adapter, load_merged, parse_config, sha256, version
from sandbox import encode_prompt, read_tasks, stop_ids, stop_with

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --dtype float16"""

    adapter: str = "checkpoints/deepseek_1_3b_lora_ppo"  # folder of a LoRA adapter
    output_dir: str = "checkpoints/deepseek_1_3b_merged"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    compare_path: str = "data/humaneval_test.jsonl"
    num_tasks: int = 16  # the first so many of compare_path are compared, in one batch
    max_new_tokens: int = 256
    tolerance: float = 1e-3  # on a log-probability: the merge before it is rounded, the file after it
    max_rounding: float = 0.5  # on a log-probability: what rounding to dtype may change
    min_equal: float = 0.75  # share of greedy completions that must be equal; rounding decides near ties
    device: str = "auto"  # auto, cpu, cuda or cuda:1


NOT_MERGED = "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters"

# ---- merging and measuring --------------------------------------------------------------------------


def cast(model, dtype=torch.float32):
    """The model with weights and arithmetic in dtype; what is in 4 bit, and buffers, stay as they are."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # a layer in 4 bit
            module.compute_dtype = dtype
    for tensor in model.parameters():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def merge(model, adapter_dir):
    """The base of a PeftModel, dequantised, with the adapter merged into it, in float32."""
    base = model.unload()
    if getattr(base, "is_quantized", False):
        base = base.dequantize()  # merged into packed weights, most of an adapter is rounded away
    return PeftModel.from_pretrained(base.float(), adapter_dir).merge_and_unload(safe_merge=True)


@torch.no_grad()
def score(model, prompt_ids, completions):
    """(all tokens,) log-probabilities of the completions by the model's plain forward, one row at a time."""
    logprobs = []
    for i, prompt in enumerate(prompt_ids):
        ids = torch.tensor([prompt + completions[i]], device=model.device)
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()  # (C, V)
        logprobs.append(logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1).cpu())
    return torch.cat(logprobs)


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    cfg = parse_config(Config, free="")
    folder, unverified = Path(cfg.output_dir), Path(f"{Path(cfg.output_dir)}.unverified")
    if folder.exists() and not (folder / "merge.json").is_file():
        raise SystemExit(f"--output_dir {folder} exists and holds no merge: choose another one, or remove it")
    with stop_with(f"{cfg.adapter} is not the folder of a LoRA adapter"):
        fields = dict(json.loads(Path(cfg.adapter, "adapter_config.json").read_bytes()))
        if odd := [name for name in NOT_MERGED if fields.get(name)]:
            raise ValueError(f"{odd[0]} in its adapter_config.json is not supported")
    if folder.resolve() == Path(str(fields.get("base_model_name_or_path"))).resolve():
        raise SystemExit(f"--output_dir {folder} is the base of the adapter: choose another one")
    tasks = read_tasks(cfg.compare_path)[: cfg.num_tasks]
    device = cfg.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")

    # ---- what the adapter does ------------------------------------------------------------------------
    model, tokenizer = load_adapter(cfg.adapter, device)
    base_name, commit = model.get_base_model().name_or_path, getattr(model.config, "_commit_hash", None)
    prompt_ids = [encode_prompt(tokenizer, task) for task in tasks]
    check_model(generate, cast(model), tokenizer, prompt_ids, cfg.max_new_tokens)
    completions = dict(generate(model, tokenizer, prompt_ids, cfg.max_new_tokens))
    logprobs = score(model, prompt_ids, completions)  # (all tokens,)

    # ---- merge, write ---------------------------------------------------------------------------------
    with stop_with(f"cannot merge {cfg.adapter}"):
        model = merge(model, cfg.adapter)
    merged = score(model, prompt_ids, completions)
    model = cast(model, getattr(torch, cfg.dtype))
    stops = stop_ids(model, tokenizer)  # the EOS that was trained, too
    if set(stops) != set(stop_ids(model, SimpleNamespace(eos_token_id=None))):
        model.generation_config.eos_token_id = stops
    needed = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6 + 50  # the rest is small
    existing = next(parent for parent in folder.resolve().parents if parent.exists())
    if (free := shutil.disk_usage(existing).free / 1e6) < needed:
        raise SystemExit(f"{existing} has {free:,.0f} MB left, and the merged model needs {needed:,.0f}")
    with stop_with(f"cannot write {unverified}"):
        shutil.rmtree(unverified, ignore_errors=True)  # of an interrupted try
        model.save_pretrained(unverified, max_shard_size="5GB")
        tokenizer.save_pretrained(unverified)
        if Path(cfg.adapter, "run_config.json").is_file():  # what it was trained on, for evaluation
            shutil.copy(Path(cfg.adapter, "run_config.json"), unverified)
    rounded = score(cast(model), prompt_ids, completions)
    del model

    # ---- what the files do ----------------------------------------------------------------------------
    model, tokenizer = load_merged(unverified, device)
    reloaded_ids = [encode_prompt(tokenizer, task) for task in tasks]
    reloaded = score(cast(model), reloaded_ids, completions)
    exact = torch.stack([merged - logprobs, reloaded - rounded]).abs().max()
    errors = (reloaded - logprobs).abs()
    equal = 0.0
    if errors.isfinite().all():  # generate stops where they are not
        again = dict(generate(model, tokenizer, reloaded_ids, cfg.max_new_tokens))
        equal = sum(again[i] == completions[i] for i in completions) / len(tasks)
    measured = f"log-probabilities differ by up to {errors.max():.2g} (mean {errors.mean():.2g}), by "
    measured += f"{exact:.2g} without rounding; {equal:.0%} of {len(tasks)} greedy completions are equal"
    if not (exact <= cfg.tolerance and errors.max() <= cfg.max_rounding and equal >= cfg.min_equal):
        raise SystemExit(f"{unverified} is not the adapter's model: {measured}")
    record = {"adapter": cfg.adapter, "adapter_sha256": sha256(cfg.adapter), "base_model": base_name}
    record |= {"hub_commit": commit, "base_sha256": sha256(base_name), "base": "dequantised NF4"}
    record |= {"dtype": cfg.dtype, "compare_path": cfg.compare_path, "num_tasks": len(tasks)}
    record |= {"max_difference": errors.max().item(), "mean_difference": errors.mean().item()}
    record |= {"without_rounding": exact.item(), "equal_completions": equal, "device": device}
    record["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    with stop_with(f"cannot write {folder}"):
        (unverified / "merge.json").write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unverified, folder)
    print(f"{folder} in {cfg.dtype}: {measured}")
