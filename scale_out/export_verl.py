"""Hand tasks and an SFT adapter over to verl 0.9.1: two parquet files and a merged model. Needs no verl.

    python scale_out/export_verl.py --sft_model checkpoints/NAME_sft --output_dir checkpoints/NAME_verl

Reads   --train_path, --dev_path, --sft_model and its base
Writes  to --output_dir model/ (by merge_lora.py: the adapter in its dequantised base, in 16 bit), then
        train.parquet and val.parquet

What is refused, before anything is written: a reference that fails or a cheat that passes (preflight, by the
function that rewards the policy in verl, too), a prompt that has other token ids in verl than in our scripts,
and one over --max_prompt_length, which verl would leave out. A row, in the order of the task file:

    data_source   the part of task_id before the first /
    prompt        [{"role": "user", "content": the prompt}]
    ability       "code"
    reward_model  {"style": "rule", "ground_truth": the task as JSON, for verl_reward.py}
    extra_info    {"index", "task_id", "split"}
"""

import json
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandbox import Sandbox, encode_prompt, parse_config, preflight, read_tasks, stop_with

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --max_prompt_length 1024"""

    train_path: str = "data/humaneval_train.jsonl"
    dev_path: str = "data/humaneval_dev.jsonl"  # what verl validates on; left out of the training tasks
    sft_model: str = "checkpoints/deepseek_1_3b_lora_sft_v2"  # folder of a LoRA adapter
    output_dir: str = "checkpoints/deepseek_1_3b_verl"
    max_prompt_length: int = 512  # tokens; data.max_prompt_length of verl
    max_new_tokens: int = 256  # of the completions that the merged model is compared with the adapter on
    time_limit: float = 5.0  # seconds per program; reward_kwargs.time_limit of verl
    device: str = "auto"  # for the merge: auto, cpu, cuda or cuda:1


# In verl all prompts are chats. With this template, which the two YAML files have, a prompt is its text.
RAW = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEXTS = pa.struct({"role": pa.string(), "content": pa.string()})
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(TEXTS),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct({"index": pa.int64(), "task_id": pa.string(), "split": pa.string()}),
    }
)

# ---- prompts and rows -------------------------------------------------------------------------------


def messages_of(tokenizer, task: dict) -> list[dict]:
    """The chat whose text, by RAW, is the prompt of our scripts, with the BOS that the tokenizer sets."""
    bos = tokenizer.bos_token if encode_prompt(tokenizer, task)[:1] == [tokenizer.bos_token_id] else ""
    return [{"role": "user", "content": bos + task["prompt"].rstrip()}]


def verl_ids(tokenizer, messages: list[dict]) -> list[int]:
    """The token ids of a prompt in verl; those of its ContinuousTokenBuilder, as a test shows."""
    how = {"chat_template": RAW, "add_generation_prompt": True, "return_dict": False}
    return tokenizer.apply_chat_template(messages, **how)


def check_prompts(tokenizer, tasks: list[dict], max_prompt_length: int):
    """SystemExit if a prompt has other ids in verl than in our scripts, or more than this many."""
    for task in tasks:
        ids = encode_prompt(tokenizer, task)
        if verl_ids(tokenizer, messages_of(tokenizer, task)) != ids:
            raise SystemExit(f"{task['task_id']}: this tokenizer gives its prompt other token ids in verl")
        if len(ids) > max_prompt_length:
            more = f"its prompt has {len(ids)} tokens, over --max_prompt_length {max_prompt_length}"
            raise SystemExit(f"{task['task_id']}: {more}; raise it here and data.max_prompt_length in verl")


def rows_of(tokenizer, tasks: list[dict], split: str) -> list[dict]:
    """The rows of a parquet file; after preflight, which adds the number of tests to the tasks."""
    rows = []
    for index, task in enumerate(tasks):
        told = {name: value for name, value in task.items() if name != "canonical_solution"}
        row = {"data_source": task["task_id"].partition("/")[0], "ability": "code"}
        row["prompt"] = messages_of(tokenizer, task)
        row["reward_model"] = {"style": "rule", "ground_truth": json.dumps(told)}
        row["extra_info"] = {"index": index, "task_id": task["task_id"], "split": split}
        rows.append(row)
    return rows


if __name__ == "__main__":
    # ---- what is refused ------------------------------------------------------------------------------
    cfg = parse_config(Config, free="")
    dev_tasks = read_tasks(cfg.dev_path)
    dev_ids = {task["task_id"] for task in dev_tasks}
    tasks = [task for task in read_tasks(cfg.train_path) if task["task_id"] not in dev_ids]
    if not tasks:
        raise SystemExit(f"{cfg.train_path}: all of its tasks are in --dev_path")
    with stop_with(f"{cfg.sft_model} is not the folder of a LoRA adapter with its tokenizer"):
        json.loads(Path(cfg.sft_model, "adapter_config.json").read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(cfg.sft_model)
    check_prompts(tokenizer, tasks + dev_tasks, cfg.max_prompt_length)
    with Sandbox(timeout=cfg.time_limit, tasks=tasks + dev_tasks) as sandbox:
        print(preflight(sandbox, tasks + dev_tasks, tokenizer))

    # ---- model ----------------------------------------------------------------------------------------
    folder = Path(cfg.output_dir)
    flags = {"adapter": cfg.sft_model, "output_dir": folder / "model", "compare_path": cfg.train_path}
    flags |= {"max_new_tokens": cfg.max_new_tokens, "device": cfg.device}
    sys.argv = ["merge_lora.py", *(str(word) for name in flags for word in (f"--{name}", flags[name]))]
    script = Path(__file__).resolve().parents[1] / "merge_lora.py"
    runpy.run_path(str(script), run_name="__main__")  # it ends with SystemExit if it fails
    with stop_with(f"cannot load the tokenizer of {folder}/model"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    check_prompts(tokenizer, tasks + dev_tasks, cfg.max_prompt_length)

    # ---- tasks ----------------------------------------------------------------------------------------
    with stop_with(f"cannot write to --output_dir {folder}"):
        for name, part in {"train": tasks, "val": dev_tasks}.items():
            temporary = folder / f"{name}.parquet.tmp"
            try:
                pq.write_table(pa.Table.from_pylist(rows_of(tokenizer, part, name), SCHEMA), temporary)
                os.replace(temporary, folder / f"{name}.parquet")
            finally:
                temporary.unlink(missing_ok=True)
    print(f"{folder}: {len(tasks)} training tasks, {len(dev_tasks)} to validate on, model in 16 bit")
