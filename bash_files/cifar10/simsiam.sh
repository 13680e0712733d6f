# SimSiam, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# SGD 0.03 per 256, weight decay 5e-4, cosine without warm-up, 800 epochs, batch 512, projector of two layers, no blur:
# arXiv:2011.10566, app. D.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method simsiam --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 800 --batch_size 512 --hidden_mlp 2048 --proj_dim 2048 --proj_layers 2 --pred_hidden_mlp 512 \
    --optimizer sgd --lr 0.03 --weight_decay 5e-4 --scheduler cosine \
    --crop_scale 0.2 1.0 --blur 0.0 --jitter_strengths 0.4 0.4 0.4 0.1
