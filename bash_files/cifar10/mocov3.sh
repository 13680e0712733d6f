# MoCo v3, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.3 per 256, weight decay 1e-6, temperature 0.2, tau from 0.99, crops of 8 to 100 %, no blur, solarization of the
# second view: the settings of solo-learn (commit 9187ea3) for CIFAR-10.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method mocov3 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --temperature 0.2 --tau 0.99 \
    --optimizer lars --lr 0.3 --lars_eta 0.02 --lars_clip --weight_decay 1e-6 \
    --scheduler warmup_cosine --warmup_epochs 10 --no_zero_init_residual \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.0 --solarize 0.0 0.2
