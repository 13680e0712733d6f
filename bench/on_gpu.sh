#!/usr/bin/env bash
# Everything that waits for a machine with a CUDA device, in about eight minutes:
# the tests marked gpu, the benchmark's rows, and one CIFAR-10 run per method.
#   CIFAR10=folder with cifar10/{train,test}/<class>/*.jpg   OUT=folder for what was measured   bash bench/on_gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to a folder for the results}
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$OUT/device.txt"

$PYTHON -m pytest -m gpu tests/test_gpu.py 2>&1 | tee "$OUT/tests.log"
$PYTHON -m bench.train --rounds 3 --output "$OUT/train.json" 2>&1 | tee "$OUT/bench.log"

if [ -n "${CIFAR10:-}" ]; then
    for method in simclr nnclr; do
        queue=$([ $method = nnclr ] && echo "--queue_size 65536")
        # shellcheck disable=SC2086  # the queue's two words are two arguments
        timeout 150 $PYTHON main_contrastive.py cifar10 resnet18 --method $method --data_folder "$CIFAR10" \
            --train_dir train --val_dir test --epochs 20 --batch_size 256 --temperature 0.2 $queue \
            --optimizer lars --lr 0.4 --lars_eta 0.02 --lars_clip --weight_decay 1e-5 \
            --output "$OUT" --run_id $method 2>&1 | tee "$OUT/$method.log"
    done
    rm -f "$OUT"/*/last.ckpt "$OUT"/*/backbone.safetensors
fi
