#!/bin/sh
# SFT, then REINFORCE for two length penalties, each evaluated: one table at the end.
#
#   sh train_SFT_RL.sh                the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_SFT_RL.sh   the tiny model anywhere; profile.sh lists what else can be set
#
# Time: tiny 3.5 minutes on 2 CPU cores, after train_PPO.sh; deepseek not measured. To repeat a stage, delete its folder.
set -eu
cd "$(dirname "$0")"
. ./profile.sh

STEPS=${NUM_STEPS:-$STEPS}
for ALPHA in ${ALPHAS:-0.01 0.03}; do
    RUN=rl_alpha${ALPHA}_$STEPS
    python train_rl_lora.py --resume \
        --sft_model "$SFT" \
        --train_path "${DATA}_train.jsonl" \
        --output_dir "checkpoints/${NAME}_lora_$RUN" \
        --max_new_tokens "$NEW_TOKENS" \
        --temperature "$TEMPERATURE" \
        --reward "$REWARD" \
        --length_penalty_alpha "$ALPHA" \
        --batch_size "$RL_BATCH" \
        --micro_batch_size "$MICRO_BATCH" \
        --num_steps "$STEPS" \
        --learning_rate "$RL_LR"
    evaluate "${NAME}_$RUN" "checkpoints/${NAME}_lora_$RUN"
done
compare
