#!/usr/bin/env bash
# What waits for a machine with a GPU, in parts that end by themselves and go on where they were cut off.
#   bash bench/on_gpu.sh [tests|bench|training|all] --output FOLDER [--cifar FOLDER] [--minutes 8.5]
# bash bench/on_gpu.sh --help lists everything. PYTHON: the interpreter, python3 by default.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.on_gpu "$@"
