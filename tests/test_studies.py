"""Each study from its command line to its output, on a few images."""

import importlib
import json

import data_parallel
import dataset
import nn
import numpy as np
import parallel_worker
import pytest
import speed_worker
import study

FIGURES = {
    "cnn": ["cnn.png"],
    "cnn_mistakes": ["cnn_mistakes.png"],
    "initial_scale": ["initial_scale.png"],
    "batch_size": ["batch_size.png"],
    "weight_norm": ["weight_norm_small.png", "weight_norm.png"],
    "training_speed": ["training_speed.png"],
    "data_parallel": ["data_parallel.png"],
}


@pytest.fixture
def few_images(monkeypatch):
    """Takes the subset's place: 30 training images and 10 test images of each class."""
    (x, labels, x_test, labels_test), _ = dataset.load_subset()

    def of_each_class(labels, count):
        return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))

    train, test = of_each_class(labels, 30), of_each_class(labels_test, 10)
    arrays = x[train], labels[train], x_test[test], labels_test[test]
    monkeypatch.setattr(dataset, "load_subset", lambda: (arrays, "a few images"))


@pytest.fixture
def run(tmp_path, capsys, few_images):
    """A function that makes a quick run; returns the JSON and the claims that held."""

    def run(name, *options, figures=True):
        module = importlib.import_module(name)
        path = tmp_path / "results.json"
        drawn = ["--figures", str(tmp_path)] if figures else []
        assert module.main(["--quick", "--json", str(path), *drawn, *options]) == 0
        output = json.loads(path.read_text())
        assert capsys.readouterr().out.lower().count("held  ") == len(output["claims"])
        assert output["study"] == module.__doc__.splitlines()[0]
        assert all(claim["evidence"] for claim in output["claims"])
        return output, {c["claim"] for c in output["claims"] if c["held"]}

    return run


@pytest.mark.parametrize("name", FIGURES)
def test_figures(run, name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    if name == "training_speed":
        worker = {"batch": 10, "losses": [1.0, 2.0], "seconds": 0.1, "steps": 3}
        monkeypatch.setattr("training_speed.run_worker", lambda *case: worker)
    if name == "data_parallel":
        in_this_process(monkeypatch)
    output, _ = run(name)
    assert output["figures"] == FIGURES[name]
    for picture in FIGURES[name]:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_cnn(run):
    output, _ = run("cnn", figures=False)
    assert output["data"] == "a few images"
    runs = output["results"]["runs"]
    assert tuple(runs) == nn.NORMS
    for result in runs.values():
        assert len(result["losses"]) == 2 * 3
        assert len(result["test_accuracy"]) == len(result["seconds"]) == 2
        assert result["losses"][-1] < result["losses"][0]


def test_cnn_mistakes(run):
    output, held = run("cnn_mistakes", figures=False)
    assert "It has the same accuracy after every epoch." in held
    assert any("start as the identity" in claim for claim in held)
    assert any("give exactly 0.1" in claim for claim in held)
    accuracy = output["results"]["mistakes"]
    assert accuracy["labels off by one in the test"] < accuracy["none"]


def test_initial_scale(run):
    output, held = run("initial_scale", figures=False)
    results = output["results"]
    assert results["scales"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    for norm, rows in results["test"].items():
        assert np.shape(rows) == np.shape(results["train"][norm]) == (5, 1)
    assert any("it stays at chance" in claim for claim in held)


def test_batch_size(run):
    output, _ = run("batch_size", figures=False)
    results = output["results"]
    for norm in ("layer", "none"):  # nothing that statistics would change
        np.testing.assert_array_equal(results["exact"][norm], results["test"][norm])
    assert results["exact"]["batch"] != results["test"]["batch"]


def test_exact_statistics(rng):
    """They are those of what arrives at each layer, when the layers before have theirs."""
    import batch_size

    x = rng.normal(size=(50, 6))
    network = nn.Sequential(nn.normalised_network("batch", [6, 5, 4, 3], 0))
    network.forward(x.astype(np.float32)[:10])
    batch_size.set_statistics(network, x.astype(np.float32))
    first = network.layers[1].stats
    arrives = x @ network.layers[0].params["weight"]
    np.testing.assert_allclose(first["running_mean"], arrives.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(first["running_var"], arrives.var(axis=0), rtol=1e-5)
    whole = network.forward(x.astype(np.float32), training=True).copy()
    alone = network.forward(x.astype(np.float32), training=False)
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_weight_norm(run):
    output, _ = run("weight_norm", figures=False)
    small = [
        c for c in output["claims"] if c["claim"].startswith(("The grad", "So v", "With", "From"))
    ]
    assert [claim["held"] for claim in small] == [True] * 7
    trained = output["results"]["training"]
    for norm in ("none", "weight", "batch"):
        assert np.shape(trained["loss"][norm]) == np.shape(trained["test"][norm]) == (2, 1)
        assert np.shape(trained["by_rate"][norm]) == (6, 1)


def test_condition(rng):
    """At a solution, the Hessian in v and g is what central differences say."""
    import weight_norm

    h, w = weight_norm.hessian(), rng.normal(size=weight_norm.INPUTS)

    def loss(vg):
        *v, g = vg
        error = g * np.array(v) / np.linalg.norm(v) - w
        return 0.5 * error @ h @ error

    g = np.linalg.norm(w)
    at, step = np.array([*(w / 2), g]), 1e-4
    n = len(at)
    hessian = np.empty((n, n))
    for i, j in np.ndindex(n, n):
        a, b = step * np.eye(n)[i], step * np.eye(n)[j]
        rise = loss(at + a + b) - loss(at + a - b) - loss(at - a + b) + loss(at - a - b)
        hessian[i, j] = rise / (4 * step**2)
    eigenvalues = np.linalg.eigvalsh(hessian)
    expected = eigenvalues[-1] / eigenvalues[1]
    assert weight_norm.condition_in_v_and_g(w, 2) == pytest.approx(expected, rel=1e-4)


# ---- Training speed ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", speed_worker.NETWORKS)
def test_libraries_take_the_same_steps(network, monkeypatch):
    """Losses, over steps of which each depends on all gradients of those before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    libraries = ["fastnorm", "numpy"]
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        libraries.append("torch")
        if network == "cnn":
            libraries.append("torch-channels-last")
    losses = [speed_worker.measure(library, network, 0)["losses"] for library in libraries]
    for other in losses[1:]:
        np.testing.assert_allclose(losses[0], other, rtol=1e-4)
    assert losses[0][0] != losses[0][1]


def test_numpy_is_numpy(monkeypatch):
    """What is timed as NumPy calls the reference alone, and what is timed as fastnorm does not."""
    used = set()

    class Recorder(speed_worker.NumPy):
        def __getattr__(self, name):
            used.add(name)
            return super().__getattr__(name)

    monkeypatch.setattr(speed_worker, "NumPy", Recorder)
    speed_worker.measure("fastnorm", "mlp", 0)
    assert not used
    result = speed_worker.measure("numpy", "mlp", 0)
    assert result["seconds"] > 0
    operations = ("affine", "batch_norm")
    expected = {f"{op}_{pass_}" for op in operations for pass_ in ("forward", "backward")}
    assert used == expected | {"affine"}  # of the first layer only the parameters' gradients


def test_training_speed(run):
    """A real run, each case in its process."""
    output, held = run("training_speed", "--threads", "1", "--networks", "mlp", figures=False)
    libraries = [row["library"] for row in output["results"]]
    assert libraries[:2] == ["fastnorm", "numpy"]
    assert all(row["threads"] == 1 for row in output["results"])
    assert all(row["images_per_second"] > 0 for row in output["results"])
    assert any("all compute the same" in claim for claim in held)


def test_training_speed_without_torch(monkeypatch, capsys):
    import training_speed

    monkeypatch.setattr(training_speed.importlib.util, "find_spec", lambda name: None)
    libraries = {library for library, *_ in training_speed.cases(["cnn"], [1])}
    assert libraries == {"fastnorm", "numpy"}
    assert "PyTorch is not installed" in capsys.readouterr().err


# ---- Data-parallel training ----------------------------------------------------------------------


def in_this_process(monkeypatch):
    """In the place of mpiexec: one process, whose group is itself."""

    def run(processes, options):
        return parallel_worker.train(options, parallel_worker.Alone()) | {"bits": 1}

    monkeypatch.setattr(data_parallel, "run", run)
    monkeypatch.setattr(data_parallel, "mpiexec", lambda: "mpiexec")


def test_data_parallel(run, monkeypatch):
    in_this_process(monkeypatch)
    output, held = run("data_parallel", figures=False)
    assert sum("losses and running statistics are the single process's" in c for c in held) == 3
    for found in output["results"]["equality"].values():
        for differences in found.values():
            assert len(differences["loss"]) == len(differences["statistics"]) == 20
    assert set(output["results"]["speed"]) == {"128", "1024"}


OPTIONS = {
    "seed": 0, "quick": True, "data": None, "lr": 0.02, "activation": "relu", "accuracy": True,
    "keep_statistics": True, "images": 500, "batch": 30, "steps": 6, "dtype": "float64",
}  # fmt: skip


@pytest.mark.skipif(data_parallel.mpiexec() is None, reason="no mpi4py, or no mpiexec")
def test_processes_train_as_one():
    alone = data_parallel.run(0, OPTIONS | {"norm": "single"})
    together = data_parallel.run(3, OPTIONS | {"norm": "synchronised"}, timeout=60)
    apart = data_parallel.run(3, OPTIONS | {"norm": "local"}, timeout=60)
    assert together["bits"] == 1
    assert together["exchange"] > 0
    for name in ("loss", "statistics"):
        assert data_parallel.differences(together, alone)[name].max() < 1e-13
        assert data_parallel.differences(apart, alone)[name].max() > 1e-3
    assert together["accuracy"] == alone["accuracy"]


def test_data_parallel_without_mpi(monkeypatch, capsys):
    monkeypatch.setattr(data_parallel.importlib.util, "find_spec", lambda name: None)
    assert data_parallel.main(["--quick"]) == 0
    assert "nothing is measured" in capsys.readouterr().err


def test_tanh(rng):
    x, dy = rng.standard_normal((2, 5, 3))
    layer, step = parallel_worker.Tanh(), 1e-6
    layer.forward(x)
    dx = layer.backward(dy)
    exact = dy * (np.tanh(x + step) - np.tanh(x - step)) / (2 * step)
    np.testing.assert_allclose(dx, exact, atol=1e-8)


def test_nothing_is_written_unasked(few_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    importlib.import_module("initial_scale").main(["--quick"])
    assert not list(tmp_path.iterdir())
    assert study.claims_text([], True) in capsys.readouterr().out
