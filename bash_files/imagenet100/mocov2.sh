# MoCo v2+, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# SGD 0.3 per 256, weight decay 1e-4, temperature 0.2, embedding 256, queues of 65,536, crops of 8 to 100 %, jitter 0.4 0.4
# 0.4 0.1, blur 0.5: the settings of solo-learn (commit 9187ea3) for ImageNet-100. tau is 0.99 throughout; there it rises
# to 0.999.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method mocov2 \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --symmetric --epochs 400 --batch_size 128 --hidden_mlp 2048 --proj_dim 256 --temperature 0.2 --tau 0.99 \
    --queue_size 65536 --optimizer sgd --lr 0.3 --weight_decay 1e-4 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0.5 \
    --gpus 0 1 --num_workers 8 --name mocov2
