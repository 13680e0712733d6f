# RotNet, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# SGD 0.1 at batch 128, weight decay 5e-4, 100 epochs, a fifth of the rate after epochs 30, 60 and 80: arXiv:1803.07728,
# sec. 3.1. Deviation: a ResNet-18 in place of the paper's network-in-network.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method rotnet --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 100 --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 \
    --scheduler step --lr_decay_steps 30 60 80 --lr_decay_factor 0.2
