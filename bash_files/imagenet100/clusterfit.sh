# ClusterFit, ResNet-18, ImageNet-100, two GPUs: both steps, from the RotNet of rotnet.sh with --run_id rotnet.
# The settings of arXiv:1912.03330, sec. 4, with 2,000 clusters: some 63 images in each, where 16,000 have 80 of ImageNet.
# Not yet measured here.
set -eu
python3 main_linear.py imagenet100 resnet18 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train \
    --val_dir imagenet-100/test --batch_size 256 --num_workers 8 --pretrained_feature_extractor trained_models/rotnet \
    --evaluation cluster --num_clusters 2000 --cluster_output trained_models/rotnet-2000.npz
python3 main_contrastive.py imagenet100 resnet18 \
    --method clusterfit --cluster_file trained_models/rotnet-2000.npz --data_folder "${DATA_FOLDER:?}" \
    --train_dir imagenet-100/train --val_dir imagenet-100/test --epochs 105 --batch_size 128 --gpus 0 1 --num_workers 8 \
    --optimizer sgd --lr 0.1 --weight_decay 1e-4 --scheduler step --lr_decay_steps 30 60 90 100
