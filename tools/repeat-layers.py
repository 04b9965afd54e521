#!/usr/bin/env python3
"""Write a GGUF file with the layers of another one several times over: a model of full depth for measurements.

    tools/repeat-layers.py 4x7b4-Q4_K_M.gguf 4x7b32-Q4_K_M.gguf --times 8

Speed, memory and reading from disk depend on sizes alone; a full 4x7B checkpoint to quantize would take 52 GB of disk. Layer i of the
output is layer i modulo n of the input, in bytes of its own. Reads version 3 files of little-endian machines in one part.
"""

import argparse
import pathlib
import re
import struct

FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4


class Header:
    """The header of a GGUF file, cut into the pieces that the output needs."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0
        magic, version, n_tensors, n_pairs = self.unpack("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise SystemExit("error: not a GGUF file of version 3")
        self.pairs = [self.pair() for _ in range(n_pairs)]
        self.tensors = [self.tensor() for _ in range(n_tensors)]

    def unpack(self, form: str) -> tuple:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self) -> bytes:
        (length,) = self.unpack("<Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def skip(self, kind: int) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            of, count = self.unpack("<IQ")
            if of in FIXED:
                self.at += FIXED[of] * count
            else:
                for _ in range(count):
                    self.skip(of)
        else:
            self.at += FIXED[kind]

    def pair(self) -> tuple[bytes, int, bytes]:
        key = self.string()
        (kind,) = self.unpack("<I")
        start = self.at
        self.skip(kind)
        return key, kind, bytes(self.data[start : self.at])

    def tensor(self) -> tuple[bytes, tuple, int, int]:
        name = self.string()
        (n_dims,) = self.unpack("<I")
        ne = self.unpack(f"<{n_dims}Q")
        ty, offset = self.unpack("<IQ")
        return name, ne, ty, offset


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("input", type=pathlib.Path)
    ap.add_argument("output", type=pathlib.Path)
    ap.add_argument("--times", type=int, required=True)
    args = ap.parse_args()
    with open(args.input, "rb") as source, open(args.output, "xb") as out:
        header = Header(memoryview(source.read(64 << 20)))
        start = -header.at % 32 + header.at
        size = args.input.stat().st_size - start
        ends = sorted([offset for *_, offset in header.tensors] + [size])
        layers = {int(m[1]) for name, *_ in header.tensors if (m := re.match(rb"blk\.(\d+)\.", name))}
        directory, copies, at = [], [], 0
        for copy in range(args.times):
            for name, ne, ty, offset in header.tensors:
                if m := re.match(rb"blk\.(\d+)\.", name):
                    name = b"blk.%d.%s" % (int(m[1]) + copy * len(layers), name[m.end() :])
                elif copy > 0:
                    continue
                length = ends[ends.index(offset) + 1] - offset
                entry = struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
                directory.append(entry + struct.pack("<IQ", ty, at))
                copies.append((offset, length))
                at += -length % 32 + length
        pairs = []
        for key, kind, value in header.pairs:
            if key.endswith(b".block_count"):
                kind, value = UINT32, struct.pack("<I", len(layers) * args.times)
            pairs.append(struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value)
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(directory), len(pairs)))
        out.write(b"".join(pairs) + b"".join(directory))
        out.write(bytes(-out.tell() % 32))
        for offset, length in copies:
            source.seek(start + offset)
            while length > 0:
                piece = source.read(min(length, 16 << 20))
                out.write(piece)
                length -= len(piece)
            out.write(bytes(-out.tell() % 32))
    print(f"{args.output}: {len(layers) * args.times} layers, {args.output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
