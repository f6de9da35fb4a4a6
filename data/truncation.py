"""Where the answer of a base model ends. It goes on after the function: with calls, prose, the next exercise.

    truncate(task, completion)    the completion, cut after its answer

A program that reads and prints (APPS and TACO without "fn_name") may hold any statement at its top level. It
ends at the first of ENDS_OF_SCRIPT: what opens another text, or a heading. All others define the entry
point, or a class Solution with that method, and this is their rule, for the text of prompt and completion:

1. Take the longest part that parses and that ends with the text or before a line that begins at column 0.
2. Its answer ends before the first top-level statement of the completion that is neither an import, a
   definition nor an assignment, or that defines the entry point once more after it has a body; and it ends
   with the last statement before that one which the entry point needs, itself or by way of others.
3. If that part does not define the entry point (the function is broken or cut off), the answer ends at the
   first of STOP_WORDS, the usual ones of HumanEval, after the function's header.
"""

import ast
import re
import warnings
from contextlib import suppress

from data.tasks import COMPILING, is_script, program

STOP_WORDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "\nimport", "\nfrom", "\nassert")
ENDS_OF_SCRIPT = ('\n"""', '\nr"""', "\n'''", "\n```", "\nQUESTION", "\n---", "\nANSWER")
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom
ASSIGNMENTS = ast.Assign, ast.AnnAssign, ast.AugAssign


def parse(text: str) -> ast.Module | None:
    """The syntax tree of a text, or None."""
    with suppress(SyntaxError, ValueError, MemoryError, RecursionError), COMPILING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a model writes is no mistake of the user's
        return ast.parse(text)
    return None


def bound(node: ast.stmt) -> set[str]:
    """The names that a top-level statement gives a value to; * after a star import.

    A class Solution is LeetCode's form: the sandbox calls its methods by their names.
    """
    if isinstance(node, ast.ClassDef) and node.name == "Solution":
        return {node.name, *(name for part in node.body for name in bound(part))}
    if isinstance(node, DEFINITIONS):
        return {node.name}
    if isinstance(node, IMPORTS):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", ast.Pass())]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def is_complete(node: ast.stmt) -> bool:
    """Whether a statement that defines the entry point is more than a header with a docstring or `pass`."""
    body = getattr(node, "body", [])
    constants = [isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in body]
    empty = [is_constant or isinstance(part, ast.Pass) for part, is_constant in zip(body, constants)]
    return not (isinstance(node, DEFINITIONS) and all(empty))


def end_line(body: list[ast.stmt], entry_point: str, first_new_line: int) -> int:
    """The number of the answer's last line, from the statements of the text; 0 without the entry point."""
    answer, complete = [], False
    for node in body:
        defines = entry_point in bound(node)
        again = defines and complete and isinstance(node, DEFINITIONS)
        is_part = isinstance(node, DEFINITIONS + IMPORTS + ASSIGNMENTS) and not again
        if node.lineno >= first_new_line and not is_part:
            break
        complete |= defines and is_complete(node)
        answer.append(node)
    if not any(entry_point in bound(node) for node in answer):
        return 0
    needed, size = {entry_point, "*"}, 0
    while len(needed) > size:  # it may need what stands after it
        size = len(needed)
        for node in answer:
            if bound(node) & needed:
                needed |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return max(node.end_lineno or 0 for node in answer if bound(node) & needed)


def truncate(task: dict, completion: str) -> str:
    """The completion, cut after its answer by the rule above."""
    if "chat" in task:  # program() takes the program from the answer
        return completion
    if is_script(task):
        return by_stop_words(completion, ENDS_OF_SCRIPT)
    name = task["entry_point"].rpartition(".")[2]  # of Solution().f
    head, text = program(task, ""), program(task, completion)
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n|$)", text)  # as Python counts them
    starts = [n for n, line in enumerate(lines) if line[:1].strip() and len("".join(lines[:n])) >= len(head)]
    trees = ((n, parse("".join(lines[:n]))) for n in [len(lines), *reversed(starts)])
    n, tree = next(((n, tree) for n, tree in trees if tree), (0, ast.parse("")))
    last = end_line(tree.body, name, len(re.findall(r"\r\n|\r|\n", head)) + 2)
    if not last:
        return by_stop_words(completion, STOP_WORDS, max(0, completion.find(f"def {name}")))
    is_whole = n == len(lines) and last == tree.body[-1].end_lineno
    return completion if is_whole else "".join(lines[:last])[len(head) :].rstrip("\r\n")


def by_stop_words(completion: str, words, start: int = 0) -> str:
    """The completion up to its first stop word from `start` on."""
    cuts = [completion.find(word, start) for word in words if word in completion[start:]]
    return completion[: min(cuts)] if cuts else completion
