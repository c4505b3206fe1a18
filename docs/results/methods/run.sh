#!/usr/bin/env bash
# Every method on the hippocampus: one student, one budget, the split's own lists. Interrupted, it goes on where it was.
#   docs/results/methods/run.sh DATA WORK [STEP]
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json; STEP is one of: first seeds labels all-labels.
set -euo pipefail
data=$1 work=$2 step=${3:-all}
here=$(dirname "${BASH_SOURCE[0]}")
common=(--data "$data" --recipe hippocampus --updates 1200 --jobs 2 --out "$work/runs" --cache "$work/cache"
    --set 'magicnet:patch=[48,64,48]')
leading=$(cat "$here/leading.txt" 2>/dev/null || echo bcp,mean_teacher,mn) # best first, once the first step has told

compare() { # name, then options of semiseg compare
    local name=$1
    shift
    semiseg compare "${common[@]}" "$@" | tee "$work/$name.txt"
    cp "$work/runs/test.csv" "$work/$name.csv"
    cp "$work/runs/test.png" "$work/$name.png"
}

mkdir -p "$work"
if [[ $step == all || $step == first ]]; then
    compare first --labelled 4 \
        --methods supervised,self_training,mean_teacher,uamt,acmt,cps,bcp,magicnet,mn
fi
if [[ $step == all || $step == seeds ]]; then
    compare seeds --labelled 4 --seeds 0,1,2 --methods "supervised,$leading"
fi
if [[ $step == all || $step == labels ]]; then
    compare labels --labelled 4,8,16 --methods "supervised,mn,${leading%%,*}"
fi
if [[ $step == all || $step == all-labels ]]; then
    # The other end of the gap: all training scans outlined, the same number of updates.
    python "$here/all_labels.py" "$data" "$work/all_labels.json"
    semiseg train --data "$data" --recipe hippocampus --method supervised --split "$work/all_labels.json" \
        --set updates=1200 --out "$work/all_labels" --cache "$work/cache" --quiet
    semiseg evaluate "$work/all_labels" --data "$data" --split "$work/all_labels.json" --out "$work/all_labels/test" |
        tee "$work/all_labels.txt"
fi
