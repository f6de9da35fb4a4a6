"""generate_vllm.py with a stand-in for vLLM: what is asked of it, and what becomes of its answers."""

import json
import re
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT, run_script
from transformers import AutoTokenizer

from data.scores import GENERATED, read_completions
from data.tasks import encode_prompt, read_tasks, reference

BASE = ROOT / "data/tiny_coder"
TOKENIZER = AutoTokenizer.from_pretrained(BASE)
EOS = TOKENIZER.eos_token_id
LINES = (ROOT / "data/mini_dev.jsonl").read_text().splitlines(keepends=True)[:3]


class StandIn:
    """A module vllm; `asked` is what it was called with, answer(i) gives (token_ids, finish_reason)."""

    def __init__(self, monkeypatch):
        self.answer = lambda i: ([*TOKENIZER("\n    return 1")["input_ids"], EOS], "stop")
        self.asked = {}

        class LLM:  # only the arguments that the script may use
            def __init__(llm, *, model, skip_tokenizer_init, dtype, max_model_len, generation_config, **more):
                names = (
                    "revision gpu_memory_utilization enable_chunked_prefill enable_lora max_lora_rank".split()
                )
                assert more.keys() <= set(names)
                assert skip_tokenizer_init
                self.asked |= more | {"model": model, "dtype": dtype}
                self.asked |= {"max_model_len": max_model_len, "generation_config": generation_config}

            def generate(llm, prompts, params, *, lora_request):
                self.asked |= {"prompts": prompts, "params": params, "lora_request": lora_request}
                answers = [self.answer(i) for i in range(len(prompts))]
                outputs = [SimpleNamespace(token_ids=tuple(ids), finish_reason=why) for ids, why in answers]
                return [SimpleNamespace(outputs=[output]) for output in outputs]

        self.module = ModuleType("vllm")
        self.module.__version__, self.module.LLM = "0.30.0", LLM
        self.module.SamplingParams = lambda **params: params
        request = ModuleType("vllm.lora.request")
        request.LoRARequest = lambda *fields: fields
        for name, module in {"vllm": self.module, "vllm.lora.request": request}.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))


@pytest.fixture
def vllm(monkeypatch):
    return StandIn(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks.jsonl").write_text("".join(LINES))
    return tmp_path


def complete(folder, *flags):
    command = ["--model_path", BASE, "--data_path", folder / "tasks.jsonl", "--max_new_tokens", 24]
    return run_script("generate_vllm.py", *command, "--output_path", folder / "samples.jsonl", *flags)


def written(folder):
    """(the first line, the rows) of the file."""
    first, *rows = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    return first, rows


def test_prompts_are_the_ids_of_all_scripts(folder, vllm):
    assert complete(folder).returncode == 0
    prompts = [encode_prompt(TOKENIZER, task) for task in read_tasks(folder / "tasks.jsonl")]
    assert vllm.asked["prompts"] == [{"prompt_token_ids": ids} for ids in prompts]
    assert vllm.asked["max_model_len"] == max(map(len, prompts)) + 24
    assert vllm.asked["model"] == str(BASE)
    assert vllm.asked["lora_request"] is None
    assert vllm.asked["enable_chunked_prefill"] is False
    assert "enable_lora" not in vllm.asked


def test_sampling_is_ours_and_not_the_models(folder, vllm):
    flags = "--n_samples", 2, "--temperature", 0.8, "--top_p", 0.95, "--dtype", "float32"
    complete(folder, *flags)
    assert (vllm.asked["generation_config"], vllm.asked["dtype"]) == ("vllm", "float32")
    params = vllm.asked["params"]
    seeds = [each.pop("seed") for each in params]
    ours = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 24, "stop_token_ids": [EOS], "detokenize": False}
    assert params == [ours] * 6
    assert len(set(seeds)) == 6  # neither tasks nor samples share their random numbers
    complete(folder, *flags)
    assert [each["seed"] for each in vllm.asked["params"]] == seeds
    complete(folder, *flags, "--seed", 43)
    assert not {each["seed"] for each in vllm.asked["params"]} & set(seeds)


def test_rows(folder, vllm):
    """With EOS and without it, at the limit, and with nothing before EOS."""
    ids = TOKENIZER("\n    return 1\n\n\nprint(2)", add_special_tokens=False)["input_ids"]
    answers = [
        ([*ids, EOS], "stop"),
        (ids, "stop"),
        (ids, "length"),
        ([EOS], "stop"),
        ([], "stop"),
        (ids, "length"),
    ]
    vllm.answer = answers.__getitem__
    done = complete(folder, "--n_samples", 2, "--temperature", 1)
    first, rows = written(folder)
    assert first["engine"] == "vllm 0.30.0" and first["base_model"] == str(BASE) and first["temperature"] == 1
    assert {tuple(row) for row in rows} == {
        ("task_id", "sample", "completion", "gen_len", "hit_token_limit", "cut_at")
    }
    assert set(GENERATED) == set(rows[0])
    names = [json.loads(line)["task_id"] for line in LINES]
    assert [(row["task_id"], row["sample"]) for row in rows] == [(name, n) for name in names for n in (0, 1)]
    text = "\n    return 1\n\n\nprint(2)"
    assert [row["completion"] for row in rows] == [text, text, text, "", "", text]
    n = len(ids)
    assert [row["gen_len"] for row in rows] == [n + 1, n + 1, n, 1, 1, n]
    assert [row["hit_token_limit"] for row in rows] == [False, False, True, False, False, True]
    assert rows[0]["cut_at"] == len("\n    return 1")
    assert done.stdout.endswith("samples.jsonl: 6 completions of 3 tasks, 2 at the token limit\n")
    given = read_completions(folder / "samples.jsonl", read_tasks(folder / "tasks.jsonl"))
    assert [{name: row[name] for name in GENERATED} for row in given.values()] == rows
    assert {row["engine"] for row in given.values()} == {"vllm 0.30.0"}


def test_the_file_is_scored(folder, vllm):
    tasks = read_tasks(folder / "tasks.jsonl")
    right = [TOKENIZER(reference(task), add_special_tokens=False)["input_ids"] for task in tasks]
    vllm.answer = lambda i: ([*right[i], EOS] if i else [EOS], "stop")
    complete(folder)
    flags = "--completions_path", folder / "samples.jsonl", "--results_dir", folder / "results"
    done = run_script(
        "eval_humaneval.py", "--data_path", folder / "tasks.jsonl", *flags, "--exp_name", "vllm"
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "results/vllm_metrics.json").read_text())
    assert metrics["protocol"]["engine"] == "vllm 0.30.0"
    assert metrics["num_pass"] == metrics["num_pass_truncated"] == 2
    assert metrics["avg_gen_len"] == (1 + sum(len(ids) + 1 for ids in right[1:])) / 3
    assert metrics["num_hit_token_limit"] == 0


@pytest.mark.parametrize("rank, room", [(4, 8), (16, 16), (24, 32)])
def test_adapters(folder, vllm, rank, room):
    adapter = folder / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(BASE), "revision": "main", "r": rank}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert complete(folder, "--model_path", adapter).returncode == 0
    assert vllm.asked["lora_request"] == ("adapter", 1, str(adapter))
    assert vllm.asked["model"] == written(folder)[0]["base_model"] == str(BASE)
    assert (vllm.asked["enable_lora"], vllm.asked["max_lora_rank"]) == (True, room)
    assert vllm.asked["revision"] == "main"
    for path in BASE.glob("tokenizer*"):  # its own tokenizer, which may have another EOS
        shutil.copy(path, adapter)
    fields = json.loads((adapter / "tokenizer_config.json").read_text()) | {
        "eos_token": "<|begin_of_sentence|>"
    }
    (adapter / "tokenizer_config.json").write_text(json.dumps(fields))
    complete(folder, "--model_path", adapter)
    assert sorted(vllm.asked["params"][0]["stop_token_ids"]) == [0, 1]


def test_chat_and_all_eos(folder, vllm):
    """The template of the tokenizer; the EOS ids of generation_config.json or, without it, of config.json."""
    model = shutil.copytree(BASE, folder / "model")
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}|")
    (model / "generation_config.json").write_text(
        '{"eos_token_id": [1, 7], "temperature": 0.6, "do_sample": true}'
    )
    assert complete(folder, "--model_path", model, "--prompt_format", "chat").returncode == 0
    tasks, tokenizer = read_tasks(folder / "tasks.jsonl", "chat"), AutoTokenizer.from_pretrained(model)
    assert vllm.asked["prompts"][0]["prompt_token_ids"] == encode_prompt(tokenizer, tasks[0])
    assert tokenizer.decode(vllm.asked["prompts"][0]["prompt_token_ids"]).endswith("```|")
    assert sorted(vllm.asked["params"][0]["stop_token_ids"]) == [1, 7]
    assert vllm.asked["params"][0]["temperature"] == 0
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": [1, 8]}
    (model / "config.json").write_text(json.dumps(config))
    complete(folder, "--model_path", model)
    assert sorted(vllm.asked["params"][0]["stop_token_ids"]) == [1, 8]


REFUSED = {
    "--n_samples 2": "--n_samples above 1 needs a --temperature above 0, or all would be equal",
    "--n_samples 0": "--n_samples, --max_length and --max_new_tokens must be at least 1",
    "--temperature -1": "--temperature must be 0 or above, --top_p above 0 and at most 1",
    "--temperature nan": "--temperature must be 0 or above, --top_p above 0 and at most 1",
    "--top_p 1.5": "--temperature must be 0 or above, --top_p above 0 and at most 1",
    "--max_length 9": "the prompt of mini_dev/.* is over --max_length 9; raise it",
    "--model_path nowhere": "cannot load nowhere: .*",
    "--data_path nowhere": "nowhere: no such file",
    "--output_path /proc/nowhere": "cannot write --output_path /proc/nowhere: .*",
    "--prompt_format chat": "--prompt_format chat: this model has no chat template; use completion",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_refused_before_vllm_starts(folder, vllm, flags):
    done = complete(folder, *flags.split())
    assert done.returncode == 1
    assert re.fullmatch(REFUSED[flags] + "\n", done.stderr), done.stderr
    assert vllm.asked == {}
    assert [path.name for path in folder.iterdir()] == ["tasks.jsonl"]


def test_without_vllm(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    done = complete(folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install vllm, in an environment of its own" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["tasks.jsonl"]


def test_an_earlier_file_stays_where_vllm_fails(folder, vllm):
    (folder / "samples.jsonl").write_text("earlier")

    def fail(i):
        raise RuntimeError("out of\nmemory")

    vllm.answer = fail
    done = complete(folder)
    assert done.returncode == 1
    assert done.stderr == f"vLLM cannot run {BASE}; it may say more above: RuntimeError: out of memory\n"
    assert sorted(path.name for path in folder.iterdir()) == ["samples.jsonl", "tasks.jsonl"]
    assert (folder / "samples.jsonl").read_text() == "earlier"
