"""Other architectures, adapters, tokenizers and bases: used as they are defined, or refused in one line.

docs/models.md lists what is tried here. All models are small and random.
"""

import json
import shutil

import peft
import pytest
import tokenizers
import torch
import transformers
from conftest import ROOT, run_script
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import eval_humaneval as ev
import train_actor_critic_lora as ac
import train_dpo_lora as dpo
import train_grpo_lora as grpo
import train_ppo_lora as ppo
import train_rl_lora as rl
from sandbox import encode_prompt, lossy, read_tasks

BASE = ROOT / "data/tiny_coder"
TASKS = read_tasks(ROOT / "data/mini_dev.jsonl")
TOKENIZER = AutoTokenizer.from_pretrained(BASE)
# Longer than the windows of 16 tokens below, and of different lengths.
PROMPTS = [encode_prompt(TOKENIZER, task) for task in sorted(TASKS, key=lambda task: len(task["prompt"]))]
PROMPTS = [PROMPTS[0], PROMPTS[-1]]

# ---- architectures ------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that the position matters
    "pad_token_id": None,
}
OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
WINDOW = {**SMALL, "sliding_window": 16}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
DEEPSEEK = {**SMALL, **LATENT, **EXPERTS, "num_key_value_heads": 4, "moe_intermediate_size": 32}
USED = {
    "Llama": SMALL,
    "Qwen2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 16},
    "Mistral": WINDOW,
    "Gemma2": {**WINDOW, "head_dim": 16},  # soft cap on the logits, every second layer with a window
    "Gemma3Text": {**WINDOW, "head_dim": 16},
    "Granite": {**SMALL, "logits_scaling": 8.0},
    "Cohere": {**SMALL, "logit_scale": 0.0625},
    "GPT2": OLD,
    "GPTBigCode": OLD,  # StarCoder
    "Starcoder2": WINDOW,
    "Phi3": {**WINDOW, "pad_token_id": 0},
    "Olmo2": SMALL,
    "StableLm": SMALL,
    "DeepseekV3": {**DEEPSEEK, "first_k_dense_replace": 1},
    "Mixtral": {**SMALL, "num_local_experts": 4},
    "GptOss": {**WINDOW, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},  # ALiBi: no positions
    "Lfm2": SMALL,  # convolutions with a short state
}
RECURRENT = {"hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 1.0}  # else all say the same
REFUSED = {
    "Mamba": RECURRENT,
    "Mamba2": {**RECURRENT, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "Rwkv": {**RECURRENT, "attention_hidden_size": 64},
    "RecurrentGemma": {**SMALL, "lru_width": 64, "attention_window_size": 16, "num_hidden_layers": 3},
    "FalconH1": {**SMALL, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1},
    "Bert": {**SMALL, "num_key_value_heads": 4},  # a token sees those after it
}


def build(name, fields):
    ids = {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    config = getattr(transformers, f"{name}Config")(**{"vocab_size": len(TOKENIZER), **ids, **fields})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def forward(model, ids):
    """(T, V) log-probabilities by the model's own forward, one row, no cache, no mask."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("name", USED)
def test_tokens_and_scores_are_those_of_the_model_itself(name):
    model = build(name, USED[name])
    for script in ppo, rl:
        script.check_model(script.generate, model, TOKENIZER, PROMPTS, 24, script.completion_logprobs)
    ev.check_model(ev.generate, model, TOKENIZER, PROMPTS, 24)
    completions = dict(ppo.generate(model, TOKENIZER, PROMPTS, 24))
    samples = [{"prompt_ids": PROMPTS[i], "completion_ids": completions[i]} for i in (0, 1)]
    logprobs, mask = ppo.completion_logprobs(model, TOKENIZER, samples, 1.0)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, [completions[0], completions[1]])):
        ids = list(prompt)
        for token in completion:
            following = forward(model, ids)[-1]
            assert following.max() - following[token] < 1e-4
            ids.append(token)
        expected = [forward(model, ids)[t - 1, ids[t]] for t in range(len(prompt), len(ids))]
        assert torch.allclose(logprobs[i][mask[i] > 0], torch.stack(expected), atol=1e-4)


@torch.no_grad()
def test_the_output_layer_gets_contiguous_rows():
    """In bfloat16 on a CPU, torch gives each row of any other a copy of the weights, 20 times as slow."""
    model = build("Llama", SMALL)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    for script in ppo, rl, ac, grpo, ev:
        list(script.generate(model, TOKENIZER, PROMPTS, 3))
    samples = [{"prompt_ids": PROMPTS[i], "completion_ids": PROMPTS[0][:5]} for i in (0, 1)]
    for score in ppo.completion_logprobs, rl.completion_logprobs, ac.completion_logprobs:
        score(model, TOKENIZER, samples, 1.0)
    for score in grpo.group_logprobs, dpo.group_logprobs:
        score(model, TOKENIZER, samples, 1.0)
    assert len(seen) == 5 * 3 + 3 + 2 * 2 and all(rows.is_contiguous() for rows in seen)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused_by_its_name(name):
    model = build(name, REFUSED[name])
    with pytest.raises(SystemExit, match=f"models of type {model.config.model_type} cannot be used") as stop:
        ppo.check_model(ppo.generate, model, TOKENIZER, PROMPTS, 24, ppo.completion_logprobs)
    assert "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match=f"models of type {model.config.model_type} cannot be used"):
        ev.check_model(ev.generate, model, TOKENIZER, PROMPTS, 24)


def from_hidden_states(model, tokenizer, samples, temperature):
    """The short cut that many scripts take: what the model does after its output layer is left out."""
    logprobs = []
    for sample in samples:
        ids = sample["prompt_ids"] + sample["completion_ids"]
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        rows = model.lm_head(hidden).log_softmax(-1)
        logprobs.append(
            torch.stack([rows[t - 1, ids[t]] for t in range(len(sample["prompt_ids"]), len(ids))])
        )
    padded = torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True, padding_value=1)
    return padded, (padded <= 0).int()


def without_masks(model):
    """A model to which padding is like any other token."""
    model.register_forward_pre_hook(
        lambda _, args, kw: (args, {**kw, "attention_mask": None}), with_kwargs=True
    )


def without_positions(model):
    model.register_forward_pre_hook(
        lambda _, args, kw: (args, {**kw, "position_ids": None}), with_kwargs=True
    )


def wrong_rows_leave(model):
    def hook(model, args, output):
        for layer in output["cache" if "cache" in output else "past_key_values"].layers:
            layer.batch_select_indices = lambda rows, layer=layer: keep_first(layer, len(rows))

    def keep_first(layer, n):
        layer.keys, layer.values = layer.keys[:n], layer.values[:n]

    model.register_forward_hook(hook)


@pytest.mark.parametrize("name", ["Granite", "Gemma2", "Cohere"])
def test_the_check_sees_scores_of_another_distribution(name):
    model = build(name, USED[name])
    with pytest.raises(SystemExit, match="log-probs are not those of the model"):
        ppo.check_model(ppo.generate, model, TOKENIZER, PROMPTS, 24, from_hidden_states)
    ppo.check_model(
        ppo.generate, build("Llama", SMALL), TOKENIZER, PROMPTS, 24, from_hidden_states
    )  # there it is right


@pytest.mark.parametrize("fault", [without_masks, without_positions, wrong_rows_leave])
def test_the_check_sees_wrong_masks_positions_and_rows(fault):
    model = build("GPT2", OLD)
    fault(model)
    with pytest.raises(SystemExit, match="models of type gpt2 cannot be used"):
        ev.check_model(ev.generate, model, TOKENIZER, PROMPTS, 24)


# ---- what is loaded -----------------------------------------------------------------------------------


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of a trained adapter, to be damaged."""
    shutil.copytree(trained / "sft", tmp_path / "adapter")
    return tmp_path / "adapter"


def rename(adapter, old, new):
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): value for name, value in load_file(path).items()}, path)


def add_layer(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    extra = {
        name.replace("layers.3.", "layers.9."): value.clone()
        for name, value in tensors.items()
        if ".3." in name
    }
    save_file(tensors | extra, path)


def drop_layer(adapter):
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if ".3." not in name}, path)


DAMAGES = {
    "another name for the layers": lambda adapter: rename(adapter, "model.layers", "transformer.h"),
    "saved while compiled": lambda adapter: rename(adapter, "base_model.model", "base_model._orig_mod.model"),
    "one layer is another": lambda adapter: rename(adapter, "layers.3.", "layers.4."),
    "one layer is missing": drop_layer,
    "a layer that the model lacks": add_layer,
}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("name", DAMAGES)
def test_an_adapter_whose_tensors_do_not_fit_is_refused(adapter, name):
    DAMAGES[name](adapter)
    for script in ppo, rl, ev:
        with pytest.raises(SystemExit, match=f"cannot load {adapter} .*tensors are in") as stop:
            script.load_adapter(str(adapter), "cpu")
        assert "\n" not in str(stop.value)


LORAS = {
    "dora": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "some layers": {"layers_to_transform": [1, 2], "target_modules": ["q_proj", "v_proj"]},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "with biases": {"bias": "lora_only"},
    "pissa": {"init_lora_weights": "pissa"},  # it changes the base's weights, the same way again
}


@pytest.mark.parametrize("name", LORAS)
def test_other_adapters_load_train_and_save_whole(tmp_path, name):
    """Every tensor arrives, and what RL would save is loaded again with the same logits."""
    base, tokenizer = ppo.load_base(str(BASE), "cpu")
    config = peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **LORAS[name]})
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = forward(model.eval(), PROMPTS[0])
    model.save_pretrained(tmp_path / "one")
    again, tokenizer = ppo.load_adapter(str(tmp_path / "one"), "cpu", is_trainable=True)
    assert torch.allclose(forward(again.eval(), PROMPTS[0]), expected, atol=1e-5)
    ppo.save_adapter(again, tokenizer, tmp_path / "two", {})
    last, _ = ev.load_adapter(str(tmp_path / "two"), "cpu")
    assert torch.allclose(forward(last.eval(), PROMPTS[0]), expected, atol=1e-5)


def test_16_bits_on_a_cpu(adapter, monkeypatch):
    """The base as on a GPU, but unpacked: the same 4-bit weights, rounded again; adapters stay in float32."""
    exact, _ = ppo.load_adapter(str(adapter), "cpu", is_trainable=True)
    monkeypatch.setenv("CPU_DTYPE", "bfloat16")
    model, tokenizer = ppo.load_adapter(str(adapter), "cpu", is_trainable=True)
    assert model.dtype == torch.bfloat16
    for (name, p), expected in zip(model.named_parameters(), exact.parameters()):
        assert p.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
        assert torch.equal(p, expected.to(p.dtype))
    logits = forward(exact.eval(), PROMPTS[0])
    assert 0 < (forward(model.eval(), PROMPTS[0]) - logits).abs().max() < 0.1 * logits.std()
    ppo.check_model(ppo.generate, model, tokenizer, PROMPTS, 24, ppo.completion_logprobs)
    monkeypatch.setenv("CPU_DTYPE", "half")
    with pytest.raises(SystemExit, match="CPU_DTYPE is float32 or bfloat16, not half"):
        ppo.load_base(str(BASE), "cpu")


def test_an_adapter_that_adds_tokens_is_refused():
    base, tokenizer = ppo.load_base(str(BASE), "cpu")
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(SystemExit, match="cannot be used here"):
        ppo.check_model(ppo.generate, model, tokenizer, PROMPTS, 24, ppo.completion_logprobs)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_base(adapter, path):
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(path))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_what_only_a_newer_peft_knows_is_refused_if_it_is_used(adapter):
    edit(adapter / "adapter_config.json", use_something_new=None)
    ppo.load_adapter(str(adapter), "cpu")
    edit(adapter / "adapter_config.json", use_something_new=True)
    for script in ppo, rl, ev:
        with pytest.raises(SystemExit, match=r"use_something_new in .* is not supported"):
            script.load_adapter(str(adapter), "cpu")


def test_an_adapter_that_a_word_of_the_prompt_turns_on_is_refused(adapter):
    """peft looks for the word in what it is given: after the first step that is one token."""
    edit(adapter / "adapter_config.json", alora_invocation_tokens=[0])
    with pytest.raises(SystemExit, match=r"alora_invocation_tokens .* not supported"):
        ppo.load_adapter(str(adapter), "cpu")


def test_an_adapter_is_put_on_the_revision_of_its_base_that_it_names(adapter, monkeypatch):
    edit(adapter / "adapter_config.json", revision="v2")
    asked = []
    for loader in AutoTokenizer, AutoModelForCausalLM:

        def load(name, load=loader.from_pretrained, **arguments):
            asked.append(arguments.get("revision"))
            return load(name, **arguments)

        monkeypatch.setattr(loader, "from_pretrained", load)
    ppo.load_adapter(str(adapter), "cpu")
    assert asked[:2] == ["v2", "v2"]


def test_training_writes_the_full_path_of_a_local_base(trained, tmp_path, monkeypatch):
    """The adapter of a base named data/tiny_coder can be evaluated from any folder."""
    flags = ["--train_path", trained / "train.jsonl", "--output_dir", tmp_path / "sft", "--max_steps", 1]
    done = run_script("train_sft_lora.py", "--model_name", "data/tiny_coder", *flags)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "sft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(BASE)
    monkeypatch.chdir(tmp_path)
    ppo.load_adapter("sft", "cpu")


@pytest.mark.parametrize("path", ["data/not_there", "/gone/base"])
def test_a_base_that_is_not_there_is_named(adapter, path):
    set_base(adapter, path)
    with pytest.raises(SystemExit, match=f"cannot load {path} .*adapter_config.json"):
        ppo.load_adapter(str(adapter), "cpu")


# ---- tokenizers ---------------------------------------------------------------------------------------


def test_the_tokenizer_of_the_adapter_is_used(adapter):
    """Trained to end with another token than its base: that one ends a completion."""
    own = AutoTokenizer.from_pretrained(BASE)
    own.eos_token = own.convert_ids_to_tokens(7)
    own.save_pretrained(adapter)
    for script in ppo, rl, ev:
        _, tokenizer = script.load_adapter(str(adapter), "cpu")
        assert tokenizer.eos_token_id == 7 != TOKENIZER.eos_token_id
    (adapter / "tokenizer_config.json").unlink()
    assert ppo.load_adapter(str(adapter), "cpu")[1].eos_token_id == TOKENIZER.eos_token_id


def test_a_tokenizer_with_other_ids_is_refused(adapter):
    path = adapter / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = (next(token for token in vocabulary if token == text) for text in ("f", "x"))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=f"cannot load {adapter} .*other ids"):
        ppo.load_adapter(str(adapter), "cpu")


def with_template(single):
    """The tiny tokenizer with another template for single texts; 0 is BOS, 1 is EOS."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    single = single.replace("BOS", bos).replace("EOS", eos)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, eos)]
    processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def test_prompts_have_the_bos_of_the_tokenizer_and_never_an_eos():
    plain = TOKENIZER(TASKS[0]["prompt"].rstrip(), add_special_tokens=False)["input_ids"]
    for single, expected in {
        "$A": plain,
        "BOS $A": [0, *plain],
        "BOS $A EOS": [0, *plain],
        "$A EOS": plain,
        "EOS $A EOS": [1, *plain],  # GPT-2's family has one token for both
        "BOS BOS $A EOS EOS": [0, 0, *plain],
    }.items():
        tokenizer = with_template(single)
        assert encode_prompt(tokenizer, TASKS[0]) == expected, single
        assert lossy(tokenizer, TASKS) == []
    assert encode_prompt(with_template("BOS $A EOS"), {"prompt": "\n"}) == [0]


def test_references_that_the_tokenizer_does_not_keep_are_named():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    kept = {**TASKS[0], "canonical_solution": "    return x\n"}
    broken = {**TASKS[0], "canonical_solution": "    return 'X'\n"}
    assert lossy(tokenizer, [kept, broken]) == [broken]


@pytest.fixture
def base(tmp_path):
    """A copy of the tiny base, to be changed."""
    return shutil.copytree(BASE, tmp_path / "base")


def sft_flags(base):
    data = ["--train_path", ROOT / "data/mini_dev.jsonl", "--output_dir", base / "sft", "--max_steps", 1]
    return ["--model_name", base, *data, "--per_device_train_batch_size", 8]


def test_padding_needs_no_embedding(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 1024  # one more than the model has
    tokenizer.save_pretrained(base)
    model, tokenizer = ppo.load_base(str(base), "cpu")
    ppo.check_model(ppo.generate, model, tokenizer, PROMPTS, 24, ppo.completion_logprobs)
    assert run_script("train_sft_lora.py", *sft_flags(base)).returncode == 0


@pytest.mark.parametrize("token", [None, "<|im_end|>"])
def test_an_eos_that_the_model_cannot_say(base, token):
    """None at all, or one that was added to the tokenizer only: no completion would ever end."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = token
    tokenizer.save_pretrained(base)
    model, tokenizer = ppo.load_base(str(base), "cpu")
    for script in ppo, rl, ev:
        with pytest.raises(SystemExit, match=r"EOS .* has no embedding"):
            script.check_model(script.generate, model, tokenizer, PROMPTS, 24)
    done = run_script("train_sft_lora.py", *sft_flags(base))
    assert "has no embedding in the model" in done.stderr.splitlines()[-1]


def test_more_tokens_than_the_model_has_positions(base):
    """GPT-2 would end in an IndexError, on a GPU in one of CUDA; others in nonsense."""
    edit(base / "config.json", max_position_embeddings=130)
    tokens = 130 - max(map(len, PROMPTS))
    model, tokenizer = ppo.load_base(str(base), "cpu")
    for script in ppo, rl, ev:
        script.check_model(script.generate, model, tokenizer, PROMPTS, tokens)
        with pytest.raises(SystemExit, match=r"exceed the model.s 130 positions"):
            script.check_model(script.generate, model, tokenizer, PROMPTS, tokens + 1)
    done = run_script("train_sft_lora.py", *sft_flags(base))
    assert "tokens exceed the model's 130 positions; lower --max_length" in done.stderr.splitlines()[-1]
    assert run_script("train_sft_lora.py", *sft_flags(base), "--max_length", 130).returncode == 0


def test_a_long_context_that_changes_all_positions():
    """Beyond the original length, longrope (Phi-3) encodes each position otherwise than the cache has it."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "rope_theta": 10000.0}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 128, **factors}
    lengths = {"original_max_position_embeddings": 128, "rope_parameters": rope}
    model = build("Phi3", {**USED["Phi3"], **lengths})
    ppo.check_model(ppo.generate, model, TOKENIZER, PROMPTS, 128 - max(map(len, PROMPTS)))
    with pytest.raises(SystemExit, match=r"129 tokens exceed the model.s 128 positions"):
        ppo.check_model(ppo.generate, model, TOKENIZER, PROMPTS, 129 - max(map(len, PROMPTS)))


# ---- bases --------------------------------------------------------------------------------------------

QUANTISED = {
    "FP4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", QUANTISED)
def test_the_protocol_says_how_a_base_is_stored(trained, tmp_path, name):
    config = BitsAndBytesConfig(**QUANTISED[name])
    arguments = {"quantization_config": config, "dtype": torch.float32, "device_map": {"": "cpu"}}
    AutoModelForCausalLM.from_pretrained(BASE, **arguments).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    flags = ["--data_path", trained / "test.jsonl", "--results_dir", tmp_path, "--max_new_tokens", 4]
    for path, exp_name in (tmp_path / "base", "stored"), (BASE, "rounded"):
        done = run_script("eval_humaneval.py", "--model_path", path, "--exp_name", exp_name, *flags)
        assert done.returncode == 0, done.stderr
    protocols = [
        json.loads((tmp_path / f"{run}_metrics.json").read_text())["protocol"]
        for run in ("stored", "rounded")
    ]
    said = protocols[0]["quantization"]
    assert said["load_in_8bit"] is True or said["bnb_4bit_quant_type"] == "fp4"
    assert protocols[1]["quantization"] == "NF4 with double quantization"
    table = run_script("compare_runs.py", "--results_dir", tmp_path)
    assert "unequal protocols, quantization differs" in table.stdout


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7000000\n")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_less(path):
    tensors = load_file(path)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path, {"format": "pt"})


def other_names(path):
    save_file(
        {f"transformer.{name}": value for name, value in load_file(path).items()}, path, {"format": "pt"}
    )


@pytest.mark.parametrize("damage", [pointer, half, one_less, other_names])
def test_broken_base_weights(tmp_path, damage):
    shutil.copytree(BASE, tmp_path / "base")
    damage(tmp_path / "base/model.safetensors")
    with pytest.raises(SystemExit, match=f"cannot load {tmp_path}/base") as stop:
        ppo.load_base(str(tmp_path / "base"), "cpu")
    assert "\n" not in str(stop.value)


# ---- layers with an adapter ---------------------------------------------------------------------------


@pytest.mark.parametrize("target_modules, count", [("all-linear", 28), ("q_proj v_proj", 8), ("q_proj", 4)])
def test_target_modules(trained, tmp_path, target_modules, count):
    flags = ["--train_path", trained / "train.jsonl", "--output_dir", tmp_path, "--max_steps", 1]
    flags += ["--model_name", BASE, "--target_modules", target_modules]
    done = run_script("train_sft_lora.py", *flags)
    assert f"adapters on {count} layers" in done.stdout, done.stderr
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * count


def test_target_modules_that_the_model_lacks(trained, tmp_path):
    flags = ["--train_path", trained / "train.jsonl", "--output_dir", tmp_path, "--model_name", BASE]
    done = run_script("train_sft_lora.py", *flags, "--target_modules", "c_attn c_proj")
    assert done.returncode == 1
    assert "all-linear suits every model" in done.stderr and "c_attn" in done.stderr


def test_an_adapter_is_not_taken_for_a_model(trained, tmp_path):
    """transformers would load its base with it, and training would begin a new adapter beside it."""
    flags = ["--train_path", trained / "train.jsonl", "--output_dir", tmp_path / "new"]
    done = run_script("train_sft_lora.py", *flags, "--model_name", trained / "sft")
    assert done.returncode == 1 and "the base model is an adapter; merge_lora.py" in done.stderr
    assert not (tmp_path / "new/adapter_model.safetensors").exists()
