import fcntl
import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: with more threads than cores all are slow
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, and inherited by processes

LOCK = open(__file__)  # one for all workers


def is_alone(item):
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Before tests marked `alone`, which measure time, the other workers end theirs and wait."""
    fcntl.flock(LOCK, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        if not (is_alone(item) and is_alone(nextitem)):
            fcntl.flock(LOCK, fcntl.LOCK_UN)


def run_script(script, *arguments, cwd=ROOT):
    """Run a script in this process as from its command line; returns what subprocess.run would."""
    arguments = [script, *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), None
    folder, argv = os.getcwd(), sys.argv
    try:
        os.chdir(cwd)
        sys.argv = arguments
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(folder)
        sys.argv = argv
    if isinstance(code, str):  # as Python does
        err.write(code + "\n")
        code = 1
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())
