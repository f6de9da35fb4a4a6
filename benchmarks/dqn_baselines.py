"""What train_dqn.py is worth: random and systematic search, REINFORCE and another DQN on the same problems.

    python benchmarks/dqn_baselines.py --seeds 5
    python benchmarks/dqn_baselines.py --seeds 1 --steps 2000 --table /tmp/table.md

First the eight problems of a course, the first ones of data/dqn_train.json. A rule written is a step of the
environment; an evaluation is a program whose tests were run, each once; solved is what passes the tests and,
in the sandbox, the hidden cases.

random policy       legal actions with a limit that is drawn, too: what one program for each problem solves
random search       the same, until the rules, or the evaluations, of the DQN with that seed are used up
enumeration         the programs of a problem by their number of rules, until one is right
REINFORCE           the same network as logits, the same rules, observations and limits
Stable-Baselines3   its DQN, with masks by the subclass below; left out if it is not installed
DQN                 train_dqn.py as it is

Then data/dqn_test.json, on which nothing was trained: --attempts programs for each of its problems, by random
search, by enumeration, and by the agents of benchmarks/dqn_seeds.py that learned from the 40: their first
program is greedy, the others explore.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from dqn_seeds import OUT, problem_files
from safetensors.torch import load_file
from tiny_seeds import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from code_env import CodeEnv, Hole, readable, score_program
from sandbox import Sandbox
from train_dqn import Config, QNetwork, advance, begin, write_programs

try:
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.dqn.policies import DQNPolicy
    from stable_baselines3.dqn.policies import QNetwork as TheirQNetwork
except ImportError:
    DQN = DQNPolicy = TheirQNetwork = object

ROOT = Path(__file__).resolve().parents[1]
CFG = Config()
HOW = {"max_rules": CFG.max_rules, "step_cost": CFG.step_cost}


class Judge:
    """The sandbox: says whether a program that passes the tests passes the hidden cases, too."""

    def __init__(self):
        self.sandbox, self.known = Sandbox(), {}

    def confirms(self, problem, program) -> bool:
        key = problem.name, program
        if key not in self.known:
            self.known[key] = self.sandbox.check(*problem.as_check(program)).outcome
        return self.known[key] == "passed"

    def greedy(self, network, env) -> int:
        """How many problems the greedy programs of a network solve."""
        rows = write_programs(network, env, self.sandbox, np.random.default_rng(0), known=self.known)
        return sum(row["passed"] for row in rows)

    def found(self, env) -> int:
        """How many problems some program solves that was ever evaluated."""
        return sum(
            any(
                min(scores) == 1 and self.confirms(problem, text)
                for (text, _), scores in problem.cache.items()
            )
            for problem in env.problems
        )


def evaluations(env) -> int:
    return sum(len(problem.cache) for problem in env.problems)


# ---- search -----------------------------------------------------------------------------------------------
def write_random(env, rng, index) -> int:
    """Write one program by legal actions alone; the number of its rules."""
    env.reset(options={"index": index})
    while not env.outcome:
        env.step(rng.choice(np.flatnonzero(env.mask)))
    return len(env.used)


def random_search(path, seed, rules=np.inf, programs=np.inf):
    """(what one program each solves on average, environment, rules written) for one of two budgets."""
    env, rng = CodeEnv(path, **HOW, vary_length=True), np.random.default_rng(seed)
    env.np_random = rng
    written, passed, tried = 0, np.zeros(len(env.problems)), np.zeros(len(env.problems))
    while written < rules and evaluations(env) < programs:
        written += write_random(env, rng, int(rng.integers(len(env.problems))))
        tried[env.index] += 1
        passed[env.index] += env.outcome == "passed"
    return (passed / tried.clip(1)).sum(), env, written


def sentences(env, holes, size):
    """All ways to fill these holes with `size` rules in all: a tuple with the text of each."""
    if not holes:
        if size == 0:
            yield ()
        return
    hole, *rest = holes
    for action in np.flatnonzero(env._fitting(hole) <= size - len(rest)).tolist():
        if action == hole.parent and action < len(env.rules) and len(env.rules[action].holes) == 1:
            continue  # as in the mask
        parts, inside = env._filling(action)
        new = [Hole(type, opened or hole.scope, 0, action, 0, 0) for type, opened in inside]
        for texts in sentences(env, [*new, *rest], size - 1):
            own = "".join(text + part for text, part in zip(texts, parts[1:]))
            yield parts[0] + own, *texts[len(new) :]


def enumerate_programs(env, index, judge, limit=1_000_000):
    """(the first right program or "", programs, rules) when it is written, or at the limit."""
    env.reset(options={"index": index})
    root, programs, rules = env.holes[0], 0, 0
    for size in range(1, env.max_rules + 1):
        for (text,) in sentences(env, [root], size):
            programs, rules = programs + 1, rules + size
            if min(score_program(env.problem, text)) == 1 and judge.confirms(env.problem, text):
                return readable(text), programs, rules
            if programs == limit:
                return "", programs, rules
    return "", programs, rules


# ---- other agents -----------------------------------------------------------------------------------------
def reinforce(path, steps, seed, episodes_per_update=64, entropy_weight=0.01):
    """(network, environment): REINFORCE with a running mean of each problem's return as its baseline."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env = CodeEnv(path, **HOW)
    envs = [CodeEnv(env.problems, **HOW, vary_length=True) for _ in range(CFG.num_envs)]
    network = QNetwork(int(env.observation_space.n), int(env.action_space.n), CFG.hidden_size, dueling=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=CFG.learning_rate)
    recent, baselines = np.zeros((2, len(env.problems)))

    def log_probs(observations):
        observations = torch.from_numpy(np.array(observations)).float()
        logits = network(observations)
        return logits.masked_fill(observations[:, -logits.shape[1] :] == 0, -1e9).log_softmax(1)

    def start(each):
        shares = 1 - CFG.focus * recent
        begin(each, {"index": int(rng.choice(len(shares), p=shares / shares.sum()))})

    for each in envs:
        each.np_random = rng
        start(each)
    seen, taken, gains, count = [], [], [], 0
    for _ in range(0, steps, len(envs)):
        with torch.no_grad():
            actions = torch.multinomial(log_probs([each.seen[-1] for each in envs]).exp(), 1)[:, 0].tolist()
        for each, action in zip(envs, actions):
            if not advance(each, action):
                continue
            returns = [sum(each.rewards[t:]) for t in range(len(each.rewards))]
            seen += each.seen[:-1]
            taken += each.actions
            gains += [total - baselines[each.index] for total in returns]
            recent[each.index] += 0.05 * ((each.outcome == "passed") - recent[each.index])
            baselines[each.index] += 0.05 * (returns[0] - baselines[each.index])
            count += 1
            start(each)
        if count >= episodes_per_update:
            log_p = log_probs(seen)  # (steps, actions)
            chosen = log_p.gather(1, torch.tensor(taken)[:, None]).squeeze(1)
            entropy = -(log_p.exp() * log_p).sum(1)
            loss = -(torch.tensor(gains) * chosen + entropy_weight * entropy).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen, taken, gains, count = [], [], [], 0
    env.prepared = [(*each[:3], env.max_rules) for each in env.prepared]  # logits do not rank limits
    return network, env


class MaskedQNetwork(TheirQNetwork):
    """Lowest Q where the mask, the end of the observation, forbids: acting and in the target."""

    def forward(self, observations):
        q = super().forward(observations)
        return q.masked_fill(observations[:, -q.shape[1] :] == 0, -1e9)


class MaskedPolicy(DQNPolicy):
    def make_q_net(self):
        return MaskedQNetwork(**self._update_features_extractor(self.net_args)).to(self.device)


class MaskedDQN(DQN):
    """Explores by legal actions, with an epsilon drawn for each environment."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        actions, state = self.policy.predict(observation, state, episode_start, True)
        for i in np.flatnonzero(self.rng.random(len(actions)) < self.exploration_rate):
            actions[i] = self.rng.choice(np.flatnonzero(observation[i, -self.action_space.n :]))
        return actions, state

    def _sample_action(self, learning_starts, action_noise=None, n_envs=1):
        actions = self.predict(self._last_obs)[0]
        return actions, actions


def stable_baselines(path, steps, seed):
    """(network, environment): the DQN of Stable-Baselines3 with our settings, as far as it has them."""
    env = CodeEnv(path, **HOW)
    envs = make_vec_env(
        lambda: CodeEnv(env.problems, **HOW, vary_length=True), n_envs=CFG.num_envs, seed=seed
    )
    agent = MaskedDQN(
        MaskedPolicy,
        envs,
        learning_rate=CFG.learning_rate,
        buffer_size=CFG.buffer_size,
        learning_starts=CFG.learning_starts,
        batch_size=CFG.batch_size,
        gamma=CFG.gamma,
        train_freq=1,
        target_update_interval=CFG.target_every,
        exploration_fraction=CFG.epsilon_fraction,
        exploration_final_eps=CFG.epsilon_end,
        max_grad_norm=CFG.max_grad_norm,
        policy_kwargs={"net_arch": [CFG.hidden_size] * 2},
        seed=seed,
        device="cpu",
    )
    agent.rng = np.random.default_rng(seed)
    return agent.learn(steps).q_net, env


def dqn(path, steps, seed):
    """(network, environment) of train_dqn.py."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["train_dqn.py", "--train_path", path, "--output_dir", folder]
        sys.argv += ["--seed", str(seed), "--total_steps", str(steps), "--eval_every", str(steps)]
        left = runpy.run_path(str(ROOT / "train_dqn.py"), run_name="__main__")
    return left["network"], left["env"]


# ---- tables -----------------------------------------------------------------------------------------------
def compare_agents(args, judge, path):
    """{name: [(solved by one program each, found, rules, evaluations, CPU seconds) of each seed]}"""
    agents = {"DQN": dqn, "REINFORCE": reinforce, "Stable-Baselines3, DQN with masks": stable_baselines}
    if DQN is object:
        print("Stable-Baselines3 is not installed (pip install stable-baselines3): its row is left out")
        agents.popitem()
    rows = {}

    def add(name, start, solved, env, rules):
        values = solved, judge.found(env), rules, evaluations(env), time.process_time() - start
        rows.setdefault(name, []).append(values)
        print(name, *values, flush=True)

    for seed in range(1, args.seeds + 1):
        for name, agent in agents.items():
            start = time.process_time()
            network, env = agent(path, args.steps, seed)
            add(name, start, judge.greedy(network, env), env, args.steps)
        for what, budget in ("rules", args.steps), ("programs", rows["DQN"][-1][3]):
            start = time.process_time()
            add(f"random search, as many {what}", start, *random_search(path, seed, **{what: budget}))
    return rows


def attempt(args, judge, folder, path, seed):
    """Problems solved by {method: (the first program, any of args.attempts)} with one trained agent."""
    trained = json.loads((folder / "run_config.json").read_text())
    network = QNetwork(**trained["network"])
    network.load_state_dict(load_file(folder / "q_network.safetensors"))
    env, rng = CodeEnv(path, **trained["environment"]), np.random.default_rng(seed)
    epsilons = [0.0] + [args.epsilon] * (args.attempts - 1)
    rows = write_programs(network, env, judge.sandbox, rng, epsilons, judge.known)
    right = np.array([row["passed"] for row in rows]).reshape(-1, args.attempts)  # (problems, attempts)
    env, chance = CodeEnv(path, **HOW, vary_length=True), np.zeros(right.shape, bool)
    env.np_random = rng
    for index, number in np.ndindex(right.shape):
        write_random(env, rng, index)
        chance[index, number] = env.outcome == "passed" and judge.confirms(env.problem, env.program)
    return {"DQN": right, "random policy": chance}


def number(values) -> str:
    """Mean and, in brackets, the value of each seed."""
    return f"{np.mean(values):.1f} ({', '.join(f'{value:.3g}' for value in values)})"


def text_of(args, judge, eight, forty, folders):
    """The whole file: the two tables, and what enumeration did."""
    head = "one program each", "found", "rules written", "programs evaluated", "CPU s"
    table = [["method", *head]]
    for name, runs in compare_agents(args, judge, eight).items():
        solved, found, *others = zip(*runs)
        table.append([name, number(solved), number(found), *(f"{np.mean(each):,.0f}" for each in others)])
    env, start = CodeEnv(eight, **HOW), time.process_time()
    listed = [["problem", "first right program", "programs", "rules"]]
    for index, problem in enumerate(env.problems):
        text, *counts = enumerate_programs(env, index, judge)
        listed.append([problem.name, f"`{text}`", *(f"{count:,}" for count in counts)])
    rules = sum(int(row[3].replace(",", "")) for row in listed[1:])
    seconds = f"{time.process_time() - start:.0f}"
    table.append(["enumeration", "-", str(judge.found(env)), f"{rules:,}", f"{evaluations(env):,}", seconds])
    attempts = [attempt(args, judge, folder, forty, seed) for seed, folder in enumerate(folders, 1)]
    env = CodeEnv(forty, **HOW)
    some = [bool(enumerate_programs(env, i, judge, args.attempts)[0]) for i in range(len(env.problems))]
    unseen = [["method", "first program", f"any of {args.attempts}"]]
    for name in attempts[0]:
        first, solved = zip(
            *((right[:, 0].sum(), right.any(1).sum()) for right in (a[name] for a in attempts))
        )
        unseen.append([name, number(first), number(solved)])
    unseen.append(["enumeration", "-", str(sum(some))])
    return f"""# DQN and other ways to write programs

Mean over the seeds (each seed). Written by `benchmarks/dqn_baselines.py`, which says what the methods are.

## The eight problems, {args.steps:,} rules

{markdown_table(*table)}

Of a random search, "one program each" is the mean over all its programs; found: some program was right.

## Enumeration by size

{markdown_table(*listed)}

## {len(env.problems)} problems that nothing was trained on

{markdown_table(*unseen)}
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60_000, help="rules that each agent writes")
    parser.add_argument("--attempts", type=int, default=50, help="programs for each unseen problem")
    parser.add_argument("--epsilon", type=float, default=CFG.epsilon_attempts, help="of all but the first")
    parser.add_argument("--agents", type=Path, default=OUT, help="the --out of dqn_seeds.py: trained agents")
    parser.add_argument("--table", type=Path, default=ROOT / "results/tiny/dqn_baselines.md")
    args = parser.parse_args()
    folders = [args.agents / f"forty_all_seed{seed}" for seed in range(1, args.seeds + 1)]
    if missing := [str(folder) for folder in folders if not (folder / "run_config.json").exists()]:
        raise SystemExit(f"{missing[0]} is missing: first run benchmarks/dqn_seeds.py --names forty_all")
    torch.set_num_threads(1)
    files = problem_files(args.agents)
    text = text_of(args, Judge(), str(files["eight"][0]), str(files["forty"][1]), folders)
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text, encoding="utf-8")
    print(text)
