# MoCo v3, ViT-S/16 with a frozen patch embedding, ImageNet-100, 400 epochs, eight GPUs.
# AdamW 3e-4 per 256, weight decay 0.1, temperature 0.2, tau from 0.99, crops of 8 to 100 %, blur 1.0 / 0.1, solarize
# 0 / 0.2: the settings of solo-learn (commit 9187ea3) for ImageNet-100; warm-up of 40 epochs of arXiv:2104.02057.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet100 vit_small_patch16_224 \
    --method mocov3 \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --temperature 0.2 --tau 0.99 \
    --optimizer adamw --lr 3e-4 --weight_decay 0.1 --scheduler warmup_cosine --warmup_epochs 40 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name mocov3_vit
