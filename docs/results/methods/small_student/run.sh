#!/usr/bin/env bash
# Every method on the hippocampus: one student, one budget, the split's own lists. Interrupted, it goes on where it was.
#   docs/results/methods/small_student/run.sh DATA WORK [STEP]
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json; STEP is one of: first seeds labels all-labels
# part-two.
set -euo pipefail
data=$1 work=$2 step=${3:-all}
here=$(dirname "${BASH_SOURCE[0]}")
leading=$(cat "$here/leading.txt") # the three that led the first step, best first

compare() { # name, methods, then options of semiseg compare
    local name=$1 methods=$2
    shift 2
    local own=()
    # Cubes need a patch that they divide; the 2D network learns more on 10 slices of a volume than on the recipe's 6.
    [[ $methods == *magicnet* ]] && own+=(--set 'magicnet:patch=[48,64,48]' --set magicnet:methods.magicnet.blend=true)
    [[ $methods == *mn* ]] && own+=(--set mn:methods.mn.slices=10)
    semiseg compare --data "$data" --recipe "$here/../../hippocampus/recipe.yaml" --updates 1200 --jobs 2 --out "$work/${runs:=runs}" \
        --cache "$work/cache" --methods "$methods" "${own[@]}" "$@" | tee "$work/$name.txt"
    cp "$work/$runs/test.csv" "$work/$name.csv"
    cp "$work/$runs/test.png" "$work/$name.png"
}

mkdir -p "$work"
if [[ $step == all || $step == first ]]; then
    # The long ones first, so that both jobs end at about the same time.
    compare first magicnet,uamt,mn,supervised,self_training,mean_teacher,acmt,cps,bcp --labelled 4
fi
if [[ $step == all || $step == seeds ]]; then
    compare seeds "supervised,$leading" --labelled 4 --seeds 0,1,2
fi
if [[ $step == all || $step == labels ]]; then
    best=${leading%%,*}
    [[ $best == mn ]] && both=mn || both=mn,$best
    compare labels "supervised,$both" --labelled 4,8,16
fi
if [[ $step == all || $step == all-labels ]]; then
    # The other end of the gap: all training scans outlined, the same number of updates.
    python "$here/all_labels.py" "$data" "$work/all_labels.json"
    semiseg train --data "$data" --recipe "$here/../../hippocampus/recipe.yaml" --method supervised --split "$work/all_labels.json" \
        --set updates=1200 --out "$work/all_labels" --cache "$work/cache" --quiet
    semiseg evaluate "$work/all_labels" --data "$data" --split "$work/all_labels.json" --out "$work/all_labels/test" |
        tee "$work/all_labels.txt"
fi
if [[ $step == all || $step == part-two ]]; then
    runs=part_two # the recipe has grown since the first step, so supervised is trained again
    compare part_two dual,cfr,comparative,contrastive,supervised --labelled 4
fi
