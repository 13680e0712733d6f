# SwAV with six small views, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# The settings of the official code (facebookresearch/swav) for ImageNet and batches of 256: LARS 0.6 per 256, final rate 0.0006,
# weight decay 1e-6, no warm-up, a queue of 3840 from epoch 15 on, 2 x 224 and 6 x 96. 3000 prototypes, 100 epochs as for
# the other methods here. Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method swav \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --batch_size 128 --num_prototypes 3000 --queue_size 3840 --queue_start_epoch 15 \
    --optimizer lars --lr 0.6 --final_lr 0.0006 --weight_decay 1e-6 --scheduler cosine \
    --small_views 6 --large_size 224 --small_size 96 --crop_scale 0.14 1.0 --small_scale 0.05 0.14 \
    --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5 \
    --gpus 0 1 --num_workers 8 --name swav
