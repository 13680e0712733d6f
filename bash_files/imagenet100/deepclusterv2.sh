# DeepCluster v2 with six small views, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# The settings of the official code (facebookresearch/swav) for ImageNet and batches of 4096, which are LARS 0.3 per 256, final
# rate 0.0003, weight decay 1e-6, 10 epochs of warm-up, three clusterings of 3000, 2 x 224 and 6 x 96; batches of 256 and
# 100 epochs as for the other methods here. Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method deepclusterv2 \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --batch_size 128 --num_centroids 3000 3000 3000 \
    --optimizer lars --lr 0.3 --final_lr 0.0003 --weight_decay 1e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --small_views 6 --large_size 224 --small_size 96 --crop_scale 0.14 1.0 --small_scale 0.05 0.14 \
    --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5 \
    --gpus 0 1 --num_workers 8 --name deepclusterv2
