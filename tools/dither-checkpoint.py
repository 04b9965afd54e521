#!/usr/bin/env python3
"""Copy a BF16 checkpoint with its matrices off the grid that an earlier quantization in four bits left them on.

    pip install numpy
    tools/dither-checkpoint.py smol4x smol4x-dithered

A model that came out of a Q4_1 file goes back into four bits nearly without loss, which flatters every comparison of
types. Each weight gets uniform noise of one step of Q4_1, a fifteenth of the range of its block of 32; zeros, norms and
routers stay. The same arguments give the same bytes.
"""

import argparse
import json
import pathlib
import shutil
import struct

from checkpoint_writer import np, round_to_bf16

BLOCK = 32
STEPS = 15


def is_dithered(name: str, info: dict) -> bool:
    """Tell whether a tensor of a safetensors header is a matrix that would be quantized."""
    return len(info["shape"]) == 2 and not name.endswith("block_sparse_moe.gate.weight")


def dithered(bits, rng):
    """Return BF16 weights, as uint16, with noise."""
    blocks = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(-1, BLOCK)
    step = (blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)) / STEPS
    noise = (rng.random(blocks.shape, dtype=np.float32) - np.float32(0.5)) * step
    return round_to_bf16(blocks + np.where(blocks != 0, noise, np.float32(0))).reshape(-1)


def copy_shard(source: pathlib.Path, target: pathlib.Path, rng) -> None:
    """Write a copy of a safetensors file with its matrices dithered."""
    raw = bytearray(source.read_bytes())
    (header_bytes,) = struct.unpack_from("<Q", raw)
    data = 8 + header_bytes
    header = json.loads(raw[8:data])
    header.pop("__metadata__", None)
    for name, info in header.items():
        if not is_dithered(name, info):
            continue
        if info["dtype"] != "BF16":
            raise SystemExit(f"error: {source}: {name}: found {info['dtype']}, expected BF16")
        begin, end = (data + at for at in info["data_offsets"])
        bits = np.frombuffer(raw, np.uint16, (end - begin) // 2, begin)
        raw[begin:end] = dithered(bits, rng).tobytes()
    target.write_bytes(raw)


def main() -> None:
    """Copy the directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path, help="a directory that does not exist yet")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    args.target.mkdir()
    for path in sorted(args.source.iterdir()):
        if path.suffix == ".safetensors":
            copy_shard(path, args.target / path.name, rng)
        else:
            shutil.copy(path, args.target)


if __name__ == "__main__":
    main()
