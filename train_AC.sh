#!/bin/sh
# PPO with a critic, from the SFT adapter: advantages that are the return minus V, and GAE; both evaluated. First the
# critic alone learns, for CRITIC_WARMUP updates: without, V explained nothing of the tiny model's returns.
#
#   sh train_AC.sh                    the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_AC.sh       the tiny model anywhere; profile.sh lists what else can be set
#   LAMS=1 sh train_AC.sh             one run, not two
#
# Time: not measured as a whole; a tiny run takes 5 minutes. To repeat a stage, delete its folder.
set -eu
cd "$(dirname "$0")"
. ./profile.sh

for LAM in ${LAMS:-1 0.95}; do
    python train_actor_critic_lora.py --resume \
        --sft_model "$SFT" \
        --train_path "${DATA}_train.jsonl" \
        --output_dir "checkpoints/${NAME}_lora_ac_lam$LAM" \
        --max_new_tokens "$NEW_TOKENS" \
        --temperature "$TEMPERATURE" \
        --reward "$REWARD" \
        --lam "$LAM" \
        --batch_size "$AC_BATCH" \
        --micro_batch_size "$MICRO_BATCH" \
        --critic_warmup "$CRITIC_WARMUP" \
        --num_updates "$((${NUM_UPDATES:-$AC_STEPS} + CRITIC_WARMUP))" \
        --learning_rate "$PPO_LR" \
        --critic_learning_rate "$CRITIC_LR"
    evaluate "${NAME}_ac_lam$LAM" "checkpoints/${NAME}_lora_ac_lam$LAM"
done
compare
