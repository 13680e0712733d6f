# BYOL, ResNet-50, ImageNet, one node of eight GPUs.
# LARS 0.2 per 256, weight decay 1.5e-6, tau from 0.996, batch 4096, 1000 epochs: arXiv:2006.07733, sec. 3.3 and app. B.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method byol --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 512 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --tau 0.996 \
    --optimizer lars --lr 0.2 --weight_decay 1.5e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name byol
