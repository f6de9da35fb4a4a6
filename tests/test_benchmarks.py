"""The benchmarks of training: what a machine without GPU and without TRL can know about them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import eval_speed
import gpu
import rl_update


def test_gpu_benchmark_without_a_gpu_says_so():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("no CUDA device: skipped")
    assert json.loads(last) == {"skipped": "no CUDA device"}


def test_gpu_benchmark_builds_the_architecture_of_deepseek_coder():
    config = gpu.architecture(tiny=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    projections = 4 * 2048 * 2048 + 3 * 2048 * 5504  # of a layer: q, k, v, o and gate, up, down
    assert model.num_parameters() == 24 * (projections + 2 * 2048) + 2 * 32256 * 2048 + 2048 == 1_346_471_936
    rotary = model.model.rotary_emb
    assert rotary.config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}


def test_gpu_benchmark_gives_a_verdict_on_memory():
    record = {"reserved_gb": 13.9, "allocated_gb": 9.0, "seconds": [1.0, 2.0, 9.0]}
    assert "13.90 GB reserved, 9.00 allocated: OK" in gpu.line("ppo", record)
    assert "2.00 s per update" in gpu.line("ppo", record)
    assert "TOO MUCH" in gpu.line("ppo", record | {"reserved_gb": 14.0})


def test_log_of_a_run_without_its_first_update(tmp_path):
    rows = [
        {"seconds": seconds, "avg_gen_len": length} for seconds, length in ((9.0, 50), (10.0, 60), (12.0, 70))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = rl_update.read_log(tmp_path / "log.jsonl", 32, gen_len="avg_gen_len")
    assert record == {"gen_len": [60, 70], "seconds": [1.0, 2.0], "num_completions": 32}


def test_row_of_two_rounds():
    record = {"seconds": [1.0, 3.0], "rollout": [0.5, 0.5], "reward": [0.0, 0.2], "update": [0.5, 2.0]}
    record |= {"gen_len": [40.0, 60.0], "flat": [0.0, 0.5], "num_completions": 8, "peak_mb": 600}
    slower = record | {"seconds": [5.0, 7.0], "peak_mb": 700}
    shares, figures = ["25 %", "5 %", "62 %"], [50.0, 200, 0.25, 600]
    assert list(rl_update.row("ours", [record]).values()) == ["ours", 2.0, *shares, *figures]
    both = rl_update.row("ours", [record, slower])
    assert both["s per update"] == 4.0 and both["tokens/s"] == 100 and both["peak MB"] == 700


@pytest.mark.skipif(os.environ.get("NIGHTLY") != "1", reason="slow: set NIGHTLY=1 to measure one update")
@pytest.mark.parametrize("what", ["ours"] if find_spec("trl") is None else ["ours", "trl"])
def test_one_measured_update(tmp_path, what):
    """The child process of a run, with the flags and log fields it needs; it checks its weights itself."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    tokenizer.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "data/tiny_coder", dtype=torch.float32)
    get_peft_model(base, LoraConfig(target_modules=["q_proj", "gate_proj"])).save_pretrained(tmp_path)
    sizes = {"num_completions": 8, "max_new_tokens": 8, "micro_batch_size": 4, "epochs": 2}
    arguments = {"sft_model": str(tmp_path), "train_path": "data/mini_dev.jsonl", "num_updates": 2, "seed": 1}
    record = rl_update.run_child(ROOT / "benchmarks/rl_update.py", what, sizes=sizes, **arguments)
    assert set(record) == {*rl_update.PARTS, "num_completions", "peak_mb"}
    assert all(len(record[name]) == 1 for name in rl_update.PARTS)
    assert 0 < record["rollout"][0] + record["update"][0] < record["seconds"][0] * 1.001
    assert 1 <= record["gen_len"][0] <= 8


def test_evaluation_benchmark_compares_equal_work(tmp_path, monkeypatch):
    """Loop and script give the same completions and verdicts, also in a last batch that is not full."""
    lines = (ROOT / "data/mini_test.jsonl").read_text().splitlines(keepends=True)
    some = [lines[i] for i in (0, 64, 81)]  # the last two are right once they are cut
    (tmp_path / "tasks.jsonl").write_text("".join(some))
    monkeypatch.setattr(eval_speed, "NEW_TOKENS", 48)
    monkeypatch.setattr(sys, "argv", [])
    naive, rows = eval_speed.one_at_a_time(tmp_path / "tasks.jsonl")
    mine, same = eval_speed.script(tmp_path / "tasks.jsonl", batch_size=2)
    assert rows == same and len(rows) == 3 and all(0 < row[2] <= 48 for row in rows)
    assert [row[4] for row in rows].count("passed") == 2 and "passed" not in [row[3] for row in rows]
    assert naive > 0 and mine > 0
