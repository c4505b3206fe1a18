#!/usr/bin/env bash
# Does a small student keep what a larger network has learned?
#   docs/results/distil/run.sh RUN DATA WORK
# RUN is a finished hippocampus run whose network teaches, DATA the dataset it was trained on, WORK a new folder.
set -euo pipefail
run=$1 data=$2 work=$3
mkdir -p "$work"
semiseg evaluate "$run" --data "$data" --on test >"$work/teacher.txt"
for to in small tiny; do
    updates=()
    [[ $to == small ]] || updates=(--updates 2400)
    semiseg export "$run" --data "$data" --distil-to "$to" "${updates[@]}" --out "$work/$to"
    semiseg evaluate "$work/$to" --data "$data" --on test >"$work/$to.txt"
done
# The same students without a teacher: the run's recipe with their channels.
python - "$run" "$work" <<'PYTHON'
import sys

import yaml

run, work = sys.argv[1:]
for name, part, updates in (("alone_small", 2, None), ("alone_tiny", 4, 2400)):
    with open(f"{run}/recipe.yaml") as file:
        recipe = yaml.safe_load(file)["recipe"]
    recipe["student"]["channels"] = [width // part for width in recipe["student"]["channels"]]
    recipe["updates"] = updates or recipe["updates"]
    with open(f"{work}/{name}.yaml", "w") as file:
        yaml.safe_dump(recipe, file)
PYTHON
for name in alone_small alone_tiny; do
    semiseg train --data "$data" --recipe "$work/$name.yaml" --labelled 4 --out "$work/$name" --quiet
    semiseg evaluate "$work/$name" --data "$data" --on test >"$work/$name.txt"
done
