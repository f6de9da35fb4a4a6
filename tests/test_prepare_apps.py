"""data/prepare_apps.py: every layout, every normalising step, every reason to leave a problem out."""

import gzip
import json
import sys
from functools import partial

import pytest
from conftest import ROOT, run_script

from data.check_tasks import stubs
from data.prepare_apps import (
    SEVERAL_ANSWERS,
    as_text,
    capped,
    hard_codes,
    make_prompt,
    make_task,
    needs_typing,
    readings,
    stratified,
)
from data.tasks import io_cases, program, read_tasks, reference
from data.truncation import truncate
from sandbox import Sandbox, score

REAL = ROOT.parent / "shared/data/apps"
ADD = "print(sum(map(int, input().split())))\n"
DOUBLE = {"fn_name": "double", "inputs": [[3], [0], [-2]], "outputs": [6, 0, -4]}


def script(question="Add two numbers.", **fields):
    """A problem on standard input, as a row."""
    tests = {"inputs": ["1 2\n", "5 5\n", "0 7\n"], "outputs": ["3\n", "10\n", "7\n"]}
    row = {"question": question, "solutions": json.dumps([ADD]), "input_output": json.dumps(tests)}
    return {**row, "starter_code": "", "difficulty": "interview", "url": "https://a/b", **fields}


def call(tests, *solutions, question="Double it.", starter=""):
    return script(
        question,
        input_output=json.dumps(tests),
        solutions=json.dumps(solutions),
        starter_code=starter,
        difficulty="introductory",
    )


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=1) as box:
        yield box


def make(sandbox, problem, keep=False):
    return make_task(sandbox, lambda: problem, "APPS/train/0001", keep)


def write_folders(folder, problems):
    for number, problem in enumerate(problems):
        path = folder / f"{number:04d}"
        path.mkdir(parents=True)
        (path / "question.txt").write_text(problem["question"])
        (path / "solutions.json").write_text(problem["solutions"])
        (path / "input_output.json").write_text(problem["input_output"])
        (path / "metadata.json").write_text(json.dumps({"difficulty": problem["difficulty"], "url": "u"}))
        if problem["starter_code"]:
            (path / "starter_code.py").write_text(problem["starter_code"])


def prepare(*arguments, out, code=0):
    done = run_script("data/prepare_apps.py", *arguments, "--out", out, "--time_limit", 1)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.count("\n") == 1 and not out.exists(), done.stderr
    return done


# -- layouts -------------------------------------------------------------------------------------------------


def numbered(n, level="interview"):
    """Problems that ask different things."""
    return [script(f"Add two numbers, then think of {i}{level}.", difficulty=level) for i in range(n)]


@pytest.mark.parametrize("layout", ["folders", "split", "json", "jsonl", "jsonl.gz", "parquet"])
def test_layouts(tmp_path, layout, monkeypatch):
    problems = [*numbered(2), call(DOUBLE, "def double(n):\n\treturn n + n", starter="def double(n):\n\t")]
    source = tmp_path / f"source.{layout}"
    lines = "".join(json.dumps({**row, "problem_id": n}) + "\n" for n, row in enumerate(problems))
    if layout == "folders" or layout == "split":
        write_folders(source / "train" if layout == "split" else source, problems)
    elif layout == "json":
        source.write_text(json.dumps(problems))
    elif layout == "parquet":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        datasets.Dataset.from_list(problems).to_parquet(source)
    else:
        source.write_bytes(gzip.compress(lines.encode()) if layout == "jsonl.gz" else lines.encode())
    done = prepare("--source", source, out=tmp_path / "out.jsonl.gz")
    assert done.stdout.splitlines()[0].endswith("3 tasks: interview 2, introductory 1")
    assert done.stdout.splitlines()[1] == "dropped 0: none"
    tasks = read_tasks(tmp_path / "out.jsonl.gz")
    assert [task["task_id"] for task in tasks] == [f"APPS/train/000{n}" for n in range(3)]
    assert [task["entry_point"] for task in tasks] == ["", "", "double"]
    assert tasks[0]["input_output"] == json.loads(problems[0]["input_output"])
    assert tasks[2]["input_output"] == DOUBLE
    assert tasks[0]["difficulty"] == "interview" and tasks[0]["source"] and tasks[0]["num_cases"] == 3


def test_rows_of_taco(tmp_path):
    """TACO has no ids; TACO-verified has solutions as a list; both may have pictures."""
    row = script(source="codeforces", name=None, picture_num="0", difficulty="EASY", url=None)
    rows = [
        {**row, "solutions": [ADD], "question": "Add two numbers, please."},
        {**row, "picture_num": "2"},
        row,
    ]
    (tmp_path / "taco.json").write_text(json.dumps(rows))
    arguments = ["--dataset", "TACO-verified", "--source", tmp_path / "taco.json"]
    done = prepare(*arguments, "--difficulty", "easy", out=tmp_path / "out.jsonl")
    assert "dropped 1: it needs a picture 1" in done.stdout
    tasks = read_tasks(tmp_path / "out.jsonl")
    assert [(task["task_id"], task["source"]) for task in tasks] == [
        ("TACO-verified/train/0000", "codeforces"),
        ("TACO-verified/train/0002", "codeforces"),
    ]


def test_hub_by_a_stand_in(tmp_path, monkeypatch):
    """The hub itself is out of reach of tests: this shows what is asked of it, and that rows are read."""
    import datasets

    asked = []

    def load_dataset(kind, data_files, split):
        asked.append((kind, data_files, split))
        return datasets.Dataset.from_list(numbered(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prepare("--split", "test", out=tmp_path / "out.jsonl")
    files = "hf://datasets/codeparrot/apps@refs/convert/parquet/all/test/*.parquet"
    assert asked == [("parquet", files, "train")]
    assert [task["task_id"] for task in read_tasks(tmp_path / "out.jsonl")] == [
        "APPS/test/0000",
        "APPS/test/0001",
    ]

    def offline(*arguments, **more):
        raise ConnectionError("two\nlines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert "ConnectionError" in prepare(out=tmp_path / "no.jsonl", code=1).stderr
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "requirements.txt" in prepare(out=tmp_path / "no.jsonl", code=1).stderr


# -- what is refused as a whole ------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("a.jsonl", POINTER, "git lfs pull"),
        ("a.parquet", POINTER, "git lfs pull"),
        ("a/0000/question.txt", POINTER, "git lfs pull"),
        ("a/notes.txt", "", "question.txt"),
        ("a.jsonl", json.dumps(script()) + "\n{", "line 2"),
        ("a.json", "[1]", "question"),
        ("a.jsonl", json.dumps({"question": "", "private_test_cases": "eJw="}), "pickled"),
        ("a.json", json.dumps([script(solutions=""), script(solutions="[]")]), "no solutions 2"),
        ("a.json", json.dumps([{**script(), "problem_id": 1}] * 2), "twice"),
        ("a.json", "[]", "there are: none"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("b.jsonl", "", "cannot be read"),
    ],
)
def test_refused_in_one_line(tmp_path, name, text, word):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    source = tmp_path / ("a" if name.startswith("a/") else name.replace("b", "absent"))
    assert word in prepare("--source", source, out=tmp_path / "out.jsonl", code=1).stderr
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--difficulty", "interview", "hard"], "['hard']; there are: interview 1"),
        (["--max_tasks", "0"], "positive"),
        (["--out", "a.parquet"], ".jsonl"),
        (["--out", "FILE/below/a.jsonl"], "cannot write"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, word):
    source = tmp_path / "a.json"
    source.write_text(json.dumps([script()]))
    arguments = [part.replace("FILE", str(source)) for part in arguments]
    out = [] if "--out" in arguments else ["--out", tmp_path / "out.jsonl"]
    done = run_script("data/prepare_apps.py", "--source", source, *out, *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and word in done.stderr, done.stderr


# -- reasons to leave a problem out, each counted ------------------------------------------------------------

PAIRS = {"inputs": ["1\n", "2\n", "3\n", "4\n"], "outputs": ["1\n", "2\n", "3\n", "4\n"]}
ODD_ONE_OUT = "n = int(input())\nprint(n if n < 4 else 'other')"
DROPPED = {
    "no question": script(" "),
    "no tests": script(input_output="null"),
    "its tests are not usable": call({**DOUBLE, "outputs": [1]}, "def double(n): return 2 * n"),
    "no solutions": script(solutions=json.dumps([" \n"])),
    "no solution is Python 3": script(solutions=json.dumps(["print 1"])),
    "no solution passes": script(solutions=json.dumps(["print(1)", "print()"])),
    "its solutions hold its inputs": call(
        {"fn_name": "is_prime", "inputs": [[143], [529], [7]], "outputs": [False, False, True]},
        "def is_prime(x): return x not in [143, 529]",
    ),
    "it needs a picture": script("Look: ![a graph](a.png)"),
    "several right answers": script(
        input_output=json.dumps(PAIRS), solutions=json.dumps(["print(input())", ODD_ONE_OUT])
    ),
    "its cases are too large": script(
        input_output=json.dumps({"inputs": ["1 2" + " " * 300_000], "outputs": ["3"]})
    ),
    "a constant answer passes": call(
        {**DOUBLE, "inputs": [[0], [0]], "outputs": [0, 0]}, "def double(n): return 2 * n"
    ),
    "the question holds the solution": script(f"Add two numbers with {ADD}"),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_reason(sandbox, reason):
    assert make(sandbox, DROPPED[reason]) == (None, reason)


def test_reasons_are_counted(tmp_path):
    rows = [script(), script(), *[script(solutions="")] * 2, script(input_output="")]
    other = {**script("The task of an evaluation: print the sum of both numbers, which are small.")}
    (tmp_path / "a.json").write_text(json.dumps([other]))
    prepare("--source", tmp_path / "a.json", "--split", "test", out=tmp_path / "test.jsonl")
    (tmp_path / "b.json").write_text(json.dumps([*rows, other]))
    apart = ["--apart_from", tmp_path / "test.jsonl"]
    done = prepare("--source", tmp_path / "b.json", *apart, out=tmp_path / "out.jsonl")
    first, second = done.stdout.splitlines()
    assert first.endswith("1 tasks: interview 1")
    assert second.startswith("dropped 5: no solutions 2, ")
    for reason in "no tests 1", "the same question as another 1", "in a file of --apart_from 1":
        assert reason in second


def test_many_answers_are_kept_on_demand(sandbox):
    task, reason = make(sandbox, DROPPED["several right answers"], keep=True)
    assert reason == "" and task["maybe_many_answers"] is True
    assert "maybe_many_answers" not in make(sandbox, script())[0]
    for text in "print any of them", "If there are multiple solutions", "Other outputs will also be accepted":
        assert SEVERAL_ANSWERS.search(text)
    assert not SEVERAL_ANSWERS.search("Your answer will be accepted if its error is at most 1e-6")


# -- normalising ---------------------------------------------------------------------------------------------


def test_cases_as_lists_of_lines_and_numbers():
    assert as_text(["1", ["2", 3], 4.5]) == "1\n2\n3\n4.5"
    assert as_text("1\r\n2\r\n") == "1\n2\n"
    tests = {"inputs": [["1 2"], "3\r\n4"], "outputs": [3, ["7"]]}
    assert readings({"input_output": tests}) == [{"inputs": ["1 2", "3\n4"], "outputs": ["3", "7"]}]


@pytest.mark.parametrize("outputs", [[6, 0, -4], [[6], [0], [-4]]])
def test_references_decide_whether_results_are_wrapped(sandbox, outputs):
    right, as_list = "def double(n): return 2 * n\n", "def double(n): return [2 * n]\n"
    task, _ = make(sandbox, call({**DOUBLE, "outputs": outputs}, right))
    assert task["input_output"] == DOUBLE
    wrapped = {**DOUBLE, "outputs": [[6], [0], [-4]]}
    assert make(sandbox, call(wrapped, as_list))[0]["input_output"] == wrapped


def test_references_decide_whether_keys_are_integers(sandbox):
    tests = {"fn_name": "f", "inputs": [[{"1": 2, "-3": 4}], [{"5": 5}]], "outputs": [-2, 5]}
    task, _ = make(sandbox, call(tests, "def f(d): return sum(d)"))
    assert task["input_output"] == {**tests, "int_keys": True}
    assert io_cases(task["input_output"]) == [([{1: 2, -3: 4}], -2), ([{5: 5}], 5)]
    task, _ = make(sandbox, call(tests, "def f(d): return sum(map(int, d))"))
    assert task["input_output"] == tests


def test_windows_line_ends(sandbox):
    question, code = "Add two\r\nnumbers.", "a, b = map(int, input().split())\r\nprint(a + b)\r\n"
    task, _ = make(sandbox, script(question, solutions=json.dumps([code])))
    assert "\r" not in task["prompt"] + task["canonical_solution"]


def test_cap():
    inputs = [str(n) for n in range(50)]
    kept = capped({"inputs": inputs, "outputs": inputs, "fn_name": "f"}, "a")
    assert len(kept["inputs"]) == 20 and kept["inputs"][:2] == ["0", "1"] and kept["fn_name"] == "f"
    assert kept["outputs"] == kept["inputs"] == sorted(kept["inputs"], key=int)
    assert kept == capped({"inputs": inputs, "outputs": inputs, "fn_name": "f"}, "a")
    assert kept != capped({"inputs": inputs, "outputs": inputs, "fn_name": "f"}, "b")
    assert kept["inputs"] != inputs[:20]
    for name in "abcdefgh":  # each case once
        assert len(set(capped({"inputs": inputs, "outputs": inputs}, name)["inputs"])) == 20
    large = ["1", "2", "x" * 250_000, "y" * 250_000, "3"]
    assert len(capped({"inputs": large, "outputs": ["1"] * 5}, "a")["inputs"]) == 4


def test_a_solution_must_pass_the_cases_that_the_cap_leaves_out(sandbox):
    numbers = [f"{n}\n" for n in range(60)]
    kept = set(capped({"inputs": numbers, "outputs": numbers}, "APPS/train/0001")["inputs"])
    left_out = max(int(text) for text in set(numbers) - kept)
    wrong, right = f"n = int(input())\nprint(n + (n == {left_out}))", "print(int(input()))"
    problem = script(
        input_output=json.dumps({"inputs": numbers, "outputs": numbers}),
        solutions=json.dumps([wrong, right, right + "\n#"]),
    )
    task, _ = make(sandbox, problem)
    assert task["canonical_solution"] == right + "\n" and task["num_cases"] == 60
    assert len(task["input_output"]["inputs"]) == 20


def test_hard_coded_solutions():
    assert hard_codes("def f(x): return x in [1, 143, -1, 529]", [[1], [143], [-1], [529]])
    assert hard_codes("print({'3 4': 7, '5 6': 11}[input()])", ["3 4\n", "5 6\n"])
    assert hard_codes("def f(a): return a in ((1, 2), (3, 4))", [[[1, 2]], [[3, 4]]])
    assert not hard_codes("def f(x): return x % 1000 > 143", [[1], [143], [2]])
    assert not hard_codes("def f(x): return x in (1, 2, 10, True, None)", [[1], [2], [10], [True], [None]])


# -- prompts -------------------------------------------------------------------------------------------------

HOSTILE = {
    "LaTeX": r"$x1 \ne x2$, $\le \N$, \x4",
    "escapes": r"\x41 \u12 \N{DASH}",
    "three quotes": 'a """docstring""" and """"four',
    "a backslash at its end": "divide by \\",
    "a quote at its end": 'say "yes"',
    "apostrophes": "'''",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_statement_breaks_the_docstring(sandbox, name):
    for problem in (
        script(HOSTILE[name]),
        call(DOUBLE, "def double(n): return 2 * n", question=HOSTILE[name], starter="def double(n):\n\t"),
    ):
        task, reason = make(sandbox, problem)
        assert task, reason
        compile(task["prompt"], "<prompt>", "exec")
        compile(program(task, reference(task)), "<program>", "exec")
        assert truncate(task, reference(task)) == reference(task)


def test_typing():
    used = "class Solution:\n    def f(self, a: List[int]) -> int:\n        "
    assert needs_typing(used) and needs_typing("def f(a: Optional[int]): pass")
    assert not needs_typing("from typing import List\ndef f(a: List[int]): pass")
    assert not needs_typing("def f(n):\n\t") and not needs_typing("# List\nprint('List')")
    problem = {"question": "q", "starter_code": used}
    assert make_prompt(problem, "f", "").endswith('f.\n"""\nfrom typing import *\n')
    assert make_prompt({"question": "q"}, "", "").endswith('write to standard output.\n"""\n')


def test_class_solution(sandbox):
    code = "class Solution:\n    def double(self, n: List[int]):\n        return 2 * n[0]\n"
    tests = {**DOUBLE, "inputs": [[[3]], [[0]], [[-2]]]}
    task, reason = make(sandbox, call(tests, code + "print(Solution().double([1]))\n", starter=code[:-25]))
    assert task, reason
    assert task["canonical_solution"] == code  # cut as in evaluation
    texts = [text for _, text in stubs(task)]
    assert "passed" not in [r.outcome for r in score(sandbox, [task] * len(texts), texts)]


# -- which of them -------------------------------------------------------------------------------------------


def test_levels_in_proportion(tmp_path):
    levels = ["easy"] * 60 + ["hard"] * 30 + ["odd"] * 10
    order = stratified(list(range(100)), levels)
    assert sorted(order) == list(range(100)) and order == stratified(list(range(100)), levels)
    for count in 10, 20, 50:
        found = [levels[number] for number in order[:count]]
        assert [found.count(name) for name in ("easy", "hard", "odd")] == [
            count * share // 10 for share in (6, 3, 1)
        ]
    rows = [*numbered(6, "easy"), *numbered(3, "hard"), script("None", solutions="", difficulty="easy")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    run = partial(prepare, "--source", tmp_path / "a.json", "--max_tasks", 6)
    done = run(out=tmp_path / "out.jsonl")
    assert done.stdout.splitlines()[0].endswith("6 tasks: easy 4, hard 2")
    assert "not needed: " in done.stdout
    run(out=tmp_path / "again.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert prepare(
        "--source", tmp_path / "a.json", "--difficulty", "hard", out=tmp_path / "h.jsonl"
    ).stdout.count("hard 3")


# -- the real ones -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the problems of APPS are not there")
def test_real_problems(tmp_path):
    done = prepare("--source", REAL, "--keep_many_answers", out=tmp_path / "all.jsonl")
    assert done.stdout.splitlines()[0].endswith("5 tasks: introductory 2, interview 2, competition 1")
    tasks = {task["task_id"][-4:]: task for task in read_tasks(tmp_path / "all.jsonl")}
    assert [name for name, task in tasks.items() if "maybe_many_answers" in task] == ["2287"]
    assert tasks["2404"]["input_output"]["outputs"] == [9]
    assert tasks["2404"]["prompt"].endswith('"""\nfrom typing import *\n')
    assert tasks["4184"]["input_output"]["outputs"][:2] == [False, True]
    assert "[1,143,-1,529]" not in tasks["4184"]["canonical_solution"]
    done = run_script("data/check_tasks.py", tmp_path / "all.jsonl", "--test_path")
    assert done.returncode == 0 and "5 of 5 tasks are fine" in done.stdout, done.stdout
