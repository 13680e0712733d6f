# SimSiam, ResNet-18, ImageNet-100, 400 epochs, two GPUs.
# SGD 0.5 per 256, weight decay 1e-5, with warm-up, crops of 8 to 100 %, jitter 0.4 0.4 0.4 0.1, blur 0.5: the settings of
# solo-learn 1.0.5 (commit 3f810ce2) for ImageNet-100.
# Not yet measured here.
python3 main_contrastive.py imagenet100 resnet18 \
    --method simsiam \
    --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" --train_dir imagenet-100/train --val_dir imagenet-100/test \
    --epochs 400 --batch_size 128 --hidden_mlp 2048 --proj_dim 2048 --pred_hidden_mlp 512 \
    --optimizer sgd --lr 0.5 --weight_decay 1e-5 --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0.5 \
    --gpus 0 1 --num_workers 8 --name simsiam
