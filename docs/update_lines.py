"""Keeps the line numbers in README.md and docs/ true.

    python docs/update_lines.py          # after every change of a script; tests/test_docs.py says when

A link such as [`ratio = log_ratio.exp()`](../train_ppo_lora.py#L1) goes to the one line of the file that
holds the code in its text. The table of files in README.md states how many non-blank lines each has.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[`([^`]+)`\]\(([\w./]+)#L\d+\)")
COUNT = re.compile(r"^\| `([\w./]+)` \| \d+ \|", re.M)


def line_of(code, path):
    """The number of the one line that holds this code; SystemExit if none or several do."""
    numbers = [n for n, line in enumerate(path.read_text().splitlines(), 1) if code in line]
    if len(numbers) != 1:
        raise SystemExit(f"{path.name} has `{code}` in lines {numbers}, a link needs exactly one")
    return numbers[0]


def updated(page):
    """The text of a page with the line numbers of today."""

    def link(found):
        code, path = found.groups()
        return f"[`{code}`]({path}#L{line_of(code, (page.parent / path).resolve())})"

    def count(found):
        lines = (ROOT / found[1]).read_text().splitlines()
        return f"| `{found[1]}` | {sum(bool(line.strip()) for line in lines)} |"

    text = LINK.sub(link, page.read_text())
    return COUNT.sub(count, text) if page.name == "README.md" else text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page))
