"""merge_lora.py: the folder on disk is the adapter's model, and nothing else is accepted."""

import json
import re
import shutil
from types import SimpleNamespace

import peft
import pytest
import torch
from conftest import ROOT, run_script
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import eval_humaneval as ev
import merge_lora as ml
from sandbox import encode_prompt, read_tasks

BASE = ROOT / "data/tiny_coder"


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """adapter/, a trained one; merged/, its merge in float32; tasks.jsonl."""
    folder = tmp_path_factory.mktemp("merge")
    shutil.copytree(trained / "sft", folder / "adapter")
    lines = (trained / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "tasks.jsonl").write_text("".join(lines[:4]))
    done = merge(folder, "merged", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert "100% of 4 greedy completions are equal" in done.stdout
    return folder


def merge(folder, output, *flags):
    command = ["--adapter", folder / "adapter", "--compare_path", folder / "tasks.jsonl"]
    return run_script(
        "merge_lora.py", *command, "--max_new_tokens", 16, "--output_dir", folder / output, *flags
    )


def evaluate(folder, name, *flags):
    command = [
        "--data_path",
        folder / "tasks.jsonl",
        "--max_new_tokens",
        16,
        "--results_dir",
        folder / "results",
    ]
    done = run_script(
        "eval_humaneval.py", *command, "--exp_name", name, "--model_path", folder / name, *flags
    )
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, (folder / f"results/{name}_per_task.jsonl").read_text().splitlines())
    return json.loads((folder / f"results/{name}_metrics.json").read_text()), list(rows)


@torch.no_grad()
def logits(model):
    """(T, V) on some text, without ends of completions; in float64, as float32 rounds such logits by 2e-6."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(BASE)("def f(x):\n    return x + 1\n").input_ids])
    return model.double()(ids).logits[0]


def test_merged_folder_is_the_adapters_model(folder):
    """In plain transformers: to 1e-5, while the base alone is far from it."""
    adapter, _ = ev.load_adapter(folder / "adapter", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert plain.dtype == torch.float32
    assert "quantization_config" not in json.loads((folder / "merged/config.json").read_text())
    assert (logits(plain) - logits(adapter)).abs().max() < 1e-5
    with adapter.disable_adapter():
        assert (logits(plain) - logits(adapter)).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    tasks = read_tasks(folder / "tasks.jsonl")
    expected = [encode_prompt(AutoTokenizer.from_pretrained(BASE), task) for task in tasks]
    assert [encode_prompt(tokenizer, task) for task in tasks] == expected
    record = json.loads((folder / "merged/merge.json").read_text())
    assert record["base_model"] == str(BASE) and record["adapter_sha256"] == ev.sha256(folder / "adapter")
    assert record["dtype"] == "float32" and record["num_tasks"] == 4 and record["equal_completions"] == 1
    assert 0 < record["max_difference"] < 1e-5
    assert not list(folder.glob("*.unverified"))


def test_a_base_that_stays_packed(folder):
    """As on a GPU: the base computes in bfloat16, and its weights come out of 4 bit in bfloat16."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantized = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=torch.bfloat16)
    options = {"quantization_config": quantized, "dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(BASE, **options)
    model = ml.cast(peft.PeftModel.from_pretrained(model, folder / "adapter"))
    assert any(tensor.dtype == torch.uint8 for tensor in model.parameters())
    assert {module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")} == {
        torch.float32
    }
    merged = ml.merge(model, folder / "adapter")
    assert {tensor.dtype for tensor in merged.parameters()} == {torch.float32}
    assert not hasattr(merged.config, "quantization_config")
    base = AutoModelForCausalLM.from_pretrained(BASE, **options).dequantize().float()
    adapter = peft.PeftModel.from_pretrained(base, folder / "adapter")
    assert (logits(merged) - logits(adapter)).abs().max() < 1e-4


def test_evaluation_does_not_quantize_a_merge_again(folder):
    """Its completions are the adapter's, and its protocol says what it is; compare_runs.py then warns."""
    adapter, expected = evaluate(folder, "adapter")
    metrics, rows = evaluate(folder, "merged")
    assert [row["completion"] for row in rows] == [row["completion"] for row in expected]
    assert metrics["protocol"]["quantization"] == "none"
    assert metrics["protocol"]["precision"] == "torch.float32"
    assert adapter["protocol"]["quantization"] == "NF4 with double quantization"
    assert metrics["method"] == "SFT" and metrics["is_lora"] is False
    assert metrics["overlap"] == adapter["overlap"] != []
    done = run_script("compare_runs.py", folder / "results", "--results_dir", folder / "comparison")
    assert done.returncode == 0, done.stderr
    assert re.search("unequal protocols, quantization differs: .*none.* in merged", done.stdout), done.stdout
    shutil.copytree(
        folder / "merged", folder / "from_elsewhere", ignore=shutil.ignore_patterns("run_config.json")
    )
    assert (
        evaluate(folder, "from_elsewhere")[0]["method"] == "merged"
    )  # by other tools, as in scale_out/README.md
    again, _ = ev.load_base(folder / "merged", "cpu")  # what it would be without merge.json
    once, _ = ev.load_merged(folder / "merged", "cpu")
    assert (logits(again) - logits(once)).abs().max() > 0.05


# ---- what is refused ----------------------------------------------------------------------------------


def twice(monkeypatch, folder):
    """The adapter is merged with twice its scale."""
    right = peft.tuners.lora.LoraModel.merge_and_unload

    def wrong(model, **how):
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scaling = {name: 2 * value for name, value in module.scaling.items()}
        return right(model, **how)

    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", wrong)


def original(monkeypatch, folder):
    """It is merged into the weights that were never rounded to 4 bit."""
    unrounded = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "unload", lambda model: unrounded)


def damaged(monkeypatch, folder):
    """One tensor of the file changes between writing and loading."""
    load = ev.load_merged

    def damage(path, device):
        tensors = load_file(path / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.5
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return load(path, device)

    monkeypatch.setattr(ev, "load_merged", damage)


def infinite(monkeypatch, folder):
    """A weight that float16 cannot hold."""
    right = peft.tuners.lora.LoraModel.merge_and_unload

    def wrong(model, **how):
        merged = right(model, **how)
        merged.model.norm.weight.data[0] = 1e6
        return merged

    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", wrong)


WRONG = {twice: "bfloat16", original: "bfloat16", damaged: "float32", infinite: "float16"}


@pytest.mark.parametrize("mistake", WRONG, ids=lambda each: each.__name__)
def test_wrong_merges_are_refused(folder, monkeypatch, mistake):
    """An earlier merge stays where a wrong one was to replace it."""
    shutil.copytree(folder / "merged", folder / "earlier", dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        mistake(patch, folder)
        done = merge(folder, "earlier", "--dtype", WRONG[mistake])
    assert done.returncode == 1
    said = r".*earlier\.unverified is not the adapter's model: log-probabilities differ .*\n"
    assert re.fullmatch(said, done.stderr.splitlines(keepends=True)[-1]), done.stderr
    assert (folder / "earlier.unverified/model.safetensors").is_file()
    assert not (folder / "earlier.unverified/merge.json").exists()
    assert (folder / "earlier/merge.json").read_bytes() == (folder / "merged/merge.json").read_bytes()


def test_a_killed_try_and_the_next_one(folder, monkeypatch):
    """What was killed while it wrote is no merge; the next try replaces it, and the earlier merge."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    shutil.copytree(folder / "merged", folder / "again")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AutoTokenizer.from_pretrained(BASE).__class__, "save_pretrained", kill)
        merge(folder, "again")
    unverified = folder / "again.unverified"
    assert (unverified / "config.json").is_file() and not (unverified / "merge.json").exists()
    assert json.loads((folder / "again/merge.json").read_text())["dtype"] == "float32"
    (unverified / "half.safetensors").write_text("half")
    done = merge(folder, "again")
    assert done.returncode == 0, done.stderr
    assert not unverified.exists() and not (folder / "again/half.safetensors").exists()
    model, _ = ev.load_merged(folder / "again", "cpu")
    assert model.dtype == torch.bfloat16
    record = json.loads((folder / "again/merge.json").read_text())
    assert record["without_rounding"] < 1e-5 < record["max_difference"] < 0.1


def change(folder, name, value):
    """A copy of the adapter with another value in its configuration."""
    shutil.rmtree(folder / "changed", ignore_errors=True)
    path = shutil.copytree(folder / "adapter", folder / "changed") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    return path.parent


def test_bad_input_ends_in_one_line(folder, monkeypatch):
    (folder / "other").mkdir()
    (folder / "other/notes.txt").write_text("mine")
    shutil.copytree(folder / "merged", folder / "base")
    said = {
        ("--adapter", folder / "nowhere"): "nowhere is not the folder of a LoRA adapter: FileNotFoundError",
        ("--adapter", folder / "merged"): "merged is not the folder of a LoRA adapter: FileNotFoundError",
        (
            "--output_dir",
            folder / "other",
        ): "other exists and holds no merge: choose another one, or remove it",
        ("--output_dir", folder / "adapter"): "adapter exists and holds no merge",
        ("--output_dir", folder / "tasks.jsonl"): "tasks.jsonl exists and holds no merge",
        ("--compare_path", folder / "nowhere"): "nowhere: no such file",
        ("--num_tasks", 0): "--num_tasks must be above 0",
    }
    for flags, line in said.items():
        done = merge(folder, "never", *flags)
        assert done.returncode == 1 and line in done.stderr.splitlines()[-1], (flags, done.stderr)
    for name, value, line in (
        ("use_dora", True, "use_dora in its adapter_config.json is not supported"),
        ("modules_to_save", ["lm_head"], "modules_to_save in its adapter_config.json is not supported"),
        ("base_model_name_or_path", str(folder / "base"), "base is the base of the adapter: choose another"),
    ):
        done = merge(folder, "base", "--adapter", change(folder, name, value))
        assert done.returncode == 1 and line in done.stderr.splitlines()[-1], done.stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=55e6))
    done = merge(folder, "deep/never")
    assert done.returncode == 1
    assert done.stderr.endswith(f"{folder} has 55 MB left, and the merged model needs 57\n")
    assert not list(folder.glob("never*")) and not (folder / "deep").exists()
    assert (folder / "other/notes.txt").read_text() == "mine"
