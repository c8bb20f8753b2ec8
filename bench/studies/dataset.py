"""Fashion-MNIST: its four files, or the subset that is kept here."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

SUBSET = Path(__file__).with_name("data") / "fashion_mnist_subset.npz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
CLASSES = 10


def read_idx(path):
    """The array of unsigned bytes in an idx file, plain or gzipped.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each of them
    as a big-endian 32-bit integer, the values.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupt gzip file ({error})") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: no idx file of unsigned bytes, it begins {data[:4].hex(' ')}")
    ndim = data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise ValueError(f"{path}: the header ends after {len(data)} bytes of {start}")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: shape {shape} needs {math.prod(shape)} bytes, {len(data) - start} follow"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_directory(directory):
    """Training images and labels, test images and labels from the four idx files."""
    directory = Path(directory)
    arrays = []
    for part in ("train", "t10k"):
        for kind, ndim in (("images-idx3", 3), ("labels-idx1", 1)):
            path = directory / f"{part}-{kind}-ubyte"
            if not path.exists():
                path = path.with_name(path.name + ".gz")
            if not path.exists():
                raise FileNotFoundError(f"{path.with_suffix('')}[.gz] is missing")
            array = read_idx(path)
            if array.ndim != ndim:
                raise ValueError(f"{path}: {ndim} dimensions are expected, got {array.ndim}")
            arrays.append(array)
        images, labels = arrays[-2:]
        if images.shape != (len(labels), 28, 28):
            raise ValueError(f"{path}: {len(labels)} labels for images of shape {images.shape}")
        if labels.size == 0 or labels.max() > 9:
            raise ValueError(f"{path}: the labels must be 0 to 9")
    return arrays


def load(directory=None):
    """The four arrays and where they are from.

    The directory is the one given, that of FASHION_MNIST_DIR, or Debian's; without any of them, the
    subset that is kept beside this file.
    """
    directory = directory or os.environ.get("FASHION_MNIST_DIR")
    if directory is None and DEBIAN.is_dir():
        directory = DEBIAN
    if directory is None:
        return load_subset()
    return read_directory(directory), f"Fashion-MNIST in {directory}"


def load_subset():
    with np.load(SUBSET) as file:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return [file[name] for name in names], "a subset of Fashion-MNIST (4000 + 1000 images)"


def prepare(train_images, train_labels, test_images, test_labels):
    """Images as rows of float32, standardised by the mean and deviation of all training pixels."""
    mean, std = train_images.mean(), train_images.std()
    x, x_test = (
        ((a.reshape(len(a), -1) - mean) / std).astype(np.float32)
        for a in (train_images, test_images)
    )
    return x, train_labels.astype(np.intp), x_test, test_labels.astype(np.intp)
