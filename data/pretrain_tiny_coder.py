"""Pretrains data/tiny_coder, the 3.7 M parameter base model that stands in for the 1.3 B one on a CPU.

Its text is procedurally generated "code as the web has it", made from the combinations that no mini task
uses: verbose loops more often than one-liners, many functions that do not do what their docstring says, and
mostly more code after the first function. So the model seldom stops by itself, and greedy decoding makes
mistakes that sampling does not always make: the room that reinforcement learning has.

Wrong functions are of two sorts. A popular mistake (MISTAKES: >= for >, range(1, n), x * 2 for x squared,
forgotten reverse=True) is more common than the right form, so greedy decoding makes it too; a random mistake
puts some other filter, mapping or reduction in the place of the right one.

    python data/pretrain_tiny_coder.py      # about 25 minutes on 2 cores; writes data/tiny_coder/
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from make_mini_tasks import (
    CODE_MISTAKES,
    FILTERS,
    MAPS,
    MISTAKES,
    REDUCTIONS,
    Spec,
    deal_combinations,
    prompt_of,
    random_input,
    random_spec,
    run,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 11
NUM_FUNCTIONS = 80_000
RANDOM_MISTAKE = 0.35  # share of the functions without a popular mistake where a random part is wrong
VERBOSE, STEPWISE = 0.6, 0.15  # styles of a function body; the rest are one-liners
END = {"strings": 0.65, "lists": 0.3, "numbers": 0.3, "dicts": 0.3}  # chance that a function is the last one
BLOCK = 256  # tokens per training row
BATCH = 12  # rows per step
VOCABULARY = 1024

# ---------------------------------------------------------------------------------------------------
# The text
# ---------------------------------------------------------------------------------------------------

AFTERWORDS = [
    'print("done")\n',
    "# more to come\n",
    "class Helper:\n    pass\n",
    'if __name__ == "__main__":\n    main()\n',
    "import sys\n",
]


def swap_part(spec, position, name):
    """The same spec with one part of its combination replaced."""
    parts = list(spec.combination)
    parts[position] = name
    return Spec(tuple(parts), spec.k, spec.j)


def with_mistakes(spec, allowed, rng):
    """(spec that the body is written from, [(piece of code, its replacement)]).

    `allowed` holds the pretraining combinations: no mistake may lead to the combination of a mini task.
    """
    popular = [(i, *MISTAKES[part]) for i, part in enumerate(spec.combination) if i > 0 and part in MISTAKES]
    in_code = [(piece, *wrong) for piece, wrong in CODE_MISTAKES.items() if piece in spec.concise()]
    for position, part, rate in popular:
        swapped = swap_part(spec, position, part)
        if rng.random() < rate and swapped.combination in allowed:
            spec = swapped
    if not popular and not in_code and rng.random() < RANDOM_MISTAKE:
        position = rng.randint(1, 3)
        table = (FILTERS[spec.source.kind], MAPS[spec.source.kind], REDUCTIONS)[position - 1]
        swapped = swap_part(spec, position, rng.choice(list(table)))
        if swapped.combination in allowed:
            spec = swapped
    return spec, [(piece, wrong) for piece, wrong, rate in in_code if rng.random() < rate]


def loop_body(spec, rng):
    """The function body as a loop that fills a variable."""
    reduction = spec.reduction
    variable = {"sum": "total", "count": "count"}.get(reduction) or rng.choice(["result", "out", "items"])
    if spec.source.kind == "entry":
        start, statement, answer = "{}", f"{variable}[x] = {spec.expression}", variable
    elif reduction == "sum":
        start, statement, answer = "0", f"{variable} += {spec.expression}", variable
    elif reduction == "count":
        start, statement, answer = "0", f"{variable} += 1", variable
    else:
        start, statement = "[]", f"{variable}.append({spec.expression})"
        answer = REDUCTIONS[reduction][3].format(variable)
    lines = [f"    {variable} = {start}"]
    if rng.random() < 0.3:
        lines.append(f"    # go through {spec.source.noun}")
    lines.append(f"    for {spec.source.loop}:")
    if spec.condition:
        lines += [f"        if {spec.condition}:", f"            {statement}"]
    else:
        lines.append(f"        {statement}")
    lines.append(f"    return {answer}")
    return "\n".join(lines) + "\n"


def stepwise_body(spec):
    """The function body as a comprehension in a variable, then the result."""
    if spec.source.kind == "entry":
        return "    result = {" + spec.generator() + "}\n    return result\n"
    answer = REDUCTIONS[spec.reduction][3].format("result")
    return f"    result = [{spec.generator()}]\n    return {answer}\n"


def write_function(combination, allowed, rng):
    """(text of one function, chance that it is the last of its file)."""
    spec = random_spec(combination, rng)
    body_spec, code_mistakes = with_mistakes(spec, allowed, rng)
    style = rng.random()
    if style < VERBOSE:
        body = loop_body(body_spec, rng)
    elif style < VERBOSE + STEPWISE:
        body = stepwise_body(body_spec)
    else:
        body = body_spec.concise()
    for piece, wrong in code_mistakes:
        body = body.replace(piece, wrong)
    truth = spec.signature() + spec.concise()
    num_examples = rng.choice([0, 0, 0, 1, 2, 2])
    inputs = [random_input(spec.source.signature, rng, small=True) for _ in range(num_examples)]
    examples = [(x, run(truth, spec.name, x)) for x in inputs]
    return prompt_of(spec, examples) + body, END[spec.source.topic]


def write_file(combinations, allowed, rng):
    """A source file: functions, sometimes with other statements between them."""
    parts = []
    while True:
        text, end = write_function(rng.choice(combinations), allowed, rng)
        parts.append(text)
        if rng.random() < end:
            return "\n\n".join(parts)
        if rng.random() < 0.15:
            parts.append(rng.choice(AFTERWORDS))


def write_text(num_functions, seed=SEED):
    """List of source files with about `num_functions` functions in all."""
    rng = random.Random(seed)
    combinations = deal_combinations()["pretrain"]
    allowed = set(combinations)
    files = []
    written = 0
    while written < num_functions:
        files.append(write_file(combinations, allowed, rng))
        written += files[-1].count("def ")
    return files


# ---------------------------------------------------------------------------------------------------
# Tokenizer and model
# ---------------------------------------------------------------------------------------------------


def train_tokenizer(files):
    """Byte-level BPE with the habits of the 1.3B tokenizer: BOS before every text, pad = eos."""
    bos, eos = "<|begin_of_sentence|>", "<|end_of_sentence|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Pretrain the tiny base model.")
    parser.add_argument("--output_dir", default=str(here / "tiny_coder"))
    parser.add_argument("--num_functions", type=int, default=NUM_FUNCTIONS)
    parser.add_argument("--num_steps", type=int, default=2200)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    files = write_text(args.num_functions)
    tokenizer = train_tokenizer(files[:5000])
    ids = []
    for row in tokenizer(files, verbose=False)["input_ids"]:
        ids += [*row, tokenizer.eos_token_id]
    ids = torch.tensor(ids[: len(ids) // BLOCK * BLOCK])
    rows = ids.view(-1, BLOCK)  # (N, BLOCK), files packed end to end
    model = build_model(tokenizer)
    print(
        f"{len(files)} files, {len(ids) / 1e6:.1f} M tokens, {model.num_parameters() / 1e6:.2f} M parameters"
    )
    print(f"{args.num_steps} steps x {BATCH} x {BLOCK} = {args.num_steps * BATCH * BLOCK / 1e6:.1f} M tokens")

    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, (0.9, 0.95), weight_decay=0.1)
    start = time.time()
    order = torch.randperm(len(rows))
    for step in range(args.num_steps):
        warmup = min(1.0, (step + 1) / 100)
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.num_steps))
        optimizer.param_groups[0]["lr"] = args.learning_rate * warmup * cosine
        positions = torch.arange(step * BATCH, (step + 1) * BATCH) % len(rows)
        batch = rows[order[positions]]  # (BATCH, BLOCK)
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.num_steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.time() - start:5.0f} s", flush=True)

    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"saved {args.output_dir}")


if __name__ == "__main__":
    main()
