"""Complete the tasks of a file with vLLM; eval_humaneval.py then scores what it writes.

    python generate_vllm.py --model_path MODEL --output_path samples.jsonl
    python eval_humaneval.py --exp_name theirs --completions_path samples.jsonl

vLLM needs an environment of its own: docs/evaluation.md. Prompts are the token ids that all scripts use.
Greedy unless --temperature is above 0. It is another protocol than eval_humaneval.py with the same model: the
base, also that of an adapter, is in --dtype and not in 4 bit, and vLLM draws other random numbers. Only a
folder of merge_lora.py has the weights that the adapter was trained on. Writes to --output_path, the whole
file or nothing: how it was made in the first line, then one line per completion.
"""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, HfArgumentParser

from data.tasks import encode_prompt, read_tasks
from data.truncation import truncate
from sandbox import stop_ids, stop_with

# ---- hyperparameters --------------------------------------------------------------------------------


@dataclass
class Config:
    """Edit here, or override on the command line: --temperature 0.2"""

    model_path: str = "deepseek-ai/deepseek-coder-1.3b-base"  # hub name, model folder or adapter folder
    data_path: str = "data/humaneval_test.jsonl"
    output_path: str = "samples.jsonl"
    prompt_format: Literal["completion", "chat"] = "completion"  # chat: see data/tasks.py
    n_samples: int = 1  # completions per task; above 1 needs a temperature
    max_length: int = 2048  # tokens of the longest prompt that is accepted
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 42
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    gpu_memory_utilization: float = 0.9  # the share of the memory that vLLM takes; on a CPU, of its RAM


if __name__ == "__main__":
    # ---- tasks, tokenizer, prompts --------------------------------------------------------------------
    (cfg,) = HfArgumentParser(Config, allow_abbrev=False).parse_args_into_dataclasses()
    if min(cfg.n_samples, cfg.max_length, cfg.max_new_tokens) < 1:
        raise SystemExit("--n_samples, --max_length and --max_new_tokens must be at least 1")
    if not 0 <= cfg.temperature < float("inf") or not 0 < cfg.top_p <= 1:
        raise SystemExit("--temperature must be 0 or above, --top_p above 0 and at most 1")
    if cfg.n_samples > 1 and cfg.temperature == 0:
        raise SystemExit("--n_samples above 1 needs a --temperature above 0, or all would be equal")
    tasks = read_tasks(cfg.data_path, cfg.prompt_format)
    base, adapter = cfg.model_path, {}
    folder = base  # of the tokenizer
    with stop_with(f"cannot load {cfg.model_path}"):
        if Path(cfg.model_path, "adapter_config.json").is_file():
            adapter = json.loads(Path(cfg.model_path, "adapter_config.json").read_bytes())
            base = adapter["base_model_name_or_path"]
            if not Path(cfg.model_path, "tokenizer_config.json").is_file():  # else it has the EOS of training
                folder = base
        commit = {"revision": adapter.get("revision")}
        tokenizer = AutoTokenizer.from_pretrained(folder, **commit)
        try:
            defaults = GenerationConfig.from_pretrained(base, **commit)
        except OSError:  # it has none; this is what transformers does
            defaults = GenerationConfig.from_model_config(AutoConfig.from_pretrained(base, **commit))
    stops = stop_ids(SimpleNamespace(generation_config=defaults), tokenizer)
    prompt_ids = {task["task_id"]: encode_prompt(tokenizer, task) for task in tasks}
    longest = max(prompt_ids, key=lambda name: len(prompt_ids[name]))
    if len(prompt_ids[longest]) > cfg.max_length:
        raise SystemExit(f"the prompt of {longest} is over --max_length {cfg.max_length}; raise it")
    temporary = Path(f"{cfg.output_path}.tmp")
    with stop_with(f"cannot write --output_path {cfg.output_path}"):
        temporary.touch()  # now, and not after hours
        temporary.unlink()

    # ---- generate -------------------------------------------------------------------------------------
    try:
        import vllm
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise SystemExit(f"no vLLM ({error}): pip install vllm, in an environment of its own") from None
    options = {"model": base, **commit, "skip_tokenizer_init": True}  # token ids in, token ids out
    options |= {"dtype": cfg.dtype, "gpu_memory_utilization": cfg.gpu_memory_utilization}
    options["max_model_len"] = len(prompt_ids[longest]) + cfg.max_new_tokens
    options["enable_chunked_prefill"] = False  # with it, seeds fail on a CPU (vLLM 0.30)
    options["generation_config"] = "vllm"  # else the model's own top_p, top_k and penalties are added
    if adapter:  # vLLM has room for the powers of 2 from 8
        options |= {"enable_lora": True, "max_lora_rank": max(8, 1 << (adapter["r"] - 1).bit_length())}
    sampling = {"temperature": cfg.temperature, "top_p": cfg.top_p, "max_tokens": cfg.max_new_tokens}
    sampling |= {"stop_token_ids": stops, "detokenize": False}
    todo = [(task, sample) for task in tasks for sample in range(cfg.n_samples)]
    prompts = [{"prompt_token_ids": prompt_ids[task["task_id"]]} for task, _ in todo]
    seeds = [random.Random(f"{cfg.seed} {task['task_id']} {n}").getrandbits(63) for task, n in todo]
    with stop_with(f"vLLM cannot run {cfg.model_path}; it may say more above"):
        llm = vllm.LLM(**options)
        request = LoRARequest("adapter", 1, os.path.abspath(cfg.model_path)) if adapter else None
        params = [vllm.SamplingParams(seed=seed, **sampling) for seed in seeds]
        results = llm.generate(prompts, params, lora_request=request)

    # ---- write ----------------------------------------------------------------------------------------
    lines = [{"engine": f"vllm {vllm.__version__}", "base_model": base, **vars(cfg)}]
    for (task, sample), result in zip(todo, results, strict=True):
        ids = list(result.outputs[0].token_ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        ended = result.outputs[0].finish_reason == "stop"
        row = {"task_id": task["task_id"], "sample": sample, "completion": text}
        is_left_out = ended and set(stops).isdisjoint(ids)  # EOS, which counts like any token
        row["gen_len"] = len(ids) + is_left_out
        row["hit_token_limit"] = not ended
        row["cut_at"] = len(truncate(task, text))  # characters that truncation leaves
        lines.append(row)
    with stop_with(f"cannot write --output_path {cfg.output_path}"):
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, cfg.output_path)
    at_limit = sum(line["hit_token_limit"] for line in lines[1:])
    print(f"{cfg.output_path}: {len(todo)} completions of {len(tasks)} tasks, {at_limit} at the token limit")
