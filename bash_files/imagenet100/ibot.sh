# iBOT, ViT-S/16, ImageNet-100, 800 epochs, two GPUs.
# AdamW 5e-4 per 256, weight decay 0.04 to 0.4, shared head of 8192 outputs, teacher temperature 0.04 to 0.07 over 30 epochs,
# 2 views of 224 (25 to 100 %) and 10 of 96 pixels (5 to 25 %): arXiv:2111.07832, sec. 4.1, for ImageNet.
# Not yet measured here.
python3 main_contrastive.py imagenet100 vit_small_patch16_224 --drop_path 0.1 \
    --method ibot \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 800 --batch_size 128 --num_prototypes 8192 --teacher_temperature 0.07 --tau 0.996 \
    --optimizer adamw --lr 5e-4 --weight_decay 0.04 --final_weight_decay 0.4 --clip_grad 3.0 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --small_views 10 --large_size 224 --small_size 96 --crop_scale 0.25 1.0 --small_scale 0.05 0.25 \
    --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 0.5 --solarize 0.0 0.2 0.0 \
    --gpus 0 1 --num_workers 8 --name ibot
