# SimCLR, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.4 per 256, weight decay 1e-5, temperature 0.2: what solo-learn published for CIFAR-10.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method simclr --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 256 --temperature 0.2 \
    --optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10
