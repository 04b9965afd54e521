#!/usr/bin/env python3
"""Measure the time from the start of `bruce-run` to its first token, and its memory, with the model in the page cache.

    benches/first-token.py MODEL.gguf [--prompt 512] [--threads 1 2] [--context 4096] [--repeats 5]

Prints wall time of a run that answers with one token, the time of reading the prompt alone (what `bruce-run` says itself), their
ratio, and peak resident memory beside file and KV cache. Targets: ratio 1.1, memory 300 MB above both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "bruce-run"


def first_token(args: argparse.Namespace, threads: int, prompt: pathlib.Path) -> dict:
    """One run: seconds in all and of the prompt, tokens of the prompt, bytes of memory."""
    command = [PROGRAM, args.model, "-f", prompt, "-no-cnv", "--temp", "0", "-n", 1, "--output", "json"]
    command += ["-t", threads, "-c", args.context, *args.flags]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        if status:
            sys.exit(f"error: {' '.join(map(str, command))}: status {status}")
        out.seek(0)
        timings = json.loads(out.read())["timings"]
    return {
        "wall": wall,
        "load": timings["load_ms"] / 1e3,
        "prompt": timings["prompt_ms"] / 1e3,
        "n": timings["prompt_n"],
        "memory": usage.ru_maxrss * 1024,
    }


def main() -> None:
    """Parse the arguments, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--prompt", type=int, default=512, help="words of the prompt")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="more flags of bruce-run, after --")
    args = parser.parse_args()
    size = args.model.stat().st_size
    print(f"`{args.model.name}`, {size / 1e6:.0f} MB, context of {args.context}, median of {args.repeats}\n")
    print("| threads | prompt | start to first token | loading | reading the prompt | ratio | peak memory | above the file |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write(" a" * args.prompt)
        prompt.flush()
        for threads in args.threads:
            first_token(args, threads, pathlib.Path(prompt.name))
            runs = [first_token(args, threads, pathlib.Path(prompt.name)) for _ in range(args.repeats)]
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            ratio = statistics.median(run["wall"] / run["prompt"] for run in runs)
            print(
                f"| {threads} | {middle['n']:.0f} tokens | {middle['wall']:.2f} s | {middle['load']:.2f} s | {middle['prompt']:.2f} s "
                f"| {ratio:.2f} | {middle['memory'] / 1e6:.0f} MB | {(middle['memory'] - size) / 1e6:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
