"""Memory and speed of the training scripts on a GPU: a model of 1.3B random weights, no network needed.

    python benchmarks/gpu.py                            # under 10 minutes on an H100; 5 GB of disk
    python benchmarks/gpu.py --parts sft,ppo,rollout8   # a choice; sft makes the adapter for the others
    python benchmarks/gpu.py --tiny                     # 2 small layers, also on a CPU: shows that all runs

Reads   data/tiny_coder (its tokenizer) and data/mini_train.jsonl
Prints  a line per part and, last, one JSON line with all figures; without a CUDA device it skips everything

The architecture is that of deepseek-coder-1.3b. Memory and time do not depend on what the weights are, except
in three ways. The tokenizer is that of the tiny model, so prompts have ids below 1024, and sampled ids above
that decode to nothing. EOS is hardly ever sampled: completions have all 256 tokens, the dearest case. And no
program passes; without advantages PPO would skip its update, so every second completion counts as passed,
after the sandbox has run it. Comment lines make every fourth prompt nearly as long as --max_length allows.

sft, rl, ppo: the real scripts at their default settings. The first update warms up and is left out of the
times, not of the peak memory, which is what torch has reserved (about 0.5 GB of CUDA context come on top).
rollout4, rollout8: tokens per second, batch 4 and 8, of our generate() and of model.generate(): plain, with a
static cache, with that compiled (transformers 5.23 does not compile NF4 models unless told that it can).
trl: GRPOTrainer on the same NF4 model and adapter, 2 prompts x 2 samples, 4 optimizer steps (rl_update.py).
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from rl_update import ROOT, read_log, run_child, run_script, train_trl

LIMIT = 14.0  # GB (of 1e9 bytes) that a script may reserve
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPDATES = 3  # of each script; the first is left out


# -- model and tasks -----------------------------------------------------------------------------------------


def architecture(tiny):
    """LlamaConfig of deepseek-coder-1.3b, or of 2 small layers."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 5504,
    }
    if tiny:
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
        }
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}
    ids = {"vocab_size": 32256, "bos_token_id": 0, "eos_token_id": 1}
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
    run_script("train_sft_lora.py", flags | {"output_dir": f"{folder}/adapter"})
    return read_log(f"{folder}/adapter/sft_train_log.jsonl", 0)


def reinforcement(script, log, count, fields, folder, tiny):
    """Seconds per update of an RL script, and tokens per second of its rollout."""
    import sandbox

    calls = []

    def pass_every_second(box, task, completion):
        calls.append(completion)
        outcome = ("failed", "passed")[len(calls) % 2]
        return box.pool.submit(lambda: replace(box.check(*sandbox.job(task, completion)), outcome=outcome))

    sandbox.start_scoring = pass_every_second  # the preflight does not use it
    flags = {"sft_model": f"{folder}/adapter", "train_path": f"{folder}/rl.jsonl", count: UPDATES}
    flags |= {"output_dir": f"{folder}/{script}"} | ({"max_new_tokens": 16} if tiny else {})
    batch_size = run_script(script, flags)["num_completions"]
    names = {name: f"{name}_seconds" for name in ("rollout", "reward", "update")} | fields
    record = read_log(f"{folder}/{script}/{log}", batch_size, grad_norm="grad_norm", **names)
    if min(record["grad_norm"]) == 0 or set(record.get("epochs", [4])) != {4}:
        raise RuntimeError(f"not the updates that were to be measured: {record}")
    return record


def rollout(batch_size, folder, tiny):
    """Tokens per second of each way to sample, and the seconds of each first call, compilation included."""
    from transformers import CompileConfig

    import train_ppo_lora as ppo

    new_tokens = 16 if tiny else 256
    model, tokenizer = ppo.load_adapter(f"{folder}/adapter", DEVICE, is_trainable=False)
    tasks = ppo.read_tasks(f"{folder}/rl.jsonl")[:batch_size]
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in tasks]
    padded = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(DEVICE)
    no_eos = SimpleNamespace(pad_token_id=tokenizer.pad_token_id, eos_token_id=-1)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": new_tokens}
    # the minimum forbids EOS
    sampling |= {"min_new_tokens": new_tokens, "pad_token_id": tokenizer.pad_token_id}
    static = {"cache_implementation": "static"}
    compiling = CompileConfig()
    compiling._compile_all_devices = True  # --tiny on a CPU too

    def ours():
        uniform = torch.rand(batch_size, new_tokens, dtype=torch.float64)
        completions = ppo.generate(model, no_eos, prompt_ids, new_tokens, 1.0, 1.0, uniform)
        return sum(len(ids) for _, ids in completions)

    def theirs(**how):
        ids = model.generate(**padded, **sampling, **how)
        return ids[:, padded["input_ids"].shape[1] :].numel()

    def compiled():
        if quantizer := getattr(model.get_base_model(), "hf_quantizer", None):  # none on a CPU
            type(quantizer).is_compileable = True
        number = theirs(**static, compile_config=compiling)
        if not hasattr(model.get_base_model(), "_compiled_call"):
            raise RuntimeError("not compiled")
        return number

    record = {"tokens_per_s": {}, "first_seconds": {}, "errors": {}}
    ways = {"ours": ours, "plain": theirs, "static": partial(theirs, **static), "compiled": compiled}
    for name, way in ways.items():
        seconds = []
        try:
            for _ in range(3 if name == "compiled" else 2):  # its second call may still record graphs
                start = time.perf_counter()
                number = way()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            if number != batch_size * new_tokens:
                raise RuntimeError(f"{number} tokens instead of {batch_size * new_tokens}")
            record["tokens_per_s"][name], record["first_seconds"][name] = number / seconds[-1], seconds[0]
        except Exception as error:  # the other ways are worth having without this one
            record["errors"][name] = f"{type(error).__name__}: {error}"[:300]
    return record


def trl(folder, tiny):
    """Seconds per update of GRPOTrainer on the NF4 model."""
    import train_ppo_lora as ppo

    model, tokenizer = ppo.load_adapter(f"{folder}/adapter", DEVICE, is_trainable=True)
    sizes = {"num_completions": 4, "max_new_tokens": 16 if tiny else 256, "micro_batch_size": 2, "epochs": 4}
    return train_trl(model, tokenizer, ppo.read_tasks(f"{folder}/rl.jsonl"), sizes, 2, UPDATES, seed=0)


PPO_FIELDS = {"gen_len": "avg_gen_len", "epochs": "epochs"}
PARTS: dict = {
    "sft": sft,
    "rl": partial(
        reinforcement, "train_rl_lora.py", "rl_train_log.jsonl", "num_steps", {"gen_len": "gen_len"}
    ),
    "ppo": partial(reinforcement, "train_ppo_lora.py", "ppo_train_log.jsonl", "num_updates", PPO_FIELDS),
    "rollout4": partial(rollout, 4),
    "rollout8": partial(rollout, 8),
    "trl": trl,
}


def line(name, record):
    """What a part measured, for people."""
    text = f"{name:9}"
    if "reserved_gb" in record:
        verdict = "OK" if record["reserved_gb"] < LIMIT else "TOO MUCH"
        text += (
            f"  {record['reserved_gb']:.2f} GB reserved, {record['allocated_gb']:.2f} allocated: {verdict}"
        )
    if "seconds" in record:
        text += f"  {median(record['seconds']):.2f} s per update"
    if "rollout" in record:
        tokens = record["num_completions"] * sum(record["gen_len"])
        record["rollout_tokens_per_s"] = tokens / sum(record["rollout"])
        text += f", rollout {record['rollout_tokens_per_s']:.0f} tokens/s"
    for way, speed in record.get("tokens_per_s", {}).items():
        text += f"  {way} {speed:.0f} tokens/s"
    for way, error in record.get("errors", {}).items():
        text += f"  {way}: {error}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 small layers, also without a GPU")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        record = {"build": build, **PARTS}[args.child.pop("what")](**args.child)
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
    results, parts = {}, args.parts.split(",")
    if "trl" in parts and not find_spec("trl"):
        print("trl is not installed (pip install --no-deps -r benchmarks/requirements-rl.txt): without it")
        parts.remove("trl")
    with tempfile.TemporaryDirectory() as folder:
        for name in ["build", *parts]:
            start = time.perf_counter()
            try:
                results[name] = run_child(__file__, name, folder=folder, tiny=args.tiny)
            except SystemExit as error:  # what the others measure is kept
                results[name] = {"errors": {name: str(error)}}
            results[name]["wall_s"] = round(time.perf_counter() - start, 1)
            print(line(name, results[name]), f" ({results[name]['wall_s']:.0f} s in all)", flush=True)
    print(json.dumps({"device": device, "tiny": args.tiny, "limit_gb": LIMIT, **results}))
    sys.exit(any(result.get("errors") for result in results.values()))
