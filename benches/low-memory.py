#!/usr/bin/env python3
"""Run a model in less memory than its file has: bruce-run as it plans for that, and llama-bench on its mapped file.

    benches/low-memory.py --model FILE.gguf --llama BIN_DIR            the table of BENCHMARKS.md, for half and three quarters
    benches/low-memory.py --model FILE.gguf --share 0.5 --prompts --tokens 24    decoding only, without llama.cpp

Every run is a process of its own in a memory cgroup (version 1 or 2, for which this must be root) with a limit of a share of the
file, swap off, and the page cache dropped before it. The programs take turns, and who begins changes from round to round;
what is shown are medians over all repetitions of all rounds. bruce-run is told the limit (--ram) and plans its pool itself.
It computes the tokens of --text; llama-bench has random ones, and keeps to the mapped file (--repack 0), as the copy that it
makes otherwise is more than the limit. Beside these stands bruce-run with everything in memory and no limit.

At last the greedy continuation of the text's beginning under each limit is compared with the one with everything in memory: a
difference is an error (exit code 1).

Columns: "of the disk's limit" is the time that reading what the pool had not takes at the bandwidth of the run, over the time of the
run, whether or not that came in time; "in the pool" the share of experts' bytes that had stayed in memory; "planned" what the plan expected of decoding, with the disk as measured
before loading; "with this disk" the same with the disk as measured right before and after each repetition; "and these hits" with
the hits that there were too: what is left of the error then is the plan's own.
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
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
TEXT = ROOT / "models" / "tiny-moe" / "heldout.txt"
PAGE = 4096


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
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:  # The system may still be taking the process apart.
                time.sleep(0.1)
        self.path.rmdir()


@dataclass
class Ended:
    """How a process ended."""

    out: str
    err: str
    status: int
    peak: int


def run(command: list, limit: int | None, seconds: float) -> Ended:
    """Run a command under a limit of memory, with nothing in the page cache; it is killed after so many seconds."""
    subprocess.run(["sync"], check=True)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    group = Group(limit) if limit else None
    try:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=err, stdin=subprocess.DEVNULL, preexec_fn=group.enter if group else None
            )
            try:
                status = process.wait(seconds)
            except BaseException as error:
                process.kill()
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = 124
            out.seek(0)
            err.seek(0)
            return Ended(out.read(), err.read(), status, group.peak() if group else 0)
    finally:
        if group:
            group.remove()


@dataclass
class Series:
    """What one program did in one test, over all rounds."""

    speeds: list = field(default_factory=list)
    peaks: list = field(default_factory=list)
    results: list = field(default_factory=list)
    status: int = 0

    def add(self, ended: Ended) -> None:
        self.status = ended.status
        if ended.status == 0:
            result = json.loads(ended.out)[0]
            self.speeds += result["samples_ts"]
            self.peaks.append(ended.peak)
            self.results.append(result)

    def speed(self) -> float | None:
        return statistics.median(self.speeds) if self.speeds else None

    def spread(self) -> float:
        """Half of the distance between the fastest and the slowest, as a share of the median."""
        return (max(self.speeds) - min(self.speeds)) / 2 / statistics.median(self.speeds)

    def median(self, name: str) -> float | None:
        values = [result[name] for result in self.results if result.get(name) is not None]
        return statistics.median(values) if values else None

    def planned(self, name: str) -> str:
        """What was expected, and by how much that is off the speed of the same process."""
        pairs = [(result[name], result[name] / result["avg_ts"] - 1) for result in self.results if result.get(name)]
        if not pairs:
            return "-"
        return f"{statistics.median(p[0] for p in pairs):.2f} ({100 * statistics.median(p[1] for p in pairs):+.0f} %)"


def shown(value: float | None, text: str = "{:.2f}") -> str:
    return "-" if value is None else text.format(value)


def percent(value: float | None) -> str:
    return shown(value and 100 * value, "{:.0f} %")


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def row(limit: int, test: str, ours: Series, theirs: Series, resident: Series) -> str:
    """A line of the table."""
    speed = ours.speed()
    is_decoding = test.startswith("tg")
    cells = [
        f"{limit / 1e9:.2f} GB",
        test,
        f"**{speed:.2f} t/s** (±{100 * ours.spread():.0f} %)",
        f"status {theirs.status}" if theirs.status else shown(theirs.speed(), "{:.2f} t/s"),
        shown(ratio(speed, theirs.speed())),
        shown(resident.speed(), "{:.2f} t/s"),
        shown(ratio(speed, resident.speed())),
        percent(ours.median("streamed_of_disk_limit")) if is_decoding else "",
        percent(ours.median("streamed_hit_rate")),
        shown((ours.median("streamed_bytes_per_token") or 0) / 1e6, "{:.0f} MB"),
        shown((ours.median("disk_bytes_per_second") or 0) / 1e9, "{:.2f} GB/s"),
        *[ours.planned(name) if is_decoding else "" for name in ("expected_ts", "expected_with_disk_ts", "expected_with_disk_and_hits_ts")],
        f"{max(ours.peaks) / 1e9:.2f} GB",
    ]
    return "| " + " | ".join(cells) + " |"


HEADS = [
    "limit", "test", "bruce-run", "llama-bench", "ratio", "all in memory", "share of it", "of the disk's limit", "in the pool",
    "read for a token", "the disk gives", "planned", "with this disk", "and these hits", "peak",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--llama", type=pathlib.Path, help="folder of llama-bench; without it bruce-run alone is measured")
    parser.add_argument("--share", type=float, nargs="+", default=[0.5, 0.75], help="limits, as shares of the file")
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048], help="lengths of prompts")
    parser.add_argument("--tokens", type=int, default=24, help="tokens that are decoded; 0: no such test")
    parser.add_argument("--first", action="store_true", help="also the first prompt after loading, without a warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each program for each test")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions in each process")
    parser.add_argument("--resident-rounds", type=int, default=1, help="rounds that have everything in memory as well; 0: none")
    parser.add_argument("--text", type=pathlib.Path, default=TEXT, help="the tokens that bruce-run computes")
    parser.add_argument("--with-trace", action="store_true", help="plan with a trace of the text's second half, and measure on the first")
    parser.add_argument("--check-tokens", type=int, default=24, help="tokens of the continuation that must be equal; 0: none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=1800, help="a process is killed after this time")
    parser.add_argument("--json", type=pathlib.Path, help="write all results here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(measure(args, pathlib.Path(folder)))


def measure(args: argparse.Namespace, folder: pathlib.Path) -> int:
    """Measure everything and print it; the exit code."""
    bruce = PROGRAMS / "bruce-run"
    report = subprocess.run([bruce, "inspect", args.model, "--json"], capture_output=True, text=True, check=True)
    size = json.loads(report.stdout)["file_size_bytes"]
    text, trace = args.text, []
    if args.with_trace:
        whole = args.text.read_text()
        text, other = folder / "first.txt", folder / "second.txt"
        text.write_text(whole[: len(whole) // 2])
        other.write_text(whole[len(whole) // 2 :])
        trace = ["--trace", folder / "trace.json"]
        subprocess.run(
            [bruce, "trace", args.model, "-f", other, "-o", trace[1], "--chunks", "4", "--json"], check=True, stdout=subprocess.DEVNULL
        )

    tests = {f"pp{n}": ["-p", n, "-n", 0] for n in args.prompts}
    if args.first:
        tests |= {f"pp{n}, first": ["-p", n, "-n", 0, "--no-warmup"] for n in args.prompts}
    if args.tokens:
        tests[f"tg{args.tokens}"] = ["-p", 0, "-n", args.tokens]

    def bench(program: pathlib.Path, what: list, more: list, limit: int | None) -> Ended:
        repeats = 1 if "--no-warmup" in what else args.repeats
        command = [program, *(["bench"] if program == bruce else []), "-m", args.model, "-t", args.threads, "-r", repeats, "-o", "json"]
        return run([*command, *what, *more], limit, args.seconds)

    version = subprocess.run([bruce, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    print(f"`{args.model.name}`, {size / 1e9:.2f} GB, {args.threads} threads, {version}; {args.rounds} rounds of {args.repeats}\n")
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS), flush=True)
    resident = {test: Series() for test in tests}
    everything = []
    for share in args.share:
        limit = int(share * size) // PAGE * PAGE
        for test, what in tests.items():
            ours, theirs = Series(), Series()
            for number in range(args.rounds):
                turns = [(bruce, ours, ["-f", text, "--ram", limit, *trace])]
                if args.llama and theirs.status == 0:
                    turns.append((args.llama / "llama-bench", theirs, ["--repack", 0]))
                for program, series, more in turns if number % 2 == 0 else turns[::-1]:
                    ended = bench(program, what, more, limit)
                    series.add(ended)
                    if program == bruce and ended.status:
                        print(f"error: {test} in {limit} bytes: status {ended.status}\n{ended.err[-2000:]}", file=sys.stderr)
                        return 1
                if share == args.share[0] and number < args.resident_rounds:
                    ended = bench(bruce, what, ["-f", text, "--kernels", "bruce"], None)
                    if ended.status:
                        print(f"error: {test} without a limit: {ended.err[-2000:]}", file=sys.stderr)
                        return 1
                    resident[test].add(ended)
            print(row(limit, test, ours, theirs, resident[test]), flush=True)
            series = {"bruce-run": ours, "llama-bench": theirs, "resident": resident[test]}
            everything.append({"limit": limit, "test": test} | {name: [s.results, s.peaks, s.status] for name, s in series.items()})
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))
    return check(args, bruce, size) if args.check_tokens else 0


def check(args: argparse.Namespace, bruce: pathlib.Path, size: int) -> int:
    """Compare greedy continuations; the exit code."""
    prompt = " ".join(args.text.read_text().split()[:80])
    ask = [bruce, args.model, "-no-cnv", "-p", prompt, "-n", args.check_tokens, "--temp", 0, "--ignore-eos", "-c", 512, "--no-perf"]
    ask += ["-t", args.threads, "--kernels", "bruce"]
    expected = run(ask, None, args.seconds)
    code = 0
    for share in args.share:
        limit = int(share * size) // PAGE * PAGE
        found = run([*ask, "--ram", limit], limit, args.seconds)
        if expected.status or found.status:
            verdict, code = f"status {expected.status} and {found.status}: {(expected.err + found.err)[-1000:]}", 1
        elif found.out != expected.out:
            verdict, code = f"differs:\n  {expected.out!r}\n  {found.out!r}", 1
        else:
            verdict = "equal to that with everything in memory"
        print(f"\nContinuation of {args.check_tokens} tokens in {limit / 1e9:.2f} GB: {verdict}", flush=True)
    return code


if __name__ == "__main__":
    main()
