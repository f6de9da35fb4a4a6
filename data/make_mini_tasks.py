"""Writes the mini tasks: mini_train, mini_dev, mini_test and mini_hard_test.jsonl (400 / 100 / 164 / 164).

A task is a combination (source, filter, mapping, reduction), for instance

    digits of n | that are odd | each squared | sum   ->   sum(x * x for x in map(int, str(n)) if x % 2 == 1)

rendered like a HumanEval problem: signature, docstring with doctest examples, canonical solution and
check(candidate).
All combinations are shuffled once and dealt to four sides: test, dev, train, and the rest, of which
pretrain_tiny_coder.py makes the text for the tiny base model. No combination stands on two sides, so what
is solved on mini_test was composed, not recalled. Constants (the 3 in "greater than 3") do not make a new
combination.
mini_hard_test is for models that solve nearly all of mini_test. Each of its tasks has a filter, a mapping and
a reduction, at least two popular mistakes are at hand, and its tests notice each of them. Its combinations
are those of the rest: the base model has seen them, mostly wrong; no other task has them.

    python data/make_mini_tasks.py          # deterministic: the same bytes every time
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

SEED = 7
NUM_TRAIN, NUM_DEV, NUM_TEST = 400, 100, 164
NUM_ASSERTS = 10


# ---------------------------------------------------------------------------------------------------
# The grammar. {k} is a small constant drawn for each task; x is the item of the loop.
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    topic: str  # lists, numbers, strings or dicts: the splits hold equally many of each
    signature: str
    noun: str  # the items, in the docstring
    loop: str  # what follows "for"
    kind: str  # type of the item x: int, char or word; "key" and "entry" filter on the value v
    condition: str = ""  # holds for every item of the source


SOURCES = {
    "list": Source("lists", "nums: list", "the numbers in nums", "x in nums", "int"),
    "range": Source("numbers", "n: int", "the numbers from 1 to n", "x in range(1, n + 1)", "int"),
    "digits": Source("numbers", "n: int", "the digits of n", "x in map(int, str(n))", "int"),
    "divisors": Source("numbers", "n: int", "the divisors of n", "x in range(1, n + 1)", "int", "n % x == 0"),
    "chars": Source("strings", "s: str", "the characters of s", "x in s", "char"),
    "words": Source("strings", "s: str", "the words of s", "x in s.split()", "word"),
    "values": Source("dicts", "d: dict", "the values of d", "x in d.values()", "int"),
    "keys": Source("dicts", "d: dict", "the keys of d", "x, v in d.items()", "key"),
    "entries": Source("dicts", "d: dict", "the entries of d", "x, v in d.items()", "entry"),
}

# name: (phrase after "that are" / "whose value is", condition)
INT_FILTERS = {
    "all": ("", ""),
    "even": ("even", "x % 2 == 0"),
    "odd": ("odd", "x % 2 == 1"),
    "positive": ("positive", "x > 0"),
    "negative": ("negative", "x < 0"),
    "nonzero": ("not zero", "x != 0"),
    "above": ("greater than {k}", "x > {k}"),
    "below": ("less than {k}", "x < {k}"),
    "atleast": ("at least {k}", "x >= {k}"),
    "atmost": ("at most {k}", "x <= {k}"),
    "multiple": ("divisible by {k}", "x % {k} == 0"),
    "notmultiple": ("not divisible by {k}", "x % {k} != 0"),
    "different": ("different from {k}", "x != {k}"),
    "between": ("between 2 and 1{k}", "2 <= x <= 1{k}"),
}
CHAR_FILTERS = {
    "all": ("", ""),
    "vowels": ("vowels", 'x in "aeiouAEIOU"'),
    "nonvowels": ("not vowels", 'x not in "aeiouAEIOU"'),
    "digits": ("digits", "x.isdigit()"),
    "letters": ("letters", "x.isalpha()"),
    "upper": ("upper case", "x.isupper()"),
    "lower": ("lower case", "x.islower()"),
    "nonspace": ("not spaces", 'x != " "'),
    "late": ("after 'm' in the alphabet", 'x > "m"'),
}
WORD_FILTERS = {
    "all": ("", ""),
    "longer": ("longer than {k}", "len(x) > {k}"),
    "shorter": ("shorter than {k}", "len(x) < {k}"),
    "evenlen": ("of even length", "len(x) % 2 == 0"),
    "oddlen": ("of odd length", "len(x) % 2 == 1"),
    "upper": ("upper case", "x.isupper()"),
    "lower": ("lower case", "x.islower()"),
    "letters": ("made of letters", "x.isalpha()"),
    "palindrome": ("palindromes", "x == x[::-1]"),
}
# name: (phrase after the items, expression)
INT_MAPS = {
    "same": ("", "x"),
    "squared": ("each squared", "x * x"),
    "cubed": ("each cubed", "x ** 3"),
    "doubled": ("each doubled", "x * 2"),
    "halved": ("each halved and rounded down", "x // 2"),
    "negated": ("each negated", "-x"),
    "absolute": ("each as its absolute value", "abs(x)"),
    "increased": ("each increased by {j}", "x + {j}"),
    "decreased": ("each decreased by {j}", "x - {j}"),
    "times": ("each multiplied by {j}", "x * {j}"),
    "modulo": ("each modulo {j}", "x % {j}"),
}
CHAR_MAPS = {
    "same": ("", "x"),
    "upper": ("each in upper case", "x.upper()"),
    "lower": ("each in lower case", "x.lower()"),
    "swapped": ("each with its case swapped", "x.swapcase()"),
    "repeated": ("each repeated {j} times", "x * {j}"),
    "starred": ("each followed by a star", 'x + "*"'),
}
WORD_MAPS = {
    **CHAR_MAPS,
    "reversed": ("each reversed", "x[::-1]"),
    "first": ("each as its first letter", "x[0]"),
    "last": ("each as its last letter", "x[-1]"),
    "length": ("each as its length", "len(x)"),
}
# name: (phrase before the items, sentence after them, result type, how to get it from a list, generator form)
REDUCTIONS = {
    "list": ("a list of", "", "list", "{}", "[{}]"),
    "sum": ("the sum of", "", "int", "sum({})", "sum({})"),
    "count": ("the number of", "", "int", "len({})", "len([{}])"),
    "max": ("the largest of", " Return 0 if there are none.", "int", "max({}, default=0)", ""),
    "min": ("the smallest of", " Return 0 if there are none.", "int", "min({}, default=0)", ""),
    "sorted": ("a sorted list of", "", "list", "sorted({})", "sorted({})"),
    "descending": ("a list in descending order of", "", "list", "sorted({}, reverse=True)", ""),
    "backwards": ("a list in reverse order of", "", "list", "{}[::-1]", "[{}][::-1]"),
    "distinct": ("the number of different values among", "", "int", "len(set({}))", "len(set({}))"),
    "unique": ("a sorted list without duplicates of", "", "list", "sorted(set({}))", "sorted(set({}))"),
    "first": ("a list of the first three of", "", "list", "{}[:3]", "[{}][:3]"),
    "last": ("a list of the last two of", "", "list", "{}[-2:]", "[{}][-2:]"),
    "joined": ("a string that joins", "", "str", '"".join({})', '"".join({})'),
    "dashed": ("a string that joins with dashes", "", "str", '"-".join({})', '"-".join({})'),
}
FILTERS = {
    "int": INT_FILTERS,
    "char": CHAR_FILTERS,
    "word": WORD_FILTERS,
    "key": INT_FILTERS,
    "entry": INT_FILTERS,
}
MAPS = {"int": INT_MAPS, "char": CHAR_MAPS, "word": WORD_MAPS, "key": WORD_MAPS, "entry": INT_MAPS}
NUMERIC_ONLY = ("sum", "max", "min")
TEXT_ONLY = ("joined", "dashed")
FILTERS_BELOW_ZERO = ("positive", "negative", "nonzero")  # pointless where all items are positive
# Popular mistakes of the pretraining text: a part of the combination -> (what is written instead, how often).
MISTAKES = {
    "above": ("atleast", 0.75),
    "below": ("atmost", 0.65),
    "squared": ("doubled", 0.7),
    "swapped": ("upper", 0.7),
    "last": ("first", 0.6),
    "descending": ("sorted", 0.75),
}
# The same for pieces of the code.
CODE_MISTAKES = {
    "range(1, n + 1)": ("range(1, n)", 0.6),
    '"aeiouAEIOU"': ('"aeiou"', 0.7),
    "// 2": ("/ 2", 0.7),
    ", default=0": ("", 0.65),
}


def combinations():
    """Every combination (source, filter, mapping, reduction) that makes sense, in a fixed order."""
    result = []
    for source_name, source in SOURCES.items():
        for filter_name in FILTERS[source.kind]:
            if source.topic == "numbers" and filter_name in FILTERS_BELOW_ZERO:
                continue
            for map_name in MAPS[source.kind]:
                if source.kind == "entry":
                    result.append((source_name, filter_name, map_name, "dict"))
                    continue
                if source.topic == "numbers" and map_name == "absolute":
                    continue
                is_number = source.kind == "int" or map_name == "length"
                for reduction in REDUCTIONS:
                    if reduction in (TEXT_ONLY if is_number else NUMERIC_ONLY):
                        continue
                    if reduction == "count" and map_name != "same":
                        continue  # a mapping does not change the count
                    result.append((source_name, filter_name, map_name, reduction))
    return result


def deal_combinations():
    """{"test": [...], "dev": [...], "train": [...], "pretrain": [...]}, disjoint, topics in equal numbers."""
    rng = random.Random(SEED)
    topics = {"lists": [], "numbers": [], "strings": [], "dicts": []}
    for combination in combinations():
        topics[SOURCES[combination[0]].topic].append(combination)
    sides = {"test": [], "dev": [], "train": [], "pretrain": []}
    for members in topics.values():
        rng.shuffle(members)
        for side, total in (("test", NUM_TEST), ("dev", NUM_DEV), ("train", NUM_TRAIN)):
            share = total // len(topics)
            sides[side] += members[:share]
            del members[:share]
        sides["pretrain"] += members
    for members in sides.values():
        rng.shuffle(members)
    return sides


# ---------------------------------------------------------------------------------------------------
# From a combination to a function
# ---------------------------------------------------------------------------------------------------


@dataclass
class Spec:
    """A combination with its constants filled in; also the parts from which code is rendered."""

    combination: tuple
    k: int  # constant of the filter
    j: int  # constant of the mapping

    def __post_init__(self):
        source_name, filter_name, map_name, self.reduction = self.combination
        self.source = SOURCES[source_name]
        self.filter_phrase, condition = FILTERS[self.source.kind][filter_name]
        self.map_phrase, expression = MAPS[self.source.kind][map_name]
        if self.source.kind in ("key", "entry"):
            condition = condition.replace("x", "v")
        if self.source.kind == "entry":
            expression = expression.replace("x", "v")
        self.filter_phrase = self.filter_phrase.format(k=self.k)
        self.map_phrase = self.map_phrase.format(j=self.j)
        own = condition.format(k=self.k)
        self.condition = " and ".join(part for part in (self.source.condition, own) if part)
        self.expression = expression.format(j=self.j)
        names = [self.reduction, "" if map_name == "same" else map_name, filter_name, source_name]
        self.name = "_".join(part for part in names if part)

    def docstring(self):
        """One sentence, for instance "Return the sum of the digits of n that are odd, each squared."."""
        link = "whose value is" if self.source.kind in ("key", "entry") else "that are"
        items = f"{self.source.noun} {link} {self.filter_phrase}" if self.filter_phrase else self.source.noun
        if self.source.kind == "entry":
            values = self.map_phrase.replace("each", "each value") or "unchanged"
            return f"Return a dict of {items}, {values}."
        before, after, *_ = REDUCTIONS[self.reduction]
        items += f", {self.map_phrase}" if self.map_phrase else ""
        return f"Return {before} {items}.{after}"

    def result_type(self):
        return "dict" if self.source.kind == "entry" else REDUCTIONS[self.reduction][2]

    def signature(self):
        return f"def {self.name}({self.source.signature}) -> {self.result_type()}:\n"

    def generator(self):
        head = f"x: {self.expression}" if self.source.kind == "entry" else self.expression
        condition = f" if {self.condition}" if self.condition else ""
        return f"{head} for {self.source.loop}{condition}"

    def concise(self):
        """The canonical solution: one return statement."""
        if self.source.kind == "entry":
            return "    return {" + self.generator() + "}\n"
        *_, from_list, from_generator = REDUCTIONS[self.reduction]
        if from_generator:
            return "    return " + from_generator.format(self.generator()) + "\n"
        return "    return " + from_list.format(f"[{self.generator()}]") + "\n"


def random_spec(combination, rng):
    return Spec(combination, k=rng.randint(2, 6), j=rng.randint(2, 6))


WORDS = "Anna level THE quick brown FOX a I jumps over 42 Otto lazy DOG noon x9 tree eve Sun".split()
KEYS = "a bb cat Dog eve FOX noon Otto tree x1".split()
EDGE_INPUTS: dict[str, list] = {
    "nums: list": [[], [0], [-3], [5, 5, 5]],
    "n: int": [0, 1, 7],
    "s: str": ["", "a", "AbC 12"],
    "d: dict": [{}, {"a": 0}, {"bb": -4, "Dog": 3}],
}


def boundary_input(signature: str, k: int):
    """An argument with items just below, at and just above the constant of the filter, and its negative."""
    values = [k - 1, k, k + 1, -k, k]
    if signature == "nums: list":
        return values
    if signature == "n: int":
        return int("".join(str(abs(value)) for value in values))
    if signature == "s: str":
        return " ".join("Abcdefgh"[:value] for value in values if value > 0)
    return dict(zip(KEYS, values))


def random_input(signature: str, rng: random.Random, small: bool = False):
    """An argument for the function; `small` ones fit on a line of a docstring."""
    size = rng.randint(2, 4) if small else rng.randint(4, 9)
    if signature == "nums: list":
        return [rng.randint(-6, 12) for _ in range(size)]
    if signature == "n: int":
        return rng.randint(4, 30) if small else rng.choice([rng.randint(10, 60), rng.randint(100, 400)])
    if signature == "s: str":
        return " ".join(rng.choices(WORDS, k=max(1, size - 1)))
    return {key: rng.randint(-6, 12) for key in rng.sample(KEYS, size)}


def run(code, name, argument):
    """Result of our own generated function; never used on code that a model wrote."""
    namespace = {}
    exec(code, namespace)
    return namespace[name](argument)


def prompt_of(spec: Spec, examples: list[tuple]) -> str:
    """Signature and docstring with doctest examples [(argument, result)], as in HumanEval."""
    lines = [f'    """{spec.docstring()}']
    if examples:
        lines.append("")
    for argument, result in examples:
        lines += [f"    >>> {spec.name}({argument!r})", f"    {result!r}"]
    if not examples:
        return spec.signature() + lines[0] + '"""\n'
    return spec.signature() + "\n".join(lines) + '\n    """\n'


def make_task(task_id: str, spec: Spec, rng: random.Random) -> dict:
    """The task as a dict with the five fields of HumanEval."""
    code = spec.signature() + spec.concise()
    signature = spec.source.signature
    examples = [random_input(signature, rng, small=True) for _ in range(2)]
    inputs = [*EDGE_INPUTS[signature], boundary_input(signature, spec.k)]
    while len(inputs) < NUM_ASSERTS:
        inputs.append(random_input(signature, rng))
    asserts = [f"    assert candidate({x!r}) == {run(code, spec.name, x)!r}\n" for x in inputs]
    return {
        "task_id": task_id,
        "prompt": prompt_of(spec, [(x, run(code, spec.name, x)) for x in examples]),
        "entry_point": spec.name,
        "canonical_solution": spec.concise(),
        "test": "def check(candidate):\n" + "".join(asserts),
        "combination": list(spec.combination),
    }


def near_misses(spec: Spec) -> tuple[list[str], list[str]]:
    """(bodies that leave out one operation, bodies with one popular mistake)."""
    skipped, mistaken = [], []
    for place, without in (1, "all"), (2, "same"), (3, "list"):
        parts = list(spec.combination)
        wrong, _ = MISTAKES.get(parts[place], (None, 0))
        for bodies, part in (skipped, without), (mistaken, wrong):
            if part and part != spec.combination[place]:
                parts[place] = part
                bodies.append(Spec(tuple(parts), spec.k, spec.j).concise())
    body = spec.concise()
    mistaken += [body.replace(piece, wrong) for piece, (wrong, _) in CODE_MISTAKES.items() if piece in body]
    return skipped, mistaken


def passes(task: dict, body: str) -> bool:
    """Whether one of our own bodies passes the tests of a task."""
    namespace: dict = {}
    exec(task["prompt"] + body + task["test"], namespace)
    try:
        namespace["check"](namespace[task["entry_point"]])
    except Exception:
        return False
    return True


def hard_tasks(combinations: list[tuple], rng: random.Random) -> list[dict]:
    """The tasks of mini_hard_test, equally many of each topic."""
    tasks = []
    places = dict.fromkeys(("lists", "numbers", "strings", "dicts"), NUM_TEST // 4)
    for combination in combinations:
        spec = random_spec(combination, rng)
        skipped, mistaken = near_misses(spec)
        if len(skipped) < 3 or len(mistaken) < 2 or not places[spec.source.topic]:
            continue
        task = make_task(f"mini_hard_test/{len(tasks)}", spec, rng)
        if not any(passes(task, body) for body in skipped + mistaken):
            tasks.append(task)
            places[spec.source.topic] -= 1
    return tasks


def main():
    parser = argparse.ArgumentParser(description="Write the mini tasks.")
    parser.add_argument("--output_dir", default=str(Path(__file__).resolve().parent))
    output_dir = Path(parser.parse_args().output_dir)
    sides = deal_combinations()
    rng = random.Random(SEED)
    files = {
        side: [make_task(f"mini_{side}/{i}", random_spec(c, rng), rng) for i, c in enumerate(sides[side])]
        for side in ("train", "dev", "test")
    }
    files["hard_test"] = hard_tasks(sides["pretrain"], rng)
    for side, tasks in files.items():
        lines = [json.dumps(task) + "\n" for task in tasks]
        path = output_dir / f"mini_{side}.jsonl"
        try:
            path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise SystemExit(f"cannot write {path} ({error.strerror}); choose another --output_dir")
        print(f"{path}: {len(tasks)} tasks")


if __name__ == "__main__":
    main()
