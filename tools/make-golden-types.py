#!/usr/bin/env python3
"""Quantize a BF16 file with llama-quantize to every type, and add what came out to tests/golden/types.tsv.

    pip install numpy gguf        # a gguf as new as llama.cpp: gguf-py of the same source knows all of its types
    tools/make-golden-types.py --llama-quantize BIN tiny4 tiny4-BF16.gguf tests/golden/types.tsv

The columns are explained in tests/golden/README.md. Rows that are there already are kept and not made again, so that an
interrupted run can go on. Importances are invented, by a formula that tests/programs/types.rs knows too.
"""

import argparse
import hashlib
import pathlib
import struct
import subprocess
import sys
import tempfile

from checkpoint_writer import require

np = require("numpy", "numpy")
gguf = require("gguf", "gguf")

# Quick ones first.
PLAIN = (
    "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q1_0 Q2_0 TQ1_0 TQ2_0 MXFP4_MOE F16 BF16 F32 Q6_K Q3_K_S Q3_K_M Q3_K_L Q2_K Q4_K_S Q4_K_M "
    "Q5_K_S Q5_K_M IQ4_NL IQ4_XS IQ3_S IQ3_M"
).split()
NEED_IMPORTANCES = "Q2_K_S IQ3_XXS IQ3_XS IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M".split()
LEGACY = ["Q4_K_M", "IQ4_XS"]
HEAD = "model\tfile type\timportances\tsha256\n"

CALLS = 8
LEGACY_CALLS = 3


def fnv1a(text: str) -> int:
    """Return the 64-bit FNV-1a hash of the text's bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def invented(name: str, n: int):
    """Return n sums of squares for a tensor, from 1/128 to 1024, as float32; all are exact."""
    with np.errstate(over="ignore"):
        x = np.uint64(fnv1a(name)) + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    mantissa = (x & np.uint64(1023)).astype(np.float32) + np.float32(1)
    return mantissa * np.exp2(-(x >> np.uint64(10) & np.uint64(7)).astype(np.float32)).astype(np.float32)


def invented_importances(source) -> list:
    """Return name, sums [n_mats, n_cols] and counts for each matrix of the layers. Of every fourth stack, counted by the
    hash of the name, no token reached the last matrix."""
    entries = []
    for tensor in source.tensors:
        if tensor.tensor_type.name == "BF16" and tensor.name.startswith("blk."):
            shape = [int(n) for n in tensor.shape]
            n_mats = shape[2] if len(shape) > 2 else 1
            counts = [CALLS] * n_mats
            if n_mats > 1 and fnv1a(tensor.name) % 4 == 0:
                counts[-1] = 0
            entries.append((tensor.name, invented(tensor.name, shape[0] * n_mats).reshape(n_mats, -1), counts))
    return entries


def write_gguf(path: pathlib.Path, entries) -> None:
    """Write the importances as today's llama-imatrix does."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["invented"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", CALLS)
    for name, sums, counts in entries:
        writer.add_tensor(name + ".in_sum2", sums)
        writer.add_tensor(name + ".counts", np.array(counts, dtype=np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_legacy(path: pathlib.Path, entries) -> None:
    """Write the same sums in the format of before 2025, of another number of calls and with nothing unreached."""
    with path.open("wb") as out:
        out.write(struct.pack("<i", len(entries)))
        for name, sums, _ in entries:
            encoded = name.encode()
            out.write(struct.pack("<i", len(encoded)) + encoded)
            out.write(struct.pack("<ii", LEGACY_CALLS, sums.size) + sums.astype("<f4").tobytes())
        out.write(struct.pack("<ii", 1, len(b"invented")) + b"invented")


def digest(path: pathlib.Path) -> str:
    """Return the hash over name, type, shape and bytes of all tensors, sorted by name."""
    lines = []
    for tensor in gguf.GGUFReader(path).tensors:
        shape = ",".join(str(n) for n in tensor.shape)
        data = hashlib.sha256(tensor.data).hexdigest()
        lines.append(f"{tensor.name} {tensor.tensor_type.name} {shape} {data}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def main() -> None:
    """Make what is missing of the model's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-quantize", required=True, help="the program")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--types", help="only these, such as Q4_0,Q4_1")
    parser.add_argument("--importances", help="only these of no, gguf and dat, such as no,gguf")
    parser.add_argument("model", help="its name in the table")
    parser.add_argument("source", type=pathlib.Path, help="the model as GGUF file of type BF16")
    parser.add_argument("table", type=pathlib.Path)
    args = parser.parse_args()

    known = args.table.read_text() if args.table.exists() else HEAD
    if not args.table.exists():
        args.table.write_text(HEAD)
    wanted = [(ty, "no") for ty in PLAIN] + [(ty, "gguf") for ty in PLAIN + NEED_IMPORTANCES]
    wanted += [(ty, "dat") for ty in LEGACY]
    with tempfile.TemporaryDirectory(dir=args.source.parent) as folder:
        folder = pathlib.Path(folder)
        entries = invented_importances(gguf.GGUFReader(args.source))
        write_gguf(folder / "imatrix.gguf", entries)
        write_legacy(folder / "imatrix.dat", entries)
        for file_type, importances in wanted:
            is_chosen = (not args.types or file_type in args.types.split(",")) and (
                not args.importances or importances in args.importances.split(",")
            )
            row = f"{args.model}\t{file_type}\t{importances}\t"
            if not is_chosen or f"\n{row}" in known:
                continue
            command = [args.llama_quantize]
            if importances != "no":
                command += ["--imatrix", str(folder / f"imatrix.{importances}")]
            out = folder / "out.gguf"
            run = subprocess.run(
                [*command, str(args.source), str(out), file_type, args.threads],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if run.returncode != 0:
                sys.exit(f"error: {' '.join(run.args)} ended with {run.returncode}:\n{run.stdout[-2000:]}")
            with args.table.open("a") as table:
                table.write(row + digest(out) + "\n")
            out.unlink()


if __name__ == "__main__":
    main()
