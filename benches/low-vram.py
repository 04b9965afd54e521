#!/usr/bin/env python3
"""Run a model with less memory on the GPU than its file has: bruce-run as it plans for budgets beside llama-bench's best -ncmoe.

    benches/low-vram.py --llama BIN_DIR --model FILE.gguf [--device CUDA0] [--vram 4G 6G 8G 12G] [--prompts 512 2048] [--tokens 64]

For each budget the layers whose experts llama-bench keeps on the CPU are as few as fit: what it says of its buffers on the device
(`-v`) decides, with --ballast more for what it doesn't count. bruce-run gets the budget (`--vram`) and plans by itself. The programs
take turns, each run is a process of its own, and medians are compared. What both really take of the device is asked of nvidia-smi,
where there is one. The limit is that of reading: the weights of a token's dense part and its experts in slots at the device's
bandwidth, beside its other experts at the memory's, all measured by bruce-run at the time and hits counted in the run. Without --llama,
or on a device that it doesn't have, bruce-run runs alone.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
EXPERT = re.compile(r"\.ffn_(gate|up|down)(_exps|\.\d+)\.weight$")
BUFFER = re.compile(r"(\S+)\s+(?:model|KV|compute|RS) buffer size\s*=\s*([\d.]+) MiB")


def run(command: list, may_fail: bool = False) -> tuple[int, str, str, int]:
    """Run a command; return its status, stdout, stderr and the most bytes that it took of GPUs (0: not known)."""
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    peak = [0]
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, done))
    watcher.start()
    out, err = process.communicate()
    done.set()
    watcher.join()
    if process.returncode and not may_fail:
        sys.exit(f"error: {' '.join(map(str, command))}: status {process.returncode}\n{err[-2000:]}")
    return process.returncode, out, err, peak[0]


def watch(pid: int, peak: list[int], done: threading.Event) -> None:
    """Ask nvidia-smi for a process's memory until it ends."""
    if not shutil.which("nvidia-smi"):
        return
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    while not done.wait(0.2):
        for line in subprocess.run(query, capture_output=True, text=True).stdout.splitlines():
            owner, _, used = line.partition(",")
            if owner.strip() == str(pid) and used.strip().isdigit():
                peak[0] = max(peak[0], int(used) << 20)


def size(text: str) -> int:
    """Bytes of a size as bruce-run takes it: 4G, 500M."""
    units = {"K": 10, "M": 20, "G": 30}
    found = re.fullmatch(r"([\d.]+)([KMG])i?B?", text.upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: expected a size such as 4G or 500M")
    return int(float(found[1]) * (1 << units[found[2]]))


class Peer:
    """llama-bench on one model and device."""

    def __init__(self, program: pathlib.Path, common: list, device: str, n_layers: int, ballast: int):
        self.command = [program, *common, "-ngl", 99, "-dev", device]
        self.device, self.n_layers, self.ballast = device, n_layers, ballast
        self.needs: dict[int, int | None] = {}

    def with_layers(self, n_cpu_moe: int) -> list:
        return [*self.command, "-ncmoe", n_cpu_moe]

    def needed(self, n_cpu_moe: int, test: list) -> int | None:
        """Bytes of its buffers on the device; None where it does not run."""
        if n_cpu_moe not in self.needs:
            status, _, err, _ = run([*self.with_layers(n_cpu_moe), *test, "-r", 1, "-v"], may_fail=True)
            # Buffers are told anew for each test; the same name and kind counts once, at its largest.
            sizes: dict[str, float] = {}
            for line in err.splitlines():
                if (found := BUFFER.search(line)) and found[1] == self.device:
                    kind = line.split(found[1])[1].split()[0]
                    sizes[kind] = max(sizes.get(kind, 0.0), float(found[2]))
            self.needs[n_cpu_moe] = int(sum(sizes.values()) * 2**20) + self.ballast if status == 0 and sizes else None
        return self.needs[n_cpu_moe]

    def best(self, budget: int, test: list) -> int | None:
        """The fewest layers of experts on the CPU that fit; None where none do."""
        fits = lambda n: (need := self.needed(n, test)) is not None and need <= budget  # noqa: E731
        low, high = 0, self.n_layers
        if not fits(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return low


class Model:
    """What a token reads of a file, in bytes."""

    def __init__(self, path: pathlib.Path):
        inspect = [PROGRAMS / "bruce-run", "inspect", path, "--json"]
        report, tensors = (json.loads(run([*inspect, *more])[1]) for more in ([], ["--tensors"]))
        sizes = {tensor["name"]: tensor["size_bytes"] for tensor in tensors["tensors"]}
        field = lambda key: report["metadata"].get(f"llama.{key}", {}).get("value", 0)  # noqa: E731
        self.file_bytes = report["file_size_bytes"]
        self.n_layers = field("block_count")
        of_experts = sum(size for name, size in sizes.items() if EXPERT.search(name))
        # One row of the embeddings is read, where the output has a tensor of its own.
        rest = [size for name, size in sizes.items() if not EXPERT.search(name)]
        self.dense_bytes = sum(rest) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
        self.expert_bytes = of_experts * field("expert_used_count") / max(field("expert_count"), 1)

    def limit(self, plan: dict, row: dict) -> float | None:
        """Tokens per second that the plan's bandwidths allow with the hits of a run; None where a bandwidth is not known."""
        device, memory = plan["device_bytes_per_second"], plan["memory_bytes_per_second"]
        if not device or not memory:
            return None
        n_taken = row["expert_hits"] + row["expert_misses"]
        hits = row["expert_hits"] / n_taken if n_taken else plan["expert_chances"]["device"]
        beside = max(hits * self.expert_bytes / device, (1 - hits) * self.expert_bytes / memory)
        return 1 / (self.dense_bytes / device + beside)


def gigabytes(n_bytes: int | None) -> str:
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes else "-"


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=pathlib.Path, help="directory of llama-bench, built for the same device")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="CUDA0")
    parser.add_argument("--vram", type=size, nargs="+", default=[size(n) for n in ("4G", "6G", "8G", "12G")])
    parser.add_argument("--ballast", type=size, default=size("300M"), help="what llama-bench takes besides its buffers [300M]")
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--ubatch", type=int, default=2048, help="of both, as both gain by large ones")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are decoded; 0: no such test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    model = Model(args.model)
    common = ["-m", args.model, "-t", args.threads, "-ub", args.ubatch, "-o", "json"]
    tests = [(f"pp{n}", ["-p", n, "-n", 0]) for n in args.prompts]
    tests += [(f"tg{args.tokens}", ["-p", 0, "-n", args.tokens])] if args.tokens else []
    peer = Peer(args.llama / "llama-bench", common, args.device, model.n_layers, args.ballast) if args.llama else None
    bruce = PROGRAMS / "bruce-run"
    print(f"`{args.model.name}`, {gigabytes(model.file_bytes)}, {args.device}, {args.threads} threads, median of {args.repeats}\n")
    print("| VRAM | test | bruce-run | planned | of the limit | hits | taken | llama-bench | its -ncmoe | taken | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for budget in args.vram:
        _, text, _, _ = run([bruce, args.model, "-dev", args.device, "--vram", budget, "-t", args.threads, "--dry-run=json"])
        plan = json.loads(text)
        for name, what in tests:
            mine = [bruce, "bench", *common, *what, "-r", 1, "-dev", args.device, "--vram", budget]
            n_cpu_moe = peer.best(budget, what) if peer else None
            rows, theirs, taken = [], [], [0, 0]
            for _ in range(args.repeats):
                _, text, _, peak = run(mine)
                rows.append(json.loads(text)[0])
                taken[0] = max(taken[0], peak)
                if n_cpu_moe is not None:
                    _, text, _, peak = run([*peer.with_layers(n_cpu_moe), *what, "-r", 1])
                    theirs.append(json.loads(text)[0]["avg_ts"])
                    taken[1] = max(taken[1], peak)
            row = sorted(rows, key=lambda row: row["avg_ts"])[len(rows) // 2]
            ours, planned, share, hits = row["avg_ts"], "-", "-", "-"
            if name.startswith("tg"):
                limit, n_taken = model.limit(plan, row), row["expert_hits"] + row["expert_misses"]
                planned = f"{row['expected_ts']:.2f} t/s" if row.get("expected_ts") else "-"
                share = f"{100 * ours / limit:.0f} %" if limit else "-"
                hits = f"{100 * row['expert_hits'] / n_taken:.0f} %" if n_taken else "-"
            other = f"{statistics.median(theirs):.2f} t/s | {n_cpu_moe}" if theirs else "- | -"
            ratio = f"{ours / statistics.median(theirs):.2f}" if theirs else "-"
            print(
                f"| {gigabytes(budget)} | {name} | {ours:.2f} t/s | {planned} | {share} | {hits} | {gigabytes(taken[0])} | {other} "
                f"| {gigabytes(taken[1])} | {ratio} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
