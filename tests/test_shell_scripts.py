"""profile.sh and the six train_*.sh, with a `python` that only writes down how it was called.

At the end the commands of the profile smol really run: on a small random model, and on SmolLM2 where it is.
"""

import json
import os
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from transformers import AutoTokenizer, HfArgumentParser, LlamaConfig, LlamaForCausalLM

from data.prepare_mbpp import to_task

STUB = """#!/bin/sh
printf '%s\\t' "$@" >>calls
echo >>calls
[ "$(wc -l <calls)" -ne "${STOP_AT:-0}" ] || exit 130
case $1 in
data/prepare_humaneval.py) for SIDE in train test all; do touch data/humaneval_$SIDE.jsonl; done ;;
data/prepare_mbpp.py) for SIDE in train dev test; do touch data/mbpp_$SIDE.jsonl; done ;;
data/get_smollm2.py) mkdir data/smollm2 && touch data/smollm2/config.json ;;
esac
"""
SCRIPTS = "PPO", "SFT_RL", "GRPO", "DPO", "AC"
MBPP = {"PROFILE": "deepseek", "DATASET": "mbpp"}
SMOL = {"PROFILE": "smol"}
SMOLLM2 = Path(os.environ.get("SMOLLM2", ROOT / "data/smollm2"))
each_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture
def copy(tmp_path):
    """A folder with the shell scripts, mini tasks without content, and the stub."""
    copy = tmp_path / "a copy"
    (copy / "data").mkdir(parents=True)
    for path in ROOT.glob("*.sh"):
        shutil.copy(path, copy)
    for side in "train", "dev", "test":
        (copy / f"data/mini_{side}.jsonl").touch()
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    return copy


def run(copy, name, **values):
    """(process, its calls of python as lists of words); from another folder, as a user may."""
    (copy / "calls").unlink(missing_ok=True)
    environment = {"PATH": f"{copy.parent}:{os.environ['PATH']}", "PROFILE": "tiny"}
    environment |= {name: str(value) for name, value in values.items()}
    command = ["sh", str(copy / f"train_{name}.sh")]
    done = subprocess.run(command, env=environment, cwd=copy.parent, capture_output=True, text=True)
    calls = (copy / "calls").read_text().splitlines() if (copy / "calls").exists() else []
    return done, [line.split("\t")[:-1] for line in calls]


def calls_of(copy, name, **values):
    done, calls = run(copy, name, **values)
    assert done.returncode == 0, done.stderr
    return calls


def scripts_of(copy, name, **values):
    """The calls without those that make data or a model."""
    return [call for call in calls_of(copy, name, **values) if not call[0].startswith("data/")]


def flags_of(call):
    """{flag: its value, or True}, as the script itself reads them where it has a Config."""
    script, *words = call
    if hasattr(module := import_module(Path(script).stem), "Config"):
        return vars(HfArgumentParser(module.Config, allow_abbrev=False).parse_args(words))
    flags = {}
    for word, value in zip(words, [*words[1:], "--"]):
        if word.startswith("--"):
            assert f'"{word}"' in (ROOT / script).read_text()
            flags[word.removeprefix("--")] = value.startswith("--") or value
    return flags


@each_script
@pytest.mark.parametrize(
    "values", [{}, {"PROFILE": "deepseek"}, MBPP, SMOL, {"DATA": "data/mini", "NAME": "mine"}]
)
def test_commands_are_understood_and_read_what_is_there(copy, name, values):
    made, trained, evaluated, compared = set(), [], [], []
    calls = scripts_of(copy, name, **values)
    for call in calls:
        flags = flags_of(call)
        for flag in {"train_path", "task_path", "data_path"} & flags.keys():
            assert (copy / flags[flag]).is_file()
        for flag in {"sft_model", "pairs_path", "candidates"} & flags.keys():
            assert flags[flag] in made
        if call[0] == "eval_humaneval.py":
            evaluated.append(flags)
            made.add(f"{flags['results_dir']}/{flags['exp_name']}_per_task.jsonl")
        elif call[0] == "compare_runs.py":
            compared.append(flags["results_dir"])
        else:
            assert flags["output_dir"] not in made
            made |= {flags["output_dir"], flags["output_dir"] + "/pairs.jsonl"}
            trained += [flags["output_dir"]] * ("train_path" in flags)
    models = [flags_of(call)["model_name"] for call in calls if call[0] == "train_sft_lora.py"] + trained
    for folder in compared:  # in each, all models were tested under names of their own, on one file
        here = [flags for flags in evaluated if flags["results_dir"] == folder]
        assert [flags["model_path"] for flags in here] == models
        assert len({flags["exp_name"] for flags in here}) == len(models)
        assert len({flags["data_path"] for flags in here}) == 1
    others = [flags["results_dir"] for flags in evaluated if flags["results_dir"] not in compared]
    assert others == ["results/candidates"] * (name == "DPO")
    assert len(models) == (3 if values == SMOL else {"PPO": 6}.get(name, 4))


@pytest.mark.parametrize("name", [*SCRIPTS, "DQN"])
def test_interrupted_anywhere_and_started_again(copy, name):
    """It ends with the command that was interrupted; the same commands go on."""
    calls = calls_of(copy, name)
    for number in range(1, len(calls) + 1):
        done, before = run(copy, name, STOP_AT=number)
        assert done.returncode == 130 and before == calls[:number]
    assert calls_of(copy, name) == calls
    without_model = "make_pairs.py", "compare_runs.py"
    trained = [call for call in calls if call[0] not in without_model and "--evaluate" not in call]
    assert all(call[1] == "--resume" for call in trained)


@each_script
@pytest.mark.parametrize(
    "values, part",
    [
        ({"PROFILE": "huge"}, "PROFILE is deepseek, smol or tiny, not huge"),
        ({"DATASET": "apps"}, "not apps"),
        ({"DATASET": "mbpp"}, "mbpp for the profile deepseek"),
        ({"DATASET": "mini", "PROFILE": "deepseek"}, "mini for tiny"),
        ({"DATASET": "mini", "PROFILE": "smol"}, "mbpp for smol"),
        ({"PROFILE": "deepseek", "SPLIT": "dev"}, "humaneval has no SPLIT but test"),
        ({"SPLIT": "valid"}, "data/mini_valid.jsonl is missing: "),
        ({"DATA": "data/other"}, "data/other_train.jsonl is missing"),
        ({"DATA": "data/other", "PROFILE": "deepseek"}, "data/other_train.jsonl is missing"),
    ],
)
def test_wrong_values_end_in_one_line_before_anything_runs(copy, name, values, part):
    done, calls = run(copy, name, **values)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert part in done.stderr and len(done.stderr.splitlines()) == 1


def test_half_of_your_own_files(copy):
    (copy / "my_train.jsonl").touch()
    done, calls = run(copy, "PPO", DATA="my")
    assert (done.returncode, calls) == (2, []) and "my_test.jsonl is missing" in done.stderr


def test_data_sets_are_prepared_once(copy):
    humaneval, mbpp = ["data/prepare_humaneval.py"], ["data/prepare_mbpp.py"]
    assert calls_of(copy, "GRPO", **MBPP)[:2] == [mbpp, humaneval]
    assert not {"data/prepare_mbpp.py", "data/prepare_humaneval.py"} & {
        call[0] for call in calls_of(copy, "DPO", **MBPP) + calls_of(copy, "PPO", PROFILE="deepseek")
    }
    (copy / "data/humaneval_all.jsonl").unlink()  # of a version that did not make it
    assert calls_of(copy, "PPO", **MBPP)[0] == humaneval
    (copy / "data/humaneval_train.jsonl").unlink()
    assert calls_of(copy, "PPO", PROFILE="deepseek")[0] == humaneval


def test_mbpp_is_also_tested_on_all_of_humaneval(copy):
    evaluated = [flags_of(call) for call in calls_of(copy, "GRPO", **MBPP) if call[0] == "eval_humaneval.py"]
    files = {flags["results_dir"]: flags["data_path"] for flags in evaluated}
    all_of_it = {"results/mbpp/humaneval": "data/humaneval_all.jsonl"}
    assert files == {"results/mbpp": "data/mbpp_test.jsonl"} | all_of_it
    assert {flags["exp_name"].partition("_mbpp_")[0] for flags in evaluated} == {"deepseek_1_3b"}


def test_own_tasks_need_no_humaneval(copy):
    """Nor does a run of the profile smol write into the published results."""
    calls = calls_of(copy, "GRPO", DATA="data/mini", **SMOL)
    folders = {flags_of(call).get("results_dir") for call in calls if not call[0].startswith("data/")}
    assert folders == {"results/mbpp_smol", None} and ["data/prepare_humaneval.py"] not in calls


def test_dev_split_leaves_the_test_files_alone(copy):
    folders = {"tiny": "results/dev", "deepseek": "results/mbpp/dev", "smol": "results/mbpp_smol/dev"}
    for values in {"PROFILE": "tiny"}, MBPP, SMOL:
        calls = calls_of(copy, "GRPO", SPLIT="dev", **values)
        evaluated = [flags_of(call) for call in calls if call[0] == "eval_humaneval.py"]
        assert {Path(flags["data_path"]).name for flags in evaluated} <= {"mini_dev.jsonl", "mbpp_dev.jsonl"}
        assert {flags["results_dir"] for flags in evaluated} == {folders[values["PROFILE"]]}
        assert [call for call in calls if call[0] == "compare_runs.py"] == [calls[-1]]
        assert flags_of(calls[-1])["results_dir"] == folders[values["PROFILE"]]
        assert ["data/prepare_humaneval.py"] not in calls


def test_smollm2_is_made_once_and_not_for_other_models(copy):
    made = ["data/get_smollm2.py"]
    assert calls_of(copy, "DPO", **SMOL)[:3] == [
        ["data/prepare_mbpp.py"],
        ["data/prepare_humaneval.py"],
        made,
    ]
    assert made not in calls_of(copy, "DPO", **SMOL)
    shutil.rmtree(copy / "data/smollm2")
    assert made not in calls_of(copy, "DPO", MODEL="other", **SMOL)


def test_smol_samples_equally_many_completions_for_each_method(copy):
    sampled, names = {}, []
    for name in SCRIPTS:
        for call in scripts_of(copy, name, **SMOL):
            flags = flags_of(call)
            updates = flags.get("num_updates", flags.get("num_steps"))
            if "--n_samples" in call:
                sampled[name] = 363 * flags["n_samples"]  # data/mbpp_train.jsonl
            elif updates:
                sampled[name] = updates * flags["batch_size"] * flags.get("samples_per_task", 1)
            names += (
                [flags["exp_name"]]
                if flags.get("results_dir") == "results/mbpp_smol" and "exp_name" in flags
                else []
            )
            assert flags.get("max_new_tokens", 160) in (160, "160")
    assert sampled == dict.fromkeys(SCRIPTS, 64 * 23) | {"DPO": 4 * 363}
    assert set(names) == {
        *("smol_base", "smol_sft", "smol_rl_alpha0.01_23", "smol_ppo_alpha0.01_64"),
        *("smol_ac_lam1", "smol_grpo_dapo", "smol_dpo"),
    }


@pytest.mark.parametrize("name", ["SFT_RL", "PPO", "GRPO", "AC", "DPO"])
def test_how_is_sampled_and_rewarded(copy, name):
    """At 0.6 with the profile smol, at 1 elsewhere; values in front of the command count."""
    cases = [({}, 1.0, "binary"), (SMOL, 0.6, "binary")]
    cases += [({**SMOL, "TEMPERATURE": 0.9, "REWARD": "pass_rate"}, 0.9, "pass_rate")]
    for values, temperature, reward in cases:
        calls = [flags_of(call) for call in scripts_of(copy, name, **values)]
        sampling = [flags for flags in calls if "reward" in flags or flags.get("n_samples", 1) > 1]
        given = [(flags["temperature"], flags.get("reward", reward)) for flags in sampling]
        assert given and set(given) == {(temperature, reward)}


def test_partial_credit_for_shown_asserts_is_warned_of(copy):
    """MBPP's prompts show an assert; in a file by --hidden_tests it is not one of the tests."""
    for side in "train", "test":
        shutil.copy(copy / f"data/mini_{side}.jsonl", copy / f"data/other_{side}.jsonl")
    for values, warned in (
        ({"REWARD": "pass_rate"}, True),
        ({"REWARD": "structured"}, True),
        ({}, False),
        ({"REWARD": "pass_rate", "DATA": "data/other"}, False),
    ):
        done, _ = run(copy, "GRPO", **SMOL, **values)
        assert done.returncode == 0
        assert ("prepare_mbpp.py --hidden_tests" in done.stderr) == warned


def test_what_actor_critic_runs(copy):
    short = {"LAMS": 0.9, "NUM_UPDATES": 2, "CRITIC_WARMUP": 1}
    for values, lams, warmup, updates in ({}, [1, 0.95], 40, 140), (short, [0.9], 1, 3):
        calls = calls_of(copy, "AC", PROFILE="deepseek", **values)
        runs = [flags_of(call) for call in calls if "critic" in call[0]]
        assert [flags["lam"] for flags in runs] == lams
        for flags in runs:
            assert (flags["learning_rate"], flags["critic_learning_rate"]) == (5e-6, 5e-5)
            assert (flags["critic_warmup"], flags["num_updates"]) == (warmup, updates)
            assert (flags["batch_size"], flags["max_new_tokens"]) == (8, 256)


def test_what_grpo_and_dpo_run(copy):
    dapo, dr_grpo = [flags_of(call) for call in calls_of(copy, "GRPO") if "grpo" in call[0]]
    assert (dapo["loss_type"], dapo["scale"]) == ("dapo", "group")
    assert (dr_grpo["loss_type"], dr_grpo["scale"]) == ("dr_grpo", "none")
    given = "batch_size", "samples_per_task", "learning_rate", "num_updates", "max_new_tokens"
    assert [dapo[flag] for flag in given] == [dr_grpo[flag] for flag in given] == [4, 8, 5e-4, 60, 96]
    short = [flags_of(call) for call in calls_of(copy, "GRPO", NUM_UPDATES=2) if "grpo" in call[0]]
    assert [flags["num_updates"] for flags in short] == [2, 2]

    calls = calls_of(copy, "DPO", NUM_EPOCHS=0.5)
    ours, longest = [flags_of(call) for call in calls if call[0] == "make_pairs.py"]
    assert ours.keys() == {"task_path", "candidates", "output_dir"}
    other = {"rejected": "longest", "stop_pairs": "0", "n_best": "1"}
    assert longest == {**ours, **other, "output_dir": longest["output_dir"]}
    candidates = [flags_of(call) for call in calls if "--n_samples" in call]
    assert [(flags["n_samples"], flags["temperature"]) for flags in candidates] == [(8, 1.0)]
    for call in calls:
        if call[0] == "train_dpo_lora.py":
            flags = flags_of(call)
            given = "beta", "learning_rate", "num_epochs", "batch_size"
            assert [flags[flag] for flag in given] == [0.1, 5e-4, 0.5, 16]


def test_what_dqn_runs(copy):
    """Each agent is trained, then evaluated under a name of its own on problems held out."""
    for values, given in ({}, (200_000, 1)), ({"STEPS": 60_000, "SEED": 3}, (60_000, 3)):
        *calls, compare = calls_of(copy, "DQN", **values)
        flags = [flags_of(call) for call in calls]
        trained, evaluated = flags[::2], flags[1::2]
        assert len({each["output_dir"] for each in trained}) == len(trained) == len(evaluated) == 4
        for agent, test in zip(trained, evaluated):
            assert (agent["total_steps"], agent["seed"]) == given and not agent["evaluate"]
            assert test["evaluate"] == agent["output_dir"] and test["problems"] == agent["test_path"]
            assert test["results"] == f"results/dqn/{Path(agent['output_dir']).name}"
        assert flags_of(compare) == {"html": True, "results_dir": "results/dqn"}
        parts = "double", "dueling", "per_alpha", "lower_bound", "n_step"
        chosen = [tuple(agent[part] for part in parts) for agent in trained]
        assert chosen[:2] == [(False, False, 0, False, 1), (False, False, 0, True, 1)]
        assert chosen[2:] == [(True, True, 0.6, False, 7), (True, True, 0.6, True, 1)]


# ---- the profile smol, really run ---------------------------------------------------------------------


def small_llama(folder):
    """As SmolLM2: Llama with three heads to a key-value head, tied embeddings; with the tiny tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=144,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("model", ["random", "SmolLM2"])
def test_smol_runs(copy, model):
    """Two tasks, one update: train_GRPO.sh without plots; with the random model the others' training too."""
    if model == "random":
        small_llama(copy / "model")
    elif SMOLLM2.is_dir():
        (copy / "model").symlink_to(SMOLLM2.resolve())
    else:
        pytest.skip("no data/smollm2")
    tasks = []
    for number in 1, 2:
        row = {"task_id": number, "text": f"Add {number}.", "code": f"def f(x):\n    return x + {number}"}
        row |= {
            "test_setup_code": "",
            "test_list": [f"assert f(1) == {number + 1}", f"assert f(2) == {number + 2}"],
        }
        tasks.append(json.dumps(to_task(row, 1)) + "\n")
    for side in "train", "dev":
        (copy / f"data/mbpp_{side}.jsonl").write_text("".join(tasks))
    short = {
        "SPLIT": "dev",
        "NEW_TOKENS": 8,
        "NUM_UPDATES": 1,
        "NUM_STEPS": 1,
        "CRITIC_WARMUP": 0,
        **dict.fromkeys(("BATCHES", "RL_BATCH", "AC_BATCH"), 4),
        "GRPO_BATCH": 2,
    }
    commands = calls_of(copy, "GRPO", MODEL="model", NAME="smol", **short, **SMOL)[:-1]
    expected = {"grpo_dapo": 16}  # completions
    if model == "random":  # GRPO alone shows that SmolLM2 can be trained
        expected |= dict.fromkeys(("rl_alpha0.01_1", "ppo_alpha0.01_4", "ac_lam1"), 4)
        for name in "SFT_RL", "PPO", "AC":
            calls = calls_of(copy, name, MODEL="model", NAME="smol", **short, **SMOL)
            commands += [call for call in calls if call[0].startswith("train_") and call not in commands]
    for command in commands:
        done = run_script(*command, cwd=copy)
        assert done.returncode == 0, done.stderr
    for name in "base", "sft", "grpo_dapo":
        metrics = json.loads((copy / f"results/mbpp_smol/dev/smol_{name}_metrics.json").read_text())
        assert metrics["num_tasks"] == 2
    logs = copy.glob("checkpoints/*/samples.jsonl")
    sampled = {log.parent.name.removeprefix("smol_lora_"): len(log.read_text().splitlines()) for log in logs}
    assert sampled == expected
