# DeepCluster v2, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.6 per 256, final rate 0.0006, weight decay 1e-6, three clusterings of 3000, jitter of strength 1, blur 0.5: the settings
# of solo-learn (commit 9187ea3) for CIFAR-10, which trains for 1000 epochs; 200 here. Its 11 epochs of warm-up are 10 here:
# the first of them trains nothing there. Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method deepclusterv2 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 256 --num_centroids 3000 3000 3000 \
    --optimizer lars --lr 0.6 --final_lr 0.0006 --lars_eta 0.02 --lars_clip --weight_decay 1e-6 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5
