# MoCo v3, ViT-S/16 with a frozen patch embedding, ImageNet, one node of eight GPUs.
# AdamW 1.5e-4 per 256, weight decay 0.1, temperature 0.2, tau from 0.99, batch 1024, 300 epochs, 40 of warm-up, crops of 8
# to 100 %: arXiv:2104.02057, sec. 5, and the official code. It has 12 heads and fixed position embeddings; timm's ViT-S
# has 6 heads and trained ones.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet vit_small_patch16_224 \
    --method mocov3 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 300 --batch_size 128 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --temperature 0.2 --tau 0.99 \
    --optimizer adamw --lr 1.5e-4 --weight_decay 0.1 --scheduler warmup_cosine --warmup_epochs 40 \
    --crop_scale 0.08 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name mocov3_vit
