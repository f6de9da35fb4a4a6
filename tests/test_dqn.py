"""train_dqn.py: targets, replay and exploration by hand-computed numbers; short runs by the command line."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from code_env import CodeEnv
from train_dqn import (
    Config,
    QNetwork,
    Replay,
    best_limit,
    choose,
    epsilon_at,
    masked_argmax,
    n_step_returns,
    td_target,
)

EASY = ["add_numbers", "sum_list", "sort_list"]


# ---- network and target ----
def test_target_by_hand():
    """Row 0: one network; row 1: Double's choice by the other one; row 2: the end, where nothing is legal."""
    rewards, discounts = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([0.9, 0.9, 0.0])
    q = torch.tensor([[5.0, 2.0, 9.0], [1.0, 3.0, 9.0], [7.0, 7.0, 7.0]])
    q_target = torch.tensor([[4.0, 6.0, 9.0], [8.0, 2.0, 9.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    double = td_target(rewards, discounts, q, q_target, mask, True)
    assert torch.allclose(double, torch.tensor([1 + 0.9 * 4, 1 + 0.9 * 2, 0.5]))
    plain = td_target(rewards, discounts, q, q_target, mask, False)
    assert torch.allclose(plain, torch.tensor([1 + 0.9 * 6, 1 + 0.9 * 8, 0.5]))


def test_lower_bound_counts_where_it_is_larger():
    args = torch.zeros(2), torch.ones(2), torch.ones(2, 1), torch.ones(2, 1), torch.ones(2, 1), True
    assert td_target(*args, torch.tensor([0.5, 2.0])).tolist() == [1.0, 2.0]
    assert td_target(*args).tolist() == [1.0, 1.0]


def test_end_of_an_episode_has_no_infinity():
    nothing = torch.full((1, 2), torch.inf)
    target = td_target(torch.ones(1), torch.zeros(1), nothing, nothing, torch.zeros(1, 2), True)
    assert target.tolist() == [1.0]


def test_dueling_subtracts_the_mean_of_legal_actions():
    torch.manual_seed(0)
    network = QNetwork(6, 4, 8, dueling=True)
    seen = torch.tensor([[1.0, 0, 1, 1, 0, 1], [0.0, 1, 0, 1, 1, 0]])  # the last four are the mask
    q = network(seen)
    value = network.value(network.body(seen))
    mask = seen[:, -4:]
    means = (q * mask).sum(1) / mask.sum(1)
    assert torch.allclose(means, value[:, 0], atol=1e-6)  # the advantages of legal actions sum to 0
    with torch.no_grad():
        network.advantage.bias += 3  # a constant in all advantages is none
    assert torch.allclose(network(seen), q, atol=1e-5)
    assert not hasattr(QNetwork(6, 4, 8, dueling=False).value, "weight")


def test_greedy_and_random_actions_are_legal():
    rng = np.random.default_rng(0)
    assert masked_argmax(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[0, 1, 1]])).tolist() == [2]
    for seed in range(200):
        torch.manual_seed(seed)
        network = QNetwork(12, 7, 8, dueling=seed % 2 == 0)
        seen = rng.integers(0, 2, (16, 12))
        seen[np.arange(16), -1 - rng.integers(0, 7, 16)] = 1  # at least one is legal
        actions, q = choose(network, seen, rng.random(16), rng)
        assert seen[np.arange(16), np.array(actions) - 7].all() and len(q) == 16


def test_epsilon_is_drawn_for_each_row():
    network, rng = QNetwork(3, 3, 4, dueling=False), np.random.default_rng(0)
    greedy = choose(network, [[1, 1, 1]], 0.0, rng)[0][0]
    actions = np.array([choose(network, [[1, 1, 1]] * 2, np.array([0.0, 1.0]), rng)[0] for _ in range(600)])
    assert (actions[:, 0] == greedy).all()
    assert np.abs(np.bincount(actions[:, 1], minlength=3) / 600 - 1 / 3).max() < 0.08  # uniform


# ---- replay ----
def test_n_step_returns_at_the_end_of_an_episode():
    assert list(n_step_returns([1.0, 2.0, 4.0], 2, 0.5)) == [(2.0, 0.25, 2), (4.0, 0.0, 3), (4.0, 0.0, 3)]
    assert list(n_step_returns([1.0, 2.0], 1, 0.5)) == [(1.0, 0.5, 1), (2.0, 0.0, 2)]
    rng = np.random.default_rng(0)
    for _ in range(50):  # against a slow loop
        rewards, n = list(rng.normal(size=rng.integers(1, 9))), int(rng.integers(1, 10))
        for t, (total, discount, last) in enumerate(n_step_returns(rewards, n, 0.9)):
            slow, k = 0.0, 0
            while k < n and t + k < len(rewards):
                slow += 0.9**k * rewards[t + k]
                k += 1
            ended = t + k == len(rewards)
            assert total == pytest.approx(slow) and last == t + k
            assert discount == pytest.approx(0.0 if ended else 0.9**k)


def episode(number, length):
    """Observations of 11 bits that tell the episode and the step."""
    seen = [[int(bit) for bit in f"{number:06b}{t:05b}"] for t in range(length + 1)]
    return seen, [10 * number + t for t in range(length)], [float(t) for t in range(length)]


def test_replay_is_a_ring_and_gives_back_what_it_got():
    replay, expected = Replay(10, 11, 0.6), {}
    for number in range(6):
        seen, actions, rewards = episode(number, 4)
        replay.add_episode(seen, actions, rewards, 2, 0.5)
        for t in range(4):
            expected[(4 * number + t) % 10] = number, t
    for row, (number, t) in expected.items():
        seen, actions, rewards = episode(number, 4)
        now, later, action, total, discount, returned = replay.batch(torch.tensor([row]))
        steps = list(n_step_returns(rewards, 2, 0.5))[t]
        assert (
            now[0].tolist() == seen[t] and later[0].tolist() == seen[steps[2]] and action.item() == actions[t]
        )
        assert (total.item(), discount.item()) == pytest.approx(steps[:2])
        assert returned.item() == pytest.approx(sum(0.5 ** (i - t) * rewards[i] for i in range(t, 4)))


def test_priorities_and_weights_against_a_slow_reference():
    replay = Replay(8, 11, 0.5)
    replay.add_episode(*episode(1, 4), 1, 0.9)
    errors = torch.tensor([0.5, -2.0, 0.0, 1.0])
    replay.update(torch.arange(4), errors)
    replay.add_episode(*episode(2, 1), 1, 0.9)
    priorities = [abs(error) + 1e-3 for error in errors.tolist()] + [2.001]  # a new one has the largest
    powers = [priority**0.5 for priority in priorities]
    probabilities = [power / sum(powers) for power in powers]
    rng, counts = np.random.default_rng(0), np.zeros(5)
    for _ in range(100):
        rows, weights = replay.sample(200, 0.4, rng)
        counts += np.bincount(rows, minlength=5)
        slow = [(5 * probabilities[row]) ** -0.4 for row in rows]
        assert torch.allclose(weights, torch.tensor(slow) / max(slow), atol=1e-5)
    assert np.abs(counts / counts.sum() - probabilities).max() < 0.01
    uniform = Replay(8, 11, 0.0)
    uniform.add_episode(*episode(1, 4), 1, 0.9)
    uniform.update(torch.arange(4), errors)
    assert uniform.sample(50, 0.4, rng)[1].tolist() == [1.0] * 50


# ---- schedule ----
def test_epsilon_schedule():
    cfg = SimpleNamespace(epsilon_start=1.0, epsilon_end=0.1, epsilon_fraction=0.3, total_steps=1000)
    assert [epsilon_at(step, cfg) for step in (0, 150, 300, 999)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_the_chain_of_five_states_reaches_its_exact_values():
    """Tabular: with these targets alone Q becomes the optimum; the bound never lifts it above."""
    gamma, q = 0.9, torch.zeros(5, 2)  # action 1 goes right, action 0 stays; the right end pays 1
    for _ in range(200):
        for state in range(5):
            for action in range(2):
                next_state, ended = state + action, state + action == 5
                later = q[None, min(next_state, 4)]
                seen = gamma ** (4 - state) if action else gamma ** (5 - state)  # the best return from here
                args = torch.tensor([float(ended)]), torch.tensor([0.0 if ended else gamma])
                bound = torch.tensor([seen])
                q[state, action] = td_target(*args, later, later, torch.ones(1, 2), True, bound)[0]
    assert q[:, 1].tolist() == pytest.approx([gamma ** (4 - state) for state in range(5)])
    assert q[:, 0].tolist() == pytest.approx([gamma ** (5 - state) for state in range(5)])


# ---- evaluation ----
def test_greedy_programs_take_the_limit_whose_end_is_worth_most():
    """Q of the last rule, less what all cost: 0.5 - 0.09 is below 0.45 - 0.03. Promises do not count."""
    env = CodeEnv(max_rules=4)
    index = [problem.name for problem in env.problems].index("add_numbers")
    add = [rule.parts for rule in env.rules].index(("(", " + ", ")"))
    used, left, mask = (env.at[name] for name in ("used", "rules_left", "mask"))

    def network(observations):
        first = observations[:, used:left].sum(1) == 0
        limit = observations[:, left:mask].argmax(1)
        q = torch.zeros(len(observations), int(env.action_space.n))
        q[:, len(env.rules)] = torch.where(first, torch.where(limit == 2, 0.45, 0.1), 0.5)  # the parameter a
        q[:, add] = torch.where(first & (limit == 4), 0.9, -1.0)
        return q

    rng = np.random.default_rng(0)
    assert best_limit(network, env, index, range(1, 5), rng) == 2
    assert best_limit(network, env, index, range(3, 5), rng) == 4 and env.program == "(a + a)"


# ---- runs ----
@pytest.fixture
def stub(monkeypatch):
    """In place of the sandbox: confirms everything, at once, where only what is learned is tested."""
    passed = SimpleNamespace(outcome="passed")
    sandbox = SimpleNamespace(report="", check=lambda *job: passed, close=lambda: None)
    monkeypatch.setattr("sandbox.Sandbox", lambda: sandbox)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with three easy problems, and the arguments of a short run on them."""
    folder = tmp_path_factory.mktemp("dqn")
    problems = json.loads((ROOT / "data/dqn_train.json").read_text())
    by_name = {problem["function_name"]: problem for problem in problems}
    (folder / "easy.json").write_text(json.dumps([by_name[name] for name in EASY]))
    return folder


def train(work, name, *more):
    files = "--train_path", work / "easy.json", "--test_path", work / "easy.json", "--output_dir", work / name
    return run_script("train_dqn.py", *files, "--learning_starts", 320, *more)


@pytest.fixture(scope="module")
def solved(work):
    done = train(
        work, "solved", "--total_steps", 6400, "--eval_every", 3200, "--max_rules", 5, "--train_every", 8
    )
    assert done.returncode == 0, done.stderr
    return done


def test_three_easy_problems_are_solved(work, solved):
    log = [json.loads(line) for line in (work / "solved/dqn_train_log.jsonl").read_text().splitlines()]
    assert log[-1]["train_greedy"] == 1.0 and log[-1]["found"] == 3
    assert log[-1]["step"] == 6400 and 0 < log[-1]["q_mean"] < 1
    config = json.loads((work / "solved/run_config.json").read_text())
    assert config["method"] == "DQN" and config["finished"] and len(config["grammar_sha256"]) == 64
    assert (work / "solved/best/q_network.safetensors").is_file()
    best = json.loads((work / "solved/best/run_config.json").read_text())
    assert best["step"] == max(log, key=lambda row: row["train_greedy"])["step"]  # the first, if several


def test_evaluation_is_read_by_compare_runs(work, solved):
    done = run_script(
        "train_dqn.py", "--evaluate", work / "solved", "--problems", work / "easy.json", "--render",
        "--attempts", 2, "--results", work / "results/easy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "def sum_list(nums): return <int>\n" in done.stdout
    assert "solved: 3 of 3 greedily, 3 within 2; 0 pass their tests only" in done.stdout
    rows = [json.loads(line) for line in (work / "results/easy_per_task.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == [name for name in EASY for _ in range(2)]
    done = run_script("compare_runs.py", "--results_dir", work / "results")
    assert done.returncode == 0, done.stderr
    assert "| easy" in done.stdout and "DQN" in done.stdout
    assert (work / "results/learning_curves.png").stat().st_size > 10_000


def state_of(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    return {name: value for name, value in state.items() if name not in ("seconds", "log_sizes")}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, (list, tuple)) else a == b


def test_runs_are_repeated_and_resumed_bit_by_bit(work, stub, monkeypatch):
    """Uninterrupted; the same with other evaluations; killed after a state was saved, then resumed."""
    short = "--total_steps", 1920, "--buffer_size", 700, "--save_every", 640, "--max_rules", 5
    assert train(work, "whole", *short, "--eval_every", 960).returncode == 0
    evaluations, save = [], torch.save

    def stop(*args):
        save(*args)
        evaluations.append(args)
        if len(evaluations) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", stop)
        train(work, "parts", *short, "--eval_every", 960)
    assert state_of(work / "parts")["step"] == 640  # what was logged after it is dropped
    done = train(work, "parts", *short, "--eval_every", 960, "--resume")
    assert done.returncode == 0, done.stderr
    whole, parts = state_of(work / "whole"), state_of(work / "parts")
    assert equal(whole, parts) and whole["step"] == 1920
    logs = [(work / name / "samples.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert "is finished" in train(work, "parts", *short, "--eval_every", 960, "--resume").stdout
    done = train(work, "parts", *short, "--eval_every", 960, "--resume", "--gamma", 0.9)
    assert done.returncode == 1 and "made with another gamma" in done.stderr

    assert train(work, "often", *short, "--eval_every", 320).returncode == 0
    often = state_of(work / "often")  # evaluating more often changes nothing of the run
    assert equal(often["network"], whole["network"]) and often["rng"] == whole["rng"]
    assert train(work, "seed", *short, "--eval_every", 960, "--seed", 2).returncode == 0
    assert not equal(state_of(work / "seed")["network"], whole["network"])


def test_target_network_is_copied_every_so_many_steps(work, stub):
    short = "--total_steps", 1280, "--save_every", 320, "--eval_every", 1280, "--max_rules", 5
    assert train(work, "copied", *short, "--target_every", 640).returncode == 0
    assert train(work, "never", *short, "--target_every", 9999).returncode == 0
    copied, never = state_of(work / "copied"), state_of(work / "never")
    assert equal(copied["network"], copied["target"])  # the last step is a multiple of 640
    assert not equal(never["network"], never["target"])


SHORT = "--total_steps", 640, "--train_every", 32, "--eval_every", 640, "--max_rules", 5, "--batch_size", 16


def test_an_update_by_hand(work, stub):
    """The last of a run: its batch, the target network that was never copied, and what became of both."""
    done = train(work, "hand", *SHORT, "--target_every", 9999, "--double", False, "--gamma", 0.9)
    assert done.returncode == 0, done.stderr
    run = done.variables
    next_q, mean = run["target"](run["later"]), 0.0
    for i in range(16):
        legal = run["later"][i, -run["num_actions"] :] == 1
        best = next_q[i][legal].max().item() if legal.any() else 0.0
        target = max(run["rewards"][i] + 0.9 * best * legal.any(), run["returns"][i])
        assert run["targets"][i].item() == pytest.approx(target.item(), abs=1e-5)
        error = abs(target - run["q"][i]).item()
        mean += run["weights"][i].item() * (error**2 / 2 if error < 1 else error - 0.5) / 16
        power = run["replay"].powers[run["rows"][i]].item()
        assert power == pytest.approx((error + 1e-3) ** 0.6, rel=1e-3)
    assert run["loss"].item() == pytest.approx(mean, rel=1e-4) and run["weights"].min() < 1
    assert run["beta"] == pytest.approx(0.4 + 0.6 * 608 / 640)


def test_every_setting_has_an_effect(work, stub):
    """A run with another value of it ends with another network."""
    assert train(work, "same", *SHORT).returncode == 0
    before = state_of(work / "same")["network"]
    others = "--double False", "--dueling False", "--per_alpha 0", "--per_beta 1", "--n_step 3", "--gamma 0.5"
    others += "--lower_bound False", "--epsilon_unsolved 0", "--epsilon_start 0.8", "--focus 0"
    others += "--vary_length False", "--max_grad_norm 0.001", "--target_every 32", "--learning_starts 64"
    others += "--reward quality", "--graded False", "--step_cost 0", "--shaping True", "--buffer_size 100"
    for other in others:
        done = train(work, "other", *SHORT, *other.split())
        assert done.returncode == 0, done.stderr
        assert not equal(state_of(work / "other")["network"], before), other


def test_what_passes_its_tests_only_is_not_solved(work):
    """The hidden cases refute `n`, which all tests allow."""
    entry = {"function_name": "f", "docstring": "words", "parameters": ["n"]}
    entry |= {"test_cases": [[[1], 1], [[2], 2]], "hidden_cases": [[[-3], 7]]}
    (work / "fooled.json").write_text(json.dumps([entry]))
    entry["hidden_cases"] = [[[5], 5]]  # the same name, the same program, and there it is right
    (work / "right.json").write_text(json.dumps([entry]))
    files = "--train_path", work / "fooled.json", "--test_path", work / "right.json"
    done = train(work, "fooled", *SHORT, "--max_rules", 2, *files)
    assert done.returncode == 0, done.stderr
    row = json.loads((work / "fooled/dqn_train_log.jsonl").read_text())
    assert (row["found"], row["train_greedy"], row["test_greedy"]) == (1, 0.0, 1.0)
    assert row["avg_base_reward"] > 0
    done = run_script("train_dqn.py", "--evaluate", work / "fooled", "--problems", work / "fooled.json")
    assert "solved: 0 of 1 greedily, 0 within 1; 1 pass their tests only, not the hidden" in done.stdout
    (work / "grammar.txt").write_text("int: 1\n")
    config = json.loads((work / "fooled/run_config.json").read_text())
    config["environment"]["grammar"] = config["grammar"] = str(work / "grammar.txt")
    (work / "fooled/run_config.json").write_text(json.dumps(config))
    done = run_script("train_dqn.py", "--evaluate", work / "fooled", "--problems", work / "fooled.json")
    assert done.returncode == 1 and "its grammar has changed since" in done.stderr


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--focus", 1], "focus below 1"),
        (["--epsilon_start", -1], "between 0 and 1"),
        (["--num_envs", 0], "--num_envs must be above 0"),
        (["--train_path", "none.json"], "none.json"),
        (["--reward", "money"], "the reward is one of tests, quality, combined"),
        (["--evaluate", "nowhere"], "cannot evaluate nowhere as a folder of train_dqn.py"),
        (["--max_rules", 1], "no program of up to 0 rules"),
        (["--grammar", "none.txt"], "--grammar none.txt cannot be read"),
        (["--output_dir", "README.md"], "cannot write to --output_dir README.md"),
    ],
)
def test_mistakes_end_in_one_line(work, flags, part):
    done = train(work, "broken", *flags)
    assert done.returncode == 1 and part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_config_names_all_parts():
    fields = Config.__dataclass_fields__
    assert {
        "double",
        "dueling",
        "per_alpha",
        "n_step",
        "target_every",
        "epsilon_start",
        "lower_bound",
    } <= set(fields)
    assert math.isclose(Config().gamma, 0.99)
