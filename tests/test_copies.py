"""Helpers that the scripts repeat on purpose must stay equal: fix all copies or none."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_sft_lora.py", "train_rl_lora.py", "train_ppo_lora.py", "eval_humaneval.py"]


def functions(script):
    """{name: (syntax tree as text, the comment line above it)} of the functions of a script."""
    source = (ROOT / script).read_text()
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
            found[node.name] = (ast.dump(node), lines[first - 2])
    return found


def copies():
    """Names of functions that stand in more than one script."""
    names = [name for script in SCRIPTS for name in functions(script)]
    return sorted({name for name in names if names.count(name) > 1})


def test_there_are_copies():
    assert "completion_logprobs" in copies() and "load_base" in copies()


@pytest.mark.parametrize("name", copies())
def test_copies_are_equal_and_marked(name):
    found = [functions(script)[name] for script in SCRIPTS if name in functions(script)]
    assert len(set(found)) == 1, f"{name} differs between the scripts"
    assert found[0][1].startswith("# Same in "), f"{name} is not marked as a copy"


def test_shell_scripts_share_their_profile():
    def profile(script):
        text = (ROOT / script).read_text()
        return text[text.index("# Profile:") : text.index('evaluate "${NAME}_base"')]

    assert profile("train_SFT_RL.sh") == profile("train_PPO.sh")
