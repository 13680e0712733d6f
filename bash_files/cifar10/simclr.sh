# SimCLR, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.4 per 256, weight decay 1e-5, temperature 0.2, embedding 256, crops of 8 to 100 %, jitter of strength 1, no blur:
# the settings of solo-learn 1.0.5 (commit 3f810ce2) for CIFAR-10, which trains for 1000 epochs; 200 here.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method simclr --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 256 --temperature 0.2 --proj_dim 256 \
    --optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.0
