#!/bin/sh
# DQN with one part after the other, each evaluated on the problems held out: one table at the end.
#
#   sh train_DQN.sh                  four agents on 40 problems
#   STEPS=60000 sh train_DQN.sh      the same with fewer steps each, or SEED=2 with another seed
#
# Time: about 4 minutes of one core. No GPU and no language model is needed. To repeat a stage,
# delete its folder.
set -eu
cd "$(dirname "$0")"

run() { # name, flags of train_dqn.py
    NAME=$1
    shift
    python train_dqn.py --resume \
        --output_dir "checkpoints/dqn_$NAME" \
        --total_steps "${STEPS:-200000}" \
        --seed "${SEED:-1}" \
        "$@"
    python train_dqn.py \
        --evaluate "checkpoints/dqn_$NAME" \
        --problems data/dqn_test.json \
        --results "results/dqn/dqn_$NAME"
}

run plain --double False --dueling False --per_alpha 0 --lower_bound False
run bound --double False --dueling False --per_alpha 0
run nstep --lower_bound False --n_step 7
run all
python compare_runs.py --html --results_dir results/dqn
