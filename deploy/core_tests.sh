#!/usr/bin/env bash
# Print the test files of the suite's core: those that the extras `serve` and `gateway` are enough for.
#
#   deploy/core_tests.sh [--with-torch]
#
# --with-torch  also those of the same folders that need PyTorch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folders=(tests/volumes tests/bundle tests/engines tests/inference tests/outputs tests/evaluation tests/collection
    tests/dataset tests/predicting tests/phantoms tests/cli/test_predict*.py)
# A file that needs what only training brings imports one of these; tests/packaging/test_core_tests.py holds it to that.
training='^ *(import|from) (torch|monai|trainer|exporter|matplotlib|tests\.(networks|runs|trainer|exporter))'
[[ ${1:-} != --with-torch ]] || training='^no file says this$'
# grep's status says whether a line matched: 1 where every file is listed.
{ grep -rLE "$training" --include='test_*.py' "${folders[@]}" || (($? == 1)); } | sort
