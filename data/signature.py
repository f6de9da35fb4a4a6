"""What makes two programs the same: their syntax trees, but for names, docstrings, comments and layout.

signature(code)    equal for equal programs; code is prompt and completion, see program() in data/tasks.py
"""

import ast
from contextlib import suppress

from data.truncation import parse

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
DOCUMENTED = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module


def outermost(node):
    """Yield the functions below a node that are in no other function; methods are."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            yield child
        else:
            yield from outermost(child)


def fixed_names(tree: ast.AST) -> set[str]:
    """Names that also stand where rename does not change them: keywords, imports, functions, global x, ..."""
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Name, ast.arg, ast.Attribute, ast.Constant)):
            for value in vars(node).values():
                names |= {
                    part for part in (value if isinstance(value, list) else [value]) if type(part) is str
                }
    return names


def rename(tree: ast.AST, fixed: set[str]):
    """Number the arguments and variables of a tree by order of appearance. Annotations stay: they run."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.arg))]
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own -= fixed
    numbers = {}
    for node in nodes:
        field = "arg" if isinstance(node, ast.arg) else "id"
        if (name := getattr(node, field)) in own:
            setattr(node, field, numbers.setdefault(name, str(len(numbers))))


def signature(code: str) -> str:
    """Equal for programs that differ in names of arguments and variables, docstrings or layout alone."""
    if tree := parse(code):
        with suppress(RecursionError):
            for node in ast.walk(tree):
                if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            fixed = fixed_names(tree)
            for function in outermost(tree):
                rename(function, fixed)
            rename(tree, fixed)  # the names outside of functions; numbers are numbered again
            return ast.dump(tree)
    return " ".join(code.split())
