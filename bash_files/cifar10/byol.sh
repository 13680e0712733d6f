# BYOL, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 1.0 per 256, weight decay 1e-5, tau from 0.99, heads of width 4096, crops of 8 to 100 %, no blur, solarization of
# the second view: the settings of solo-learn 1.0.5 (commit 3f810ce2) for CIFAR-10.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method byol --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 1000 --batch_size 256 --hidden_mlp 4096 --proj_dim 256 --pred_hidden_mlp 4096 --tau 0.99 \
    --optimizer lars --lr 1.0 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.2 0.1 --blur 0.0 --solarize 0.0 0.2
