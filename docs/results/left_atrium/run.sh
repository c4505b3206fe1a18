#!/usr/bin/env bash
# Four methods on the left atrium, 4 labelled scans, once.
#   docs/results/left_atrium/run.sh DATA WORK
# DATA holds imagesTr, labelsTr and split.json; what a dataset folder needs beside them is written in WORK.
set -euo pipefail
data=$1 work=$2
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$work/data"
ln -sfn "$(realpath "$data/imagesTr")" "$work/data/imagesTr"
ln -sfn "$(realpath "$data/labelsTr")" "$work/data/labelsTr"
cp "$data/split.json" "$work/data/split.json"
python "$here/dataset.py" "$work/data"
semiseg compare --data "$work/data" --recipe "$here/left_atrium.yaml" --methods mn,cfr,dual,supervised --labelled 4 --jobs 2 \
    --out "$work/runs" --cache "$work/cache" | tee "$work/table.txt"
cp "$work/runs/test.csv" "$work/table.csv"
