"""Train a code model by PPO-Clip (Schulman et al. 2017, arXiv:1707.06347, eq. 7), written out by hand.

    maximise  E[ min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A) ]
    ratio  =  pi_new(completion | prompt) / pi_old(completion | prompt)
    A      =  (reward - mean) / (std + eps)      over the completions of one update
    reward =  (1 if the program passes all tests, else 0) - length_penalty_alpha * tokens / 100

One update: sample a completion for each of `batch_size` tasks, run the programs in the sandbox, then take
`ppo_epochs` optimizer steps on the whole batch. Simplifications: no value network (the mean reward is the
baseline), no entropy bonus, no KL term, one ratio per completion (--ratio_level token: one per token).

    python train_ppo_lora.py --sft_model checkpoints/NAME_sft --output_dir checkpoints/NAME_ppo

Reads an adapter made by train_sft_lora.py and a task file with the fields of HumanEval. Writes to
--output_dir: the adapter and its tokenizer, run_config.json, ppo_train_log.jsonl, samples.jsonl, state.pt
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
    """Edit here, or override on the command line: --length_penalty_alpha 0.03"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    dev_path: str = ""  # tasks to evaluate on while training; left out of the training tasks
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # adapter folder to start from
    output_dir: str = "checkpoints/deepseek_1_3b_lora_ppo_alpha0.01_4"
    # -- sampling --
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    max_length: int = 512  # tokens of a prompt; tasks with a longer one are left out
    max_new_tokens: int = 256
    temperature: float = 1.0  # also divides the logits when log-probs are scored
    top_p: float = 1.0  # below 1 the sampled distribution is no longer the scored one
    seed: int = 42
    # -- reward --
    reward: Literal["binary", "pass_rate", "structured"] = "binary"  # see shaped in sandbox.py
    length_penalty_alpha: float = 0.01  # charge per 100 generated tokens
    length_penalty_on: Literal["all", "passed"] = "all"  # passed: wrong programs gain nothing by being short
    time_limit: float = 5.0  # seconds per program
    # -- PPO --
    batch_size: int = 4  # tasks per update, one completion each
    ppo_epochs: int = 4  # optimizer steps per update
    clip_range: float = 0.2
    ratio_level: Literal["sequence", "token"] = "sequence"  # one ratio per completion, or one per token
    target_kl: float = 0.0  # above 0: no more steps in an update once approx_kl (per token) exceeds it
    learning_rate: float = 5e-6
    max_grad_norm: float = 1.0
    num_updates: int = 100
    micro_batch_size: int = 2  # completions per forward and backward pass; if memory is short, lower it first
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


# ---- rollout and log-probabilities: copies, kept equal by tests/test_copies.py --------------------------


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


def completion_logprobs(model, tokenizer, samples, temperature):
    """Log-probability of every completion token, under the logits divided by the sampling temperature.

        ids  = [5, 6, 8, 9, eos]     mask = [1, 1, 1]    for ids[2:], where the first completion begins
               [4, 7, 5, eos, pad]          [0, 1, 0]    from lengths: pad may be the same token as eos

    Returns logprobs and mask, both (B, T - shortest prompt); logprobs is 0 where mask is 0.
    """
    rows = [sample["prompt_ids"] + sample["completion_ids"] for sample in samples]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt", verbose=False)
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)  # (B, T)
    for row, sample in zip(mask, samples):
        row[: len(sample["prompt_ids"])] = 0
    first = min(len(sample["prompt_ids"]) for sample in samples)  # earlier positions need no logits
    # The padding is on the right, where no real token sees it: the model needs neither mask nor positions.
    logits = model(ids, use_cache=False, logits_to_keep=torch.arange(first - 1, ids.shape[1] - 1)).logits
    logits = logits.float() / temperature  # (B, T - first, V); logits[:, t] predicts ids[:, first + t]
    logprobs = logits.gather(-1, ids[:, first:, None]).squeeze(-1) - logits.logsumexp(-1)
    return logprobs * mask[:, first:], mask[:, first:]


# ---- advantages and loss ------------------------------------------------------------------------------


def normalized_advantages(rewards: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """(rewards - mean) / (std + eps), (B,); zeros where all are equal, as noise / eps would be large."""
    if rewards.max() - rewards.min() < 1e-6:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + eps)


def ppo_loss(logprobs, old_logprobs, completion_mask, advantages, clip_range, ratio_level):
    """-min(ratio * A, clip(ratio) * A), summed; eq. 7 of the PPO paper with the sign of a loss.

    logprobs, old_logprobs, completion_mask: (B, C); advantages: (B,). Returns the loss summed over
    completions ("sequence") or over completion tokens ("token"), the log-ratios (B,) or (B, C), and where the
    clipped term is the smaller one. The caller divides by the completions or tokens of the whole batch.
    """
    log_ratio = (logprobs - old_logprobs) * completion_mask
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
    cfg = parse_config(Config, free="length_penalty_alpha target_kl seed")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if cfg.batch_size < 2 or cfg.batch_size % world:
        raise SystemExit(f"--batch_size must be at least 2, to compare, and a multiple of {world} processes")
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
    check_model(generate, model, tokenizer, prompts, cfg.max_new_tokens, completion_logprobs)
    order = []  # every task once before one comes again
    for n in range(math.ceil(cfg.num_updates * cfg.batch_size / len(tasks))):
        order += random.Random(f"{cfg.seed} {n}").sample(tasks, len(tasks))

    may_change = "output_dir num_updates micro_batch_size resume save_every report_to log_every".split()
    settings = {name: value for name, value in asdict(cfg).items() if name not in may_change}
    for path in filter(None, (cfg.train_path, cfg.dev_path, f"{cfg.sft_model}/adapter_model.safetensors")):
        settings[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()  # a changed file shows
    state: dict = {"settings": settings, "update": 0, "best": -1.0, "seconds": 0.0, "log_sizes": [0, 0]}
    state_path = Path(cfg.output_dir, "state.pt")
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
    run_config = {**asdict(cfg), **settings, "method": "PPO", "sandbox": sandbox.report}
    accelerator.print(f"sandbox: {sandbox.report}\n{preflight(sandbox, tasks + dev_tasks, tokenizer)}")
    if is_main:
        with stop_with(f"cannot write to --output_dir {cfg.output_dir}"):
            logs = [open_log(f"{cfg.output_dir}/{name}.jsonl") for name in ("ppo_train_log", "samples")]
        if state["update"] == 0:  # a new run: what an older one left must not be taken for its own
            for name in "state.pt", "run_config.json", "best/adapter_model.safetensors":
                Path(cfg.output_dir, name).unlink(missing_ok=True)
        for log, size in zip(logs, state["log_sizes"]):
            log.truncate(min(size, log.tell()))  # drop the lines of updates after the state
    accelerator.init_trackers("ppo", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    mine = slice(rank * cfg.batch_size // world, (rank + 1) * cfg.batch_size // world)  # this rank's share
    for update in tqdm(range(state["update"] + 1, cfg.num_updates + 1), disable=None if is_main else True):
        # ---- rollout: random numbers belong to a completion, whichever process samples it ----
        batch = order[(update - 1) * cfg.batch_size : update * cfg.batch_size]
        noise = torch.Generator().manual_seed((1_000_003 * cfg.seed + update) % 2**64)
        uniform = torch.rand(cfg.batch_size, cfg.max_new_tokens, generator=noise, dtype=torch.float64)
        sampling = cfg.max_new_tokens, uniform[mine], cfg.temperature, cfg.top_p
        samples = gather_object(rollout(model, tokenizer, sandbox, batch[mine], *sampling))

        # ---- reward and advantages, over the completions of all processes ----
        passed = torch.tensor([float(sample["outcome"] == "passed") for sample in samples])  # (B,)
        gen_len = torch.tensor([float(sample["gen_len"]) for sample in samples])  # (B,)
        charged = passed if cfg.length_penalty_on == "passed" else 1.0
        earned = torch.tensor([shaped(s["outcome"], s["fraction"], cfg.reward) for s in samples])  # (B,)
        rewards = earned - cfg.length_penalty_alpha * gen_len / 100 * charged  # (B,)
        advantages = normalized_advantages(rewards)  # (B,)
        for sample, reward, advantage in zip(samples, rewards.tolist(), advantages.tolist()):
            sample |= {"update": update, "reward": reward, "advantage": advantage}

        # ---- update: still in eval mode, set by generate; with dropout no ratio would be 1 ----
        my_samples = samples[mine]
        my_samples.sort(key=lambda s: (len(s["prompt_ids"]) + s["gen_len"], s["prompt_ids"]))  # less padding
        old_logprobs = {}  # of each micro-batch under pi_old, (mb, C); from the first epoch
        num_tokens = gen_len.sum().item()
        count = cfg.batch_size if cfg.ratio_level == "sequence" else num_tokens
        epoch_stats = []
        for epoch in range(cfg.ppo_epochs if advantages.any() else 0):
            optimizer.zero_grad()
            sums = torch.zeros(4, device=device)  # loss, clipped ratios, KL, -log-probs
            max_log_ratio = torch.zeros((), device=device)
            for first in range(0, len(my_samples), cfg.micro_batch_size):
                mb = my_samples[first : first + cfg.micro_batch_size]
                logprobs, mask = completion_logprobs(model, tokenizer, mb, cfg.temperature)  # (mb, C)
                old = old_logprobs.setdefault(first, logprobs.detach())  # in epoch 0 the ratio is 1
                A = torch.tensor([sample["advantage"] for sample in mb], device=device)  # (mb,)
                loss, log_ratio, clipped = ppo_loss(logprobs, old, mask, A, cfg.clip_range, cfg.ratio_level)
                (loss / count).backward()  # per micro-batch, so that only one graph is in memory
                delta = (logprobs.detach() - old).clamp(-20, 20)
                kl = ((delta.exp() - 1 - delta) * mask).sum()  # k3 of joschu.net/blog/kl-approx.html
                sums += torch.stack([loss.detach(), clipped.sum(), kl, -old.sum()])
                max_log_ratio = max_log_ratio.maximum(log_ratio.abs().max())
            for p in trainable:  # a sum over processes: each has divided by the count of all
                p.grad = accelerator.reduce(p.grad, "sum")
            loss, clipped, kl, nll = accelerator.reduce(sums, "sum").tolist()
            grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
            stats = {"loss": loss / count, "clip_frac": clipped / count, "grad_norm": grad_norm}
            stats |= {"approx_kl": kl / num_tokens, "entropy_estimate": nll / num_tokens}
            stats["max_log_ratio"] = accelerator.reduce(max_log_ratio, "max").item()
            epoch_stats.append(stats)
            if not math.isfinite(stats["loss"] + grad_norm) or 0 < cfg.target_kl < stats["approx_kl"]:
                break  # without this step
            optimizer.step()

        # ---- log ----
        by_length = normalized_advantages(earned).sign() != advantages.sign()
        row = {
            "update": update,
            "batch_size": cfg.batch_size,
            "avg_reward": rewards.mean().item(),
            "avg_base_reward": passed.mean().item(),  # pass rate
            "avg_pass_rate": sum(sample["fraction"] for sample in samples) / cfg.batch_size,  # of tests
            "avg_gen_len": gen_len.mean().item(),
            "hit_token_limit": sum(sample["hit_token_limit"] for sample in samples) / cfg.batch_size,
            "sign_by_length": by_length.float().mean().item(),  # share of advantages that length alone set
            "sandbox_errors": sum(sample["outcome"] == "error" for sample in samples),
            "epochs": len(epoch_stats),  # the last one takes no step if it ends at target_kl
            "seconds": time.time() - start,
        }
        for name in "loss", "clip_frac", "grad_norm":  # means over the epochs
            row[name] = sum(stats[name] for stats in epoch_stats) / max(len(epoch_stats), 1)
        for name in "approx_kl", "max_log_ratio", "entropy_estimate":  # maxima
            row[name] = max((stats[name] for stats in epoch_stats), default=0.0)
        is_last = update == cfg.num_updates
        if dev_tasks and (update % cfg.eval_every == 0 or is_last):
            dev_passed = []
            for first in range(rank * cfg.batch_size, len(dev_tasks), world * cfg.batch_size):
                part = dev_tasks[first : first + cfg.batch_size]
                greedy = rollout(model, tokenizer, sandbox, part, cfg.max_new_tokens)
                dev_passed += [sample["outcome"] == "passed" for sample in greedy]
            row["dev_pass_at_1"] = sum(gather_object(dev_passed)) / len(dev_tasks)
        accelerator.log(row, step=update)
        if not is_main:
            continue
        texts = [{name: x for name, x in sample.items() if "_ids" not in name} for sample in samples]
        if update % cfg.log_every == 0:
            shown = "avg_reward avg_base_reward avg_gen_len hit_token_limit clip_frac approx_kl seconds"
            values = "  ".join(f"{name} {row[name]:<6.3g}" for name in shown.split())
            tqdm.write(f"update {update:<4d}  {values}")
        if not epoch_stats:
            tqdm.write("warning: all rewards equal, nothing to learn: raise --temperature or --batch_size")
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
