#!/usr/bin/env python3
"""Measure bruce-quant and bruce-run beside llama.cpp's programs, in interleaved runs, and print Markdown tables.

    benches/against-llama-cpp.py --llama BIN_DIR --checkpoint DIR            # quantizing
    benches/against-llama-cpp.py --llama BIN_DIR --model FILE.gguf           # running
    benches/against-llama-cpp.py --llama BIN_DIR --checkpoint DIR --convert PYTHON CONVERT_HF_TO_GGUF

BIN_DIR holds llama-quantize and llama-bench, built on the same machine. A ratio is the median of one side over the median of the
other, taken in the same run; the spread is the distance from the smallest to the largest, as a share of the median.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def run(command: list) -> tuple[float, int, str]:
    """Run a command; return its wall time in seconds, its peak resident memory in bytes and what it printed."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        out.seek(0)
        err.seek(0)
        if status:
            sys.exit(f"error: {' '.join(map(str, command))}: status {status}\n{err.read()[-2000:]}")
        return wall, usage.ru_maxrss * 1024, out.read()


def summary(values: list[float], unit: str) -> str:
    """Median with the spread in percent."""
    middle = statistics.median(values)
    return f"{middle:.2f} {unit} (±{50 * (max(values) - min(values)) / middle:.0f} %)"


def quantizing(args: argparse.Namespace, scratch: pathlib.Path) -> None:
    """Compare one pass of bruce-quant with convert_hf_to_gguf.py and llama-quantize."""
    bf16 = scratch / "bf16.gguf"
    convert = [args.convert[0], args.convert[1], args.checkpoint, "--outtype", "bf16", "--outfile", bf16] if args.convert else None
    print(f"\nQuantizing `{args.checkpoint.name}`, {args.threads} threads, median of {args.repeats}\n")
    print("| type | bruce-quant | peak memory | convert + llama-quantize | peak memory | llama-quantize alone | ratio |")
    print("|---|---|---|---|---|---|---|")
    if not convert:
        run([PROGRAMS / "bruce-quant", args.checkpoint, "-q", "bf16", "-o", bf16, "--force", "--quiet"])
    for name in args.types:
        ours, our_peak, theirs, peak, alone = [], 0, [], 0, []
        for _ in range(args.repeats):
            out = scratch / "out.gguf"
            command = [PROGRAMS / "bruce-quant", args.checkpoint, "-q", name, "-o", out, "--threads", args.threads]
            wall, memory, _ = run([*command, "--force", "--quiet"])
            ours.append(wall)
            our_peak = max(our_peak, memory)
            out.unlink()
            first = 0.0
            if convert:
                first, memory, _ = run(convert)
                peak = max(peak, memory)
            wall, memory, _ = run([args.llama / "llama-quantize", bf16, out, name, args.threads])
            alone.append(wall)
            theirs.append(first + wall)
            peak = max(peak, memory)
            out.unlink()
        both = summary(theirs, "s") if convert else "not run"
        ratio = statistics.median(theirs) / statistics.median(ours)
        print(
            f"| {name} | {summary(ours, 's')} | {our_peak / 1e6:.0f} MB | {both} | {peak / 1e6:.0f} MB | {summary(alone, 's')} | {ratio:.2f} |",
            flush=True,
        )


def running(args: argparse.Namespace, _: pathlib.Path) -> None:
    """Compare bruce-run bench with llama-bench, and with ik_llama.cpp's where there is one, each at its settings."""
    prompts = [int(n) for n in args.prompt.split(",")]
    shape = ["-p", args.prompt, "-n", args.predict, "-r", 1, "-t", args.threads, "-o", "json"]
    sides = {}
    peers = [("bruce-run", [PROGRAMS / "bruce-run", "bench"], [[], ["-mmp", "0"]])]
    peers.append(("llama-bench", [args.llama / "llama-bench"], [[], ["--repack", "0"], ["-lm", "none", "--repack", "0"]]))
    if args.ik:
        peers.append(("ik_llama.cpp", [args.ik / "llama-bench"], [[], ["-rtr", "1"], ["-rtr", "1", "-fmoe", "1"]]))
    for name, program, settings in peers:
        for setting in settings:
            label = f"{name}, `{' '.join(setting)}`" if setting else name
            sides[label] = [*program, "-m", args.model, *shape, *setting]
    columns = [f"pp{n}" for n in prompts] + [f"tg{args.predict}"]
    speeds = {name: {column: [] for column in columns} for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for _ in range(args.repeats):
        for name, command in sides.items():
            _, memory, text = run(command)
            peaks[name] = max(peaks[name], memory)
            for row in json.loads(text):
                column = f"pp{row['n_prompt']}" if row["n_gen"] == 0 else f"tg{row['n_gen']}"
                speeds[name][column].append(row["avg_ts"])
    print(f"\nRunning `{args.model.name}`, {args.threads} threads, median of {args.repeats}\n")
    print(f"| program | {' | '.join(columns)} | peak memory |")
    print("|---" * (len(columns) + 2) + "|")
    for name, values in speeds.items():
        cells = " | ".join(summary(values[column], "t/s") for column in columns)
        print(f"| {name} | {cells} | {peaks[name] / 1e6:.0f} MB |", flush=True)


def main() -> None:
    """Parse the arguments and measure what they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=pathlib.Path, required=True, help="directory of llama.cpp's programs")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="checkpoint directory to quantize")
    parser.add_argument("--convert", nargs=2, metavar=("PYTHON", "SCRIPT"), help="llama.cpp's converter, to run it as well")
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q8_0"])
    parser.add_argument("--model", type=pathlib.Path, help="GGUF file to run")
    parser.add_argument("--ik", type=pathlib.Path, help="directory of ik_llama.cpp's llama-bench, to run it as well")
    parser.add_argument("--prompt", default="512", help="tokens of the prompt, several lengths with commas")
    parser.add_argument("--predict", type=int, default=32, help="tokens to predict")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=pathlib.Path, default=ROOT / ".cache", help="where temporary files go")
    args = parser.parse_args()
    args.scratch.mkdir(exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=args.scratch, prefix="bench-"))
    try:
        if args.checkpoint:
            quantizing(args, scratch)
        if args.model:
            running(args, scratch)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
