"""Train a code model by PPO-Clip (Schulman et al. 2017, arXiv:1707.06347, eq. 7), written out by hand.

    maximise  E[ min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A) ]
    ratio  =  pi_new(completion | prompt) / pi_old(completion | prompt)
    A      =  (reward - mean) / (std + eps)                     over the completions of one update
    reward =  1 if the program passes all tests, else 0, minus length_penalty_alpha * tokens / 100

One update: sample a completion for each of `batch_size` tasks with the current adapter, run the programs in
the sandbox, then take `ppo_epochs` optimizer steps on the whole batch. Simplifications: no value network (the
batch mean is the baseline), no KL term, no entropy bonus.

    python train_ppo_lora.py --sft_model checkpoints/deepseek_1_3b_lora_sft_v2 \
        --output_dir checkpoints/deepseek_1_3b_lora_ppo_alpha0.01_4

Reads an adapter made by train_sft_lora.py and the task file --train_path (fields of HumanEval). Writes to
--output_dir: the adapter with its tokenizer, run_config.json, ppo_train_log.jsonl (one line per update) and
samples.jsonl (one line per completion).
"""

import json
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser, set_seed

from sandbox import Sandbox, preflight, read_tasks, score

# ---------------------------------------------------------------------------------------------------
# Hyperparameters
# ---------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --length_penalty_alpha 0.03"""

    # -- files --
    train_path: str = "data/humaneval_train.jsonl"
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # adapter folder to start from
    output_dir: str = "checkpoints/deepseek_1_3b_lora_ppo_alpha0.01_4"
    # -- sampling --
    max_length: int = 512  # tokens; tasks with a longer prompt are left out
    max_new_tokens: int = 256
    temperature: float = 1.0  # also divides the logits when log-probs are scored
    top_p: float = 1.0  # below 1 the sampled distribution is no longer the scored one
    # -- reward --
    length_penalty_alpha: float = 0.01  # charge per 100 generated tokens
    time_limit: float = 5.0  # seconds per program
    # -- PPO --
    batch_size: int = 4  # completions per update, one for each task drawn
    ppo_epochs: int = 4  # optimizer steps per update
    clip_range: float = 0.2
    ratio_level: str = "sequence"  # sequence: one ratio per completion; token: one per token
    learning_rate: float = 5e-6
    max_grad_norm: float = 1.0
    num_updates: int = 100
    # -- memory: these do not change the mathematics --
    micro_batch_size: int = 2  # completions per forward and backward pass
    gradient_checkpointing: bool = False
    # -- other --
    seed: int = 42
    log_every: int = 1  # updates per printed line; the log file has every update


# Same in every script (tests/test_copies.py keeps the copies equal).
def parse_config(config_class, positive):
    """Config from the command line; pasted into a notebook, the kernel's own flags are not parsed.

    Raises SystemExit with one line at an unknown flag and where a field named in `positive` is not above 0.
    """
    flags = [] if "kernel_launcher" in sys.argv[0] else None
    parser = HfArgumentParser(config_class)
    config, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    if unknown:
        raise SystemExit(f"unknown flags: {' '.join(unknown)}; --help lists the known ones")
    for name in positive:
        if getattr(config, name) <= 0:
            raise SystemExit(f"--{name} must be above 0, not {getattr(config, name)}")
    return config


# ---------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------


# Same in every script (tests/test_copies.py keeps the copies equal).
def encode_prompt(tokenizer, task):
    """Token ids of the prompt, BOS included, without its final newline.

    Byte-level BPE merges that newline with the indentation after it; a prompt that ends in a lone newline
    token is one the model never saw. So the newline is the beginning of the completion.
    """
    return tokenizer(task["prompt"].rstrip())["input_ids"]


# ---------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------


# Same in every script (tests/test_copies.py keeps the copies equal).
def load_base(model_name, device):
    """The frozen base model in 4-bit NF4 with double quantisation, and its tokenizer.

    Computes in bfloat16 where the GPU has it, else in float16; on a CPU in float32, the fast format there.
    Raises SystemExit with one line when the model cannot be had.
    """
    dtype = torch.float32
    if device.startswith("cuda"):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForCausalLM.from_pretrained(
            model_name,
            quantization_config=quantization,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(
            f"cannot load the base model {model_name!r} ({reason}). It must be a folder with safetensors or "
            "a name on the Hugging Face hub, which needs a network; without one: PROFILE=tiny sh train_PPO.sh"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks come from lengths, so any token will do
    text = "def f(x):\n    return x + 1"
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit(f"the tokenizer of {model_name!r} does not keep the text; try a newer transformers")
    for module in model.modules():  # else generate() repacks the weights for a CPU kernel without gradients
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model, tokenizer


# Same in the two RL scripts and eval_humaneval.py (tests/test_copies.py keeps the copies equal).
def load_adapter(adapter_dir, device, is_trainable):
    """(PeftModel, tokenizer) of an adapter folder on its 4-bit base; raises SystemExit with one line."""
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
    ):  # peft would also take a pickle: not here
        if not Path(adapter_dir, name).is_file():
            raise SystemExit(f"{adapter_dir} is no adapter folder (no {name}); train_sft_lora.py makes one")
    try:
        base_name = PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
        base, tokenizer = load_base(base_name, device)
        model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=is_trainable, torch_device=device)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"cannot load {adapter_dir}: {reason} (other shapes: made for another base model)")
    return model, tokenizer


# Same in the two RL scripts (tests/test_copies.py keeps the copies equal).
def set_dropout_to_zero(model):
    """A reloaded adapter brings its dropout back, and the ratio would not be 1 before the first update."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


# Same in every train_*.py (tests/test_copies.py keeps the copies equal).
def save_adapter(model, tokenizer, output_dir, run_config):
    """Write adapter, tokenizer and run_config.json to a temporary folder, then move them to output_dir."""
    temporary = Path(output_dir, "unfinished_write")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, save_embedding_layers=False)
    tokenizer.save_pretrained(temporary)
    Path(temporary, "run_config.json").write_text(json.dumps(run_config, indent=2) + "\n")
    files = sorted(temporary.iterdir(), key=lambda path: path.name == "run_config.json")  # last
    for path in files:
        os.replace(path, Path(output_dir, path.name))
    temporary.rmdir()


# Same in every train_*.py (tests/test_copies.py keeps the copies equal).
def prepare_output_dir(output_dir):
    """Create the folder; remove the run_config.json of an earlier run, which would call this one finished."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        Path(output_dir, "run_config.json").write_text("")
        Path(output_dir, "run_config.json").unlink()
    except OSError as error:
        raise SystemExit(
            f"cannot write to the output folder {output_dir} ({error.strerror}); choose another one"
        )


# ---------------------------------------------------------------------------------------------------
# Rollout and log-probabilities
# ---------------------------------------------------------------------------------------------------


# Same in the two RL scripts and eval_humaneval.py (tests/test_copies.py keeps the copies equal).
@torch.no_grad()
def generate(model, tokenizer, prompt_ids, max_new_tokens, temperature, top_p):
    """One completion per prompt, sampled in one left-padded batch (greedy at temperature 0).

    prompt_ids: list of B lists. Returns a list of B lists of the sampled ids; a completion ends with its
    first EOS, included. One that reached max_new_tokens has no EOS, and none is added.
    """
    model.eval()  # in train mode with gradient checkpointing, generate() would decode without a cache
    width = max(len(ids) for ids in prompt_ids)
    rows = [[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    # top_k is 50 unless told otherwise, and then the sampled distribution is not the scored one
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    sequences = model.generate(
        input_ids=torch.tensor(rows, device=model.device),  # (B, width)
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    completion_ids = []
    for ids in sequences[:, width:].tolist():  # sliced by position: pad = eos, so padding is no guide
        if tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
        completion_ids.append(ids)
    return completion_ids


# Same in the two RL scripts (tests/test_copies.py keeps the copies equal).
def completion_logprobs(model, prompt_ids, completion_ids, temperature, pad_token_id):
    """Log-probability of every completion token under the model.

    Rows are [padding, prompt, completion, padding], so that all completions begin in the same column:

        prompt_ids = [[5, 6], [7]]          ids  = [[5, 6, 8, 9]      mask = [[1, 1, 1, 1]
        completion_ids = [[8, 9], [3]]              [0, 7, 3, 0]]             [0, 1, 1, 0]]

    Returns logprobs and completion_mask, both (B, C) with C = length of the longest completion; logprobs is 0
    where completion_mask is 0. The logits are divided by the sampling temperature.
    """
    P = max(len(ids) for ids in prompt_ids)
    C = max(len(ids) for ids in completion_ids)
    rows = []
    mask = []
    for prompt, completion in zip(prompt_ids, completion_ids):
        left, right = P - len(prompt), C - len(completion)
        rows.append([pad_token_id] * left + prompt + completion + [pad_token_id] * right)
        mask.append(
            [0] * left + [1] * (len(prompt) + len(completion)) + [0] * right
        )  # from lengths: pad = eos
    ids = torch.tensor(rows, device=model.device)  # (B, P + C)
    mask = torch.tensor(mask, device=model.device)  # (B, P + C)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # the first real token of each row is at position 0
    # logits[t] predicts ids[t + 1]: the C + 1 last ones, less the very last, predict the completion
    output = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=C + 1, use_cache=False)
    logits = output.logits[:, :-1].float() / temperature  # (B, C, V)
    chosen = logits.gather(-1, ids[:, P:, None]).squeeze(-1)  # (B, C)
    completion_mask = mask[:, P:]
    return (chosen - logits.logsumexp(-1)) * completion_mask, completion_mask


# ---------------------------------------------------------------------------------------------------
# Advantages and loss
# ---------------------------------------------------------------------------------------------------


def normalized_advantages(rewards, eps=1e-8):
    """(rewards - mean) / (std + eps), (B,); zeros where all rewards are equal: nothing to learn from."""
    if rewards.max() - rewards.min() < 1e-6:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + eps)


def ppo_loss(logprobs, old_logprobs, completion_mask, advantages, clip_range, ratio_level):
    """-min(ratio * A, clip(ratio) * A), summed; eq. 7 of the PPO paper with the sign of a loss.

    logprobs, old_logprobs, completion_mask: (B, C); advantages: (B,). Returns the loss summed over
    completions ("sequence") or over completion tokens ("token"), the log-ratios (B,) or (B, C), and which of
    them the clip cut off. The caller divides by the number of completions or tokens in the whole batch.
    """
    log_ratio = (logprobs - old_logprobs) * completion_mask
    if ratio_level == "sequence":
        log_ratio = log_ratio.sum(-1)  # (B,)
        weight = torch.ones_like(log_ratio)
    else:
        advantages = advantages[:, None]  # (B, 1)
        weight = completion_mask
    ratio = log_ratio.clamp(-20, 20).exp()  # e^20 is far outside the clip range; e^100 would overflow
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    loss = -(torch.min(unclipped, clipped) * weight).sum()
    is_clipped = (clipped < unclipped) & (weight > 0)
    return loss, log_ratio.detach(), is_clipped


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------
    # Setup
    # -----------------------------------------------------------------------------------------------
    cfg = parse_config(
        Config,
        (
            "max_new_tokens",
            "temperature",
            "top_p",
            "ppo_epochs",
            "num_updates",
            "micro_batch_size",
            "log_every",
        ),
    )
    if cfg.ratio_level not in ("sequence", "token"):
        raise SystemExit(f"--ratio_level is sequence or token, not {cfg.ratio_level!r}")
    if cfg.batch_size < 2:
        raise SystemExit("PPO learns from differences: --batch_size must be at least 2")
    set_seed(cfg.seed)
    rng = random.Random(cfg.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = read_tasks(cfg.train_path)
    model, tokenizer = load_adapter(cfg.sft_model, device, is_trainable=True)
    set_dropout_to_zero(model)
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pad = tokenizer.pad_token_id
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=cfg.learning_rate, weight_decay=0.0)

    all_tasks = len(tasks)
    tasks = [task for task in tasks if len(encode_prompt(tokenizer, task)) <= cfg.max_length]
    if not tasks:
        raise SystemExit(f"no prompt of {cfg.train_path} fits into --max_length {cfg.max_length} tokens")
    print(f"{len(tasks)} tasks ({all_tasks - len(tasks)} with too long a prompt left out), {device}")
    num_samples = cfg.num_updates * cfg.batch_size
    print(f"{cfg.num_updates} updates x {cfg.batch_size} completions = {num_samples} samples")
    print(f"{cfg.num_updates} updates x {cfg.ppo_epochs} epochs = {cfg.num_updates * cfg.ppo_epochs} steps")

    # -----------------------------------------------------------------------------------------------
    # Training
    # -----------------------------------------------------------------------------------------------
    with Sandbox(timeout=cfg.time_limit) as sandbox:
        print(f"sandbox: {sandbox.report}")
        print(preflight(sandbox, tasks))
        prepare_output_dir(cfg.output_dir)
        log_file = open(Path(cfg.output_dir, "ppo_train_log.jsonl"), "w")
        samples_file = open(Path(cfg.output_dir, "samples.jsonl"), "w")
        queue = []  # shuffled tasks, refilled when empty: all are drawn once before one is drawn again
        update = 0
        start = time.time()
        progress = tqdm(total=cfg.num_updates, desc="PPO", disable=not sys.stderr.isatty())
        try:
            while update < cfg.num_updates:
                # ---- rollout ----
                while len(queue) < cfg.batch_size:
                    queue += rng.sample(tasks, len(tasks))
                batch = [queue.pop(0) for _ in range(cfg.batch_size)]
                prompt_ids = [encode_prompt(tokenizer, task) for task in batch]
                sampling = cfg.max_new_tokens, cfg.temperature, cfg.top_p
                completion_ids = generate(model, tokenizer, prompt_ids, *sampling)
                completions = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
                gen_len = torch.tensor([float(len(ids)) for ids in completion_ids])  # (B,)

                # ---- reward ----
                results = score(sandbox, batch, completions)
                base_rewards = torch.tensor([float(result.outcome == "passed") for result in results])  # (B,)
                rewards = base_rewards - cfg.length_penalty_alpha * gen_len / 100  # (B,)
                advantages = normalized_advantages(rewards)  # (B,)

                # ---- old log-probs: the same function, micro-batches and precision as the new ones ----
                model.train()  # every dropout is 0
                lengths = [len(prompt_ids[i]) + len(completion_ids[i]) for i in range(cfg.batch_size)]
                order = sorted(range(cfg.batch_size), key=lengths.__getitem__)
                micro_batches = []  # of completions of similar length: little padding
                for first in range(0, cfg.batch_size, cfg.micro_batch_size):
                    mb = order[first : first + cfg.micro_batch_size]
                    mb_ids = [prompt_ids[i] for i in mb], [completion_ids[i] for i in mb]
                    # not under no_grad, which selects another 4-bit kernel: the first ratio must be exactly 1
                    old_logprobs, mask = completion_logprobs(model, *mb_ids, cfg.temperature, pad)
                    micro_batches.append((advantages[mb].to(device), mb_ids, mask, old_logprobs.detach()))
                    del old_logprobs  # and with it the graph

                # ---- update ----
                total_tokens = sum(len(ids) for ids in completion_ids)
                count = cfg.batch_size if cfg.ratio_level == "sequence" else total_tokens
                stats = dict.fromkeys(("loss", "clip_frac", "approx_kl", "max_log_ratio", "grad_norm"), 0.0)
                for epoch in range(cfg.ppo_epochs if advantages.any() else 0):
                    for mb_advantages, mb_ids, mask, mb_old in micro_batches:
                        logprobs, _ = completion_logprobs(model, *mb_ids, cfg.temperature, pad)
                        loss, log_ratio, is_clipped = ppo_loss(
                            logprobs, mb_old, mask, mb_advantages, cfg.clip_range, cfg.ratio_level
                        )
                        (loss / count).backward()  # per micro-batch, so that only one graph is in memory
                        max_log_ratio = log_ratio.abs().max().item()
                        if epoch == 0 and max_log_ratio > 1e-3:
                            print(f"warning: before the update, log-ratios are {max_log_ratio:.1e} and not 0")
                        # k3 estimate of KL(old || new) in the last epoch: joschu.net/blog/kl-approx.html
                        delta = (logprobs.detach() - mb_old).clamp(-20, 20)
                        kl = ((delta.exp() - 1 - delta) * mask).sum().item()
                        stats["approx_kl"] += kl / total_tokens if epoch == cfg.ppo_epochs - 1 else 0.0
                        stats["loss"] += loss.item() / count / cfg.ppo_epochs
                        stats["clip_frac"] += is_clipped.sum().item() / count / cfg.ppo_epochs
                        stats["max_log_ratio"] = max(stats["max_log_ratio"], max_log_ratio)
                    grad_norm = torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm).item()
                    stats["grad_norm"] += grad_norm / cfg.ppo_epochs
                    optimizer.step()
                    optimizer.zero_grad()
                update += 1

                # ---- log ----
                truncated = [ids[-1] != tokenizer.eos_token_id for ids in completion_ids]
                row = {
                    "update": update,
                    "batch_size": cfg.batch_size,
                    "avg_reward": rewards.mean().item(),
                    "avg_base_reward": base_rewards.mean().item(),
                    "avg_gen_len": gen_len.mean().item(),
                    "truncated": sum(truncated) / len(truncated),
                    "entropy_estimate": -sum(old.sum().item() for *_, old in micro_batches) / total_tokens,
                    "sandbox_errors": sum(result.outcome == "error" for result in results),
                    "sandbox": sandbox.report,
                    **stats,
                    "seconds": time.time() - start,
                }
                log_file.write(json.dumps(row) + "\n")
                log_file.flush()
                for i, task in enumerate(batch):
                    sample = {
                        "update": update,
                        "task_id": task["task_id"],
                        "completion": completions[i],
                        "reward": rewards[i].item(),
                        "outcome": results[i].outcome,
                        "gen_len": len(completion_ids[i]),
                    }
                    samples_file.write(json.dumps(sample) + "\n")
                samples_file.flush()
                progress.update()
                if update % cfg.log_every == 0:
                    note = "" if advantages.any() else "  no learning signal: all rewards equal"
                    if row["sandbox_errors"]:
                        note += f"  the sandbox itself failed on {row['sandbox_errors']} programs"
                    tqdm.write(
                        f"update {update:4d}  reward {row['avg_reward']:6.3f}  "
                        f"passed {row['avg_base_reward']:.3f}  tokens {row['avg_gen_len']:5.1f}  "
                        f"clip_frac {row['clip_frac']:.3f}  kl {row['approx_kl']:.1e}  "
                        f"{row['seconds']:5.0f} s{note}"
                    )
        except KeyboardInterrupt:
            print(f"interrupted after {update} updates; saving the adapter")

    finished = update == cfg.num_updates
    run_config = {**asdict(cfg), "method": "PPO", "updates_done": update, "finished": finished}
    run_config["sandbox"] = sandbox.report
    save_adapter(model, tokenizer, cfg.output_dir, run_config)
    print(f"saved {cfg.output_dir}")
    if not finished:
        sys.exit(130)  # 128 + SIGINT, so that a shell script stops too
