"""data/prepare_mbpp.py on rows in MBPP's form, written here, and on the real files where they are."""

import ast
import json
import sys
import types

import pytest
from conftest import ROOT, run_script
from transformers import AutoTokenizer

import eval_humaneval
import generate_vllm
from data import prepare_mbpp
from data.check_tasks import near_duplicates
from data.prepare_mbpp import SPLITS, clean_code, docstring, first_called, read_rows, to_task
from sandbox import Sandbox, encode_prompt, read_tasks, reference, score

REAL = ROOT.parent / "shared/data"
NODE = "class Node:\r\n\tdef __init__(self, value):\r\n\t\tself.value = value\r\n"
WORDS = "all of the numbers in a list that are larger than the first one, and count each of them once"


def row(number, text, code, *tests, setup=""):
    values = number, text, code, setup, list(tests), ["assert False"]  # challenges are not used
    return dict(
        zip(("task_id", "text", "code", "test_setup_code", "test_list", "challenge_test_list"), values)
    )


def adding(number):
    """A row like any other."""
    tests = [f"assert add_{number}({n}) == {n + number}" for n in (1, 2, 7)]
    return row(number, f"Add {number}.", f"def add_{number}(x):\n    return x + {number}\n", *tests)


ROWS = [
    *map(adding, (1, 10, 11, 510, 511, 600)),
    row(12, f"Find {WORDS}.", "def f(x):\n    return x\n", "assert f(1) == 1", "assert f(2) == 2"),
    row(
        601,
        "Double.",
        "def h(x):\r\n\treturn 2 * x \r\ndef g(x):\r\n\treturn h(x)",
        "assert set([g(1)]) == {2}",
    ),
    row(
        602, "Value.", NODE + "def g(x): \r\n\treturn x.value", "assert g(a) == 3 ", setup="a = Node(3) \r\n"
    ),
    row(603, "Sum.", "def sum(a, b):\n    return a - b\n", "assert sum(5, 3) == 2\n"),
    row(604, "Half.", "import math\ndef f(x):\n    return x / 2\n", "assert math.isclose(f(1), 0.5)"),
    row(605, "Copy.", "def f(x):\n    return x\n", "assert f(1) == 1"),
    row(606, "Wrong.", "def f(x):\n    return x\n", "assert f(1) == 2"),
    row(607, f"Find: {WORDS}!", "def g(y):\n    return [y]\n", "assert g(1) == [1]"),
    row(
        608,
        'Say \\n or """.',
        "def f(x):\n    return 'a\\n'\n",
        "assert not f('b') == '\\n'",
        "assert f(1) == 'a\\n'",
    ),
    row(609, "Cut.", "def f(x):\n    return T[x]\nT = {}\nT.update({1: 2})\n", "assert f(1) == 2"),
    adding(974),
]


def write(path, rows=ROWS, **how):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), **how)
    return path


def prepare(*arguments):
    return run_script("data/prepare_mbpp.py", *arguments)


def written(folder):
    """{split: {task_id: task}} of the files in a folder, which holds nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == [f"mbpp_{name}.jsonl" for name in sorted(SPLITS)]
    return {
        name: {task["task_id"]: task for task in read_tasks(folder / f"mbpp_{name}.jsonl")} for name in SPLITS
    }


def numbers(tasks):
    return [int(name.removeprefix("MBPP/")) for name in tasks]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mbpp")
    done = prepare("--source", write(folder / "mbpp.jsonl"), "--output_dir", folder / "new/out")
    assert done.returncode == 0, done.stderr
    return done, folder / "new/out"


def test_splits_and_what_leaves_them(prepared):
    done, folder = prepared
    files = written(folder)
    assert numbers(files["train"]) == [601, 602, 603, 604, 605, 608, 974]
    assert numbers(files["dev"]) == [511, 600]
    assert sorted(numbers(files["test"])) == [11, 12, 510]
    assert done.stderr.splitlines() == ["Warning: 17 tasks; MBPP has 974, or sanitized 427."]
    *lines, counts = done.stdout.splitlines()
    assert [line.rpartition("/mbpp_")[2] for line in lines] == [
        "train.jsonl: 7 tasks, MBPP/601 ... MBPP/974",
        "dev.jsonl: 2 tasks, MBPP/511 ... MBPP/600",
        "test.jsonl: 3 tasks, MBPP/11 ... MBPP/12",
    ]
    assert counts.split("; ") == [
        "15 of 17 references pass",
        "2 fail and are left out (MBPP/606: failed) (MBPP/609: exception)",
        "1 near-duplicates of test tasks, left out of train (MBPP/607: MBPP/12)",
        "6 weak (MBPP/12: return args[0]) (MBPP/603: return 2) (MBPP/605: return True) (MBPP/606: return 2) "
        "(MBPP/607: return [1]) (MBPP/609: return 2)",
        "0 need over 2 s",
    ]


def test_fields(prepared):
    """The file with one assert in the prompt, as a model sees it and as it is scored."""
    files = written(prepared[1])
    train = files["train"]
    assert files["test"]["MBPP/11"] == {
        "task_id": "MBPP/11",
        "prompt": '"""\nAdd 11.\nassert add_11(1) == 12\n"""\n',
        "canonical_solution": "def add_11(x):\n    return x + 11\n",
        "test": "assert add_11(1) == 12\nassert add_11(2) == 13\nassert add_11(7) == 18\n",
        "entry_point": "add_11",
    }
    entry_points = {name: task["entry_point"] for name, task in train.items()}
    assert [entry_points[f"MBPP/{number}"] for number in range(601, 605)] == ["g", "g", "sum", "f"]
    code = "def h(x):\n    return 2 * x\ndef g(x):\n    return h(x)\n"
    assert train["MBPP/601"]["canonical_solution"] == code
    assert train["MBPP/602"]["test"] == "a = Node(3)\nassert g(a) == 3\n"
    assert train["MBPP/608"]["prompt"] == "r'''\nSay \\n or \"\"\".\nassert not f('b') == '\\n'\n'''\n"
    pairs = [task for tasks in files.values() for task in tasks.values()]
    with Sandbox(timeout=5) as sandbox:
        assert {result.outcome for result in score(sandbox, pairs, map(reference, pairs))} == {"passed"}


def test_options(tmp_path, monkeypatch):
    """Prompts with no test and with all; weak tasks leave train alone; other evaluation files; again."""
    monkeypatch.setattr("data.check_tasks.STUBS", ("args[0]",))
    other = {**to_task(ROWS[7], 0), "task_id": "Other/1"}
    flags = [
        "--test_path",
        write(tmp_path / "other.jsonl", [other]),
        "--drop_weak",
        "--output_dir",
        tmp_path / "out",
    ]
    for n_tests in 0, 3:
        done = prepare("--source", write(tmp_path / "a.jsonl"), "--tests_in_prompt", n_tests, *flags)
        assert done.returncode == 0, done.stderr
        assert ("for evaluation only" in done.stderr) == (n_tests == 3)
        files = written(tmp_path / "out")
        shown = [
            "Add 511.",
            "assert add_511(1) == 512",
            "assert add_511(2) == 513",
            "assert add_511(7) == 518",
        ]
        assert files["dev"]["MBPP/511"]["prompt"].splitlines()[1:-1] == shown[: 1 + n_tests]
        copied = {603, 608} if n_tests else set()  # weak, as the prompt shows what the only assert expects
        assert numbers(files["train"]) == sorted({602, 603, 604, 608, 974} - copied)
        assert 12 in numbers(files["test"])
        assert "(MBPP/601: Other/1) (MBPP/607: MBPP/12)" in done.stdout
        assert f"{7 if n_tests else 2} weak, those of train left out (MBPP/12: return args[0])" in done.stdout


def test_a_shown_assert_can_be_left_out_of_training_tests(prepared, tmp_path, monkeypatch):
    """Then `return 975`, copied from the prompt of MBPP/974, passes none of its tests, not one of three."""
    monkeypatch.setattr("data.check_tasks.STUBS", ("True",))
    done = prepare(
        "--source", write(tmp_path / "a.jsonl"), "--hidden_tests", "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    files, plain = written(tmp_path / "out"), written(prepared[1])
    assert files["dev"] == plain["dev"] and files["test"] == plain["test"]
    hidden, task = files["train"]["MBPP/974"], plain["train"]["MBPP/974"]
    assert hidden["test"] == "assert add_974(2) == 976\nassert add_974(7) == 981\n"
    assert hidden | {"test": task["test"]} == task and "assert add_974(1) == 975" in hidden["prompt"]
    assert files["train"]["MBPP/602"] == plain["train"]["MBPP/602"]  # it has no other
    assert plain["train"].keys() - files["train"].keys() == {"MBPP/603", "MBPP/605"}  # weak
    with Sandbox(timeout=5) as sandbox:
        results = score(sandbox, [task, hidden], ["\ndef add_974(x):\n    return 975\n"] * 2)
    assert [result.n_passed for result in results] == [1, 0]


def test_sanitized_form_is_one_array(tmp_path, monkeypatch):
    monkeypatch.setattr("data.check_tasks.STUBS", ())
    rows = [
        {
            **{name: row[name] for name in ("task_id", "code", "test_list")},
            "prompt": row["text"],
            "test_imports": [],
        }
        for row in map(adding, (11, 511, 601))
    ]
    rows[2]["test_imports"] = ["import math", "import re"]
    (tmp_path / "sanitized-mbpp.json").write_text("\ufeff" + json.dumps(rows, indent=2), encoding="utf-8")
    done = prepare("--source", tmp_path / "sanitized-mbpp.json", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    files = written(tmp_path / "out")
    assert files["test"] == {"MBPP/11": to_task(adding(11), 1)}
    assert files["train"]["MBPP/601"]["test"].startswith("import math\nimport re\nassert add_601(1) == 602\n")


def test_entry_points():
    code = "from math import isclose\nimport math\nclass A: pass\ndef g(x): pass\nf = lambda x: x\n"
    for test, name in {
        "assert f(1) == g(2)": "f",
        "assert g(f(1)) == 1": "g",
        "assert not f(1)": "f",
        "assert set(f(1)) == g(1)": "f",
        "assert isclose(g(1), 1)": "g",
        "assert math.isclose(g(1), f(1))": "g",
        "assert A().g() == 1": "A",
        "x = [1]\nassert f(x)": "f",
    }.items():
        assert first_called(test, code) == name, test
    for test in "assert isclose(1, 1)", "assert math.g(1)", "assert f", "assert f(":
        with pytest.raises(ValueError, match="its first assert"):
            first_called(test, code)


def test_code_means_the_same():
    """Tabs become spaces and ends of lines go, unless a string holds them."""
    assert clean_code("\r\nif x:\r\n\tif y: \r\n\t\tz\r\n\r\n") == "if x:\n    if y:\n        z\n"
    assert clean_code("if x:\n  y = '\t'\n") == "if x:\n  y = '\t'\n"
    assert clean_code("x = '''a \r\n\tb'''\rif x:\r\ty\n") == "x = '''a \n\tb'''\nif x:\n\ty\n"
    with pytest.raises(ValueError, match="not Python 3"):
        clean_code("print 1")


@pytest.mark.parametrize("text", ["\\", "a\\n\\", '"', '""" \\', "'''", "a\nb", "é\u2028", '"""\\"""'])
def test_docstring_shows_the_text(text):
    assert ast.literal_eval(docstring(text).strip()) == f"\n{text}\n"


def test_a_text_that_no_docstring_holds():
    for text in "\"\"\"'''", "\0":
        with pytest.raises(ValueError, match="docstring"):
            docstring(text)


GOOD = [adding(11), adding(511), adding(601)]
BAD_FIELDS = {
    "task_id": (None, "601", True, 0, 975, 1.5),
    "text": (None, 5, "\"\"\"'''"),
    "code": (None, [], "def f(:", "def g(): pass", "(" * 500, "-" * 3000 + "1"),
    "test_setup_code": (None, ["import re"], "def check(f):\n    pass", "x = ("),
    "test_list": (
        None,
        [],
        "assert add_601(1)",
        [1],
        ["add_601(1)"],
        ["assert add_601("],
        ["assert add_601('\ud800')"],
    ),
    "test": ("assert add_601(1)",),
    "test_imports": (5, [5]),
}
BAD_ROWS = [
    (field, {**adding(601), field: value}) for field, values in BAD_FIELDS.items() for value in values
]
BAD_ROWS += [("object", []), ("object", None), ("before", adding(11))]
BAD_FILES = {
    "line 4 is not JSON": "".join(json.dumps(row) + "\n" for row in GOOD) + '{"task_id": 12,\n',
    "line 1 is not JSON": "version https://git-lfs.github.com/spec/v1\n",
    "Expecting value": "[1, \n",
    "recursion": "[" * 99_999,
    "none is of the train split": "\n",
    "none is of the dev split": json.dumps([adding(601), adding(11)]),
    "utf-8": b"\xff\xfe{\x00}\x00",
    "more than 16,000,000 characters": json.dumps({**adding(601), "text": "x" * 50_000_000}),
}


def assert_refused(done, *parts):
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 600
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize("field, bad", BAD_ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_row_is_named_and_nothing_written(tmp_path, field, bad):
    source = write(tmp_path / "a.jsonl", [*GOOD[:2], bad])
    words = {"code": "code", "text": "text", "test": "MBPP+", "test_setup_code": "test", "test_list": ""}
    done = prepare("--source", source, "--output_dir", tmp_path / "out")
    assert_refused(done, "a.jsonl", "row 3 of 3", words.get(field, field), "google-research (folder mbpp)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", BAD_FILES)
def test_a_file_that_cannot_be_read(tmp_path, words):
    text = BAD_FILES[words]
    (tmp_path / "a.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = prepare("--source", tmp_path / "a.jsonl", "--output_dir", tmp_path / "out")
    assert_refused(done, "a.jsonl", words, "google-research (folder mbpp)")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there(tmp_path):
    assert_refused(
        prepare("--source", tmp_path / "none.jsonl"), "none.jsonl", "google-research (folder mbpp)"
    )
    source = write(tmp_path / "a.jsonl", GOOD)
    assert_refused(prepare("--source", source, "--test_path", tmp_path / "none.jsonl"), "none.jsonl")


def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Nor is anything temporary left in a folder where a file cannot be replaced."""
    monkeypatch.setattr("data.check_tasks.STUBS", ())
    source = write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "out/mbpp_train.jsonl").mkdir(parents=True)
    for folder in source / "below", tmp_path / "out":
        done = prepare("--source", source, "--output_dir", folder)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        message = f"Cannot write to {folder}: "
        assert done.stderr.splitlines()[1].startswith(message) and "--output_dir" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mbpp_train.jsonl"]


def test_a_split_whose_references_all_fail(tmp_path, monkeypatch):
    monkeypatch.setattr("data.check_tasks.STUBS", ())
    source = write(tmp_path / "a.jsonl", [*GOOD[:2], next(row for row in ROWS if row["task_id"] == 606)])
    done = prepare("--source", source, "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "No task is left for mbpp_train.jsonl" in done.stderr
    assert "MBPP/606" in done.stderr and not (tmp_path / "out").exists()


def test_download(tmp_path, monkeypatch):
    """The tasks are those of all four splits of the hub."""
    monkeypatch.setattr("data.check_tasks.STUBS", ())
    calls = []
    hub = types.SimpleNamespace(load_dataset=lambda *args, **kwargs: calls.append((args, kwargs)) or GOOD)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    done = prepare("--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    whole = {"split": "prompt+test+validation+train"}
    assert calls == [(("google-research-datasets/mbpp", "full"), whole)]
    assert written(tmp_path / "out")["train"] == {"MBPP/601": to_task(GOOD[2], 1)}


def test_download_without_network(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("two\nlines")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    done = prepare("--output_dir", tmp_path / "out")
    assert_refused(done, "ConnectionError", "mbpp.jsonl", "google-research (folder mbpp)", "--source")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (REAL / "mbpp.jsonl").exists(), reason="MBPP's file is not there")
def test_references_of_mbpp_pass_also_when_cut(monkeypatch):
    monkeypatch.setattr("data.check_tasks.STUBS", ())
    tasks = [to_task(row, 1) for row in read_rows(REAL / "mbpp.jsonl")]
    assert len(tasks) == 974
    with Sandbox(timeout=10) as sandbox:
        fails, _, _ = prepare_mbpp.run(sandbox, tasks)
    assert fails == {}


@pytest.mark.skipif(not (REAL / "mbpp.jsonl").exists(), reason="MBPP's file is not there")
def test_every_prompt_is_accepted_by_default():
    """MBPP/493 has a list of 1,600 tokens in its first test, if a digit is a token."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_coder")
    lengths = [len(encode_prompt(tokenizer, to_task(row, 1))) for row in read_rows(REAL / "mbpp.jsonl")]
    assert 1024 < max(lengths) <= min(eval_humaneval.Config.max_length, generate_vllm.Config.max_length)


@pytest.mark.skipif(not (REAL / "mbpp.jsonl").exists(), reason="MBPP's file is not there")
def test_splits_of_the_real_files():
    """Which training tasks are those of the test does not depend on the tests in the prompts."""
    for name, count, n_near in ("mbpp.jsonl", 974, 11), ("sanitized-mbpp.json", 427, 2):
        tasks, splits = prepare_mbpp.read_tasks_of(REAL / name, 3)
        assert len(tasks) == count and tasks["MBPP/126"]["entry_point"] == "sum"
        near = prepare_mbpp.duplicates(splits["train"], splits["test"], [])
        assert len(near) == n_near and near["MBPP/608"] == "MBPP/67"
        for n_tests in 0, 1, 3:
            train, test = ([to_task(row, n_tests) for row in splits[side]] for side in ("train", "test"))
            train = [task for task in train if task["task_id"] not in near]
            assert near_duplicates(train, test) == []
        if count == 974:
            assert {side: len(rows) for side, rows in splits.items()} == {
                "train": 374,
                "dev": 90,
                "test": 500,
            }
