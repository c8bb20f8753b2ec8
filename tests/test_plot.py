"""bench/plot.py: what it reads from a JSON of pytest-benchmark, and that it draws."""

import json

import plot
import pytest


def row(view="layer norm", log2_elements=12, pass_="forward", library="fastnorm", copies=2.0):
    params = {"view": view, "log2_elements": log2_elements, "pass_": pass_, "library": library}
    return {
        "params": params,
        "stats": {"min": 2**log2_elements * 1e-9, "mean": 1.0},
        "extra_info": {"copies": copies},
    }


def data(*rows):
    return {"machine_info": {"last_cache": 2**25}, "benchmarks": list(rows)}


def test_curves():
    found = plot.curves(
        data(
            row(log2_elements=14),
            row(log2_elements=12, copies=4.0),
            row(library="reference", copies=9.0),
            row(pass_="backward"),
            {"params": None, "stats": {"min": 1.0}, "extra_info": {}},
            {"params": {"threads": 2}, "stats": {"min": 1.0}, "extra_info": {}},
        )
    )
    assert list(found) == [("layer norm", "forward"), ("layer norm", "backward")]
    forward = found["layer norm", "forward"]
    assert list(forward) == ["reference", "fastnorm"]  # no PyTorch, and in the order of drawing
    assert [(p.elements, p.copies) for p in forward["fastnorm"]] == [(4096, 4.0), (16384, 2.0)]
    assert forward["fastnorm"][0].ns_per_element == pytest.approx(1)


def test_no_rows():
    with pytest.raises(ValueError, match=r"no rows of bench/test_sizes\.py"):
        plot.curves(data({"params": None}))


def test_share():
    point = plot.Point(4096, 1e-6, 2.0)
    assert plot.share(point, "forward") == 50
    assert plot.share(point, "backward") == 75
    # x and y of 2²² elements fill 32 MiB; x, dy and dx do so sooner.
    assert plot.outgrows(2**25, "forward") == 2**22
    assert plot.outgrows(2**25, "backward") == pytest.approx(2**23 / 3)


@pytest.mark.parametrize(
    ("elements", "label"), [(512, "512"), (4096, "4 Ki"), (2**20, "1 Mi"), (2**25, "32 Mi")]
)
def test_size_label(elements, label):
    assert plot.size_label(elements) == label


@pytest.mark.parametrize("libraries", [("fastnorm",), ("fastnorm", "reference", "pytorch")])
def test_pictures(tmp_path, capsys, libraries):
    pytest.importorskip("matplotlib")
    rows = [
        row(log2_elements=k, pass_=pass_, library=library)
        for k in (12, 13)
        for pass_ in ("forward", "backward")
        for library in libraries
    ]
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(data(*rows)))
    plot.main([str(path), str(tmp_path / "new" / "plots")])
    paths = capsys.readouterr().out.split()
    assert [p.rpartition("/")[2] for p in paths] == ["time.png", "share.png"]
    for p in (tmp_path / "new" / "plots").iterdir():
        assert p.read_bytes().startswith(b"\x89PNG")
