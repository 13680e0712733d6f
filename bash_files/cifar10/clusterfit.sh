# ClusterFit from a RotNet, ResNet-18 with the 3x3 stem, CIFAR-10, one GPU: the comparison of arXiv:1912.03330 (sec. 4).
# A teacher; a student that is trained from scratch on the clusters of the teacher's features; the paper's control, a
# teacher trained for the time of both; and a student of randomly permuted cluster ids. One table at the end.
# SGD, weight decay and batch of bash_files/cifar10/rotnet.sh for all four, with a cosine schedule for runs of any length.
#   DATA_FOLDER=/datasets bash bash_files/cifar10/clusterfit.sh
# Environment variables change the scale: BACKBONE; TEACHER, STUDENT and LONGER (epochs; a RotNet epoch has four rotations
# of each image and takes as long as four of the student, so LONGER = TEACHER + STUDENT / 4); CLUSTERS (their number);
# SEED; FOLDERS (--train_dir and --val_dir of class folders); TRAINING (more flags of the trainings); RUNS; NAME.
# Not yet measured at this scale; docs/clusterfit.md has the table of a small one.
set -eu
runs=${RUNS:-trained_models} name=${NAME:-clusterfit-$(date +%Y%m%d-%H%M%S)}-seed${SEED:-0}

python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method rotnet --data_folder "${DATA_FOLDER:?set DATA_FOLDER}" ${FOLDERS:-} \
    --epochs ${TEACHER:-100} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-teacher" ${TRAINING:-}
python3 main_linear.py cifar10 ${BACKBONE:-resnet18} \
    --pretrained_feature_extractor "$runs/$name-teacher" --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --evaluation cluster --num_clusters ${CLUSTERS:-500} --cluster_seed ${SEED:-0} --cluster_output "$runs/$name.npz" \
    --output "$runs" --run_id "$name-clusters"
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method clusterfit --cluster_file "$runs/$name.npz" --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${STUDENT:-200} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-student" ${TRAINING:-}
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method clusterfit --cluster_file "$runs/$name.npz" --shuffle_clusters --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${STUDENT:-200} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-shuffled" ${TRAINING:-}
python3 main_contrastive.py cifar10 ${BACKBONE:-resnet18} \
    --method rotnet --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} \
    --epochs ${LONGER:-150} --batch_size 128 --optimizer sgd --lr 0.2 --weight_decay 5e-4 --scheduler cosine \
    --seed ${SEED:-0} --output "$runs" --run_id "$name-longer" ${TRAINING:-}
python3 main_linear.py cifar10 ${BACKBONE:-resnet18} \
    --pretrained_feature_extractor "$runs/$name-teacher" "$runs/$name-longer" "$runs/$name-student" "$runs/$name-shuffled" \
    --data_folder "${DATA_FOLDER:?}" ${FOLDERS:-} --evaluation knn logistic --baselines --seed ${SEED:-0} \
    --output "$runs" --run_id "$name-evaluated"
