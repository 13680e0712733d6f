# SupCon, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# SGD 0.4 per 256, weight decay 1e-5, temperature 0.2, embedding 256: what solo-learn published for CIFAR-10.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method simclr --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --supervised --epochs 1000 --batch_size 256 --temperature 0.2 --proj_dim 256 \
    --optimizer sgd --lr 0.4 --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10
