#!/bin/sh
# PPO for two length penalties and two batch sizes, from the SFT adapter, each evaluated: one table at the end.
#
#   sh train_PPO.sh                   the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_PPO.sh      the tiny model anywhere; profile.sh lists what else can be set
#   ALPHAS=0.01 BATCHES=8 sh train_PPO.sh    one run, not four
#
# Time: tiny 8 minutes on 2 CPU cores; deepseek not measured. To repeat a stage, delete its folder.
set -eu
cd "$(dirname "$0")"
. ./profile.sh

for ALPHA in ${ALPHAS:-0.01 0.03}; do
    for BATCH in ${BATCHES:-4 8}; do
        RUN=ppo_alpha${ALPHA}_${BATCH}
        python train_ppo_lora.py --resume \
            --sft_model "$SFT" \
            --train_path "${DATA}_train.jsonl" \
            --output_dir "checkpoints/${NAME}_lora_$RUN" \
            --max_new_tokens "$NEW_TOKENS" \
            --temperature "$TEMPERATURE" \
            --reward "$REWARD" \
            --length_penalty_alpha "$ALPHA" \
            --batch_size "$BATCH" \
            --micro_batch_size "$MICRO_BATCH" \
            --num_updates "${NUM_UPDATES:-$STEPS}" \
            --learning_rate "$PPO_LR"
        evaluate "${NAME}_$RUN" "checkpoints/${NAME}_lora_$RUN"
    done
done
compare
