"""train_grpo_lora.py through its real command line: groups, rounds, rewards, weights, and what it refuses."""

import json
from types import SimpleNamespace

import pytest
from conftest import run_script
from safetensors.torch import load_file

import sandbox
from sandbox import Result

G = 4  # samples_per_task in all runs here


@pytest.fixture
def train(trained, tmp_path):
    """A function: run with flags; (finished process, log rows, samples)."""

    def run(*flags, name="grpo"):
        folder = tmp_path / name
        shared = ("--sft_model", trained / "sft", "--train_path", trained / "train.jsonl", "--seed", 3)
        sizes = ("--batch_size", 2, "--samples_per_task", G, "--max_new_tokens", 32, "--num_updates", 2)
        done = run_script("train_grpo_lora.py", *shared, *sizes, "--output_dir", folder, *flags)
        assert done.returncode == 0, done.stderr
        logs = [folder / "grpo_train_log.jsonl", folder / "samples.jsonl"]
        return done, *([json.loads(line) for line in path.open()] for path in logs)

    return run


def number(task_id):
    return int(task_id.split("/")[1])


@pytest.fixture
def score_by(monkeypatch):
    """A function: from now on, fraction(task_id, n) scores the n-th completion (from 0) of a task."""

    def install(fraction):
        seen = {}

        def start_scoring(box, task, completion):
            n = seen[task["task_id"]] = seen.get(task["task_id"], -1) + 1
            share = fraction(task["task_id"], n)
            result = Result("passed" if share == 1 else "failed", fraction=share)
            return SimpleNamespace(result=lambda: result)

        monkeypatch.setattr(sandbox, "start_scoring", start_scoring)
        monkeypatch.setattr(sandbox, "preflight", lambda *arguments: "preflight: left out")

    return install


def of_three_kinds(task_id, n):
    """A quarter of the tasks always passes, a quarter never, and of the others every second completion."""
    return [1, n % 2, 0, n % 2][number(task_id) % 4]


def groups(samples):
    parts = [samples[i : i + G] for i in range(0, len(samples), G)]
    assert all(len({sample["task_id"] for sample in part}) == 1 for part in parts)
    return parts


def is_mixed(group):
    return len({sample["reward"] for sample in group}) > 1


def test_flat_groups_are_replaced_and_all_draws_are_counted(train, score_by):
    score_by(of_three_kinds)
    _, log, samples = train("--max_rounds", 4, "--num_updates", 3)
    drawn = [group[0]["task_id"] for group in groups(samples)]
    assert len(drawn) > 6 and len(set(drawn)) == min(len(drawn), 24)  # the stream goes on where it was
    for row in log:
        parts = groups([sample for sample in samples if sample["update"] == row["update"]])
        mixed = [i for i, group in enumerate(parts) if is_mixed(group)]
        kept = [i for i, group in enumerate(parts) if any(sample["weight"] for sample in group)]
        assert len(parts) in (2, 4, 6, 8) and row["num_completions"] == G * len(parts)
        assert len([i for i in mixed if i < len(parts) - 2]) < 2  # no round more than needed
        assert kept[:2] == sorted(kept) and len(kept) == 2
        assert kept == mixed[:2] if len(mixed) >= 2 else set(mixed) <= set(kept)
        passed = [[sample["outcome"] == "passed" for sample in group] for group in parts]
        assert row["avg_base_reward"] == pytest.approx(sum(map(sum, passed)) / (G * len(parts)))
        assert row["any_passed"] == pytest.approx(sum(map(any, passed)) / len(parts))
        assert row["flat"] == pytest.approx(1 - len(mixed) / len(parts))
    assert max(row["num_completions"] for row in log) > 2 * G


def test_one_round_is_the_first_of_several(train, score_by):
    score_by(of_three_kinds)
    _, _, several = train("--max_rounds", 4, "--num_updates", 1)
    _, log, one = train("--num_updates", 1, name="one")
    assert log[0]["num_completions"] == 2 * G
    assert [row["completion"] for row in one] == [row["completion"] for row in several[: 2 * G]]
    assert len({row["completion"] for row in one}) > 2  # the programs of a group are not the same


def test_advantages_are_of_the_group(train, score_by):
    score_by(lambda task_id, n: n % 4 == 0)  # 1 of 4 passes: mean 1/4, std 1/2
    _, _, samples = train("--num_updates", 1)
    for sample in samples:
        assert sample["advantage"] == pytest.approx((sample["reward"] - 0.25) / 0.5001, rel=1e-5)
    assert [sum(sample["reward"] for sample in group) for group in groups(samples)] == [1, 1]


def test_nothing_to_learn_is_said_and_nothing_is_learnt(train, score_by, trained, tmp_path):
    score_by(lambda task_id, n: number(task_id) % 2)
    done, log, _ = train("--max_rounds", 2)
    assert [row["epochs"] for row in log] == [0, 0] and [row["flat"] for row in log] == [1, 1]
    assert [row["num_completions"] for row in log] == [4 * G, 4 * G]
    assert (done.stdout + done.stderr).count("nothing to learn") == 2
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (trained / "sft", tmp_path / "grpo")
    )
    assert all((tensor == after[name]).all() for name, tensor in before.items())
    assert json.loads((tmp_path / "grpo/run_config.json").read_text())["finished"]


REWARDS = [("binary", {0, 1}), ("pass_rate", {0.25, 0.5, 1}), ("structured", {0.025, 0.35, 1})]


@pytest.mark.parametrize("reward, values", REWARDS)
def test_reward(train, score_by, reward, values):
    score_by(lambda task_id, n: [0.25, 0.5, 1, 1][n % 4])
    _, log, samples = train("--num_updates", 1, "--reward", reward)
    assert sorted({sample["reward"] for sample in samples}) == pytest.approx(sorted(values))
    assert log[0]["avg_base_reward"] == 0.5  # of those that pass all, whatever is rewarded
    assert log[0]["avg_pass_rate"] == (0.25 + 0.5 + 1 + 1) / 4  # and of single tests
    assert log[0]["avg_reward"] == pytest.approx(sum(sample["reward"] for sample in samples) / 8)


def test_what_was_cut_off_can_be_left_out_of_the_loss(train, score_by):
    score_by(lambda task_id, n: n % 2)
    _, _, samples = train("--num_updates", 1, "--mask_truncated", True, "--max_new_tokens", 64)
    at_limit = [sample["hit_token_limit"] for sample in samples]
    assert any(at_limit) and not all(at_limit)
    assert [sample["weight"] == 0 for sample in samples] == at_limit
    assert all(sample["advantage"] for sample in samples)
    assert sum(sample["weight"] * sample["gen_len"] for sample in samples) == pytest.approx(1)  # dapo


def test_kl_is_to_the_sft_adapter(train, score_by, trained, tmp_path):
    score_by(lambda task_id, n: n % 2)
    flags = "--learning_rate", 1e-2, "--num_updates", 4
    _, free, _ = train(*flags)
    assert all(row["kl_ref"] == 0 for row in free)  # not measured
    _, log, _ = train(*flags, "--kl_coef", 1, name="pulled")
    assert log[0]["kl_ref"] < 1e-9 < 1e-4 < log[1]["kl_ref"]
    assert log[0]["grad_norm"] == pytest.approx(free[0]["grad_norm"], rel=1e-4)  # at SFT itself nothing pulls
    sft, ours, pulled = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (trained / "sft", tmp_path / "grpo", tmp_path / "pulled")
    )
    distances = [sum((x[name] - sft[name]).square().sum() for name in sft) for x in (ours, pulled)]
    assert 0 < distances[1] != distances[0]


def test_flat_groups_are_still_pulled_to_sft(train, score_by):
    score_by(lambda task_id, n: 1)
    _, log, _ = train("--kl_coef", 1)
    assert [row["epochs"] for row in log] == [1, 1]


def test_ratio_stays_1_while_the_policy_does(train, score_by):
    score_by(lambda task_id, n: n % 2)
    _, log, _ = train("--learning_rate", 1e-12, "--grpo_epochs", 3)
    assert all(row["epochs"] == 3 and row["clip_frac"] == 0 and row["approx_kl"] < 1e-8 for row in log)
    assert all(abs(row["loss"]) > 0 and row["grad_norm"] > 0 for row in log)


@pytest.mark.parametrize("loss_type, is_gspo", [("dapo", False), ("grpo", True)])
def test_micro_batch_size_changes_no_loss_and_no_gradient(train, score_by, loss_type, is_gspo):
    score_by(lambda task_id, n: n % 4 == 0)
    flags = ["--num_updates", 1, "--grpo_epochs", 2, "--kl_coef", 0.1, "--learning_rate", 1e-3]
    flags += [
        "--ratio_level",
        "sequence_mean",
        "--loss_type",
        loss_type,
        "--clip_low",
        3e-4,
        "--clip_high",
        4e-4,
    ]
    done, log, _ = train(*flags, "--micro_batch_size", 1)
    assert log[0]["grad_norm"] > 0 and log[0]["clip_frac"] > 0
    assert ("warning: GSPO has --loss_type grpo" in done.stdout) != is_gspo
    for field, value in train(*flags, "--micro_batch_size", 3, name="more")[1][0].items():
        assert field == "seconds" or value == pytest.approx(log[0][field], rel=1e-4, abs=1e-6), field


@pytest.mark.parametrize(
    "flag, value, part",
    [
        ("--samples_per_task", 1, "--samples_per_task at least 2"),
        ("--clip_low", 1, "--clip_low below 1"),
        ("--kl_coef", -0.1, "--kl_coef at least 0"),
        ("--max_rounds", 0, "--max_rounds must be above 0"),
        ("--grpo_epochs", 0, "--grpo_epochs must be above 0"),
        ("--loss_type", "bnpo", "invalid choice"),
        ("--ratio_level", "sequence", "invalid choice"),  # PPO's, the product over the tokens
        ("--baseline", "batch", "unrecognized arguments"),
        ("--length_penalty_alpha", 0.01, "unrecognized arguments"),
    ],
)
def test_wrong_flags(flag, value, part):
    done = run_script("train_grpo_lora.py", flag, value)
    assert done.returncode and part in done.stderr.splitlines()[-1]


def test_nothing_overwrites_the_adapter_it_starts_from(trained):
    flags = "--sft_model", trained / "sft", "--output_dir", trained
    done = run_script("train_grpo_lora.py", *flags)
    assert done.returncode == 1 and "nothing may overwrite that adapter" in done.stderr.splitlines()[-1]
