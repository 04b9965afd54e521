"""Makes from-gguf-py.gguf, which tests/gguf_py.rs must write byte for byte. Needs the Python package gguf (0.19)."""

import pathlib
import sys

import gguf
import numpy as np


def make(path, alignment=None):
    w = gguf.GGUFWriter(path, "llama")
    w.add_uint8("u8", 200)
    w.add_int8("i8", -100)
    w.add_uint16("u16", 60000)
    w.add_int16("i16", -30000)
    w.add_uint32("u32", 4000000000)
    w.add_int32("i32", -2000000000)
    w.add_float32("f32", 0.1)
    w.add_bool("bool", True)
    w.add_string("string", "tränk ▁")
    w.add_uint64("u64", 2**63 + 1)
    w.add_int64("i64", -(2**62))
    w.add_float64("f64", 0.1)
    w.add_array("strings", ["<unk>", "▁a", ""])
    w.add_array("i32s", [1, -2, 3])
    w.add_array("f32s", [0.5, -0.25])
    w.add_array("bools", [True, False])
    if alignment is not None:
        w.add_custom_alignment(alignment)
    w.add_tensor("token_embd.weight", np.arange(15, dtype=np.float32).reshape(3, 5))
    w.add_tensor("output_norm.weight", np.arange(5, dtype=np.float16))
    q8 = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    w.add_tensor("output.weight", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
make(folder / "from-gguf-py.gguf")
make(folder / "from-gguf-py-aligned-64.gguf", 64)
