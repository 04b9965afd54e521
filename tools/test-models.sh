#!/usr/bin/env bash
# Makes the checkpoints that the tests use in .cache/test-models (1.7 GB), those that are not there yet.
# Exits with 75 when the Python packages that hold the originals cannot be fetched.
#
#     tools/test-models.sh [tiny3 tiny4 tiny8 tinyd tiny4f smol4x]
set -euo pipefail
cd "$(dirname "$0")/.."
models=.cache/test-models
declare -A recipe=(
    [tiny4]="tools/make-synthetic-moe.py"
    [tiny3]="tools/make-synthetic-moe.py --experts 3 --layers 2"
    [tiny8]="tools/make-synthetic-moe.py --experts 8"
    [tinyd]="tools/make-synthetic-moe.py --dense --layers 2"
    [tiny4f]="tools/make-synthetic-moe.py --layout fused"
    [smol4x]="tools/make-smol-moe.py"
)
[ $# -gt 0 ] || set -- tiny3 tiny4 tiny8 tinyd tiny4f smol4x

for name in "$@"; do
    if [ -z "${recipe[$name]:-}" ]; then
        echo "error: $name: no such test model; expected one of ${!recipe[*]}" >&2
        exit 2
    fi
    [ -e "$models/$name/config.json" ] && continue
    python=${python:-$(tools/python-env.sh)}
    # Made beside its place and then renamed, so that an interrupted run leaves no half model.
    rm -rf "$models/$name.partial"
    mkdir -p "$models"
    read -ra maker <<<"${recipe[$name]}"
    "$python" "${maker[@]}" "$models/$name.partial"
    mv "$models/$name.partial" "$models/$name"
done
