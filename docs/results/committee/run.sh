#!/usr/bin/env bash
# Atlases and committees against supervised training: four labels, random draws of them, judged on the development scans.
# Interrupted, it goes on where it was.
#   docs/results/committee/run.sh DATA WORK [ROW ...]
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json. A row is one of those below. DRAWS (3) is the
# number of draws, and JOBS (2) the number of runs at a time.
set -euo pipefail
data=$1 work=$2
shift 2
wide='{kind: unet, channels: [16, 32, 64, 128], residual_units: 2}'
full16='{kind: unet, channels: [16, 32, 64, 128, 128], strides: [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], residual_units: 0}'
members="[{method: supervised, student: $wide}, {method: mean_teacher}]"

compare() { # NAME=METHOD, then options of semiseg compare
    semiseg compare --data "$data" --recipe hippocampus --labelled 4 --updates 1200 --draws "${DRAWS:-3}" --on development \
        --jobs "${JOBS:-2}" --out "$work" --methods "$@" --set threads=1 | tee "$work/${1%%=*}.txt"
    cp "$work/development.csv" "$work/${1%%=*}.csv"
}

mkdir -p "$work"
for row in "${@:-supervised wide atlas committee committee16}"; do
    for one in $row; do
        case $one in
        supervised) compare supervised ;;
        wide) compare wide=supervised --set "wide:student=$wide" ;;
        full16) compare full16=supervised --set "full16:student=$full16" ;;
        atlas) compare atlas ;;
        atlas_alone) compare atlas_alone=atlas --set atlas_alone:methods.atlas.host=supervised ;;
        committee) compare committee --set "methods.committee.members=$members" --set methods.committee.weighing=by_kind ;;
        committee16)
            compare committee16=committee --set "committee16:student=$full16" --set "methods.committee.members=$members" \
                --set methods.committee.weighing=by_kind
            ;;
        *) echo "There is no row $one." >&2; exit 2 ;;
        esac
    done
done
