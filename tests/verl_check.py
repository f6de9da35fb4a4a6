"""What verl 0.9.1 itself makes of an export: run by verl's python, which is not ours. Prints one JSON object.

    VERL_PYTHON tests/verl_check.py EXPORT TASK_FILE

EXPORT is a folder of scale_out/export_verl.py, TASK_FILE its --train_path. tests/test_scale_out.py says what
must come out, and in which environment this runs.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopManager, RewardLoopWorker
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils import hf_tokenizer
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from verl_keys import ROOT, composed, types_of

from data.tasks import read_tasks, reference

export, task_path = sys.argv[1:]
start = time.time()
said = {"seconds": {}}


def lap(name):
    global start
    said["seconds"][name], start = round(time.time() - start, 1), time.time()


def batch(rows, completions):
    """What the rollout hands to the reward: padded responses of these completions."""
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for text in completions
    ]
    width = max(map(len, ids))
    responses = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor(
        [[1] * (1 + len(row)) + [0] * (width - len(row)) for row in ids]
    )  # a prompt of one token
    tensors = {"prompts": responses[:, :1], "responses": responses, "attention_mask": mask}
    others = {
        name: np.array([row[name] for row in rows]) for name in ("data_source", "reward_model", "extra_info")
    }
    return DataProto(batch=TensorDict(tensors, batch_size=len(rows)), non_tensor_batch=others), mask[
        :, 1:
    ].sum(1)


def message_of(act):
    """The last line of what this raises."""
    try:
        act()
    except Exception as error:
        return str(error).strip().splitlines()[-1]
    return "nothing"


# ---- configs: as run_verl.sh composes them ----
configs = {
    name: composed(f"verl_{name}", [f"repository={ROOT}", f"export_dir={export}"]) for name in ("ppo", "grpo")
}
said["keys"] = types_of(composed("ppo_trainer"))
for config in configs.values():
    OmegaConf.resolve(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
said["critic"] = {name: need_critic(config) for name, config in configs.items()}
lap("configs")

# ---- data: rows and prompt ids ----
config = configs["grpo"]
config.data.dataloader_num_workers = config.data.filter_overlong_prompts_workers = 1
tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
files = config.data.train_files, config.data.val_files
train, val = (RLHFDataset(file, tokenizer, config.data) for file in files)
how = OmegaConf.to_container(config.data.apply_chat_template_kwargs)
builder = create_continuous_token_builder(tokenizer, hf_model_type="llama", chat_template_kwargs=how)
said["rows"] = len(train), len(val)
said["prompt_ids"] = [
    builder.build_initial_tokens(list(row["raw_prompt"])) for part in (train, val) for row in part
]
lap("data")

# ---- reward: in this process, then by two actors of Ray ----
references = {task["task_id"]: reference(task) for task in read_tasks(task_path)}
rows = [train[i] for i in range(60)]
right = [references[row["extra_info"]["task_id"]] for row in rows]
wrong = ["\n    return None\n"] * 60
worker = RewardLoopWorker(config)
for name, completions in {"references": right, "return None": wrong}.items():
    scored = worker.loop.run_until_complete(worker.compute_score_batch(batch(rows, completions)[0]))
    said[f"worker, {name}"] = [one["reward_score"] for one in scored]
    lap(f"worker, {name}")

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
config.reward.num_workers = 2
config.reward.custom_reward_function.reward_kwargs.processes = 2
config.reward.custom_reward_function.reward_kwargs.reward = "pass_rate"
manager = RewardLoopManager(config)
lap("Ray and its actors")
for name, completions in {"references": right, "return None": wrong}.items():
    data, lengths = batch(rows, completions)
    scored = manager.compute_rm_score(data)
    rewards = scored.batch["rm_scores"]
    assert torch.equal(
        rewards[torch.arange(60), lengths - 1], rewards.sum(1)
    )  # at the last token, and nowhere else
    said[f"manager, {name}"] = rewards.sum(1).tolist()
    said["columns"] = {column: values.tolist() for column, values in scored.non_tensor_batch.items()}
    lap(f"manager, {name}")

# ---- what must end a run ----
broken = {**rows[0], "reward_model": {"style": "rule"}}
broken["reward_model"]["ground_truth"] = json.dumps(
    {"task_id": "x", "prompt": "", "test": "1", "entry_point": "f"}
)
data, _ = batch([broken, rows[1]], right[:2])
said["worker, broken"] = message_of(lambda: worker.loop.run_until_complete(worker.compute_score_batch(data)))
said["manager, broken"] = message_of(lambda: manager.compute_rm_score(data))
ray.shutdown()
lap("broken")
print(json.dumps(said))
