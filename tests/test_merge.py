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
def folder(tmp_path_factory):
    """adapter/, LoRA weights large enough that each mistake shows; merged/, its merge in float32; tasks."""
    folder = tmp_path_factory.mktemp("merge")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.data.normal_(std=0.02)
    model.peft_config["default"].base_model_name_or_path = str(BASE)
    model.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder / "adapter")
    (folder / "adapter/run_config.json").write_text(
        '{"method": "PPO", "train_path": "data/mini_train.jsonl"}'
    )
    lines = (ROOT / "data/mini_test.jsonl").read_text().splitlines(keepends=True)[:3]
    (folder / "tasks.jsonl").write_text("".join(lines))
    done = merge(folder, "merged", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert "100% of 3 greedy completions are equal" in done.stdout
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
    """(T, V) on some text, without ends of completions."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(BASE)("def f(x):\n    return x + 1\n").input_ids])
    return model(ids).logits[0].float()


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
    assert record["dtype"] == "float32" and record["num_tasks"] == 3 and record["equal_completions"] == 1
    assert 0 < record["max_difference"] < 1e-5
    assert not list(folder.glob("*.unverified"))


def test_weights_in_4_bit_are_merged_as_the_gpu_unpacks_them(folder):
    """On a GPU the base stays packed, computes in bfloat16, and its weights come out of 4 bit in bfloat16."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantized = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=quantized, dtype=torch.bfloat16)
    model = ml.in_float32(peft.PeftModel.from_pretrained(base, folder / "adapter"))
    assert any(tensor.dtype == torch.uint8 for tensor in model.parameters())
    expected = logits(model)
    merged = ml.merge(model, folder / "adapter")
    assert {tensor.dtype for tensor in merged.parameters()} == {torch.float32}
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert not hasattr(merged.config, "quantization_config")


def test_evaluation_does_not_quantize_a_merge_again(folder):
    """Its completions are the adapter's, and its protocol says what it is; compare_runs.py then warns."""
    adapter, expected = evaluate(folder, "adapter")
    metrics, rows = evaluate(folder, "merged")
    assert [row["completion"] for row in rows] == [row["completion"] for row in expected]
    assert metrics["protocol"]["quantization"] == "none"
    assert metrics["protocol"]["precision"] == "torch.float32"
    assert adapter["protocol"]["quantization"] == "NF4 with double quantization"
    assert metrics["method"] == "PPO" and metrics["is_lora"] is False
    assert [file["train_path"] for file in metrics["overlap"]] == ["data/mini_train.jsonl"]
    done = run_script("compare_runs.py", folder / "results", "--results_dir", folder / "comparison")
    assert done.returncode == 0, done.stderr
    assert re.search("unequal protocols, quantization differs: .*none.* in merged", done.stdout), done.stdout
    again, _ = ev.load_base(folder / "merged", "cpu")  # what it would be without merge.json
    once, _ = ev.load_merged(folder / "merged", "cpu")
    assert (logits(again) - logits(once)).abs().max() > 0.05


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_and_shards(folder, dtype, monkeypatch):
    save = ml.PeftModel.save_pretrained, peft.PeftModel  # noqa: F841
    done = merge(folder, dtype, "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    model, _ = ev.load_merged(folder / dtype, "cpu")
    assert str(model.dtype) == f"torch.{dtype}"
    record = json.loads((folder / dtype / "merge.json").read_text())
    assert 1e-5 < record["max_difference"] <= ml.TOLERANCE[dtype]


# ---- what is refused ----------------------------------------------------------------------------------


def twice(monkeypatch, folder):
    """The adapter is merged with twice its scale."""
    right = peft.tuners.lora.LoraModel.merge_and_unload

    def wrong(model, **how):
        for module in model.modules():
            if hasattr(module, "scaling"):
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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mistake", [twice, original, damaged, infinite], ids=lambda each: each.__name__)
def test_wrong_merges_are_refused(folder, monkeypatch, mistake, dtype):
    """An earlier merge stays where a wrong one was to replace it."""
    if (mistake, dtype) not in {
        (twice, "bfloat16"),
        (original, "bfloat16"),
        (damaged, "float32"),
        (infinite, "float16"),
    }:
        pytest.skip("one format each")
    shutil.copytree(folder / "merged", folder / "earlier", dirs_exist_ok=True)
    mistake(monkeypatch, folder)
    done = merge(folder, "earlier", "--dtype", dtype)
    assert done.returncode == 1
    assert re.search(
        r"earlier.unverified is not the adapter's model, tolerance [\d.e-]+: log-prob", done.stderr
    )
    assert not (folder / "earlier.unverified/merge.json").exists()
    assert (folder / "earlier/merge.json").read_bytes() == (folder / "merged/merge.json").read_bytes()
    monkeypatch.undo()
    assert merge(folder, "earlier").returncode == 0  # the next try replaces both
    assert not (folder / "earlier.unverified").exists()
    assert json.loads((folder / "earlier/merge.json").read_text())["dtype"] == "bfloat16"
