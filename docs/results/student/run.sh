#!/usr/bin/env bash
# Which student and which augmentation: supervised, four labels, draws of the labelled scans, judged on the development
# scans. Interrupted, it goes on where it was.
#   docs/results/student/run.sh DATA WORK [NAME ...]
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json.
set -euo pipefail
data=$1 work=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
small='student={kind: unet, channels: [16, 32, 64, 128], residual_units: 0}'
full='student={kind: unet, channels: [8, 16, 32, 64, 128], strides: [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], residual_units: 0}'
full16='student={kind: unet, channels: [16, 32, 64, 128, 128], strides: [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], residual_units: 0}'
aug=(--set augmentation.elastic=4 --set augmentation.blur_probability=0.2 --set augmentation.low_resolution_probability=0.25
    --set augmentation.gamma_inverted=0.25 --set augmentation.contrast=0.25)

compare() { # name, then options of semiseg compare
    local name=$1
    shift
    semiseg compare --data "$data" --recipe "$here/../hippocampus/recipe.yaml" --methods supervised --labelled 4 --updates 1200 \
        --on development --out "$work/$name" --cache "$work/cache" --set threads=1 "$@" | tee "$work/$name.txt"
}

mkdir -p "$work"
for name in "${@:-small full full-aug small-aug full-aug-deep full16-aug}"; do
    for one in $name; do
        case $one in
        small) compare small --draws "${DRAWS:-3}" --set "$small" ;;
        full) compare full --draws "${DRAWS:-3}" --set "$full" ;;
        full-aug) compare full-aug --draws "${DRAWS:-3}" --set "$full" "${aug[@]}" ;;
        small-aug) compare small-aug --draws "${DRAWS:-3}" --set "$small" "${aug[@]}" ;;
        full-aug-flip) compare full-aug-flip --draws "${DRAWS:-3}" --set "$full" "${aug[@]}" --set augmentation.flip=[0] ;;
        full-aug-deep) compare full-aug-deep --draws "${DRAWS:-3}" --set "$full" "${aug[@]}" --set deep_supervision=1.0 ;;
        full-aug-ema) compare full-aug-ema --draws "${DRAWS:-3}" --set "$full" "${aug[@]}" --set ema=0.99 ;;
        full16-aug) compare full16-aug --draws "${DRAWS:-3}" --set "$full16" "${aug[@]}" ;;
        esac
    done
done
