# DINO, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.3 per 256, weight decay 1e-6, 4096 prototypes, teacher temperature 0.07, tau from 0.9995, two views, no blur: the
# settings of solo-learn (commit 9187ea3) for CIFAR-10, whose README reports 89.52 %.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method dino --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --num_prototypes 4096 --teacher_temperature 0.07 --warmup_teacher_temperature 0.07 --tau 0.9995 \
    --optimizer lars --lr 0.3 --final_lr 0 --lars_eta 0.02 --lars_clip --weight_decay 1e-6 --final_weight_decay 1e-6 --clip_grad 0 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.0 --solarize 0.0 0.2
