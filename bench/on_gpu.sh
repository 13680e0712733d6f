#!/usr/bin/env bash
# Everything that waits for a machine with a CUDA device: the tests marked gpu, the benchmark, and one short CIFAR-10
# run per method. Untried so far; each run is cut off after 75 seconds.
#   CIFAR10=folder with {train,test}/<class>/*.jpg   PHOTOGRAPHS=folder with <class>/*.jpg
#   OUT=folder for what was measured   bash bench/on_gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to a folder for the results}
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$OUT/device.txt"

$PYTHON -m pytest -m gpu 2>&1 | tee "$OUT/tests.log"
$PYTHON -m bench --rounds 3 --output "$OUT/bench.json" ${CIFAR10:+--cifar "$CIFAR10/train"} \
    ${PHOTOGRAPHS:+--photographs "$PHOTOGRAPHS"} 2>&1 | tee "$OUT/bench.log"

if [ -n "${CIFAR10:-}" ]; then
    lars="--optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5"
    while read -r name flags; do
        # shellcheck disable=SC2086  # the flags are arguments of their own
        timeout 75 $PYTHON main_contrastive.py cifar10 resnet18 $flags --data_folder "$CIFAR10" \
            --train_dir train --val_dir test --epochs 10 --batch_size 256 \
            --output "$OUT" --run_id "$name" </dev/null 2>&1 | tee "$OUT/$name.log"
    done <<END
simclr --method simclr --temperature 0.2 $lars
simclr_small_views --method simclr --temperature 0.2 --small_views 4 $lars
simclr_supervised --method simclr --supervised --temperature 0.2 $lars
nnclr --method nnclr --temperature 0.2 --queue_size 65536 $lars
byol --method byol $lars
barlow_twins --method barlow_twins --hidden_mlp 2048 --proj_dim 2048 --scale_loss 0.1 $lars
simsiam --method simsiam
rotnet --method rotnet --scheduler cosine
END
    images=(--data_folder "$CIFAR10" --train_dir train --val_dir test)
    timeout 120 $PYTHON main_linear.py cifar10 resnet18 "${images[@]}" --pretrained_feature_extractor "$OUT/rotnet" \
        --evaluation cluster --num_clusters 500 --cluster_output "$OUT/clusters.npz" --output "$OUT" --run_id clusters \
        </dev/null 2>&1 | tee "$OUT/clusters.log"
    timeout 75 $PYTHON main_contrastive.py cifar10 resnet18 "${images[@]}" --method clusterfit --scheduler cosine \
        --cluster_file "$OUT/clusters.npz" --epochs 10 --batch_size 256 --output "$OUT" --run_id clusterfit \
        </dev/null 2>&1 | tee "$OUT/clusterfit.log"
    rm -f "$OUT"/*/last.ckpt "$OUT"/*/backbone.safetensors
fi
