# VICReg, ResNet-50, ImageNet, one node of eight GPUs.
# LARS 0.2 per 256, weight decay 1e-6, batch 2048, 1000 epochs, views of BYOL: arXiv:2105.04906, sec. 4.2, and the
# official code.
# Not yet measured here.
torchrun --nproc_per_node 8 main_contrastive.py imagenet resnet50 \
    --method vicreg --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 8192 --proj_dim 8192 --sim_coeff 25 --std_coeff 25 --cov_coeff 1 \
    --optimizer lars --lr 0.2 --final_lr 2e-4 --weight_decay 1e-6 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --blur 1.0 0.1 --solarize 0.0 0.2 \
    --num_workers 8 --name vicreg
