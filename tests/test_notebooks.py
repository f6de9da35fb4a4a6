"""In real notebooks: every script pasted whole into one cell or started by %run; the walkthrough of PPO."""

import asyncio
import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

WALKTHROUGH = "notebooks/ppo_walkthrough.ipynb"


def pasted(script, **values):
    """The whole text of a script, in which the defaults of some hyperparameters were edited."""
    text = (ROOT / script).read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^(    {name}: .*? = )\S+", rf"\g<1>{value!r}", text, flags=re.MULTILINE)
        assert count == 1, f"{script} has no hyperparameter {name}"
    return text


def text_of(cell):
    """All that a cell shows, its error included."""
    return "".join(
        o.get("text", o.get("evalue", o.get("data", {}).get("text/plain", ""))) for o in cell.outputs
    )


def error_of(cell):
    """(kind, message) of the error in which a cell ended, or None."""
    return next(((o.ename, o.evalue) for o in cell.outputs if o.output_type == "error"), None)


class Client(NotebookClient):
    """Presses the stop button when the cell "stopped" has done its second update."""

    def process_message(self, msg, cell, cell_index):
        if cell.id == "stopped" and "update 2 " in msg["content"].get("text", ""):
            self.stop = asyncio.ensure_future(self.km.interrupt_kernel())
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with 24 training and 8 test tasks."""
    work = tmp_path_factory.mktemp("work")
    for side, number in (("train", 24), ("test", 8)):
        head = (ROOT / f"data/mini_{side}.jsonl").read_text().splitlines(keepends=True)[:number]
        (work / f"{side}.jsonl").write_text("".join(head))
    return work


@pytest.fixture(scope="module")
def notebook(work):
    """One notebook after its execution by one kernel: {name: cell}."""
    files = {"train_path": f"{work}/train.jsonl", "test_path": f"{work}/test.jsonl"}
    sft = {"model_name": "data/tiny_coder", "max_steps": 4, "learning_rate": 2e-3}
    rl = {**files, "sft_model": f"{work}/sft", "max_new_tokens": 40, "batch_size": 6}
    tests = {"data_path": files["test_path"], "results_dir": f"{work}/results", "max_new_tokens": 40}
    ppo = {**rl, "num_updates": 2}

    def run(script, **values):
        return f"%run {script} " + " ".join(f"--{name} {value}" for name, value in values.items())

    cells = {
        "sft": pasted("train_sft_lora.py", **files, **sft, output_dir=f"{work}/sft"),
        "sft_variables": "type(model).__name__, loss > 0, len(rows)",
        "rl": pasted("train_rl_lora.py", **rl, output_dir=f"{work}/rl", num_steps=2),
        "rl_variables": "type(model).__name__, rewards.shape, advantages.shape",
        "ppo": pasted("train_ppo_lora.py", **ppo, output_dir=f"{work}/ppo"),
        "ppo_variables": "type(model).__name__, rewards.shape, advantages.shape, log_ratio.shape[0] > 0",
        "eval": pasted("eval_humaneval.py", **tests, model_path=f"{work}/ppo", exp_name="ppo"),
        "eval_variables": "type(model).__name__, metrics['num_tasks'], len(rows)",
        "run_ppo": run("train_ppo_lora.py", **ppo, output_dir=f"{work}/run"),
        "run_again": run("train_ppo_lora.py", **ppo, output_dir=f"{work}/run"),
        "run_eval": run("eval_humaneval.py", **tests, model_path=f"{work}/run", exp_name="run"),
        "run_compare": run("compare_runs.py", results_dir=f"{work}/results"),
        "compare": (ROOT / "compare_runs.py").read_text().replace('"results"', f'"{work}/results"'),
        "wrong_path": pasted("train_ppo_lora.py", **{**ppo, "sft_model": "nowhere"}),
        "wrong_flag": "%run train_ppo_lora.py --num_updats 1",
        "stopped": pasted("train_ppo_lora.py", **{**rl, "num_updates": 999}, output_dir=f"{work}/stopped"),
        "after": "state['done'], rewards.shape",
        "processes": "import psutil\npsutil.Process().children(recursive=True)",
    }
    written = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    )
    Client(written, timeout=300, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    return {cell.id: cell for cell in written.cells}


@pytest.mark.parametrize(
    "name, variables",
    [
        ("sft", "('PeftModelForCausalLM', True, 24)"),
        ("rl", "('PeftModelForCausalLM', torch.Size([6]), torch.Size([6]))"),
        ("ppo", "('PeftModelForCausalLM', torch.Size([6]), torch.Size([6]), True)"),
        ("eval", "('PeftModelForCausalLM', 8, 8)"),
    ],
)
def test_pasted_script_runs_and_leaves_its_variables(notebook, work, name, variables):
    assert error_of(notebook[name]) is None, text_of(notebook[name])
    assert text_of(notebook[f"{name}_variables"]) == variables
    assert name == "eval" or f"saved {work}/{name}\n" in text_of(notebook[name])


@pytest.mark.parametrize("name", ["run_ppo", "run_again", "run_eval", "run_compare", "compare"])
def test_run_magic_works_and_so_does_a_pasted_comparison(notebook, name):
    assert error_of(notebook[name]) is None, text_of(notebook[name])


def test_run_magic_gives_the_result_of_the_pasted_cell(notebook, work):
    adapters = [(work / name / "adapter_model.safetensors").read_bytes() for name in ("ppo", "run")]
    assert adapters[0] == adapters[1]
    assert len((work / "run/ppo_train_log.jsonl").read_text().splitlines()) == 2  # of the second run alone
    assert "run" in text_of(notebook["run_compare"])


@pytest.mark.parametrize("name, message", [("wrong_path", "nowhere is no"), ("wrong_flag", "--num_updats 1")])
def test_mistake_ends_in_one_line(notebook, name, message):
    kind, text = error_of(notebook[name])
    assert kind == "SystemExit" and message in text and "\n" not in text


def test_stop_button_saves_the_adapter(notebook, work):
    assert error_of(notebook["stopped"]) == ("SystemExit", "130")
    assert f"saved {work}/stopped (interrupted after" in text_of(notebook["stopped"])
    assert (work / "stopped/adapter_model.safetensors").is_file()


def test_kernel_is_usable_after_all_this_and_no_sandbox_is_left(notebook):
    assert re.fullmatch(r"\(\d{1,2}, torch.Size\(\[6\]\)\)", text_of(notebook["after"]))
    assert text_of(notebook["processes"]) == "[]"


def test_no_progress_bar_fills_the_page(notebook):
    for name, cell in notebook.items():
        bars = [line for line in text_of(cell).splitlines() if re.search(r"(it/s|s/it)\]", line)]
        assert all("Loading weights" in bar for bar in bars), name  # which is not ours


def test_walkthrough_runs_in_a_clone(tmp_path):
    """All cells, in a copy of the repository without what was trained or evaluated; 5 updates for 30."""
    skip = shutil.ignore_patterns(".*", "__pycache__", "checkpoints", "results")
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=skip)
    notebook = nbformat.read(clone / WALKTHROUGH, as_version=4)
    long = [cell for cell in notebook.cells if "--num_updates 30 " in cell.source]
    long[0].source = long[0].source.replace("--num_updates 30 ", "--num_updates 5 ")
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(clone / "notebooks")}}
    )
    client.execute()
    assert (clone / "checkpoints/walkthrough_ppo/run_config.json").is_file()


def test_walkthrough_is_stored_with_its_outputs():
    notebook = nbformat.read(ROOT / WALKTHROUGH, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 5
    for cell in cells:
        assert not re.search(r"Warning|Traceback|(?<![\w.])/(work|tmp|home|root|opt)/", text_of(cell))
        assert not cell.metadata
    assert (ROOT / WALKTHROUGH).stat().st_size < 600_000
