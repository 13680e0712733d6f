# LeJEPA, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU.
# AdamW 2e-3 per 256 that falls to 1e-3, lambda 0.02, 256 directions, embedding 16, four views of equal size and scale
# whose mean all predict, jitter of strength 1, solarize 0.2, one epoch of warm-up: the example of the official code
# (rbalestr-lab/lejepa, commit eddffdd, MINIMAL.md) for Imagenette, which trains a ViT for 800 epochs at 128 px; 200 here,
# weight decay 5e-4 as its README has for ResNets, and no blur.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method lejepa --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --epochs 200 --batch_size 256 --lamb 0.02 --directions 256 --proj_dim 16 --center_views all \
    --optimizer adamw --lr 2e-3 --final_lr 1e-3 --weight_decay 5e-4 --scheduler warmup_cosine --warmup_epochs 1 \
    --small_views 2 --small_size 32 --small_scale 0.08 1.0 --crop_scale 0.08 1.0 \
    --jitter_strengths 0.8 0.8 0.8 0.2 --blur 0.0 --solarize 0.2
