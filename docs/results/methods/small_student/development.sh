#!/usr/bin/env bash
# Settings and causes, asked of the development scans and never of the test scans.
#   docs/results/methods/small_student/development.sh DATA WORK magicnet|part-two
# Two runs at a time, one thread each; interrupted, it goes on where it was.
set -euo pipefail
export data=$1 work=$2/$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export here
mkdir -p "$work"

one() { # name, then options of semiseg train
    local name=$1 run=$work/$1
    shift
    [[ -f $run/student.safetensors ]] || semiseg train --data "$data" --recipe "$here/../../hippocampus/recipe.yaml" --labelled 4 \
        --set threads=1 --out "$run" --cache "$work/../cache" --quiet $([[ -f $run/log.jsonl ]] && echo --resume) "$@"
    semiseg evaluate "$run" --data "$data" --on development --out "$run/development" >"$run.txt"
    echo "$name: $(grep '^ mean' "$run.txt")" >>"$work/all.txt"
}
export -f one

case $3 in
magicnet) # what holds it back: 1200 updates, its own patch for all
    common="--set updates=1200 --set patch=[48,64,48]"
    runs="as_released --method magicnet --set methods.magicnet.blend=true
supervised --method supervised
no_blend --method magicnet --set methods.magicnet.blend=false
mean_teacher --method mean_teacher
small_weight --method magicnet --set methods.magicnet.blend=true --set methods.magicnet.weight=0.1
no_within --method magicnet --set methods.magicnet.within=false"
    ;;
part-two)
    common="--set updates=600"
    runs="dual --method dual
cfr --method cfr
dual_certain_fifth --method dual --set methods.dual.keep_quantile=0.2
comparative --method comparative
dual_semi_0.3 --method dual --set methods.dual.weight_semi=0.3
cfr_pseudo_0.3 --method cfr --set methods.cfr.pseudo_weight=0.3
comparative_features --method comparative --set methods.comparative.output_updates=0
contrastive --method contrastive
cfr_self_training --method cfr --set methods.cfr.host=self_training
cfr_magicnet --method cfr --set methods.cfr.host=magicnet --set patch=[48,64,48]
cfr_acmt --method cfr --set methods.cfr.host=acmt
supervised --method supervised"
    ;;
esac
: >"$work/all.txt"
echo "$runs" | xargs -P 2 -I{} bash -c "one {} $common"
cat "$work/all.txt"
