#!/usr/bin/env bash
# The main job twice: on the small checkpoint that ships with the project, then on a real one.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${CARGO_TARGET_DIR:-target}/release
out=.cache/demo
question="What is the capital of France?"
started=$SECONDS
exec 3>&1 # for what is captured and shown at once

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }
show() {
    printf '$ %s\n' "$*"
    "$@"
}

say "Building bruce-quant and bruce-run"
cargo build --release --bins
mkdir -p $out

say "1. A checkpoint that ships with the project: models/tiny-moe, 4 experts, 8 MB"
show "$programs/bruce-quant" models/tiny-moe -q q4_k -o $out/tiny-moe-Q4_K_M.gguf --force
show "$programs/bruce-run" $out/tiny-moe-Q4_K_M.gguf -p "In the beginning God created" -n 48 --temp 0

say "2. A real model: SmolLM2-135M-Instruct as a Mixtral with 4 experts, 0.55 billion weights"
status=0
tools/test-models.sh smol4x || status=$?
if [ $status -eq 75 ]; then
    say "skipped the second part: it needs Python packages, and they cannot be fetched without a network"
    exit 0
elif [ $status -ne 0 ]; then
    exit $status
fi
show "$programs/bruce-quant" .cache/test-models/smol4x -q q4_k -o $out/smol4x-Q4_K_M.gguf --force
printf '$ %s\n' "$programs/bruce-run $out/smol4x-Q4_K_M.gguf -p \"$question\" -n 64 --temp 0"
answer=$("$programs/bruce-run" $out/smol4x-Q4_K_M.gguf -p "$question" -n 64 --temp 0 | tee /dev/fd/3)
case $answer in
*Paris*) say "done: the model knows that it is Paris" ;;
*)
    echo "error: $out/smol4x-Q4_K_M.gguf: answer: found '$answer', expected one with 'Paris'" >&2
    exit 1
    ;;
esac
