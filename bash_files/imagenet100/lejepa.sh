# LeJEPA with six small views, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# AdamW 5e-4 per 256, weight decay 5e-4, lambda 0.05, 2 x 224 of 30 to 100 % and 6 x 98 of 5 to 30 %, blur 0.5, solarize 0.2:
# the README of the official code (rbalestr-lab/lejepa, commit eddffdd), which has 5e-4 for any batch.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method lejepa \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --batch_size 128 --lamb 0.05 \
    --optimizer adamw --lr 5e-4 --weight_decay 5e-4 --scheduler warmup_cosine --warmup_epochs 10 \
    --small_views 6 --large_size 224 --small_size 98 --crop_scale 0.3 1.0 --small_scale 0.05 0.3 \
    --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.5 --solarize 0.2 \
    --gpus 0 1 --num_workers 8 --name lejepa
