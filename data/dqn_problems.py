"""Problems for code_env.py: reads and checks their files; docs/dqn.md shows how they are written.

read_problems("data/dqn_train.json")     a list of problems: each mistake ends in one line
read_problems("data/mini_train.jsonl")   of a task file, those whose types the grammar knows
"""

import ast
import functools
import json
import re
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path

TYPES = "int", "bool", "str", "ints", "strs"  # ints: a list of integers
NAMES = {
    "int": "n",
    "bool": "flag",
    "str": "s",
    "ints": "nums",
    "strs": "words",
}  # of a parameter without one
MAX_PARAMETERS = 3


def same(value, right) -> bool:
    """Whether a result is the right one: equal, and of the same type, for True is not 1."""
    if type(value) is not type(right) or value != right:
        return False
    return not isinstance(value, list) or all(type(a) is type(b) for a, b in zip(value, right))


@dataclass
class Problem:
    name: str
    docstring: str
    parameters: list  # their names
    types: tuple  # and types
    result: str  # type of what the function returns
    tests: list  # (arguments, result) of each: these are rewarded
    hidden: list  # and these are not
    cache: dict = field(default_factory=dict, repr=False)  # program: its scores

    @functools.cached_property
    def constant(self) -> float:
        """The share of tests that the best program passes which always returns the same."""
        results = [result for _, result in self.tests]
        return max(sum(same(a, b) for b in results) for a in results) / len(results)

    def as_check(self, program: str) -> tuple[str, str, str]:
        """What Sandbox.check takes: the function, all cases as its test (True is not 1), its name."""
        code = f"import math\n\n\ndef {self.name}({', '.join(self.parameters)}):\n    return {program}\n"
        test = "def check(candidate):"
        for given, right in self.tests + self.hidden:
            test += f"\n    assert repr(candidate(*{given!r})) == {repr(right)!r}"
        return code, test, self.name


def type_of(values: list) -> str:
    """The one type of these values; ValueError if there is none."""
    names = {bool: "bool", int: "int", str: "str"}
    found = set()
    for value in values:
        items = {names.get(type(item), "") for item in value} if isinstance(value, list) else set()
        if (isinstance(value, list) and items <= {"int"}) or items == {"str"}:
            found |= {f"{item}s" for item in items}
        elif type(value) in names:
            found.add(names[type(value)])
        else:
            raise ValueError(f"{value!r:.60}: values are int, bool, str, or lists of int or of str")
    if len(found) > 1 or (any(isinstance(value, list) for value in values) and found - {"ints", "strs"}):
        raise ValueError(f"values of different types in one place: {', '.join(sorted(found))} or a list")
    return found.pop() if found else "ints"  # nothing but empty lists


def make_problem(name, docstring, parameters, tests, hidden=()) -> Problem:
    """A problem of cases [arguments, result]; ValueError if it cannot be one."""
    if not isinstance(name, str) or not isinstance(docstring, str) or not docstring.strip():
        raise ValueError("function_name and docstring must be text")
    columns = list(zip(*(arguments for arguments, _ in [*tests, *hidden]), strict=True))
    types = tuple(type_of(list(column)) for column in columns)
    if not 1 <= len(types) <= MAX_PARAMETERS:
        raise ValueError(f"{len(types)} parameters; there can be 1 to {MAX_PARAMETERS}")
    parameters = (
        parameters or [NAMES[types[0]]] if len(types) == 1 else parameters or list("abc"[: len(types)])
    )
    for word in [name, *parameters]:
        if not isinstance(word, str) or not word.isidentifier() or iskeyword(word):
            raise ValueError(f"{word!r} cannot be the name of a function or a parameter")
    if len(parameters) != len(types) or len({*parameters}) != len(types):
        raise ValueError(f"parameters {parameters}, but its inputs have {len(types)} arguments")
    known = {}
    for arguments, result in [*tests, *hidden]:
        if not same(known.setdefault(repr(arguments), result), result):
            raise ValueError(f"the input {arguments} has two results, {known[repr(arguments)]} and {result}")
    kind = type_of([result for _, result in [*tests, *hidden]])
    problem = Problem(name, docstring.strip(), parameters, types, kind, list(tests), list(hidden))
    if problem.constant == 1:
        raise ValueError(f"a function that always returns {tests[0][1]!r} passes all its tests")
    return problem


def as_arguments(inputs: list, parameters, name: str) -> list[list]:
    """The arguments of each input: declared by `parameters`, else seen from lengths, else a ValueError."""
    if parameters:
        if any(not isinstance(given, list) or len(given) != len(parameters) for given in inputs):
            raise ValueError(f"each input must be the list of its {len(parameters)} arguments")
        return inputs
    lengths = {len(given) if isinstance(given, list) else None for given in inputs}
    say_so = 'write "parameters": ["name", ...] and each input as the list of its arguments'
    if None not in lengths and lengths <= {2, 3} and len(lengths) == 1:
        print(f"{name}: its inputs are read as {lengths.pop()} arguments; if that is wrong, {say_so}")
        return inputs
    if lengths == {1} or (len(lengths) > 1 and None in lengths):
        raise ValueError(f"its inputs may be arguments or one list: {say_so}")
    return [[given] for given in inputs]


def from_json(entry: dict) -> Problem:
    """A problem of a JSON file; see docs/dqn.md."""
    if not isinstance(entry, dict):
        raise ValueError("a problem is an object with function_name, docstring and test_cases")
    if entry.get("starter_code"):
        raise ValueError("starter_code must be empty: the agent writes the whole body")
    cases = [entry["test_cases"], entry.get("hidden_cases", [])]
    if not cases[0] or any(not isinstance(case, list) or len(case) != 2 for case in cases[0] + cases[1]):
        raise ValueError("test_cases and hidden_cases are lists of [input, result], the first not empty")
    parameters, name = entry.get("parameters"), entry["function_name"]
    inputs = as_arguments([given for given, _ in cases[0] + cases[1]], parameters, name)
    pairs = [(given, result) for given, (_, result) in zip(inputs, cases[0] + cases[1])]
    return make_problem(name, entry["docstring"], parameters, pairs[: len(cases[0])], pairs[len(cases[0]) :])


def from_task(task: dict) -> Problem:
    """A problem of a row in HumanEval's format whose test has the form of the mini tasks."""
    prompt = ast.parse(task["prompt"] + "\n    pass").body[-1]
    pattern = r"^\s*assert candidate\((.*)\) == (.*)$"
    cases = re.findall(pattern, task["test"], re.M)
    pairs = [(list(ast.literal_eval(f"({given},)")), ast.literal_eval(result)) for given, result in cases]
    if not isinstance(prompt, ast.FunctionDef) or not pairs or len(pairs) != task["test"].count("assert "):
        raise ValueError("its test is not made of lines like: assert candidate(1) == 2")
    words = (ast.get_docstring(prompt) or "").split("\n")[0]
    return make_problem(task["entry_point"], words, [each.arg for each in prompt.args.args], pairs)


def read_problems(path) -> list[Problem]:
    """The problems of a .json file, or those of a .jsonl task file that can be used; else SystemExit."""
    problems, mistakes, where = [], [], ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        is_tasks = str(path).endswith(".jsonl")
        entries = (
            [json.loads(line) for line in text.splitlines() if line.strip()] if is_tasks else json.loads(text)
        )
        if not isinstance(entries, list):
            raise ValueError("the file must be one list of problems")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}; docs/dqn.md shows how problems are written") from None
    for number, entry in enumerate(entries, 1):
        try:
            where = str(entry.get("task_id" if is_tasks else "function_name", f"problem {number}"))
            problems.append(from_task(entry) if is_tasks else from_json(entry))
        except (KeyError, TypeError, AttributeError, ValueError, SyntaxError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else error
            mistakes.append(f"{path}, {where or f'problem {number}'}: {what}")
    names = [problem.name for problem in problems]
    if repeated := [name for name in names if names.count(name) > 1 and not is_tasks]:
        mistakes.append(f"{path}: two problems are called {repeated[0]}")
    if not problems or (mistakes and not is_tasks):
        raise SystemExit(mistakes[0] if mistakes else f"{path}: there is no problem in it")
    if mistakes:
        print(f"{path}: {len(problems)} of {len(entries)} tasks can be used; the first other: {mistakes[0]}")
    return problems
