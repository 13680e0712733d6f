# Barlow Twins, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.3 per 256, weight decay 1e-4, loss times 0.1, projector 2048: what solo-learn published for CIFAR-10;
# lambda and the asymmetric solarization of arXiv:2103.03230.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method barlow_twins --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 2048 --proj_dim 2048 --lamb 0.0051 --scale_loss 0.1 \
    --optimizer lars --lr 0.3 --lars_eta 0.02 --lars_clip --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 --crop_scale 0.08 1.0 --solarize 0.0 0.2
