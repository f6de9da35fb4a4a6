"""report.html: its figures follow from the files beside it, and a browser shows completions as text."""

import base64
import hashlib
import json
import re
import shutil

import pytest
from conftest import ROOT, run_script
from playwright.sync_api import sync_playwright

TINY = ROOT / "results/tiny"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = [  # what a model may write, and what must stay text
    "\n    return 1</script><script>window.hacked = 1</script>\n",
    "\n    return 2 <img src=x onerror='window.hacked = 2'>\n",
    "\n    <!-- <script> \u2028 '\"`${window.hacked = 3} \\u003c &lt; {{DATA}} {{FIGURES}}\n",
]
TASKS = [
    {
        "task_id": f"T/{i}",
        "prompt": f'def f{i}(x):\n    """<b>bold</b> </script><script>window.hacked = 4</script>"""\n',
        "canonical_solution": "    return x\n",
        "test": f"def check(f):\n    assert f({i}) == {i}\n",
        "entry_point": f"f{i}",
    }
    for i in range(4)
]


def write_run(folder, name, method, passed, completions, task_file):
    """The two files of a run on TASKS; passed: one character for each, "s" if it is only not stopping."""
    rows = []
    for task, mark, completion in zip(TASKS, passed, completions, strict=True):
        row = {"task_id": task["task_id"], "sample": 0, "completion": completion, "gen_len": 9}
        row |= {"passed": mark == "1", "outcome": "passed" if mark == "1" else "failed"}
        row |= {"passed_truncated": mark != "0", "outcome_truncated": "failed" if mark == "0" else "passed"}
        row |= {"message": "" if mark == "1" else "assert </script><script>window.hacked = 5</script>"}
        rows.append(row | {"cut_at": completion.index("\nprint") if mark == "s" else len(completion)})
    counts = {field: sum(row[field] for row in rows) for field in ("passed", "passed_truncated")}
    metrics = {"exp_name": name, "method": method, "model_path": "none", "data_path": str(task_file)}
    metrics |= {"num_tasks": 4, "num_pass": counts["passed"], "pass_at_1": counts["passed"] / 4}
    metrics |= {"num_pass_truncated": counts["passed_truncated"], "avg_gen_len": 9.0}
    metrics |= {"pass_at_1_truncated": counts["passed_truncated"] / 4}
    metrics["outcomes"] = {"passed": counts["passed"], "failed": 4 - counts["passed"]}
    metrics["protocol"] = {"dataset_sha256": hashlib.sha256(task_file.read_bytes()).hexdigest()}
    (folder / f"{name}_metrics.json").write_text(json.dumps(metrics))
    (folder / f"{name}_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def report_of(folder):
    """Run compare_runs.py --html on folder; the path of the page."""
    done = run_script("compare_runs.py", "--results_dir", folder, "--html")
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


def data_of(page):
    """The JSON in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    base = [
        "\n    return 3\n\nprint(1)\n",
        "\n    return 4\n",
        "\n    x = 1\n    return x\n",
        "\n    return 5\n",
    ]
    write_run(folder, "base", "base", "s010", base, folder / "tasks.jsonl")
    name = "<img src=x onerror='window.hacked = 6'>"
    ppo = [*HOSTILE, "\n    return 5\n"]
    write_run(folder, name, "PPO", "1100", ppo, folder / "tasks.jsonl")
    return report_of(folder)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A function that opens a page; it must cause no message on the console and fetch nothing."""
    messages, requests = [], []

    def go(path, **options):
        page = browser.new_page(**options)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield go
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in requests) == 1


def listed(page):
    return page.locator("#list button > span:first-child").all_inner_texts()


# ---- without a browser ----


def test_figures_of_the_report_follow_from_the_files(tmp_path):
    """The page of the committed results: its table is that of results.md, its verdicts those of the rows."""
    for path in TINY.glob("tiny_*.json*"):
        shutil.copy(path, tmp_path)
    page = report_of(tmp_path)
    data = data_of(page)
    lines = (tmp_path / "results.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert data["tables"][0][1] == [cells[0], *cells[2:]]
    for i, name in enumerate(data["runs"]):
        rows = [json.loads(line) for line in (tmp_path / f"{name}_per_task.jsonl").read_text().splitlines()]
        assert [task["id"] for task in data["tasks"]] == [row["task_id"] for row in rows]
        for task, row in zip(data["tasks"], rows):
            assert (task["runs"][i]["n"], task["runs"][i]["passed"]) == (1, row["passed"])
            (entry,) = task["runs"][i]["shown"]
            assert {key: entry[key] for key in row if key in entry} == {
                key: row[key] for key in row if key in entry
            }
            assert {"passed", "outcome", "gen_len", "message"} <= set(row) & set(entry)
            text = "\n".join("".join(text for _, text in line) for line in data["codes"][entry["code"]])
            assert text == row["completion"].removeprefix("\n")
        score = sum(task["runs"][i]["passed"] for task in data["tasks"])
        assert data["tables"][0][1][i + 1][4] == f"{score} / {len(data['tasks'])}"
    assert len(data["pairs"]) == len(data["runs"]) * (len(data["runs"]) - 1) // 2
    assert data["pairs"] == [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(f"- {pair['text']}" in lines for pair in data["pairs"])


def test_old_pictures_of_other_runs_are_left_out(tmp_path):
    for path in TINY.glob("tiny_base*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "learning_curves.png").write_bytes(b"old")
    page = report_of(tmp_path).read_text()
    assert page.count("<figure>") == 2 and base64.b64encode(b"old").decode() not in page


def test_the_page_is_one_file(hostile):
    page = hostile.read_text()
    assert not re.search(
        r"<(link|iframe|object|script src|img (?!alt))|@import|url\(", page.split('id="data"')[0]
    )
    assert page.count("<script") == 2  # the data and the page's own
    assert "{{SCRIPT" not in page


def test_no_prompt_of_a_file_that_has_changed(tmp_path, hostile):
    for path in hostile.parent.glob("*.json*"):
        shutil.copy(path, tmp_path)
    for path in tmp_path.glob("*_metrics.json"):
        metrics = json.loads(path.read_text())
        metrics["data_path"] = str(tmp_path / "tasks.jsonl")
        path.write_text(json.dumps(metrics))
    assert {task["prompt"] is None for task in data_of(report_of(tmp_path))["tasks"]} == {False}
    (tmp_path / "tasks.jsonl").write_text((tmp_path / "tasks.jsonl").read_text().replace("bold", "cold"))
    assert {task["prompt"] is None for task in data_of(report_of(tmp_path))["tasks"]} == {True}


def test_folder_that_cannot_be_written(tmp_path):
    for path in TINY.glob("tiny_base*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "report.html").mkdir()
    done = run_script("compare_runs.py", "--results_dir", tmp_path, "--html")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "Cannot write" in done.stderr


# ---- in a browser ----


def test_all_samples_count_and_what_is_not_known_is_not_called_wrong(tmp_path, opened):
    """20 completions, of which the seventh passes, against 20 that fail; T/1 is a task of run b alone."""
    for name, passing in (("a", ()), ("b", (6,))):
        rows = [{"task_id": "T/0", "sample": i, "passed": i in passing} for i in range(20)]
        rows += [{"task_id": "T/1", "sample": 0, "passed": True}] if name == "b" else []
        (tmp_path / f"{name}_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = opened(report_of(tmp_path))
    assert page.locator("#list button").all_inner_texts() == ["T/0\nA 0/20 B 1/20", "T/1\nA – B ✓"]
    page.locator("#change").select_option("gained")
    assert listed(page) == ["T/0"]
    assert page.locator(".columns .name").all_inner_texts() == ["a, sample 1 of 20 ", "b, sample 1 of 20 "]
    samples = [f"{run}, sample {i} of 20 " for run in "ab" for i in range(2, 6)]
    assert page.locator(".all .name").all_inner_texts() == samples  # what stands side by side is not repeated
    page.locator("#change").select_option("all")
    page.locator("#ending").select_option("_truncated")
    assert page.locator("#list button").first.inner_text() == "T/0\nA – B –"


def test_completions_are_text(hostile, opened):
    page = opened(hostile)
    page.locator("#b").select_option("1")
    for i, completion in enumerate(HOSTILE):
        page.locator("#list button").nth(i).click()
        side = page.locator(".columns pre").nth(1)
        text = "\n".join(side.locator(".row:not(.filler)").all_text_contents())
        assert text == completion.removeprefix("\n")
    assert "<b>bold</b> </script>" in page.locator("#task pre").first.inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#task img, #task script, #table img, #matrix img, #task b").count() == 0
    assert page.locator("#table tr").count() == 3


def test_a_script_that_got_in_would_not_run(hostile, browser, tmp_path):
    """The second line of defence: what is not the page's own script is forbidden."""
    for injected in ("<script>window.hacked = 7</script>", "<img src='data:,' onerror='window.hacked = 8'>"):
        (tmp_path / "report.html").write_text(
            hostile.read_text().replace("<noscript>", injected + "<noscript>")
        )
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("#list button").count() == 4
        assert page.evaluate("window.hacked") is None


def test_filters(hostile, opened):
    """base: T/0 only does not stop, T/2 passes; the other passes T/0 and T/1."""
    page = opened(hostile)
    assert not page.locator("#of_level").is_visible()  # no task has a level
    page.locator("#b").select_option("1")
    expected = {"all": [0, 1, 2, 3], "gained": [0, 1], "lost": [2], "both": [], "neither": [3]}
    for change, numbers in expected.items():
        page.locator("#change").select_option(change)
        assert listed(page) == [f"T/{i}" for i in numbers]
        assert page.locator("#count").inner_text() == f"{len(numbers)} of 4 tasks"
    page.locator("#change").select_option("both")
    assert "No task" in page.locator("#task").inner_text()
    page.locator("#ending").select_option("_truncated")
    assert listed(page) == ["T/0"]
    page.locator("#ending").select_option("")
    page.locator("#change").select_option("all")
    page.locator("#outcome").select_option("failed")
    assert listed(page) == ["T/2", "T/3"]
    page.locator("#outcome").select_option("")
    page.locator("#text").fill("RETURN 4")
    assert listed(page) == ["T/1"]
    page.locator("#text").fill("def f3(")
    assert listed(page) == ["T/3"]
    page.locator("#text").fill("")
    page.locator("#a").select_option("1")
    page.locator("#b").select_option("0")
    page.locator("#change").select_option("gained")
    assert listed(page) == ["T/2"]


def test_side_by_side(hostile, opened):
    """Of T/0, what is cut is faint; T/3 is equal on both sides; of T/1 each has its own line."""
    page = opened(hostile)
    page.locator("#b").select_option("1")
    assert page.locator(".columns pre").nth(0).locator(".gone").all_text_contents() == ["print(1)", ""]
    sentence = page.locator("#sentence").inner_text()
    assert "solves 1 more of 4 than base" in sentence and "(1 only because it stops, 1 because" in sentence
    page.locator("#list button").nth(3).click()
    left, right = (page.locator(".columns pre").nth(i) for i in (0, 1))
    assert left.locator(".only-a").count() == right.locator(".only-b").count() == 0  # both return 5
    page.locator("#list button").nth(1).click()
    assert left.locator(".only-a").all_text_contents() == ["    return 4"]
    assert right.locator(".only-b").all_text_contents() == [HOSTILE[1].strip("\n")]
    assert left.locator(".row").count() == right.locator(".row").count() == 3
    assert left.locator(".row .k").all_text_contents() == ["return"]


def test_matrix_of_pairs(tmp_path, opened):
    """Of 8 tasks a solves 0, b 1, c all: a number chooses its pair, and shows the sentence of pairs.jsonl."""
    for name, passed in (("a", 0), ("b", 1), ("c", 8)):
        rows = [{"task_id": f"T/{i}", "passed": i < passed} for i in range(8)]
        (tmp_path / f"{name}_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"task_id": "other", "passed": True}]
    (tmp_path / "d_per_task.jsonl").write_text(json.dumps(rows[0]))
    page = opened(report_of(tmp_path))
    cells = [row.locator("td").all_inner_texts() for row in page.locator("#matrix tr").all()[1:]]
    assert cells == [
        ["", "−12.5", "−100.0", ""],
        ["+12.5", "", "−87.5", ""],
        ["+100.0", "+87.5", "", ""],
        ["", "", "", ""],  # d has other tasks
    ]
    assert page.locator("#matrix th:first-child").all_inner_texts() == ["", "1 a", "2 b", "3 c", "4 d"]
    assert page.locator("#matrix .more").all_inner_texts() == ["+100.0", "+87.5"]  # p = 2 / 2^8 and 2 / 2^7
    assert page.locator("#matrix .fewer").all_inner_texts() == ["−100.0", "−87.5"]
    texts = {(pair["a"], pair["b"]): pair["text"] for pair in data_of(tmp_path / "report.html")["pairs"]}
    button = page.locator("#matrix button", has_text="+87.5")
    assert button.get_attribute("title") == texts["b", "c"]
    button.click()
    assert page.locator("#sentence").inner_text() == texts["b", "c"]
    assert [page.locator(f"#{side} option:checked").inner_text() for side in "ab"] == ["b", "c"]
    assert page.locator('#matrix button[aria-pressed="true"]').all_inner_texts() == ["+87.5"]
    page.locator("#b").select_option("3")
    assert page.locator("#sentence").inner_text() == ""


def test_levels_and_base_tests(tmp_path, opened):
    """Tables per level, tests per level beside the sentence, a filter, and what a wrong program passed."""
    for name, passed in (("a", 0), ("b", 1)):
        rows = [
            {"task_id": f"T/{i}", "passed": i < 6 * passed, "completion": "\n    pass"} for i in range(40)
        ]
        for i, row in enumerate(rows):
            row |= {"difficulty": "easy" if i < 30 else "hard", "pass_rate": float(row["passed"]) or 0.375}
            row["passed_base"] = i % 2 == 0 or row["passed"]
        (tmp_path / f"{name}_per_task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = opened(report_of(tmp_path))
    titles = ["Difficulty easy, 30 tasks", "Difficulty hard, 10 tasks"]
    assert page.locator("#levels h3").all_inner_texts()[:2] == titles
    easy, hard = (page.locator("#levels table").nth(i) for i in (0, 1))
    assert easy.locator("td").nth(2).inner_text() == "0 / 30" and "0 / 10" in hard.inner_text()
    lines = page.locator("#sentence p").all_inner_texts()
    assert [line.split(";")[0] for line in lines] == [
        "b solves 6 more of 40 than a",
        "easy: b solves 6 more of 30 than a",
    ]
    page.locator("#level").select_option("hard")
    assert listed(page) == [f"T/{i}" for i in range(30, 40)]
    heads = page.locator(".columns .faint").all_inner_texts()
    assert heads == [" 37 % of the tests, passes the base tests"] * 2
    page.locator("#list button").nth(1).click()
    assert page.locator(".columns .faint").first.inner_text() == " 37 % of the tests"


def test_fits_the_screen(hostile, opened):
    page = opened(hostile)
    for width in 390, 1280:
        for scheme, background in ("light", "rgb(246, 247, 249)"), ("dark", "rgb(20, 24, 29)"):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
        for card in page.locator("pre").all():  # long lines are wrapped, not cut off
            assert card.evaluate("pre => pre.scrollWidth <= pre.clientWidth")
    assert all(page.locator("img").nth(i).evaluate("i => i.naturalWidth") > 500 for i in range(2))
