# ClusterFit from a RotNet, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU: the comparison of arXiv:1912.03330 (sec. 4).
# A teacher; a student that starts from scratch and learns the clusters of its features; the control of the paper, a
# teacher trained for the time of both; and a student of the same clusters dealt out at random. One table at the end.
# SGD, weight decay and batch of bash_files/cifar10/rotnet.sh for all four, and a cosine, so that each may have its length.
#   DATA_FOLDER=/datasets bash bash_files/cifar10/clusterfit.sh
# Another scale by BACKBONE, TEACHER, STUDENT and LONGER (epochs; one of RotNet, which sees four rotations, takes as long
# as four of the student, so LONGER = TEACHER + STUDENT / 4), CLUSTERS (their number), SEED, FOLDERS (--train_dir and
# --val_dir of class folders), TRAINING (more flags of the trainings), RUNS and NAME.
# Not yet measured at this scale; README.md has what it printed at a small one.
set -eu
runs=${RUNS:-trained_models} name=${NAME:-clusterfit-$(date +%Y%m%d-%H%M%S)}-seed${SEED:-0}

python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method rotnet --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" ${FOLDERS:-} \
    --epochs ${TEACHER:-100} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-teacher" ${TRAINING:-}
python3 main_linear.py cifar10 ${BACKBONE:-resnet18} \
    --pretrained_feature_extractor "$runs/$name-teacher" --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --evaluation cluster --num_clusters ${CLUSTERS:-500} --cluster_seed ${SEED:-0} --clusters "$runs/$name.npz" \
    --output "$runs" --run_id "$name-clusters"
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method clusterfit --clusters "$runs/$name.npz" --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${STUDENT:-200} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-student" ${TRAINING:-}
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method clusterfit --clusters "$runs/$name.npz" --shuffle_clusters --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${STUDENT:-200} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-shuffled" ${TRAINING:-}
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method rotnet --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${LONGER:-150} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-longer" ${TRAINING:-}
python3 main_linear.py cifar10 ${BACKBONE:-resnet18} \
    --pretrained_feature_extractor "$runs/$name-teacher" "$runs/$name-longer" "$runs/$name-student" "$runs/$name-shuffled" \
    --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} --evaluation knn probe --baselines --seed ${SEED:-0} \
    --output "$runs" --run_id "$name-judged"
