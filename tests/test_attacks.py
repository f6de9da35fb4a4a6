"""attacks.py in the default sandbox, as an ordinary user, and with layers and the wrapper left out."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from attacks import ATTACKS, LAYERED, LIMITS, QUICK, run
from conftest import copy_sandbox

import sandbox as module
from sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[1]
PROMISES = {"network", "processes", "write", "read", "signals"}
ORDINARY_USER = 65533
is_root = os.geteuid() == 0
has_firejail = shutil.which("firejail") is not None


def run_in_sandbox(attacks=ATTACKS, **options):
    """Return (failures, report)."""
    with Sandbox(workers=2, require=(), **LIMITS, **options) as sandbox:
        return run(sandbox, attacks), sandbox.report


@pytest.fixture(scope="module")
def default():
    return run_in_sandbox()


def test_names_are_unique():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_attacks(default):
    """None does what it must not, and nothing is left of them; the message names all that do."""
    failures, report = default
    assert failures == {}
    if missing := {need for attack in ATTACKS for need in attack.needs.split() if not report[need]}:
        pytest.skip(f"left out what needs what this machine does not promise: {', '.join(sorted(missing))}")


def test_all_layers_keep_all_promises(default):
    """Else test_attacks would leave some out."""
    _, report = default
    if not report["seccomp"] or report["landlock"] < 6:
        pytest.skip("this machine does not have all layers")
    assert all(report[promise] for promise in PROMISES), report


def python_for(user):
    """Return a Python that this user may start: that of a virtual environment may lie in root's home."""
    names = ["python3", *(f"python3.{minor}" for minor in range(10, 15))]
    paths = (f"{folder}/{name}" for folder in ("/usr/bin", "/usr/local/bin") for name in names)
    code = "import ctypes, sys; sys.exit(sys.version_info < (3, 10))"
    for path in (sys.executable, *paths):
        with suppress(OSError):
            command = [path, "-c", code]
            if not subprocess.run(command, cwd="/", user=user, group=user, extra_groups=[]).returncode:
                return path
    return None


@pytest.mark.skipif(not is_root, reason="the other tests run as an ordinary user already")
@pytest.mark.parametrize("words", [["--quick"], ["trainer"]], ids=["quick", "without layers"])
def test_as_an_ordinary_user(default, words):
    """Whose programs have the same user as the trainer, which root's have not."""
    python = python_for(ORDINARY_USER)
    if not python:
        pytest.skip("an ordinary user may start no Python here")
    with tempfile.TemporaryDirectory() as folder:
        copy_sandbox(folder, "tests/attacks.py")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        identity = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        command = [python, f"{folder}/tests/attacks.py", *words]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, **identity)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    report, all_layers = output["report"], default[1]
    assert output["failures"] == {}
    assert report["uid"] == ORDINARY_USER
    if words == ["trainer"]:
        assert output["n"] > 0
    else:
        assert output["n"] == len(QUICK)
        assert {name: report[name] for name in PROMISES} == {name: all_layers[name] for name in PROMISES}


@pytest.mark.parametrize(
    "layers, broken",
    [("seccomp", "read"), ("landlock", "network write signals"), ("", "network write read signals")],
    ids=["without landlock", "without seccomp", "without both"],
)
def test_fewer_layers(default, monkeypatch, layers, broken):
    """The report tells which promises are broken, and all others hold; without any layer no cheat passes."""
    _, report = default
    if not report["seccomp"] or report["landlock"] < 6:
        pytest.skip("this machine does not have all layers")
    monkeypatch.setattr(module, "LAYERS", tuple(layers.split()))
    failures, report = run_in_sandbox(LAYERED if layers else QUICK, wrapper=())
    assert (report["seccomp"], report["landlock"] > 0) == ("seccomp" in layers, "landlock" in layers)
    assert {name for name in PROMISES if not report[name]} == set(broken.split())
    assert failures == {}


@pytest.mark.skipif(not has_firejail, reason="test_attacks runs without firejail already")
def test_without_firejail(default):
    failures, report = run_in_sandbox(LAYERED, wrapper=())
    assert report["wrapper"] == "none"
    assert {name: report[name] for name in PROMISES} == {name: default[1][name] for name in PROMISES}
    assert failures == {}
