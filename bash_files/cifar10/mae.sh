# MAE, ViT-S with patches of 4 pixels, CIFAR-10, one GPU.
# AdamW 2e-4 per 256, weight decay 0.05, betas 0.9 and 0.95, 75 % of the patches masked, a decoder of 8 blocks of width
# 512: the settings of solo-learn (commit 9187ea3) for CIFAR-10, which publishes no accuracy.
# Not yet measured here.
python3 main_contrastive.py cifar10 vit_small_patch16_224 --patch_size 4 \
    --method mae --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --mask_ratio 0.75 --decoder_dim 512 --decoder_layers 8 --decoder_heads 16 \
    --optimizer adamw --lr 2e-4 --weight_decay 0.05 --adam_betas 0.9 0.95 \
    --scheduler warmup_cosine --warmup_epochs 10 --crop_scale 0.08 1.0
