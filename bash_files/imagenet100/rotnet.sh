# RotNet, ResNet-18, ImageNet-100, 105 epochs, two GPUs.
# SGD 0.1 per 256, weight decay 1e-4, steps at 30, 60, 90 and 100 of 105 epochs: the settings for ImageNet of
# arXiv:1912.03330.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method rotnet \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 105 --batch_size 128 --optimizer sgd --lr 0.1 --weight_decay 1e-4 \
    --scheduler step --lr_decay_steps 30 60 90 100 \
    --gpus 0 1 --num_workers 8 --name rotnet
