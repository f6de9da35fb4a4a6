"""Brings tasks of EvalPlus's files, HumanEval+ and MBPP+, into HumanEval's form. The rules: docs/data.md.

The release form of HumanEval+ is read (base_input, plus_input, atol), and that of the hub, which for MBPP+
is the only one without loss.
"""

import ast
import json
import re
import sys

# Up to 800 KB each, in files of the hub; as text they compile 30 times as fast.
LITERAL = re.compile(r"^( *(?:inputs|results) = )(\[.{2000,}\]) *$", re.M)
PLUS_TEST = """
import json, math

def close(out, exp, atol):  # as np.allclose, but nothing is broadcast
    if isinstance(exp, (list, tuple)):
        is_like = isinstance(out, (list, tuple)) and len(out) == len(exp)
        return is_like and all(close(a, b, atol) for a, b in zip(out, exp))
    are_numbers = isinstance(out, (int, float)) and isinstance(exp, (int, float)) and math.isfinite(exp)
    return out == exp or (are_numbers and abs(out - exp) <= atol + 1e-7 * abs(exp))

def same(out, exp, atol):
    floats = exp if isinstance(exp, (list, tuple)) else [exp]
    atol = atol or 1e-6 * all(isinstance(value, float) for value in floats)
    return out == exp or (atol > 0 and type(out) is type(exp) and close(out, exp, atol))

def check(candidate):
    right = {}
    exec(PROGRAM, right)
    for args in json.loads(INPUTS):  # the candidate gets copies; the reference may change them
        assert"""
ASSERT, END = "    assert exact_match\n", " exact_match = exp == (out is not None)\n"
MENDED = {  # what tests on the hub have, and what they should have
    "HumanEval/32": ("_poly(*candidate(*inp), inp)", "abs(_poly(*inp, candidate(*inp)))"),
    "Mbpp/255": (", [['Dog', 'Cat', 'CatBird', 'Bird', 'Fish'], 77]", ""),  # 1.7 million tuples: over 8 GB
    **dict.fromkeys(("Mbpp/737", "Mbpp/787", "Mbpp/794"), (f"{END}\n", f"{END}{ASSERT}\n")),
}


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
            "base_test": "\n".join(task["test_imports"] + task["test_list"]),
        }
    except (LookupError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"not a task of MBPP+: {type(error).__name__}: {error}") from None


def from_evalplus(task: dict) -> dict:
    """Bring a task of EvalPlus's file of HumanEval+ into HumanEval's form; the judge runs its reference."""
    try:
        if task["task_id"].startswith("Mbpp/"):
            files = "evalplus/mbppplus on the hub or MbppPlus-OriginFmt.jsonl.gz"
            raise ValueError(f"MBPP+ has lost its tuples and sets in this file; take {files}")
        base, plus, name, atol = task["base_input"], task["plus_input"], task["entry_point"], task["atol"] + 0
        if not base or not all(isinstance(args, list) for args in base + plus):
            raise TypeError("its inputs must be lists of arguments")
        claim = f"same(candidate(*args), right[{name!r}](*args), {atol!r})"
        if task["task_id"] == "HumanEval/32":  # a polynomial may have several zeros
            claim = f"abs(right['poly'](*args, candidate(*args))) <= {atol!r}"
        head = f"PROGRAM = {task['prompt'] + task['canonical_solution']!r}\nINPUTS = "
        test, base_test = (f"{head}{json.dumps(x)!r}\n{PLUS_TEST} {claim}\n" for x in (base + plus, base))
        kept = {field: task[field] for field in ("task_id", "prompt", "canonical_solution", "entry_point")}
        return {**kept, "test": test, "base_test": base_test}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a task of HumanEval+: {type(error).__name__}: {error}") from None


def mended(task: dict) -> str:
    """Return the test of a task, without what MENDED says is wrong with it."""
    wrong, right = MENDED.get(task["task_id"], ("", ""))
    if wrong and wrong in task["test"]:
        print(f"warning: {task['task_id']}: test mended, see data/evalplus_files.py", file=sys.stderr)
        return task["test"].replace(wrong, right)
    return task["test"]


def limits(tasks, timeout: float, memory_mb: int = 512) -> tuple[float, int]:
    """Return the limits for programs: at least those of EvalPlus, if some tasks are from its files."""
    if any("base_test" in task or "def assertion(out, exp, atol)" in task["test"] for task in tasks):
        return max(timeout, 60.0), max(memory_mb, 4096)  # EvalPlus's own
    return timeout, memory_mb
