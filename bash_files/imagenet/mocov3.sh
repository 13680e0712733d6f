# MoCo v3, ResNet-50, ImageNet, one node of eight GPUs.
# LARS 0.3 per 256, weight decay 1.5e-6, temperature 1, tau from 0.996, batch 4096, 1000 epochs, crops of 20 to 100 %:
# arXiv:2104.02057 and the official code.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method mocov3 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 512 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --temperature 1 --tau 0.996 \
    --optimizer lars --lr 0.3 --weight_decay 1.5e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.2 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name mocov3
