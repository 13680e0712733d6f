# NNCLR, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# LARS 0.4 per 256, weight decay 1e-5, temperature 0.2, queue 65,536, blur 1.0 / 0.1, solarize 0 / 0.2: the settings of
# solo-learn 1.0.5 (commit 3f810ce2) for ImageNet-100, which trains for 400 epochs; 100 here. Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method nnclr \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10 --batch_size 128 --temperature 0.2 --queue_size 65536 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --gpus 0 1 --num_workers 8 \
    --name nnclr
