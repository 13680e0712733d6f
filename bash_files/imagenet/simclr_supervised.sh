# SupCon, ResNet-50, ImageNet, one node of eight GPUs.
# Temperature 0.1 of arXiv:2004.11362; optimizer and views are those of simclr.sh, not that paper's.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method simclr --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --supervised --epochs 350 --batch_size 512 --hidden_mlp 2048 --proj_dim 128 --temperature 0.1 \
    --optimizer lars --lr 0.3 --weight_decay 1e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5 \
    --num_workers 8 --name simclr_supervised
