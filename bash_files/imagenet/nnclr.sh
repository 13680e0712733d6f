#!/usr/bin/env bash
# NNCLR, ResNet-50, ImageNet, eight nodes of eight GPUs under SLURM: sbatch bash_files/imagenet/nnclr.sh
# LARS 0.3 per 256, weight decay 1e-6, batch 4096 (64 a GPU), temperature 0.1, queue 98,304, 1000 epochs with 10 of warm-up;
# views of strength 0.5, blur 1.0 / 0.1, solarize 0 / 0.2: arXiv:2104.14548, sec. 4.1. Not yet measured here.
# Without SLURM, on every node: torchrun --nnodes 8 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint FIRST_NODE:29500
# and the same arguments from main_contrastive.py on. One process per GPU, each with its own --num_workers.
#SBATCH --job-name=nnclr
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=10
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, or when the job is preempted, the run saves and leaves with status 138 or 143; the job
# goes back into the queue and --resume auto goes on there. Any other failure stays one. Each task of a job array is a run.
: "${DATA_FOLDER:?set DATA_FOLDER}"
code=0
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500
srun --kill-on-bad-exit=1 python3 main_contrastive.py imagenet resnet50 \
    --method nnclr --data_folder "$DATA_FOLDER" --num_nodes 8 \
    --epochs 1000 --batch_size 64 --temperature 0.1 --queue_size 98304 \
    --hidden_mlp 2048 --proj_dim 256 --pred_hidden_mlp 4096 \
    --optimizer lars --lr 0.3 --weight_decay 1e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name nnclr --run_id "nnclr${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}" --resume auto || code=$?
case $code in 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit "$code"
