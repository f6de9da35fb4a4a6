"""Write tests/grpo_cases.json: what TRL's GRPOTrainer makes of every combination of GRPO's options.

    pip install --no-deps -r benchmarks/requirements-rl.txt
    python benchmarks/grpo_cases.py             # about 2 minutes on one core

Reads   data/tiny_coder, from which TRL builds a trainer; nothing is sampled or trained
Writes  --output_path: rewards and log-probs of 12 completions and, for each of 216 combinations, TRL's loss
        and its gradient with respect to the new log-probs

tests/test_grpo.py compares ours with these numbers, without TRL. TRL's own code runs from the rewards to the
loss (_generate_and_score_completions, _compute_loss), on options that went through GRPOConfig. Given are only
the completions, the rewards and the results of the forward passes: old log-probs, those of the reference, and
new ones, as in a second epoch. Ours and TRL's names:

    scale           scale_rewards                  clip_low, clip_high   epsilon, epsilon_high
    loss_type       loss_type                      kl_coef               beta
    ratio_level     importance_sampling_level      mask_truncated        mask_truncated_completions
                    (sequence_mean: sequence)

Both mean the same where one optimizer step takes a whole generation, in micro-batches of equal size, as here.
They differ elsewhere, which the cases leave out:
- TRL's default use_bias_correction_kl=True multiplies k3 by the ratio (DeepSeek-V3.2). Here it is off: ours
  is DeepSeekMath's k3 alone. At ratio 1 the values are equal, the gradients are not: TRL's is that of
  KL(pi || ref), ours that of KL(ref || pi).
- TRL bounds neither the log-ratio nor the exponent of k3; ours ends both at +-20, as e^100 would overflow.
- With several steps per generation (steps_per_generation > gradient_accumulation_steps), TRL's dapo divides
  by the tokens of the generation, its grpo and dr_grpo by the completions of a step; ours has no such steps.
- TRL's grpo is a mean over micro-batches: completions in a smaller last one would count more.
- Where equal rewards are rounded (0.1, 0.1, 0.1), TRL's advantages are noise divided by 1e-4; ours are 0.
- TRL hides masked truncated completions from the model, too, which changes nothing: their weight is 0.
"""

import argparse
import json
import random
import tempfile
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUP_SIZE, MAX_NEW_TOKENS = 4, 6
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.25, 0.5, 0.75, 0.0, 1.0, 1.0, 1.0, 1.0]  # the last group has equal ones
LENGTHS = [3, 1, 6, 2, 4, 6, 2, 5, 1, 6, 3, 2]
TRUNCATED = [length == MAX_NEW_TOKENS for length in LENGTHS]
CENTRES = [0.25, -0.23, 0.3, 0.0003, 0.24, -0.3, -0.0004, 0.22, 0.1, 0.3, -0.5, 0.0]  # mean log-ratios, about
OPTIONS: dict = {
    "loss_type": ["dapo", "grpo", "dr_grpo"],
    "scale": ["group", "batch", "none"],
    "ratio_level": ["token", "sequence_mean"],
    "clip": [[0.2, 0.2], [0.2, 0.28], [3e-4, 4e-4]],  # PPO, DAPO, GSPO
    "kl_coef": [0.0, 0.05],
    "mask_truncated": [False, True],
}


def draw_logprobs():
    """{"old", "new", "ref": a list of log-probs per completion}; ratios lie on both sides of every bound."""
    rng = random.Random(0)
    logprobs = {"old": [], "new": [], "ref": []}
    for length, centre in zip(LENGTHS, CENTRES):
        spread = abs(centre) / 10 if length < 4 else 0.3
        noise = [rng.uniform(-spread, spread) for _ in range(length)]
        mean = sum(noise) / length
        old = [round(rng.uniform(-3, -0.5), 2) for _ in range(length)]
        logprobs["old"].append(old)
        logprobs["new"].append([round(x + centre + n - mean, 5) for x, n in zip(old, noise)])
        logprobs["ref"].append([round(x + rng.uniform(-1, 1), 2) for x in old])
    return logprobs


def trl_case(logprobs, options):
    """(loss, gradient with respect to the new log-probs, one number per token) of TRL's trainer."""
    import torch
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    padded = {name: pad_sequence(list(map(torch.tensor, rows)), True) for name, rows in logprobs.items()}
    new = padded["new"].requires_grad_()  # (B, C)
    passes = [
        padded["old"],
        *([padded["ref"]] if options["kl_coef"] else []),
        new,
    ]  # in the order of TRL's calls

    class Trainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return passes.pop(0), torch.zeros(new.shape), None

    def completions(prompts, trainer):
        ids = [[5] * (n - 1) + [5 if cut else tokenizer.eos_token_id] for n, cut in zip(LENGTHS, TRUNCATED)]
        return {"prompt_ids": [[4]] * len(prompts), "completion_ids": ids, "logprobs": None}

    arguments = {
        "loss_type": options["loss_type"],
        "scale_rewards": options["scale"],
        "importance_sampling_level": options["ratio_level"].removesuffix("_mean"),
        "epsilon": options["clip"][0],
        "epsilon_high": options["clip"][1],
        "beta": options["kl_coef"],
        "use_bias_correction_kl": False,
        "mask_truncated_completions": options["mask_truncated"],
        "num_iterations": 2,  # so that it keeps old log-probs
        "num_generations": GROUP_SIZE,
        "per_device_train_batch_size": len(REWARDS),
        "max_completion_length": MAX_NEW_TOKENS,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            str(ROOT / "data/tiny_coder"),
            lambda **_: REWARDS,
            GRPOConfig(folder, **arguments, use_cpu=True, bf16=False, report_to="none"),
            Dataset.from_dict({"prompt": ["x"] * len(REWARDS)}),
            processing_class=tokenizer,
            rollout_func=completions,
        )
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(REWARDS))
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    if passes or not inputs["old_per_token_logps"].equal(padded["old"]):
        raise RuntimeError("TRL has not used the log-probs that it was given")
    mask = torch.arange(new.shape[1]) < torch.tensor(LENGTHS)[:, None]
    if new.grad[~mask].any():
        raise RuntimeError("padding has a gradient")
    return loss.item(), new.grad[mask].tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_path", default=ROOT / "tests/grpo_cases.json", type=Path)
    args = parser.parse_args()
    from tqdm import tqdm
    from trl import __version__

    logprobs = draw_logprobs()
    cases = []
    for values in tqdm(list(product(*OPTIONS.values()))):
        options = dict(zip(OPTIONS, values))
        loss, gradient = trl_case(logprobs, options)
        cases.append({**options, "loss": round(loss, 8), "gradient": [round(x, 8) for x in gradient]})
    inputs = {"trl": __version__, "group_size": GROUP_SIZE, "max_new_tokens": MAX_NEW_TOKENS}
    inputs |= {"rewards": REWARDS, "truncated": TRUNCATED, **logprobs}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    args.output_path.write_text(json.dumps(inputs)[:-1] + f', "cases": [\n{lines}\n]}}\n')
