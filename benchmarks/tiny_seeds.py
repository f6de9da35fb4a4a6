"""Every method on the tiny model over several seeds: trains, evaluates, and writes the table of results/tiny.

    python benchmarks/tiny_seeds.py --seeds 5 --jobs 2
    python benchmarks/tiny_seeds.py --summary_only          # the table of what is finished; runs nothing
    python benchmarks/tiny_seeds.py --redraw                # only the picture, from the .jsonl file
    python benchmarks/tiny_seeds.py --methods grpo dpo --test data/mini_hard_test.jsonl

A seed is that of SFT and of the runs that start from it. Finished runs are kept, interrupted ones resumed.
The results on each --test file have a folder of their own in --out, and a table; adapters are trained once.
Every process computes with one thread, so that runs side by side do not wait for each other.
Writes --table (a .md file), a picture of the same name (.png), and what both are computed from (.jsonl): the
outcome of each task in each run, in the order of their ids. Runs that this .jsonl file has and --out has not
stay in the table. compare_runs.py draws learning_curves.png there.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # draws without a display
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
DATA = ["--train_path", "data/mini_train.jsonl", "--max_new_tokens", "96", "--micro_batch_size", "8"]
SFT = ["train_sft_lora.py", "--model_name", "data/tiny_coder", "--train_path", "data/mini_train.jsonl"]
SFT += ["--learning_rate"]
RL = ["train_rl_lora.py", *DATA, "--num_steps", "60", "--batch_size", "8", "--learning_rate", "5e-4"]
PPO = ["train_ppo_lora.py", *DATA, "--num_updates", "60", "--learning_rate", "2e-4"]
AC = ["train_actor_critic_lora.py", *DATA, "--batch_size", "8", "--learning_rate", "2e-4"]
AC += ["--critic_learning_rate", "2e-4"]
GRPO = [
    "train_grpo_lora.py",
    *DATA,
    "--batch_size",
    "4",
    "--samples_per_task",
    "8",
    "--learning_rate",
    "5e-4",
]
DPO = ["train_dpo_lora.py", "--train_path", "data/mini_train.jsonl", "--beta", "0.1", "--num_epochs", "1"]
DPO += ["--batch_size", "16", "--micro_batch_size", "8", "--learning_rate", "5e-4"]
# The run whose adapter a run starts from; of all others: sft.
START = {"sft": None, "sft_lr1e-3": None, "dpo_twice": "dpo_once"}
TEST = "data/mini_test.jsonl"
QUESTIONS = {  # (part of a name, what stands there in the name of the run to compare with), ...
    "Does a baseline help REINFORCE?": [("rl_batch", "rl_none")],
    "What does the length penalty change for REINFORCE?": [("alpha0.01", "alpha0"), ("alpha0.03", "alpha0")],
    "PPO: 8 completions per update, or 4?": [("_8", "_4")],
    "PPO: one ratio per sequence, or per token?": [("sequence", "token")],
    "PPO: length penalty on passing programs only, or on all?": [("passed", "all")],
    "A critic, or PPO with one ratio per token?": [("ac_lam1_warmup0_epochs1", "ppo_token_all_alpha0.01_8")],
    "Actor-critic: lam 0.95, or 1?": [("lam0.95", "lam1")],
    "Actor-critic: updates of the critic alone at first, or none?": [
        ("warmup40", "warmup0"),
        ("warmup80", "warmup0"),
    ],
    "Actor-critic: 4 epochs of the critic, or 1?": [("epochs4", "epochs1")],
    "GRPO: each completion the same weight, or each token (dapo)?": [("grpo_grpo", "grpo_dapo")],
    "GRPO: neither standard deviation nor lengths (dr_grpo), or dapo?": [("dr_grpo", "dapo")],
    "GRPO: other tasks for flat groups, at most 3 times?": [("rounds3", "rounds1")],
    "GRPO: 4 epochs per update, or 1?": [("_15x4", "_15")],
    "GRPO: 60 updates, or 15?": [("_60", "_15")],
    "Partial credit, or all tests or nothing?": [("_reward_pass_rate", ""), ("_reward_structured", "")],
    "DPO twice, or once?": [("twice", "once")],
}
CURVES = "rl_none_alpha0.01 ppo_sequence_all_alpha0.01_8 grpo_dapo_rounds1_60"
RESAMPLES = 10_000
LABELS = {  # what the table calls a method: what the picture and the README call it
    "sft": "SFT",
    "sft_lr1e-3": "SFT, learning rate 1e-3",
    "rl_none": "REINFORCE",
    "rl_batch": "REINFORCE, batch baseline",
    "ppo_sequence_all": "PPO",
    "ppo_token_all": "PPO, ratio per token",
    "ppo_token_passed": "PPO, ratio per token, charged if passed",
    "ac_lam1_warmup0_epochs1": "actor-critic",
    "ac_lam0.95_warmup0_epochs1": "actor-critic, lam 0.95",
    "ac_lam1_warmup40_epochs1": "actor-critic, critic alone for 40 updates",
    "ac_lam1_warmup80_epochs1": "actor-critic, critic alone for 80 updates",
    "ac_lam1_warmup0_epochs4": "actor-critic, 4 epochs of the critic",
    "ac_lam1_warmup40_epochs4": "actor-critic, critic alone for 40 updates, 4 epochs",
    "dpo_once": "DPO",
    "dpo_twice": "DPO, twice",
}
COLORS = {"base": "0.5", "sft": "tab:green", "rl": "tab:orange", "ppo": "tab:blue"}
COLORS |= {"ac": "tab:cyan", "grpo": "tab:purple", "dpo": "tab:red"}
# 97.5 % quantile of Student's t for 1, 2, ... 9 degrees of freedom; for more the last one, on the safe side.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


# ---- runs ----
def configurations():
    """{name: command without seed, adapter to start from and output folder}, in the order of the table."""
    commands = {"sft": [*SFT, "3.5e-4"], "sft_lr1e-3": [*SFT, "1e-3"]}
    for baseline in "none", "batch":
        for alpha in "0", "0.01", "0.03":
            flags = ["--baseline", baseline, "--length_penalty_alpha", alpha]
            commands[f"rl_{baseline}_alpha{alpha}"] = RL + flags
    for ratio, penalty in ("token", "all"), ("sequence", "all"), ("token", "passed"):
        for alpha in "0.01", "0.03":
            for batch in "4", "8":
                flags = ["--ratio_level", ratio, "--length_penalty_on", penalty, "--batch_size", batch]
                name = f"ppo_{ratio}_{penalty}_alpha{alpha}_{batch}"
                commands[name] = [*PPO, *flags, "--length_penalty_alpha", alpha]
    for lam, warmup, epochs in (
        ("1", 0, "1"),
        ("0.95", 0, "1"),
        ("1", 40, "1"),
        ("1", 80, "1"),
        ("1", 0, "4"),
        ("1", 40, "4"),
    ):
        flags = ["--lam", lam, "--critic_warmup", str(warmup), "--critic_epochs", epochs]
        commands[f"ac_lam{lam}_warmup{warmup}_epochs{epochs}"] = [
            *AC,
            *flags,
            "--num_updates",
            str(60 + warmup),
        ]
    for loss in "dapo", "grpo", "dr_grpo":
        scale = "none" if loss == "dr_grpo" else "group"
        for rounds in "1", "3":
            flags = ["--loss_type", loss, "--scale", scale, "--max_rounds", rounds]
            # of 32 completions: 480, as REINFORCE and PPO with _8
            commands[f"grpo_{loss}_rounds{rounds}_15"] = [*GRPO, *flags, "--num_updates", "15"]
    dapo = commands["grpo_dapo_rounds1_15"]
    commands["grpo_dapo_rounds1_15x4"] = [*dapo, "--grpo_epochs", "4"]
    commands["grpo_dapo_rounds1_60"] = [*dapo[:-1], "60"]
    for name in "ppo_sequence_all_alpha0.01_8", "ac_lam1_warmup0_epochs1", "grpo_dapo_rounds1_15":
        for reward in "pass_rate", "structured":
            commands[f"{name}_reward_{reward}"] = [*commands[name], "--reward", reward]
    return commands | {"dpo_once": DPO, "dpo_twice": DPO}


def training_commands(name, seed, out):
    """The whole commands of one run; seed and out may be "$seed" and "$out", for the table."""
    exp_name, start = f"{name}_seed{seed}", f"{out}/checkpoints/{START.get(name, 'sft')}_seed{seed}"
    command = configurations()[name] + (["--sft_model", start] if START.get(name, "sft") else [])
    command += ["--seed", str(seed), "--output_dir", f"{out}/checkpoints/{exp_name}", "--resume"]
    if not name.startswith("dpo"):
        return [command]
    train, pairs = "data/mini_train.jsonl", f"{out}/pairs/{exp_name}"
    sampling = ["--n_samples", "8", "--temperature", "1.0", "--seed", str(seed), "--resume"]
    candidates = evaluation_command(start, exp_name, f"{out}/candidates", train) + sampling
    rows = f"{out}/candidates/{exp_name}_per_task.jsonl"
    pairing = ["make_pairs.py", "--task_path", train, "--candidates", rows, "--output_dir", pairs]
    return [candidates, pairing, [*command, "--pairs_path", f"{pairs}/pairs.jsonl"]]


def evaluation_command(model, exp_name, results, test):
    flags = ["--model_path", model, "--exp_name", exp_name, "--results_dir", str(results)]
    return ["eval_humaneval.py", *flags, "--data_path", test, "--max_new_tokens", "96"]


def suffix(test):
    """What the names of folder and table of a test file end with: nothing, or "_mini_hard_test"."""
    return "" if test == TEST else f"_{Path(test).stem}"


def run(command, log):
    """Run a script of ours with its output in a file; raises RuntimeError with the command if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
    environment["OMP_WAIT_POLICY"] = "passive"  # a waiting thread leaves the core to others
    with open(log, "a") as file:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; see {log}")


def train_and_evaluate(name, seed, out, test):
    """Train into out/checkpoints/name_seed unless finished there, then evaluate it unless that is done."""
    exp_name = f"{name}_seed{seed}"
    folder = out / "checkpoints" / exp_name
    config = folder / "run_config.json"
    log = out / "logs" / f"{exp_name}.txt"
    if not (config.is_file() and json.loads(config.read_text())["finished"]):
        for command in training_commands(name, seed, out):
            run(command, log)
    evaluate(str(folder), exp_name, out, test)
    print(exp_name, flush=True)


def evaluate(model, exp_name, out, test):
    """Evaluate a model, unless that is done."""
    results = f"{out}/results{suffix(test)}"
    if not Path(results, f"{exp_name}_metrics.json").is_file():
        command = evaluation_command(model, exp_name, results, test)
        run([*command, "--resume"], out / f"logs/{exp_name}.txt")


def run_all(pool, methods, seeds, out, test):
    """Base, SFT, then what starts from SFT, then what starts from that."""
    evaluate("data/tiny_coder", "base", out, test)
    chosen = {"sft", *methods}
    wanted = [name for name in configurations() if name in chosen or name.split("_")[0] in methods]
    for start in (None,), ("sft",), set(START.values()) - {None}:
        names = [name for name in wanted if START.get(name, "sft") in start]
        jobs = [(name, seed, out, test) for seed in seeds for name in names]
        list(pool.map(lambda job: train_and_evaluate(*job), jobs))


# ---- statistics ----
def read_run(path):
    """The tasks of one evaluation: raw and truncated pass@1 in percent, and length; (3, tasks)."""
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tasks.sort(key=lambda task: task["task_id"])  # the same order in all runs: they are compared by task
    return np.array(
        [(100 * task["passed"], 100 * task["passed_truncated"], task["gen_len"]) for task in tasks]
    ).T


def read_results(folder):
    """{name: {seed: (3, tasks)}} of all evaluated runs, in the order of the table; base has only a seed 0."""
    results = {name: {} for name in ["base", *configurations()]}
    results["base"][0] = read_run(folder / "base_per_task.jsonl")
    for path in sorted(folder.glob("*_seed*_per_task.jsonl")):
        name, seed = path.stem.removesuffix("_per_task").split("_seed")
        results[name][int(seed)] = read_run(path)
    return {name: runs for name, runs in results.items() if runs}


def num_sampled(name, seed, out):
    """How many completions the training of a run sampled; SFT and the base model: none."""
    total = 0
    for log in Path(out, "checkpoints", f"{name}_seed{seed}").glob("*_train_log.jsonl"):
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if name.startswith(("rl", "ppo", "ac", "grpo")):
            total = sum(row.get("num_completions", row["batch_size"]) for row in rows)
        if name.startswith("dpo"):  # before it trained
            candidates = Path(out, "candidates", f"{name}_seed{seed}_per_task.jsonl")
            start = START.get(name)
            total = len(candidates.read_text().splitlines()) + (num_sampled(start, seed, out) if start else 0)
    return total


def means(runs: dict) -> np.ndarray:
    """Raw pass@1, truncated pass@1 and length of each seed; (3, seeds)."""
    return np.stack([tasks.mean(axis=1) for tasks in runs.values()], axis=1)


def half_interval(values: np.ndarray) -> float:
    """Half the width of the 95 % t-interval of the mean; NaN where there is only one value."""
    if len(values) == 1:
        return np.nan
    quantile = T_975[min(len(values) - 1, len(T_975)) - 1]
    return quantile * np.std(values, ddof=1) / np.sqrt(len(values))


def paired(one: dict, two: dict, row: int = 0) -> np.ndarray:
    """One minus two, for each common seed and task; (seeds, tasks)."""
    return np.array([one[seed][row] - two[seed][row] for seed in one if seed in two])


@cache
def resamples(*counts: int) -> list[np.ndarray]:
    """For each count, how often each of so many things is drawn with replacement; (RESAMPLES, count)."""
    rng = np.random.default_rng(0)
    return [rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) for count in counts]


def difference(gaps: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences (seeds, tasks): 95 % interval for other seeds and tasks.

    A crossed bootstrap: seeds and tasks are drawn with replacement, the same ones for both runs.
    """
    seeds, tasks = resamples(*gaps.shape)  # (RESAMPLES, seeds) and (RESAMPLES, tasks)
    resampled = ((seeds @ gaps) * tasks).sum(axis=1) / gaps.size  # (RESAMPLES,)
    return gaps.mean(), *np.percentile(resampled, [2.5, 97.5])


def best(results: dict, *methods: str) -> str | None:
    """The name with the highest mean raw pass@1 among these methods; None before one is finished."""
    names = [name for name in results if name.split("_")[0] in methods]
    # One lucky seed is no best run: first those with the most seeds.
    return max(names, key=lambda n: (len(results[n]), means(results[n])[0].mean()), default=None)


def comparisons(results):
    """{question: [(one, two)]}, of runs with a seed in common."""
    names = list(configurations())
    asked = {"Is it better than SFT?": [(name, "sft") for name in names if not name.startswith("sft")]}
    for question, parts in QUESTIONS.items():
        asked[question] = [(name, name.replace(*pair)) for pair in parts for name in names if pair[0] in name]
    higher = "sft_lr1e-3"
    asked["SFT with a higher learning rate, or SFT?"] = [(higher, "sft")]
    asked["Best of REINFORCE and PPO, or SFT with a higher learning rate?"] = [
        (best(results, "rl", "ppo"), higher)
    ]
    asked["Best PPO, or best REINFORCE?"] = [(best(results, "ppo"), best(results, "rl"))]
    equal = {name: runs for name, runs in results.items() if "rounds1_15" in name}
    question = "Best GRPO with 480 completions, or best of REINFORCE and PPO?"
    asked[question] = [(best(equal, "grpo"), best(results, "rl", "ppo"))]
    asked["Best DPO, or best of the others?"] = [(best(results, "dpo"), best(results, "rl", "ppo", "grpo"))]
    seeds = {name: set(runs) for name, runs in results.items()}
    for question, pairs in asked.items():
        asked[question] = [(a, b) for a, b in pairs if a in seeds and b in seeds and seeds[a] & seeds[b]]
    return asked


# ---- table and picture ----
def markdown_table(*rows):
    """The first row is the header; names to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def score_row(name, runs, sampled):
    cells = []
    for values in means(runs)[:2]:
        half = half_interval(values)
        cells.append(f"{values.mean():.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}"))
    completions = np.mean([sampled[name, seed] for seed in runs])
    return [name, *cells, f"{means(runs)[2].mean():.1f}", f"{completions:,.0f}", str(len(runs))]


def comparison_row(name, gaps, truncated):
    mean, low, high = difference(gaps)
    half = half_interval(gaps.mean(axis=1))
    verdict = "real" if (low > 0 or high < 0) and abs(mean) > half else "not distinguishable"
    verdict = verdict if len(gaps) > 1 else "one seed only"  # whose interval knows nothing of other seeds
    intervals = [f"[{low:+.1f}, {high:+.1f}]", "-" if np.isnan(half) else f"± {half:.1f}"]
    solving = truncated.mean()  # what is gained where all programs are cut
    return [
        name,
        f"{mean:+.1f}",
        *intervals,
        f"{mean - solving:+.1f}",
        f"{solving:+.1f}",
        str(len(gaps)),
        verdict,
    ]


def comparison_rows(results, pairs):
    """One row per pair and, where all have the same number of seeds, one for the mean over the pairs."""
    gaps = {}
    for one, two in pairs:
        gaps[f"{one} - {two}"] = [paired(results[one], results[two], row) for row in (0, 1)]  # raw, truncated
    rows = [comparison_row(name, *values) for name, values in gaps.items()]
    if len(pairs) > 1 and len({len(raw) for raw, _ in gaps.values()}) == 1:
        mean = np.mean(list(gaps.values()), axis=0)
        rows.append(comparison_row(f"**mean of these {len(pairs)}**", *mean))
    return rows


def summary(results, sampled, test=TEST):
    """The whole text of the table's file. sampled: {(name, seed): completions that its training sampled}."""
    asked = comparisons(results)
    count = sum(map(len, asked.values()))
    header = ["configuration", "raw pass@1 (%)", "truncated (%)", "length (tokens)", "sampled", "seeds"]
    scores = [score_row(name, runs, sampled) for name, runs in results.items()]
    text = f"""# The tiny model over several seeds

Greedy pass@1 on the {results["base"][0].shape[1]} tasks of `{test}`: mean over the seeds ± half
of its 95 % t-interval, which speaks of other seeds on the same tasks. Sampled: completions that the training
sampled, for DPO before it began.

{markdown_table(header, *scores)}

## What is different

Raw pass@1 in points, paired over tasks and seeds. The 95 % intervals come from {RESAMPLES:,} resamples of
both seeds and tasks, which with so few seeds is a little too sure of them; "seeds alone" is half of the
t-interval of the seeds' means. A difference is called real where both exclude 0. Of {count} comparisons of
two runs at 95 %, up to {0.05 * count:.1f} would do so by chance if nothing differed. A best row was picked by
the scores it is judged by: expect a little less of it. Solving is the difference of the truncated scores;
stopping is the rest, from programs whose code was right before, but did not end.
"""
    header = [
        "difference",
        "points",
        "95 % interval",
        "seeds alone",
        "stopping",
        "solving",
        "seeds",
        "verdict",
    ]
    for question, pairs in asked.items():
        if pairs:
            text += f"\n**{question}**\n\n{markdown_table(header, *comparison_rows(results, pairs))}\n"
    folder = f"$out/results{suffix(test)}"
    commands = [evaluation_command("data/tiny_coder", "base", folder, test)]
    for name in list(results)[1:]:
        commands += training_commands(name, "$seed", "$out")
    # name: rl_none_alpha0_seed1
    commands += [evaluation_command("$out/checkpoints/$name", "$name", folder, test)]
    text += "\n## Commands\n\n`OMP_NUM_THREADS=1`, `out`: any folder, `name`: each run below it.\n\n```sh\n"
    lines = "".join(f"python {' '.join(command)}\n" for command in commands)
    return text + lines.replace("$seed_", "${seed}_") + "```\n"  # for a shell $seed_per_task is one name


def label(name: str) -> str:
    """The name of a configuration as the README says it."""
    name, _, reward = name.partition("_reward_")
    reward = f", {reward}" if reward else ""
    if name.startswith("grpo"):
        _, loss, rounds, updates = name.replace("dr_", "dr-").split("_")
        settings = f"{updates} updates".replace("x4 updates", " updates of 4 epochs")
        return f"GRPO, {loss.replace('-', '_')}, {settings}{', 3 rounds' * (rounds == 'rounds3')}{reward}"
    method, _, settings = name.partition("_alpha")
    alpha = f", alpha {settings.replace('_', ', batch of ')}" if settings else ""
    return LABELS.get(method, method) + alpha + reward


def draw(results, path):
    """Raw pass@1 per configuration: mean, 95 % interval and seeds; on the right again, zoomed on RL."""
    style = {"figsize": (11, 1.2 + 0.27 * len(results)), "width_ratios": (2, 3), "layout": "constrained"}
    figure, (whole, zoom) = plt.subplots(1, 2, sharey=True, **style)
    bar = {"linewidth": 8, "alpha": 0.25, "solid_capstyle": "butt"}
    for y, (name, runs) in enumerate(results.items()):
        scores = means(runs)[0]
        color = COLORS[name.split("_")[0]]
        half = np.nan_to_num(half_interval(scores))
        for axes in whole, zoom:
            axes.plot([scores.mean() - half, scores.mean() + half], [y, y], color=color, **bar)
            axes.plot(scores.mean(), y, "|", color=color, markersize=11, markeredgewidth=2.5)
        jitter = np.linspace(-0.2, 0.2, len(scores)) if len(scores) > 1 else 0
        zoom.plot(scores, y + jitter, "o", color=color, markersize=4.5, markeredgecolor="white")
    rl = [means(runs)[0] for name, runs in results.items() if not name.startswith(("base", "sft"))]
    if rl:
        zoom.set_xlim(np.concatenate(rl).min() - 2, np.concatenate(rl).max() + 2)
    whole.set_xlim(0, 100)
    whole.set_yticks(range(len(results)), map(label, results))
    whole.set_ylim(len(results) - 0.4, -0.6)  # the first row on top
    for axes, title in (whole, "all runs"), (zoom, "the RL runs, enlarged; dots: single seeds"):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("raw pass@1 (%)")
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Mean over the seeds and its 95 % interval", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_runs(results, sampled, path):
    """One line per run: name, seed, passed and passed_truncated as strings of 0 and 1, and the numbers."""
    with open(path, "w", encoding="utf-8") as file:
        for name, runs in results.items():
            for seed, tasks in runs.items():
                raw, truncated, lengths = tasks.astype(int).tolist()
                run = {"name": name, "seed": seed, "passed": "".join("01"[x > 0] for x in raw)}
                run |= {"passed_truncated": "".join("01"[x > 0] for x in truncated), "gen_len": lengths}
                run["completions"] = sampled[name, seed]
                file.write(json.dumps(run) + "\n")


def read_runs(path):
    """What write_runs wrote, results and sampled; both are empty where there is no such file."""
    results, sampled = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        run = json.loads(line)
        sampled[run["name"], run["seed"]] = run["completions"]
        verdicts = [[100 * int(mark) for mark in run[field]] for field in ("passed", "passed_truncated")]
        results.setdefault(run["name"], {})[run["seed"]] = np.array([*verdicts, run["gen_len"]])
    return results, sampled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--out", default="checkpoints/tiny_seeds", help="folder of adapters, logs and results"
    )
    parser.add_argument("--table", type=Path, help="file to write, otherwise results/tiny/seeds*.md")
    parser.add_argument("--test", default=TEST, help="task file to evaluate on")
    parser.add_argument(
        "--methods", nargs="+", default=["sft", "rl", "ppo", "ac", "grpo", "dpo"], help="besides SFT"
    )
    parser.add_argument("--summary_only", action="store_true", help="run nothing")
    parser.add_argument("--redraw", action="store_true", help="only draw the picture again, from the .jsonl")
    args = parser.parse_args()
    args.table = args.table or ROOT / f"results/tiny/seeds{suffix(args.test)}.md"
    if args.redraw:
        draw(read_runs(args.table.with_suffix(".jsonl"))[0], args.table.with_suffix(".png"))
        raise SystemExit
    out = Path(args.out).resolve()
    seeds = range(1, args.seeds + 1)

    if not args.summary_only:
        with ThreadPoolExecutor(args.jobs) as pool:
            run_all(pool, args.methods, seeds, out, args.test)
    folder = out / f"results{suffix(args.test)}"
    if not (folder / "base_per_task.jsonl").is_file():
        raise SystemExit(f"Nothing is finished in {folder}: run without --summary_only.")
    kept, sampled = read_runs(args.table.with_suffix(".jsonl"))
    results = read_results(folder)
    sampled |= {(name, seed): num_sampled(name, seed, out) for name in results for seed in results[name]}
    names = [name for name in ["base", *configurations()] if name in kept or name in results]
    results = {name: kept.get(name, {}) | results.get(name, {}) for name in names}
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(summary(results, sampled, args.test), encoding="utf-8")
    draw(results, args.table.with_suffix(".png"))
    write_runs(results, sampled, args.table.with_suffix(".jsonl"))
    folders = [path for name in CURVES.split() for path in sorted(out.glob(f"checkpoints/{name}_seed*"))]
    if folders:  # not only the results were copied here
        pictures = ["--results_dir", str(args.table.parent.resolve())]
        run(["compare_runs.py", *map(str, folders), *pictures], out / "logs/compare_runs.txt")
    print(f"wrote {args.table}, and .png and .jsonl beside it")
