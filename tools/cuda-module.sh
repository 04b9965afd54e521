#!/usr/bin/env bash
# Compiles ggml's CUDA backend as a module, libggml-cuda.so, that a portable build of Bruce loads at its start when it lies
# beside the programs. Needs nvcc, a C compiler and a shell; neither cargo nor cmake, so that it also runs on a machine
# with a GPU and little else.
#
#   tools/cuda-module.sh GGML OUT [ARCH [JOBS]]
#
# GGML   ggml's source (with include/ and src/), the same version that the programs were built from
# OUT    directory with libggml-base.so of the portable build; gets libggml-cuda.so (objects in OUT/cuda-objects)
# ARCH   as BRUCE_CUDA_ARCH: `native`, or numbers such as 86,90 (default: native)
# JOBS   compilers at once (default: all cores)
#
# CUDA_HOME names the toolkit; else nvcc on PATH, else /usr/local/cuda. Objects newer than their source are kept, so that a
# run that was cut short goes on where it stopped. ONLY=PATTERN (such as `fattn*`) compiles the files that match and links
# nothing.
#
# crates/ggml-sys/build/cuda.rs compiles the same files with the same flags; a change here belongs there too.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 1; }

[ $# -ge 2 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '/^set /d' >&2; exit 2; }
ggml=$(cd "$1" && pwd) || fail "$1: no such directory"
mkdir -p "$2" && out=$(cd "$2" && pwd)
arch=${3:-native}
jobs=${4:-$(nproc)}
[ -f "$ggml/src/ggml-cuda/ggml-cuda.cu" ] || fail "$ggml: no src/ggml-cuda/ggml-cuda.cu there"
[ -n "${ONLY:-}" ] || [ -f "$out/libggml-base.so" ] || fail "$out: no libggml-base.so there; copy it from a portable build"

for root in "${CUDA_HOME:-}" "$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /none/bin/nvcc)")")")" /usr/local/cuda; do
    [ -n "$root" ] && [ -x "$root/bin/nvcc" ] && break
    root=
done
[ -n "$root" ] || fail "no nvcc: put it on PATH or set CUDA_HOME"
release=$("$root/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
read -r major minor <<<"$release"

# Flash attention's vector kernels: the pairs of key and value types that ggml compiles by default.
pairs="q4_0-q4_0,q8_0-q8_0,f16-f16,bf16-bf16"
types="q4_0 q4_1 q5_0 q5_1 q8_0 bf16 f16"

flags=(-std=c++17 -O3 -use_fast_math -extended-lambda -Xcompiler=-fPIC -w -DNDEBUG -D_GNU_SOURCE -D_XOPEN_SOURCE=600
    -DGGML_CUDA_USE_GRAPHS -DGGML_SCHED_MAX_COPIES=4
    -DGGML_BACKEND_DL -DGGML_BACKEND_SHARED -DGGML_BACKEND_BUILD -DGGML_SHARED)
if [ "$major" -gt 12 ] || { [ "$major" -eq 12 ] && [ "$minor" -ge 8 ]; }; then
    flags+=(-compress-mode=size)
fi
flags+=("-DGGML_CUDA_FA_QUANTS=\"$pairs\"")
for key in $types; do
    for value in $types; do
        there=0
        case ",$pairs," in *",$key-$value,"*) there=1 ;; esac
        flags+=("-DGGML_CUDA_FA_${key^^}_${value^^}=$there")
    done
done
if [ "$arch" = native ]; then
    flags+=(-arch=native)
else
    for item in ${arch//,/ }; do
        case "$item" in
            *-real) n=${item%-real}; code="sm_$n" ;;
            *-virtual) n=${item%-virtual}; code="compute_$n" ;;
            *) n=$item; code="sm_$n,compute_$n" ;;
        esac
        flags+=("-gencode=arch=compute_$n,code=[$code]")
    done
fi
for dir in "$root/include" "$root/include/cccl" "$ggml/include" "$ggml/src"; do
    flags+=("-I$dir")
done

# Longest first, so that no core waits for one late file: attention's and the matrix products' instances, then the rest.
cuda=$ggml/src/ggml-cuda
instances=$cuda/template-instances
vector=()
for pair in ${pairs//,/ }; do
    vector+=("$instances/fattn-vec-instance-$pair.cu")
done
files=("$instances"/fattn-mma*.cu "$instances"/mmq*.cu "$cuda"/fattn*.cu "${vector[@]}" "$instances"/fattn-tile*.cu
    "$cuda"/mm*.cu "$instances"/mmf*.cu)
for file in "$cuda"/*.cu; do
    case "${file##*/}" in fattn* | mm*) ;; *) files+=("$file") ;; esac
done
if [ -n "${ONLY:-}" ]; then
    chosen=()
    for file in "${files[@]}"; do
        case "${file##*/}" in $ONLY) chosen+=("$file") ;; esac
    done
    [ ${#chosen[@]} -gt 0 ] || fail "ONLY=$ONLY matches no file"
    files=("${chosen[@]}")
fi

# Objects of other flags are of no use.
objects=$out/cuda-objects
mkdir -p "$objects"
printf '%s\n' "$release" "${flags[@]}" >"$objects/flags.new"
cmp -s "$objects/flags.new" "$objects/flags" || { rm -f "$objects"/*.o; mv "$objects/flags.new" "$objects/flags"; }
rm -f "$objects/flags.new"

compile() {
    local file=$1 object
    object=$objects/$(basename "$file" .cu).o
    [ -s "$object" ] && [ "$object" -nt "$file" ] && return 0
    # Renamed when whole: what a killed compiler leaves is not taken for an object.
    "$nvcc" "${@:2}" -c "$file" -o "$object.part.o" && mv "$object.part.o" "$object" && echo "  ${file##*/}" >&2
}
export -f compile
export objects nvcc=$root/bin/nvcc
echo "compiling ${#files[@]} files with CUDA $major.$minor for $arch, $jobs at once" >&2
SECONDS=0
printf '%s\0' "${files[@]}" | xargs -0 -P "$jobs" -I{} bash -c 'compile "$@"' compile {} "${flags[@]}" ||
    fail "a file did not compile"
echo "compiled in $SECONDS s" >&2
[ -z "${ONLY:-}" ] || exit 0

# The toolkit's libraries, whose names end in a version in pip's packages; the driver's comes with the driver.
libraries=()
for name in cudart cublas; do
    found=
    for dir in "$root/lib64" "$root/lib" "$root/targets/x86_64-linux/lib"; do
        found=$(find "$dir/" -maxdepth 1 -name "lib$name.so*" 2>/dev/null | sort | head -n 1 || true)
        [ -n "$found" ] && break
    done
    [ -n "$found" ] || fail "no lib$name.so in $root"
    libraries+=("$found" "-Wl,-rpath,$(dirname "$found")")
done
# A stub with the driver's name: a shared library may leave the driver's functions open until it is loaded.
echo 'int ggml_cuda_driver_stub;' >"$objects/stub.c"
"${CC:-cc}" -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$objects/libcuda.so" "$objects/stub.c"
module_objects=()
for file in "${files[@]}"; do
    module_objects+=("$objects/$(basename "$file" .cu).o")
done
"${CXX:-c++}" -shared -o "$out/libggml-cuda.so" "${module_objects[@]}" "$out/libggml-base.so" "${libraries[@]}" \
    -Wl,--no-as-needed "$objects/libcuda.so" -Wl,--as-needed -lm -lpthread -ldl -lrt '-Wl,-rpath,$ORIGIN' \
    -Wl,-soname,libggml-cuda.so
ls -lh "$out/libggml-cuda.so" >&2
