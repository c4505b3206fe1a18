#!/usr/bin/env bash
# What `semiseg train` makes without a recipe, against supervised training with the same settings, and processor times.
# Interrupted, it goes on where it was.
#   docs/results/default/run.sh DATA WORK [STEP ...]
# DATA is a dataset with a split.json. STEP is one of:
#   own       the split's own four labelled scans
#   longer    the same four, supervised training of the larger network, LONGER (4000) updates
#   draws     random draws of four labelled scans, DRAWS (3) of them
# UPDATES (1200) of the student. ON (test) is the list of scans that judge. Runs take turns, on one thread.
set -euo pipefail
data=$1 work=$2
shift 2
TIMEFORMAT="%U s of processor time and %S s in the system, training and evaluation"

compare() { # METHODS, then options of semiseg compare
    semiseg compare --data "$data" --recipe default --labelled 4 --on "${ON:-test}" --jobs 1 --out "$work" \
        --methods "$@" --set threads=1
}

mkdir -p "$work"
for step in "${@:-own longer draws}"; do
    for one in $step; do
        case $one in
        own)
            for method in supervised committee; do time compare $method --updates "${UPDATES:-1200}" >/dev/null; done
            compare supervised,committee --updates "${UPDATES:-1200}" | tee "$work/own.txt"
            cp "$work/${ON:-test}.csv" "$work/own.csv"
            ;;
        longer)
            time compare longer=supervised --updates "${LONGER:-4000}" --set longer:student=small | tee "$work/longer.txt"
            cp "$work/${ON:-test}.csv" "$work/longer.csv"
            ;;
        draws)
            for ((draws = 1; draws <= ${DRAWS:-3}; draws++)); do
                for method in supervised committee; do
                    time compare $method --updates "${UPDATES:-1200}" --draws "$draws" >/dev/null
                done
                compare supervised,committee --updates "${UPDATES:-1200}" --draws "$draws" | tee "$work/draws.txt"
                cp "$work/${ON:-test}.csv" "$work/draws.csv"
            done
            ;;
        *) echo "There is no step $one." >&2; exit 2 ;;
        esac
    done
done
