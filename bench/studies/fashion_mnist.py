"""Train the network that batch, layer and weight normalisation were invented for, on Fashion-MNIST.

{affine, normalisation, ReLU} x (depth - 1), affine, softmax cross-entropy; gradient descent with
momentum, its rate falling linearly to zero. At the end a table: accuracy on the test images,
seconds per epoch, and one training step timed beside the same step in plain NumPy.

    python bench/studies/fashion_mnist.py --quick
    python bench/studies/fashion_mnist.py --norm batch layer weight none --epochs 5
"""

import argparse
import gzip
import json
import math
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import nn
import numpy as np

import fastnorm as fn

SUBSET = Path(__file__).with_name("data") / "fashion_mnist_subset.npz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
NORMS = ("batch", "layer", "weight", "none")


# ---- Data ----------------------------------------------------------------------------------------


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


# ---- Training ------------------------------------------------------------------------------------


class Progress:
    """A bar on stderr; where that is no terminal, a line per epoch."""

    def __init__(self, steps):
        self.steps = steps
        self.terminal = sys.stderr.isatty()
        self.shown = 0.0

    def step(self, label, done):
        if self.terminal and time.monotonic() - self.shown > 0.1:
            self.shown = time.monotonic()
            bar = ("#" * (30 * done // self.steps)).ljust(30, ".")
            sys.stderr.write(f"\r{label} [{bar}] {done}/{self.steps} steps")
            sys.stderr.flush()

    def epoch(self, text):
        sys.stderr.write(f"\r{text}\033[K\n" if self.terminal else f"{text}\n")
        sys.stderr.flush()


class NumPy:
    """`fastnorm.reference` as plain NumPy code would use it: results are allocated, not copied."""

    def __getattr__(self, name):
        function = getattr(fn.reference, name)
        return lambda *args, out=None, **options: function(*args, **options)


class Trainer:
    """A network with its optimiser."""

    def __init__(self, norm, sizes, rng, functions=None):
        self.network = nn.Sequential(nn.normalised_network(norm, sizes, rng), functions)
        self.optimiser = nn.SGD(self.network.layers)

    def step(self, x, labels, lr):
        """One training step; return the loss before it."""
        scores = self.network.forward(x)
        loss, dscores = nn.softmax_cross_entropy(scores, labels)
        self.network.backward(dscores, input_gradient=False)
        self.optimiser.step(lr)
        return loss

    def accuracy(self, x, labels, batch_size=1000):
        right = 0
        for i in range(0, len(x), batch_size):
            scores = self.network.forward(x[i : i + batch_size], training=False)
            right += np.count_nonzero(scores.argmax(axis=1) == labels[i : i + batch_size])
        return right / len(x)


def train(norm, sizes, data, epochs, batch_size, lr, seed):
    """Train a network; return its losses, its accuracy after each epoch, seconds per epoch."""
    x, labels, x_test, labels_test = data
    rng = np.random.default_rng(seed)
    trainer = Trainer(norm, sizes, rng)
    per_epoch = len(x) // batch_size  # an incomplete batch at the end is left out
    progress = Progress(per_epoch)
    losses, accuracies, seconds = [], [], 0.0
    for epoch in range(epochs):
        label = f"{norm}: epoch {epoch + 1}/{epochs}"
        order = rng.permutation(len(x))
        start = time.perf_counter()
        for i in range(per_epoch):
            batch = order[i * batch_size : (i + 1) * batch_size]
            rate = lr * (1 - len(losses) / (epochs * per_epoch))
            losses.append(trainer.step(x[batch], labels[batch], rate))
            progress.step(label, i + 1)
        seconds += time.perf_counter() - start
        accuracies.append(trainer.accuracy(x_test, labels_test))
        loss = np.mean(losses[-per_epoch:])
        progress.epoch(f"{label}, loss {loss:.3f}, test accuracy {accuracies[-1]:.4f}")
    return losses, accuracies, seconds / epochs


def time_step(norm, sizes, data, batch_size, lr, seed, repeats=30):
    """Median seconds of the same training step with fastnorm and with NumPy.

    First the one, then the other: the threads of NumPy's BLAS go on spinning for a tenth of a
    second after a product, and would take a core from whatever is timed then.
    """
    x, labels = data[0][:batch_size], data[1][:batch_size]
    medians = []
    for functions in (None, NumPy()):
        trainer, times = Trainer(norm, sizes, seed, functions), []
        time.sleep(0.3)
        for _ in range(repeats):
            start = time.perf_counter()
            trainer.step(x, labels, lr)
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times[2:])))  # the first two warm up
    return medians


# ---- Command line --------------------------------------------------------------------------------


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--norm", nargs="+", choices=NORMS, default=["batch"])
    p.add_argument("--depth", type=positive, default=5, help="affine layers (5)")
    p.add_argument("--width", type=positive, default=256, help="of the hidden layers (256)")
    p.add_argument("--epochs", type=positive, default=5)
    p.add_argument("--batch-size", type=positive, default=128)
    p.add_argument("--lr", type=float, default=0.05, help="learning rate at the start (0.05)")
    p.add_argument("--threads", type=positive, help="of fastnorm; NumPy's: OMP_NUM_THREADS")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--data", metavar="DIR", help="the four idx files, plain or gzipped")
    p.add_argument("--quick", action="store_true", help="use the subset in the repository")
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    args = p.parse_args(argv)
    if args.quick and args.data:
        p.error("--quick uses the subset in the repository: leave out --data")
    return args


def main(argv=None):
    args = parse(argv)
    try:
        arrays, source = load_subset() if args.quick else load(args.data)
    except (OSError, ValueError) as error:
        sys.exit(f"fashion_mnist.py: {error}")
    data = prepare(*arrays)
    if args.batch_size > len(data[0]):
        sys.exit(f"fashion_mnist.py: --batch-size exceeds the {len(data[0])} training images")
    if args.threads:
        fn.set_num_threads(args.threads)
    print(f"{source}; threads: {fn.get_num_threads()}", file=sys.stderr)

    sizes = [data[0].shape[1], *[args.width] * (args.depth - 1), 10]
    results = []
    for norm in args.norm:
        losses, accuracies, seconds = train(
            norm, sizes, data, args.epochs, args.batch_size, args.lr, args.seed
        )
        ours, numpys = time_step(norm, sizes, data, args.batch_size, args.lr, args.seed)
        results.append(
            {
                "norm": norm,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "test_accuracy": accuracies,
                "seconds_per_epoch": seconds,
                "seconds_per_step": ours,
                "seconds_per_step_numpy": numpys,
            }
        )
    if args.json:
        print(json.dumps({"data": source, "options": vars(args), "results": results}, indent=2))
    else:
        print(table(results))


def table(results):
    lines = ["norm    test accuracy  s/epoch  ms/step  ms/step in NumPy  ratio"]
    for r in results:
        ours, numpys = 1e3 * r["seconds_per_step"], 1e3 * r["seconds_per_step_numpy"]
        lines.append(
            f"{r['norm']:6}  {r['test_accuracy'][-1]:13.4f}  {r['seconds_per_epoch']:7.2f}"
            f"  {ours:7.2f}  {numpys:16.2f}  {numpys / ours:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
