"""Paths, links, commands, figures and line numbers in README.md, CONTRIBUTING.md and docs/ are real."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from update_lines import PAGES, updated

README = (ROOT / "README.md").read_text()
ALGORITHMS = ["docs/sft.md", "docs/reinforce.md", "docs/ppo.md"]
HEADINGS = "Idea, Equation, Pseudo-code, Usage, Logged metrics, Implementation details, Results, Known limits"
COMMANDS = re.compile(r"(?:python|sh) [\w/]+\.(?:py|sh)[^`\n|&]*")
MADE_BY_A_RUN = re.compile(
    r"checkpoints/|results/|data/(?:humaneval|weak)|HumanEval|my_|samples|\w+_log\.jsonl"
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def block(page, language):
    return re.search(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)[1]


def test_the_two_commands_come_first():
    first, second = re.findall(r"```sh\n(.*)\n```", README)[:2]
    assert first == "pip install -r requirements.txt && sh train_PPO.sh"
    assert second == "pip install -r requirements-dev.txt && python -m pytest -q"
    assert "python -m pytest -q" in (ROOT / ".ci/run").read_text()
    assert "train_PPO.sh" in (ROOT / ".ci/run").read_text()


@each_page
def test_commands_exist_with_their_flags(page):
    for command in COMMANDS.findall(page.read_text()):
        words = shlex.split(command, comments=True)
        source = (ROOT / words[1]).read_text()
        for flag in (word[2:] for word in words if word.startswith("--")):
            assert re.search(rf"^    {flag}: |\"--{flag}\"", source, re.M), f"{words[1]} has no --{flag}"
        for path in (word for word in words[2:] if "/" in word and not word.startswith(("--", "$"))):
            assert MADE_BY_A_RUN.match(path) or (ROOT / path).exists(), path


@each_page
def test_paths_and_links_exist(page):
    text = page.read_text()
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh|txt|md|jsonl|ipynb))`", text):
        places = [ROOT / name, page.parent / name]
        assert MADE_BY_A_RUN.match(name) or any(place.exists() for place in places), name
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not link.startswith("http"):
            assert target.exists(), link
            if target.suffix == ".md" and anchor:
                assert anchor in anchors(target), link


@each_page
def test_line_numbers(page):
    """Links go to the lines that hold their code; the table of files states non-blank lines."""
    assert page.read_text() == updated(page), "run python docs/update_lines.py"


def test_there_are_line_numbers():
    assert all(len(re.findall(r"\.py#L\d+\)", (ROOT / page).read_text())) >= 10 for page in ALGORITHMS)
    counted = set(re.findall(r"^\| `([\w./]+)` \| \d+ \|", README, re.M))
    assert {"train_ppo_lora.py", "train_rl_lora.py", "train_sft_lora.py", "sandbox.py"} <= counted


@pytest.mark.parametrize("page", ALGORITHMS)
def test_headings_are_fixed(page):
    assert re.findall(r"^## (.*)$", (ROOT / page).read_text(), re.M) == HEADINGS.split(", ")


def test_hyperparameters_named_in_the_readme_exist():
    sources = "".join((ROOT / name).read_text() for name in ("train_ppo_lora.py", "train_sft_lora.py"))
    for knob in ("micro_batch_size", "gradient_checkpointing", "per_device_train_batch_size", "kl_coef"):
        assert knob in README and f"    {knob}: " in sources


def test_output_shown_on_the_page_on_evaluation():
    done = subprocess.run(
        [sys.executable, "-c", block("docs/evaluation.md", "python")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == block("docs/evaluation.md", "text")


def test_own_tasks(tmp_path):
    """The file that the page writes is sound, and its ten lines run: here with few tasks and one update."""
    for name in ("data", "sandbox.py", "sandbox_worker.py", "report.py", "report_template.html"):
        (tmp_path / name).symlink_to(ROOT / name)
    for script in ("train_sft_lora.py", "train_ppo_lora.py", "eval_humaneval.py", "compare_runs.py"):
        (tmp_path / script).symlink_to(ROOT / script)
    program = block("docs/your_own_tasks.md", "python")
    lines = block("docs/your_own_tasks.md", "sh").strip()
    assert len(lines.splitlines()) == 10
    for side, count in (("train", 12), ("test", 4)):
        rows = (ROOT / f"data/mini_{side}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"my_{side}.jsonl").write_text("".join(rows[:count]))
    commands = lines.replace("--num_updates 60", "--num_updates 1").replace("96", "40")
    assert commands.count("40") == 1 and "--num_updates 1\n" in commands
    check = "python data/check_tasks.py my_tasks.jsonl"
    (tmp_path / "my_tasks.py").write_text(program)
    script = f"set -eux\npython my_tasks.py\n{check}\n{commands}\n"
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 tasks are fine" in done.stdout
    metrics = json.loads((tmp_path / "results/my_ppo_metrics.json").read_text())
    assert metrics["num_tasks"] == 4 and len(metrics["overlap"]) == 2
    assert (tmp_path / "results/report.html").exists()
