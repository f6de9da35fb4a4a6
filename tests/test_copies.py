"""Helpers that the scripts repeat on purpose must stay equal: fix all copies or none."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    "train_sft_lora.py",
    "train_rl_lora.py",
    "train_ppo_lora.py",
    "train_grpo_lora.py",
    "train_actor_critic_lora.py",
    "train_dpo_lora.py",
    "eval_humaneval.py",
]


@cache
def functions(script):
    """{name: (syntax tree as text, its section's banner)} of a script's functions and classes but Config."""
    source = (ROOT / script).read_text()
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "Config":
            banner = [line for line in lines[: node.lineno] if line.startswith("# ---- ")][-1]
            found[node.name] = (ast.dump(node), banner)
    return found


def copies():
    """Names of functions that stand in more than one script."""
    names = [name for script in SCRIPTS for name in functions(script)]
    return sorted({name for name in names if names.count(name) > 1})


def test_there_are_copies():
    assert "completion_logprobs" in copies() and "load_base" in copies()


@pytest.mark.parametrize("name", copies())
def test_copies_are_equal(name):
    found = [functions(script)[name] for script in SCRIPTS if name in functions(script)]
    assert len({tree for tree, _ in found}) == 1, f"{name} differs between the scripts"


@pytest.mark.parametrize("script", SCRIPTS)
def test_sections_say_what_is_a_copy(script):
    for name, (_, banner) in functions(script).items():
        marked = "copies, kept equal by tests/test_copies.py" in banner
        assert marked == (name in copies()), f"{name} stands under {banner!r}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_scripts_encode_prompts_by_the_same_function(script):
    """Without the last newline, with BOS, without EOS: trained, sampled and evaluated prompts are equal."""
    nodes = ast.walk(ast.parse((ROOT / script).read_text()))
    calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
    assert "encode_prompt(tokenizer, task)" in calls
    assert not [call for call in calls if call.startswith("tokenizer(") and "prompt" in call]
