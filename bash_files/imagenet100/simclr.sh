# SimCLR, ResNet-18, ImageNet-100, 100 epochs, two GPUs.
# Temperature 0.2, SGD 0.3 per 256, weight decay 1e-4; views of arXiv:2002.05709 (the defaults). Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 100 --optimizer sgd --scheduler warmup_cosine --lr 0.3 --weight_decay 1e-4 \
    --batch_size 128 --temperature 0.2 --gpus 0 1 --num_workers 8 --hidden_mlp 2048 \
    --name simclr
