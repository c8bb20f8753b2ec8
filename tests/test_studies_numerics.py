"""The studies of agreement with the frameworks and of the backward pass."""

import json

import agreement
import backward_pass
import dataset
import frameworks
import numpy as np
import pytest

import fastnorm as fn

IMAGES = dataset.prepare(*dataset.load_subset()[0])[0]


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda c: f"{c.operation}-{c.label}")


# ---- Agreement -----------------------------------------------------------------------------------


@by_name(list(agreement.cases()))
def test_cases(case, rng):
    """All operations take them, and y, dx and the rest have the shapes that they must."""
    arguments = agreement.draw(case, IMAGES, rng)
    *arrays, dy = (a for a in arguments if isinstance(a, np.ndarray))
    assert {a.dtype for a in (*arrays, dy)} == {np.dtype(np.float32)}
    results = getattr(frameworks.fastnorm(), case.operation)(*arguments)
    expected = getattr(frameworks.truth(), case.operation)(*arguments)
    assert len(results) == len(case.results) == len(expected)
    for result, true, argument in zip(results, expected, [dy, *arrays], strict=True):
        assert result.shape == true.shape == argument.shape
        assert (result.dtype, true.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(result, true, rtol=1e-5, atol=1e-5 * np.abs(true).max())


def test_patches(rng):
    """They are the images' pixels, each patch in the channels of its place, in either layout."""
    image = np.arange(784, dtype=np.float32)[None]
    last = agreement.images_as(image, (1, 7, 7, 16), rng)
    first = agreement.images_as(image, (1, 16, 7, 7), rng)
    np.testing.assert_array_equal(first, last.transpose(0, 3, 1, 2))
    corner = image.reshape(28, 28)[4:8, 8:12]
    np.testing.assert_array_equal(last[0, 1, 2], corner.ravel())
    for shape in ((1, 28, 28, 1), (1, 1, 28, 28), (1, 784)):
        np.testing.assert_array_equal(agreement.images_as(image, shape, rng), image.reshape(shape))


ENGINES = """
import sys
sys.path.insert(0, {studies!r})
import frameworks, agreement, dataset, numpy as np
engine, truth = frameworks.{name}(), frameworks.truth()
images = dataset.prepare(*dataset.load_subset()[0])[0]
rng = np.random.default_rng(0)
for case in agreement.cases():
    arguments = agreement.draw(case, images, rng)
    ours, theirs = (getattr(e, case.operation)(*arguments) for e in (truth, engine))
    for name, a, b in zip(case.results, ours, theirs, strict=True):
        assert a.shape == b.shape and b.dtype == np.float32, (case, name, a.shape, b.shape)
        assert np.abs(a - b).max() < 1e-3 * np.abs(a).max(), (case, name)
"""


@pytest.mark.parametrize(("name", "package"), [("TensorFlow", "tensorflow"), ("PyTorch", "torch")])
def test_frameworks_compute_the_same(run_python, name, package):
    """In a process of its own: their imports warn, and start threads."""
    if not frameworks.installed(package):
        pytest.skip(f"{package} is not installed")
    studies = str(dataset.SUBSET.parents[1])
    run_python("-c", ENGINES.format(studies=studies, name=name), timeout=120)


def test_frameworks_that_are_missing(monkeypatch):
    monkeypatch.setattr(frameworks, "installed", lambda package: False)
    said = []
    assert list(frameworks.available(said.append)) == ["fastnorm"]
    assert said == [
        "TensorFlow: left out, it is not installed (pip install tensorflow)",
        "PyTorch: left out, it is not installed (pip install torch)",
    ]


class Coarse(frameworks.Functions):
    """A framework whose results are off by a thousandth, or exact: the test's to say."""

    def __init__(self, off):
        super().__init__(fn.reference, np.float64, "0")
        self.off = off

    def _both(self, *args, **options):
        return tuple(r * (1 + self.off) for r in super()._both(*args, **options))


def run(study, directory):
    """A quick run's JSON; the picture, where matplotlib is installed, is looked at."""
    path = directory / "results.json"
    assert study.main(["--quick", "--json", str(path), "--figures", str(directory)]) == 0
    output = json.loads(path.read_text())
    if frameworks.installed("matplotlib"):
        assert output["figures"] == [f"{study.__name__}.png"]
        picture = (directory / output["figures"][0]).read_bytes()
        assert picture.startswith(b"\x89PNG")
    return output


def run_agreement(monkeypatch, tmp_path, **others):
    def engines(say):
        return {"fastnorm": frameworks.fastnorm(), **others}

    monkeypatch.setattr(frameworks, "available", engines)
    return run(agreement, tmp_path)


def test_agreement(monkeypatch, tmp_path, capsys):
    output = run_agreement(monkeypatch, tmp_path, TensorFlow=Coarse(1e-3), PyTorch=Coarse(0))
    claims = {c["claim"]: c for c in output["claims"]}
    held = [c["held"] for c in output["claims"]]
    # far from TensorFlow, which is the one that is off; closer than it; further than the exact one
    assert held == [False, True, True, True, False, False]
    evidence = next(c["evidence"] for name, c in claims.items() if "norms: fastnorm" in name)
    assert evidence["rows"] == evidence["closer"]
    for row in output["results"]["rows"]:
        d = row["differences"]
        assert d["PyTorch - truth"] == [0, 0]
        assert 0 < d["fastnorm - truth"][0] <= d["fastnorm - truth"][1]
        assert d["fastnorm - PyTorch"] == d["fastnorm - truth"]
    assert "batch norm: images, channels last" in capsys.readouterr().out


def test_agreement_alone(monkeypatch, tmp_path):
    """Without a framework there is the error against the truth, and nothing to claim."""
    output = run_agreement(monkeypatch, tmp_path)
    assert output["claims"] == []
    assert all(list(r["differences"]) == ["fastnorm - truth"] for r in output["results"]["rows"])


# ---- Backward pass -------------------------------------------------------------------------------


def test_ways_agree(rng):
    """The three backward passes compute the same gradients."""
    arrays = backward_pass.draw(IMAGES, 16, "float64", rng)
    results = {w: backward_pass.backward(*f, *arrays)() for w, f in backward_pass.WAYS.items()}
    for way, gradients in results.items():
        for a, b in zip(gradients, results["staged"], strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=way)


def test_errors():
    truth = [np.array([1.0, -4.0]), np.array([2.0]), np.array([1.0])]
    gradients = [np.array([1.0, -3.0]), np.array([2.0]), np.array([1.5])]
    found = backward_pass.errors(gradients, truth)
    assert found["dx"] == {"mean": 0.125, "largest": 0.25}
    assert found["dgamma"] == {"mean": 0, "largest": 0}
    assert found["dbeta"] == {"mean": 0.5, "largest": 0.5}


def test_backward_pass(tmp_path, capsys):
    output = run(backward_pass, tmp_path)
    assert [(r["dtype"], r["batch"]) for r in output["results"]] == [
        ("float32", 16), ("float32", 256), ("float64", 16), ("float64", 256),
    ]  # fmt: skip
    for r in output["results"]:
        assert r["seconds"].keys() == {*backward_pass.WAYS, "fastnorm, 1 thread"}
        for way in backward_pass.WAYS:  # a wrong formula would be off by far more
            assert 0 <= r["errors"][way]["dx"]["largest"] < 50 * np.finfo(r["dtype"]).eps
    held = {c["claim"]: c["held"] for c in output["claims"]}
    assert len(held) == 7
    assert held["Their dx are equal to rounding: 16 eps of the largest element or less."]
    assert "float64, 256" in capsys.readouterr().out
