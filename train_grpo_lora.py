"""Train a code model by GRPO (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300), written out by hand.

    maximise  sum_i w_i sum_t [ min(ratio A_i, clip(ratio, 1 - clip_low, 1 + clip_high) A_i) - kl_coef k3 ]
    A_i   = (reward_i - mean of its group) / (std of its group + 1e-4)    DeepSeekMath, section 4.1.2
    ratio = pi / pi_old of a token; sequence_mean: geometric mean         GSPO, arXiv:2507.18071, eq. 7
    k3    = pi_sft / pi - log(pi_sft / pi) - 1                            DeepSeekMath, eq. 4
    w_i   = 1 / (B |o_i|)          loss_type grpo                         DeepSeekMath, eq. 3
            1 / sum_j |o_j|                  dapo                         arXiv:2503.14476, section 3.3
            1 / (B max_new_tokens)           dr_grpo                      arXiv:2503.20783, section 3

One update: sample `samples_per_task` completions for each of `batch_size` tasks (B in all, |o_i| tokens), run
the programs in the sandbox, take `grpo_epochs` optimizer steps on the whole batch. Simplifications: no value
network (the mean of a group is its baseline), no length penalty, no minibatches.

    python train_grpo_lora.py --sft_model checkpoints/NAME_sft --output_dir checkpoints/NAME_grpo

Reads an adapter made by train_sft_lora.py and a task file with the fields of HumanEval. Writes to
--output_dir: the adapter and its tokenizer, run_config.json, grpo_train_log.jsonl, samples.jsonl, state.pt
(for --resume after Ctrl-C or kill -9) and, with --dev_path, best/ (the adapter with the best dev score).
"""

import hashlib
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.generation import TopPLogitsWarper

from sandbox import Sandbox, check_model, check_supported, encode_prompt, open_log, parse_config, shaped

from sandbox import compute_dtype, preflight, read_tasks, start_scoring, stop_ids  # isort: skip
from sandbox import stop_with, trained_tokenizer  # isort: skip

# ---- hyperparameters ----------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --loss_type dr_grpo"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    dev_path: str = ""  # tasks to evaluate on while training; left out of the training tasks
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # adapter folder to start from
    output_dir: str = "checkpoints/deepseek_1_3b_lora_grpo_dapo"
    # -- sampling --
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    max_length: int = 512  # tokens of a prompt; tasks with a longer one are left out
    max_new_tokens: int = 256
    temperature: float = 1.0  # also divides the logits when log-probs are scored
    top_p: float = 1.0  # below 1 the sampled distribution is no longer the scored one
    seed: int = 42
    # -- reward --
    reward: Literal["binary", "pass_rate", "structured"] = "binary"  # see shaped in sandbox.py
    time_limit: float = 5.0  # seconds per program
    # -- GRPO --
    batch_size: int = 4  # tasks per update
    samples_per_task: int = 8  # completions of each task: its group
    max_rounds: int = 1  # above 1: so often other tasks are drawn for groups of equal rewards
    scale: Literal["group", "batch", "none"] = "group"  # whose std advantages are divided by
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"  # what a token of a long completion counts
    ratio_level: Literal["token", "sequence_mean"] = "token"  # sequence_mean: with loss_type grpo, it is GSPO
    clip_low: float = 0.2  # GSPO: 3e-4
    clip_high: float = 0.2  # DAPO: 0.28; GSPO: 4e-4
    grpo_epochs: int = 1  # optimizer steps per update; with 1, all ratios are 1 and nothing is clipped
    mask_truncated: bool = False  # completions without EOS count in advantages, but not in the loss
    kl_coef: float = 0.0  # strength of the pull to the SFT adapter
    learning_rate: float = 1e-5
    max_grad_norm: float = 1.0
    num_updates: int = 100
    micro_batch_size: int = 8  # completions per forward and backward pass; if memory is short, lower it first
    # -- long runs and logs --
    resume: bool = False  # continue from output_dir/state.pt
    save_every: int = 10  # updates between two saves of adapter and state
    eval_every: int = 10  # updates between two evaluations on dev_path
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    log_every: int = 1  # updates per printed line; the log file has every update


# ---- model and files: copies, kept equal by tests/test_copies.py ----------------------------------------


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


def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and, last, run_config.json: a folder that has it is complete."""
    Path(output_dir, "run_config.json").unlink(missing_ok=True)
    model.save_pretrained(output_dir, save_embedding_layers=False)
    tokenizer.save_pretrained(output_dir)
    Path(output_dir, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")


# ---- rollout: copies, kept equal by tests/test_copies.py ------------------------------------------------


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


def rollout(model, tokenizer, sandbox, tasks, max_new_tokens, uniform=None, temperature=1.0, top_p=1.0):
    """A dict per task: ids, text, gen_len, hit_token_limit, outcome, fraction. Programs run on the side."""
    prompt_ids = [task["prompt_ids"] for task in tasks]
    samples = [{"task_id": task["task_id"], "prompt_ids": task["prompt_ids"]} for task in tasks]
    for i, ids in generate(model, tokenizer, prompt_ids, max_new_tokens, uniform, temperature, top_p):
        completion = tokenizer.decode(ids, skip_special_tokens=True)
        samples[i]["score"] = start_scoring(sandbox, tasks[i], completion)  # a Future
        samples[i] |= {"completion_ids": ids, "completion": completion, "gen_len": len(ids)}
        samples[i]["hit_token_limit"] = ids[-1] not in stop_ids(model, tokenizer)
    for sample in samples:
        result = sample.pop("score").result()
        sample |= {"outcome": result.outcome, "fraction": result.fraction}
    return samples


# ---- log-probabilities: copies, kept equal by tests/test_copies.py ------------------------------------


def group_logprobs(model, tokenizer, samples, temperature):
    """Log-probability of every completion token, under the logits divided by the sampling temperature.

    A prompt is computed once: its completions share its keys and values, through which gradients flow.
    Returns logprobs and mask, (B, longest completion); logprobs is 0 where mask is 0.
    """
    prompts = list({tuple(sample["prompt_ids"]): sample["prompt_ids"] for sample in samples}.values())
    rows = torch.tensor([prompts.index(sample["prompt_ids"]) for sample in samples], device=model.device)
    left = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt", verbose=False)
    ids, prompt_mask = left["input_ids"].to(model.device), left["attention_mask"].to(model.device)
    positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)  # (prompts, P)
    last = torch.tensor([-1], device=model.device)  # as in generate
    options = {"use_cache": True, "logits_to_keep": last}
    output = model(ids, attention_mask=prompt_mask, position_ids=positions, **options)
    name = "cache" if "cache" in output else "past_key_values"  # the name until transformers 5.23
    output[name].batch_select_indices(rows)  # from here on, a row per completion

    completions = {"input_ids": [sample["completion_ids"] for sample in samples]}
    right = tokenizer.pad(completions, padding_side="right", return_tensors="pt", verbose=False)
    ids, mask = right["input_ids"].to(model.device), right["attention_mask"].to(model.device)  # (B, C)
    seen = torch.cat([prompt_mask[rows], mask], 1)  # (B, P + C)
    positions = positions[rows, -1:] + mask.cumsum(-1)  # (B, C)
    later = model(ids, attention_mask=seen, position_ids=positions, use_cache=True, **{name: output[name]})
    logits = torch.cat([output.logits[rows], later.logits[:, :-1]], 1)  # (B, C, V); [:, t] predicts ids[:, t]
    logits = logits.float() / temperature
    logprobs = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return logprobs * mask, mask


# ---- advantages and loss ----------------------------------------------------------------------------


def group_advantages(rewards: torch.Tensor, group_size: int, scale: str) -> torch.Tensor:
    """(rewards - mean of the group) / (std + 1e-4), (B,); exact zeros in groups of equal rewards."""
    groups = rewards.view(-1, group_size)
    equal = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True) < 1e-6  # rounding is no signal
    advantages = (groups - groups.mean(-1, keepdim=True)).masked_fill(equal, 0.0)
    if scale != "none":
        advantages /= (groups.std(-1, keepdim=True) if scale == "group" else rewards.std()) + 1e-4
    return advantages.flatten()


def token_weights(lengths, counted, loss_type: str, max_new_tokens: int) -> torch.Tensor:
    """What each token of completion i counts, (B,): w_i of the formula above, or 0 where counted is 0."""
    if loss_type == "dapo":
        return counted / (lengths * counted).sum().clamp(min=1)
    return counted / len(lengths) / (lengths if loss_type == "grpo" else max_new_tokens)


def k3(delta: torch.Tensor) -> torch.Tensor:
    """exp(delta) - delta - 1 >= 0; delta, a difference of log-probs, is bounded as e^100 would overflow."""
    delta = delta.clamp(-20, 20)
    return delta.exp() - delta - 1


def grpo_loss(logprobs, old, ref, mask, advantages, weights, clip_low, clip_high, ratio_level, kl_coef):
    """The formula above as a loss, summed over completion tokens; and which tokens are clipped, (B, C).

    logprobs, old (of the policy that sampled), ref (SFT), mask: (B, C); advantages, weights: (B,).
    """
    log_ratio = (logprobs - old) * mask
    if ratio_level == "sequence_mean":  # (B, 1): one ratio for all tokens of a completion
        log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    ratio = log_ratio.clamp(-20, 20).exp()
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages[:, None]
    losses = kl_coef * k3(ref - logprobs) - torch.min(unclipped, clipped)  # (B, C)
    return (losses * mask * weights[:, None]).sum(), (clipped < unclipped) * mask


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    cfg = parse_config(Config, free="kl_coef seed")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if cfg.samples_per_task < 2 or cfg.clip_low >= 1 or cfg.kl_coef < 0 or cfg.batch_size % world:
        needs = f"--batch_size is a multiple of {world} processes, --samples_per_task at least 2"
        raise SystemExit(f"{needs}, --clip_low below 1, --kl_coef at least 0")
    if cfg.ratio_level == "sequence_mean" and (cfg.loss_type != "grpo" or cfg.clip_low > 0.05):
        accelerator.print(
            "warning: GSPO has --loss_type grpo, and --clip_low 3e-4 --clip_high 4e-4 to clip at all"
        )
    if Path(cfg.sft_model).resolve().is_relative_to(Path(cfg.output_dir).resolve()):
        raise SystemExit("--output_dir is --sft_model or holds it: nothing may overwrite that adapter")

    dev_tasks = read_tasks(cfg.dev_path, cfg.prompt_format) if cfg.dev_path else []
    dev_ids = {task["task_id"] for task in dev_tasks}
    tasks = read_tasks(cfg.train_path, cfg.prompt_format)
    tasks = [task for task in tasks if task["task_id"] not in dev_ids]
    model, tokenizer = load_adapter(cfg.sft_model, device, is_trainable=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=0.0)
    for task in tasks + dev_tasks:
        task["prompt_ids"] = encode_prompt(tokenizer, task)
    tasks = [task for task in tasks if len(task["prompt_ids"]) <= cfg.max_length]
    if not tasks:
        raise SystemExit(f"{cfg.train_path}: all prompts over --max_length {cfg.max_length} or in --dev_path")
    prompts = [task["prompt_ids"] for task in tasks + dev_tasks]
    check_model(generate, model, tokenizer, prompts, cfg.max_new_tokens, group_logprobs)
    order = []  # every task once before one comes again
    for n in range(math.ceil(cfg.num_updates * cfg.max_rounds * cfg.batch_size / len(tasks))):
        order += random.Random(f"{cfg.seed} {n}").sample(tasks, len(tasks))

    may_change = "output_dir num_updates micro_batch_size resume save_every report_to log_every".split()
    settings = {name: value for name, value in asdict(cfg).items() if name not in may_change}
    for path in filter(None, (cfg.train_path, cfg.dev_path, f"{cfg.sft_model}/adapter_model.safetensors")):
        settings[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()  # a changed file shows
    state: dict = {"settings": settings, "update": 0, "rounds": 0, "best": -1.0, "seconds": 0.0}
    state["log_sizes"] = [0, 0]
    state_path = Path(cfg.output_dir, "state.pt")
    sft = [p.detach().clone() for p in trainable]  # the reference of kl_coef
    if cfg.resume and state_path.exists():
        with stop_with(f"--resume: {state_path} cannot be used; repeat its settings or delete it"):
            state = torch.load(state_path, "cpu", weights_only=True)  # runs no code from the file
            changed = [name for name, value in settings.items() if state["settings"].get(name) != value]
        if changed:
            raise SystemExit(f"--resume: {state_path} was made with another {', '.join(changed)}; delete it")
        for p, saved in zip(trainable, state.pop("lora")):
            p.data.copy_(saved)
        optimizer.load_state_dict(state.pop("optimizer"))
    if state["update"] >= cfg.num_updates:
        accelerator.print(f"{cfg.output_dir} is finished")
        sys.exit()
    accelerator.print(f"{len(tasks)} tasks, updates {state['update'] + 1} to {cfg.num_updates} on {device}")
    sandbox = Sandbox(timeout=cfg.time_limit, tasks=tasks + dev_tasks)  # one, and its tests, per process
    run_config = {**asdict(cfg), **settings, "method": "GRPO", "sandbox": sandbox.report}
    accelerator.print(f"sandbox: {sandbox.report}\n{preflight(sandbox, tasks + dev_tasks, tokenizer)}")
    if is_main:
        with stop_with(f"cannot write to --output_dir {cfg.output_dir}"):
            logs = [open_log(f"{cfg.output_dir}/{name}.jsonl") for name in ("grpo_train_log", "samples")]
        if state["update"] == 0:  # a new run: what an older one left must not be taken for its own
            for name in "state.pt", "run_config.json", "best/adapter_model.safetensors":
                Path(cfg.output_dir, name).unlink(missing_ok=True)
        for log, size in zip(logs, state["log_sizes"]):
            log.truncate(min(size, log.tell()))  # drop the lines of updates after the state
    accelerator.init_trackers("grpo", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    G, B = cfg.samples_per_task, cfg.batch_size * cfg.samples_per_task
    mine = slice(rank * B // world, (rank + 1) * B // world)  # this rank's share of the completions
    for update in tqdm(range(state["update"] + 1, cfg.num_updates + 1), disable=None if is_main else True):
        # ---- rollout: random numbers belong to a completion, whichever process samples it ----
        samples, flat = [], []  # of all rounds; for each group, whether its rewards are equal
        while len(samples) < cfg.max_rounds * B and flat.count(False) < cfg.batch_size:
            drawn = order[state["rounds"] * cfg.batch_size :][: cfg.batch_size]
            state["rounds"] += 1
            noise = torch.Generator().manual_seed((1_000_003 * cfg.seed + state["rounds"]) % 2**64)
            uniform = torch.rand(B, cfg.max_new_tokens, generator=noise, dtype=torch.float64)
            repeated = [task for task in drawn for _ in range(G)]
            sampling = cfg.max_new_tokens, uniform[mine], cfg.temperature, cfg.top_p
            samples += gather_object(rollout(model, tokenizer, sandbox, repeated[mine], *sampling))
            for sample in samples:
                sample["reward"] = shaped(sample["outcome"], sample["fraction"], cfg.reward)
                sample |= {"update": update, "advantage": 0.0, "weight": 0.0}
            rewards = torch.tensor([sample["reward"] for sample in samples])  # (rounds * B,)
            flat = [not group.any() for group in group_advantages(rewards, G, "none").view(-1, G)]

        # ---- advantages, over the completions of all processes ----
        chosen = sorted(range(len(flat)), key=flat.__getitem__)[: cfg.batch_size]  # flat ones only fill it up
        batch = [sample for group in chosen for sample in samples[group * G : (group + 1) * G]]  # B of them
        advantages = group_advantages(rewards.view(-1, G)[chosen].flatten(), G, cfg.scale)  # (B,)
        lengths = torch.tensor([float(sample["gen_len"]) for sample in batch])  # (B,)
        counted = [float(not (cfg.mask_truncated and sample["hit_token_limit"])) for sample in batch]
        weights = token_weights(lengths, torch.tensor(counted), cfg.loss_type, cfg.max_new_tokens)  # (B,)
        for sample, advantage, weight in zip(batch, advantages.tolist(), weights.tolist()):
            sample |= {"advantage": advantage, "weight": weight}

        # ---- update: still in eval mode, set by generate; with dropout no ratio would be 1 ----
        active = [s for s in batch if s["weight"] and (s["advantage"] or cfg.kl_coef)]  # with a gradient
        active.sort(key=lambda s: (len(s["prompt_ids"]), s["prompt_ids"], s["gen_len"]))  # groups together
        mbs = [active[i : i + cfg.micro_batch_size] for i in range(0, len(active), cfg.micro_batch_size)]
        mbs = mbs[rank::world]
        if cfg.kl_coef:
            policy = [p.data for p in trainable]
            for p, value in zip(trainable, sft):
                p.data = value
            with torch.no_grad():
                refs = [group_logprobs(model, tokenizer, mb, cfg.temperature)[0] for mb in mbs]
            for p, value in zip(trainable, policy):
                p.data = value
        old_logprobs = {}  # of each micro-batch under pi_old, (mb, C); from the first epoch
        epoch_stats = []
        for epoch in range(cfg.grpo_epochs if active else 0):
            optimizer.zero_grad()
            sums = torch.zeros(6, device=device)  # loss, clipped tokens, two KLs, -log-probs, tokens
            for i, mb in enumerate(mbs):
                logprobs, mask = group_logprobs(model, tokenizer, mb, cfg.temperature)  # (mb, C)
                new = logprobs.detach()
                old = old_logprobs.setdefault(i, new)  # in epoch 0 the ratio is 1
                ref = refs[i] if cfg.kl_coef else new
                A, w = torch.tensor([[s["advantage"], s["weight"]] for s in mb], device=device).T  # (mb,)
                how = cfg.clip_low, cfg.clip_high, cfg.ratio_level, cfg.kl_coef
                loss, clipped = grpo_loss(logprobs, old, ref, mask, A, w, *how)
                loss.backward()  # per micro-batch, so that only one graph is in memory
                kls = [(k3(delta) * mask).sum() for delta in (new - old, ref - new)]
                sums += torch.stack([loss.detach(), clipped.sum(), *kls, -old.sum(), mask.sum()])
            for p in trainable:  # a sum over processes: weights are of the batch of all
                p.grad = accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
            loss, *totals, num_tokens = accelerator.reduce(sums, "sum").tolist()
            grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
            names = "clip_frac", "approx_kl", "kl_ref", "entropy_estimate"
            stats = {name: total / num_tokens for name, total in zip(names, totals)}  # per token
            epoch_stats.append(stats | {"loss": loss, "grad_norm": grad_norm})
            if not math.isfinite(loss + grad_norm):
                break  # without this step
            optimizer.step()

        # ---- log: of all samples; in the batch of max_rounds, about half of the programs pass ----
        passed = torch.tensor([float(s["outcome"] == "passed") for s in samples]).view(-1, G)  # (groups, G)
        row = {
            "update": update,
            "batch_size": cfg.batch_size,
            "num_completions": len(samples),  # more than a batch if there was more than one round
            "avg_reward": rewards.mean().item(),
            "avg_base_reward": passed.mean().item(),  # pass rate
            "avg_pass_rate": sum(sample["fraction"] for sample in samples) / len(samples),  # of tests
            "any_passed": passed.amax(-1).mean().item(),  # pass@G of the drawn tasks
            "flat": flat.count(True) / len(flat),
            "avg_gen_len": sum(sample["gen_len"] for sample in samples) / len(samples),
            "hit_token_limit": sum(sample["hit_token_limit"] for sample in samples) / len(samples),
            "sandbox_errors": sum(sample["outcome"] == "error" for sample in samples),
            "epochs": len(epoch_stats),
            "seconds": time.time() - start,
        }
        for name in "loss", "clip_frac", "grad_norm":  # means over the epochs
            row[name] = sum(stats[name] for stats in epoch_stats) / max(len(epoch_stats), 1)
        for name in "approx_kl", "kl_ref", "entropy_estimate":  # maxima
            row[name] = max((stats[name] for stats in epoch_stats), default=0.0)
        is_last = update == cfg.num_updates
        if dev_tasks and (update % cfg.eval_every == 0 or is_last):
            dev_passed = []
            for first in range(rank * B, len(dev_tasks), world * B):
                part = dev_tasks[first : first + B]
                greedy = rollout(model, tokenizer, sandbox, part, cfg.max_new_tokens)
                dev_passed += [sample["outcome"] == "passed" for sample in greedy]
            row["dev_pass_at_1"] = sum(gather_object(dev_passed)) / len(dev_tasks)
        accelerator.log(row, step=update)
        if not is_main:
            continue
        texts = [{name: x for name, x in sample.items() if "_ids" not in name} for sample in samples]
        if update % cfg.log_every == 0:
            shown = "avg_reward avg_base_reward avg_gen_len hit_token_limit flat grad_norm seconds"
            values = "  ".join(f"{name} {row[name]:<6.3g}" for name in shown.split())
            tqdm.write(f"update {update:<4d}  {values}")
        if not epoch_stats:
            tqdm.write("warning: no group has unequal rewards, nothing to learn: raise --samples_per_task")
        elif not math.isfinite(row["loss"] + row["grad_norm"]):
            tqdm.write("warning: the gradient is not finite, the step is skipped: lower --learning_rate")

        # ---- save: logs and adapter, then state.pt in one step; --resume reads only state.pt ----
        with stop_with(f"cannot write to {cfg.output_dir} (make room, then go on with --resume)"):
            for log, lines in zip(logs, ([row], texts)):
                log.writelines(json.dumps(line) + "\n" for line in lines)
                log.flush()
            if row.get("dev_pass_at_1", -1.0) > state["best"]:
                state["best"] = row["dev_pass_at_1"]
                save_adapter(model, tokenizer, f"{cfg.output_dir}/best", run_config | row)
            if update % cfg.save_every == 0 or is_last:
                run_config |= {"update": update, "finished": is_last}
                save_adapter(model, tokenizer, cfg.output_dir, run_config)
                state |= {"update": update, "seconds": row["seconds"]}
                state["log_sizes"] = [log.tell() for log in logs]
                weights = {"lora": trainable, "optimizer": optimizer.state_dict()}
                torch.save(state | weights, f"{state_path}.tmp")
                Path(f"{state_path}.tmp").replace(state_path)  # a kill leaves the old state or the new one
    accelerator.end_training()
    sandbox.close()
