#!/bin/sh
# GRPO with the losses of DAPO and of Dr. GRPO, from the SFT adapter, each evaluated: one table at the end.
#
#   sh train_GRPO.sh                  the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_GRPO.sh     the tiny model anywhere; profile.sh lists what else can be set
#   LOSSES=dapo sh train_GRPO.sh      one run, not two
#
# Time: not measured as a whole; a tiny run takes 3 to 4 minutes. To repeat a stage, delete its folder.
set -eu
cd "$(dirname "$0")"
. ./profile.sh

for LOSS in ${LOSSES:-dapo dr_grpo}; do
    SCALE=group
    [ "$LOSS" = dapo ] || SCALE=none # Dr. GRPO divides by no standard deviation
    python train_grpo_lora.py --resume \
        --sft_model "$SFT" \
        --train_path "${DATA}_train.jsonl" \
        --output_dir "checkpoints/${NAME}_lora_grpo_$LOSS" \
        --max_new_tokens "$NEW_TOKENS" \
        --temperature "$TEMPERATURE" \
        --reward "$REWARD" \
        --loss_type "$LOSS" \
        --scale "$SCALE" \
        --batch_size "${GRPO_BATCH:-4}" \
        --samples_per_task 8 \
        --micro_batch_size "$MICRO_BATCH" \
        --num_updates "${NUM_UPDATES:-$STEPS}" \
        --learning_rate "$GRPO_LR"
    evaluate "${NAME}_grpo_$LOSS" "checkpoints/${NAME}_lora_grpo_$LOSS"
done
compare
