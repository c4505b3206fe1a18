#!/usr/bin/env bash
# How much of M&N is due to natural images: its 2D network is a SqueezeNet U-Net, with ImageNet's weights and without.
#   docs/results/mn_weights/run.sh DATA WEIGHTS WORK [SEED]
# DATA as in ../methods; WEIGHTS holds squeezenet1_1_imagenet_features.npz. Both train at once, one thread each.
set -euo pipefail
data=$1 weights=$2 work=$3 seed=${4:-0}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$work"

train() { # name, what the 2D network starts from
    [[ -f $work/$1/student.safetensors ]] || semiseg train --data "$data" --recipe "$here/../hippocampus/recipe.yaml" --method mn --labelled 4 \
        --set updates=1200 --set threads=1 --set seed=$seed --set methods.mn.teacher_optimiser.rate=0.001 \
        --set "methods.mn.teacher={kind: outside, function: 'squeezenet:build', finetune: whole, enlarge: 2$2}" \
        --out "$work/$1" --cache "$work/cache" --quiet $([[ -f $work/$1/log.jsonl ]] && echo --resume)
}

train with ", weights: {folder: '$weights', licence: mit}" &
sleep 60 # the first one prepares the scans, the other finds them
train without ""
wait %1
for name in with without; do
    semiseg evaluate "$work/$name" --data "$data" --on test --out "$work/$name/test" | tee "$work/$name.txt"
done
echo "with minus without"
python "$here/../hippocampus/compare.py" "$work/with/test/scores.json" "$work/without/test/scores.json" |
    tee "$work/differences.txt"
python "$here/networks.py" "$data" "$work/with" "$work/without" | tee "$work/networks.txt"
