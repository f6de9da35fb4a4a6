# Model, data and hyperparameters, read by train_SFT_RL.sh and train_PPO.sh; ends with a base model and an SFT
# adapter that are evaluated. Every value can be set in front of the command: MODEL=Qwen/Qwen2.5-0.5B sh train_PPO.sh
# Every command is given --resume: what is finished ends at once, what was interrupted goes on.
export PYTHONWARNINGS=ignore::FutureWarning # about calls between the libraries, nothing a user could change
PROFILE=${PROFILE:-$(python -c 'import torch; print("deepseek" if torch.cuda.is_available() else "tiny")')}
case $PROFILE in
deepseek)
    : "${MODEL:=deepseek-ai/deepseek-coder-1.3b-base}" "${DATA:=data/humaneval}" "${NEW_TOKENS:=256}"
    : "${SFT_LR:=5e-5}" "${RL_LR:=5e-6}" "${PPO_LR:=5e-6}"
    : "${RL_BATCH:=4}" "${MICRO_BATCH:=2}" "${STEPS:=100}"
    [ "$MODEL" != deepseek-ai/deepseek-coder-1.3b-base ] || : "${NAME:=deepseek_1_3b}"
    [ -f "${DATA}_train.jsonl" ] || python data/prepare_humaneval.py
    ;;
tiny) # SFT is short on purpose and PPO collapses at 5e-4: see README, "The tiny model", and docs/ppo.md
    : "${MODEL:=data/tiny_coder}" "${DATA:=data/mini}" "${NEW_TOKENS:=96}"
    : "${SFT_LR:=3.5e-4}" "${RL_LR:=5e-4}" "${PPO_LR:=2e-4}"
    : "${RL_BATCH:=8}" "${MICRO_BATCH:=8}" "${STEPS:=60}"
    [ "$MODEL" != data/tiny_coder ] || : "${NAME:=tiny}"
    ;;
*)
    echo "PROFILE is deepseek or tiny, not $PROFILE" >&2
    exit 2
    ;;
esac
NAME=${NAME:-$(basename "$MODEL")} # the prefix of checkpoints and results
SFT=checkpoints/${NAME}_lora_sft_v2

evaluate() { # name of the results, model or adapter
    python eval_humaneval.py --resume \
        --exp_name "$1" \
        --model_path "$2" \
        --data_path "${DATA}_test.jsonl" \
        --max_new_tokens "$NEW_TOKENS"
}

evaluate "${NAME}_base" "$MODEL"
python train_sft_lora.py --resume \
    --model_name "$MODEL" \
    --train_path "${DATA}_train.jsonl" \
    --output_dir "$SFT" \
    --learning_rate "$SFT_LR"
evaluate "${NAME}_sft" "$SFT"
