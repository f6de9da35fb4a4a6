"""train_dpo_lora.py: loss, pairs, reference, and what a run writes."""

import json
import math

import pytest
import torch
from conftest import ROOT, run_script

import train_dpo_lora as dpo
from sandbox import check_logprobs, encode_prompt, read_pairs, read_tasks
from train_ppo_lora import completion_logprobs

CASES = json.loads((ROOT / "tests/dpo_cases.json").read_text())
SHORT = ("--batch_size", 4, "--micro_batch_size", 8, "--max_length", 400, "--learning_rate", 2e-3)


# ---- loss ---------------------------------------------------------------------------------------------


def test_equation_7_by_hand():
    """Two pairs: ratios 1 and -2, so the margin is 3; ratios 0 and 0.5, so it is -0.5. beta is 0.2."""
    logprobs = torch.tensor([[-4.0, -6.0], [-9.0, -2.5]], requires_grad=True)  # chosen, rejected
    reference = torch.tensor([[-5.0, -6.0], [-7.0, -3.0]])
    losses, margins = dpo.dpo_loss(logprobs, reference, torch.ones(2, 2), 0.2, "sigmoid", 0.0)
    assert margins.tolist() == [3.0, -0.5]
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.6)), math.log(1 + math.exp(0.1))])
    losses.sum().backward()
    sizes = [0.2 / (1 + math.exp(0.6)), 0.2 / (1 + math.exp(-0.1))]  # beta * sigmoid(-beta * margin)
    assert logprobs.grad[0].tolist() == pytest.approx([-size for size in sizes])  # descent: chosen goes up
    assert logprobs.grad[1].tolist() == pytest.approx(sizes)


def test_equal_log_probs_have_a_loss_of_log_2():
    same = torch.tensor([[-3.0], [-8.0]])
    for loss_type in "sigmoid", "sigmoid_norm":
        losses, margins = dpo.dpo_loss(same, same, torch.tensor([[2], [5]]), 0.3, loss_type, 0.0)
        assert losses.item() == pytest.approx(math.log(2)) and margins.item() == 0


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: "-".join(map(str, list(case.values())[:3])))
def test_loss_and_gradient_are_those_of_trl(case):
    """The cases are made by benchmarks/dpo_cases.py."""
    rows = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in CASES["logprobs"]]
    logprobs = torch.stack([row.sum() for row in rows]).view(2, -1)
    reference = torch.tensor(CASES["reference"], dtype=torch.float64).view(2, -1)
    lengths = torch.tensor([len(row) for row in rows]).view(2, -1)
    nll_weight = case["nll_coef"] * lengths.shape[1] / lengths[0].sum()
    how = case["beta"], case["loss_type"], nll_weight
    loss = dpo.dpo_loss(logprobs, reference, lengths, *how)[0].mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert torch.cat([row.grad for row in rows]).tolist() == pytest.approx(case["gradient"], abs=1e-6)


def test_there_are_cases_of_all_options():
    options = {(case["loss_type"], case["beta"], case["nll_coef"]) for case in CASES["cases"]}
    assert len(options) == len(CASES["cases"]) == 12
    lengths = [len(row) for row in CASES["logprobs"]]
    assert lengths[:5] != lengths[5:]  # else means and sums would be the same


# ---- pairs --------------------------------------------------------------------------------------------


def write_pairs(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_in_trls_columns(tmp_path):
    task = {"task_id": "a", "prompt": "def f(x):\n"}
    row = {"prompt": "def f(x):\n", "chosen": "    return x\n", "rejected": "    return 1\n"}
    cut = {**row, "prompt": "def f(x):", "rejected": "\n    return x +", "rejected_truncated": True}
    rows = [row, cut, {**row, "rejected": row["chosen"]}, {**row, "chosen": ""}, {**row, "prompt": "other"}]
    path = write_pairs(tmp_path / "pairs.jsonl", *rows)
    path.write_text("\ufeff" + path.read_text() + "\n")  # as some editors leave it
    pairs, left_out = read_pairs(path, [task])
    texts = [(pair["task"]["prompt"].rstrip() + pair["chosen"], pair["rejected"]) for pair in pairs]
    assert texts == [
        ("def f(x):\n    return x\n", "\n    return 1\n"),
        ("def f(x):    return x\n", "\n    return x +"),
    ]
    assert [(pair["chosen_truncated"], pair["rejected_truncated"]) for pair in pairs] == [
        (False, False),
        (False, True),
    ]
    assert sorted(left_out.values()) == [1, 2]
    pairs, left_out = read_pairs(path, [])  # without tasks, each prompt is one
    assert [pair["task"]["prompt"] for pair in pairs] == ["def f(x):", "def f(x):", "other"]
    assert list(left_out.values()) == [2]


GOOD = '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "pairs.jsonl: no such file; make_pairs.py makes one"),
        ("", "has no pair to train on (it is empty)"),
        (GOOD.replace('"r"', '"c"'), "no pair to train on (a side is empty, or both are equal: 1)"),
        (GOOD + "{", "pairs.jsonl, line 2: "),
        (GOOD + '["p", "c", "r"]', "line 2: list indices"),
        (GOOD + "3", "line 2: "),
        ('{"prompt": "p", "chosen": "c"}', "line 1: has no 'rejected'; a line must be {"),
        (GOOD.replace('"c"', '[{"role": "assistant", "content": "c"}]'), "line 1: chosen must be plain text"),
        (GOOD.replace('"c"', '"\\ud800"'), "line 1: "),
    ],
)
def test_bad_pairs_end_in_one_line(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        read_pairs(path, [])
    assert message in str(stop.value) and "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match="no task has this prompt: 1"):
        read_pairs(write_pairs(path, json.loads(GOOD)), [{"prompt": "another", "task_id": "a"}])


@pytest.fixture(scope="module")
def adapted(trained):
    """(model, tokenizer) of the SFT adapter."""
    return dpo.load_adapter(str(trained / "sft"), "cpu", is_trainable=True)


def test_eos_is_trained_once_where_the_completion_ended(adapted):
    _, tokenizer = adapted
    eos, task = tokenizer.eos_token_id, {"prompt": "def f(x):\n"}
    plain = tokenizer("\n    return x\n", add_special_tokens=False).input_ids
    pair = {"task": task, "chosen": "\n    return x\n", "chosen_truncated": False}
    sample = dpo.encode_side(tokenizer, pair, "chosen")
    assert sample == {"prompt_ids": encode_prompt(tokenizer, task), "completion_ids": [*plain, eos]}
    with_eos = {**pair, "chosen": pair["chosen"] + tokenizer.eos_token}  # as some files have it
    assert dpo.encode_side(tokenizer, with_eos, "chosen") == sample
    cut_off = {**pair, "chosen_truncated": True}
    assert dpo.encode_side(tokenizer, cut_off, "chosen")["completion_ids"] == plain


def test_completions_of_a_prompt_do_not_see_each_other(adapted):
    model, tokenizer = adapted
    model.eval()
    prompts = [[5, 6, 7], [5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7]]
    completions = [[20, 21, 22, 23], [30], [40, 41], [50, 51, 52]]
    samples = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompts, completions)]
    together, mask = dpo.group_logprobs(model, tokenizer, samples, 1.0)
    for i, sample in enumerate(samples):
        alone, _ = completion_logprobs(model, tokenizer, [sample], 1.0)
        assert together[i][mask[i] > 0].tolist() == pytest.approx(alone[0].tolist(), abs=1e-4)
    assert mask.sum(-1).tolist() == [4, 1, 2, 3]


def test_models_whose_shared_prompts_give_other_log_probs_are_refused(adapted):
    model, tokenizer = adapted
    samples = [{"prompt_ids": [5, 6, 7], "completion_ids": ids} for ids in ([20, 21], [30])]
    check_logprobs(dpo.group_logprobs, model, tokenizer, samples)

    def wrong(*arguments):
        logprobs, mask = dpo.group_logprobs(*arguments)
        return logprobs - 0.1 * mask, mask

    with pytest.raises(SystemExit, match="models of type llama cannot be used here"):
        check_logprobs(wrong, model, tokenizer, samples)


# ---- runs ---------------------------------------------------------------------------------------------


def rows_of(tasks, wrong="\n    return None\n"):
    """A pair for each task, in TRL's columns."""
    return [
        {"prompt": task["prompt"], "chosen": task["canonical_solution"], "rejected": wrong} for task in tasks
    ]


def train(folder, trained, *flags):
    files = ("--sft_model", trained / "sft", "--train_path", trained / "train.jsonl")
    files += ("--output_dir", folder, "--pairs_path", folder / "pairs.jsonl")
    return run_script("train_dpo_lora.py", *files, *SHORT, *flags)


def log_of(folder):
    return [json.loads(line) for line in (folder / "dpo_train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run of 4 epochs on the pairs of 20 tasks; 5 more lines of its file are of no use."""
    folder = tmp_path_factory.mktemp("dpo")
    tasks = read_tasks(trained / "train.jsonl")[:20]
    rows = rows_of(tasks)
    right, last = rows[0], rows.pop()
    rows += [{**right, "rejected": right["chosen"]}, {**right, "prompt": "def of_no_task():\n"}]
    rows += [{**right, "chosen": "    return 0  #" + " x" * 400}]  # too long
    rows += [{**last, "chosen": "    return 'wrong'\n"}]  # its test fails
    write_pairs(folder / "pairs.jsonl", *rows)
    done = train(folder, trained, "--num_epochs", 4, "--learning_rate", 2e-3)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_pairs_that_are_no_use_are_left_out_and_counted(run, trained):
    folder, done = run
    config = json.loads((folder / "run_config.json").read_text())
    tasks = read_tasks(trained / "train.jsonl")
    assert config["num_pairs"] == 19 and config["finished"] and config["method"] == "DPO"
    assert sorted(config["left_out"]) == [
        "a side is empty, or both are equal",
        "no task has this prompt",
        "over --max_length 400",
        "verdict not confirmed",
    ]
    assert set(config["left_out"].values()) == {1}
    assert f"left out, {tasks[19]['task_id']}\n" in done.stdout
    assert "19 pairs, 19 steps x 4 pairs" in done.stdout


def test_loss_starts_at_log_2_and_the_pairs_are_learned(run):
    log = log_of(run[0])
    assert [row["step"] for row in log] == list(range(1, 20))
    assert log[0]["lr"] == 0 and log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the first learning rate was 0
    assert abs(log[0]["change_chosen"]) < 1e-5 and log[0]["grad_norm"] > 0
    end = log[-1]
    assert end["loss"] < 0.3 and end["accuracy"] == 1 and end["margin"] > 1
    assert end["change_chosen"] > end["change_rejected"] and end["change_rejected"] < 0
    assert end["logprob_chosen"] < 0 and end["logprob_rejected"] < 0


def test_reference_is_the_sft_adapter_and_not_the_base(run, adapted):
    """Computed before the first step, though the model has moved since."""
    model, tokenizer = adapted
    model.eval()
    samples = run[1].variables["samples"]
    assert len(samples) == 38  # of 19 pairs
    with torch.no_grad():
        for sample in samples[::6]:
            logprobs, _ = completion_logprobs(model, tokenizer, [sample], 1.0)
            assert sample["reference"] == pytest.approx(logprobs.sum().item(), abs=1e-3)
            with model.disable_adapter():
                base, _ = completion_logprobs(model, tokenizer, [sample], 1.0)
            assert abs(sample["reference"] - base.sum().item()) > 1e-2


def test_a_finished_run_ends_before_the_preflight(run, trained):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = train(folder, trained, "--num_epochs", 4, "--resume")
    assert done.returncode == 0 and f"{folder} is finished" in done.stdout and "preflight" not in done.stdout
    done = train(folder, trained, "--num_epochs", 4, "--resume", "--beta", 0.2, "--micro_batch_size", 1)
    assert done.returncode == 1 and "made with another beta;" in done.stderr
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_micro_batches_change_nothing(trained, tmp_path):
    """Also of the log-likelihood term, whose divisor is the tokens of the batch; and without any task."""
    logs = []
    for size in 1, 4:
        folder = tmp_path / str(size)
        folder.mkdir()
        tasks = read_tasks(trained / "train.jsonl")
        rows = rows_of([tasks[0], tasks[-1]]) + rows_of([tasks[0], tasks[12]], "\n    return 1\n")
        write_pairs(folder / "pairs.jsonl", *rows)
        flags = ("--nll_coef", 0.3, "--warmup_ratio", 0, "--num_epochs", 2, "--train_path", "")
        done = train(folder, trained, *flags, "--micro_batch_size", size)
        assert done.returncode == 0, done.stderr
        assert "warning: without --train_path no test is run" in done.stdout and "sandbox" not in done.stdout
        logs.append(log_of(folder))
    first = logs[0][0]
    assert first["loss"] == pytest.approx(math.log(2) - 0.3 * first["logprob_chosen"], abs=1e-5)
    assert len(logs[0]) == len(logs[1]) == 2 and logs[0][1]["loss"] < first["loss"]
    for row, other in zip(*logs):
        for name in row.keys() - {"seconds", "accuracy"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--beta", 0), "--beta must be above 0"),
        (("--nll_coef", -1), "--nll_coef is at least 0"),
        (("--warmup_ratio", 1.5), "--warmup_ratio goes from 0 to 1"),
        (("--pairs_path", "nowhere.jsonl"), "nowhere.jsonl: no such file; make_pairs.py makes one"),
        (("--max_length", 30), "all pairs are over --max_length 30"),
        ((), "preflight: 2 of 4 pairs have a chosen that fails or a rejected that passes (mini_train/"),
    ],
)
def test_bad_input_ends_in_one_line(trained, tmp_path, flags, message):
    tasks = read_tasks(trained / "train.jsonl")[:4]
    rows = rows_of(tasks)
    rows[2]["chosen"] = "    return 'wrong'\n"
    rows[3]["rejected"] = rows[3]["chosen"] + "\n"
    write_pairs(tmp_path / "pairs.jsonl", *rows)
    done = train(tmp_path, trained, *flags)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and message in last, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]  # nothing half-written


def test_the_sft_adapter_is_not_overwritten(trained, tmp_path):
    done = train(tmp_path, trained, "--output_dir", trained / "sft")
    assert done.returncode == 1 and "--output_dir is --sft_model" in done.stderr
