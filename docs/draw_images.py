"""Draws docs/images from results/tiny/failures.jsonl: the curves of runs that went wrong.

python docs/draw_images.py
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from report import moving_average  # noqa: E402

PANELS = {  # field of the log: label, factor
    "avg_reward": ("reward", 1),
    "avg_base_reward": ("pass rate of the samples (%)", 100),
    "dev_pass_at_1": ("dev pass@1 (%)", 100),
    "avg_gen_len": ("length (tokens)", 1),
    "approx_kl": ("approximate KL", 1),
}
IMAGES = {  # panels, then the label of each run
    "ppo_collapse": (
        ("avg_base_reward", "avg_gen_len", "approx_kl"),
        {"lr5e-4": "learning rate 5e-4", "lr1e-3": "1e-3", "lr1e-3_kl": "1e-3, target_kl 0.02"},
    ),
    "weak_tests": (
        ("avg_base_reward", "dev_pass_at_1"),
        {"strong": "full tests", "weak": "first assertion only", "weak_seed1": "the same, another seed"},
    ),
    "length_pressure": (
        ("avg_reward", "avg_base_reward", "avg_gen_len"),
        {"alpha0.3": "alpha 0.3", "alpha10": "alpha 10", "alpha10_passed": "alpha 10, passing programs only"},
    ),
    "reached_tests": (
        ("avg_reward", "avg_base_reward", "avg_gen_len"),
        {"fraction_reached": "passed / tests reached", "fraction_all": "passed / all tests"},
    ),
}


def draw(panels, labels, runs, path):
    """One panel per field side by side: single updates faint, the mean over a tenth of the run bold."""
    width = 3.4 * len(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.2), layout="constrained")
    for ax, field in zip(axes, panels):
        label, factor = PANELS[field]
        for name, text in labels.items():
            values = factor * np.array([value for value in runs[name][field] if value is not None])
            every = len(runs[name]["avg_reward"]) // len(values)  # dev scores are not of every update
            curve = np.stack([every * np.arange(1, len(values) + 1), values])
            if every > 1:
                (line,) = ax.plot(*curve, marker="o", markersize=3, label=text)
            else:
                (line,) = ax.plot(*moving_average(curve), linewidth=1.8, label=text)
                ax.plot(*curve, color=line.get_color(), linewidth=0.7, alpha=0.25)
        ax.set(title=label, xlabel="update", xlim=(0, None))
        if factor == 100:
            ax.set_ylim(0, 103)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].plot([], [], color="0.7", linewidth=0.7, label="faint: single updates")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    lines = (ROOT / "results/tiny/failures.jsonl").read_text(encoding="utf-8").splitlines()
    runs = {run["name"]: run["log"] for run in map(json.loads, lines)}
    for name, (panels, labels) in IMAGES.items():
        draw(panels, labels, runs, ROOT / f"docs/images/{name}.png")
