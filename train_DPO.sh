#!/bin/sh
# DPO on two choices of pairs from one set of candidates of the SFT adapter, each evaluated: one table at the end.
#
#   sh train_DPO.sh                   the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_DPO.sh      the tiny model anywhere; profile.sh lists what else can be set
#   RUNS=dpo sh train_DPO.sh          one run, not two
#
# Time: not measured. To repeat a stage, delete its folder; for new candidates also delete what was trained on the old.
set -eu
cd "$(dirname "$0")"
. ./profile.sh

# In a folder of their own: these are the training tasks, not a result to compare.
python eval_humaneval.py --resume \
    --exp_name "${NAME}_sft" \
    --model_path "$SFT" \
    --data_path "${DATA}_train.jsonl" \
    --results_dir results/candidates \
    --max_new_tokens "$NEW_TOKENS" \
    --n_samples "$CANDIDATES" \
    --temperature "$TEMPERATURE"

for RUN in ${RUNS:-dpo dpo_longest}; do
    RULE="" # that of make_pairs.py; the other one is a rule of public scripts: see docs/pairs.md
    [ "$RUN" = dpo ] || RULE="--rejected longest --stop_pairs 0 --n_best 1"
    PAIRS=data/pairs/${NAME}_$RUN
    python make_pairs.py $RULE \
        --task_path "${DATA}_train.jsonl" \
        --candidates "results/candidates/${NAME}_sft_per_task.jsonl" \
        --output_dir "$PAIRS"
    python train_dpo_lora.py --resume \
        --sft_model "$SFT" \
        --train_path "${DATA}_train.jsonl" \
        --pairs_path "$PAIRS/pairs.jsonl" \
        --output_dir "checkpoints/${NAME}_lora_$RUN" \
        --num_epochs "${NUM_EPOCHS:-1}" \
        --batch_size "$DPO_BATCH" \
        --micro_batch_size "$MICRO_BATCH" \
        --learning_rate "$DPO_LR"
    evaluate "${NAME}_$RUN" "checkpoints/${NAME}_lora_$RUN"
done
compare
