"""The Fashion-MNIST study: reading the data, the small parts of nn.py, and a quick run."""

import gzip
import importlib
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import fastnorm as fn
from fastnorm.testing import numerical_gradient

STUDIES = Path(__file__).parents[1] / "bench" / "studies"
FILES = {
    "train-images-idx3-ubyte": (6, 28, 28),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (4, 28, 28),
    "t10k-labels-idx1-ubyte": (4,),
}


@pytest.fixture(scope="module", name="study")
def import_study():
    sys.path.insert(0, str(STUDIES))
    try:
        yield importlib.import_module("fashion_mnist")
    finally:
        sys.path.remove(str(STUDIES))


# ---- idx files -----------------------------------------------------------------------------------


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture(params=["", ".gz"], ids=["plain", "gzip"])
def directory(request, tmp_path, rng):
    """A directory with the four files, and what they hold."""
    pack = gzip.compress if request.param else bytes
    arrays = []
    for name, shape in FILES.items():
        array = rng.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        (tmp_path / (name + request.param)).write_bytes(pack(idx(array)))
        arrays.append(array)
    return tmp_path, arrays


def test_directory(study, directory):
    path, arrays = directory
    for got, expected in zip(study.read_directory(path), arrays, strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


def test_directory_from_the_environment(study, directory, monkeypatch):
    path, arrays = directory
    monkeypatch.setenv("FASHION_MNIST_DIR", str(path))
    got, source = study.load()
    np.testing.assert_array_equal(got[0], arrays[0])
    assert str(path) in source
    with pytest.raises(FileNotFoundError):  # what is given goes before the environment
        study.load(path / "nowhere")


def test_subset_where_there_is_no_data(study, monkeypatch):
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(study, "DEBIAN", Path("nowhere"))
    (images, *_), source = study.load()
    assert len(images) == 4000
    assert "subset" in source


@pytest.mark.parametrize("name", FILES)
def test_missing_file(study, directory, name):
    path, _ = directory
    for file in path.glob(name + "*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\[.gz\] is missing"):
        study.read_directory(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "no idx file"),
        (lambda data: b"<html>", "no idx file"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "no idx file"),  # of float32
        (lambda data: data[:9], "the header ends after 9 bytes of 16"),
        (lambda data: data[:-1], "needs 4704 bytes, 4703 follow"),
        (lambda data: data + b"\0", "needs 4704 bytes, 4705 follow"),
        (lambda data: gzip.compress(data)[:-20], "corrupt gzip file"),
        (lambda data: gzip.compress(data)[:9], "corrupt gzip file"),
        (lambda data: gzip.compress(data)[:20] + b"\xff" * 100, "corrupt gzip file"),
    ],
    ids=[
        *("empty", "html", "type", "short-header", "short", "long"),
        *("cut-gzip", "cut-gzip-header", "spoilt-gzip"),
    ],
)
def test_corrupt_file(study, tmp_path, rng, change, message):
    data = idx(rng.integers(0, 256, (6, 28, 28), np.uint8))
    path = tmp_path / "images"
    path.write_bytes(data)
    assert study.read_idx(path).shape == (6, 28, 28)
    path.write_bytes(change(data))
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        study.read_idx(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(5, np.uint8), "5 labels for images of shape"),
        ("train-labels-idx1-ubyte", np.full(6, 10, np.uint8), "the labels must be 0 to 9"),
        ("t10k-labels-idx1-ubyte", np.zeros((4, 1), np.uint8), "1 dimensions are expected, got 2"),
        ("t10k-images-idx3-ubyte", np.zeros((4, 32, 32), np.uint8), "4 labels for images"),
    ],
    ids=["count", "label", "dimensions", "size"],
)
def test_files_that_do_not_fit(study, directory, name, array, message):
    path, _ = directory
    (path / name).write_bytes(idx(array))  # plain goes before gzipped
    with pytest.raises(ValueError, match=message):
        study.read_directory(path)


def test_subset(study):
    (images, labels, test_images, test_labels), _ = study.load_subset()
    assert images.shape == (4000, 28, 28)
    assert test_images.shape == (1000, 28, 28)
    assert images.dtype == test_images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 400))
    np.testing.assert_array_equal(np.bincount(test_labels), np.full(10, 100))
    # the mean and deviation of the whole data set's training pixels are 72.9 and 90.0
    assert images.mean() == pytest.approx(72.9, abs=2)
    assert images.std() == pytest.approx(90.0, abs=2)
    train = {image.tobytes() for image in images}
    assert not any(image.tobytes() in train for image in test_images)


def test_prepare(study):
    x, labels, x_test, _ = study.prepare(*study.load_subset()[0])
    assert x.shape == (4000, 784)
    assert x.dtype == x_test.dtype == np.float32
    assert labels.dtype == np.intp
    assert x.mean() == pytest.approx(0, abs=1e-4)
    assert x.std() == pytest.approx(1, abs=1e-4)


# ---- nn.py ---------------------------------------------------------------------------------------


def test_softmax_cross_entropy(study, rng):
    scores, labels = rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    loss, dscores = study.nn.softmax_cross_entropy(scores, labels)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(5), labels]).mean(), rel=1e-12)
    expected = numerical_gradient(lambda s: study.nn.softmax_cross_entropy(s, labels)[0], scores)
    np.testing.assert_allclose(dscores, expected, rtol=1e-7, atol=1e-9)
    # far apart and far from zero: no overflow, and the gradient keeps its dtype
    loss, dscores = study.nn.softmax_cross_entropy(
        np.array([[1e4, -1e4]], np.float32), np.array([1])
    )
    assert loss == 2e4
    np.testing.assert_array_equal(dscores, np.array([[1, -1]], np.float32), strict=True)


def test_sgd(study):
    layer = fn.layers.LayerNorm(1, dtype=np.float64)
    optimiser = study.nn.SGD([layer], momentum=0.5)
    layer.grads.update(gamma=np.array([2.0]), beta=np.array([0.0]))
    gamma = layer.params["gamma"]
    for expected in (0.8, 0.5, 0.15):  # velocities -0.2, -0.3, -0.35
        optimiser.step(0.1)
        np.testing.assert_allclose(gamma, [expected], rtol=1e-12)
    assert layer.params["gamma"] is gamma


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
def test_network(study, norm, rng):
    sizes = [12, 8, 8, 10]
    network = study.nn.Sequential(study.nn.normalised_network(norm, sizes, 0))
    kinds = [type(layer).__name__ for layer in network.layers]
    affine = "WeightNormAffine" if norm == "weight" else "Affine"
    between = {"batch": ["BatchNorm"], "layer": ["LayerNorm"]}.get(norm, [])
    assert kinds == [affine, *between, "ReLU"] * 2 + [affine]
    x, labels = rng.normal(size=(6, 12)).astype(np.float32), np.arange(6)
    scores = network.forward(x)
    loss, dscores = study.nn.softmax_cross_entropy(scores, labels)
    assert loss == pytest.approx(math.log(10), abs=0.1)
    assert network.backward(dscores).shape == x.shape
    assert f"{len(kinds) - 1}.bias" in network.state_dict()


def test_unknown_norm(study):
    with pytest.raises(ValueError, match="norm must be"):
        study.nn.normalised_network("group", [4, 3, 2], 0)


def test_numpy_and_fastnorm_take_the_same_steps(study, rng):
    x, labels = rng.normal(size=(32, 784)).astype(np.float32), rng.integers(0, 10, 32)
    trainers = [study.Trainer("batch", [784, 16, 16, 10], 0, f) for f in (None, study.NumPy())]
    assert trainers[1].network.layers[0].functions is not fn
    losses = [[t.step(x, labels, 0.05) for _ in range(3)] for t in trainers]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0][2] < losses[0][0]


def test_accuracy_is_that_of_inference(study, rng):
    x, labels = rng.normal(size=(50, 784)).astype(np.float32), rng.integers(0, 10, 50)
    trainer = study.Trainer("batch", [784, 16, 10], 0)
    for _ in range(20):
        trainer.step(x, labels, 0.05)
    before = trainer.network.state_dict()
    accuracy = trainer.accuracy(x, labels)
    assert 0.5 < accuracy <= 1
    assert accuracy == trainer.accuracy(x, labels, batch_size=7)
    for key, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_time_step_times_both(study, rng, monkeypatch):
    used = set()

    class Recorder(study.NumPy):
        def __getattr__(self, name):
            used.add(name)
            return super().__getattr__(name)

    monkeypatch.setattr(study, "NumPy", Recorder)
    data = (rng.normal(size=(8, 784)).astype(np.float32), rng.integers(0, 10, 8))
    ours, numpys = study.time_step("batch", [784, 4, 10], data, 8, 0.05, seed=0, repeats=4)
    assert ours > 0
    assert numpys > 0
    operations = ("affine", "batch_norm")
    expected = {f"{op}_{pass_}" for op in operations for pass_ in ("forward", "backward")}
    assert used == expected | {"affine"}  # of the first layer only the parameters' gradients


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """The results of quick runs by their options: nothing yet."""
    return {}


def run_quick(quick, run_python, *options):
    if options not in quick:
        command = ("-W", "error", str(STUDIES / "fashion_mnist.py"), "--quick", "--json")
        # one thread: several would wait for each other where other processes keep the cores busy
        quick[options] = run_python(*command, *options, timeout=300, OMP_NUM_THREADS=1)
    return json.loads(quick[options].stdout), quick[options].stderr


def test_batch_norm_learns(quick, run_python):
    output, progress = run_quick(quick, run_python)
    assert "subset" in output["data"]
    (result,) = output["results"]
    assert result["norm"] == "batch"
    assert result["first_loss"] == pytest.approx(math.log(10), abs=0.05)
    assert result["last_loss"] < 0.5
    assert len(result["test_accuracy"]) == 5
    assert result["test_accuracy"][-1] >= 0.8  # 0.84 measured, 0.1 is chance
    for key in ("seconds_per_epoch", "seconds_per_step", "seconds_per_step_numpy"):
        assert 0 < result[key] < 60
    assert "batch: epoch 5/5" in progress
    assert "\r" not in progress  # no terminal, no bar


def test_other_norms_learn(quick, run_python):
    options = ("--norm", "layer", "weight", "none", "--width", "64", "--epochs", "3")
    output, _ = run_quick(quick, run_python, *options)
    assert [r["norm"] for r in output["results"]] == ["layer", "weight", "none"]
    for result in output["results"]:
        assert result["first_loss"] == pytest.approx(math.log(10), abs=0.05)
        assert result["test_accuracy"][-1] >= 0.65  # 0.1 is chance


def test_seeds(quick, run_python):
    """The same seed trains the same network, bit for bit; another seed another one."""
    small = ("--width", "32", "--depth", "3", "--epochs", "1")
    first = run_quick(quick, run_python, *small, "--seed", "1")
    again = run_quick({}, run_python, *small, "--seed", "1")
    other = run_quick(quick, run_python, *small, "--seed", "2")
    keys = ("first_loss", "last_loss", "test_accuracy")
    first, again, other = (
        [output["results"][0][key] for key in keys] for output, _ in (first, again, other)
    )
    assert first == again
    assert first != other


def test_table_and_directory(run_python, directory):
    path, _ = directory
    command = [str(STUDIES / "fashion_mnist.py"), "--data", str(path)]
    small = ["--width", "8", "--depth", "2", "--epochs", "1", "--threads", "1"]
    done = run_python("-W", "error", *command, *small, "--batch-size", "3")
    header, row = done.stdout.splitlines()
    assert header.split()[:3] == ["norm", "test", "accuracy"]
    assert row.split()[0] == "batch"
    assert len(row.split()) == 6
    assert str(path) in done.stderr
    assert "threads: 1" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "nowhere"), "train-images-idx3-ubyte[.gz] is missing"),
        (("--quick", "--data", "nowhere"), "leave out --data"),
        (("--quick", "--batch-size", "5000"), "exceeds the 4000 training images"),
        (("--quick", "--norm", "group"), "invalid choice"),
        (("--quick", "--depth", "0"), "must be 1 or more"),
    ],
    ids=["data", "quick-and-data", "batch-size", "norm", "depth"],
)
def test_errors_of_the_command_line(run_python, options, message):
    done = run_python(str(STUDIES / "fashion_mnist.py"), *options, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
