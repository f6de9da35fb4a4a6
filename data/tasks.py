"""Tasks: reads their files, and compiles their tests.

    read_tasks(path)              the tasks of a file, or one line that says what is wrong with it
    read_pairs(path, tasks)       pairs of completions for them: one is better than the other
    program(task, completion)     what runs; program(task, reference(task)) must pass

A model completes the prompt or, with read_tasks(path, "chat"), answers CHAT, which holds the prompt. The
program then is the prompt's own definitions and, of the answer's ``` blocks, the last that defines the
function (else the last one, else the whole answer).

A task has the five FIELDS of HumanEval. How a program is scored follows from the row:

    "test" defines check          check(candidate) is called, as in HumanEval
    "test" does not               its asserts use the program's own names, as in MBPP
    "input_output" is there       {"inputs": [...], "outputs": [...]}, as in APPS and TACO: what a script
                                  reads and prints or, with "fn_name", lists of arguments and results;
                                  with "int_keys": true, keys of arguments such as "1" are integers

Tasks of EvalPlus's files also have "base_test": their `test` has the inputs of HumanEval or MBPP and further
ones, this has the former alone and is scored like it.

Everything here is trusted and runs in the trainer's process; sandbox.py imports it for all scripts.
"""

import ast
import functools
import gzip
import json
import os
import re
import textwrap
import threading
from collections import Counter
from contextlib import suppress

from data.evalplus_files import LITERAL, from_evalplus, from_mbpp_plus, mended

FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
BENCHMARKS = "humaneval", "mbpp", "apps"  # data/prepare_*.py
OPERATORS = {ast.Eq: "eq", ast.NotEq: "ne", ast.Sub: "sub", ast.Div: "truediv"}
CALL_CHECK = "\n\ncheck(__candidate__)\n"
ARRAYS = """
import numpy, numpy.testing

def __check__(a, b):  # numpy would stretch a wrong shape until it fits: [] is close to every number
    assert not any(kind.__name__ == "Handle" for x in (a, b) for kind in type(x).__mro__), "no array"
    try: shapes = numpy.shape(a), numpy.shape(b)
    except ValueError: return  # lists of unequal lengths
    assert shapes[0] == shapes[1], "another shape"

def __strict__(act):
    def compare(*args, **kwargs):
        named = [kwargs[name] for name in "a b x y x1 x2 actual desired".split() if name in kwargs]
        if len(args) + len(named) > 1: __check__(*[*args, *named][:2])
        return act(*args, **kwargs)
    return compare

def __one_shape__(name, is_literal, a, b):
    kinds = {type(x).__name__ for x in (a, b) if type(x).__module__ == "numpy"}
    if "ndarray" in kinds:
        if is_literal or name in ("sub", "truediv") and len(kinds) > 1:  # x == 0, x - x.mean()
            assert numpy.size(a) * numpy.size(b), "an empty array"
        else: __check__(a, b)
    return getattr(__import__("operator"), name)(a, b)

for __name in "allclose isclose array_equiv equal not_equal less less_equal greater greater_equal".split():
    setattr(numpy, __name, __strict__(getattr(numpy, __name)))
for __name in dir(numpy.testing):
    if __name.startswith(("assert_a", "assert_equal")):
        setattr(numpy.testing, __name, __strict__(getattr(numpy.testing, __name)))
"""
COMPILING = threading.Lock()  # ast.parse is not thread-safe in Python 3.11: "recursion depth mismatch"
CHAT = """Solve this task in Python. Answer with one code block that holds the whole program.

```python
{}
```"""
FENCE = r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)"  # an answer that was cut off has no last one


def read_tasks(path, prompt_format="completion") -> list[dict]:
    """Read tasks in HumanEval's format, or MBPP+'s (.jsonl or .jsonl.gz); mistakes end in one clear line."""
    tasks, mistakes = read_task_lines(path)
    if mistakes:
        number, error = next(iter(mistakes.items()))
        some = ", ".join(map(str, list(mistakes)[:20])) + ", ..." * (len(mistakes) > 20)
        more = f" ({len(mistakes)} broken lines: {some})" if len(mistakes) > 1 else ""
        raise SystemExit(f"{path}, line {number}: {error}{more}")
    return [{**task, "chat": "answer"} for task in tasks] if prompt_format == "chat" else tasks


def read_task_lines(path):
    """Return the tasks of a file and, by line number, what is wrong with other lines; or raise SystemExit."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")  # splitlines() would split at U+2028, which JSON strings may hold
    except FileNotFoundError:
        names = [name for name in BENCHMARKS if os.path.basename(path).startswith(f"{name}_")]
        maker = f"; python data/prepare_{names[0]}.py makes it" if names else ""
        raise SystemExit(f"{path}: no such file{maker}") from None
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
    elif isinstance(task, dict) and {"base_input", "plus_input"} <= task.keys():
        task = from_evalplus(task)  # its `test`, if it has one, is HumanEval's
    for field in FIELDS:
        if not isinstance(task, dict) or not isinstance(task.get(field), str):
            raise ValueError(f"field {field!r} is missing or not a string")
        task[field].encode()  # a UnicodeEncodeError, for half a surrogate pair, is a ValueError
    if "input_output" in task:
        check_cases(task["input_output"])
        return task
    task["test"] = mended(task)
    try:
        for test in task["test"], task.get("base_test", task["test"]):
            call = CALL_CHECK * defines_check(test)
            compile_test(test + call, task["prompt"] * bool(call))  # which is kept for its first use
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"its test cannot be used: {error}") from None
    return task


def check_cases(cases):
    """Raise ValueError unless these are the cases of a task, each with what goes in and what comes out."""
    try:
        pairs = list(zip(cases["inputs"], cases["outputs"], strict=True))
        types = (list, object) if cases.get("fn_name") else (str, str)
        if not pairs or not all(isinstance(part, kind) for pair in pairs for part, kind in zip(pair, types)):
            raise TypeError("a script's are strings, a function's inputs lists of arguments")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"field 'input_output' is not usable: {type(error).__name__}: {error}") from None


def io_cases(tests: dict) -> list[tuple]:
    """Return (what goes in, what comes out) of each case of a field "input_output"."""
    inputs = int_keys(tests["inputs"]) if tests.get("int_keys") else tests["inputs"]
    return list(zip(inputs, tests["outputs"]))


def int_keys(value):
    """Make ints of the keys of dicts that are integers: JSON has strings only."""
    if isinstance(value, list):
        return [int_keys(part) for part in value]
    if isinstance(value, dict):
        items = value.items()
        return {int(key) if re.fullmatch("-?[0-9]+", key) else key: int_keys(part) for key, part in items}
    return value


def defines_check(test: str) -> bool:
    """Whether a test defines check(candidate); asserts on the program's own names do not."""
    return bool(re.search(r"^def check\b", test, re.M))


def is_script(task: dict) -> bool:
    """Whether a program reads and prints; all others are called."""
    return "input_output" in task and not task["input_output"].get("fn_name")


def program(task: dict, completion: str) -> str:
    """Join a prompt and its completion, which starts with the newline, or an answer ("raw": as it is)."""
    if task.get("whole_program"):
        return completion
    if "chat" not in task:
        return task["prompt"].rstrip() + completion
    answer = completion if task["chat"] == "raw" else answered(task, completion)
    return f"{closed(task)}\n\n\n{answer}"


def closed(task: dict) -> str:
    """Return the prompt as a program, in which a function at its end does nothing."""
    with suppress(SyntaxError, ValueError):  # if the prompt does not end in a function
        ast.parse(task["prompt"].rstrip() + "\n    pass")
        return task["prompt"].rstrip() + "\n    pass"
    return task["prompt"].rstrip()


def answered(task: dict, answer: str) -> str:
    """Return the program in an answer, by the rule above."""
    blocks = [textwrap.dedent(block) for block in re.findall(FENCE, answer, re.M | re.S)]
    name = re.escape(task["entry_point"].partition(".")[0].removesuffix("()"))
    defines = rf"^[ \t]*(async def|def|class) {name}\b|^{name} *="
    named = [block for block in blocks if name and re.search(defines, block, re.M)]
    return (named or blocks or [answer])[-1]


def reference(task: dict) -> str:
    """Return the reference solution as a completion, or as an answer."""
    solution = "\n" + task["canonical_solution"]
    if "chat" not in task:
        return solution
    return f"```python\n{task['prompt'].rstrip()}{solution.rstrip()}\n```"


def decoded(tokenizer, task: dict) -> str:
    """Return the reference solution as a model would have written it: encoded, and decoded again."""
    ids = tokenizer(reference(task), add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=True)


def lossy(tokenizer, tasks: list[dict]) -> list[dict]:
    """Return the tasks whose reference solution does not come back from the tokenizer as it was."""
    return [task for task in tasks if decoded(tokenizer, task) != reference(task)]


def read_pairs(path, tasks: list[dict], prompt_format="completion") -> tuple[list[dict], Counter]:
    """Read preference pairs; mistakes end in one clear line. Returns pairs, and how many it left out and why.

    A pair is {"task", "chosen", "rejected", "chosen_truncated", "rejected_truncated"}. Its task is the one
    with its prompt or, if there are no tasks at all, one without tests. White space at the end of a prompt
    moves to the completions, as a program is prompt.rstrip() + completion.
    """
    by_prompt = {task["prompt"].rstrip(): task for task in tasks}
    chat = {"chat": "answer"} if prompt_format == "chat" else {}
    pairs, left_out, number = [], Counter(), 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            for name in "prompt", "chosen", "rejected":
                if not isinstance(row[name], str):
                    raise TypeError(f"{name} must be plain text (conversations: a list is not supported)")
                row[name].encode()  # half a surrogate pair is a ValueError
            prompt = row["prompt"].rstrip()
            task = by_prompt.get(prompt) if tasks else {"task_id": "", "prompt": prompt, **chat}
            pair: dict = {"task": task}
            for side in "chosen", "rejected":
                pair[side] = row["prompt"].removeprefix(prompt) + row[side]
                pair[f"{side}_truncated"] = row.get(f"{side}_truncated") is True
            if task is None:
                left_out["no task has this prompt"] += 1
            elif not (row["chosen"] and row["rejected"]) or row["chosen"] == row["rejected"]:
                left_out["a side is empty, or both are equal"] += 1
            else:
                pairs.append(pair)
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file; make_pairs.py makes one") from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else error
        row = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
        raise SystemExit(f"{path}, line {number}: {what}; a line must be {row}") from None
    if not pairs:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise SystemExit(f"{path} has no pair to train on ({reasons or 'it is empty'})")
    return pairs, left_out


def encode_prompt(tokenizer, task: dict) -> list[int]:
    """Return the ids of a prompt: with BOS where the tokenizer sets one, but no EOS, which some append.

    Without its last newline: byte-level BPE merges that with the indentation that the completion starts with.
    """
    text = task["prompt"].rstrip()
    if "chat" in task:
        message = {"role": "user", "content": CHAT.format(text)}
        if not tokenizer.chat_template:
            raise SystemExit("--prompt_format chat: this model has no chat template; use completion")
        return tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    ids = tokenizer(text)["input_ids"]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[: ids.index(plain[0]) + len(plain)] if plain else ids[:1]


def stub(task: dict, value: str, after: str = "") -> str:
    """Return a completion whose answer is always the same: a script prints it, a function returns it."""
    if is_script(task):
        return f"\nprint({value})\n{after}\n"
    body = "" if "chat" in task else closed(task).removeprefix(task["prompt"].rstrip())
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


class OneShape(ast.NodeTransformer):
    """Let ARRAYS compute ==, !=, - and / in a test that uses numpy."""

    def visit_Compare(self, node):
        return self.computed(node, node.ops[0], node.left, *node.comparators)

    def visit_BinOp(self, node):
        return self.computed(node, node.op, node.left, node.right)

    def computed(self, node, operator, *parts):
        self.generic_visit(node)
        if type(operator) not in OPERATORS or len(parts) > 2:
            return node
        values = [part.operand if isinstance(part, ast.UnaryOp) else part for part in parts]
        is_literal = any(isinstance(value, ast.Constant) for value in values)
        how = [ast.Constant(OPERATORS[type(operator)]), ast.Constant(is_literal)]
        call = ast.Call(ast.Name("__one_shape__", ast.Load()), [*how, *parts], [])
        return ast.copy_location(call, node)


@functools.lru_cache(maxsize=4096)
def compile_test(test: str, prompt: str) -> tuple:
    """Return (code of the prompt, code of the test, number of counted asserts, that or 0 if some may recur).

    Raises SyntaxError, or ValueError where nothing in the test could fail.
    """
    with COMPILING:
        tree = ast.parse(LITERAL.sub(lambda line: f"{line[1]}eval({line[2]!r})", test))
        nodes = list(ast.walk(tree))
        words = [ast.unparse(x.func) if isinstance(x, ast.Call) else type(x).__name__ for x in nodes]
        if not re.search("assert|Assert|Raise", " ".join(words)):  # assertEqual is one
            raise ValueError("it has no assert")
        tops = [tree, *(node for node in tree.body if getattr(node, "name", "") == "check")]
        n_flat = sum(isinstance(node, ast.Assert) for top in tops for node in ast.iter_child_nodes(top))
        counter = CountAsserts()
        tree = counter.visit(tree)
        if "numpy" in test:
            tree = OneShape().visit(tree)
            tree.body = ast.parse(ARRAYS).body + tree.body
        ast.fix_missing_locations(tree)
        for source in ("", prompt.rstrip() + " pass", prompt):  # " pass" completes a header without docstring
            with suppress(SyntaxError, ValueError):
                helpers = compile(source, "<prompt>", "exec", dont_inherit=True, optimize=0)
        # optimize=0, or `python -O` would take the asserts away
        code = compile(tree, "<test>", "exec", dont_inherit=True, optimize=0)
    return helpers, code, counter.n_asserts, n_flat * (n_flat == counter.n_asserts)
