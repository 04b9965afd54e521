#!/usr/bin/env python3
"""Write a Mixtral checkpoint of any size with random weights and the real tokenizer of Mistral-7B-v0.1.

For tests of format, memory and speed: what it says is noise. The tokenizer is the SentencePiece file that Mistral
merges carry; it comes from the PyPI package mistral-common (Apache-2.0):

    pip install numpy
    pip install --no-deps mistral-common
    tools/make-synthetic-moe.py OUT_DIR                          121 MB, for tests
    tools/make-synthetic-moe.py OUT_DIR --layout fused           the names mergekit writes since June 2026
    tools/make-synthetic-moe.py OUT_DIR --shape 4x7b --layers 4  6.5 GB, the layers of a 4x7B merge

The same arguments give the same bytes, and both layouts hold the same model.
"""

import argparse
import math
import pathlib
import shutil
from dataclasses import dataclass

from checkpoint_writer import (
    DTYPES,
    dense_feed_forward,
    expert_feed_forward,
    np,
    package_file,
    tensor,
    write_json,
    write_weights,
)

TOKENIZER_PACKAGE = "mistral_common", "--no-deps mistral-common"
TOKENIZER_FILE = "data", "tokenizer.model.v1"
VOCABULARY = 32000

# Mistral's own template: turns must alternate, and instructions stand between [INST] and [/INST].
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model."""

    width: int
    inner: int
    n_head: int
    n_head_kv: int
    n_layers: int

    @property
    def kv_width(self) -> int:
        """Rows of the key and of the value projection."""
        return self.n_head_kv * (self.width // self.n_head)


SHAPES = {"tiny": Shape(512, 1024, 8, 2, 4), "4x7b": Shape(4096, 14336, 32, 8, 32)}


class Dice:
    """Random weights in the order they are asked for."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def norm(self, width: int):
        """Return norm weights around one."""
        return 1 + 0.1 * self._rng.standard_normal(width, dtype=np.float32)

    def matrix(self, rows: int, cols: int, deviation: float | None = None):
        """Return normal weights in which one of 512 is five times as large, as a trained model has outliers."""
        deviation = deviation or 0.7 / math.sqrt(cols)
        values = self._rng.standard_normal(rows * cols, dtype=np.float32) * np.float32(deviation)
        values[self._rng.integers(0, values.size, values.size // 512)] *= 5
        return values.reshape(rows, cols)


def model_tensors(shape: Shape, args: argparse.Namespace):
    """Yield every tensor of the checkpoint in file order."""
    dice = Dice(args.seed)
    width, inner = shape.width, shape.inner

    def norm(name: str):
        return tensor(name, (width,), lambda: dice.norm(width))

    def matrix(name: str, rows: int, deviation: float | None = None):
        return tensor(name, (rows, width), lambda: dice.matrix(rows, width, deviation))

    def router():
        return dice.matrix(args.experts, width, 1.5 / math.sqrt(width))

    def feed_forward(_expert: int = 0):
        return dice.matrix(inner, width), dice.matrix(width, inner), dice.matrix(inner, width)

    yield matrix("model.embed_tokens.weight", VOCABULARY, 0.5)
    for i in range(args.layers or shape.n_layers):
        layer = f"model.layers.{i}."
        yield norm(f"{layer}input_layernorm.weight")
        yield norm(f"{layer}post_attention_layernorm.weight")
        yield matrix(f"{layer}self_attn.q_proj.weight", width)
        yield matrix(f"{layer}self_attn.k_proj.weight", shape.kv_width)
        yield matrix(f"{layer}self_attn.v_proj.weight", shape.kv_width)
        yield matrix(f"{layer}self_attn.o_proj.weight", width)
        if args.dense:
            yield from dense_feed_forward(layer, width, inner, feed_forward)
        else:
            yield from expert_feed_forward(layer, args.layout, args.experts, width, inner, router, feed_forward)
    yield norm("model.norm.weight")
    yield matrix("lm_head.weight", VOCABULARY, 1 / math.sqrt(width))


def config(shape: Shape, args: argparse.Namespace) -> dict:
    """Return config.json as a merge of late 2023 has it."""
    common = {
        "_name_or_path": "synthetic",
        "architectures": ["MistralForCausalLM" if args.dense else "MixtralForCausalLM"],
        "model_type": "mistral" if args.dense else "mixtral",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": args.layers or shape.n_layers,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": DTYPES[args.dtype].torch_name,
        "transformers_version": "4.36.2",
    }
    experts = {
        "num_local_experts": args.experts,
        "num_experts_per_tok": min(2, args.experts),
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    return common if args.dense else common | experts


def write_tokenizer(directory: pathlib.Path) -> None:
    """Write the tokenizer's files and the defaults for generation."""
    shutil.copyfile(package_file(*TOKENIZER_PACKAGE, *TOKENIZER_FILE), directory / "tokenizer.model")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "pad_token": "<s>",
        "model_max_length": int(1e30),
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", named | settings)
    write_json(directory / "special_tokens_map.json", named)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    write_json(directory / "generation_config.json", generation)


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--layers", type=int, help="layers, if not the shape's own number")
    parser.add_argument("--experts", type=int, default=4, help="experts per layer (default 4)")
    parser.add_argument("--dense", action="store_true", help="no experts: a MistralForCausalLM")
    parser.add_argument("--layout", choices=["split", "fused"], default="split", help="names of the experts' tensors")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--shard-mb", type=int, default=4500, help="largest shard in MiB (default 4500)")
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    if args.layers is not None and args.layers < 1:
        parser.error(f"--layers: found {args.layers}, expected 1 or more")
    if args.experts < 1:
        parser.error(f"--experts: found {args.experts}, expected 1 or more")
    return args


def main() -> None:
    """Write the checkpoint."""
    args = arguments()
    shape = SHAPES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    metadata = {"mergekit_version": "0.1.4"}
    summary = write_weights(args.out, model_tensors(shape, args), DTYPES[args.dtype], metadata, args.shard_mb)
    write_json(args.out / "config.json", config(shape, args))
    write_tokenizer(args.out)
    print(summary)


if __name__ == "__main__":
    main()
