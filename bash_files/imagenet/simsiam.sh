# SimSiam, ResNet-50, ImageNet, one node of eight GPUs.
# SGD 0.05 per 256, weight decay 1e-4, cosine without warm-up, batch 512, 100 epochs: arXiv:2011.10566, sec. 3.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method simsiam --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 100 --batch_size 64 --hidden_mlp 2048 --proj_dim 2048 --pred_hidden_mlp 512 \
    --optimizer sgd --lr 0.05 --weight_decay 1e-4 --scheduler cosine \
    --crop_scale 0.2 1.0 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0.5 \
    --num_workers 8 --name simsiam
