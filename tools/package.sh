#!/usr/bin/env bash
# Makes dist/bruce-<version>-x86_64-linux/ and an archive of it: both programs and ggml's libraries, for any x86-64 CPU, the
# level being chosen when they start. Then runs them from another directory, as a user would.
#
#   tools/package.sh [FEATURE...]      further cargo features, such as cuda or vulkan
#
# Needs cargo and a C++ compiler; x86-64 Linux. The programs need a glibc at least as new as the one here.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 1; }

features=portable
for feature in "$@"; do features+=",$feature"; done
messages=$(cargo build --release --locked --bins --features "$features" --message-format json-render-diagnostics)
programs=$(grep -o '"executable":"[^"]*/bruce-\(quant\|run\)"' <<<"$messages" | cut -d '"' -f 4 | sort -u)
libraries=$(grep -o '"out_dir":"[^"]*/ggml-sys-[^"]*"' <<<"$messages" | cut -d '"' -f 4 | sort -u)
[ "$(wc -l <<<"$programs")" = 2 ] || fail "cargo build: programs: found '$programs', expected bruce-quant and bruce-run"
[ "$(wc -l <<<"$libraries")" = 1 ] && [ -f "$libraries/libggml-base.so" ] ||
    fail "cargo build: libraries: found '$libraries', expected one directory with libggml-base.so"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=bruce-$version-x86_64-linux
target=dist/$name
rm -rf "$target" "$target.tar.gz"
mkdir -p "$target/licenses"
# shellcheck disable=SC2086 # one path a line, none with spaces: cargo's target directory must have none for this
install -m 755 $programs "$target/"
install -m 755 "$libraries"/libggml-*.so "$target/"
install -m 644 README.md "$target/"
install -m 644 LICENSE-* "$target/licenses/"
ggml=$(cargo metadata --format-version 1 --locked --manifest-path vendor/ggml/Cargo.toml |
    grep -o '"manifest_path":"[^"]*/llama-cpp-sys-2-[^"]*"' | cut -d '"' -f 4)
install -m 644 "$(dirname "$ggml")/llama.cpp/LICENSE" "$target/licenses/LICENSE-ggml"

# The check: no library path, nothing of the build directory, from a place that is not the program's.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$target" "$copy/installed"
mkdir "$copy/elsewhere"
clean() { (cd "$copy/elsewhere" && env -i PATH=/usr/bin:/bin HOME="$copy" "$@"); }
root=$PWD
for program in bruce-quant bruce-run; do
    found=$(clean ldd "$copy/installed/$program" | sed -n 's/.*libggml-base.so => \([^ ]*\).*/\1/p')
    [ -z "$found" ] || [ "$(readlink -f "$found")" = "$(readlink -f "$copy/installed/libggml-base.so")" ] ||
        fail "$program: libggml-base.so: found $found, expected the one beside it"
    clean "$copy/installed/$program" --version >&2
done
clean "$copy/installed/bruce-quant" "$root/models/tiny-moe" -q q8_0 -o "$copy/model.gguf" >&2
answer=$(clean "$copy/installed/bruce-run" "$copy/model.gguf" -p "In the beginning" -n 8 --temp 0)
[ -n "$answer" ] || fail "$target/bruce-run: answer: found nothing, expected some words"

tar --sort=name --owner=0 --group=0 --numeric-owner -C dist -czf "$target.tar.gz" "$name"
du -sh "$target" "$target.tar.gz" >&2
