"""Segments many tiny images of an object store with three kills, and says what ten million would take.

    python scripts/benchmark_buckets.py s3://many --checkpoint tiny.ckpt --images 100000

The address is any that fsspec reads and writes, or a folder. `segkit infer` is killed when a quarter, a half and three
quarters of the shards are there. Prints images/s, memory, the most files and sockets that were open (of Linux), and
whether each image is in one shard, once. A store of one's own: `pip install 'moto[server]'`, `moto_server -p 5555`, and
`FSSPEC_S3_ENDPOINT_URL=http://127.0.0.1:5555`, with any `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import fsspec
import numpy as np

from segkit.bars import Bar

MILLIONS = 10_000_000
MACHINES = (1, 8, 64)
_DISTINCT = 64  # images; the others repeat them
_FOLDER = 1000  # images
_POLL = 0.5  # seconds


def fill(fs: fsspec.AbstractFileSystem, root: str, count: int, size: int) -> None:
    """Put images into the store, if they are not there."""
    rng = np.random.default_rng(0)
    data = [bytes(cv2.imencode(".jpg", rng.integers(0, 256, (size, size, 3), np.uint8))[1]) for _ in range(_DISTINCT)]

    def put(number: int) -> None:
        fs.pipe_file(f"{root}/{number // _FOLDER:05d}/{number:08d}.jpg", data[number % _DISTINCT])

    fs.makedirs(root, exist_ok=True)
    have = len(fs.find(root))
    for folder in range(0, count, _FOLDER):
        fs.makedirs(f"{root}/{folder // _FOLDER:05d}", exist_ok=True)
    with ThreadPoolExecutor(4) as pool, Bar(total=count - have, unit="image", desc="fill") as bar:
        for _ in pool.map(put, range(have, count)):
            bar.update()


def shards(fs: fsspec.AbstractFileSystem, root: str) -> int:
    """How many shards are noted as done."""
    fs.invalidate_cache()
    return len(fs.ls(f"{root}/manifest", detail=False)) - 1 if fs.exists(f"{root}/manifest") else 0


def watched(command: list[str], killed_at: int | None, done: object) -> tuple[int, list[int], int]:
    """Run a command until its end or so many shards; gives its exit code, its memory in MB and its most open files."""
    memory, files = [], 0
    process = subprocess.Popen(command)
    proc = Path("/proc", str(process.pid))
    while process.poll() is None:
        time.sleep(_POLL)
        try:
            status = (proc / "status").read_text(encoding="ascii")
            memory.append(int(status.partition("VmRSS:")[2].split()[0]) // 1024)
            files = max(files, len(os.listdir(proc / "fd")))
        except (OSError, IndexError):  # it has just ended
            break
        if killed_at is not None and done() >= killed_at:  # type: ignore[operator]
            process.kill()
    return process.wait(), memory, files


def done_once(fs: fsspec.AbstractFileSystem, root: str, count: int) -> bool:
    """Whether each image is in one shard, once."""
    found: list[str] = []
    for path in fs.glob(f"{root}/*.tar"):
        with tarfile.open(fileobj=io.BytesIO(fs.cat_file(path))) as shard:
            members = (shard.extractfile(member) for member in shard if member.name.endswith(".json"))
            found += [json.load(member)["image"] for member in members if member is not None]
    return len(found) == len(set(found)) == count


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    fs, root = fsspec.url_to_fs(options.address)
    fill(fs, f"{root}/in", options.images, options.size)
    command = [sys.executable, "-m", "segkit", "infer", f"{options.address}/in", "--output", f"{options.address}/out"]
    command += ["--output_kinds", "labels", "--shards", str(options.shards), "--checkpoint", options.checkpoint]
    count = -(-options.images // options.shards)
    seconds, most = 0.0, 0
    for killed_at in (count // 4, count // 2, count * 3 // 4, None):
        start = time.perf_counter()
        done = shards(fs, f"{root}/out")
        code, memory, files = watched(
            [*command, "--device", options.device], killed_at, lambda: shards(fs, f"{root}/out")
        )
        seconds, most = seconds + time.perf_counter() - start, max(most, files)
        made = shards(fs, f"{root}/out") - done
        print(f"exit code {code}, {made} shards after {done}; memory at a quarter of the run, at its end, at most: "
              f"{memory[len(memory) // 4]}, {memory[-1]}, {max(memory)} MB")  # fmt: skip
    speed = options.images / seconds
    print(
        f"{options.images} images of {options.size}x{options.size} in {seconds:.0f} s with three kills: {speed:.0f}/s"
    )
    print(f"open files and sockets: at most {most}; each image once: {done_once(fs, f'{root}/out', options.images)}")
    for machines in MACHINES:
        print(f"{MILLIONS} images on {machines} such machine(s): {MILLIONS / speed / machines / 3600:.1f} h")


if __name__ == "__main__":
    main()
