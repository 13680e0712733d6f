# ClusterFit, ResNet-50, ImageNet, eight GPUs: both steps, from the RotNet of rotnet.sh with --run_id rotnet.
# 16,000 clusters, 50 iterations of k-means; SGD 0.1 per 256, weight decay 1e-4, 105 epochs, a tenth of the rate after
# epochs 30, 60, 90 and 100: arXiv:1912.03330, sec. 4.
# Not yet measured here.
set -eu
python3 main_linear.py imagenet resnet50 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --batch_size 256 --num_workers 12 \
    --pretrained_feature_extractor trained_models/rotnet --evaluation cluster --num_clusters 16000 \
    --cluster_iterations 50 --cluster_output trained_models/rotnet-16000.npz
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method clusterfit --cluster_file trained_models/rotnet-16000.npz --data_folder "${DATA_FOLDER:?}" \
    --epochs 105 --batch_size 32 --optimizer sgd --lr 0.1 --weight_decay 1e-4 \
    --scheduler step --lr_decay_steps 30 60 90 100 --num_workers 12
