# SupCon, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# LARS 0.3 per 256, weight decay 1e-4, temperature 0.2, crops of 8 to 100 %, jitter of strength 1, blur 0.5: the settings
# of solo-learn 1.0.5 (commit 3f810ce2) for ImageNet-100.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method simclr \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --supervised --epochs 400 --batch_size 128 --temperature 0.2 --hidden_mlp 2048 \
    --optimizer lars --lr 0.3 --lars_eta 0.02 --lars_clip --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 --crop_scale 0.08 1.0 --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5 \
    --gpus 0 1 --num_workers 8 --name simclr_supervised
