#!/usr/bin/env bash
# What holds MagicNet back on the hippocampus, asked of the development scans. Two runs at a time, one thread each.
#   docs/results/methods/magicnet.sh DATA WORK
set -euo pipefail
export data=$1 work=$2
mkdir -p "$work"

one() { # name, then options of semiseg train
    local name=$1
    shift
    [[ -f $work/$name/student.safetensors ]] || semiseg train --data "$data" --recipe hippocampus --labelled 4 \
        --set updates=1200 --set threads=1 --set 'patch=[48,64,48]' --out "$work/$name" --cache "$work/cache" --quiet \
        $([[ -f $work/$name/log.jsonl ]] && echo --resume) "$@"
    semiseg evaluate "$work/$name" --data "$data" --on development --out "$work/$name/development" >"$work/$name.txt"
}

(
    one as_released --method magicnet
    one mean_teacher --method mean_teacher # the same patch, without cubes
    one small_weight --method magicnet --set methods.magicnet.weight=0.1
) &
one supervised --method supervised
one no_blend --method magicnet --set methods.magicnet.blend=false
one no_within --method magicnet --set methods.magicnet.within=false
wait %1
for name in supervised mean_teacher as_released no_blend small_weight no_within; do
    echo "$name: $(grep "^ mean" "$work/$name.txt")"
done | tee "$work/all.txt"
