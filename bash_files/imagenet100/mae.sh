# MAE, ViT-S with patches of 16 pixels, ImageNet-100, 800 epochs, two GPUs.
# AdamW 1.5e-4 per 256, weight decay 0.05, betas 0.9 and 0.95, 40 epochs of warm-up: the settings of arXiv:2111.06377 for
# ImageNet (the defaults), with a batch of 512 images instead of 4096.
# Not yet measured here.
python3 main_contrastive.py imagenet100 vit_small_patch16_224 \
    --method mae \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 800 --batch_size 256 --mask_ratio 0.75 \
    --optimizer adamw --lr 1.5e-4 --weight_decay 0.05 --adam_betas 0.9 0.95 \
    --scheduler warmup_cosine --warmup_epochs 40 --crop_scale 0.2 1.0 \
    --gpus 0 1 --num_workers 8 --name mae
