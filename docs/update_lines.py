"""Keeps the line numbers in README.md and docs/ true.

    python docs/update_lines.py          # after every change of a script; tests/test_docs.py says when

[`ppo_loss`](../train_ppo_lora.py#L1) links to the definition of a name; other code to the one line that holds
it. The table of files in README.md states how many non-blank lines each has.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "scale_out/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\[`([^`]+)`\]\(([\w./]+)#L\d+\)")
COUNT = re.compile(r"^\| `([\w./]+)` \| \d+ \|", re.M)


def line_of(code, path):
    """The number of the line that defines this name or holds this code; SystemExit if none or several do."""
    lines = list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    defined = [n for n, line in lines if re.match(rf"(def|class) {re.escape(code)}\b", line)]
    numbers = defined or [n for n, line in lines if code in line]
    if len(numbers) != 1:
        raise SystemExit(f"{path.name} has `{code}` in lines {numbers}, a link needs exactly one")
    return numbers[0]


def updated(page):
    """The text of a page with the line numbers of today."""

    def link(match):
        code, path = match.groups()
        return f"[`{code}`]({path}#L{line_of(code, (page.parent / path).resolve())})"

    def count(match):
        lines = (ROOT / match[1]).read_text(encoding="utf-8").splitlines()
        return f"| `{match[1]}` | {sum(bool(line.strip()) for line in lines)} |"

    text = LINK.sub(link, page.read_text(encoding="utf-8"))
    return COUNT.sub(count, text) if page.name == "README.md" else text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page), encoding="utf-8")
