"""Paths, links, commands, names, metrics and line numbers in README.md, CONTRIBUTING.md, docs/ are real."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import draw_images
from update_lines import PAGES, updated

README = (ROOT / "README.md").read_text()
SCRIPT_OF = {
    "sft": "train_sft_lora.py",
    "reinforce": "train_rl_lora.py",
    "ppo": "train_ppo_lora.py",
    "actor_critic": "train_actor_critic_lora.py",
    "grpo": "train_grpo_lora.py",
    "dpo": "train_dpo_lora.py",
    "dqn": "train_dqn.py",
}
ALGORITHMS = [f"docs/{name}.md" for name in SCRIPT_OF]
HEADINGS = "Idea, Equation, Pseudo-code, Usage, Logged metrics, Implementation details, Results, Known limits"
COMMANDS = re.compile(r"(?:python|sh) [\w/]+\.(?:py|sh)(?:\\\n|[^`\n|&])*")
MADE_BY_A_RUN = re.compile(
    r"checkpoints/|results/|data/(?:humaneval|mbpp|apps|taco|weak|pairs|smollm2)"
    r"|HumanEval|my_|samples|\w+_log\.jsonl|mbpp\.|TACO/"
)
FOREIGN = {"no-deps", "num_processes", "problem_file", "dataset", "samples", "find_zero"}  # other programs'
FOREIGN |= {"nnodes", "node_rank", "nproc_per_node", "master_addr", "master_port"}  # torchrun's
FOREIGN |= {"head", "address", "backend", "target_dir", "local_dir"}  # Ray's and verl's
FOREIGN |= {
    "quiet",
    "net",
    "private",
    "rlimit-as",
    "rlimit-nproc",
    "rlimit-fsize",
    "rlimit-nofile",
}  # firejail's
FOREIGN |= {"lora_adapter_path", "optimizer_offload", "ppo_mini_batch_size", "validate_config"}
SOURCES = [
    path
    for pattern in ("*.py", "*.sh", "data/*.py", "benchmarks/*.py", "scale_out/*.*[yh]", ".ci/*")
    for path in sorted(ROOT.glob(pattern))
]
SOURCE = "\n".join(path.read_text() for path in SOURCES)
TESTS = "\n".join(path.read_text() for path in sorted(ROOT.glob("tests/*.py")))
SETTINGS = set(re.findall(r"^    (\w+): |\"--(\w+)\"", SOURCE, re.M))
SETTINGS = {name for pair in SETTINGS for name in pair if name}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def section(page, heading):
    return re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.M | re.S)[1]


def logged(script):
    """The fields of a log line: `row = {...}`, `row["..."] = ...`, `for name in ...: row[name] = ...`."""
    fields = set()
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name) and target.id == "row" and isinstance(node.value, ast.Dict):
                fields |= {key.value for key in node.value.keys}
            elif ast.unparse(target).startswith("row[") and isinstance(target.slice, ast.Constant):
                fields.add(target.slice.value)
        if isinstance(node, ast.For) and any(ast.unparse(line).startswith("row[name]") for line in node.body):
            fields |= set(ast.literal_eval(node.iter))
    return fields


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
def test_names_exist(page):
    """Flags are of some program, VALUE=... is read by one, and `snake_case` names stand in the source."""
    text = page.read_text()
    assert set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)) - SETTINGS - FOREIGN == set()
    for name in re.findall(r"\b([A-Z][A-Z_]+)=\S", text):
        assert re.search(rf"\b{name}\b", SOURCE + TESTS + text.replace(f"{name}=", "")), name
    names = re.findall(r"`([a-z]\w*_\w*)`", text)
    assert {name for name in names if not re.search(rf"\b{name}\b", SOURCE)} - FOREIGN == set()


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


@pytest.mark.parametrize("name", SCRIPT_OF)
def test_every_logged_metric_is_explained(name):
    rows = re.findall(r"^\| `(\w+)` \|", section(f"docs/{name}.md", "Logged metrics"), re.M)
    assert len(rows) == len(set(rows)) >= 5
    assert set(rows) == logged(SCRIPT_OF[name])


def test_options_and_knobs_are_settings():
    options = re.findall(r"^\| `(\w+)` \|", section("docs/ppo.md", "Usage"), re.M)
    knobs = re.findall(r"^\| (?:\w+: )?`(\w+)`", section("docs/performance.md", "Memory"), re.M)
    assert len(options) >= 3 and len(knobs) >= 5
    assert set(options + knobs) <= SETTINGS


def test_images_are_drawn_from_their_runs(tmp_path):
    assert {path.stem for path in (ROOT / "docs/images").iterdir()} == {
        *draw_images.IMAGES,
        "methods",
        "smol_methods",
    }
    runs = draw_images.read_runs()
    draw_images.draw(*draw_images.IMAGES["weak_tests"], runs, tmp_path / "weak_tests.png")
    assert (tmp_path / "weak_tests.png").stat().st_size > 10_000
    assert all(labels.keys() <= runs.keys() for _, labels in draw_images.IMAGES.values())
    draw_images.draw_methods(tmp_path / "methods.png")
    draw_images.draw_smol_methods(tmp_path / "smol_methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    assert (tmp_path / "smol_methods.png").stat().st_size > 10_000


def test_methods_side_by_side_have_the_figures_of_their_seeds():
    """The table of the tiny model on the page of results, row by row, against the two tables over seeds."""
    text = section("docs/results.md", "The tiny model")
    lines = [line for line in text.splitlines() if re.match(r"\| .* \d", line)]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    measured = []
    for name in "seeds", "seeds_mini_hard_test":
        lines = (ROOT / f"results/tiny/{name}.md").read_text().splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        measured.append({row[0]: row[1:] for row in rows if len(row) == 6})
    assert len(shown) == len(draw_images.METHODS)
    for row, method in zip(shown, draw_images.METHODS):
        raw, truncated, tokens, sampled, _ = measured[0][method]
        assert row[1:] == [sampled.removeprefix("0"), raw, truncated, measured[1][method][0], tokens]


def test_methods_on_smollm2_have_the_figures_of_their_runs():
    """The first table of SmolLM2 on the page of results, row by row; base solves some where it is cut."""
    table = section("docs/results.md", "SmolLM2, a real model").split("\n\n")[2].splitlines()[2:]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    lines = (ROOT / "results/smol/seeds.md").read_text().splitlines()
    measured = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:4] for line in lines[5:] if "|" in line}
    assert len(shown) == len(draw_images.SMOL_METHODS)
    for row, method in zip(shown, draw_images.SMOL_METHODS):
        paths = sorted((ROOT / "results/smol").glob(f"smol_{method}_s[0-9]*_metrics.json"))
        runs = [
            json.loads(path.read_text()) for path in paths or [ROOT / "results/smol/smol_base_metrics.json"]
        ]
        counts = [run["num_pass"] for run in runs]
        cut = [run["num_pass_truncated"] for run in runs]
        assert list(map(int, re.findall(r"\d+", row[2]))) == counts + (cut if cut != counts else [])
        assert [row[3].split(",")[0], row[4]] == [measured[method][0], measured[method][2]]


def test_output_shown_on_the_page_on_evaluation():
    done = subprocess.run(
        [sys.executable, "-c", blocks("docs/evaluation.md", "python")[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == blocks("docs/evaluation.md", "text")[0]


def test_truncated_texts_for_other_scorers(tmp_path):
    """The lines on the page write what the rows count as truncated."""
    (tmp_path / "results").mkdir()
    text = (ROOT / "results/tiny/tiny_base_per_task.jsonl").read_text()
    (tmp_path / "results/tiny_base_per_task.jsonl").write_text(text)
    program = blocks("docs/evaluation.md", "python")[1]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in text.splitlines()]
    cut = [json.loads(line) for line in (tmp_path / "results/tiny_base_cut.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in cut] == [row["task_id"] for row in rows]
    assert all(row["completion"].startswith(short["completion"]) for row, short in zip(rows, cut))
    assert [len(row["completion"]) for row in cut] == [row["cut_at"] for row in rows]


def test_own_tasks_on_the_1_3b_model():
    """The second block is the first without what is there for the tiny model."""
    tiny, large = blocks("docs/your_own_tasks.md", "sh")
    flags = "model_(?:name|path) data/tiny_coder|learning_rate|max_new_tokens|batch_size|num_updates"
    assert re.sub(rf" --(?:{flags})(?: [\d.e-]+)?(?=\s)", "", tiny) == large


def test_own_tasks(tmp_path):
    """The file that the page writes is sound, and its lines run: here with few tasks and one update."""
    for name in (
        "data",
        "sandbox.py",
        "sandbox_worker.py",
        "pass_at_k.py",
        "report.py",
        "report_template.html",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    for script in ("train_sft_lora.py", "train_ppo_lora.py", "eval_humaneval.py", "compare_runs.py"):
        (tmp_path / script).symlink_to(ROOT / script)
    program = blocks("docs/your_own_tasks.md", "python")[0]
    lines = blocks("docs/your_own_tasks.md", "sh")[0].strip()
    for side, count in (("train", 12), ("test", 4)):
        rows = (ROOT / f"data/mini_{side}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"my_{side}.jsonl").write_text("".join(rows[:count]))
    commands = lines.replace("--num_updates 60", "--num_updates 1").replace(" 96", " 40")
    assert commands.count(" 40") == 4 and "--num_updates 1\n" in commands
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
