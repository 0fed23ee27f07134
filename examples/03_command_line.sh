#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The command line, from looking at a window to attention on arrays in files.
# Usage: 03_command_line.sh [path of the vecina executable]
set -eu
cd "$(dirname "$0")/.."
vecina=${1:-build/vecina}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "Which keys does each query see? The window moves inwards at the borders."
"$vecina" window 1d 10 kernel_size 3

echo "Which backend takes this problem, and how?"
"$vecina" plan 2d 56x56 kernel_size 7 heads 8 head_dim 64 dtype bf16

echo "Attention on arrays as NumPy saves them, with an additional token and lse:"
arrays=tests/golden/natten22_1d_add1 # query.npy, key.npy and value.npy: [1, 64, 1, 16]
"$vecina" run --rank 1 --kernel-size 7 \
  --query $arrays/query.npy --key $arrays/key.npy --value $arrays/value.npy \
  --additional-key $arrays/additional_key.npy --additional-value $arrays/additional_value.npy \
  --out "$scratch/output.npy" --lse "$scratch/lse.npy"
ls -l "$scratch"

echo "Is the best backend here right? Random problems against the definition:"
"$vecina" check --cases 20 --seed 1
