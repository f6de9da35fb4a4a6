"""Paths, commands and line counts in README.md are real."""

import re
import shlex

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"(?:python|sh) [\w/]+\.(?:py|sh)[^`\n|&]*", README)
MADE_BY_A_RUN = re.compile(r"checkpoints/|results/|data/humaneval|HumanEval")


def test_the_two_commands_come_first():
    first, second = re.findall(r"```sh\n(.*)\n```", README)[:2]
    assert first == "pip install -r requirements.txt && sh train_PPO.sh"
    assert second == "pip install -r requirements-dev.txt && python -m pytest -q"
    assert "python -m pytest -q" in (ROOT / ".ci/run").read_text()
    assert "train_PPO.sh" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_command_exists_with_its_flags(command):
    words = shlex.split(command)
    source = (ROOT / words[1]).read_text()
    for flag in (word[2:] for word in words if word.startswith("--")):
        assert re.search(rf"^    {flag}: |\"--{flag}\"", source, re.M), f"{words[1]} has no --{flag}"
    for path in (word for word in words[2:] if "/" in word and not word.startswith("--")):
        assert MADE_BY_A_RUN.match(path) or (ROOT / path).exists(), path


def test_paths_exist():
    names = re.findall(r"`([\w./]+\.(?:py|sh|txt|jsonl|md)|data/\w+)`", README)
    assert len(names) > 10
    for name in names:
        assert MADE_BY_A_RUN.match(name) or (ROOT / name).exists(), name
    for image in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / image).exists(), image


def test_line_counts():
    """The table of files states non-blank lines."""
    rows = re.findall(r"^\| `([\w./]+)` \| (\d+) \|", README, re.M)
    assert {"train_ppo_lora.py", "train_rl_lora.py", "train_sft_lora.py", "eval_humaneval.py"} <= {
        r[0] for r in rows
    }
    for name, count in rows:
        real = sum(1 for line in (ROOT / name).read_text().splitlines() if line.strip())
        assert int(count) == real, f"{name} has {real} non-blank lines"


def test_hyperparameters_named_in_the_readme_exist():
    sources = "".join((ROOT / name).read_text() for name in ("train_ppo_lora.py", "train_sft_lora.py"))
    for knob in ("micro_batch_size", "gradient_checkpointing", "per_device_train_batch_size", "ratio_level"):
        assert knob in README and f"    {knob}: " in sources
