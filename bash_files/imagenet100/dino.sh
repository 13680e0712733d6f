# DINO, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# LARS 0.3 per 256, weight decay 1e-6, 4096 prototypes, teacher temperature 0.04 to 0.07 over 50 epochs, tau from 0.9995, two
# views, blur 1.0 / 0.1, solarize 0 / 0.2: the settings of solo-learn (commit 9187ea3) for ImageNet-100, whose README reports
# 74.84 %.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method dino \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --num_prototypes 4096 --teacher_temperature 0.07 --teacher_warmup_epochs 50 \
    --tau 0.9995 --optimizer lars --lr 0.3 --final_lr 0 --lars_eta 0.02 --lars_clip \
    --weight_decay 1e-6 --final_weight_decay 1e-6 --clip_grad 0 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --gpus 0 1 --num_workers 8 --name dino
