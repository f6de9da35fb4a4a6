"""Train a code model by DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), written out by hand.

    minimise  -log sigmoid(beta * (ratio(chosen) - ratio(rejected))) - nll_coef * log pi(chosen) per token
    ratio(y)  =  log pi(y | prompt) - log pi_sft(y | prompt)      summed over the tokens of y, EOS included

of pairs of programs: `chosen` passed its tests, `rejected` failed them. pi_sft is the adapter that the run
starts from; its log-probs are computed once, before the first step, so there is no second model. A completion
that was cut off at the token limit has no EOS and learns none. --loss_type sigmoid_norm divides each ratio by
its length (arXiv:2411.15124), ipo does and is (difference - 1 / (2 beta))^2 (arXiv:2310.12036, eq. 17).

    python train_dpo_lora.py --sft_model checkpoints/NAME_sft --pairs_path data/pairs/pairs.jsonl

Reads an adapter made by train_sft_lora.py, pairs with TRL's columns (prompt, chosen, rejected) and the tasks
that their prompts are of: the tests of every pair are run again. Writes to --output_dir: the adapter and its
tokenizer, run_config.json, dpo_train_log.jsonl and state.pt (for --resume after Ctrl-C or kill -9).
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
from transformers.optimization import get_linear_schedule_with_warmup

from sandbox import Sandbox, check_logprobs, check_supported, encode_prompt, open_log, parse_config, preflight

from sandbox import compute_dtype, read_pairs, read_tasks, score, stop_with, trained_tokenizer, within  # isort: skip

# ---- hyperparameters ----------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --beta 0.05"""

    # -- files --
    pairs_path: str = "data/pairs/pairs.jsonl"  # made by make_pairs.py, or other pairs in plain text
    train_path: str = "data/humaneval_train.jsonl"  # tasks of the pairs; "" if they have none: nothing is run
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # adapter folder to start from: the reference
    output_dir: str = "checkpoints/deepseek_1_3b_lora_dpo"
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    max_length: int = 768  # tokens of prompt and completion; pairs with a longer one are left out
    time_limit: float = 5.0  # seconds per program
    # -- DPO --
    loss_type: Literal["sigmoid", "sigmoid_norm", "ipo"] = "sigmoid"
    beta: float = 0.1  # the smaller, the further from the reference
    nll_coef: float = 0.0  # weight of the chosen completions' own log-probs (RPO, arXiv:2404.19733)
    # -- optimisation --
    num_epochs: float = 1.0
    batch_size: int = 8  # pairs per step
    micro_batch_size: int = 2  # pairs per forward and backward pass; if memory is short, lower it first
    learning_rate: float = 5e-6
    warmup_ratio: float = (
        0.1  # share of the steps in which the learning rate rises from 0; then it falls to 0
    )
    max_grad_norm: float = 1.0
    seed: int = 42
    # -- long runs and logs --
    resume: bool = False  # continue from output_dir/state.pt
    save_every: int = 10  # steps between two saves of adapter and state
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    log_every: int = 1  # steps per printed line; the log file has every step


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
    last = torch.tensor([-1], device=model.device)  # a slice, as by 1, is slow in bfloat16 on a CPU
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


# ---- pairs and loss -----------------------------------------------------------------------------------


def encode_side(tokenizer, pair: dict, side: str) -> dict:
    """{"prompt_ids", "completion_ids"} of one side of a pair: with exactly one EOS, or none if cut off."""
    ids = tokenizer(pair[side].removesuffix(tokenizer.eos_token), add_special_tokens=False)["input_ids"]
    ids = ids if pair[f"{side}_truncated"] else [*ids, tokenizer.eos_token_id]
    task = pair["task"]
    return {"prompt_ids": encode_prompt(tokenizer, task), "completion_ids": ids}


def unconfirmed(pairs: list[dict], tokenizer, time_limit: float) -> tuple[dict, list[int]]:
    """Run the tests of all pairs; (the sandbox's report, indices of pairs that are not what they say).

    SystemExit if these are more than a tenth: then the tests are others, or the sandbox has other limits.
    """
    tasks = list({pair["task"]["task_id"]: pair["task"] for pair in pairs}.values())
    jobs = [(pair["task"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    with Sandbox(timeout=time_limit, tasks=tasks) as sandbox:
        print(f"sandbox: {sandbox.report}\n{preflight(sandbox, tasks, tokenizer)}")
        bar = tqdm(total=len(jobs), desc="pairs", disable=None)
        results = score(sandbox, [task for task, _ in jobs], [text for _, text in jobs], bar.update)
    outcomes = [result.outcome for result in results]
    if "error" in outcomes:
        raise SystemExit("preflight: the sandbox itself failed on a program; try again")
    verdicts = list(zip(outcomes[::2], outcomes[1::2]))
    bad = [i for i, (chosen, other) in enumerate(verdicts) if chosen != "passed" or other == "passed"]
    some = ", ".join(dict.fromkeys(pairs[i]["task"]["task_id"] for i in bad[:5]))
    line = f"preflight: {len(bad)} of {len(pairs)} pairs have a chosen that fails or a rejected that passes"
    if len(bad) > len(pairs) / 10:
        raise SystemExit(f"{line} ({some}, ...): --train_path has other tests, or make the pairs again")
    print(f"{line}{': left out, ' * bool(bad)}{some}")
    return sandbox.report, bad


def dpo_loss(logprobs, reference, lengths, beta: float, loss_type: str, nll_weight: float):
    """(loss, margin) of each pair, (B,). All (2, B), of chosen and of rejected: log-probs summed over the
    tokens, under pi and under pi_sft, and numbers of tokens. nll_weight counts chosen's own log-prob.
    """
    ratios = logprobs - reference
    if loss_type != "sigmoid":  # means, so that long completions do not decide
        ratios = ratios / lengths
    margin = ratios[0] - ratios[1]
    loss = -torch.nn.functional.logsigmoid(beta * margin)
    if loss_type == "ipo":  # a margin above 1 / (2 beta) is brought back
        loss = (margin - 1 / (2 * beta)) ** 2
    return loss - nll_weight * logprobs[0], margin


if __name__ == "__main__":
    # ---- setup ----------------------------------------------------------------------------------------
    cfg = parse_config(Config, free="nll_coef warmup_ratio seed")
    if not (0 <= cfg.warmup_ratio <= 1 and cfg.nll_coef >= 0):
        raise SystemExit("--warmup_ratio goes from 0 to 1, --nll_coef is at least 0")
    tracker = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(log_with=tracker, project_dir=cfg.output_dir)
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    is_main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if Path(cfg.sft_model).resolve().is_relative_to(Path(cfg.output_dir).resolve()):
        raise SystemExit("--output_dir is --sft_model or holds it: nothing may overwrite that adapter")

    tasks = read_tasks(cfg.train_path, cfg.prompt_format) if cfg.train_path else []
    pairs, left_out = read_pairs(cfg.pairs_path, tasks, cfg.prompt_format)
    model, tokenizer = load_adapter(cfg.sft_model, device, is_trainable=True)
    model.eval()  # no dropout: the first ratios are 0
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=0.0)
    completions: dict[str, dict] = {}  # each once, though it may be in several pairs
    for pair in pairs:
        both = [encode_side(tokenizer, pair, side) for side in ("chosen", "rejected")]
        pair["both"] = [completions.setdefault(str(sample), sample) for sample in both]
        pair["length"] = max(len(sample["completion_ids"]) for sample in both)
        pair["total"] = len(both[0]["prompt_ids"]) + pair["length"]
    num_pairs, pairs = len(pairs), [pair for pair in pairs if pair["total"] <= cfg.max_length]
    if not pairs:
        raise SystemExit(f"{cfg.pairs_path}: all pairs are over --max_length {cfg.max_length}")
    left_out[f"over --max_length {cfg.max_length}"] = num_pairs - len(pairs)
    within(model, tokenizer, max(pair["total"] for pair in pairs))
    by_length = sorted(pairs, key=lambda pair: pair["total"])
    check_logprobs(group_logprobs, model, tokenizer, [*by_length[0]["both"], *by_length[-1]["both"]])

    may_change = "output_dir micro_batch_size resume save_every report_to log_every".split()
    settings = {name: value for name, value in asdict(cfg).items() if name not in may_change}
    for path in filter(None, (cfg.pairs_path, cfg.train_path, f"{cfg.sft_model}/adapter_model.safetensors")):
        settings[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()  # a changed file shows
    state: dict = {"settings": settings, "step": 0, "num_steps": 1, "seconds": 0.0, "log_size": 0}
    state_path = Path(cfg.output_dir, "state.pt")
    if cfg.resume and state_path.exists():
        with stop_with(f"--resume: {state_path} cannot be used; repeat its settings or delete it"):
            state = torch.load(state_path, "cpu", weights_only=True)  # runs no code from the file
            changed = [name for name, value in settings.items() if state["settings"].get(name) != value]
        if changed:
            raise SystemExit(f"--resume: {state_path} was made with another {', '.join(changed)}; delete it")
    if state["step"] >= state["num_steps"]:
        accelerator.print(f"{cfg.output_dir} is finished")
        sys.exit()

    # ---- preflight: by the main process, which alone runs programs and writes; if it stops, so do all ----
    found: list = []
    if is_main:
        try:
            found = [state.get("preflight") or ({}, [])]  # a resumed run keeps the pairs that it began with
            if tasks and "preflight" not in state:
                found = [unconfirmed(pairs, tokenizer, cfg.time_limit)]
            with stop_with(f"cannot write to --output_dir {cfg.output_dir}"):
                log = open_log(f"{cfg.output_dir}/dpo_train_log.jsonl")
        except SystemExit as stop:
            found = [stop]
    found = gather_object(found)
    if isinstance(found[0], SystemExit):
        raise found[0]
    state["preflight"] = found[0]
    report, bad = found[0]
    pairs = [pair for i, pair in enumerate(pairs) if i not in bad]
    left_out["verdict not confirmed"] = len(bad)
    if not tasks:
        accelerator.print("warning: without --train_path no test is run, and a wrong pair is not noticed")
    num_steps = state["num_steps"] = math.ceil(len(pairs) * cfg.num_epochs / cfg.batch_size)
    order = []  # every pair once before one comes again
    for n in range(math.ceil(num_steps * cfg.batch_size / len(pairs))):
        order += random.Random(f"{cfg.seed} {n}").sample(pairs, len(pairs))
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(cfg.warmup_ratio * num_steps), num_steps)
    accelerator.print(f"{len(pairs)} pairs, {num_steps} steps x {cfg.batch_size} pairs on {device}")
    accelerator.print(f"pairs left out: {dict(left_out)}")

    # ---- reference: under the adapter that was just loaded, before any step, and before --resume ----
    samples = list({id(sample): sample for pair in pairs for sample in pair["both"]}.values())
    # those of a prompt side by side, but long ones apart, or the others would be padded to them
    samples.sort(key=lambda s: (len(s["completion_ids"]) // 64, len(s["prompt_ids"]), s["prompt_ids"]))
    size, scored = 2 * cfg.micro_batch_size, []
    firsts = range(rank * size, len(samples), world * size)
    with torch.no_grad():
        for first in tqdm(firsts, desc="reference", disable=None if is_main else True):
            logprobs, _ = group_logprobs(model, tokenizer, samples[first : first + size], 1.0)  # (size, C)
            scored += enumerate(logprobs.sum(-1).tolist(), first)
    for i, logprob in gather_object(scored):
        samples[i]["reference"] = logprob

    if state["step"]:
        with stop_with(f"--resume: {state_path} cannot be used; repeat its settings or delete it"):
            for p, saved in zip(trainable, state.pop("lora")):
                p.data.copy_(saved)
            optimizer.load_state_dict(state.pop("optimizer"))
    scheduler.last_epoch = state["step"]
    run_config = {**asdict(cfg), **settings, "method": "DPO", "sandbox": report}
    run_config |= {"num_pairs": len(pairs), "left_out": dict(left_out)}
    if is_main:
        if state["step"] == 0:  # a new run: what an older one left must not be taken for its own
            state_path.unlink(missing_ok=True)
            Path(cfg.output_dir, "run_config.json").unlink(missing_ok=True)
        log.truncate(min(state["log_size"], log.tell()))  # drop the lines of steps after the state
    accelerator.init_trackers("dpo", asdict(cfg))

    # ---- training -------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    for step in tqdm(range(state["step"] + 1, num_steps + 1), disable=None if is_main else True):
        batch = order[(step - 1) * cfg.batch_size : step * cfg.batch_size]
        # both are of the whole batch, so that the micro-batch size changes nothing
        tokens = [sum(len(pair["both"][i]["completion_ids"]) for pair in batch) for i in (0, 1)]
        nll_weight = cfg.nll_coef * len(batch) / tokens[0]
        batch.sort(key=lambda pair: pair["length"])  # less padding
        mbs = [batch[i : i + cfg.micro_batch_size] for i in range(0, len(batch), cfg.micro_batch_size)]
        optimizer.zero_grad()
        sums = torch.zeros(7, device=device)
        for mb in mbs[rank::world]:
            both = [pair["both"][i] for i in (0, 1) for pair in mb]  # first all chosen, then all rejected
            token_logprobs, mask = group_logprobs(model, tokenizer, both, 1.0)  # (2 mb, C)
            logprobs, lengths = token_logprobs.sum(-1).view(2, -1), mask.sum(-1).view(2, -1)  # (2, mb)
            reference = torch.tensor([sample["reference"] for sample in both], device=device).view(2, -1)
            how = cfg.beta, cfg.loss_type, nll_weight
            losses, margins = dpo_loss(logprobs, reference, lengths, *how)  # (mb,)
            loss = losses.sum() / len(batch)
            loss.backward()  # per micro-batch, so that only one graph is in memory
            accuracy = (margins.sign() + 1).sum() / 2  # a tie counts half
            values = [loss, accuracy, margins.sum(), *logprobs.sum(1), *(logprobs - reference).sum(1)]
            sums += torch.stack(values).detach()
        for p in trainable:  # a sum over processes: each has divided by the numbers of all
            p.grad = accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
        loss, accuracy, margin, *totals = accelerator.reduce(sums, "sum").tolist()
        grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
        row = {
            "step": step,
            "loss": loss,
            "accuracy": accuracy / len(batch),  # of pairs whose margin is above 0; at first, rounding decides
            "margin": cfg.beta * margin / len(batch),
            "logprob_chosen": totals[0] / tokens[0],  # per token, as the next three
            "logprob_rejected": totals[1] / tokens[1],
            "change_chosen": totals[2] / tokens[0],  # since SFT: DPO may lower both
            "change_rejected": totals[3] / tokens[1],
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm,
        }
        if math.isfinite(loss + grad_norm):
            optimizer.step()
        scheduler.step()

        # ---- log ----
        row["seconds"] = time.time() - start
        accelerator.log(row, step=step)
        if not is_main:
            continue
        if step % cfg.log_every == 0:
            shown = "loss accuracy margin change_chosen change_rejected grad_norm seconds"
            values = "  ".join(f"{name} {row[name]:<7.3g}" for name in shown.split())
            tqdm.write(f"step {step:<4d}  {values}")
        if not math.isfinite(loss + grad_norm):
            tqdm.write("warning: the gradient is not finite, the step is skipped: lower --learning_rate")

        # ---- save: log and adapter, then state.pt in one step; --resume reads only state.pt ----
        with stop_with(f"cannot write to {cfg.output_dir} (make room, then go on with --resume)"):
            log.write(json.dumps(row) + "\n")
            log.flush()
            is_last = step == num_steps
            if step % cfg.save_every == 0 or is_last:
                run_config |= {"step": step, "finished": is_last}
                save_adapter(model, tokenizer, cfg.output_dir, run_config)
                state |= {"step": step, "seconds": row["seconds"], "log_size": log.tell()}
                weights = {"lora": trainable, "optimizer": optimizer.state_dict()}
                torch.save(state | weights, f"{state_path}.tmp")
                Path(f"{state_path}.tmp").replace(state_path)  # a kill leaves the old state or the new one
    accelerator.end_training()
