"""In real notebooks: every script pasted whole into one cell or started by %run; the two walkthroughs."""

import asyncio
import json
import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

WALKTHROUGH = "notebooks/ppo_walkthrough.ipynb"
DQN_WALKTHROUGH = "notebooks/dqn_walkthrough.ipynb"


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
def work(trained, tmp_path_factory):
    """A folder with the tasks of conftest.py and an SFT adapter."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("notebooks") / "work")


@pytest.fixture(scope="module")
def notebook(work):
    """One notebook after its execution by one kernel: {name: cell}."""
    train = {"train_path": f"{work}/train.jsonl"}
    sft = {**train, "model_name": "data/tiny_coder", "max_steps": 2, "per_device_train_batch_size": 4}
    rl = {**train, "sft_model": f"{work}/sft", "max_new_tokens": 40, "batch_size": 6}
    tests = {"data_path": f"{work}/test.jsonl", "results_dir": f"{work}/results", "max_new_tokens": 40}
    ppo = {**rl, "num_updates": 1}
    stopped = {**rl, "output_dir": f"{work}/stopped", "save_every": 1, "ppo_epochs": 1}
    flags = " ".join(f"--{name} {value}" for name, value in ppo.items())
    cells = {
        "sft": pasted("train_sft_lora.py", **sft, output_dir=f"{work}/pasted_sft"),
        "sft_variables": "type(model).__name__, loss > 0, len(rows)",
        "rl": pasted("train_rl_lora.py", **rl, output_dir=f"{work}/rl", num_steps=1),
        "rl_variables": "type(model).__name__, rewards.shape, advantages.shape",
        "ppo": pasted("train_ppo_lora.py", **ppo, output_dir=f"{work}/ppo"),
        "ppo_variables": "type(model).__name__, rewards.shape, advantages.shape, log_ratio.shape[0] > 0",
        "eval": pasted("eval_humaneval.py", **tests, model_path=f"{work}/ppo", exp_name="ppo"),
        "eval_variables": "type(model).__name__, metrics['num_tasks'], len(rows)",
        "run_ppo": f"%run train_ppo_lora.py {flags} --output_dir {work}/run",
        "compare": (ROOT / "compare_runs.py").read_text().replace('"results"', f'"{work}/results"'),
        "wrong_path": pasted("train_ppo_lora.py", **{**ppo, "sft_model": "nowhere"}),
        "wrong_flag": "%run train_ppo_lora.py --num_updats 1",
        "stopped": pasted("train_ppo_lora.py", **stopped, num_updates=999),
        "after": "state['update'], rewards.shape",
        "resumed": pasted("train_ppo_lora.py", **stopped, num_updates=4, resume=True),
        "finished": pasted("train_ppo_lora.py", **stopped, num_updates=4, resume=True),
        "error": "1 / 0",
        "processes": "import gc\nimport psutil\ngc.collect()\npsutil.Process().children(recursive=True)",
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
    folder = work / {"sft": "pasted_sft", "eval": "results"}.get(name, name)
    assert (folder / ("ppo_metrics.json" if name == "eval" else "state.pt")).is_file()


@pytest.mark.parametrize("name", ["run_ppo", "compare"])
def test_run_magic_works_and_so_does_a_pasted_comparison(notebook, name):
    assert error_of(notebook[name]) is None, text_of(notebook[name])


def test_run_magic_gives_the_result_of_the_pasted_cell(notebook, work):
    adapters = [(work / name / "adapter_model.safetensors").read_bytes() for name in ("ppo", "run")]
    assert adapters[0] == adapters[1]


def test_mistake_ends_in_one_line(notebook):
    kind, text = error_of(notebook["wrong_path"])
    assert kind == "SystemExit" and "nowhere as an adapter" in text and "\n" not in text
    assert error_of(notebook["wrong_flag"]) == ("SystemExit", "2")
    assert "unrecognized arguments: --num_updats 1" in text_of(notebook["wrong_flag"])


def test_a_run_that_the_stop_button_ended_is_resumed(notebook, work):
    assert error_of(notebook["stopped"])[0] == "KeyboardInterrupt"
    assert re.fullmatch(r"\([23], torch.Size\(\[6\]\)\)", text_of(notebook["after"]))  # variables are left
    assert error_of(notebook["resumed"]) is None, text_of(notebook["resumed"])
    log = (work / "stopped/ppo_train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in log] == [1, 2, 3, 4]
    assert "update 1 " not in text_of(notebook["resumed"]) and "update 4 " in text_of(notebook["resumed"])
    assert "stopped is finished" in text_of(notebook["finished"])
    assert text_of(notebook["processes"]) == "[]"  # no sandbox, now that no traceback holds it


def test_no_progress_bar_fills_the_page(notebook):
    for name, cell in notebook.items():
        bars = [line for line in text_of(cell).splitlines() if re.search(r"(it/s|s/it)\]", line)]
        assert all("Loading weights" in bar for bar in bars), name  # which is not ours


def test_walkthrough_runs_in_a_clone(tmp_path):
    """All cells, in a copy of the repository without what was trained or evaluated; 2 updates for 20."""
    skip = shutil.ignore_patterns(".*", "__pycache__", "checkpoints", "results")
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=skip)
    notebook = nbformat.read(clone / WALKTHROUGH, as_version=4)
    long = [cell for cell in notebook.cells if "--num_updates 20 " in cell.source]
    long[0].source = long[0].source.replace("--num_updates 20 ", "--num_updates 2 ")
    first = next(cell for cell in notebook.cells if '("test", 40)' in cell.source)
    first.source = first.source.replace('("test", 40)', '("test", 8)').replace(
        '("train", 100)', '("train", 40)'
    )
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(clone / "notebooks")}}
    )
    client.execute()
    assert (clone / "checkpoints/walkthrough_ppo/run_config.json").is_file()


def test_dqn_walkthrough_runs_in_a_clone(tmp_path):
    """All cells, with a twentieth of the steps: the clone is a link to all but what a run writes."""
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    for name in "code_env.py", "data", "sandbox.py", "sandbox_worker.py", "train_dqn.py":
        (clone / name).symlink_to(ROOT / name)
    notebook = nbformat.read(ROOT / DQN_WALKTHROUGH, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(
            "--total_steps 60000 --eval_every 5000", "--total_steps 2560 --eval_every 1280"
        )
    resources = {"metadata": {"path": str(clone / "notebooks")}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    for name in "dqn", "unbounded":
        log = (clone / f"checkpoints/walkthrough_{name}/dqn_train_log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [1280, 2560]


@pytest.mark.parametrize("path, num_plots", [(WALKTHROUGH, 5), (DQN_WALKTHROUGH, 3)])
def test_walkthrough_is_stored_with_its_outputs(path, num_plots):
    notebook = nbformat.read(ROOT / path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert (
        sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == num_plots
    )
    for cell in cells:
        assert not re.search(r"Warning|Traceback|(?<![\w.])/(work|tmp|home|root|opt)/", text_of(cell))
        assert not cell.metadata
    assert (ROOT / path).stat().st_size < 600_000
