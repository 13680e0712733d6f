# iBOT, ViT-Ti with patches of 4 pixels, CIFAR-10, one GPU.
# No settings for CIFAR-10 are published: AdamW 5e-4 per 256, weight decay 0.04 to 0.4, shared head of 8192 outputs, block-wise
# masks and a warm-up of the teacher's temperature of 30 epochs are those of arXiv:2111.07832, sec. 4.1, for ImageNet.
# Not yet measured here.
python3 main_contrastive.py cifar10 vit_tiny_patch16_224 --patch_size 4 --drop_path 0.1 \
    --method ibot --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 800 --batch_size 256 --num_prototypes 8192 --teacher_temperature 0.07 --tau 0.996 \
    --optimizer adamw --lr 5e-4 --weight_decay 0.04 --final_weight_decay 0.4 --clip_grad 3.0 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.25 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.0 --solarize 0.0 0.2
