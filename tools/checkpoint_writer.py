"""Write Hugging Face checkpoints tensor by tensor, holding one tensor in memory at a time.

A maker lists its tensors first, each with a shape and a function that draws its values when its turn comes. Shapes are
enough to lay out every safetensors header, so the values go straight to their final place.
"""

import importlib
import importlib.util
import json
import pathlib
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


def require(module: str, install: str):
    """Return the imported module, or end the program with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        sys.exit(f"error: the Python package {module!r} is needed ({missing}): pip install {install}")


def package_file(module: str, install: str, *path: str) -> pathlib.Path:
    """Return the path of a data file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: the Python package {module!r} is needed: pip install {install}")
    found = pathlib.Path(next(iter(spec.submodule_search_locations))).joinpath(*path)
    if not found.is_file():
        sys.exit(f"error: {found}: not in the installed package {module!r}; try another version of it")
    return found


np = require("numpy", "numpy")


def round_to_bf16(values):
    """Return the upper halves of float32 values as uint16, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    tie_break = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + tie_break) >> np.uint32(16)).astype(np.uint16)


@dataclass(frozen=True)
class Dtype:
    """How numbers of one kind are stored and called."""

    tag: str  # in a safetensors header
    torch_name: str  # in config.json
    item_bytes: int
    encode: Callable


DTYPES = {
    "bf16": Dtype("BF16", "bfloat16", 2, round_to_bf16),
    "f16": Dtype("F16", "float16", 2, lambda values: values.astype(np.float16)),
    "f32": Dtype("F32", "float32", 4, lambda values: np.asarray(values, np.float32)),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor that does not exist yet: `draw` returns its values in row-major pieces when it is written."""

    name: str
    shape: tuple[int, ...]
    draw: Callable[[], Iterable]


def tensor(name: str, shape: tuple[int, ...], draw: Callable) -> Tensor:
    """Return a tensor whose values come in one piece."""
    return Tensor(name, shape, lambda: (draw(),))


def dense_feed_forward(layer: str, width: int, inner: int, draw: Callable[[], tuple]) -> Iterator[Tensor]:
    """Yield the three matrices of a dense block; `draw` returns (gate, down, up)."""
    later = {}

    def first():
        gate, later["down"], later["up"] = draw()
        return gate

    yield tensor(f"{layer}mlp.gate_proj.weight", (inner, width), first)
    yield tensor(f"{layer}mlp.up_proj.weight", (inner, width), lambda: later.pop("up"))
    yield tensor(f"{layer}mlp.down_proj.weight", (width, inner), lambda: later.pop("down"))


def expert_feed_forward(
    layer: str, layout: str, n_experts: int, width: int, inner: int, draw_router: Callable, draw_expert: Callable
) -> Iterator[Tensor]:
    """Yield router and experts of one layer as mergekit names them.

    `draw_expert(e)` returns (gate, down, up) of expert e. It is called for experts in ascending order after the router,
    whatever the layout, so that both layouts of one seed hold the same model.

    layout "split": `block_sparse_moe.experts.E.w1|w2|w3`, what mergekit wrote until June 2026;
    layout "fused": `mlp.experts.gate_up_proj` [E, 2 inner, width], gate rows first, and `down_proj` [E, width, inner].
    """
    if layout == "split":
        block = f"{layer}block_sparse_moe."
        yield tensor(f"{block}gate.weight", (n_experts, width), draw_router)
        later = {}
        for e in range(n_experts):

            def first(e=e):
                gate, later["w2"], later["w3"] = draw_expert(e)
                return gate

            yield tensor(f"{block}experts.{e}.w1.weight", (inner, width), first)
            yield tensor(f"{block}experts.{e}.w2.weight", (width, inner), lambda: later.pop("w2"))
            yield tensor(f"{block}experts.{e}.w3.weight", (inner, width), lambda: later.pop("w3"))
        return

    downs = []

    def gate_up() -> Iterator:
        for e in range(n_experts):
            gate, down, up = draw_expert(e)
            downs.append(down)
            yield gate
            yield up

    def down() -> Iterator:
        while downs:
            yield downs.pop(0)

    yield tensor(f"{layer}mlp.gate.weight", (n_experts, width), draw_router)
    yield Tensor(f"{layer}mlp.experts.gate_up_proj", (n_experts, 2 * inner, width), gate_up)
    yield Tensor(f"{layer}mlp.experts.down_proj", (n_experts, width, inner), down)


def write_json(path: pathlib.Path, content) -> None:
    """Write content as readable UTF-8 JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Progress:
    """One line on stderr that is redrawn while tensors are written; silent when stderr is no terminal."""

    def __init__(self, total_bytes: int):
        self.total, self.done, self.shown = total_bytes, 0, sys.stderr.isatty()

    def add(self, n_bytes: int, what: str) -> None:
        """Count n_bytes more as written."""
        self.done += n_bytes
        if self.shown:
            print(f"\r{100 * self.done // self.total:3d} % {what:<60.60}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self.shown:
            print("\r" + " " * 68 + "\r", end="", file=sys.stderr)


def _shards(tensors: list[Tensor], item_bytes: int, limit_bytes: int) -> list[list[tuple[Tensor, int]]]:
    """Group tensors in order, with their sizes in bytes, into shards of at most limit_bytes (or one tensor)."""
    shards, used = [[]], 0
    for each in tensors:
        size = item_bytes
        for extent in each.shape:
            size *= extent
        if shards[-1] and used + size > limit_bytes:
            shards.append([])
            used = 0
        shards[-1].append((each, size))
        used += size
    return shards


def _write_shard(path: pathlib.Path, shard, dtype: Dtype, metadata: dict, progress: Progress) -> None:
    """Write one safetensors file under a temporary name and rename it when it is whole."""
    header, offset = {"__metadata__": metadata}, 0
    for each, size in shard:
        header[each.name] = {"dtype": dtype.tag, "shape": each.shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for each, size in shard:
            written = sum(
                out.write(np.ascontiguousarray(dtype.encode(piece)).reshape(-1).view(np.uint8)) for piece in each.draw()
            )
            if written != size:
                sys.exit(f"error: {each.name}: found {written} bytes of values, expected {size} for {each.shape}")
            progress.add(size, each.name)
    partial.replace(path)


def write_weights(
    directory: pathlib.Path, tensors: Iterable[Tensor], dtype: Dtype, metadata: dict, shard_mb: int
) -> str:
    """Write all tensors as one safetensors file, or as shards with an index; return a line that sums it up.

    Weights that an earlier run left in the directory are removed, for a shard of another model is worse than none.
    """
    for stale in directory.glob("model*.safetensors*"):
        stale.unlink()
    shards = _shards(list(tensors), dtype.item_bytes, shard_mb << 20)
    total = sum(size for shard in shards for _, size in shard)
    progress = Progress(total)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / name, shard, dtype, metadata, progress)
        weight_map |= {each.name: name for each, _ in shard}
    progress.close()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)
    return f"{directory}: {len(weight_map)} tensors, {total / 1e6:.0f} MB in {len(shards)} shard(s)"
