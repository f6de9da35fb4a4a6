"""Memory and speed of the training scripts on a GPU: a model of 1.3B random weights, no network needed.

    python benchmarks/gpu.py                            # under 10 minutes on an H100; 5 GB of disk
    python benchmarks/gpu.py --parts sft,ppo,rollout8   # a choice; sft makes the adapter for the others
    python benchmarks/gpu.py --tiny                     # 2 small layers, also on a CPU: shows that all runs

Reads   data/tiny_coder (its tokenizer) and data/mini_train.jsonl
Prints  a line per part and, last, one JSON line with all figures; without a CUDA device it skips everything

The architecture is that of deepseek-coder-1.3b. Memory and time do not depend on what the weights are, except
in three ways. The tokenizer is that of the tiny model, so prompts have ids below 1024, and sampled ids above
that decode to nothing. EOS is hardly ever sampled: completions have all 256 tokens, the dearest case. And no
program passes; without advantages PPO and GRPO would skip their updates, so every second completion counts as
passed, after the sandbox has run it. Comment lines make every fourth prompt nearly as long as --max_length
allows.

sft, rl, ppo, actor_critic, grpo: the real scripts at their default settings. The first update warms up and is
left out of the times, not of the peak memory: what torch has reserved (about 0.5 GB of CUDA context come on
top).
rollout4, rollout8: tokens per second, batch 4 and 8, of our generate() and of transformers' model.generate().
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from rl_update import ROOT, durations, run_child, run_script

LIMIT = 14.0  # GB (of 1e9 bytes) that a script may reserve
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPDATES = 3  # of each script; the first is left out


# -- model and tasks -----------------------------------------------------------------------------------------


def architecture(tiny):
    """LlamaConfig of deepseek-coder-1.3b, or of 2 small layers."""
    from transformers import LlamaConfig

    names = "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"
    sizes = dict(zip(names, (64, 2, 2, 128, 2048) if tiny else (2048, 24, 16, 5504, 32256)))
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    return LlamaConfig(**sizes, **ids, rope_parameters=rope, max_position_embeddings=16384)


def build(folder, tiny):
    """Write the model, the tokenizer, and the tasks for RL (prompts of up to 500 tokens) and SFT (900)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    tokenizer.save_pretrained(f"{folder}/model")
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(architecture(tiny), dtype=torch.bfloat16)
    model.save_pretrained(f"{folder}/model")
    lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines()[:24]
    for name, length in ("rl", 500), ("sft", 900):
        tasks = list(map(json.loads, lines))
        for task in tasks[::4]:
            while len(tokenizer(task["prompt"])["input_ids"]) < length:
                task["prompt"] = "# longer\n" + task["prompt"]
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return {"parameters": model.num_parameters()}


# -- parts: each in a process of its own, with the folder that build filled ----------------------------------


def sft(folder, tiny):
    """Seconds per optimizer step of train_sft_lora.py; writes the adapter."""
    flags = {"model_name": f"{folder}/model", "train_path": f"{folder}/sft.jsonl", "max_steps": UPDATES}
    _, rows = run_script("train_sft_lora.py", flags | {"output_dir": f"{folder}/adapter"})
    return {"seconds": durations(rows), "loss": [row["loss"] for row in rows]}


def pass_every_second():
    """A start_scoring for sandbox.py whose every second program has passed, after it was run."""
    from sandbox import job

    outcomes = cycle(["passed", "failed"])

    def start_scoring(box, task, completion):
        outcome = next(outcomes)  # now: the workers end in any order
        return box.pool.submit(lambda: replace(job(box, task, completion), outcome=outcome))

    return start_scoring


def reinforcement(name, count, folder, tiny):
    """Seconds per update of a script of RL, for instance train_ppo_lora.py."""
    import sandbox

    sandbox.start_scoring = pass_every_second()  # the preflight does not use it
    flags = {"sft_model": f"{folder}/adapter", "train_path": f"{folder}/rl.jsonl", count: UPDATES}
    flags |= {"output_dir": f"{folder}/{name}"} | ({"max_new_tokens": 16} if tiny else {})
    epochs = {"rl": None, "ppo": 4, "actor_critic": 4, "grpo": 1}[name]  # the defaults
    _, rows = run_script(f"train_{name}_lora.py", flags)
    if min(row["grad_norm"] for row in rows) == 0 or {row.get("epochs") for row in rows} != {epochs}:
        raise RuntimeError(f"not the updates that were to be measured: {rows}")
    return {"seconds": durations(rows), "grad_norm": [row["grad_norm"] for row in rows]}


def rollout(batch_size, folder, tiny):
    """Tokens per second of both ways to sample; the second call of each is timed."""
    import train_ppo_lora as ppo

    new_tokens = 16 if tiny else 256
    model, tokenizer = ppo.load_adapter(f"{folder}/adapter", DEVICE)
    tasks = ppo.read_tasks(f"{folder}/rl.jsonl")[:batch_size]
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in tasks]
    model.generation_config.eos_token_id = None
    no_eos = SimpleNamespace(pad=tokenizer.pad, eos_token_id=-1)
    padded = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(DEVICE)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": new_tokens}
    sampling |= {"min_new_tokens": new_tokens, "pad_token_id": tokenizer.pad_token_id}  # forbids EOS

    def ours():
        uniform = torch.rand(batch_size, new_tokens, dtype=torch.float64)
        return sum(len(ids) for _, ids in ppo.generate(model, no_eos, prompt_ids, new_tokens, uniform))

    def theirs():
        return model.generate(**padded, **sampling)[:, padded["input_ids"].shape[1] :].numel()

    record = {}
    for name, way in {"ours": ours, "transformers": theirs}.items():
        for _ in range(2):
            start = time.perf_counter()
            number = way()
            torch.tensor(0, device=DEVICE).item()  # waits for the GPU
            seconds = time.perf_counter() - start
        if number != batch_size * new_tokens:
            raise RuntimeError(f"{name}: {number} tokens instead of {batch_size * new_tokens}")
        record[name] = number / seconds
    return {"tokens_per_s": record}


PARTS: dict = {
    "sft": sft,
    "rl": partial(reinforcement, "rl", "num_steps"),
    "ppo": partial(reinforcement, "ppo", "num_updates"),
    "actor_critic": partial(reinforcement, "actor_critic", "num_updates"),
    "grpo": partial(reinforcement, "grpo", "num_updates"),
    "rollout4": partial(rollout, 4),
    "rollout8": partial(rollout, 8),
}


def line(name, record):
    """What a part measured, for people."""
    text = f"{name:12}"
    if "reserved_gb" in record:
        verdict = "OK" if record["reserved_gb"] < LIMIT else "TOO MUCH"
        text += f"  {record['reserved_gb']:.2f} GB reserved, {record['allocated_gb']:.2f} used: {verdict}"
    if "seconds" in record:
        text += f"  {median(record['seconds']):.2f} s per update"
    for way, speed in record.get("tokens_per_s", {}).items():
        text += f"  {way} {speed:.0f} tokens/s"
    return text + record.get("error", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 small layers, also without a GPU")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        record = {"build": build, **PARTS}[args.child.pop("part")](**args.child)
        if DEVICE == "cuda":
            record["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            record["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps(record))
        sys.exit()
    if DEVICE == "cpu" and not args.tiny:
        print("no CUDA device: skipped (--tiny tries all parts on a small model)")
        print(json.dumps({"skipped": "no CUDA device"}))
        sys.exit()

    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ["build", *args.parts.split(",")]:
            start = time.perf_counter()
            try:
                results[name] = run_child(__file__, part=name, folder=folder, tiny=args.tiny)
            except SystemExit as error:  # what the others measure is kept
                results[name] = {"error": str(error)}
            results[name]["wall_s"] = round(time.perf_counter() - start, 1)
            print(line(name, results[name]), f" ({results[name]['wall_s']:.0f} s in all)", flush=True)
    print(json.dumps({"device": device, "tiny": args.tiny, "limit_gb": LIMIT, **results}))
    sys.exit(any("error" in result for result in results.values()))
