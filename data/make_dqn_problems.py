"""Writes dqn_train.json (40 problems) and dqn_test.json (14) for train_dqn.py.

The eleven problems of a course come first: eight to train on, three to test on. The others are relatives:
what is asked (sum, product, minimum) x of what (a list, the digits of n, the numbers from 1 to n, a string).
What is held out, beyond the three, is a new combination of words that two training problems or more have.

References stand here alone, not in the files: nothing that trains can read them. The first cases of a problem
are chosen by hand, the others drawn; hidden cases are never rewarded, only evaluated.

    python data/make_dqn_problems.py          # deterministic: the same bytes every time
"""

import json
import math
import random
from pathlib import Path

SEED = 11
NUM_TESTS, NUM_HIDDEN = 13, 30
WORDS = "level Otto noon apple Banana THE quick fox jumped over 12 lazy dogs a I Ein xyz".split()


def draw(kind: str, rng: random.Random):
    """A value of a type: n is not negative, int may be."""
    if kind == "n":
        return rng.choice([rng.randint(0, 12), rng.randint(0, 12), rng.randint(13, 60)])
    if kind == "int":
        return rng.randint(-20, 20)
    if kind == "ints":
        return [rng.randint(-9, 12) for _ in range(rng.randint(1, 7))]
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))
    return rng.choice([text, text.upper(), text + text[::-1]])


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, n))


def digits(n):
    return [int(digit) for digit in str(n)]


def up_to(n):
    return list(range(1, n + 1))


# name, parameters with their types, docstring, reference, inputs chosen by hand
N, INT, NUMS, S = "n: n", "n: int", "nums: ints", "s: str"
AB, ABC = "a: int, b: int", "a: int, b: int, c: int"
LISTS = [[1, 2, 3], [5], [4, -2, 7, 7], [-3, -8, -1], [10, 0]]
NUMBERS = [0, 7, 35, 108, 5210]
SMALL = [0, 1, 5, 3, 7]
TEXTS = ["hello", "", "a", "Ein Fox", "THE END"]
PAIRS = [(2, 3), (0, 0), (-1, 1), (7, 7), (-4, -9)]
TRIPLES = [(1, 2, 3), (3, 2, 1), (2, 9, 4), (-5, -1, -3), (0, 0, 0)]
TRAIN = [
    ("add_numbers", AB, "Return the sum of two numbers.", lambda a, b: a + b, PAIRS),
    (
        "is_even",
        INT,
        "Return True if a number is even, False otherwise.",
        lambda n: n % 2 == 0,
        [2, 3, 0, -1, 10],
    ),
    ("max_of_three", ABC, "Return the maximum of three numbers.", max, TRIPLES),
    (
        "count_vowels",
        S,
        "Return the number of vowels in a string.",
        lambda s: sum(c in "aeiouAEIOU" for c in s),
        ["hello", "HELLO", "", "xyz", "aeiou", "Programming"],
    ),
    (
        "reverse_string",
        S,
        "Return the string reversed.",
        lambda s: s[::-1],
        ["hello", "", "a", "Python", "12 3"],
    ),
    (
        "factorial",
        N,
        "Return the factorial of n, the product of the numbers from 1 to n.",
        math.factorial,
        SMALL,
    ),
    (
        "is_palindrome",
        S,
        "Return True if a string is a palindrome, that is equal to itself reversed.",
        lambda s: s == s[::-1],
        ["racecar", "hello", "", "a", "ab", "noon"],
    ),
    ("sum_list", NUMS, "Return the sum of the numbers in a list.", sum, LISTS),
    ("max_list", NUMS, "Return the maximum value in a list.", max, LISTS),
    ("product_list", NUMS, "Return the product of the numbers in a list.", math.prod, LISTS),
    ("count_list", NUMS, "Return how many numbers are in a list.", len, LISTS),
    ("sort_list", NUMS, "Return the numbers in a list sorted.", sorted, LISTS),
    ("reverse_list", NUMS, "Return the numbers in a list reversed.", lambda v: v[::-1], LISTS),
    (
        "count_even_list",
        NUMS,
        "Return how many even numbers are in a list.",
        lambda v: sum(x % 2 == 0 for x in v),
        LISTS,
    ),
    ("even_list", NUMS, "Return the even numbers in a list.", lambda v: [x for x in v if x % 2 == 0], LISTS),
    ("odd_list", NUMS, "Return the odd numbers in a list.", lambda v: [x for x in v if x % 2 == 1], LISTS),
    ("square_list", NUMS, "Return the squares of the numbers in a list.", lambda v: [x**2 for x in v], LISTS),
    (
        "sum_square_list",
        NUMS,
        "Return the sum of the squares of the numbers in a list.",
        lambda v: sum(x * x for x in v),
        LISTS,
    ),
    ("sum_digits", N, "Return the sum of the digits of n.", lambda n: sum(digits(n)), NUMBERS),
    ("max_digits", N, "Return the maximum of the digits of n.", lambda n: max(digits(n)), NUMBERS),
    ("count_digits", N, "Return how many digits are in n.", lambda n: len(digits(n)), NUMBERS),
    ("reverse_digits", N, "Return the digits of n reversed.", lambda n: digits(n)[::-1], NUMBERS),
    ("list_digits", N, "Return the digits of n in a list.", digits, NUMBERS),
    (
        "even_digits",
        N,
        "Return the even digits of n.",
        lambda n: [d for d in digits(n) if d % 2 == 0],
        NUMBERS,
    ),
    ("sum_range", N, "Return the sum of the numbers from 1 to n.", lambda n: sum(up_to(n)), SMALL),
    ("list_range", N, "Return the numbers from 1 to n in a list.", up_to, SMALL),
    (
        "square_range",
        N,
        "Return the squares of the numbers from 1 to n.",
        lambda n: [x * x for x in up_to(n)],
        SMALL,
    ),
    (
        "even_range",
        N,
        "Return the even numbers from 1 to n.",
        lambda n: [x for x in up_to(n) if x % 2 == 0],
        SMALL,
    ),
    ("max_of_two", AB, "Return the maximum of two numbers.", max, PAIRS),
    ("min_of_three", ABC, "Return the minimum of three numbers.", min, TRIPLES),
    ("sum_of_three", ABC, "Return the sum of three numbers.", lambda a, b, c: a + b + c, TRIPLES),
    ("product_of_three", ABC, "Return the product of three numbers.", lambda a, b, c: a * b * c, TRIPLES),
    ("difference", AB, "Return the difference of two numbers.", lambda a, b: a - b, PAIRS),
    (
        "is_odd",
        INT,
        "Return True if a number is odd, False otherwise.",
        lambda n: n % 2 == 1,
        [2, 3, 0, -1, 10],
    ),
    (
        "min_square_list",
        NUMS,
        "Return the minimum of the squares of the numbers in a list.",
        lambda v: min(x * x for x in v),
        LISTS,
    ),
    ("min_digits", N, "Return the minimum of the digits of n.", lambda n: min(digits(n)), NUMBERS),
    ("odd_digits", N, "Return the odd digits of n.", lambda n: [d for d in digits(n) if d % 2 == 1], NUMBERS),
    (
        "sort_square_list",
        NUMS,
        "Return the squares of the numbers in a list sorted.",
        lambda v: sorted(x * x for x in v),
        LISTS,
    ),
    ("count_words", S, "Return how many words are in a string.", lambda s: len(s.split()), TEXTS),
    ("length_string", S, "Return the length of a string.", len, TEXTS),
]
TEST = [
    (
        "multiply",
        AB,
        "Return the product of two numbers.",
        lambda a, b: a * b,
        [(2, 3), (0, 5), (-1, 4), (7, 7)],
    ),
    ("is_prime", N, "Return True if n is a prime number, False otherwise.", is_prime, [2, 4, 7, 1, 0, 9]),
    ("find_min", NUMS, "Return the minimum value in a list.", min, [[5, 2, 8, 1], [1], [-1, -5, 0], [3, 3]]),
    ("min_of_two", AB, "Return the minimum of two numbers.", min, PAIRS),
    ("product_digits", N, "Return the product of the digits of n.", lambda n: math.prod(digits(n)), NUMBERS),
    ("sort_digits", N, "Return the digits of n sorted.", lambda n: sorted(digits(n)), NUMBERS),
    (
        "square_digits",
        N,
        "Return the squares of the digits of n.",
        lambda n: [d * d for d in digits(n)],
        NUMBERS,
    ),
    ("reverse_range", N, "Return the numbers from 1 to n reversed.", lambda n: up_to(n)[::-1], SMALL),
    ("odd_range", N, "Return the odd numbers from 1 to n.", lambda n: [x for x in up_to(n) if x % 2], SMALL),
    (
        "count_odd_list",
        NUMS,
        "Return how many odd numbers are in a list.",
        lambda v: sum(x % 2 for x in v),
        LISTS,
    ),
    (
        "sum_square_range",
        N,
        "Return the sum of the squares of the numbers from 1 to n.",
        lambda n: sum(x * x for x in up_to(n)),
        SMALL,
    ),
    (
        "sum_even_list",
        NUMS,
        "Return the sum of the even numbers in a list.",
        lambda v: sum(x for x in v if x % 2 == 0),
        LISTS,
    ),
    (
        "max_square_list",
        NUMS,
        "Return the maximum of the squares of the numbers in a list.",
        lambda v: max(x * x for x in v),
        LISTS,
    ),
    (
        "count_even_digits",
        N,
        "Return how many even digits are in n.",
        lambda n: sum(d % 2 == 0 for d in digits(n)),
        NUMBERS,
    ),
]


def make(name, signature, docstring, reference, chosen) -> dict:
    """A problem as an object: first the chosen inputs, then drawn ones; each input once."""
    rng = random.Random(f"{SEED} {name}")
    parameters, kinds = zip(*(part.split(": ") for part in signature.split(", ")))
    given = [list(each) if len(kinds) > 1 else [each] for each in chosen]
    for _ in range(1000):
        arguments = [draw(kind, rng) for kind in kinds]
        if arguments not in given and len(given) < NUM_TESTS + NUM_HIDDEN:
            given.append(arguments)
    cases = [[arguments, reference(*arguments)] for arguments in given]
    return {
        "function_name": name,
        "parameters": list(parameters),
        "docstring": docstring,
        "test_cases": cases[:NUM_TESTS],
        "hidden_cases": cases[NUM_TESTS:],
    }


def text_of(problems: list[dict]) -> str:
    """A JSON list with one line per field."""
    entries = [
        ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in each.items()) for each in problems
    ]
    return "[\n" + ",\n".join(f" {{\n{entry}\n }}" for entry in entries) + "\n]\n"


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    for side, entries in ("train", TRAIN), ("test", TEST):
        (folder / f"dqn_{side}.json").write_text(
            text_of([make(*entry) for entry in entries]), encoding="utf-8"
        )
