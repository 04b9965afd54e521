#!/usr/bin/env python3
"""Measure `bruce-run --lookup` on text that repeats itself and on text that does not, and check that it changes no token.

    benches/lookup.py MODEL.gguf [--predict 128] [--threads N] [--repeats 3] [--drafts 4 8 16]

Each run answers the same prompt greedily; plain decoding and each number of drafted tokens take turns. The figure is tokens per
second of decoding, the median of the runs; the program ends with an error where an answer differs from the plain one.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "bruce-run"
CODE = "".join(
    f"fn {name}(values: &[f32]) -> f32 {{\n    let mut sum = 0.0;\n    for value in values {{\n        sum += value;\n    }}\n    sum\n}}\n\n"
    for name in ["first", "second", "third", "fourth"]
)
TEXTS = {
    "repeats": f"The file:\n\n{CODE}\nThe same file again, unchanged:\n\nfn first(values: &[f32])",
    "does not": "Once, in a town by the sea, a clockmaker received a letter without a stamp. She opened it and read:",
}


def answer(args: argparse.Namespace, text: str, drafts: int) -> tuple[list[int], float]:
    """Tokens and tokens per second of the greedy continuation."""
    command = [PROGRAM, args.model, "-p", text, "-no-cnv", "--no-escape", "--temp", "0", "--ignore-eos", "--output", "json"]
    command += ["-n", args.predict, "-t", args.threads, "--kernels", "bruce", "-c", "2048"]
    command += ["--lookup", "--draft-max", drafts] if drafts else []
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"error: status {done.returncode}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return [token["id"] for token in found["tokens"]], found["timings"]["predicted_per_second"]


def main() -> None:
    """Parse the arguments, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--predict", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--drafts", type=int, nargs="+", default=[4, 8, 16])
    args = parser.parse_args()
    print("| text | " + " | ".join(["plain", *(f"{n} drafted" for n in args.drafts)]) + " |")
    print("|---|" + "---|" * (1 + len(args.drafts)))
    for name, text in TEXTS.items():
        speeds = {n: [] for n in [0, *args.drafts]}
        expected = None
        for _ in range(args.repeats):
            for n, values in speeds.items():
                tokens, speed = answer(args, text, n)
                expected = expected or tokens
                if tokens != expected:
                    sys.exit(f"error: {name}: {n} drafted tokens changed the answer")
                values.append(speed)
        middle = {n: statistics.median(values) for n, values in speeds.items()}
        row = " | ".join(f"{speed:.1f} t/s ({speed / middle[0]:.2f})" for speed in middle.values())
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
