#!/usr/bin/env bash
# Installs a prebuilt llama.cpp (npm: node-llama-cpp) into .cache/oracle, for tests/llama_cpp_oracle.rs.
# Exits with 75 when there is none for this machine, or it cannot be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
oracle=.cache/oracle

if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v npm >/dev/null; then
    echo "the prebuilt llama.cpp needs Linux on x86-64, node and npm" >&2
    exit 75
fi
if ! cmp -s tests/oracle/package-lock.json $oracle/installed.json; then
    echo "installing node-llama-cpp into $oracle" >&2
    rm -rf $oracle
    mkdir -p $oracle
    cp tests/oracle/package.json tests/oracle/package-lock.json $oracle/
    # `npm ci` wants every optional package of the lock file to exist for every platform; `npm install` does not.
    if ! npm install --prefix $oracle --omit=optional --ignore-scripts --no-audit --no-fund >.cache/npm.log 2>&1; then
        echo "node-llama-cpp cannot be had; the whole story is in .cache/npm.log" >&2
        exit 75
    fi
    # Modules for newer CPUs than ours are built for add up in other orders: compare like with like.
    for module in $oracle/node_modules/@node-llama-cpp/linux-x64/bins/*/libggml-cpu-*.so; do
        case $module in
        *-x64.so | *-sse42.so | *-sandybridge.so | *-ivybridge.so | *-haswell.so) ;;
        *) rm "$module" ;;
        esac
    done
    cp tests/oracle/package-lock.json $oracle/installed.json
fi
