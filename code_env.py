"""An environment of Gymnasium in which an agent writes Python functions, rule by rule.

    env = gymnasium.make("code_env:WriteFunction-v0", render_mode="ansi")
    observation, info = env.reset(seed=1, options={"index": 0})
    env.step(env.action_space.sample(info["action_mask"]))

A program is one expression. It begins as one hole of the type that the tests expect; an action is a rule of
data/dqn_grammar.txt, or a parameter, and fills the leftmost hole:

    def max_of_three(a, b, c): return <int>
    def max_of_three(a, b, c): return max(<int>, <int>)
    def max_of_three(a, b, c): return max(a, <int>)         and so on, with at most max_rules rules

The mask allows what fits the hole's type and can still be completed within the limit: each episode ends in a
complete program, which the tests score. An action that the mask forbids ends the episode with reward -1.
Observation: words of the docstring, types, where in the program we are, and the mask.

Programs run in this process: their text can only be a sentence of the grammar, and a grammar that names more
than FUNCTIONS and METHODS is refused. No reference solution is read; nothing here needs torch.
"""

import ast
import functools
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

from data.dqn_problems import MAX_PARAMETERS, TYPES, Problem, read_problems, same

FOLDER = Path(__file__).resolve().parent
SCOPES = "", "x", "w"  # the variable that a hole may use: none, an integer, a string
NEVER = 99  # rules: more than any limit
MAX_ITEMS = 20_000  # of all ranges in one call
METHODS = "count isdigit islower isupper join lower prod split strip upper".split()
OPERATORS = ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp
REWARDS = "tests", "quality", "combined"


# ---- grammar ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    type: str  # of the holes that it fills
    scope: str  # the variable that it uses
    parts: tuple  # texts before, between and after its holes
    holes: tuple  # (type, the variable that may be used in it or "") of each


@functools.cache
def read_grammar(path) -> tuple[Rule, ...]:
    """The rules of a grammar file, in order; SystemExit if a line is not one."""
    rules = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        left, _, text = line.partition(": ")
        type, _, scope = left.partition("|")
        holes = [(hole, opened) for hole, opened in re.findall(r"\{(\w+)\|?(\w*)\}", text)]
        parts = re.split(r"\{\w+\|?\w*\}", text.strip())
        kinds, opened = {type, *(hole for hole, _ in holes)}, {scope, *(name for _, name in holes)}
        try:
            tree = ast.parse("_".join(parts), mode="eval")
            if unknown := (kinds - {*TYPES}) | (opened - {*SCOPES}):
                raise ValueError(f"{min(unknown)} is not one of {', '.join(TYPES)}, or not x or w")
            check_names(tree)
        except (SyntaxError, ValueError) as error:
            form = "a rule is like int: {int} + {int}"
            raise SystemExit(f"{path}, line {number}: {error}; {form}") from None
        if isinstance(tree.body, OPERATORS):
            parts[0], parts[-1] = "(" + parts[0], parts[-1] + ")"
        rules.append(Rule(type, scope, tuple(parts), tuple(holes)))
    return tuple(rules)


def check_names(tree):
    """ValueError if an expression could do more than compute: this is what keeps programs harmless."""
    variables = {node.id for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in {*FUNCTIONS, *SCOPES, "_", *variables}:
            raise ValueError(f"the name {node.id} is not among {', '.join(FUNCTIONS)}")
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            raise ValueError(f"the method {node.attr} is not among {', '.join(METHODS)}")
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
            if ast.unparse(node.right) not in ("2", "3"):
                raise ValueError("the exponent must be 2 or 3: numbers would grow beyond all bounds")


@functools.cache
def least_sizes(rules, parameters: tuple) -> np.ndarray:
    """(scopes, actions): the fewest rules of a part of a program that begins with this action, or NEVER."""
    actions = [*rules, *(Rule(type, "", ("",), ()) for type in parameters)]
    sizes = np.full((len(SCOPES), len(rules) + MAX_PARAMETERS), NEVER)
    least = {(type, scope): NEVER for type in TYPES for scope in SCOPES}  # of a hole
    before = None
    while before != least:
        before = dict(least)
        for s, scope in enumerate(SCOPES):
            for i, action in enumerate(actions):
                nested = scope and any(opened for _, opened in action.holes)  # no comprehension in another
                if action.scope in ("", scope) and not nested:
                    size = 1 + sum(least[type, opened or scope] for type, opened in action.holes)
                    sizes[s, i] = min(size, NEVER)
                    least[action.type, scope] = min(least[action.type, scope], size)
    return sizes


# ---- running programs, and the reward ---------------------------------------------------------------------

ITEMS = [MAX_ITEMS]  # left in this call


def limited_range(*bounds):
    """range, for so many items in one call; OverflowError beyond."""
    items = range(*bounds)
    ITEMS[0] -= len(items)
    if ITEMS[0] < 0:
        raise OverflowError("too many items")
    return items


FUNCTIONS: dict[str, Any] = {  # all that a program can name
    **{each.__name__: each for each in (abs, all, any, int, len, list, max, min, set, sorted, str, sum)},
    "range": limited_range,
    "math": SimpleNamespace(prod=math.prod),
}


def likeness(value, right, graded: bool = False) -> float:
    """1 if equal; 0 if not or, graded, at most 0.5 for what two lists or strings have in common."""
    if same(value, right):
        return 1.0
    if graded and type(value) is type(right) and isinstance(value, (str, list)):
        common = (Counter(right) & Counter(value)).total()  # in this order: it goes through the first one
        return common / (len(value) + len(right))
    return 0.0


def run_program(problem: Problem, text: str, cases: list) -> list:
    """What a program of the grammar returns for each case; an exception is its result."""
    names = {"__builtins__": {}, **FUNCTIONS}
    function = eval(f"lambda {', '.join(problem.parameters)}: {text}", names)
    results = []
    for arguments, _ in cases:
        ITEMS[0] = MAX_ITEMS
        try:
            results.append(function(*arguments))
        except Exception as error:
            results.append(error)
    return results


def score_program(problem: Problem, text: str, graded: bool = False) -> list[float]:
    """The score of each test; kept, as an agent writes the same programs again and again."""
    if (text, graded) not in problem.cache:
        results = run_program(problem, text, problem.tests)
        scores = [likeness(value, right, graded) for value, (_, right) in zip(results, problem.tests)]
        problem.cache[text, graded] = scores
    return problem.cache[text, graded]


def reward_of(problem: Problem, scores: list, size: float, kind: str) -> float:
    """What a complete program earns; size: of its rules and depth, from 0 to 1.

    tests      1 if all pass, else up to 0.5 for what is better than the best constant program
    quality    1 - size, whatever the tests say: there to be hacked, see docs/dqn.md
    combined   tests, and 0.2 x quality only where all tests pass
    """
    solved = min(scores) == 1
    above = max(0.0, (sum(scores) / len(scores) - problem.constant) / (1 - problem.constant))
    tests = 1.0 if solved else 0.5 * min(above, 1.0)
    return {"tests": tests, "quality": 1 - size, "combined": tests + 0.2 * (1 - size) * solved}[kind]


# ---- environment ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Hole:
    """A place of the program that is still open."""

    type: str
    scope: str
    depth: int  # of the tree of rules
    parent: int  # the action that made it; num_actions if there is none, as in `left`
    position: int  # which of its parent's holes this is
    left: int  # the action that filled the hole before it
    right: Any = None  # the hole after it


class CodeEnv(gymnasium.Env):
    """See above. problems: a path, or a list of Problem; vocabulary: words, by default theirs."""

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's name)

    def __init__(
        self,
        problems="",
        grammar="",
        max_rules=7,
        vary_length=False,  # each episode has a limit of its own, so that short programs come first
        reward="tests",  # tests, quality or combined
        graded=True,  # wrong lists and strings count for what they share with the right ones
        step_cost=0.03,  # per rule
        shaping=False,  # adds gamma Phi(next) - Phi(now): Ng, Harada & Russell 1999
        gamma=0.99,  # of shaping
        vocabulary=None,
        render_mode=None,
    ):
        problems = problems or FOLDER / "data/dqn_train.json"
        self.problems = problems if isinstance(problems, list) else read_problems(problems)
        self.rules = read_grammar(str(grammar or FOLDER / "data/dqn_grammar.txt"))
        self.max_rules, self.vary_length, self.reward, self.graded = max_rules, vary_length, reward, graded
        self.step_cost, self.shaping, self.gamma, self.render_mode = step_cost, shaping, gamma, render_mode
        if reward not in REWARDS:
            raise SystemExit(f"the reward is one of {', '.join(REWARDS)}, not {reward}")
        words = {word for problem in self.problems for word in words_of(problem.docstring)}
        self.vocabulary = sorted(words) if vocabulary is None else list(vocabulary)
        num_actions = len(self.rules) + MAX_PARAMETERS
        self.action_space = gymnasium.spaces.Discrete(num_actions)
        blocks = {"words": len(self.vocabulary), "types": (MAX_PARAMETERS + 1) * len(TYPES)}
        blocks |= {"hole": len(TYPES), "scope": len(SCOPES), "position": 4, "parent": num_actions + 1}
        blocks |= {"left": num_actions + 1, "used": num_actions, "rules_left": max_rules + 1}
        blocks["mask"] = num_actions
        starts = np.cumsum([0, *blocks.values()]).tolist()
        self.at = dict(zip(blocks, starts))  # where each block of the observation begins
        self.observation_space = gymnasium.spaces.MultiBinary(starts[-1])
        texts = " ".join(part for rule in self.rules for part in rule.parts)
        self.taken = {*re.findall(r"\w+", texts)}  # names that no function or parameter may have
        self.prepared = [self._prepare(problem) for problem in self.problems]

    def _prepare(self, problem):
        """(least sizes, which actions fit a type, what of the observation stays) of a problem."""
        sizes = least_sizes(self.rules, problem.types)
        if clash := self.taken & {problem.name, *problem.parameters}:
            raise SystemExit(f"{problem.name}: the grammar uses the name {min(clash)} itself, choose another")
        filled = np.array([rule.type for rule in self.rules] + [*problem.types, "", "", ""])
        fits = {type: filled[: self.action_space.n] == type for type in TYPES}
        least = sizes[0, fits[problem.result]].min(initial=NEVER)
        if least >= self.max_rules:
            raise SystemExit(f"{problem.name}: no program of up to {self.max_rules - 1} rules has its types")
        observation = np.zeros(self.observation_space.n, np.int8)
        for word in words_of(problem.docstring):
            if word in self.vocabulary:
                observation[self.vocabulary.index(word)] = 1
        for i, type in enumerate([problem.result, *problem.types]):
            observation[self.at["types"] + i * len(TYPES) + TYPES.index(type)] = 1
        return sizes, fits, observation, int(least)

    def reset(self, *, seed=None, options=None):
        """options: "index" of the problem (else drawn), "max_rules" of this episode."""
        super().reset(seed=seed)
        options = options or {}
        self.index = options.get("index")
        if self.index is None:
            self.index = int(self.np_random.integers(len(self.problems)))
        self.problem = self.problems[self.index]
        self.sizes, self.fits, self.fixed, least = self.prepared[self.index]
        self.rules_left = self.max_rules
        if self.vary_length:
            self.rules_left = int(self.np_random.integers(least + 1, self.max_rules + 1))
        self.rules_left = options.get("max_rules", self.rules_left)
        self.used, self.depth, self.outcome = [], 0, ""
        none = int(self.action_space.n)
        self.pieces = [Hole(self.problem.result, "", 1, none, 0, none)]  # the program: texts and holes
        self.holes = [self.pieces[0]]  # the open ones, from left to right
        self._look()
        self.potential = self._potential() if self.shaping else 0.0
        return self._observation(), {"action_mask": self.mask}

    def _fitting(self, hole):
        """(actions,): the fewest rules with which each action fills a hole; NEVER if it does not fit."""
        return np.where(self.fits[hole.type], self.sizes[SCOPES.index(hole.scope)], NEVER)

    def _look(self):
        """Find out what may be done now."""
        self.mask = np.zeros(self.action_space.n, np.int8)
        if self.holes:
            rest = sum(self._fitting(hole).min() for hole in self.holes[1:])
            self.mask[self._fitting(self.holes[0]) + rest <= self.rules_left] = 1
            parent = self.holes[0].parent
            if parent < len(self.rules) and len(self.rules[parent].holes) == 1:
                self.mask[parent] = 0  # no sorted(sorted(nums)), no -(-n)

    def _observation(self):
        observation, at = self.fixed.copy(), self.at
        observation[[at["used"] + action for action in self.used]] = 1
        observation[at["rules_left"] + self.rules_left] = 1
        observation[at["mask"] :] = self.mask
        if self.holes:
            hole = self.holes[0]
            observation[at["hole"] + TYPES.index(hole.type)] = 1
            observation[at["scope"] + SCOPES.index(hole.scope)] = 1
            for name in "position", "parent", "left":
                observation[at[name] + getattr(hole, name)] = 1
        return observation

    def step(self, action):
        """Fill the leftmost hole. At the end, info["outcome"] is passed, failed or illegal."""
        if not self.mask[action]:
            self.outcome, self.holes = "illegal", []
            self._look()
            return self._observation(), -1.0, True, False, {"action_mask": self.mask, "outcome": "illegal"}
        hole = self.holes.pop(0)
        parts, inside = self._filling(action)
        action, none, depth = int(action), int(self.action_space.n), hole.depth + 1
        new = []
        for i, (type, opened) in enumerate(inside):
            new.append(Hole(type, opened or hole.scope, depth, action, i, none))
        for left, right in zip(new, new[1:]):
            left.right = right
        if hole.right:
            hole.right.left = action
        at = self.pieces.index(hole)
        self.pieces[at : at + 1] = [parts[0], *(piece for pair in zip(new, parts[1:]) for piece in pair)]
        self.holes = new + self.holes
        self.used.append(action)
        self.rules_left -= 1
        self.depth = max(self.depth, hole.depth)
        self._look()
        reward, info = -self.step_cost, {"action_mask": self.mask}
        if not self.holes:
            scores = score_program(self.problem, self.program, self.graded)
            self.outcome = info["outcome"] = "passed" if min(scores) == 1 else "failed"
            size = (len(self.used) + self.depth) / (2 * self.max_rules)
            reward += reward_of(self.problem, scores, size, self.reward)
        if self.shaping:
            before, self.potential = self.potential, self._potential()
            reward += self.gamma * self.potential - before
        return self._observation(), float(reward), not self.holes, False, info

    def _filling(self, action):
        """(texts, holes) that an action puts in the place of a hole."""
        if action < len(self.rules):
            return self.rules[action].parts, self.rules[action].holes
        return (self.problem.parameters[action - len(self.rules)],), ()

    def _shortest(self, piece) -> str:
        """The text of a piece whose holes, and theirs, are filled with as few rules as possible."""
        if isinstance(piece, str):
            return piece
        parts, inside = self._filling(int(self._fitting(piece).argmin()))
        holes = [Hole(type, opened or piece.scope, 0, 0, 0, 0) for type, opened in inside]
        return parts[0] + "".join(self._shortest(hole) + part for hole, part in zip(holes, parts[1:]))

    def _potential(self) -> float:
        """Phi of shaping: what the shortest completion would earn for its tests; 0 once it is complete."""
        if not self.holes:
            return 0.0
        text = "".join(map(self._shortest, self.pieces))
        return reward_of(self.problem, score_program(self.problem, text, self.graded), 0.0, "tests")

    @property
    def program(self) -> str:
        """The expression; an open hole is <type>, or <type|x> where x may be used."""
        shown = (
            f"<{p.type}{'|' * bool(p.scope)}{p.scope}>" if isinstance(p, Hole) else p for p in self.pieces
        )
        return "".join(shown)

    def render(self):
        """The function as it is now and, once it is complete, the number of tests that it passes."""
        if self.render_mode != "ansi":
            return None
        text = self.program if self.holes or self.outcome == "illegal" else readable(self.program)
        line = f"def {self.problem.name}({', '.join(self.problem.parameters)}): return {text}"
        if self.outcome in ("passed", "failed"):
            scores = score_program(self.problem, self.program, self.graded)
            line += f"    # passes {scores.count(1.0)} of {len(scores)} tests"
        return line


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", text.lower())


def readable(program: str) -> str:
    """The same expression without the brackets that it does not need."""
    return ast.unparse(ast.parse(program, mode="eval"))


gymnasium.register(id="WriteFunction-v0", entry_point="code_env:CodeEnv")
