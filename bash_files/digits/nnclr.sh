# NNCLR, ResNet-18 with its ordinary stem, on the digits inside scikit-learn: the demo of the README, two minutes on two CPU cores.
# Tuned by hand for few steps: no predictor, a short queue, AdamW, a large learning rate. Not a recipe of the paper.
python3 main_contrastive.py digits resnet18 --method nnclr --stem imagenet --precision 32 \
    --epochs 20 --batch_size 128 --optimizer adamw --lr 0.002 --weight_decay 0.01 \
    --temperature 0.2 --queue_size 512 --hidden_mlp 512 --proj_dim 128 --no_predictor \
    --knn_every 10
