#!/usr/bin/env python3
"""Write the facts of a GGUF file that llama.cpp made: OUT.tensors.tsv and OUT.kv.json, as tests/golden/README.md explains.

    pip install numpy gguf
    tools/make-golden.py llama-cpp-made-Q4_K_M.gguf tests/golden/tiny8-Q4_K_M
"""

import argparse
import hashlib
import json
import pathlib

from checkpoint_writer import require

LONG_ARRAY = 64
ENDS = 8


def described(field) -> dict:
    """Return type and value of a metadata field; a long array is described by length, hash and both ends."""
    value = field.contents()
    if isinstance(value, list) and len(value) > LONG_ARRAY:
        encoded = json.dumps(value, ensure_ascii=False).encode()
        digest = hashlib.sha256(encoded).hexdigest()
        value = {"len": len(value), "sha256": digest, "first": value[:ENDS], "last": value[-ENDS:]}
    return {"type": [kind.name for kind in field.types], "value": value}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", help="where to write, without the endings")
    args = parser.parse_args()
    reader = require("gguf", "gguf").GGUFReader(args.gguf)

    keys = {key: described(field) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    text = json.dumps(keys, indent=1, ensure_ascii=False) + "\n"
    pathlib.Path(args.out + ".kv.json").write_text(text, encoding="utf-8")

    rows = ["name\ttype\tne\tsha256"]
    for each in reader.tensors:
        extents = ",".join(str(n) for n in each.shape)
        rows.append(f"{each.name}\t{each.tensor_type.name}\t{extents}\t{hashlib.sha256(each.data.tobytes()).hexdigest()}")
    pathlib.Path(args.out + ".tensors.tsv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
