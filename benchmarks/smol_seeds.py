"""Table of SmolLM2's results over seeds, paired over tasks and seeds: results/smol/seeds.md.

    python benchmarks/smol_seeds.py

Reads   results/smol/smol_NAME_sSEED_per_task.jsonl, and smol_base_per_task.jsonl. A seed is that of SFT and
        of the runs that start from it.
Prints  what it writes; the statistics are those of benchmarks/tiny_seeds.py
"""

from collections import defaultdict
from itertools import combinations

from tiny_seeds import ROOT, comparison_rows, markdown_table, read_run, score_row

FOLDER = ROOT / "results/smol"
SAMPLED = {"base": 0, "sft": 0, "sft3": 0, "dpo": 27 * 54}  # completions; of all others: 23 * 64


def read_seeds(folder):
    """{name: {seed: (3, tasks)}} of the runs whose names end in a seed; base is the same for all."""
    results = defaultdict(dict)
    for path in sorted(folder.glob("smol_*_s[0-9]*_per_task.jsonl")):
        name, seed = path.stem.removeprefix("smol_").removesuffix("_per_task").rsplit("_s", 1)
        results[name][int(seed)] = read_run(path)
    results["base"] = dict.fromkeys(results["sft"], read_run(folder / "smol_base_per_task.jsonl"))
    # Most seeds first, and of those base and SFT.
    order = {"base": 0, "sft": 1}
    return dict(sorted(results.items(), key=lambda item: (-len(item[1]), order.get(item[0], 2))))


def summary(results):
    """The whole text of the table's file."""
    sampled = {}
    for name, runs in results.items():
        sampled |= {(name, seed): SAMPLED.get(name.split("_")[0], 23 * 64) for seed in runs}
    once = {"base": {42: results["base"][42]}}
    head = ["configuration", "raw pass@1 (%)", "truncated (%)", "length (tokens)", "sampled", "seeds"]
    scores = markdown_table(
        head, *(score_row(name, runs, sampled) for name, runs in (results | once).items())
    )
    pairs = [(two, one) for one, two in combinations(results, 2) if results[one].keys() & results[two].keys()]
    head = ["difference", "points", "95 % interval", "seeds alone", "stopping", "solving", "seeds", "verdict"]
    compared = markdown_table(head, *(row for pair in pairs for row in comparison_rows(results, [pair])))
    return f"""# SmolLM2 over several seeds

Greedy pass@1 on MBPP's 500 test tasks: mean over the seeds ± half of its 95 % t-interval, which speaks of
other seeds on the same tasks. Sampled: completions of the training.

{scores}

Raw pass@1 in points, paired over tasks and seeds. The 95 % intervals come from resamples of both seeds and
tasks; "seeds alone" is half of the t-interval of the seeds' means. A difference is called real where both
exclude 0. Solving is the difference of the truncated scores; stopping is the rest.

{compared}
"""


if __name__ == "__main__":
    text = summary(read_seeds(FOLDER))
    (FOLDER / "seeds.md").write_text(text, encoding="utf-8")
    print(text)
