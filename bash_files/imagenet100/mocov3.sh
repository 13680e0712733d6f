# MoCo v3, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# LARS 0.3 per 256, weight decay 1e-6, temperature 0.2, tau from 0.99, crops of 8 to 100 %, blur 1.0 / 0.1, solarize
# 0 / 0.2: the settings of solo-learn (commit 9187ea3) for ImageNet-100.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method mocov3 \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --temperature 0.2 --tau 0.99 \
    --optimizer lars --lr 0.3 --lars_eta 0.02 --lars_clip --weight_decay 1e-6 \
    --scheduler warmup_cosine --warmup_epochs 10 --no_zero_init_residual \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --gpus 0 1 --num_workers 8 --name mocov3
