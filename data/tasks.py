"""Tasks: reads their files, and compiles their tests.

    read_tasks(path)              the tasks of a file, or one line that says what is wrong with it
    program(task, completion)     what runs; program(task, reference(task)) must pass

A task has the five FIELDS of HumanEval. How a program is scored follows from the row:

    "test" defines check          check(candidate) is called, as in HumanEval
    "test" does not               its asserts use the program's own names, as in MBPP
    "input_output" is there       {"inputs": [...], "outputs": [...]}, as in APPS and TACO: what a script
                                  reads and prints or, with "fn_name", lists of arguments and what is returned

Everything here is trusted and runs in the trainer's process; sandbox.py imports it for all scripts.
"""

import ast
import functools
import gzip
import json
import re
import threading
from contextlib import suppress

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
CALL_CHECK = "\n\ncheck(__candidate__)\n"
COMPILING = threading.Lock()  # ast.parse is not thread-safe in Python 3.11: "recursion depth mismatch"


def read_tasks(path) -> list[dict]:
    """Read tasks in HumanEval's format, or MBPP+'s (.jsonl or .jsonl.gz); mistakes end in one clear line."""
    tasks, mistakes = read_task_lines(path)
    if mistakes:
        number, error = next(iter(mistakes.items()))
        some = ", ".join(map(str, list(mistakes)[:20])) + ", ..." * (len(mistakes) > 20)
        more = f" ({len(mistakes)} broken lines: {some})" if len(mistakes) > 1 else ""
        raise SystemExit(f"{path}, line {number}: {error}{more}")
    return tasks


def read_task_lines(path):
    """Return the tasks of a file and, by line number, what is wrong with other lines; or raise SystemExit."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")  # splitlines() would split at U+2028, which JSON strings may hold
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file; for HumanEval: python data/prepare_humaneval.py") from None
    except Exception as error:  # a directory, no permission, not UTF-8, not gzip, cut short
        raise SystemExit(f"{path}: cannot be read: {error}") from None
    tasks, mistakes = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                task = read_task(line)
                if task["task_id"] in tasks:
                    raise ValueError(f"task_id {task['task_id']!r} was there before")
                tasks[task["task_id"]] = task
        except (ValueError, RecursionError) as error:
            mistakes[number] = error
    with suppress(ValueError, RecursionError):  # all mistakes have one reason
        whole = json.loads("\n".join(lines))
        what = f"an array of {len(whole)}" if isinstance(whole, list) else "one object over several lines"
        if not tasks and (isinstance(whole, list) or len(mistakes) > 1):
            raise SystemExit(f"{path}: each line must be one JSON object; this is {what}")
    if not tasks and not mistakes:
        raise SystemExit(f"{path}: there is no task in it")
    return list(tasks.values()), mistakes


def read_task(line: str) -> dict:
    """Return one line of a task file with its five FIELDS; raises ValueError with what is wrong."""
    try:
        task = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if isinstance(task, dict) and {"code", "test_list", "test"} <= task.keys():
        task = from_mbpp_plus(task)
    for field in FIELDS:
        if not isinstance(task, dict) or not isinstance(task.get(field), str):
            raise ValueError(f"field {field!r} is missing or not a string")
        task[field].encode()  # a UnicodeEncodeError, for half a surrogate pair, is a ValueError
    if "input_output" in task:
        check_cases(task["input_output"])
        return task
    try:
        test = task["test"] + CALL_CHECK * defines_check(task["test"])
        compile_test(test, task["prompt"] * defines_check(task["test"]))  # which is kept for its first use
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"its test cannot be used: {error}") from None
    return task


def check_cases(cases):
    """Raise ValueError unless these are the cases of a task, each with what goes in and what comes out."""
    try:
        pairs = list(zip(cases["inputs"], cases["outputs"], strict=True))
        types = (list, object) if cases.get("fn_name") else (str, str)
        if not pairs or not all(isinstance(part, kind) for pair in pairs for part, kind in zip(pair, types)):
            raise TypeError("a script's are strings, a function's inputs lists of arguments")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"field 'input_output' is not usable: {type(error).__name__}: {error}") from None


def defines_check(test: str) -> bool:
    """Whether a test defines check(candidate); asserts on the program's own names do not."""
    return bool(re.search(r"^def check\b", test, re.M))


def is_script(task: dict) -> bool:
    """Whether a program reads and prints; all others are called."""
    return "input_output" in task and not task["input_output"].get("fn_name")


def from_mbpp_plus(task: dict) -> dict:
    """Bring a task of the hub's evalplus/mbppplus into HumanEval's form, with the prompt that EvalPlus uses.

    Its test calls the function by its name, or as `candidate`, in statements at the top level.
    """
    try:
        names = [node.name for node in ast.parse(task["code"]).body if isinstance(node, ast.FunctionDef)]
        called = [name for name in names if re.search(rf"\b{name}\b", task["test_list"][0])]
        test = [f"candidate = {called[-1]}", task["test"], "def check(candidate): pass"]
        return {
            "task_id": f"Mbpp/{task['task_id']}",
            "prompt": f'"""\n{task["prompt"]}\n{task["test_list"][0]}\n"""\n',
            "canonical_solution": task["code"].strip("\n") + "\n",
            "test": "\n".join(task["test_imports"] + test),
            "entry_point": called[-1],
        }
    except (LookupError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"not a task of MBPP+: {type(error).__name__}: {error}") from None


def program(task: dict, completion: str) -> str:
    """Join a prompt and its completion, which starts with the newline or is a "whole_program"."""
    return completion if task.get("whole_program") else task["prompt"].rstrip() + completion


def reference(task: dict) -> str:
    """Return the reference solution as a completion."""
    return "\n" + task["canonical_solution"]


def stub(task: dict, value: str, after: str = "") -> str:
    """Return a completion whose answer is always the same: a script prints it, a function returns it."""
    if is_script(task):
        return f"\nprint({value})\n{after}\n"
    body = ""
    with suppress(SyntaxError, ValueError):  # if the prompt ends in a function
        ast.parse(task["prompt"].rstrip() + "\n    pass")
        body = "\n    pass"
    name = task["entry_point"].rpartition(".")[2]
    return f"{body}\n\n\ndef {name}(*args, **kwargs):\n    return {value}\n\n\n{after}\n"


class CountAsserts(ast.NodeTransformer):
    """Make every assert, or call into numpy.testing, report to the judge instead of ending the test."""

    n_asserts = 0

    def visit_Assert(self, node):
        self.n_asserts += 1
        source = "try: pass\nexcept Exception as __error: __count__(__error, {!r})\nelse: __count__(None)"
        wrapper = ast.parse(source.format(ast.unparse(node))).body[0]
        wrapper.body = [node]
        return ast.copy_location(wrapper, node)

    def visit_Expr(self, node):
        return self.visit_Assert(node) if ast.unparse(node).startswith("np.testing.assert") else node

    def visit_Try(self, node):
        return node  # a handler may wait for this very assert

    visit_TryStar = visit_With = visit_Try


@functools.lru_cache(maxsize=4096)
def compile_test(test: str, prompt: str) -> tuple:
    """Return (code of the prompt, code of the test, number of counted asserts, that or 0 if some may recur).

    Raises SyntaxError, or ValueError where nothing in the test could fail.
    """
    tree = ast.parse(test)
    words = [ast.unparse(x.func) if isinstance(x, ast.Call) else type(x).__name__ for x in ast.walk(tree)]
    if not re.search("assert|Assert|Raise", " ".join(words)):  # assertEqual is one
        raise ValueError("it has no assert")
    tops = [tree, *(node for node in tree.body if getattr(node, "name", "") == "check")]
    n_flat = sum(isinstance(node, ast.Assert) for top in tops for node in ast.iter_child_nodes(top))
    counter = CountAsserts()
    tree = ast.fix_missing_locations(counter.visit(tree))
    for source in ("", prompt.rstrip() + " pass", prompt):  # " pass" completes a header without docstring
        with suppress(SyntaxError, ValueError):
            helpers = compile(source, "<prompt>", "exec", dont_inherit=True, optimize=0)
    # optimize=0, or `python -O` would take the asserts away
    code = compile(tree, "<test>", "exec", dont_inherit=True, optimize=0)
    return helpers, code, counter.n_asserts, n_flat * (n_flat == counter.n_asserts)
