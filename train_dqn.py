"""Train a Deep Q-Network (Mnih et al. 2015) that writes Python functions rule by rule, in minutes on a CPU.

    minimise  mean of w Huber(y - Q(s, a)),   w = (N P)**-beta / max w,   P ~ |y - Q|**per_alpha
    y = max(R + discount Q'(s', argmax_legal a' Q(s', a')), G)
    Q'        the target network, a copy of Q every target_every steps        DQN, doi:10.1038/nature14236
    argmax Q  Double DQN; without double, argmax Q'                           arXiv:1509.06461
    Q         dueling: V + A - mean_legal A                                   arXiv:1511.06581
    P         prioritised replay; drawn uniformly with per_alpha 0            arXiv:1511.05952
    R         n_step rewards, discounted; discount = gamma**n, 0 at the end   Rainbow, arXiv:1710.02298
    G         lower_bound: the return really seen from here on. The world is deterministic, so no optimal
              value lies below it                                             arXiv:1611.01606

An action fills the leftmost hole of a program (code_env.py). The mask of legal actions is applied in three
places: exploring, acting, and the maximum over next actions. No reference solution takes part.

    python train_dqn.py --output_dir checkpoints/dqn
    python train_dqn.py --evaluate checkpoints/dqn --problems my_problems.json --render

Writes to --output_dir: q_network.safetensors, run_config.json, dqn_train_log.jsonl, samples.jsonl, state.pt
(for --resume), best/ (which solved most training problems; solved: tests and hidden cases, in the sandbox).
"""

import hashlib
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from code_env import CodeEnv, readable
from sandbox import Sandbox, open_log, parse_config, stop_with

ENVIRONMENT = "grammar max_rules reward graded step_cost shaping gamma"  # what of Config is its business

# ---- hyperparameters --------------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --n_step 3 --double False"""

    # -- files --
    train_path: str = "data/dqn_train.json"
    test_path: str = "data/dqn_test.json"  # evaluated while training, never trained on
    grammar: str = "data/dqn_grammar.txt"
    output_dir: str = "checkpoints/dqn"
    # -- evaluation of a trained agent --
    evaluate: str = ""  # its folder: evaluate on `problems`, and stop
    problems: str = "data/dqn_test.json"  # of --evaluate; training has train_path
    results: str = ""  # for instance results/dqn: also write results/dqn_per_task.jsonl and dqn_metrics.json
    attempts: int = 1  # programs for each problem: the first is greedy, the others explore
    epsilon_attempts: float = 0.3  # of those others
    render: bool = False  # show every program as it grows
    # -- environment --
    max_rules: int = 7
    vary_length: bool = True  # each episode has a limit of its own up to max_rules: short programs come first
    focus: float = 0.8  # how much rarer a problem is drawn that is always solved
    reward: str = "tests"  # or quality, combined: see reward_of in code_env.py
    graded: bool = True  # a wrong list or string counts for what it shares with the right one
    step_cost: float = 0.03  # per rule
    shaping: bool = False  # potential-based; costs one run of the tests per rule, not per program
    # -- DQN --
    double: bool = True
    dueling: bool = True
    per_alpha: float = 0.6  # 0: replay draws uniformly
    per_beta: float = 0.4  # rises to 1 over the run
    n_step: int = 1  # max_rules: returns of whole episodes
    lower_bound: bool = True
    gamma: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    epsilon_fraction: float = 0.3  # of all steps until epsilon_end
    epsilon_unsolved: float = 0.7  # at least so much on problems that no episode has solved
    learning_rate: float = 1e-3
    batch_size: int = 128
    buffer_size: int = 100_000
    learning_starts: int = 2_000
    train_every: int = 32  # environment steps per update
    target_every: int = 2_000  # environment steps between copies to the target network
    hidden_size: int = 128
    max_grad_norm: float = 10.0
    num_envs: int = 32  # episodes at a time: one call of the network for all
    total_steps: int = 200_000
    seed: int = 1
    # -- long runs and logs --
    resume: bool = False  # continue from output_dir/state.pt
    save_every: int = 50_000  # steps
    eval_every: int = 10_000  # steps per line of the log, with a greedy program for every problem


# ---- network ----------------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    """Q of all actions; dueling: value plus what each action has above the mean of the legal ones."""

    def __init__(self, observation_size: int, num_actions: int, hidden_size: int, dueling: bool):
        super().__init__()
        sizes = observation_size, hidden_size, hidden_size
        self.body = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]), nn.ReLU())
        self.advantage = nn.Linear(hidden_size, num_actions)
        self.value = nn.Linear(hidden_size, 1) if dueling else None

    def forward(self, observations):
        """(B, observation_size), which ends with the mask -> (B, num_actions), with meaning where legal."""
        hidden = self.body(observations)
        q = self.advantage(hidden)
        if self.value is None:
            return q
        mask = observations[:, -q.shape[1] :]
        mean = (q * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.value(hidden) + q - mean


def masked_argmax(q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The best legal action of each row, (B,); where none is legal, after the end, any."""
    return q.masked_fill(mask == 0, -torch.inf).argmax(1)


# ---- replay -----------------------------------------------------------------------------------------------


def n_step_returns(rewards: list, n: int, gamma: float):
    """Yield (R, discount, index of the next state) for each step of one episode; discount 0 is its end."""
    for t in range(len(rewards)):
        last = min(t + n, len(rewards))
        total = sum(gamma ** (i - t) * rewards[i] for i in range(t, last))
        yield total, gamma**n if last < len(rewards) else 0.0, last


class Replay:
    """A ring of transitions, drawn with probabilities ~ priority**alpha. Observations are packed bits."""

    def __init__(self, capacity: int, observation_size: int, alpha: float):
        self.size, self.alpha, self.added, self.largest = observation_size, alpha, 0, 1.0
        self.bits = torch.zeros(capacity, 2, (observation_size + 7) // 8, dtype=torch.uint8)  # before, after
        self.actions = torch.zeros(capacity, dtype=torch.long)
        self.numbers = torch.zeros(capacity, 3)  # R, discount, return of the episode from here
        self.powers = torch.zeros(capacity, dtype=torch.double)  # priority**alpha

    def add_episode(self, observations: list, actions: list, rewards: list, n: int, gamma: float):
        """observations: one more than actions; every step is the start of one transition."""
        bits = torch.from_numpy(np.packbits(np.array(observations, np.uint8), axis=1))
        sums, discounts, following = zip(*n_step_returns(rewards, n, gamma))
        returns = [total for total, _, _ in n_step_returns(rewards, len(rewards), gamma)]
        rows = (self.added + torch.arange(len(actions))) % len(self.actions)
        self.bits[rows] = torch.stack([bits[:-1], bits[list(following)]], 1)
        self.actions[rows] = torch.tensor(actions)
        self.numbers[rows] = torch.tensor([sums, discounts, returns]).T
        self.powers[rows] = self.largest**self.alpha  # nobody knows their errors yet
        self.added += len(actions)

    def sample(self, batch_size: int, beta: float, rng):
        """rows, weights (B,) = (N P)**-beta, divided by the largest of the batch."""
        sums = self.powers[: self.added].cumsum(0)
        rows = torch.searchsorted(sums, torch.from_numpy(rng.random(batch_size)) * sums[-1])
        weights = (len(sums) * self.powers[rows] / sums[-1]) ** -beta
        return rows, (weights / weights.max()).float()

    def batch(self, rows):
        """Observations and next ones (B, size), actions (B,), and three numbers (B,) each."""
        bits = np.unpackbits(self.bits[rows].numpy(), axis=2, count=self.size)  # (B, 2, size)
        return *torch.from_numpy(bits).float().unbind(1), self.actions[rows], *self.numbers[rows].unbind(1)

    def update(self, rows, errors):
        priorities = errors.abs().double() + 1e-3
        self.powers[rows] = priorities**self.alpha
        self.largest = max(self.largest, priorities.max().item())


# ---- target and exploration -------------------------------------------------------------------------------


def td_target(rewards, discounts, next_q, next_q_target, next_mask, double: bool, returns=None):
    """y of the formula above, (B,). rewards, discounts, returns: (B,); the others (B, actions)."""
    best = masked_argmax(next_q if double else next_q_target, next_mask)
    values = next_q_target.gather(1, best[:, None]).squeeze(1)
    targets = rewards + torch.where(discounts > 0, discounts * values, 0.0)
    return targets if returns is None else torch.maximum(targets, returns)


def epsilon_at(step: int, cfg) -> float:
    """Linear from epsilon_start to epsilon_end, then constant."""
    done = min(step / (cfg.epsilon_fraction * cfg.total_steps), 1.0)
    return cfg.epsilon_start + done * (cfg.epsilon_end - cfg.epsilon_start)


@torch.no_grad()
def choose(network, observations: list, epsilons, rng) -> tuple[list, list]:
    """Legal actions and their Q: random with probability epsilon, drawn for each one, else greedy."""
    observations = torch.from_numpy(np.array(observations)).float()
    q = network(observations)  # (B, actions)
    noise = torch.from_numpy(rng.random(q.shape)).float()
    explore = torch.from_numpy(rng.random(len(q)) < epsilons)
    actions = masked_argmax(torch.where(explore[:, None], noise, q), observations[:, -q.shape[1] :])
    return actions.tolist(), q.gather(1, actions[:, None]).squeeze(1).tolist()


def begin(env, options: dict):
    """Start an episode, and its record."""
    env.seen, env.actions, env.rewards = [env.reset(options=options)[0]], [], []
    env.options = {"index": env.index, "max_rules": env.rules_left}  # which repeat it


def advance(env, action: int) -> bool:
    """One step of the episode, recorded; whether it was the last."""
    observation, reward, ended, _, _ = env.step(action)
    for record, item in (env.seen, observation), (env.actions, action), (env.rewards, reward):
        record.append(item)
    return ended


# ---- evaluation -------------------------------------------------------------------------------------------


def best_limit(network, env, index: int, limits, rng) -> int:
    """The limit of rules whose greedy program is worth most by the network's own opinion."""

    def worth(limit):
        begin(env, {"index": index, "max_rules": limit})
        while not env.outcome:
            [action], [q] = choose(network, env.seen[-1:], 0.0, rng)
            advance(env, action)
        return q - env.step_cost * len(env.actions)  # Q of the last rule, less the cost of all

    return max(limits, key=worth)


def write_programs(network, env, sandbox, rng, epsilons=(0.0,), known=None) -> list[dict]:
    """A program for each problem and epsilon; what passes the tests is confirmed, once, by the sandbox."""
    rows, known = [], {} if known is None else known
    for index, problem in enumerate(env.problems):
        limits = range(env.prepared[index][-1], env.max_rules + 1)
        for number, epsilon in enumerate(epsilons):
            limit = int(rng.choice(limits)) if epsilon else best_limit(network, env, index, limits, rng)
            begin(env, {"index": index, "max_rules": limit})
            shown = [env.render()]
            while not env.outcome:
                advance(env, choose(network, env.seen[-1:], epsilon, rng)[0][0])
                shown.append(env.render())
            if env.render_mode:
                print(*shown, sep="\n")
            job, outcome = problem.as_check(env.program), env.outcome
            if outcome == "passed" and job not in known:
                known[job] = sandbox.check(*job).outcome
            ended = known.get(job, outcome)
            sample = {"task_id": problem.name, "sample": number, "gen_len": len(env.actions)}
            sample |= {"completion": f"\n    return {readable(env.program)}\n", "outcome": ended}
            rows.append(sample | {"passed": ended == "passed", "passed_base": outcome == "passed"})
    return rows


def evaluate(cfg):
    """Let a trained agent write programs for cfg.problems; print and, with results, write what passes."""
    with stop_with(f"cannot evaluate {cfg.evaluate} as a folder of train_dqn.py"):
        trained = json.loads(Path(cfg.evaluate, "run_config.json").read_text())
        env = CodeEnv(cfg.problems, **trained["environment"], render_mode="ansi" if cfg.render else None)
        if trained["grammar_sha256"] != sha256(trained["grammar"]):
            raise ValueError("its grammar has changed since")
        network = QNetwork(**trained["network"])
        network.load_state_dict(load_file(f"{cfg.evaluate}/q_network.safetensors"))
    epsilons = [0.0] + [cfg.epsilon_attempts] * (cfg.attempts - 1)
    with Sandbox() as sandbox:
        rows = write_programs(network, env, sandbox, np.random.default_rng(cfg.seed), epsilons)
    first = {row["task_id"]: row for row in rows[::-1] if row["passed"] or row["sample"] == 0}
    for name, row in sorted(first.items()):  # its first solution, or else the greedy program
        print(f"{name:20s} {row['sample'] + 1:3d} {row['outcome']:10s} {row['completion'].strip()}")
    greedy, found = ([row["passed"] for row in some] for some in (rows[:: cfg.attempts], first.values()))
    num_pass, fooled = (sum(row[name] for row in rows) for name in ("passed", "passed_base"))
    solved = f"{sum(greedy)} of {len(greedy)} greedily, {sum(found)} within {cfg.attempts}"
    print(f"solved: {solved}; {fooled - num_pass} pass their tests only, not the hidden cases")
    if cfg.results:
        metrics = {"exp_name": Path(cfg.results).name, "method": "DQN", "model_path": cfg.evaluate}
        metrics |= {"num_tasks": len(greedy), "num_pass": num_pass, "pass_at_1": num_pass / len(rows)}
        metrics |= {"num_samples": len(rows), "protocol": {"dataset_sha256": sha256(cfg.problems)}}
        with stop_with(f"cannot write {cfg.results}_*"):
            write(f"{cfg.results}_per_task.jsonl", *rows)
            write(f"{cfg.results}_metrics.json", metrics)


# ---- files ------------------------------------------------------------------------------------------------


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write(path, *rows: dict):
    """Write a JSON object per line in one step: a kill leaves the old file or the new one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(f"{path}.tmp").replace(path)


def save_agent(network, folder, run_config: dict):
    """Network and, last, run_config.json: a folder that has it is complete."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "run_config.json").unlink(missing_ok=True)
    save_file(network.state_dict(), f"{folder}/q_network.safetensors")
    write(f"{folder}/run_config.json", run_config)


if __name__ == "__main__":
    # ---- setup --------------------------------------------------------------------------------------------
    shares = "focus step_cost per_alpha per_beta epsilon_start epsilon_end epsilon_unsolved epsilon_attempts"
    cfg = parse_config(Config, free=f"seed {shares}")
    if not all(0 <= getattr(cfg, name) <= 1 for name in [*shares.split(), "gamma"]) or cfg.focus == 1:
        raise SystemExit(f"{shares.replace(' ', ', ')} and gamma are between 0 and 1, focus below 1")
    torch.set_num_threads(1)  # the network is small: more threads only wait for each other
    if cfg.evaluate:
        sys.exit(evaluate(cfg))
    rng = np.random.default_rng(cfg.seed)  # all that is drawn, except the first weights
    how = {name: getattr(cfg, name) for name in ENVIRONMENT.split()}
    with stop_with(f"--grammar {cfg.grammar} cannot be read"):
        env = CodeEnv(cfg.train_path, **how)  # of the evaluations, which change nothing of the run
    how["vocabulary"] = env.vocabulary
    test_env = CodeEnv(cfg.test_path, **how)
    envs = [CodeEnv(env.problems, **how, vary_length=cfg.vary_length) for _ in range(cfg.num_envs)]
    num_actions, size = int(env.action_space.n), int(env.observation_space.n)
    sizes: dict = {"observation_size": size, "num_actions": num_actions}
    sizes |= {"hidden_size": cfg.hidden_size, "dueling": cfg.dueling}
    torch.manual_seed(cfg.seed)
    network, target = QNetwork(**sizes), QNetwork(**sizes)
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.learning_rate, fused=True)
    replay = Replay(cfg.buffer_size, size, cfg.per_alpha)

    may_change = "output_dir problems results attempts epsilon_attempts render resume save_every"
    settings = {name: value for name, value in asdict(cfg).items() if name not in may_change.split()}
    settings |= {path: sha256(path) for path in (cfg.train_path, cfg.test_path, cfg.grammar)}
    run_config = {**asdict(cfg), **settings, "method": "DQN"}
    run_config |= {"environment": how, "network": sizes, "grammar_sha256": sha256(cfg.grammar)}
    state: dict = {"settings": settings, "step": 0, "best": -1, "seconds": 0.0, "sums": {}}
    state |= {"log_sizes": [0, 0], "found": [], "recent": [0.0] * len(env.problems)}  # found: solved once
    opened = [({"index": int(rng.integers(len(env.problems)))}, []) for _ in envs]  # episodes, as actions
    state_path = Path(cfg.output_dir, "state.pt")
    if cfg.resume and state_path.exists():
        with stop_with(f"--resume: {state_path} cannot be used; repeat its settings or delete it"):
            state = torch.load(state_path, "cpu", weights_only=True)  # runs no code from the file
            if changed := [name for name, value in settings.items() if state["settings"].get(name) != value]:
                raise ValueError(f"it was made with another {', '.join(changed)}")
        network.load_state_dict(state.pop("network"))
        target.load_state_dict(state.pop("target"))
        optimizer.load_state_dict(state.pop("optimizer"))
        vars(replay).update(state.pop("replay"))
        opened = state.pop("opened")
    if state["step"] >= cfg.total_steps:
        print(f"{cfg.output_dir} is finished")
        sys.exit()
    sandbox = Sandbox()
    with stop_with(f"cannot write to --output_dir {cfg.output_dir}"):
        logs = [open_log(f"{cfg.output_dir}/{name}.jsonl") for name in ("dqn_train_log", "samples")]
    if state["step"] == 0:  # a new run: what an older one left must not be taken for its own
        for name in "state.pt", "run_config.json", "best/run_config.json":
            Path(cfg.output_dir, name).unlink(missing_ok=True)
    for log, length in zip(logs, state["log_sizes"]):
        log.truncate(min(length, log.tell()))  # drop the lines of steps after the state

    # ---- preflight: there is no reference to score; random programs show whether rewards can be earned ----
    tried = write_programs(network, env, sandbox, np.random.default_rng(0), [1.0] * 5)
    lucky = f"{sum(row['passed'] for row in tried)} of {len(tried)} random programs are right"
    print(f"sandbox: {sandbox.report}\n{len(env.problems)} problems, {num_actions} actions; {lucky}")

    # ---- training -----------------------------------------------------------------------------------------
    start = time.time() - state["seconds"]
    known, solved_by, sums = {}, {}, Counter(state["sums"])  # sums: of this line of the log
    bar = tqdm(total=cfg.total_steps, initial=state["step"], unit="step", disable=None)
    for each, (options, actions) in zip(envs, opened):
        each.np_random = rng  # one for all
        begin(each, options)
        for action in actions:
            advance(each, action)
    if "rng" in state:  # resumed: it stood there
        rng.bit_generator.state = json.loads(state["rng"])
    while state["step"] < cfg.total_steps:
        # ---- act, and store the episodes that end ----
        before = state["step"]
        epsilon = epsilon_at(before, cfg)
        lowest = [0.0 if each.index in state["found"] else cfg.epsilon_unsolved for each in envs]
        actions, _ = choose(network, [each.seen[-1] for each in envs], np.maximum(epsilon, lowest), rng)
        for each, action in zip(envs, actions):
            if not advance(each, action):
                continue
            replay.add_episode(each.seen, each.actions, each.rewards, cfg.n_step, cfg.gamma)
            solved = each.outcome == "passed"
            state["recent"][each.index] += 0.05 * (solved - state["recent"][each.index])
            if solved and each.index not in state["found"]:
                state["found"].append(each.index)
            sums.update(episodes=1, solved=solved, rules=len(each.actions), returns=sum(each.rewards))
            shares = 1 - cfg.focus * np.array(state["recent"])
            begin(each, {"index": int(rng.choice(len(shares), p=shares / shares.sum()))})
        state["step"] += cfg.num_envs

        # ---- update ----
        due = state["step"] // cfg.train_every - before // cfg.train_every
        for _ in range(due if state["step"] >= cfg.learning_starts else 0):
            beta = cfg.per_beta + (1 - cfg.per_beta) * before / cfg.total_steps
            rows, weights = replay.sample(cfg.batch_size, beta, rng)
            now, later, taken, rewards, discounts, returns = replay.batch(rows)
            with torch.no_grad():
                bound, mask = returns if cfg.lower_bound else None, later[:, -num_actions:]
                next_q = network(later), target(later)  # (B, actions) each
                targets = td_target(rewards, discounts, *next_q, mask, cfg.double, bound)
            q = network(now).gather(1, taken[:, None]).squeeze(1)  # (B,)
            loss = (weights * nn.functional.smooth_l1_loss(q, targets, reduction="none")).mean()  # Huber
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), cfg.max_grad_norm)
            optimizer.step()
            replay.update(rows, (targets - q).detach())  # of before the step
            sums.update(updates=1, td_loss=loss.item(), q=q.mean().item())
        if state["step"] // cfg.target_every > before // cfg.target_every:
            target.load_state_dict(network.state_dict())
        bar.update(cfg.num_envs)

        # ---- log: a greedy program for every problem; solved is what the sandbox confirms ----
        is_last = state["step"] >= cfg.total_steps
        if state["step"] // cfg.eval_every > before // cfg.eval_every or is_last:
            for side, tested in ("train", env), ("test", test_env):
                made = write_programs(network, tested, sandbox, np.random.default_rng(0), known=known)
                solved_by[side] = sum(sample["passed"] for sample in made)
                lines = [json.dumps({"step": state["step"], "side": side} | sample) for sample in made]
                print(*lines, sep="\n", file=logs[1], flush=True)
            episodes = max(sums["episodes"], 1)
            row = {
                "step": state["step"],
                "num_completions": sums["episodes"],  # programs written since the last line
                "avg_base_reward": sums["solved"] / episodes,
                "avg_return": sums["returns"] / episodes,
                "avg_gen_len": sums["rules"] / episodes,
                "epsilon": epsilon,
                "td_loss": sums["td_loss"] / max(sums["updates"], 1),
                "q_mean": sums["q"] / max(sums["updates"], 1),
                "train_greedy": solved_by["train"] / len(env.problems),
                "test_greedy": solved_by["test"] / len(test_env.problems),
                "found": len(state["found"]),  # problems whose tests some episode has passed
                "seconds": time.time() - start,
            }
            sums.clear()
            shown = "train_greedy test_greedy found avg_return epsilon td_loss q_mean seconds"
            values = "  ".join(f"{name} {row[name]:<6.3g}" for name in shown.split())
            tqdm.write(f"step {state['step']:<7d} {values}")
            if row["q_mean"] > 1.2:  # no return is larger
                tqdm.write("warning: the mean Q is above the largest possible return: it diverges")
            print(json.dumps(row), file=logs[0], flush=True)
            run_config |= {"step": state["step"], "finished": is_last}
            if solved_by["train"] > state["best"]:
                state["best"] = solved_by["train"]
                save_agent(network, f"{cfg.output_dir}/best", run_config | row)

        # ---- save: logs and agent, then state.pt in one step; --resume reads only state.pt ----
        if state["step"] // cfg.save_every > before // cfg.save_every or is_last:
            with stop_with(f"cannot write to {cfg.output_dir} (make room, then go on with --resume)"):
                save_agent(network, cfg.output_dir, run_config)
                state |= {"log_sizes": [log.tell() for log in logs], "seconds": time.time() - start}
                state |= {"sums": dict(sums), "rng": json.dumps(rng.bit_generator.state)}
                tensors: dict = {"network": network.state_dict(), "target": target.state_dict()}
                tensors |= {"optimizer": optimizer.state_dict(), "replay": vars(replay)}
                tensors |= {"opened": [(each.options, each.actions) for each in envs]}
                torch.save(state | tensors, f"{state_path}.tmp")
                Path(f"{state_path}.tmp").replace(state_path)  # a kill leaves the old state or the new one
    sandbox.close()
