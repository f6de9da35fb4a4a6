#!/bin/sh
# What scale_out/ hands over, read and scored by verl 0.9.1 itself: without a GPU, no training. Not part of .ci/run.
#
#   sh .ci/verify_verl.sh [FOLDER]      FOLDER is for verl's environment: 2 minutes and 1.9 GB the first time
#
# `python` must be that of this project (pip install -r requirements-dev.txt); verl cannot share its environment.
set -eu
VENV=${1:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rl-code-agent/venv-verl-0.9.1}
mkdir -p "$VENV"
VENV=$(cd "$VENV" && pwd)
cd "$(dirname "$0")/.."
if [ ! -f "$VENV/complete" ]; then
    python3 -m venv "$VENV"
    # A CPU build of torch is enough. The other packages are those without which verl's trainer does not start.
    "$VENV/bin/pip" install -q torch==2.13.0
    "$VENV/bin/pip" install -q verl==0.9.1 cachetools uvicorn fastapi msgspec pyzmq TransferQueue
    touch "$VENV/complete"
fi
VERL_PYTHON=$VENV/bin/python python -m pytest -n0 -q -s tests/test_scale_out.py -k verl_reads_and_scores
