"""What all scripts check before they start, so that what a user can get wrong ends in one line."""

import json
import math
import os
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_args


@contextmanager
def stop_with(message: str):
    """Turn what a library raises in the block into one line that ends the script."""
    try:
        yield
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise SystemExit(f"{message}: {text[:400]}") from None


def parse_config(config_class, free: str):
    """Config from the command line; SystemExit where a number is not positive, except those in `free`.

    A word that is none of its field's is an error in the file, too, which argparse does not look at.
    """
    from accelerate.tracking import get_available_trackers  # imported here, for the tools that need no model
    from transformers import HfArgumentParser

    in_notebook = "kernel_launcher" in sys.argv[0] or "ipykernel" in sys.argv[0]  # the flags are the kernel's
    parser = HfArgumentParser(config_class, usage="%(prog)s [--help] [--FLAG VALUE ...]", allow_abbrev=False)
    config = config_class(**vars(parser.parse_args([] if in_notebook else None)))
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if (words := get_args(field.type)) and value not in words:
            raise SystemExit(f"{name} in the script is {' or '.join(words)}, not {value!r}")
        lowest = -math.inf if name in free.split() else 0
        if not isinstance(value, (str, bool)) and not lowest < value < math.inf:
            raise SystemExit(f"--{name} must be above {lowest} and finite, not {value}")
    report_to = getattr(config, "report_to", "none")
    if report_to not in ("none", *map(str, get_available_trackers())):  # accelerate would only warn
        raise SystemExit(f"--report_to {report_to} needs a package: pip install {report_to}")
    return config


def compute_dtype(device):
    """The format of a model's arithmetic: 16 bits on a GPU; elsewhere $CPU_DTYPE, float32 or bfloat16, the
    faster one for real models if the processor multiplies in it (avx512_bf16 or amx_bf16 in lscpu)."""
    import torch

    on_cpu = os.environ.get("CPU_DTYPE", "float32")
    if on_cpu not in ("float32", "bfloat16"):
        raise SystemExit(f"CPU_DTYPE is float32 or bfloat16, not {on_cpu}")
    if device == "cpu" or not torch.cuda.is_available():
        return getattr(torch, on_cpu)
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_supported(adapter_dir, config):
    """ValueError if the config of an adapter has a field that this peft does not know."""
    fields = json.loads(Path(adapter_dir, "adapter_config.json").read_bytes())
    known = vars(config).keys() - {"alora_invocation_tokens"}  # with a cache peft does not see them
    if odd := sorted(name for name in fields.keys() - known if fields[name]):  # peft only warns
        raise ValueError(f"{odd[0]} in its adapter_config.json is not supported")


def trained_tokenizer(adapter_dir, tokenizer):
    """The tokenizer in an adapter's folder, which has the EOS that was trained, or else the base's own."""
    from transformers import AutoTokenizer

    if not Path(adapter_dir, "tokenizer_config.json").is_file():
        return tokenizer
    trained = AutoTokenizer.from_pretrained(adapter_dir)
    trained.pad_token = trained.eos_token
    if trained("def f(x):").input_ids != tokenizer("def f(x):").input_ids:
        raise ValueError("its tokenizer gives other ids than that of the base")
    return trained


def stop_ids(model, tokenizer) -> list[int]:
    """Return the ids that end a completion: EOS, and what else the model's generation config names."""
    others = model.generation_config.eos_token_id
    return list({tokenizer.eos_token_id, *(others if isinstance(others, list) else [others])} - {None})


def within(model, tokenizer, num_tokens: int):
    """SystemExit unless a model has an embedding for EOS, and so many positions, and is no adapter."""
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers loads its base and the adapter on top
        raise SystemExit("the base model is an adapter; merge_lora.py makes a model of it, to train further")
    if tokenizer.eos_token_id not in range(len(model.get_input_embeddings().weight)):
        raise SystemExit(f"the EOS of the tokenizer, {tokenizer.eos_token}, has no embedding in the model")
    positions = getattr(model.config, "max_position_embeddings", None) or num_tokens
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond this many, all positions change
        positions = min(positions, rope["original_max_position_embeddings"])
    if num_tokens > positions:
        raise SystemExit(f"{num_tokens} tokens exceed the model's {positions} positions; lower --max_length")


def check_model(generate, model, tokenizer, prompt_ids, max_new_tokens: int, score=None):
    """SystemExit unless generate, and score, agree with the plain forward on the two extremes of prompt_ids:
    not every architecture can be padded on the left or lose rows of its cache.

    `generate` is the caller's, `score` what it computes log-probabilities with.
    """
    import torch

    within(model, tokenizer, max(map(len, prompt_ids)) + max_new_tokens)
    with stop_with(f"models of type {model.config.model_type} cannot be used here"), torch.no_grad():
        prompts = [min(prompt_ids, key=len), max(prompt_ids, key=len)]
        greedy = dict(generate(model, tokenizer, prompts, 8))
        token = next((token for token in greedy[0] if token not in greedy[1]), greedy[0][-1])
        stop = SimpleNamespace(pad=tokenizer.pad, eos_token_id=token)  # now row 0 leaves, and row 1 goes on
        greedy = dict(generate(model, stop, prompts * 2, 8))  # rows 2 and 3 may be computed with 0 and 1
        pairs = [(0, 0), (1, 1), (0, 1)]  # a prompt has two completions
        samples = [{"prompt_ids": prompts[i], "completion_ids": greedy[j]} for i, j in pairs]
        compare(model, tokenizer, samples, score, range(2))  # the third is not greedy


def check_logprobs(score, model, tokenizer, samples: list[dict]):
    """SystemExit unless the log-probabilities that `score` gives are those of the plain forward."""
    import torch

    with stop_with(f"models of type {model.config.model_type} cannot be used here"), torch.no_grad():
        compare(model, tokenizer, samples, score)


def compare(model, tokenizer, samples, score, greedy=()):
    """ValueError unless the plain forward agrees with `score`, if given, and finds these samples greedy."""
    import torch

    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1  # in standard deviations of the logits
    scored, mask = score(model, tokenizer, samples, 1.0) if score else ([], [])
    for i, sample in enumerate(samples):
        prompt, completion = sample["prompt_ids"], sample["completion_ids"]
        ids = torch.tensor([prompt + completion], device=model.device)
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()  # (C, V)
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)  # (C,)
        errors = (logprobs.amax(-1) - own) * (i in greedy)
        if score:
            errors = errors + (scored[i][mask[i] > 0] - own).abs()
        if not errors.max() <= tolerance * logits.std():
            raise ValueError("generated tokens or their log-probs are not those of the model's forward")
