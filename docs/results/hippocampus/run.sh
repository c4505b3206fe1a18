#!/usr/bin/env bash
# The hippocampus figures: three methods, 4 labelled scans, one recipe; then M&N exported, served and asked over HTTP.
#   docs/results/hippocampus/run.sh DATA WORK
# DATA is the Medical Segmentation Decathlon's task 4 with a split.json; WORK is a new folder.
set -euo pipefail
data=$1 work=$2
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$work"

for method in supervised mean_teacher mn; do
    started=$SECONDS
    semiseg train --data "$data" --recipe "$here/recipe.yaml" --method "$method" --labelled 4 \
        --out "$work/$method" --cache "$work/cache" --quiet
    echo "$method: $((SECONDS - started)) s" | tee -a "$work/seconds.txt"
done
for method in supervised mean_teacher mn; do
    semiseg evaluate "$work/$method" --data "$data" --on test --out "$work/$method/test" | tee "$work/$method/test.txt"
done
for method in mean_teacher mn; do
    echo "$method minus supervised"
    python "$here/compare.py" "$work/$method/test/scores.json" "$work/supervised/test/scores.json"
done | tee "$work/differences.txt"

semiseg export "$work/mn" --out "$work/bundle" --cache "$work/cache" | tee "$work/export.txt"
semiseg serve "$work/bundle" --port 3999 >"$work/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until curl -fs http://127.0.0.1:3999/readyz >/dev/null; do sleep 0.5; done
python "$here/over_http.py" http://127.0.0.1:3999 "$data" "$work/http" | tee "$work/http.txt"
