"""What the studies share: their data, claims and output; and quick runs of fashion_mnist.py."""

import gzip
import json
import math
import struct
import sys
from pathlib import Path

import dataset
import numpy as np
import pytest
import study

STUDIES = Path(__file__).parents[1] / "bench" / "studies"
FILES = {
    "train-images-idx3-ubyte": (6, 28, 28),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (4, 28, 28),
    "t10k-labels-idx1-ubyte": (4,),
}


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


def test_directory(directory):
    path, arrays = directory
    for got, expected in zip(dataset.read_directory(path), arrays, strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


def test_directory_from_the_environment(directory, monkeypatch):
    path, arrays = directory
    monkeypatch.setenv("FASHION_MNIST_DIR", str(path))
    got, source = dataset.load()
    np.testing.assert_array_equal(got[0], arrays[0])
    assert str(path) in source
    with pytest.raises(FileNotFoundError):  # what is given goes before the environment
        dataset.load(path / "nowhere")


def test_subset_where_there_is_no_data(monkeypatch):
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(dataset, "DEBIAN", Path("nowhere"))
    (images, *_), source = dataset.load()
    assert len(images) == 4000
    assert "subset" in source


@pytest.mark.parametrize("name", FILES)
def test_missing_file(directory, name):
    path, _ = directory
    for file in path.glob(name + "*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\[.gz\] is missing"):
        dataset.read_directory(path)


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
def test_corrupt_file(tmp_path, rng, change, message):
    data = idx(rng.integers(0, 256, (6, 28, 28), np.uint8))
    path = tmp_path / "images"
    path.write_bytes(data)
    assert dataset.read_idx(path).shape == (6, 28, 28)
    path.write_bytes(change(data))
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        dataset.read_idx(path)


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
def test_files_that_do_not_fit(directory, name, array, message):
    path, _ = directory
    (path / name).write_bytes(idx(array))  # plain goes before gzipped
    with pytest.raises(ValueError, match=message):
        dataset.read_directory(path)


def test_subset():
    (images, labels, test_images, test_labels), _ = dataset.load_subset()
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


def test_prepare():
    x, labels, x_test, _ = dataset.prepare(*dataset.load_subset()[0])
    assert x.shape == (4000, 784)
    assert x.dtype == x_test.dtype == np.float32
    assert labels.dtype == np.intp
    assert x.mean() == pytest.approx(0, abs=1e-4)
    assert x.std() == pytest.approx(1, abs=1e-4)


# ---- Claims and output ---------------------------------------------------------------------------


def results_of(capsys, *options, held=True):
    """Exit status, stdout and the JSON of a small study."""
    run = study.Study("A title.\n\nMore.", ["--json", "results.json", *options])
    run.claim("One is less than two.", held, one=np.float32(1), two=[np.int64(2)])
    run.figure("line", lambda figure, y: figure.subplots().plot(y), np.arange(3))
    status = run.finish({"values": np.arange(2.0)}, "the table")
    return status, capsys.readouterr().out, json.loads(Path("results.json").read_text())


@pytest.mark.parametrize(
    ("held", "options", "status"),
    [(True, (), 0), (False, (), 1), (True, ("--quick",), 0), (False, ("--quick",), 0)],
    ids=["held", "failed", "held-quick", "failed-quick"],
)
def test_claims(capsys, tmp_path, monkeypatch, held, options, status):
    monkeypatch.chdir(tmp_path)
    got, text, results = results_of(capsys, *options, held=held)
    assert got == status
    assert text.startswith("the table\n\nClaims")
    assert ("NOT HELD  One is less than two.\n            one 1; two [2]" in text) == (not held)
    assert results["claims"] == [
        {"claim": "One is less than two.", "held": held, "evidence": {"one": 1.0, "two": [2]}}
    ]
    assert results["study"] == "A title."
    assert results["results"] == {"values": [0.0, 1.0]}
    assert results["options"] == {"quick": bool(options), "threads": None, "seed": 0}
    assert results["figures"] == []


def test_json_to_stdout(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = study.Study("A title.", ["--json", "-"])
    assert run.finish({}, "the table") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["study"] == "A title."
    assert err == "the table\n"


def test_figures(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    _, _, results = results_of(capsys, "--figures", "new/pictures")
    assert results["figures"] == ["line.png"]
    assert (tmp_path / "new/pictures/line.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = study.Study("A title.", ["--figures", "pictures"])
    run.figure("line", None)
    assert run.finish({}, "the table") == 0
    assert "line.png: not drawn, no matplotlib" in capsys.readouterr().err
    assert not Path("pictures").exists()


def test_table():
    table = study.rows_text(("norm", "accuracy"), [("batch", 0.9), ("none", 0.25)])
    assert table.splitlines() == ["norm   accuracy", "batch       0.9", "none       0.25"]


def test_mean_and_spread():
    assert study.mean_spread([0.8, 0.9, 1.0], 2) == "0.90 ± 0.10"
    assert study.mean_spread([0.8]) == "0.800 ± 0.000"


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """The results of quick runs by their options: nothing yet."""
    return {}


def run_quick(quick, run_python, *options):
    if options not in quick:
        command = ("-W", "error", str(STUDIES / "fashion_mnist.py"), "--quick", "--json", "-")
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
    assert 0 < result["seconds_per_epoch"] < 60
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
    assert len(row.split()) == 3
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
