# I-JEPA, ViT-S with patches of 4 pixels (a grid of 8 x 8), CIFAR-10, one GPU.
# AdamW 1.25e-4 per 256, weight decay 0.04 to 0.4, tau from 0.996, four target blocks of 15 to 20 %: the settings of
# arXiv:2301.08243 for ImageNet (the defaults), with a predictor for six heads. No settings for CIFAR-10 are published.
# Not yet measured here.
python3 main_contrastive.py cifar10 vit_small_patch16_224 --patch_size 4 --pool avg \
    --method ijepa --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 600 --batch_size 256 --predictor_dim 192 --predictor_layers 6 --predictor_heads 6 --tau 0.996 \
    --optimizer adamw --lr 1.25e-4 --final_lr 1.25e-7 --weight_decay 0.04 --final_weight_decay 0.4 \
    --scheduler warmup_cosine --warmup_epochs 40 --crop_scale 0.3 1.0
