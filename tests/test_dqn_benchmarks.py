"""benchmarks/dqn_seeds.py and dqn_baselines.py: tables of made-up runs, a small run, and the enumeration."""

import sys

import numpy as np
import pytest
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "benchmarks"))
import dqn_baselines
import dqn_seeds

from code_env import CodeEnv

TABLE = ROOT / "results/tiny/dqn_seeds.md"


def row(name, seed, train, steps_to_all=None):
    settings = {"name": name, "seed": seed, "steps": 60_000, "options": "", "train": train, "test": "000"}
    return settings | {"found": 8, "steps_to_all": steps_to_all, "cpu_seconds": 10.0}


def test_tables_of_known_runs():
    """6 and 8 of 8 against 5 in both seeds: gains of 1 and 3, which two seeds cannot tell from nothing."""
    rows = [row("eight_plain", seed, "11111000") for seed in (1, 2)]
    rows += [row("eight_all", 1, "11111100"), row("eight_all", 2, "11111111", 30_000)]
    text = dqn_seeds.summary(rows)
    assert "| eight_plain | 5.0 ± 0.0 (5, 5) | 0.0 ± 0.0 (0, 0) | 8.0 ± 0.0 (8, 8) | -, - | 10 |" in text
    assert "| eight_all | 7.0 ± 12.7 (6, 8) |" in text and "| -, 30,000 |" in text
    [line] = [line for line in text.splitlines() if line.startswith("| eight_all - eight_plain |")]
    assert line.split(" | ")[1] == "+2.0" and line.endswith("| ± 12.7 | 2 | not distinguishable |")
    assert "forty" not in text.split("## Options")[0]


def test_differences_are_paired_by_seed():
    rows = [row("eight_plain", seed, "1" * seed + "0" * (8 - seed)) for seed in (1, 4, 7)]
    rows += [row("eight_all", seed, "1" * (seed + 1) + "0" * (7 - seed)) for seed in (7, 4, 1, 5)]
    cells = dqn_seeds.difference_row(rows, "eight_all", "eight_plain", "train")
    assert cells[1] == "+1.0" and cells[3:5] == ["± 0.0", "3"]


@pytest.mark.skipif(not TABLE.exists(), reason="results/tiny/dqn_seeds.md is not measured yet")
def test_committed_table_follows_from_its_runs():
    assert TABLE.read_text() == dqn_seeds.summary(dqn_seeds.read(TABLE.with_suffix(".jsonl")))


def test_small_run(tmp_path):
    """It trains, is kept, and makes a table; a second start runs nothing."""
    command = ["benchmarks/dqn_seeds.py", "--names", "eight_all", "--seeds", "1", "--steps", "320"]
    command += ["--out", tmp_path / "out", "--table", tmp_path / "new/t.md"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    [line] = dqn_seeds.read(tmp_path / "new/t.jsonl")
    assert (line["name"], line["seed"], line["steps"], len(line["train"]), len(line["test"])) == (
        "eight_all",
        1,
        320,
        8,
        3,
    )
    last = dqn_seeds.read(tmp_path / "out/eight_all_seed1/dqn_train_log.jsonl")[-1]
    assert line["train"].count("1") / 8 == last["train_greedy"] and line["found"] == last["found"]
    assert (tmp_path / "new/t.md").read_text() == dqn_seeds.summary([line])
    assert run_script(*command).stdout == ""


def all_programs(env, index, size, actions=()):
    """(text, rules) of everything that the mask allows within `size` rules, by walking through it."""
    env.reset(options={"index": index, "max_rules": size})
    for action in actions:
        env.step(action)
    if env.outcome:
        return {(env.program, len(actions))}
    legal = np.flatnonzero(env.mask)
    return set().union(*(all_programs(env, index, size, (*actions, action)) for action in legal))


@pytest.mark.parametrize("name, size", [("max_of_three", 3), ("sum_list", 4), ("count_vowels", 3)])
def test_enumeration_writes_what_the_mask_allows(name, size):
    env = CodeEnv(max_rules=size + 1)  # a problem needs more than its least size
    index = [problem.name for problem in env.problems].index(name)
    env.reset(options={"index": index})
    root = env.holes
    written = [(text, k) for k in range(1, size + 1) for (text,) in dqn_baselines.sentences(env, root, k)]
    assert len(written) == len(set(written))
    assert set(written) == all_programs(env, index, size)


def test_enumeration_counts_until_the_first_right_program():
    env = CodeEnv()
    judge = dqn_baselines.Judge()
    index = [problem.name for problem in env.problems].index("add_numbers")
    text, programs, rules = dqn_baselines.enumerate_programs(env, index, judge)
    assert text == "a + b" and 1 < programs < rules < 3 * programs
    assert dqn_baselines.enumerate_programs(env, index, judge, programs - 1) == ("", programs - 1, rules - 3)
