# Barlow Twins, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# LARS 0.3 per 256, weight decay 1e-4, loss times 0.1, projector 2048, lambda 0.0051, blur 1.0 / 0.1, solarize 0 / 0.2:
# the settings of solo-learn 1.0.5 (commit 3f810ce2) for ImageNet-100.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method barlow_twins \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --hidden_mlp 2048 --proj_dim 2048 --lamb 0.0051 --scale_loss 0.1 \
    --optimizer lars --lr 0.3 --lars_eta 0.02 --lars_clip --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 --no_zero_init_residual \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --gpus 0 1 --num_workers 8 --name barlow_twins
