#!/bin/sh
# Supervised fine-tuning, then REINFORCE with two length penalties, each evaluated: one table at the end.
#
#   sh train_SFT_RL.sh                   the 1.3B model where there is a CUDA device, the tiny model elsewhere
#   PROFILE=tiny sh train_SFT_RL.sh      the tiny model anywhere
#   FORCE=1 sh train_SFT_RL.sh           repeat the stages that are finished already
#
# Time: tiny 3.5 minutes on 2 CPU cores, base and SFT being finished; deepseek not measured.
set -eu
cd "$(dirname "$0")"
export PYTHONWARNINGS=ignore::FutureWarning # about calls between the libraries, nothing a user could change

# Profile: model, data and hyperparameters (the same lines in train_SFT_RL.sh and train_PPO.sh).
if [ -z "${PROFILE:-}" ]; then
    PROFILE=$(python -c 'import torch; print("deepseek" if torch.cuda.is_available() else "tiny")')
fi
case $PROFILE in
deepseek)
    NAME=deepseek_1_3b
    MODEL=deepseek-ai/deepseek-coder-1.3b-base
    TRAIN=data/humaneval_train.jsonl
    TEST=data/humaneval_test.jsonl
    NEW_TOKENS=256
    SFT_LR=5e-5
    RL_LR=5e-6
    PPO_LR=5e-6
    RL_BATCH=4
    MICRO_BATCH=2
    STEPS=100
    ;;
tiny)
    NAME=tiny
    MODEL=data/tiny_coder
    TRAIN=data/mini_train.jsonl
    TEST=data/mini_test.jsonl
    NEW_TOKENS=96
    SFT_LR=3.5e-4 # on purpose not enough to unlearn the mistakes of the base model: see README, "The tiny model"
    RL_LR=5e-4
    PPO_LR=2e-4 # takes four steps where REINFORCE takes one; at 5e-4 it can collapse: see docs/ppo.md
    RL_BATCH=8
    MICRO_BATCH=8
    STEPS=60
    ;;
*)
    echo "PROFILE is deepseek or tiny, not $PROFILE" >&2
    exit 2
    ;;
esac
SFT=checkpoints/${NAME}_lora_sft_v2

# A stage is finished when what it writes is there and not older than what it reads.
trained() {
    [ "${FORCE:-0}" != 1 ] && grep -qs '"finished": true' "$1/run_config.json" &&
        [ ! "$2/run_config.json" -nt "$1/run_config.json" ]
}
# Flag for a stage that was interrupted: it goes on where it last saved its state.
resume() {
    [ "${FORCE:-0}" = 1 ] || grep -qs '"finished": true' "$1/run_config.json" || echo --resume
}
evaluated() {
    [ "${FORCE:-0}" != 1 ] && [ -f "results/$1_metrics.json" ] &&
        [ ! "$2/run_config.json" -nt "results/$1_metrics.json" ]
}
evaluate() {
    evaluated "$1" "$2" && return
    [ "${FORCE:-0}" != 1 ] || rm -f "results/$1_unfinished.jsonl"
    python eval_humaneval.py $([ ! -f "results/$1_unfinished.jsonl" ] || echo --resume) \
        --exp_name "$1" \
        --model_path "$2" \
        --data_path "$TEST" \
        --max_new_tokens "$NEW_TOKENS"
}

if [ "$PROFILE" = deepseek ] && [ ! -f "$TRAIN" ]; then
    python data/prepare_humaneval.py
fi

evaluate "${NAME}_base" "$MODEL"

trained "$SFT" "$MODEL" || python train_sft_lora.py $(resume "$SFT") \
    --model_name "$MODEL" \
    --train_path "$TRAIN" \
    --test_path "$TEST" \
    --output_dir "$SFT" \
    --learning_rate "$SFT_LR"
evaluate "${NAME}_sft" "$SFT"

NUM_STEPS=${NUM_STEPS:-$STEPS}
for ALPHA in 0.01 0.03; do
    RUN=rl_alpha${ALPHA}_$NUM_STEPS
    ADAPTER=checkpoints/${NAME}_lora_$RUN
    trained "$ADAPTER" "$SFT" || python train_rl_lora.py $(resume "$ADAPTER") \
        --sft_model "$SFT" \
        --train_path "$TRAIN" \
        --test_path "$TEST" \
        --output_dir "$ADAPTER" \
        --max_new_tokens "$NEW_TOKENS" \
        --length_penalty_alpha "$ALPHA" \
        --num_steps "$NUM_STEPS" \
        --batch_size "$RL_BATCH" \
        --micro_batch_size "$MICRO_BATCH" \
        --learning_rate "$RL_LR"
    evaluate "${NAME}_$RUN" "$ADAPTER"
done

python compare_runs.py --html
