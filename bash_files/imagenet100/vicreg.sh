# VICReg, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# LARS 0.3 per 256, weight decay 1e-4, expander 2048, crops of 20 to 100 %, blur 0.5, solarization 0.1: the settings of
# solo-learn (commit 9187ea3) for ImageNet-100. It does not halve the variance term: its 25 is a --std_coeff of 50.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method vicreg \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --hidden_mlp 2048 --proj_dim 2048 --sim_coeff 25 --std_coeff 50 --cov_coeff 1 \
    --optimizer lars --lr 0.3 --final_lr 0 --lars_eta 0.02 --lars_clip --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 10 --no_zero_init_residual \
    --crop_scale 0.2 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.5 --solarize 0.1 \
    --gpus 0 1 --num_workers 8 --name vicreg
