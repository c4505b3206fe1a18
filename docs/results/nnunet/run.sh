#!/usr/bin/env bash
# nnU-Net v2 with the same labelled scans and a time of training: what it plans itself, its own augmentation, mirrored prediction.
#   docs/results/nnunet/run.sh DATA SPLIT LABELLED SECONDS WORK [development|test]
# NNUNET is the bin folder of an environment that has nnunetv2 2.8.1. SECONDS are processor seconds on one thread.
set -euo pipefail
data=$1 split=$2 labelled=$3 seconds=$4 work=$5 list=${6:-development}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export nnUNet_extTrainer=$here nnUNet_n_proc_DA=1 nnUNet_compile=f SECONDS_OF_TRAINING=$seconds
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
python "$here/prepare.py" "$data" "$split" "$labelled" "$list" "$nnUNet_raw"
"$NNUNET/nnUNetv2_plan_and_preprocess" -d 4 -c 3d_fullres -np 1 -npfp 1 --verify_dataset_integrity
cp "$nnUNet_raw/splits_final.json" "$nnUNet_preprocessed/Dataset004_Few/"
"$NNUNET/nnUNetv2_train" 4 3d_fullres 0 -tr nnUNetTrainerBudget -device cpu
"$NNUNET/nnUNetv2_predict" -i "$nnUNet_raw/judged" -o "$work/masks" -d 4 -c 3d_fullres -f 0 -tr nnUNetTrainerBudget -device cpu -npp 1 -nps 1
python "$here/score.py" "$data" "$work/masks" "$work/scores"
