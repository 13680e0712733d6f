# DeepCluster v2 with six small views, ResNet-50, ImageNet, 800 epochs, eight nodes of eight GPUs.
# LARS 4.8 for batches of 4096 (0.3 per 256), final rate 0.0048, weight decay 1e-6, 10 epochs of warm-up, three clusterings of
# 3000, 2 x 224 and 6 x 96: official code (facebookresearch/swav) of
# arXiv:2006.09882. Not yet measured here.
torchrun --nnodes 8 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint "${FIRST_NODE:?set FIRST_NODE}:29500" \
    main_contrastive.py imagenet resnet50 \
    --method deepclusterv2 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --num_nodes 8 \
    --epochs 800 --batch_size 64 --num_centroids 3000 3000 3000 \
    --optimizer lars --lr 0.3 --final_lr 0.0003 --weight_decay 1e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --small_views 6 --large_size 224 --small_size 96 --crop_scale 0.14 1.0 --small_scale 0.05 0.14 \
    --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5 \
    --num_workers 8 --name deepclusterv2
