# I-JEPA, ViT-B with patches of 16 pixels, ImageNet-100, 300 epochs, two GPUs.
# AdamW 1.25e-4 per 256, weight decay 0.04 to 0.4, tau from 0.996, 40 epochs of warm-up: the settings of arXiv:2301.08243
# for ImageNet (the defaults), with a batch of 512 images instead of 2048.
# Not yet measured here.
python3 main_contrastive.py imagenet100 vit_base_patch16_224 --pool avg \
    --method ijepa \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 300 --batch_size 256 --tau 0.996 \
    --optimizer adamw --lr 1.25e-4 --final_lr 1.25e-7 --weight_decay 0.04 --final_weight_decay 0.4 \
    --scheduler warmup_cosine --warmup_epochs 40 --crop_scale 0.3 1.0 \
    --gpus 0 1 --num_workers 8 --name ijepa
