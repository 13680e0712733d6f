# NNCLR with six small views, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# The settings of nnclr.sh, with sizes and scales of the views of SwAV (arXiv:2006.09882): 2 x 224 and 6 x 96.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method nnclr \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --batch_size 128 --temperature 0.2 --queue_size 65536 \
    --optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --small_views 6 --large_size 224 --small_size 96 --crop_scale 0.14 1.0 --small_scale 0.05 0.14 \
    --jitter_strengths 0.4 0.4 0.2 0.1 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --gpus 0 1 --num_workers 8 --name nnclr_small_views
