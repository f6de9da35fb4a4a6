#!/bin/sh
# Train with verl 0.9.1 what export_verl.py wrote, in the environment of requirements-verl.txt.
#
#   sh scale_out/run_verl.sh grpo checkpoints/NAME_verl        all GPUs of this machine
#   NNODES=2 sh scale_out/run_verl.sh grpo checkpoints/NAME_verl    two machines, after `ray start --head` on this one
#                                                              and `ray start --address=IP:6379` on the other
#   sh scale_out/run_verl.sh ppo checkpoints/NAME_verl actor_rollout_ref.actor.optim.lr=5e-7    any setting of verl
#
# On all machines, this repository and the export lie at the same path. Started again, it goes on from its last
# checkpoint.
set -eu
METHOD=${1:-}
EXPORT=${2:-}
if [ ! -f "$(dirname "$0")/verl_$METHOD.yaml" ] || [ ! -f "$EXPORT/val.parquet" ]; then
    echo "usage: sh $0 ppo|grpo FOLDER [SETTING=VALUE ...]; FOLDER holds what export_verl.py wrote" >&2
    exit 2
fi
shift 2
EXPORT=$(cd "$EXPORT" && pwd)
cd "$(dirname "$0")/.."
if ! python -c 'import verl' 2>/dev/null; then
    echo "verl is missing: pip install -r scale_out/requirements-verl.txt, in an environment of its own" >&2
    exit 2
fi
NNODES=${NNODES:-1}
GPUS=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l)} # of each machine
if [ "$GPUS" -eq 0 ]; then
    echo "verl trains on GPUs, and nvidia-smi finds none here (GPUS=8 sets their number)" >&2
    exit 2
fi
[ "$NNODES" -eq 1 ] || export RAY_ADDRESS="${RAY_ADDRESS:-auto}" # the cluster that is there, or an error

exec python -m verl.trainer.main_ppo \
    --config-path "$PWD/scale_out" \
    --config-name "verl_$METHOD" \
    "repository=$PWD" \
    "export_dir=$EXPORT" \
    "trainer.nnodes=$NNODES" \
    "trainer.n_gpus_per_node=$GPUS" \
    "$@"
