# Distillation (SEED) of a ResNet-50 into a ResNet-18, both with the 3x3 stem, CIFAR-10, one GPU.
# TEACHER is the run folder of the ResNet-50, pretrained by any method. No recipe for small images is published: SGD,
# 200 epochs, the temperature of the network and the views are those of the official code for ImageNet, without blur, and
# the queue has 16,384 embeddings, a third of the images.
# Not yet measured here.
python3 main_contrastive.py cifar10 resnet18 \
    --method distill --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" \
    --teacher resnet50 --teacher_weights "${TEACHER:?set TEACHER to a run folder}" \
    --epochs 200 --batch_size 256 --temperature 0.2 --teacher_temperature 0.01 --queue_size 16384 \
    --optimizer sgd --lr 0.03 --weight_decay 1e-4 \
    --scheduler warmup_cosine --warmup_epochs 5 \
    --crop_scale 0.2 1.0 --jitter 0.8 --jitter_strengths 0.4 0.4 0.4 0.1 --gray 0.2 --blur 0
