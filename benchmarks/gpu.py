"""All that a card is needed for, in one command, without a network: what must hold, memory, speed.

    python benchmarks/gpu.py                        # on a large card planned for 9 minutes; 6 GB of disk
    python benchmarks/gpu.py --only tests,ppo,trl   # some of the sections
    python benchmarks/gpu.py --tiny                 # small shapes, also on a CPU: shows that all runs

Each section is a process of its own with a time limit, and adds a JSON line to --out (or $OUT; default
results/gpu.jsonl). Where it fails or takes too long, the line has an "error", and the next one begins. After
--seconds none begins: choose by --only what is left.

versions, tests     card, driver, libraries; what must hold on a card: tests/test_cuda.py
build               the 1.3B model and the tasks that the following sections need; it comes with them
sft, rl, ppo, grpo, actor_critic    the real scripts at their default settings. The first update warms up and
                    is left out of the times, not of the peak memory, which is what torch has reserved
trl                 GRPOTrainer of TRL at the work of grpo; rl_update.py says how, and compares on a CPU
rollout, static     tokens per second of 8 completions: our generate() and that of transformers; the latter
                    with a static cache and a compiled forward
pipeline, smollm2   the tiny model: base, SFT, GRPO; GRPO of a real one, in data/smollm2 or in $SMOLLM2

The architecture is that of deepseek-coder-1.3b; weights are random. Memory and time do not depend on them but
in three ways. The tokenizer is that of the tiny model: prompts have ids below 1024, and sampled ids above
decode to nothing. EOS is hardly ever sampled: completions have all 256 tokens, the dearest case. No program
passes, and PPO and GRPO would skip their updates; so every second completion counts as passed, after the
sandbox has run it. Comment lines make every fourth prompt nearly as long as --max_length allows.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import median
from types import SimpleNamespace

import torch
from rl_update import FLAGS, ROOT, durations, pass_every_second, run_child, run_script, train_trl

LIMIT = 14.0  # GB (of 1e9 bytes) that a script may reserve
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPDATES = 2  # of each script; the first is left out
LIBRARIES = "torch transformers peft accelerate bitsandbytes safetensors datasets trl pytest".split()
TASKS = {"train_path": "data/mini_train.jsonl"}


# -- sections; all write to folder ---------------------------------------------------------------------------


def versions(folder, tiny):
    """The machine and what is installed."""
    record = {"python": platform.python_version(), "cuda": torch.version.cuda, "cores": os.cpu_count()}
    installed = {package.name: package.version for package in distributions()}
    record |= {name: installed.get(name, "not installed") for name in LIBRARIES}
    if DEVICE == "cuda":
        record["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    if which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        record["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return record


def tests(folder, tiny, path="tests/test_cuda.py"):
    """The last line of pytest, and what it skipped; SystemExit if a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-o", "addopts=", "-p", "no:cacheprovider", path]
    done = subprocess.run(command + ["-m", "cuda"] * (DEVICE == "cuda"), capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: there is nothing to run, as where bitsandbytes is missing
        raise SystemExit(done.stdout[-2500:] + done.stderr[-500:])
    *lines, last = done.stdout.splitlines()
    return {"summary": last, "skipped": [text for text in lines if text.startswith("SKIPPED")]}


def architecture(tiny):
    """LlamaConfig of deepseek-coder-1.3b, or of 2 small layers."""
    from transformers import LlamaConfig

    names = "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"
    sizes = dict(zip(names, (64, 2, 2, 128, 2048) if tiny else (2048, 24, 16, 5504, 32256)))
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    return LlamaConfig(**sizes, **ids, rope_parameters=rope, max_position_embeddings=16384)


def build(folder, tiny):
    """Write model, tokenizer, adapter, and tasks with prompts of up to 500 tokens; for SFT, 900."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(architecture(tiny), dtype=torch.bfloat16)
    record = {"parameters": model.num_parameters()}
    model.save_pretrained(f"{folder}/model")
    model.name_or_path = f"{folder}/model"
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")  # r is 8, as in train_sft_lora.py
    get_peft_model(model, lora).save_pretrained(f"{folder}/adapter", save_embedding_layers=False)
    for name in "model", "adapter":
        tokenizer.save_pretrained(f"{folder}/{name}")
    lines = (ROOT / "data/mini_train.jsonl").read_text().splitlines()[:24]
    for name in "sft", "rl", "ppo", "grpo", "actor_critic":
        tasks = list(map(json.loads, lines))
        for task in tasks[::4]:
            while len(tokenizer(task["prompt"])["input_ids"]) < (900 if name == "sft" else 500):
                task["prompt"] = "# longer\n" + task["prompt"]
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return record


def training(name, count, folder, tiny):
    """Seconds per update of a training script; count: its flag for their number."""
    import sandbox

    sandbox.start_scoring = pass_every_second()  # the preflight does not use it
    flags = {count: UPDATES, "train_path": f"{folder}/{name}.jsonl", "output_dir": f"{folder}/{name}"}
    flags |= {"model_name": f"{folder}/model"} if name == "sft" else {"sft_model": f"{folder}/adapter"}
    flags |= {"max_new_tokens": 16} if tiny and name != "sft" else {}
    epochs = {"ppo": 4, "actor_critic": 4, "grpo": 1}.get(name)  # the defaults
    _, rows = run_script(f"train_{name}_lora.py", flags)
    if min(row["grad_norm"] for row in rows) == 0 or {row.get("epochs") for row in rows} != {epochs}:
        raise RuntimeError(f"not the updates that were to be measured: {rows}")
    return {"seconds": durations(rows), "grad_norm": [row["grad_norm"] for row in rows]}


def trl(folder, tiny):
    """Seconds per update of TRL's GRPOTrainer, with the defaults of train_grpo_lora.py."""
    if not find_spec("trl"):
        return {"skipped": "trl is not installed"}
    flags = FLAGS | {"sft_model": f"{folder}/adapter", "train_path": f"{folder}/grpo.jsonl", "batch_size": 4}
    flags |= {"num_updates": UPDATES, "max_new_tokens": 16 if tiny else 256, "grpo_epochs": 1, "seed": 42}
    rows, _, steps = train_trl(flags, device=DEVICE, every_second=True)
    return {"seconds": durations(rows), "grad_norm": [norm for _, norm in steps]}


def rollout(ways, folder, tiny):
    """Tokens per second of ways to sample 8 completions, in their second call."""
    from transformers import CompileConfig

    import train_ppo_lora as ppo

    model, tokenizer = ppo.load_adapter(f"{folder}/adapter", DEVICE)
    model.get_base_model().hf_quantizer = None  # for which transformers would not compile
    prompt_ids = [ppo.encode_prompt(tokenizer, task) for task in ppo.read_tasks(f"{folder}/ppo.jsonl")[:8]]
    model.generation_config.eos_token_id = None
    no_eos = SimpleNamespace(pad=tokenizer.pad, eos_token_id=-1)
    padded = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(DEVICE)
    sampling = {"do_sample": True, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    CompileConfig._compile_all_devices = True  # also on a CPU, where it is tried

    def ours(count):
        uniform = torch.rand(8, count, dtype=torch.float64)
        return sum(len(ids) for _, ids in ppo.generate(model, no_eos, prompt_ids, count, uniform))

    def theirs(count, **options):
        options |= sampling | {"max_new_tokens": count, "min_new_tokens": count}  # forbids EOS
        return model.generate(**padded, **options)[:, padded["input_ids"].shape[1] :].numel()

    static = partial(theirs, cache_implementation="static", compile_config=CompileConfig())
    count, record = 16 if tiny else 256, {}
    for name in ways:
        way = {"ours": ours, "transformers": theirs, "static": static}[name]
        way(count if name == "static" else 8)  # it would be compiled again for another length
        start = time.perf_counter()
        number = way(count)
        torch.tensor(0, device=DEVICE).item()  # waits for the GPU
        record[name] = number / (time.perf_counter() - start)
        if number != 8 * count:
            raise RuntimeError(f"{name}: {number} tokens instead of {8 * count}")
    if "static" in ways and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        raise RuntimeError("nothing was compiled")
    return {"tokens_per_s": record}


def pipeline(folder, tiny):
    """Scores and seconds of base, SFT and GRPO of the tiny model, with the flags of train_GRPO.sh."""
    sft = {"model_name": "data/tiny_coder", "learning_rate": 3.5e-4, "max_steps": 2 if tiny else 0}
    grpo = {"sft_model": f"{folder}/tiny_sft", "learning_rate": 5e-4, "num_updates": 2 if tiny else 10}
    record = {}
    for name, flags in {"base": None, "sft": sft, "grpo": grpo}.items():
        start, model = time.perf_counter(), f"{folder}/tiny_{name}" if flags else "data/tiny_coder"
        if flags:
            run_script(f"train_{name}_lora.py", TASKS | flags | {"output_dir": model})
        between = time.perf_counter()
        files = {"data_path": "data/mini_test.jsonl", "results_dir": folder, "exp_name": name}
        few = {"max_new_tokens": 96, "debug_first_n": 4 if tiny else 0}
        metrics = run_script("eval_humaneval.py", files | few | {"model_path": model})[0]["metrics"]
        record[name] = {key: metrics[key] for key in ("pass_at_1", "pass_at_1_truncated")}
        record[name] |= {"train_s": between - start, "eval_s": time.perf_counter() - between}
    return record


def smollm2(folder, tiny):
    """Seconds per update and rewards of a short GRPO run of a real model, after two steps of SFT."""
    model = Path(os.environ.get("SMOLLM2", ROOT / "data/smollm2")).resolve()
    if not Path(model, "config.json").is_file():
        return {"skipped": f"no model in {model} (SMOLLM2=folder names another)"}
    adapter = f"{folder}/smol_sft"
    run_script("train_sft_lora.py", TASKS | {"model_name": model, "output_dir": adapter, "max_steps": 2})
    flags = {"sft_model": adapter, "output_dir": f"{folder}/smol_grpo", "reward": "structured"}
    few = {"num_updates": 2, "max_new_tokens": 8, "batch_size": 1, "samples_per_task": 2}
    flags |= few if tiny else {"num_updates": 5, "max_new_tokens": 160}
    _, rows = run_script("train_grpo_lora.py", TASKS | flags)
    names = "avg_reward avg_base_reward avg_gen_len epochs".split()
    return {"seconds": durations(rows), **{name: [row[name] for row in rows] for name in names}}


SECTIONS: dict = {  # name: (seconds it may take, function)
    "versions": (60, versions),
    "tests": (150, tests),
    "build": (90, build),
    "sft": (90, partial(training, "sft", "max_steps")),
    "rl": (90, partial(training, "rl", "num_steps")),
    "ppo": (90, partial(training, "ppo", "num_updates")),
    "grpo": (120, partial(training, "grpo", "num_updates")),
    "actor_critic": (120, partial(training, "actor_critic", "num_updates")),
    "trl": (150, trl),
    "rollout": (90, partial(rollout, ["ours", "transformers"])),
    "static": (150, partial(rollout, ["static"])),
    "pipeline": (150, pipeline),
    "smollm2": (120, smollm2),
}


# -- driver --------------------------------------------------------------------------------------------------


def line(name, record):
    """What a section measured, for people."""
    text = f"{name:12}{record['wall_s']:6.1f} s"
    if "reserved_gb" in record:
        text += f"  {record['reserved_gb']:.2f} GB: {'OK' if record['reserved_gb'] < LIMIT else 'TOO MUCH'}"
    if "seconds" in record:
        text += f"  {median(record['seconds']):.2f} s per update"
    for way, speed in record.get("tokens_per_s", {}).items():
        text += f"  {way} {speed:.0f} tokens/s"
    return text + "".join(f"  {record[key]}" for key in ("summary", "skipped", "error") if record.get(key))


def drive(script, limits, path, seconds, **arguments):
    """Run sections, {name: limit in seconds}, and add a line of each to a file; whether all ended well."""
    end, all_well = time.monotonic() + seconds, True
    for name, limit in limits.items():
        start = time.monotonic()
        try:
            if start >= end:
                raise SystemExit(f"not begun: the {seconds:.0f} s of all sections are over")
            record = run_child(script, limit=min(limit, end - start), part=name, **arguments)
        except (SystemExit, IndexError, ValueError) as error:  # the latter two: its last line is no record
            record, all_well = {"error": str(error)}, False
        record |= {"section": name, "wall_s": round(time.monotonic() - start, 1)}
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
        print(line(name, record), flush=True)
    return all_well


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="default: %(default)s")
    parser.add_argument("--out", default=os.environ.get("OUT", ROOT / "results"), help="file or folder")
    parser.add_argument("--seconds", type=float, default=540, help="after them, no section begins")
    parser.add_argument("--tiny", action="store_true", help="small shapes, also without a GPU")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        record = SECTIONS[args.child.pop("part")][1](**args.child) | {"device": "CPU"}
        if DEVICE == "cuda":
            record["device"] = torch.cuda.get_device_name()
            record["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        print(json.dumps(record))
        sys.exit()
    chosen = args.only.split(",")
    if not SECTIONS.keys() >= set(chosen):
        raise SystemExit(f"--only {args.only}: the sections are {', '.join(SECTIONS)}")
    if DEVICE == "cpu" and not args.tiny:
        raise SystemExit("no CUDA device: --tiny tries all sections on small shapes")
    if not {"versions", "tests", "build", "pipeline", "smollm2"} >= set(chosen):
        chosen.append("build")
    path = Path(args.out, "gpu.jsonl") if Path(args.out).is_dir() else Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    limits = {name: limit for name, (limit, _) in SECTIONS.items() if name in chosen}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the section ends, too
    with tempfile.TemporaryDirectory() as folder:
        all_well = drive(__file__, limits, path, args.seconds, folder=folder, tiny=args.tiny)
    sys.exit(not all_well)
