"""Write tests/dpo_cases.json: what TRL's DPOTrainer makes of every combination of DPO's options.

    pip install --no-deps -r benchmarks/requirements-rl.txt
    python benchmarks/dpo_cases.py              # about a minute on one core

Reads   data/tiny_coder, from which TRL builds a trainer; nothing is computed with the model or trained
Writes  --output_path: log-probs of the tokens of 5 pairs, their sums under the reference and, for each of 12
        combinations, TRL's loss and its gradient with respect to the log-prob of each token

tests/test_dpo.py compares ours with these numbers and does not need TRL. TRL's own code runs from log-probs
to the loss (_compute_loss), on options that went through DPOConfig. Ours and TRL's names:

    loss_type, beta   loss_type, beta        nll_coef   the weight of a second loss type, sft

Both mean the same where one micro-batch holds the whole batch. With several, TRL's sft is the mean of the
micro-batches' means: short chosen completions count more. Ours divides by the chosen tokens of the batch.
"""

import argparse
import json
import random
import tempfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
CHOSEN, REJECTED = [3, 1, 6, 2, 4], [4, 6, 2, 2, 1]  # tokens
MARGINS = [0.0, 3.0, -8.0, 40.0, 0.7]  # differences of the log-ratios, about
LOSS_TYPES = ["sigmoid", "sigmoid_norm", "ipo"]
OPTIONS: dict[str, list] = {"loss_type": LOSS_TYPES, "beta": [0.1, 0.5], "nll_coef": [0.0, 0.3]}


def draw_logprobs():
    """{"logprobs": a list per completion, "reference": sums of them under pi_sft}; the chosen come first."""
    rng = random.Random(0)
    logprobs = [[round(rng.uniform(-3, -0.1), 3) for _ in range(length)] for length in CHOSEN + REJECTED]
    shifts = [margin / 2 for margin in MARGINS] + [-margin / 2 for margin in MARGINS]
    sums = [round(sum(row) - shift + rng.uniform(-0.1, 0.1), 3) for row, shift in zip(logprobs, shifts)]
    return {"logprobs": logprobs, "reference": sums}


def trl_case(given, loss_type, beta, nll_coef):
    """(loss, gradient with respect to the log-probs, one number per token) of TRL's trainer."""
    import torch
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    arguments = {"loss_type": [loss_type], "beta": beta, "use_cpu": True, "bf16": False, "report_to": "none"}
    if nll_coef:
        arguments |= {"loss_type": [loss_type, "sft"], "loss_weights": [1.0, nll_coef]}
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            str(ROOT / "data/tiny_coder"),
            args=DPOConfig(folder, **arguments),
            train_dataset=Dataset.from_dict({"prompt": ["x"], "chosen": ["y"], "rejected": ["z"]}),
            processing_class=AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder"),
        )
    rows = [torch.tensor(row, dtype=torch.float64) for row in given["logprobs"]]
    logprobs = pad_sequence(rows, True).requires_grad_()  # (2 pairs, C)
    mask = pad_sequence([torch.ones(len(row)) for row in rows], True)
    others = {"entropy": logprobs, "mean_logits": logprobs, "is_top1": mask > 0}  # for metrics alone

    class Model:
        training = True

        def __call__(self, **arguments):
            return SimpleNamespace(log_probs=logprobs, **others)

    with_prompt = torch.nn.functional.pad(mask, (1, 0), value=1).long()  # of one token
    inputs = {"input_ids": with_prompt, "attention_mask": with_prompt}
    inputs["completion_mask"] = torch.nn.functional.pad(mask, (1, 0)).long()
    reference = torch.tensor(given["reference"], dtype=torch.float64)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference.chunk(2)
    trainer.precompute_ref_logps = True  # they are in the inputs
    loss = trainer._compute_loss(Model(), inputs, return_outputs=False)
    loss.backward()
    return loss.item(), logprobs.grad[mask > 0].tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_path", default=ROOT / "tests/dpo_cases.json", type=Path)
    args = parser.parse_args()
    from tqdm import tqdm
    from trl import __version__

    given = draw_logprobs()
    cases = []
    for values in tqdm(list(product(*OPTIONS.values()))):
        options = dict(zip(OPTIONS, values))
        loss, gradient = trl_case(given, **options)
        cases.append({**options, "loss": round(loss, 9), "gradient": [round(x, 9) for x in gradient]})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    args.output_path.write_text(
        json.dumps({"trl": __version__, **given})[:-1] + f', "cases": [\n{lines}\n]}}\n'
    )
