#!/usr/bin/env bash
# Builds with ggml's Vulkan backend and runs the tests of real devices (tests/programs/gpu.rs) on Mesa's Vulkan driver for CPUs.
# BRUCE_GPU=Vulkan0 and so on: on that device instead, with the system's driver.
# Headers, driver and, where there is none, the shader compiler are Debian 13's, unpacked in .cache/vulkan (350 MB) and not
# installed: Debian 12's headers are too old for ggml, and its driver (Mesa 22.3) writes to freed memory (ARCHITECTURE.md).
# Exit status: 0 all is well, 1 something differs, 75 it can't be done here.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/.cache/vulkan
root=$out/root
lib=$root/usr/lib/x86_64-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/vulkan}
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }
cannot() {
    echo "error: this check $*" >&2
    exit 75
}

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "is for Linux on x86-64"
for tool in apt-get dpkg nm cc; do
    command -v $tool >/dev/null || cannot "needs $tool"
done
key=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $key ] || cannot "needs Debian's keys ($key)"

if [ ! -e "$root/complete" ]; then
    say "Fetching headers, shader compiler and driver"
    rm -rf "$out"
    mkdir -p "$out/lists/partial" "$out/cache/archives/partial" "$root"
    : >"$out/status"
    echo "deb [signed-by=$key] http://deb.debian.org/debian trixie main" >"$out/sources.list"
    apt=(apt-get -qq -o "Dir::Etc::sourcelist=$out/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$out/lists"
        -o "Dir::State::status=$out/status" -o "Dir::Cache=$out/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
    "${apt[@]}" update || cannot "can't reach Debian's packages"
    "${apt[@]}" install -y --no-install-recommends --download-only mesa-vulkan-drivers libvulkan-dev spirv-headers glslc ||
        cannot "can't fetch Debian's packages"
    for package in "$out"/cache/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -rf "$out/cache" "$out/lists"
    touch "$root/complete"
fi

# Programs of Debian 13 with their own C library, which may be newer than the system's.
mkdir -p "$out/bin" "$out/link"
cat >"$out/launch" <<EOF
#!/bin/sh
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "\$@"
EOF
printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$out/launch" "$root/usr/bin/glslc" >"$out/bin/glslc"
chmod +x "$out/launch" "$out/bin/glslc"
# What programs are linked with: the loader's names without the loader, which asks for that C library.
nm -D --defined-only "$lib/libvulkan.so.1" | awk '$3 ~ /^vk/ {print "void " $3 "(void) {}"}' |
    cc -shared -fPIC -Wl,-soname,libvulkan.so.1 -o "$out/link/libvulkan.so" -x c -
export LIBRARY_PATH=$out/link${LIBRARY_PATH:+:$LIBRARY_PATH}
export C_INCLUDE_PATH=$root/usr/include CPLUS_INCLUDE_PATH=$root/usr/include
command -v glslc >/dev/null || export PATH=$out/bin:$PATH

say "Building"
cargo test --release --features vulkan --test programs --no-run

if [ -z "${BRUCE_GPU:-}" ]; then
    export BRUCE_GPU=Vulkan0 GGML_VK_VISIBLE_DEVICES=0 BRUCE_GPU_LAUNCHER=$out/launch
    sed "s|\"library_path\": *\"|&$lib/|" "$root/usr/share/vulkan/icd.d/lvp_icd.json" >"$out/driver.json"
    export VK_DRIVER_FILES=$out/driver.json MESA_SHADER_CACHE_DIR=$out/shaders
fi
say "Tests on $BRUCE_GPU"
cargo test --release --features vulkan --test programs gpu:: -- --test-threads=2
