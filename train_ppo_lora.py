"""Train a code model by PPO-Clip (Schulman et al. 2017, arXiv:1707.06347, eq. 7), written out by hand.

    maximise  E[ min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A) ]
    ratio  =  pi_new(completion | prompt) / pi_old(completion | prompt)
    A      =  (reward - mean) / (std + eps)      over the completions of one update, or of one task
    reward =  1 if the program passes all tests, else 0, minus length_penalty_alpha * tokens / 100

One update: sample completions for `batch_size` tasks with the current adapter, run the programs in the
sandbox, then take `ppo_epochs` optimizer steps on the whole batch. Simplifications: no value network (the
mean reward is the baseline), no entropy bonus.

    python train_ppo_lora.py --sft_model checkpoints/deepseek_1_3b_lora_sft_v2 \
        --output_dir checkpoints/deepseek_1_3b_lora_ppo_alpha0.01_4

Reads an adapter made by train_sft_lora.py and the task file --train_path (fields of HumanEval). Writes to
--output_dir: the adapter with its tokenizer, run_config.json, ppo_train_log.jsonl (one line per update),
samples.jsonl (one line per completion), state/ (for --resume) and, with --dev_path, best/ (an adapter).
"""

import hashlib
import io
import json
import math
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import TopPLogitsWarper

from sandbox import Sandbox, overlap, preflight, read_tasks, start_scoring

# ---- hyperparameters ----------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --length_penalty_alpha 0.03"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    test_path: str = "data/humaneval_test.jsonl"  # of the later evaluation: only compared with
    dev_path: str = ""  # tasks to evaluate on while training; left out of the training tasks
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # adapter folder to start from
    output_dir: str = "checkpoints/deepseek_1_3b_lora_ppo_alpha0.01_4"
    # -- sampling --
    max_length: int = 512  # tokens; tasks with a longer prompt are left out
    max_new_tokens: int = 256
    temperature: float = 1.0  # also divides the logits when log-probs are scored
    top_p: float = 1.0  # below 1 the sampled distribution is no longer the scored one
    # -- reward --
    length_penalty_alpha: float = 0.01  # charge per 100 generated tokens
    length_penalty_on: Literal["all", "passed"] = "all"  # passed: wrong programs gain nothing by being short
    time_limit: float = 5.0  # seconds per program
    # -- PPO --
    batch_size: int = 4  # tasks per update
    samples_per_task: int = 1  # completions of each task
    baseline: Literal["batch", "group"] = "batch"  # mean and std of the batch, or of each task's samples
    ppo_epochs: int = 4  # optimizer steps per update
    clip_range: float = 0.2
    ratio_level: Literal["sequence", "token"] = "sequence"  # one ratio per completion, or one per token
    kl_coef: float = 0.0  # weight of the KL divergence from the SFT policy
    target_kl: float = 0.0  # above 0: end an update before the step at which approx_kl exceeds it
    learning_rate: float = 5e-6
    max_grad_norm: float = 1.0
    num_updates: int = 100
    # -- memory: these do not change the mathematics --
    micro_batch_size: int = 2  # completions per forward and backward pass
    gradient_checkpointing: bool = False
    # -- long runs --
    resume: bool = False  # continue from the last state in output_dir
    save_every: int = 10  # updates between two states
    eval_every: int = 10  # updates between two evaluations on dev_path
    patience: int = 0  # above 0: stop after so many evaluations in a row without a better one
    max_bad_updates: int = 3  # stop after so many updates in a row whose gradient is not finite
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    # -- other --
    seed: int = 42
    log_every: int = 1  # updates per printed line; the log file has every update


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


def draw(rows: list, first: int, count: int, seed: int) -> list:
    """Rows first .. first + count of an endless series of shuffles; the same in a run that was resumed."""
    shuffles = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    drawn = [row for n in shuffles for row in random.Random(f"{seed} {n}").sample(rows, len(rows))]
    return drawn[first % len(rows) :][:count]


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


# ---- files: copies, kept equal by tests/test_copies.py ----------------------------------------------


def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and, last, run_config.json: a folder that has it is complete."""
    Path(output_dir, "run_config.json").unlink(missing_ok=True)
    model.save_pretrained(output_dir, save_embedding_layers=False, selected_adapters=["default"])
    tokenizer.save_pretrained(output_dir)
    Path(output_dir, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")


def save_state(output_dir, state, trainable, optimizer, logs):
    """Write what --resume needs, atomically, to a file named by its SHA-256; keep the last two."""
    state = state | {"adapter": trainable, "optimizer": optimizer.state_dict()}
    buffer = io.BytesIO()
    torch.save(state | {"log_sizes": [os.path.getsize(log.name) for log in logs]}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = Path(output_dir, "state", f"{state['done']:08d}_{digest}.pt")
    path.with_name("unfinished").write_bytes(buffer.getvalue())
    os.replace(path.with_name("unfinished"), path)
    for old in sorted(path.parent.glob("*.pt"))[:-2]:
        old.unlink()


def load_state(output_dir, identity, trainable, optimizer):
    """Load the newest sound state of the run with this identity; {} if there is none, or SystemExit."""
    paths = sorted(Path(output_dir, "state").glob("*.pt"), reverse=True)
    for path in paths:
        problem = "is damaged"
        if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem[9:]:
            state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
            other = [name for name, value in identity.items() if state["identity"].get(name) != value]
            if not other:
                optimizer.load_state_dict(state.pop("optimizer"))
                for parameter, saved in zip(trainable, state.pop("adapter")):
                    parameter.data.copy_(saved)
                return state
            problem = f"is of a run with another {', '.join(other)}"
        print(f"--resume: {path} {problem}; trying the one before")
    if paths:
        raise SystemExit(f"--resume: nothing in {output_dir}/state fits; delete that folder to start again")
    return {}


def open_logs(output_dir, names, sizes):
    """Create the folder and open its logs, cut to `sizes` bytes; sizes None is a new run, without states."""
    try:
        if sizes is None:
            for name in "state", "best":
                shutil.rmtree(Path(output_dir, name), ignore_errors=True)
        os.makedirs(Path(output_dir, "state"), exist_ok=True)
        logs = [open(Path(output_dir, name), "a") for name in names]
        Path(output_dir, "run_config.json").unlink(missing_ok=True)  # it would call this run finished
    except OSError as error:
        raise SystemExit(f"cannot write to the folder {output_dir} ({error.strerror}); choose another one")
    for log, size in zip(logs, sizes or [0] * len(logs)):
        log.truncate(min(size, os.path.getsize(log.name)))
    return logs


# ---- rollout and log-probabilities: copies, kept equal by tests/test_copies.py ----------------------


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


def completion_logprobs(model, prompt_ids: list, completion_ids: list, temperature: float, pad_token_id: int):
    """Log-probability of every completion token under the model.

    Neighbours with the same prompt share a row, in which the prompt is computed once. With the completions
    [8, 9] and [3] of the prompt [5, 6], and padding on the right, where no real token sees it:

        ids       = [5, 6, 8, 9, 3, pad]
        positions = [0, 1, 2, 3, 2, 0]
        segments  = [0, 0, 1, 1, 2, -1]   a token sees segment 0 and its own, up to itself
        columns   = [1, 2], [1]           where the logits are that predict [8, 9] and [3]

    Returns logprobs and completion_mask, both (B, C) with C = length of the longest completion; logprobs is 0
    where completion_mask is 0. The logits are divided by the sampling temperature.
    """
    ids, positions, segments, rows, columns = [], [], [], [], []
    for i, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids)):
        P, C = len(prompt), len(completion)
        if i == 0 or prompt != prompt_ids[i - 1]:
            ids.append(list(prompt))
            positions.append(list(range(P)))
            segments.append([0] * P)
        rows += [len(ids) - 1] * C
        columns += [P - 1, *range(len(ids[-1]), len(ids[-1]) + C - 1)]
        ids[-1] += completion
        positions[-1] += range(P, P + C)
        segments[-1] += [segments[-1][-1] + 1] * C
    ids = pad_sequence([torch.tensor(row) for row in ids], True, pad_token_id).to(model.device)  # (R, T)
    positions = pad_sequence([torch.tensor(row) for row in positions], True, 0).to(model.device)
    segments = pad_sequence([torch.tensor(row) for row in segments], True, -1).to(model.device)
    seen = (segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])  # (R, T query, T key)
    base = model.get_base_model()
    arguments = {"attention_mask": seen.tril()[:, None], "position_ids": positions, "use_cache": False}
    hidden = base.get_decoder()(ids, **arguments).last_hidden_state[rows, columns]  # (tokens, hidden size)
    logits = base.get_output_embeddings()(hidden).float() / temperature  # (tokens, V)
    targets = torch.cat([torch.tensor(completion) for completion in completion_ids]).to(model.device)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)  # (tokens,)
    lengths = [len(completion) for completion in completion_ids]
    mask = pad_sequence([torch.ones(n) for n in lengths], True).to(model.device)  # from lengths: pad = eos
    return pad_sequence(logprobs.split(lengths), True), mask


def micro_batches(prompt_ids, completion_ids, chosen, size: int) -> list[tuple[list, tuple[list, list]]]:
    """The completions in `chosen`, `size` at a time: [(indices, (prompt_ids, completion_ids)), ...].

    Completions of one prompt stay together, next to prompts whose row is about as long: little padding.
    """
    length = Counter()  # of the row that completion_logprobs makes of a prompt
    for i in chosen:
        length[tuple(prompt_ids[i])] += len(completion_ids[i])
    order = sorted(chosen, key=lambda i: (len(prompt_ids[i]) + length[tuple(prompt_ids[i])], prompt_ids[i]))
    slices = [order[first : first + size] for first in range(0, len(order), size)]
    return [(mb, ([prompt_ids[i] for i in mb], [completion_ids[i] for i in mb])) for mb in slices]


def greedy_passes(model, tokenizer, sandbox, tasks, batch_size, max_new_tokens):
    """For each task, in no particular order, whether its greedy completion passes."""
    scores = []
    for first in range(0, len(tasks), batch_size):
        batch = tasks[first : first + batch_size]
        prompt_ids = [encode_prompt(tokenizer, task) for task in batch]
        for i, ids in generate(model, tokenizer, prompt_ids, max_new_tokens, 1.0, 1.0, None):
            scores.append(start_scoring(sandbox, batch[i], tokenizer.decode(ids, skip_special_tokens=True)))
    return [score.result().outcome == "passed" for score in scores]


# ---- advantages and loss ------------------------------------------------------------------------------


def normalized_advantages(rewards: Tensor, group_size: int, eps: float = 1e-8) -> Tensor:
    """(rewards - mean) / (std + eps) within each group of neighbours. rewards: (B,); returns (B,).

    Zeros in a group whose rewards are all equal: there is nothing to learn, and noise / eps would be large.
    """
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + eps)
    advantages[groups.amax(1) - groups.amin(1) < 1e-6] = 0.0
    return advantages.flatten()


def ppo_loss(logprobs: Tensor, old_logprobs, completion_mask, advantages: Tensor, clip_range, ratio_level):
    """-min(ratio * A, clip(ratio) * A), summed; eq. 7 of the PPO paper with the sign of a loss.

    logprobs, old_logprobs, completion_mask: (B, C); advantages: (B,). Returns the loss summed over
    completions ("sequence") or over completion tokens ("token"), the log-ratios (B,) or (B, C), and which of
    them the clip cut off. The caller divides by the number of completions or tokens in the whole batch.
    """
    log_ratio: Tensor = (logprobs - old_logprobs) * completion_mask
    if ratio_level == "sequence":
        log_ratio = log_ratio.sum(-1)  # (B,)
    else:
        advantages = advantages[:, None] * completion_mask  # (B, C), 0 at padding
    ratio = log_ratio.clamp(-20, 20).exp()  # e^20 is far outside the clip range; e^100 would overflow
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return -torch.min(unclipped, clipped).sum(), log_ratio.detach(), clipped < unclipped


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    positive = "max_new_tokens temperature top_p time_limit batch_size samples_per_task ppo_epochs"
    positive += " clip_range learning_rate max_grad_norm num_updates micro_batch_size save_every eval_every"
    cfg = parse_config(Config, f"{positive} max_bad_updates log_every")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    if tracker and not accelerator.log_with:  # accelerate would only warn
        raise SystemExit(f"--report_to {tracker} needs a package: pip install {tracker}")
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main = accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    num_completions = cfg.batch_size * cfg.samples_per_task
    group_size = cfg.samples_per_task if cfg.baseline == "group" else num_completions
    if group_size < 2:
        raise SystemExit("--batch_size (baseline group: --samples_per_task) must be at least 2, to compare")
    share = num_completions // world
    mine = slice(rank * share, (rank + 1) * share)  # of the completions
    if share * world != num_completions:
        raise SystemExit(f"{num_completions} completions cannot be shared out among {world} processes")
    if Path(cfg.output_dir).resolve() == Path(cfg.sft_model).resolve():
        raise SystemExit("--output_dir is --sft_model, which would be overwritten; choose another one")
    if cfg.patience > 0 and not cfg.dev_path:
        raise SystemExit("--patience needs a --dev_path")
    dev_tasks = read_tasks(cfg.dev_path) if cfg.dev_path else []
    dev_ids = {task["task_id"] for task in dev_tasks}
    others = [task for task in read_tasks(cfg.train_path) if task["task_id"] not in dev_ids]
    shared = overlap(others, cfg.test_path)
    accelerator.print(shared["summary"])
    model, tokenizer = load_adapter(cfg.sft_model, device, is_trainable=True)
    if cfg.kl_coef > 0:  # a frozen second adapter; with none at all, the reference would be the base model
        model.load_adapter(cfg.sft_model, "reference", torch_device=device)
    for module in model.modules():  # a reloaded adapter brings its dropout back: no ratio would be 1
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=0.0)
    tasks = [task for task in others if len(encode_prompt(tokenizer, task)) <= cfg.max_length]
    if not tasks:
        raise SystemExit(f"{cfg.train_path}: all prompts over --max_length {cfg.max_length} or in --dev_path")
    accelerator.print(f"{len(tasks)} tasks ({len(others) - len(tasks)} prompts too long), {device}")
    sizes = f"{cfg.batch_size} tasks x {cfg.samples_per_task} samples, {cfg.ppo_epochs} optimizer steps each"
    accelerator.print(f"{cfg.num_updates} updates of {sizes}")

    may_change = "output_dir num_updates micro_batch_size gradient_checkpointing resume save_every patience"
    may_change += " max_bad_updates report_to log_every test_path"
    identity = {name: value for name, value in asdict(cfg).items() if name not in may_change.split()}
    weights = f"{cfg.sft_model}/adapter_model.safetensors"
    for name, path in ("train", cfg.train_path), ("dev", cfg.dev_path), ("sft", weights):
        identity[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    state: dict = {"done": 0, "bad_updates": 0, "best": -1.0, "waited": 0, "seconds": 0.0, "log_sizes": None}
    state |= {"identity": identity, "good": [p.detach().clone() for p in trainable]}  # before the last update
    state |= load_state(cfg.output_dir, identity, trainable, optimizer) if cfg.resume else {}

    sandbox = Sandbox(timeout=cfg.time_limit, tasks=tasks + dev_tasks)
    accelerator.print(f"sandbox: {sandbox.report}")
    if is_main:
        print(preflight(sandbox, tasks + dev_tasks))
        logs = open_logs(cfg.output_dir, ("ppo_train_log.jsonl", "samples.jsonl"), state["log_sizes"])
    if tracker:  # which imports it
        accelerator.init_trackers("ppo", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    progress = tqdm(total=cfg.num_updates, initial=state["done"], disable=None if is_main else True)
    run_config = {**asdict(cfg), **identity, "method": "PPO", "sandbox": sandbox.report}
    run_config["overlap"] = shared
    stopped = ""  # why, where that is not after the last update
    try:
        while state["done"] < cfg.num_updates and not 0 < cfg.patience <= state["waited"]:
            # ---- rollout: each process samples its share; programs run while others are still sampled ----
            update = state["done"] + 1
            times = [time.time()]
            drawn = draw(tasks, state["done"] * cfg.batch_size, cfg.batch_size, cfg.seed)
            batch = [task for task in drawn for _ in range(cfg.samples_per_task)][mine]
            prompt_ids = [encode_prompt(tokenizer, task) for task in batch]
            noise = torch.Generator().manual_seed(1_000_003 * cfg.seed + update)
            uniform = torch.rand(num_completions, cfg.max_new_tokens, generator=noise, dtype=torch.float64)
            sampling = cfg.max_new_tokens, cfg.temperature, cfg.top_p, uniform[mine]
            samples = [{"update": update, "task_id": task["task_id"]} for task in batch]
            completion_ids, scores = {}, {}
            for i, ids in generate(model, tokenizer, prompt_ids, *sampling):
                completion_ids[i], completion = ids, tokenizer.decode(ids, skip_special_tokens=True)
                scores[i] = start_scoring(sandbox, batch[i], completion)
                samples[i] |= {"completion": completion, "gen_len": len(ids)}
                samples[i] |= {"truncated": ids[-1] != tokenizer.eos_token_id}
            times.append(time.time())

            # ---- reward, and advantages over the completions of all processes ----
            for i, score in scores.items():
                samples[i]["outcome"] = score.result().outcome
            samples = gather_object(samples)
            passed = torch.tensor([float(sample["outcome"] == "passed") for sample in samples])  # (B,)
            gen_len = torch.tensor([float(sample["gen_len"]) for sample in samples])  # (B,)
            charged = passed if cfg.length_penalty_on == "passed" else 1.0
            rewards = passed - cfg.length_penalty_alpha * gen_len / 100 * charged  # (B,)
            advantages = normalized_advantages(rewards, group_size)  # (B,)
            times.append(time.time())

            # ---- update ----
            model.train()  # every dropout is 0
            my_advantages = advantages[mine].to(device)
            chosen = [i for i in range(share) if cfg.kl_coef > 0 or my_advantages[i] != 0]  # have a gradient
            mbs = micro_batches(prompt_ids, completion_ids, chosen, cfg.micro_batch_size)
            scoring = cfg.temperature, tokenizer.pad_token_id
            if cfg.kl_coef > 0:
                model.set_adapter("reference", inference_mode=True)
                with torch.no_grad():
                    ref_logprobs = [completion_logprobs(model, *ids, *scoring)[0] for _, ids in mbs]
                model.set_adapter("default")
            old_logprobs = []  # of each micro-batch, (mb, C)
            total_tokens = gen_len.sum().item()
            count = num_completions if cfg.ratio_level == "sequence" else total_tokens
            clip = cfg.clip_range, cfg.ratio_level
            epochs = []  # stats of each
            for epoch in range(cfg.ppo_epochs if cfg.kl_coef > 0 or advantages.any() else 0):
                optimizer.zero_grad()
                sums = torch.zeros(5, device=device)  # loss, clipped ratios, KL, -log-probs, tokens
                max_log_ratio = torch.zeros((), device=device)
                for k, (mb, ids) in enumerate(mbs):
                    logprobs, mask = completion_logprobs(model, *ids, *scoring)  # (mb, C)
                    if epoch == 0:  # the very same numbers, so that the first ratio is 1
                        old_logprobs.append(logprobs.detach())
                    old, A = old_logprobs[k], my_advantages[mb]
                    loss, log_ratio, clipped = ppo_loss(logprobs, old, mask, A, *clip)
                    if cfg.kl_coef > 0:
                        # half the squared log-ratio has, on the policy's own samples, the KL's gradient
                        squares = (logprobs - ref_logprobs[k]).square().sum() / 2
                        loss = loss + cfg.kl_coef * squares * count / total_tokens
                    (loss / count).backward()  # per micro-batch, so that only one graph is in memory
                    delta = (logprobs.detach() - old).clamp(-20, 20)
                    kl = ((delta.exp() - 1 - delta) * mask).sum()  # k3 of joschu.net/blog/kl-approx.html
                    sums += torch.stack([loss.detach(), clipped.sum(), kl, -old.sum(), mask.sum()])
                    max_log_ratio = max_log_ratio.maximum(log_ratio.abs().max())
                for p in trainable:  # a sum over processes: each has divided by the count of all
                    p.grad = accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
                loss, clipped, kl, entropy, tokens = accelerator.reduce(sums, "sum").tolist()
                stats = {"loss": loss / count, "clip_frac": clipped / count, "approx_kl": kl / tokens}
                stats["entropy_estimate"] = entropy / tokens  # of the completions that have a gradient
                stats["max_log_ratio"] = accelerator.reduce(max_log_ratio, "max").item()
                stats["grad_norm"] = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
                epochs.append(stats)
                if not math.isfinite(loss + stats["grad_norm"]) or 0 < cfg.target_kl < stats["approx_kl"]:
                    break  # without this step
                if epoch == 0:
                    state["good"] = [p.detach().clone() for p in trainable]
                optimizer.step()
            bad = bool(epochs) and not math.isfinite(loss + stats["grad_norm"])
            state |= {"done": update, "bad_updates": state["bad_updates"] + 1 if bad else 0}
            times.append(time.time())

            # ---- log ----
            flat = (advantages.view(-1, group_size) == 0).all(1).float().mean().item()
            by_length = normalized_advantages(passed, group_size).sign() != advantages.sign()
            errors = sum(sample["outcome"] == "error" for sample in samples)
            row = {"update": update, "batch_size": cfg.batch_size, "num_completions": num_completions}
            row |= {"avg_reward": rewards.mean().item(), "avg_base_reward": passed.mean().item()}
            row |= {"avg_gen_len": gen_len.mean().item(), "flat": flat}  # share of groups with equal rewards
            row |= {"truncated": sum(sample["truncated"] for sample in samples) / num_completions}
            row |= {"unique": len({(sample["task_id"], sample["completion"]) for sample in samples})}
            row |= {"sign_by_length": by_length.float().mean().item()}  # advantages that length alone turned
            for name in "loss", "clip_frac", "grad_norm":  # means over the epochs
                row[name] = sum(stats[name] for stats in epochs) / max(len(epochs), 1)
            for name in "approx_kl", "max_log_ratio", "entropy_estimate":
                row[name] = max((stats[name] for stats in epochs), default=0.0)
            row |= {"epochs": len(epochs), "sandbox_errors": errors, "sandbox": sandbox.report}
            row |= {"rollout_seconds": times[1] - times[0], "reward_seconds": times[2] - times[1]}
            row |= {"update_seconds": times[3] - times[2], "seconds": time.time() - start}
            if dev_tasks and (update % cfg.eval_every == 0 or update == cfg.num_updates):
                part = dev_tasks[rank::world]
                passes = greedy_passes(model, tokenizer, sandbox, part, num_completions, cfg.max_new_tokens)
                row["dev_pass_at_1"] = torch.tensor(gather_object(passes)).float().mean().item()
                state["waited"] += 1
                if row["dev_pass_at_1"] > state["best"]:
                    state |= {"best": row["dev_pass_at_1"], "waited": 0}
                    if is_main:
                        save_adapter(model, tokenizer, f"{cfg.output_dir}/best", run_config | row)
            accelerator.log({name: value for name, value in row.items() if name != "sandbox"}, step=update)
            if is_main:
                for sample, reward, advantage in zip(samples, rewards.tolist(), advantages.tolist()):
                    sample |= {"reward": reward, "advantage": advantage}
                for file, lines in zip(logs, ([row], samples)):
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                    file.flush()
                if update % cfg.save_every == 0 or update == cfg.num_updates:
                    state["seconds"] = row["seconds"]
                    save_state(cfg.output_dir, state, trainable, optimizer, logs)
                if update % cfg.log_every == 0:
                    shown = "avg_reward avg_base_reward avg_gen_len truncated unique flat entropy_estimate"
                    shown += " clip_frac approx_kl max_log_ratio seconds"
                    values = "  ".join(f"{name} {row[name]:<6.3g}" for name in shown.split())
                    tqdm.write(f"update {update:<4d}  {values}")
                if flat == 1:
                    remedy = "raise --temperature, --batch_size or --samples_per_task, or take other tasks"
                    tqdm.write(f"warning: all {num_completions} rewards equal, nothing to learn: {remedy}")
                if errors:
                    tqdm.write(f"warning: the sandbox itself failed on {errors} programs")
                if bad:
                    tqdm.write("warning: loss or gradient is not finite, the rest of the update is skipped")
            progress.update()
            if state["bad_updates"] >= cfg.max_bad_updates:
                raise FloatingPointError("no finite gradient")
    except KeyboardInterrupt:
        stopped = "interrupted"
    except FloatingPointError as error:
        stopped = f"{error}; lower --learning_rate"
        state["bad_updates"] += 1
    except torch.OutOfMemoryError:
        knobs = f"lower --micro_batch_size (now {cfg.micro_batch_size}) or set --gradient_checkpointing true"
        knobs += " and --resume; in the rollout only a smaller --batch_size or --max_new_tokens helps"
        raise SystemExit(f"out of memory: {knobs}")

    if state["bad_updates"] > 0:  # what the last good one made of the adapter was not good
        for p, saved in zip(trainable, state["good"]):
            p.data.copy_(saved)
    if is_main:
        run_config |= {"updates_done": state["done"], "finished": not stopped}
        save_adapter(model, tokenizer, cfg.output_dir, run_config)
        print(f"saved {cfg.output_dir}" + f" ({stopped} after {state['done']} updates)" * bool(stopped))
    accelerator.end_training()
    sandbox.close()
    if stopped:
        sys.exit(130 if stopped == "interrupted" else 1)  # so that a shell script stops too
