"""Chat format: prompts by the tokenizer's template, programs taken from answers, all EOS ids."""

import json

import pytest
import torch
from conftest import ROOT, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import train_ppo_lora as ppo
from data.tasks import answered, program
from data.truncation import truncate
from sandbox import Sandbox, encode_prompt, preflight, read_tasks, reference, score, stop_ids

BASE = ROOT / "data/tiny_coder"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou write Python.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TASK = {
    "task_id": "T/0",
    "prompt": 'from math import sqrt\n\n\ndef root(x):\n    """Return the square root."""\n',
    "canonical_solution": "    return sqrt(x)\n",
    "test": "def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(16) == 4\n",
    "entry_point": "root",
}
CHAT = {**TASK, "chat": "answer"}
RIGHT = "def root(x):\n    return x ** 0.5\n"
HELPER = "def half(x):\n    return x / 2\n"
MAIN = '\nif __name__ == "__main__":\n    print(root(int(input())))\n'
ANSWERS = {  # answer: the program in it
    "python": (f"```python\n{RIGHT}```", RIGHT),
    "python3": (f"```python3\n{RIGHT}```", RIGHT),
    "py": (f"```py\n{RIGHT}```\n", RIGHT),
    "no language": (f"```\n{RIGHT}```", RIGHT),
    "prose around": (f"Sure! Here it is:\n\n```python\n{RIGHT}```\n\nIt uses `**`.", RIGHT),
    "no fence": (RIGHT, RIGHT),
    "several blocks, the last one an example": (
        f"```python\n{RIGHT}```\nFor example:\n```python\nprint(root(9))\n```\n",
        RIGHT,
    ),
    "two versions": (f"```python\n{RIGHT.replace('0.5', '2')}```\nBetter:\n```python\n{RIGHT}```", RIGHT),
    "helper first, in a block of its own": (f"```python\n{HELPER}```\n```python\n{RIGHT}```", RIGHT),
    "no block defines it": (f"```python\n{HELPER}```\nand\n```\nprint(3)\n```", "print(3)\n"),
    "unfinished fence": (f"```python\n{RIGHT}", RIGHT),
    "main block": (f"```python\n{RIGHT}{MAIN}```", RIGHT + MAIN),
    "tabs": ("```python\n" + RIGHT.replace("    ", "\t") + "```", RIGHT.replace("    ", "\t")),
    "CRLF": (f"```python\r\n{RIGHT}```".replace("\n", "\r\n"), None),
    "fence in a list": (
        "1. So:\n   ```python\n" + "".join(f"   {line}\n" for line in RIGHT.splitlines()) + "   ```",
        RIGHT,
    ),
    "whole prompt again": (f"```python\n{TASK['prompt']}    return sqrt(x)\n```", None),
    "a name for it": ("```python\nimport math\nroot = math.sqrt\n```", "import math\nroot = math.sqrt\n"),
    "class": (
        "```python\nclass Solution:\n    def root(self, x):\n        return x ** 0.5\n```",
        "class Solution:\n    def root(self, x):\n        return x ** 0.5\n",
    ),
}
WRONG = (
    "another function",
    f"```python\n{HELPER}```",
    "I cannot.",
    "",
    "```",
    "```python\ndef root(x): pass\n```",
)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, timeout=2) as sandbox:
        yield sandbox


def test_the_program_of_an_answer(sandbox):
    for name, (answer, expected) in ANSWERS.items():
        found = answered(CHAT, answer)
        assert expected is None or found == expected, name
        assert answered(CHAT, found) == found, name
    # A class Solution comes before the function of the prompt, which does nothing.
    answers = [answer for name, (answer, _) in ANSWERS.items() if "no block" not in name]
    results = score(sandbox, [CHAT] * len(answers), answers)
    assert [result.outcome for result in results] == ["passed"] * len(answers)
    assert "passed" not in {result.outcome for result in score(sandbox, [CHAT] * len(WRONG), WRONG)}


def test_as_it_is_an_answer_is_a_program_only_without_fences(sandbox):
    raw = {**TASK, "chat": "raw"}
    outcomes = [score(sandbox, [raw], [answer])[0].outcome for answer in (RIGHT, f"```python\n{RIGHT}```")]
    assert outcomes == ["passed", "syntax"]
    assert truncate(CHAT, f"```\n{RIGHT}```\nprose") == f"```\n{RIGHT}```\nprose"  # program() finds it


def test_a_script_is_the_last_block(sandbox):
    script = {
        **TASK,
        "prompt": '"""Print twice the number."""\n',
        "test": "",
        "entry_point": "",
        "chat": "answer",
    }
    script["input_output"] = {"inputs": ["3\n", "0\n"], "outputs": ["6\n", "0\n"]}
    answer = "```python\nprint(3)\n```\nOr rather:\n```python\nprint(2 * int(input()))\n```"
    assert score(sandbox, [script], [answer])[0].outcome == "passed"
    assert score(sandbox, [script], ["```python\nprint(6)\n```"])[0].fraction == 0.5


def test_references_pass_and_cheats_fail(sandbox):
    tasks = read_tasks(ROOT / "data/mini_dev.jsonl", "chat")[:20]
    assert (
        preflight(sandbox, tasks, cut=truncate)
        == "preflight: 20/20 reference solutions pass, 0/60 cheats pass"
    )
    assert reference(tasks[0]).startswith("```python\n" + tasks[0]["prompt"].rstrip())
    assert program(tasks[0], reference(tasks[0])).count(tasks[0]["prompt"].rstrip()) == 2


def chat_model(folder, architecture):
    """A small model whose tokenizer has a ChatML template; its generation config names two EOS."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    old_eos = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    if architecture == "llama":
        model = AutoModelForCausalLM.from_pretrained(BASE)
        model.resize_token_embeddings(len(tokenizer))
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=len(tokenizer)))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, old_eos]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_template_makes_the_prompt(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_model(tmp_path, "qwen2"))
    text = tokenizer.decode(encode_prompt(tokenizer, CHAT))
    assert text.startswith(
        "<|im_start|>system\nYou write Python.<|im_end|>\n<|im_start|>user\nSolve this task"
    )
    assert text.endswith(f"```python\n{TASK['prompt'].rstrip()}\n```<|im_end|>\n<|im_start|>assistant\n")
    assert encode_prompt(tokenizer, TASK) == tokenizer(TASK["prompt"].rstrip())["input_ids"]
    with pytest.raises(SystemExit, match="has no chat template; use completion"):
        encode_prompt(AutoTokenizer.from_pretrained(BASE), CHAT)


def test_each_eos_of_the_generation_config_ends_a_completion(tmp_path):
    model, tokenizer = ppo.load_base(chat_model(tmp_path, "llama"), "cpu")
    assert set(stop_ids(model, tokenizer)) == {tokenizer.eos_token_id, 1}
    prompts = [encode_prompt(tokenizer, CHAT)]
    (free,) = [ids for _, ids in ppo.generate(model, tokenizer, prompts, 12)]
    new = next(token for token in free[:-1] if token not in (tokenizer.eos_token_id, 1))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, new]
    (ended,) = [ids for _, ids in ppo.generate(model, tokenizer, prompts, 12)]
    assert ended == free[: free.index(new) + 1]
    task = {**CHAT, "prompt_ids": prompts[0]}
    with Sandbox(workers=1) as sandbox:
        (sample,) = ppo.rollout(model, tokenizer, sandbox, [task], 12)
    assert not sample["hit_token_limit"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_train_and_evaluate(tmp_path, architecture):
    base = chat_model(tmp_path / "base", architecture)
    lines = (ROOT / "data/mini_dev.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "tasks.jsonl").write_text("".join(sorted(lines, key=len)[:4]))
    chat = ("--prompt_format", "chat", "--train_path", tmp_path / "tasks.jsonl")
    sft = run_script(
        "train_sft_lora.py", *chat, "--model_name", base, "--output_dir", tmp_path / "sft", "--max_steps", 1
    )
    assert sft.returncode == 0, sft.stderr
    for name, count in ("rl", "num_steps"), ("ppo", "num_updates"):
        flags = "--sft_model", tmp_path / "sft", "--output_dir", tmp_path / name, f"--{count}", 1
        done = run_script(f"train_{name}_lora.py", *chat, *flags, "--max_new_tokens", 8, "--batch_size", 2)
        assert done.returncode == 0, done.stderr
        assert "preflight: 4/4 reference solutions pass, 0/24 cheats pass" in done.stdout
        assert json.loads((tmp_path / name / "run_config.json").read_text())["prompt_format"] == "chat"
    flags = (
        "--model_path",
        tmp_path / "ppo",
        "--data_path",
        tmp_path / "tasks.jsonl",
        "--results_dir",
        tmp_path,
    )
    done = run_script(
        "eval_humaneval.py", *flags, "--prompt_format", "chat", "--exp_name", "chat", "--max_new_tokens", 8
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "chat_metrics.json").read_text())["protocol"]["prompt_format"] == "chat"
