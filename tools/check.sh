#!/usr/bin/env bash
# Every check there is, one after the other; a failing one does not hide the next. Ends with a line that sums the tests up.
# What needs something that cannot be fetched here is skipped, and listed at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache
export BRUCE_SKIPPED=$cache/skipped.txt
mkdir -p "$cache"
: >"$BRUCE_SKIPPED"
broken=()
started=$SECONDS

step() {
    local what=$1
    shift
    printf '\n== %s (%d s)\n' "$what" $((SECONDS - started))
    "$@" || broken+=("$what")
}

# A step that may be impossible without a network: its exit status 75 means skipped.
step_if_possible() {
    local what=$1 status=0
    shift
    printf '\n== %s (%d s)\n' "$what" $((SECONDS - started))
    "$@" || status=$?
    if [ $status -eq 75 ]; then
        echo "skipped: $what" | tee -a "$BRUCE_SKIPPED"
    elif [ $status -ne 0 ]; then
        broken+=("$what")
    fi
    return $status
}

step "Formatting" cargo fmt --all --check
step "Lints" cargo clippy --workspace --all-targets --quiet -- -D warnings
step_if_possible "Bindings of ggml" tools/check-bindings.sh
# With these set a test may no longer skip what it needs them for.
step_if_possible "Test models" tools/test-models.sh && export BRUCE_TEST_MODELS=$cache/test-models
step_if_possible "A prebuilt llama.cpp to compare with" tools/oracle.sh && export BRUCE_ORACLE=$cache/oracle
step "Test programs" cargo test --workspace --no-run --quiet
step "Tests" bash -c "cargo test --workspace --no-fail-fast 2>&1 | tee '$cache/tests.log'; exit \${PIPESTATUS[0]}"
# Once more as a user begins, with programs as they are shipped.
step "Demo" tools/demo.sh

count() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$cache/tests.log" | awk '{n += $1} END {print n + 0}'
}
# Where and why each failing test panicked, from what cargo printed of it.
failures() {
    awk '
        /^---- .* stdout ----$/ { name = $2; next }
        /^failures:$/ { name = ""; lines = 0 }
        /process didn.t exit successfully.*signal/ { print "failed:" $0 }
        name != "" && / panicked at / { sub(/.* panicked at /, ""); printf "failed: %s at %s\n", name, $0; lines = 12; next }
        /^note: / || /^stack backtrace:/ { lines = 0 }
        lines > 0 && NF { print "    " substr($0, 1, 400); lines-- }
    ' "$cache/tests.log"
}

printf '\n== Summary (%d s)\n' $((SECONDS - started))
cat "$BRUCE_SKIPPED"
failures
for what in "${broken[@]}"; do
    echo "failed: $what"
done
echo "$(count passed) passed, $(($(count failed) > 0 ? $(count failed) : ${#broken[@]})) failed, $(wc -l <"$BRUCE_SKIPPED") skipped"
[ ${#broken[@]} -eq 0 ]
