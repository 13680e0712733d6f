# SwAV, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# LARS 0.6 per 256, weight decay 1e-6, 3000 prototypes that are frozen for 2 epochs, a queue of 3840 from epoch 50 on, jitter of
# strength 1, blur 0.5: the settings of solo-learn (commit 9187ea3) for CIFAR-10, which trains for 1000 epochs; 200 here. Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method swav --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 256 --num_prototypes 3000 --freeze_prototypes_epochs 2 \
    --queue_size 3840 --queue_start_epoch 50 \
    --optimizer lars --lr 0.6 --final_lr 0 --lars_eta 0.02 --lars_clip --weight_decay 1e-6 \
    --scheduler warmup_cosine --warmup_epochs 10 \
    --crop_scale 0.08 1.0 --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.5
