# MoCo v2, ResNet-50, ImageNet, one node of eight GPUs.
# SGD 0.03 per 256, weight decay 1e-4, cosine without warm-up, batch 256, 200 epochs, temperature 0.2, queue of 65,536:
# arXiv:2003.04297, sec. 3, and the official code (commit 90e244a).
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method mocov2 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 32 --hidden_mlp 2048 --proj_dim 128 --temperature 0.2 --tau 0.999 --queue_size 65536 \
    --optimizer sgd --lr 0.03 --weight_decay 1e-4 --scheduler cosine \
    --crop_scale 0.2 1.0 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0.5 \
    --num_workers 8 --name mocov2
