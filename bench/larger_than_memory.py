"""Normalise a file that does not fit into memory, beside a copy of the same bytes.

Batch norm over the rows of a .npy file in two passes: one for the statistics of each column, one
that writes the normalised rows into another file. Chunks are mapped one at a time, so that neither
memory nor address space limits the file: --limit shows it.

    python bench/larger_than_memory.py --gigabytes 4 --limit 1
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastnorm as fn

CHANNELS = 256
CHUNK = 16 * 2**20  # bytes
GIGABYTE = 2**30


def header(path):
    """Shape and dtype of a .npy file in C order, and where its data begin."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, dtype, file.tell()


def chunks(path, mode="r", label=None):
    """Maps of the rows of a .npy file, one chunk after another; a label shows the progress."""
    shape, dtype, offset = header(path)
    row = dtype.itemsize * int(np.prod(shape[1:]))
    rows = max(CHUNK // row, 1)
    begin = time.perf_counter()
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        yield np.memmap(path, dtype, mode, offset + start * row, part)
        if label and sys.stderr.isatty():
            done = (start + part[0]) / shape[0]
            speed = (start + part[0]) * row / (time.perf_counter() - begin) / 1e6
            sys.stderr.write(f"\r{label}: {done:4.0%}, {speed:.0f} MB/s \033[K")
    if label and sys.stderr.isatty():
        sys.stderr.write("\n")


def statistics(path):
    """The moments of all columns, in one pass."""
    moments = fn.Moments(header(path)[0][1])
    for x in chunks(path, label="statistics"):
        moments.update(x)
    return moments


def normalise(path, out, moments):
    """The normalised rows, in another."""
    mean, var = moments.mean, moments.var()
    for x, y in zip(chunks(path, label="normalising"), chunks(out, "r+"), strict=True):
        fn.batch_norm(x, mean, var, out=y)


def create(path, shape, dtype=np.float32):
    """An empty file for an array, whose values are zeros until they are written."""
    with open(path, "wb") as file:
        described = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype))
        np.lib.format.write_array_header_1_0(file, described | {"shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def fill(path):
    """Values of another mean and deviation in each chunk; returns their exact moments by chunk."""
    block = np.random.default_rng(0).standard_normal((CHUNK // 4 // CHANNELS, CHANNELS), np.float32)
    parts = []
    for i, x in enumerate(chunks(path, "r+", "writing the file")):
        np.add(block[: len(x)], 100 + i % 7, out=x)
        parts.append((len(x), i % 7))
    return block, parts


def copy(path, out):
    """The same bytes by the same maps, and nothing else."""
    for x, y in zip(chunks(path), chunks(out, "r+"), strict=True):
        np.copyto(y, x)


def read_and_write(path, out):
    """The same bytes without maps."""
    with open(path, "rb", buffering=0) as source, open(out, "r+b", buffering=0) as target:
        while data := source.read(CHUNK):
            target.write(data)


def to_disk(*paths):
    """Write what the system holds of these files, and let it forget them."""
    for path in paths:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function, path, out=None, *args):
    """Seconds until the result is on the disk, and what the function returns."""
    if out is not None:
        out.unlink(missing_ok=True)
        create(out, header(path)[0])
        args = (out, *args)
    to_disk(path)
    start = time.perf_counter()
    result = function(path, *args)
    if out is not None:
        to_disk(out)
    return time.perf_counter() - start, result


def check(out, block, parts, moments):
    """Against NumPy in float64, in a few chunks of the file."""
    count = sum(n for n, _ in parts)
    mean = sum(n * (block[:n].mean(axis=0, dtype=np.float64) + s) for n, s in parts) / count
    assert np.allclose(moments.mean, mean + 100, rtol=1e-7)
    for i, y in enumerate(chunks(out)):
        if i % max(len(parts) // 5, 1) == 0:
            rows = slice(0, min(len(y), 1000))
            x = (block[rows] + np.float32(100 + i % 7)).astype(np.float64)
            expected = (x - moments.mean) / np.sqrt(moments.var() + 1e-5)
            assert np.abs(y[rows] - expected).max() < 1e-5


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--gigabytes", type=float, default=1.0, help="of the file, in float32")
    p.add_argument("--limit", type=float, help="gigabytes of address space that it may take")
    p.add_argument("--folder", help="for two files of this size; default: a temporary one")
    args = p.parse_args(argv)
    if args.limit:
        resource.setrlimit(resource.RLIMIT_AS, (int(args.limit * GIGABYTE),) * 2)
    shape = (int(args.gigabytes * GIGABYTE) // 4 // CHANNELS, CHANNELS)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, out = Path(folder) / "x.npy", Path(folder) / "y.npy"
        create(path, shape)
        block, parts = fill(path)
        to_disk(path)
        seconds = {}
        for _ in range(2):  # the second time counts: a virtual disk may first have to find room
            seconds["read and write"], _ = timed(read_and_write, path, out)
            seconds["copy by maps"], _ = timed(copy, path, out)
            seconds["statistics"], moments = timed(statistics, path)
            seconds["normalising"], _ = timed(normalise, path, out, moments)
        check(out, block, parts, moments)
    size = args.gigabytes * GIGABYTE
    for name, time_ in seconds.items():
        print(f"{name:17} {time_:6.2f} s  {size / time_ / 1e9:5.2f} GB/s of the array")


if __name__ == "__main__":
    main()
