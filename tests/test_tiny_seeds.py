"""benchmarks/tiny_seeds.py: means, intervals and verdicts on made-up results whose answers are known."""

import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from matplotlib import pyplot as plt

sys.path.insert(0, str(ROOT / "benchmarks"))
import tiny_seeds

TASKS = 40


def evaluated(out, exp_name, passed, truncated=None, gen_len=30):
    """Write one evaluation: the first `passed` tasks pass, the first `truncated` after truncation."""
    (out / "results").mkdir(parents=True, exist_ok=True)
    truncated = passed if truncated is None else truncated
    tasks = [
        {"task_id": f"t/{k}", "passed": k < passed, "passed_truncated": k < truncated, "gen_len": gen_len}
        for k in range(TASKS)
    ]
    text = "".join(json.dumps(task) + "\n" for task in tasks[:: 1 if "rl" in exp_name else -1])
    (out / "results" / f"{exp_name}_per_task.jsonl").write_text(text)


def read(folder):
    """(results, sampled) of a folder: in these tests, 100 completions times the seed."""
    results = tiny_seeds.read_results(folder / "results")
    return results, {(name, seed): 100 * seed for name, runs in results.items() for seed in runs}


@pytest.fixture
def finished(tmp_path):
    """Base and SFT, three seeds of one RL run, two of another, one of PPO; the others have not finished."""
    evaluated(tmp_path, "base", 4, truncated=16, gen_len=80)
    for seed, passed in (1, 18), (2, 20), (3, 22):
        evaluated(tmp_path, f"sft_seed{seed}", passed, gen_len=38)
    for seed, passed in (1, 32), (2, 36), (3, 34):
        evaluated(tmp_path, f"rl_none_alpha0_seed{seed}", passed, gen_len=20 + seed)
    evaluated(tmp_path, "rl_none_alpha0.01_seed2", 35)
    evaluated(tmp_path, "rl_none_alpha0.01_seed3", 35)
    evaluated(tmp_path, "ppo_token_all_alpha0.01_4_seed2", 30)
    return tmp_path


def rows(text):
    """{first cell: the other cells} of all tables."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first: others for first, *others in lines}


def runs_of(matrix):
    """{seed: (3, tasks)} whose three rows are all this (seeds, tasks) matrix of passes, in percent."""
    return {seed: np.stack([100 * row] * 3) for seed, row in enumerate(np.asarray(matrix, dtype=float), 1)}


@pytest.mark.parametrize(
    "values, half",
    [
        ([1, 3], 12.7062),  # sd sqrt(2), by sqrt(2) runs
        ([80, 90, 85], 4.3027 * 5 / math.sqrt(3)),
        ([1, 2, 3, 4, 5], 2.7764 * math.sqrt(2.5 / 5)),
        ([0] * 15 + [1] * 15, 2.2622 * math.sqrt(30 * 0.25 / 29 / 30)),  # beyond the quantiles: the last one
    ],
)
def test_half_interval(values, half):
    assert tiny_seeds.half_interval(np.array(values)) == pytest.approx(half)
    assert math.isnan(tiny_seeds.half_interval(np.array(values[:1])))


def test_scores(finished):
    """rl: 80, 90 and 85 % of 40 tasks, sd 5; and 100, 200 and 300 completions."""
    results, sampled = read(finished)
    assert list(results) == [
        "base",
        "sft",
        "rl_none_alpha0",
        "rl_none_alpha0.01",
        "ppo_token_all_alpha0.01_4",
    ]
    table = rows(tiny_seeds.summary(results, sampled))
    assert table["base"] == ["10.0", "40.0", "80.0", "0", "1"]
    assert table["rl_none_alpha0"] == ["85.0 ± 12.4", "85.0 ± 12.4", "22.0", "200", "3"]
    assert table["rl_none_alpha0.01"] == ["87.5 ± 0.0", "87.5 ± 0.0", "30.0", "250", "2"]
    assert table["ppo_token_all_alpha0.01_4"] == ["75.0", "75.0", "30.0", "200", "1"]


def test_sampled_completions(tmp_path):
    """What GRPO counts itself; one per task in REINFORCE and PPO; candidates of DPO, and of its start."""
    logs = {
        "sft": ("sft", [{"loss": 1}]),
        "rl_none_alpha0": ("rl", [{"batch_size": 8}, {"batch_size": 8}]),
        "ppo_token_all_alpha0.01_4": ("ppo", [{"batch_size": 4}]),
        "grpo_dapo_rounds3_15": (
            "grpo",
            [{"num_completions": 32, "batch_size": 4}, {"num_completions": 64, "batch_size": 4}],
        ),
        "dpo_once": ("dpo", [{"batch_size": 16}]),
        "dpo_twice": ("dpo", [{"batch_size": 16}]),
    }
    for name, (method, lines) in logs.items():
        log = tmp_path / f"checkpoints/{name}_seed1/{method}_train_log.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "candidates").mkdir()
    for name, count in ("dpo_once", 5), ("dpo_twice", 7):
        (tmp_path / f"candidates/{name}_seed1_per_task.jsonl").write_text("{}\n" * count)
    found = [tiny_seeds.num_sampled(name, 1, tmp_path) for name in logs]
    assert found == [0, 16, 4, 96, 5, 12]


def test_variables_of_the_commands(tmp_path):
    evaluated(tmp_path, "base", 4)
    evaluated(tmp_path, "dpo_once_seed1", 4)
    text = tiny_seeds.summary(*read(tmp_path))
    names = set(re.findall(r"\$\{?(\w+)", text.partition("## Commands")[2]))
    assert names == {"out", "seed", "name"}  # the variables that a shell sees


def test_labels():
    labels = {tiny_seeds.label(name) for name in tiny_seeds.configurations()}
    assert len(labels) == len(tiny_seeds.configurations())
    assert {
        "GRPO, dr_grpo, 15 updates, 3 rounds",
        "GRPO, dapo, 60 updates",
        "GRPO, grpo, 15 updates",
        "actor-critic, lam 0.95",
        "GRPO, dapo, 15 updates of 4 epochs",
        "GRPO, dapo, 15 updates, pass_rate",
        "PPO, alpha 0.01, batch of 8, structured",
        "DPO",
        "DPO, twice",
    } < labels


def test_tasks_in_another_order(tmp_path):
    evaluated(tmp_path, "rl", 18)
    evaluated(tmp_path, "sft", 18)
    rl, sft = (tmp_path / f"results/{name}_per_task.jsonl" for name in ("rl", "sft"))
    assert rl.read_text() != sft.read_text()
    assert np.array_equal(tiny_seeds.read_run(rl), tiny_seeds.read_run(sft))


def test_comparisons(finished):
    """Only over seeds that both have: 35 - (36 + 34) / 2 = 0 tasks, not 35 - 34 = +2.5 points."""
    text = tiny_seeds.summary(*read(finished))
    table = rows(text)
    points, _, *others = table["rl_none_alpha0 - sft"]  # by 14, 16 and 12 of 40 tasks: sd 5 points
    assert [points, *others] == ["+35.0", "± 12.4", "+0.0", "+35.0", "3", "real"]
    points, _, *others = table["rl_none_alpha0.01 - rl_none_alpha0"]
    assert [points, *others] == ["+0.0", "± 31.8", "+0.0", "+0.0", "2", "not distinguishable"]
    assert table["ppo_token_all_alpha0.01_4 - sft"][2:] == ["-", "+0.0", "+25.0", "1", "one seed only"]
    assert table["ppo_token_all_alpha0.01_4 - rl_none_alpha0"][0] == "-15.0"  # the best of each
    assert "Of 5 comparisons" in text
    assert text.count("**mean of these") == 0  # their seeds differ


def test_stopping_and_solving(tmp_path):
    """Raw 4 to 30 of 40 tasks, cut 16 to 30: 65 points, of which 35 where cut. And the reverse."""
    evaluated(tmp_path, "base", 4)
    evaluated(tmp_path, "sft_seed1", 4, truncated=16)
    evaluated(tmp_path, "rl_none_alpha0_seed1", 30)
    evaluated(tmp_path, "rl_batch_alpha0_seed1", 30, truncated=32)
    table = rows(tiny_seeds.summary(*read(tmp_path)))
    assert table["rl_none_alpha0 - sft"][3:5] == ["+30.0", "+35.0"]
    assert table["rl_batch_alpha0 - sft"][3:5] == ["+25.0", "+40.0"]
    assert table["rl_batch_alpha0 - rl_none_alpha0"][3:5] == ["-5.0", "+5.0"]


def test_best_has_the_most_seeds(finished):
    """rl_none_alpha0.01 is higher, but on two seeds only."""
    results, _ = read(finished)
    assert tiny_seeds.best(results, "rl", "ppo") == "rl_none_alpha0"
    assert tiny_seeds.best(results, "dpo") is None


def test_difference_of_known_spread():
    """Half of 400 tasks at random: sd of a difference 100 * sqrt(1/2), so 1.96 * 3.54 points each side."""
    rng = np.random.default_rng(0)
    one, two = (100 * (rng.permutation(400) < 200) for _ in range(2))
    mean, low, high = tiny_seeds.difference((one - two)[None])
    assert mean == 0
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.5 / 400), rel=0.1)
    assert low < 0 < high


def test_difference_takes_in_the_seeds():
    """Every task gains, in seed 1 and 2 alone: tasks do not matter, and of four seeds drawn none may gain."""
    gains = np.repeat([[100], [100], [0], [0]], 50, axis=1)  # (seeds, tasks)
    mean, low, high = tiny_seeds.difference(gains)
    assert (mean, low, high) == (50, 0, 100)  # none of 4: probability 1/16, more than 2.5 %
    row = tiny_seeds.comparison_row("one - two", gains, gains / 2)
    assert row[:4] == ["one - two", "+50.0", "[+0.0, +100.0]", "± 91.9"]
    assert row[4:] == ["+25.0", "+25.0", "4", "not distinguishable"]


def test_few_seeds_must_agree():
    """Gains of 12, 4 and 1 points: all above 0, so every resample is, but the t-interval is not."""
    gains = 100 * (np.arange(100) < [[12], [4], [1]])
    _, points, interval, alone, *others = tiny_seeds.comparison_row("one - two", gains, gains)
    assert points == "+5.7" and interval.startswith("[+") and alone == "± 14.1"
    assert others[2:] == ["3", "not distinguishable"]


def test_difference_takes_in_the_tasks():
    """The same 5 of 50 tasks gain in each seed: only the choice of tasks matters."""
    gains = 100 * np.repeat([np.arange(50) < 5], 4, axis=0)
    mean, low, high = tiny_seeds.difference(gains)
    assert mean == 10
    assert (low, high) == (2, 18) or (low, high) == (2, 20)  # binomial(50, 0.1): 1 to 9 or 10 of 50


def test_difference_is_paired():
    """Equal runs differ by exactly nothing, however much tasks and seeds vary; by the same seeds, too."""
    noise = np.random.default_rng(1).random((5, 60)) < np.linspace(0, 1, 60)
    assert tiny_seeds.difference(tiny_seeds.paired(runs_of(noise), runs_of(noise))) == (0, 0, 0)


def test_mean_over_pairs():
    """Two pairs, each of three seeds and 40 tasks: gains of 10, 20, 30 and of 0, 10, 20 points."""
    tasks = np.arange(40)
    results = {
        name: runs_of(tasks < np.array(counts)[:, None])
        for name, counts in {
            "a": [14, 18, 22],
            "b": [10, 10, 10],
            "c": [20, 24, 28],
            "d": [20, 20, 20],
        }.items()
    }
    *single, mean = tiny_seeds.comparison_rows(results, [("a", "b"), ("c", "d")])
    assert [row[1] for row in single] == ["+20.0", "+10.0"]
    assert mean[:2] == ["**mean of these 2**", "+15.0"]
    assert mean[3:] == [
        "± 24.8",
        "+0.0",
        "+15.0",
        "3",
        "not distinguishable",
    ]  # of seeds with 5, 15 and 25: sd 10
    assert len(tiny_seeds.comparison_rows(results, [("a", "b")])) == 1


def test_pairs():
    """40 against SFT, 3 baselines, 4 penalties, 6 batch sizes, 4 ratios, 4 penalised; a critic or none, lam,
    3 times a warm-up, twice 4 epochs; GRPO: 2 and 2 losses, 3 times several rounds, once more epochs, once
    more updates; 6 rewards; DPO twice; SFT again, and 4 bests: 89."""
    runs = {1: np.zeros((3, 4))}
    asked = tiny_seeds.comparisons(dict.fromkeys(["base", *tiny_seeds.configurations()], runs))
    counts = [40, 3, 4, 6, 4, 4, 1, 1, 3, 2, 2, 2, 3, 1, 1, 6, 1, 1, 1, 1, 1, 1]
    assert [len(pairs) for pairs in asked.values()] == counts
    assert [pairs[-1] for pairs in asked.values()][:-5] == [
        ("dpo_twice", "sft"),
        ("rl_batch_alpha0.03", "rl_none_alpha0.03"),
        ("rl_batch_alpha0.03", "rl_batch_alpha0"),
        ("ppo_token_passed_alpha0.03_8", "ppo_token_passed_alpha0.03_4"),
        ("ppo_sequence_all_alpha0.03_8", "ppo_token_all_alpha0.03_8"),
        ("ppo_token_passed_alpha0.03_8", "ppo_token_all_alpha0.03_8"),
        ("ac_lam1_warmup0_epochs1", "ppo_token_all_alpha0.01_8"),
        ("ac_lam0.95_warmup0_epochs1", "ac_lam1_warmup0_epochs1"),
        ("ac_lam1_warmup80_epochs1", "ac_lam1_warmup0_epochs1"),
        ("ac_lam1_warmup40_epochs4", "ac_lam1_warmup40_epochs1"),
        ("grpo_grpo_rounds3_15", "grpo_dapo_rounds3_15"),
        ("grpo_dr_grpo_rounds3_15", "grpo_dapo_rounds3_15"),
        ("grpo_dr_grpo_rounds3_15", "grpo_dr_grpo_rounds1_15"),
        ("grpo_dapo_rounds1_15x4", "grpo_dapo_rounds1_15"),
        ("grpo_dapo_rounds1_60", "grpo_dapo_rounds1_15"),
        ("grpo_dapo_rounds1_15_reward_structured", "grpo_dapo_rounds1_15"),
        ("dpo_twice", "dpo_once"),
    ]
    bests = [pairs[0] for pairs in list(asked.values())[-2:]]
    assert [(one.split("_")[0], two.split("_")[0]) for one, two in bests] == [("grpo", "rl"), ("dpo", "rl")]
    assert "_rounds1_15" in bests[0][0]  # 480 completions, as the others


def flag(command, name):
    return command[command.index(name) + 1]


def test_dpo_twice_starts_from_dpo_once():
    """Its candidates, its pairs and its reference are those of the first run; that one's are of SFT."""
    for name, start in ("dpo_once", "sft"), ("dpo_twice", "dpo_once"):
        sample, pair, train = tiny_seeds.training_commands(name, 3, "out")
        assert flag(sample, "--model_path") == flag(train, "--sft_model") == f"out/checkpoints/{start}_seed3"
        assert flag(sample, "--data_path") == flag(pair, "--task_path") == flag(train, "--train_path")
        rows = f"{flag(sample, '--results_dir')}/{flag(sample, '--exp_name')}_per_task.jsonl"
        assert flag(pair, "--candidates") == rows
        assert flag(train, "--pairs_path") == f"{flag(pair, '--output_dir')}/pairs.jsonl"
        assert flag(train, "--output_dir") == f"out/checkpoints/{name}_seed3"
        assert flag(sample, "--seed") == flag(train, "--seed") == "3"


def test_grpo_samples_as_much_as_the_others():
    commands = tiny_seeds.configurations()
    grpo = {name: command for name, command in commands.items() if name.startswith("grpo")}
    sizes = "--num_updates", "--batch_size", "--samples_per_task"
    sampled = {name: math.prod(int(flag(grpo[name], size)) for size in sizes) for name in grpo}
    assert sampled == {name: 1920 if name.endswith("_60") else 480 for name in grpo}
    ppo = commands["ppo_sequence_all_alpha0.01_8"]
    assert int(flag(ppo, "--num_updates")) * int(flag(ppo, "--batch_size")) == 480


def test_actor_critic_differs_from_ppo_by_its_critic_alone():
    commands = tiny_seeds.configurations()
    ppo = commands["ppo_token_all_alpha0.01_8"]
    for name in (name for name in commands if name.startswith("ac_")):
        for same in "--batch_size", "--learning_rate", "--micro_batch_size", "--max_new_tokens":
            assert flag(commands[name], same) == flag(ppo, same)
        updates, warmup = (int(flag(commands[name], of)) for of in ("--num_updates", "--critic_warmup"))
        assert updates - warmup == int(flag(ppo, "--num_updates")) == 60


def test_runs_wait_for_their_start(tmp_path, monkeypatch):
    """Each script is replaced by one that leaves its output, if what it reads is there."""
    done = []

    def run(command, log):
        inputs = [flag(command, name) for name in ("--sft_model", "--pairs_path") if name in command]
        if command[0] == "eval_humaneval.py":
            inputs += [flag(command, "--model_path")]
            outputs = [f"{flag(command, '--results_dir')}/{flag(command, '--exp_name')}_per_task.jsonl"]
        elif command[0] == "make_pairs.py":
            inputs += [flag(command, "--candidates")]
            outputs = [f"{flag(command, '--output_dir')}/pairs.jsonl"]
        else:
            outputs = [f"{flag(command, '--output_dir')}/run_config.json"]
        assert all((ROOT / path).exists() for path in inputs), command
        time.sleep(0.1 if "train" in command[0] else 0)
        for path in map(Path, outputs):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"finished": true}')
        done.append(command[0])

    monkeypatch.setattr(tiny_seeds, "run", run)
    with ThreadPoolExecutor(2) as pool:
        tiny_seeds.run_all(pool, ["dpo"], [1, 2], tmp_path, "data/mini_hard_test.jsonl")
    assert Counter(done) == {
        "train_sft_lora.py": 2,
        "train_dpo_lora.py": 4,
        "make_pairs.py": 4,
        "eval_humaneval.py": 1 + 2 + 4 + 4,
    }
    assert len(list((tmp_path / "results_mini_hard_test").iterdir())) == 1 + 2 + 4
    assert not (tmp_path / "results").exists()


def test_command_line(finished):
    for seed in 2, 3:
        folder = finished / f"checkpoints/rl_none_alpha0.01_seed{seed}"
        folder.mkdir(parents=True)
        (folder / "rl_train_log.jsonl").write_text(
            '{"seconds": 1, "base_reward": 0.5, "batch_size": 8}\n' * 3
        )
    command = ["benchmarks/tiny_seeds.py", "--summary_only", "--out", finished]
    done = run_script(*command, "--table", finished / "new/t.md")
    assert done.returncode == 0, done.stderr
    text = (finished / "new/t.md").read_text()
    for name in "sft", "rl_none_alpha0", "rl_none_alpha0.01", "ppo_token_all_alpha0.01_4":
        assert f"--output_dir $out/checkpoints/{name}_seed$seed " in text
    assert "rl_batch" not in text  # not finished
    lines = [json.loads(line) for line in (finished / "new/t.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 3 + 3 + 2 + 1
    run = next(line for line in lines if (line["name"], line["seed"]) == ("sft", 3))
    assert run["passed"].count("1") == 22 and len(run["passed"]) == TASKS and run["gen_len"] == [38] * TASKS
    assert lines[0]["passed"].count("1") == 4 and lines[0]["passed_truncated"].count("1") == 16
    for name in "t.png", "learning_curves.png":
        pixels = plt.imread(finished / "new" / name)
        assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.01, "nearly blank"
    done = run_script(*command, "--test", "data/mini_hard_test.jsonl")
    assert done.returncode != 0 and done.stderr.startswith("Nothing is finished in ")
    text = tiny_seeds.summary(*read(finished), "data/mini_hard_test.jsonl")
    assert "tasks of `data/mini_hard_test.jsonl`" in text and "mini_test.jsonl" not in text
    assert "--results_dir $out/results_mini_hard_test --data_path data/mini_hard_test.jsonl" in text
    results, sampled = tiny_seeds.read_runs(finished / "new/t.jsonl")
    assert_equal(results, read(finished)[0])
    assert sampled["rl_none_alpha0.01", 2] == 24 and sampled["sft", 1] == 0
    (finished / "results/base_per_task.jsonl").unlink()
    done = run_script(*command)
    assert done.returncode != 0 and done.stderr.startswith("Nothing is finished")


def assert_equal(some, others):
    assert list(some) == list(others)
    for name, runs in some.items():
        assert list(runs) == list(others[name])
        assert all(np.array_equal(runs[seed], others[name][seed]) for seed in runs)


def test_runs_of_the_table_stay(finished):
    """Those whose files are gone, as of the committed table; a run that was repeated replaces its own."""
    command = ["benchmarks/tiny_seeds.py", "--summary_only", "--out", finished, "--table", finished / "t.md"]
    assert run_script(*command).returncode == 0
    text = (finished / "t.md").read_text()
    for path in (finished / "results").glob("rl_none_alpha0_*"):
        path.unlink()
    assert run_script(*command).returncode == 0
    assert (finished / "t.md").read_text() == text
    evaluated(finished, "rl_none_alpha0_seed3", 40)
    assert run_script(*command).returncode == 0
    assert rows((finished / "t.md").read_text())["rl_none_alpha0"][0].startswith(
        "90.0 "
    )  # 32, 36 and 40 of 40


@pytest.mark.parametrize("name, test", [("seeds", "mini_test"), ("seeds_mini_hard_test", "mini_hard_test")])
def test_committed_table_follows_from_its_runs(name, test):
    runs = tiny_seeds.read_runs(ROOT / f"results/tiny/{name}.jsonl")
    text = tiny_seeds.summary(*runs, f"data/{test}.jsonl")
    assert (ROOT / f"results/tiny/{name}.md").read_text() == text


def test_redraw_touches_the_picture_alone(tmp_path):
    shutil.copy(ROOT / "results/tiny/seeds.jsonl", tmp_path)
    done = run_script("benchmarks/tiny_seeds.py", "--redraw", "--table", tmp_path / "seeds.md")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seeds.jsonl", "seeds.png"]


def test_picture(finished, monkeypatch):
    """Means on the left; on the right the seeds, enlarged on those of RL."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    tiny_seeds.draw(read(finished)[0], finished / "seeds.png")
    whole, zoom = plt.gcf().axes
    names = [label.get_text() for label in whole.get_yticklabels()]
    assert names[:3] == ["base", "SFT", "REINFORCE, alpha 0"]
    assert names[-1] == "PPO, ratio per token, alpha 0.01, batch of 4"
    means = [line.get_xdata()[0] for line in whole.lines if line.get_marker() == "|"]
    assert means == pytest.approx([10, 50, 85, 87.5, 75])
    seeds = [sorted(line.get_xdata()) for line in zoom.lines if line.get_marker() == "o"]
    assert seeds == [[10], [45, 50, 55], [80, 85, 90], [87.5, 87.5], [75]]
    assert zoom.get_xlim() == (73, 92)
