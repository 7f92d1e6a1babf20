#!/usr/bin/env bash
# Compare this x86-64 machine with an emulated 64-bit Arm one: benchmarks/parity.py on both.
#
#     benchmarks/parity-aarch64.sh [NAME.infi[=RECORDING]]...      default: examples/demo.infi
#
# For Debian 12 on x86-64, as root, with infi-edge in .venv (or PYTHON=...). It installs one package
# on the machine: qemu-user-static. Python 3.11 for arm64 (Debian's packages, unpacked, never
# installed) and two sets of arm64 wheels, ai-edge-litert and tflite-runtime, go to build/aarch64:
# about 0.6 GB, removed by `make clean`. It takes a minute or two.
# Exit code 1: something is too far apart. QEMU_CPU: another processor than cortex-a72.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
data=${INFI_EDGE_DATA:-../shared/data}
work=$PWD/build/aarch64
root=$work/root
bundles=("${@:-examples/demo.infi}")

fail() {
    echo "parity-aarch64: $1" >&2
    exit 2
}

[ "$(uname -m)" = x86_64 ] || fail "this is a $(uname -m) machine; run it on x86-64"
grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release ||
    fail "this is not Debian 12, whose Python 3.11 the tflite-runtime wheel needs; run it there"
"$python" -c 'import infi_edge' 2>/dev/null ||
    fail "$python cannot import infi_edge; run 'make convert-env' or set PYTHON"

if ! command -v qemu-aarch64-static >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "qemu-user-static is missing; run as root or install it"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends qemu-user-static
fi

# A package state of its own: the machine's own dpkg never hears of arm64.
arm64_apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Debug::NoLocking=1 \
        -o Dir::State="$work/apt" -o Dir::State::status="$work/apt/status" \
        -o Dir::Cache="$work/apt/cache" "$@"
}

if [ ! -e "$root/.done" ]; then
    rm -rf "$root" "$work/apt"
    mkdir -p "$root" "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    : >"$work/apt/status"
    arm64_apt update
    arm64_apt install --yes --download-only --no-install-recommends python3.11 libstdc++6
    for package in "$work"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$root"
    done
    # What ai-edge-litert asks for its processor: without this, emulation shows it the x86 files, and
    # it crashes or falls back on other kernels. This is one core of a Cortex-A72.
    mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
    printf '%s\n' 'processor : 0' 'Features : fp asimd evtstrm crc32 cpuid' \
        'CPU implementer : 0x41' 'CPU architecture: 8' 'CPU variant : 0x0' 'CPU part : 0xd08' \
        'CPU revision : 3' '' >"$root/proc/cpuinfo"
    echo 0 | tee "$root/sys/devices/system/cpu/possible" >"$root/sys/devices/system/cpu/present"
    touch "$root/.done"
fi

# fetch SET REQUIREMENT...: unpack arm64 wheels into build/aarch64/SET.
fetch() {
    local set=$1 platforms=() tag
    shift
    [ ! -e "$work/$set/.done" ] || return 0
    for tag in manylinux2014 manylinux_2_17 manylinux_2_27 manylinux_2_28 manylinux_2_34; do
        platforms+=(--platform "${tag}_aarch64")
    done
    rm -rf "${work:?}/$set" "$work/wheels"
    mkdir -p "$work/$set"
    "$python" -m pip download --quiet --only-binary :all: --implementation cp \
        --python-version 3.11 --abi cp311 --abi abi3 --abi none "${platforms[@]}" \
        --dest "$work/wheels" "$@" 'click>=8.1' 'imagesize>=1.4' 'msgspec>=0.18'
    for wheel in "$work"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$work/$set"
    done
    touch "$work/$set/.done"
}

fetch litert 'numpy>=2' 'opencv-python-headless>=4.12' 'ai-edge-litert>=2'
fetch tflite 'numpy<2' 'opencv-python-headless<4.12' 'tflite-runtime>=2.14'

there=()
[ ! -d "$data" ] || there+=(--data "$data")
"$python" -m benchmarks.parity write "$work/here.npz" "${there[@]}" "${bundles[@]/#/--bundle=}"

status=0
for set in litert tflite; do
    PYTHONPATH=$PWD:$work/$set PYTHONDONTWRITEBYTECODE=1 QEMU_CPU=${QEMU_CPU:-cortex-a72} \
        env --unset=INFI_EDGE_RUNTIME qemu-aarch64-static -L "$root" \
        "$root/usr/bin/python3.11" -S -m benchmarks.parity write "$work/$set.npz" \
        --inputs "$work/here.npz" "${bundles[@]/#/--bundle=}"
    echo
    "$python" -m benchmarks.parity compare "$work/here.npz" "$work/$set.npz" || status=1
done
exit "$status"
