#!/usr/bin/env python3
"""Run a model in less memory than its file has: bruce-run as it plans for that beside llama-bench on its mapped file.

    benches/low-memory.py --llama BIN_DIR --model FILE.gguf [--share 0.5 0.75] [--prompts 512 2048] [--tokens 64]

Every run is a process of its own in a memory cgroup (version 1 or 2, for which this must be root) with a limit of a share of the
file, swap off, and the page cache dropped before it. bruce-run is told the limit (`--ram`) and plans its pool itself, or gets
one of --pool bytes. llama-bench keeps to the mapped file (`--repack 0`), as the copy that it makes otherwise is more than the limit.
Beside these stands bruce-run without a limit and everything in memory. Prints a Markdown table: tokens per second, what the plan
expected of decoding, what of the experts was found in memory, bytes read for each token, and how much of the time the disk alone
would have taken at the bandwidth measured in the run.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
EXPERT = re.compile(r"\.ffn_(gate|up|down)(_exps|\.\d+)\.weight$")


class Group:
    """A memory cgroup with a limit, for one process at a time."""

    def __init__(self, limit: int):
        v1 = CGROUPS / "memory" / "memory.limit_in_bytes"
        parent, self.peak_file = (CGROUPS / "memory", "memory.max_usage_in_bytes") if v1.exists() else (CGROUPS, "memory.peak")
        self.path = parent / f"bruce-low-memory-{os.getpid()}"
        self.path.mkdir()
        settings = [("memory.swappiness", 0), ("memory.limit_in_bytes", limit)] if v1.exists() else [("memory.max", limit), ("memory.swap.max", 0)]
        for name, value in settings:
            (self.path / name).write_text(str(value))

    def enter(self) -> None:
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        return int((self.path / self.peak_file).read_text())

    def remove(self) -> None:
        self.path.rmdir()


def run(command: list, limit: int | None) -> tuple[str, str, int, int]:
    """Run a command under a limit of memory; return stdout, stderr, its status and its peak in bytes."""
    subprocess.run(["sync"], check=True)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    group = Group(limit) if limit else None
    try:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=err, stdin=subprocess.DEVNULL, preexec_fn=group.enter if group else None
            )
            _, status, usage = os.wait4(process.pid, 0)
            out.seek(0)
            err.seek(0)
            return out.read(), err.read(), status, group.peak() if group else usage.ru_maxrss * 1024
    finally:
        if group:
            group.remove()


def speed(text: str) -> tuple[float, float | None]:
    """Tokens per second in the JSON of either bench, and what was expected of decoding where that is told."""
    result = json.loads(text)[0]
    return result["avg_ts"], result.get("expected_ts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--share", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are decoded; 0: no such test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pool", type=int, help="bytes of bruce-run's pool, instead of what it plans")
    args = parser.parse_args()

    bruce = PROGRAMS / "bruce-run"
    report = subprocess.run([bruce, "inspect", args.model, "--json", "--tensors"], capture_output=True, text=True, check=True)
    report = json.loads(report.stdout)
    dense = sum(t["size_bytes"] for t in report["tensors"] if not EXPERT.search(t["name"]))
    tests = [(f"pp{n}", ["-p", n, "-n", 0]) for n in args.prompts]
    tests += [(f"tg{args.tokens}", ["-p", 0, "-n", args.tokens])] if args.tokens else []
    common = ["-m", args.model, "-t", args.threads, "-r", args.repeats, "-o", "json"]

    print(f"`{args.model.name}`, {report['file_size_bytes'] / 1e9:.2f} GB ({dense / 1e9:.2f} GB without experts), {args.threads} threads\n")
    print("| limit | test | bruce-run | expected | peak | experts | llama-bench, `--repack 0` (mmap) | ratio | in memory | share of it |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    resident = {}
    for name, what in tests:
        out, err, status, _ = run([bruce, "bench", *common, *what, "--kernels", "bruce"], None)
        if status:
            sys.exit(f"error: without a limit: {err[-2000:]}")
        resident[name], _ = speed(out)
    for share in args.share:
        limit = int(share * report["file_size_bytes"]) // 4096 * 4096
        memory = ["--expert-pool", args.pool] if args.pool else ["--ram", limit]
        for name, what in tests:
            out, err, status, peak = run([bruce, "bench", *common, *what, *memory], limit)
            if status:
                sys.exit(f"error: {name} in {limit} bytes: status {status}\n{err[-2000:]}")
            ours, expected = speed(out)
            told = re.findall(rf"^{name}: (.*)$", err, re.MULTILINE)
            out, err, status, _ = run([args.llama / "llama-bench", *common, *what, "--repack", 0], limit)
            theirs = speed(out)[0] if status == 0 else None
            plan = f"{expected:.2f} t/s" if expected and name.startswith("tg") else "-"
            shown = f"{theirs:.2f} t/s | {ours / theirs:.2f}" if theirs else f"status {status} | -"
            print(
                f"| {limit / 1e9:.2f} GB | {name} | {ours:.2f} t/s | {plan} | {peak / 1e9:.2f} GB | {told[-1] if told else '-'} | {shown} | "
                f"{resident[name]:.2f} t/s | {ours / resident[name]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
