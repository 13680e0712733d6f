# MoCo v2+, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# SGD 0.3 per 256, weight decay 1e-4, temperature 0.2, embedding 256, queues of 32,768, crops of 8 to 100 %, jitter 0.4 0.4
# 0.4 0.1, blur 0.5: the settings of solo-learn (commit 9187ea3) for CIFAR-10. tau is 0.99 throughout; there it rises to
# 0.999.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method mocov2 --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --symmetric --epochs 1000 --batch_size 256 --hidden_mlp 2048 --proj_dim 256 --temperature 0.2 --tau 0.99 \
    --queue_size 32768 --optimizer sgd --lr 0.3 --weight_decay 1e-4 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0.5
