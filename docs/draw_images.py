"""Draws docs/images: curves of runs that went wrong, from results/tiny/failures.jsonl and results/smol/, and
all methods side by side, from results/tiny/seeds*.jsonl.

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
    "constants": ("constant programs (%)", 100),
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
    "shown_tests": (
        ("avg_reward", "constants", "avg_base_reward"),
        {
            "shown": "pass rate, one test of three is shown",
            "hidden": "pass rate of hidden tests",
            "solvable": "pass rate, 26 tasks solved now and then",
            "binary": "binary, the same 26",
        },
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


def read_runs():
    """{name of a run: {field of PANELS: a number per update}}."""
    lines = (ROOT / "results/tiny/failures.jsonl").read_text(encoding="utf-8").splitlines()
    runs = {run["name"]: run["log"] for run in map(json.loads, lines)}
    names = {"avg_reward": "reward", "constants": "constants", "avg_base_reward": "passed"}
    for name in IMAGES["shown_tests"][1]:  # by benchmarks/constant_answers.py
        lines = (ROOT / f"results/smol/constants_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = list(map(json.loads, lines))
        runs[name] = {field: [row[key] for row in rows] for field, key in names.items()}
    return runs


METHODS = {  # a configuration of benchmarks/tiny_seeds.py for each, as in docs/results.md
    "base": "base",
    "sft": "SFT",
    "sft_lr1e-3": "SFT, learning rate 1e-3",
    "dpo_once": "DPO, 3,200 completions",
    "grpo_dapo_rounds1_15x4": "GRPO, 480",
    "grpo_dapo_rounds1_60": "GRPO, 1,920",
    "rl_none_alpha0.01": "REINFORCE, 480",
    "ppo_sequence_all_alpha0.01_8": "PPO, 480",
    "ac_lam1_warmup80_epochs1": "PPO with a critic, 1,120",
}


SMOL_METHODS = {  # a configuration of results/smol/seeds.md for each, as in docs/results.md
    "base": "base",
    "sft": "SFT",
    "sft3": "SFT, three epochs",
    "sft_lr1e-3": "SFT, learning rate 1e-3",
    "dpo_solvable": "DPO",
    "rl_solvable": "REINFORCE",
    "grpo_solvable": "GRPO",
    "grpo_lr1e-3": "GRPO from SFT with 1e-3",
    "ppo_solvable": "PPO",
    "ac_solvable": "PPO with a critic",
}


def draw_seeds(ax, scores):
    """A dot for each seed and a line for their mean, for each method a row."""
    for place, values in enumerate(scores):
        ax.plot(values, [place] * len(values), "o", color="C0", alpha=0.45, markersize=5)
        ax.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color="C1", linewidth=2)
    ax.grid(alpha=0.3, axis="x")
    ax.spines[["top", "right"]].set_visible(False)


def draw_methods(path):
    """pass@1 of each method on the tiny model."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True, layout="constrained")
    for ax, name, title in zip(axes, ("seeds", "seeds_mini_hard_test"), ("test tasks", "hard tasks")):
        lines = (ROOT / f"results/tiny/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = list(map(json.loads, lines))
        passed = [[row["passed"] for row in rows if row["name"] == method] for method in METHODS]
        draw_seeds(ax, [[100 * each.count("1") / len(each) for each in seeds] for seeds in passed])
        ax.set(title=title, xlabel="pass@1 as generated (%)", xlim=(-2, 102))
    axes[0].set_yticks(range(len(METHODS)), METHODS.values())
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_smol_methods(path):
    """How many of MBPP's 500 test tasks each method solves with SmolLM2; base also truncated, a circle."""
    figure, ax = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    folder = ROOT / "results/smol"
    files = [[folder / "smol_base_metrics.json"]]
    files += [sorted(folder.glob(f"smol_{name}_s[0-9]*_metrics.json")) for name in list(SMOL_METHODS)[1:]]
    metrics = [[json.loads(path.read_text(encoding="utf-8")) for path in paths] for paths in files]
    draw_seeds(ax, [[run["num_pass"] for run in runs] for runs in metrics])
    ax.plot(metrics[0][0]["num_pass_truncated"], 0, "o", color="C0", markerfacecolor="none", markersize=5)
    ax.set(xlabel="of 500 tasks solved", xlim=(-1, None))
    ax.set_yticks(range(len(SMOL_METHODS)), SMOL_METHODS.values())
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    runs = read_runs()
    for name, (panels, labels) in IMAGES.items():
        draw(panels, labels, runs, ROOT / f"docs/images/{name}.png")
    draw_methods(ROOT / "docs/images/methods.png")
    draw_smol_methods(ROOT / "docs/images/smol_methods.png")
