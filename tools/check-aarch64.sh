#!/usr/bin/env bash
# Builds for 64-bit Arm on an x86-64 machine with Debian's cross compiler, and runs under qemu: the tests of quants, and
# both programs beside those built for this machine: the same files byte for byte, an answer, the same perplexity.
# Installs nothing; says what is missing. Exit status: 0 all is well, 1 something differs, 75 it can't be done here.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
out=$PWD/.cache/aarch64
build=${CARGO_TARGET_DIR:-$PWD/target}
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
need qemu-aarch64-static qemu-user-static
# rustup's target where it is installed, else a compiler of Debian's whose standard library is there for arm64.
has_std() { ls "$("$1" --print sysroot)/lib/rustlib/$target/lib/"libstd-*.rlib >/dev/null 2>&1; }
if has_std "${RUSTC:-rustc}"; then
    :
elif [ -x /usr/bin/rustc ] && has_std /usr/bin/rustc; then
    export RUSTC=/usr/bin/rustc
else
    missing+=("the Rust target (rustup target add $target; or rustc-web and libstd-rust-web-dev:arm64 of Debian)")
fi
if [ ${#missing[@]} -gt 0 ]; then
    echo "error: this check needs what is not installed here:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 75
fi

case ${CC:-} in ccache\ *) cross="ccache " ;; *) cross= ;; esac
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# The processor: all that qemu knows, or as QEMU_CPU says.
export QEMU_CPU=${QEMU_CPU:-max}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64-static
export CC_aarch64_unknown_linux_gnu="${cross}aarch64-linux-gnu-gcc" CXX_aarch64_unknown_linux_gnu="${cross}aarch64-linux-gnu-g++"
# Emulation is slow; the properties have had their many cases on this machine.
export PROPTEST_CASES=${PROPTEST_CASES:-8}
# Libraries: those installed for arm64, else the cross compiler's. A mix of both hangs.
if [ ! -e /lib/ld-linux-aarch64.so.1 ]; then
    export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
fi

say "Building for this machine"
env -u RUSTC cargo build --bins
say "Building for $target"
cargo build --bins --target $target --target-dir "$build/aarch64"
say "Tests of quants on Arm"
cargo test -p quants --target $target --target-dir "$build/aarch64"

rm -rf "$out"
mkdir -p "$out"
here=$build/debug
arm() { qemu-aarch64-static "$build/aarch64/$target/debug/$1" "${@:2}"; }

say "Quantized files"
failed=()
# compare NAME OPTION...: the checkpoint with these options, on both.
compare() {
    "$here/bruce-quant" models/tiny-moe "${@:2}" -o "$out/here.gguf" --force --quiet
    arm bruce-quant models/tiny-moe "${@:2}" -o "$out/arm.gguf" --force --quiet
    if cmp -s "$out/here.gguf" "$out/arm.gguf"; then
        echo "same: $1, $(sha256sum "$out/arm.gguf" | cut -c1-64)"
    else
        echo "different: $1"
        failed+=("$1: other bytes than on this machine")
    fi
}
"$here/bruce-quant" models/tiny-moe -q f16 -o "$out/f16.gguf" --force --quiet
"$here/bruce-run" imatrix "$out/f16.gguf" -f models/tiny-moe/heldout.txt -o "$out/imatrix.gguf" --chunks 4
for type in f16 bf16 q8_0 q6_k q5_k q4_k q3_k_m q2_k q4_0 q4_1 q5_0 q5_1 iq4_nl iq4_xs; do
    compare $type -q $type
    compare "$type with an importance matrix" -q $type --imatrix "$out/imatrix.gguf"
done

say "Answers and perplexities"
perplexity_of() { sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p'; }
"$here/bruce-quant" models/tiny-moe -q q4_k -o "$out/q4_k.gguf" --force --quiet
for kernels in bruce ggml; do
    answer=$(arm bruce-run "$out/q4_k.gguf" -p "In the beginning" -n 32 --temp 0 --kernels $kernels)
    echo "$kernels: $answer"
    [ -n "$answer" ] || failed+=("no answer with the kernels $kernels")
    scoring=(perplexity "$out/q4_k.gguf" -f models/tiny-moe/heldout.txt --chunks 2 -c 128 --kernels $kernels --json)
    here_perplexity=$("$here/bruce-run" "${scoring[@]}" | perplexity_of)
    arm_perplexity=$(arm bruce-run "${scoring[@]}" | perplexity_of)
    echo "$kernels: perplexity $arm_perplexity, on this machine $here_perplexity"
    # ggml adds up in another order, and approximates exponentials in its own way.
    awk -v a="$arm_perplexity" -v b="$here_perplexity" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 < (0.002 * b) ^ 2) }' ||
        failed+=("perplexity with the kernels $kernels: found $arm_perplexity, expected $here_perplexity")
done
rm -rf "$out"
say "Summary"
[ ${#failed[@]} -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
[ ${#failed[@]} -eq 0 ]
