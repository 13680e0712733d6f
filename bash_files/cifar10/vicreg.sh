# VICReg, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.3 per 256, weight decay 1e-4, expander 2048, crops of 20 to 100 %, solarization 0.1, no blur: the settings of
# solo-learn (commit 9187ea3) for CIFAR-10. It does not halve the variance term: its 25 is a --std_coeff of 50.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method vicreg --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 2048 --proj_dim 2048 --sim_coeff 25 --std_coeff 50 --cov_coeff 1 \
    --optimizer lars --lr 0.3 --final_lr 0 --lars_eta 0.02 --lars_clip --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 --no_zero_init_residual \
    --crop_scale 0.2 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.0 --solarize 0.1
