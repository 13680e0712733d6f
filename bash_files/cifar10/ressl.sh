# ReSSL, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# SGD 0.05 per 256, weight decay 1e-4, embedding 256, queue of 65,536, crops of 8 to 100 %; the strong view with jitter,
# gray and blur 0.5, the weak one cropped and flipped: the settings of solo-learn (commit 9187ea3) for CIFAR-10, but
# tau is constant as in the paper.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method ressl --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 4096 --proj_dim 256 --queue_size 65536 \
    --temperature 0.1 --teacher_temperature 0.04 --tau 0.99 \
    --optimizer sgd --lr 0.05 --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter 0.8 0 --jitter_strengths 0.4 0.4 0.2 0.1 --gray 0.2 0 --blur 0.5 0
