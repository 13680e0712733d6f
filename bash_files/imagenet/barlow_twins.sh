# Barlow Twins, ResNet-50, ImageNet, one node of eight GPUs.
# LARS 0.2 per 256 (0.0048 for biases and norms, which --scale_loss 0.024 amounts to), weight decay 1.5e-6, batch 2048,
# 1000 epochs, views of BYOL: arXiv:2103.03230, sec. 2; lambda and the last rate, a thousandth, of the official code.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method barlow_twins --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 8192 --proj_dim 8192 --lamb 0.0051 --scale_loss 0.024 \
    --optimizer lars --lr 0.2 --final_lr 2e-4 --weight_decay 1.5e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name barlow_twins
