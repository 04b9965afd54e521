#!/usr/bin/env bash
# Writes crates/ggml-sys/src/bindings.rs anew from the pinned headers and fails if it differs from what is committed.
# libclang comes from LIBCLANG_PATH or from PyPI; exits with 75 when it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
bindings=crates/ggml-sys/src/bindings.rs

if [ -z "${LIBCLANG_PATH:-}" ]; then
    venv=.cache/libclang
    if [ ! -e $venv/installed ]; then
        mkdir -p .cache
        rm -rf $venv
        python3 -m venv $venv
        if ! $venv/bin/python -m pip install --quiet libclang==18.1.1 >.cache/pip-libclang.log 2>&1; then
            echo "libclang cannot be had; the whole story is in .cache/pip-libclang.log" >&2
            exit 75
        fi
        touch $venv/installed
    fi
    LIBCLANG_PATH=$(dirname "$(find "$PWD/$venv" -name 'libclang*.so*' | head -n 1)")
    export LIBCLANG_PATH
fi

before=$(mktemp)
trap 'rm -f "$before"' EXIT
cp $bindings "$before"
# The wheel of libclang comes without the headers that belong to a compiler; those of the one at hand will do.
export BINDGEN_EXTRA_CLANG_ARGS=${BINDGEN_EXTRA_CLANG_ARGS:--I$(cc -print-file-name=include)}
# Only the headers matter here: a C compiler that does nothing saves compiling ggml once more.
CC=true CXX=true AR=true CARGO_TARGET_DIR=.cache/bindings-target \
    cargo check --quiet -p ggml-sys --features bindgen
if ! diff -u "$before" $bindings; then
    echo "error: $bindings: found other declarations than the headers have; it is written anew, commit it" >&2
    exit 1
fi
