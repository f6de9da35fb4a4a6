"""Write tests/critic_cases.json: what verl's own functions make of rewards, values and masks of some tokens.

    pip install verl==0.9.1          # in an environment of its own: it wants an older transformers
    python benchmarks/critic_cases.py

Writes  --output_path: per-token rewards and values of six completions and, for each pair of gamma and lam,
        verl's whitened advantages and its returns; then new values, and for each bound verl's value loss, the
        share of clipped values and the gradient with respect to the new values

tests/test_actor_critic.py compares ours with these numbers, without verl. Its functions run as they are:
compute_gae_advantage_return and compute_value_loss of verl.trainer.ppo.core_algos, in double precision.
"""

import argparse
import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = [3, 1, 7, 2, 5, 4]
GAMMAS_AND_LAMS = [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 1.0)]
VALUE_CLIPS = [0.05, 0.2, 0.5, 10.0]


def draw(rng, spread):
    """A list per completion, of one number per token."""
    return [[round(rng.gauss(0, spread), 4) for _ in range(length)] for length in LENGTHS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_path", default=ROOT / "tests/critic_cases.json", type=Path)
    args = parser.parse_args()
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from verl import __version__
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return, compute_value_loss

    def padded(rows):
        """(6, 7), with numbers in the padding that must not count."""
        tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=9.0)

    def numbers(tensor):
        """Those that are not padding, token after token and row after row."""
        return [round(number, 10) for number in tensor[mask].tolist()]

    rng = random.Random(0)
    rewards, values, new_values = draw(rng, 0.05), draw(rng, 0.3), draw(rng, 0.3)
    for row, program in zip(rewards, [1, 0, 1, 0, 0, 1]):
        row[-1] = round(row[-1] + program, 4)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    found: dict = {"verl": __version__, "rewards": rewards, "values": values, "new_values": new_values}
    found |= {"gae": [], "value_loss": []}
    for gamma, lam in GAMMAS_AND_LAMS:
        response_mask = mask.double()
        advantages, returns = compute_gae_advantage_return(
            padded(rewards) * response_mask, padded(values), response_mask, gamma, lam
        )
        case = {"gamma": gamma, "lam": lam, "whitened": numbers(advantages), "returns": numbers(returns)}
        found["gae"].append(case)
    targets = padded([row[::-1] for row in values]) + 0.4
    found["targets"] = numbers(targets)
    for value_clip in VALUE_CLIPS:
        new = padded(new_values).requires_grad_()
        loss, clipped = compute_value_loss(new, targets, padded(values), mask.double(), value_clip)
        loss.backward()
        case = {"value_clip": value_clip, "loss": loss.item(), "clip_frac": clipped.item()}
        found["value_loss"].append(case | {"gradient": numbers(new.grad)})
    text = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in found.items())
    args.output_path.write_text(f"{{\n{text}\n}}\n")
