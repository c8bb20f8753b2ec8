"""bench/tables.py: what it makes of a JSON of pytest-benchmark."""

import tables


def row(name, group, least, params=None, **info):
    return {
        "name": f"{name}[x]",
        "group": group,
        "stats": {"min": least},
        "params": params or {},
        "extra_info": info,
    }


def made(*rows):
    return dict(tables.tables({"benchmarks": list(rows)}))


def test_by_pass():
    found = made(
        row("test_copies", "layer_norm inference 8x8, into out", 1.0, copies=1.234),
        row("test_copies", "layer_norm backward 8x8, into out", 1.0, copies=2.0),
        row("test_sizes", "layer norm, forward, 2^12", 1.0, copies=9.0),
    )
    assert found == {
        "Copies": "| operation, shape | inference | forward | backward |\n"
        "| --- | --- | --- | --- |\n"
        "| layer norm, 8x8, into out | 1.23 |  | 2.00 |"
    }


def test_awkward_shapes_are_beside_comfortable_ones():
    group = "batch_norm forward channels first, 3"
    (found,) = made(
        row("test_awkward", group, 1.0),
        row("test_awkward", group, 2.0, baseline="comfortable", speedup=0.5),
    ).values()
    assert found.splitlines()[2:] == ["| batch norm, channels first, 3 |  | 2.00 |  |"]


def test_threads_are_beside_one_another():
    group = "layer_norm forward 1x768"
    (found,) = made(
        row("test_too_small", group, 1.0),
        row("test_too_small", group, 1.0, baseline=1, speedup=0.98),
        row("test_too_small", group, 1.0, baseline=1, speedup=0.96),
    ).values()
    assert found.splitlines()[2] == "| layer norm, 1x768 |  | 0.98 / 0.96 |  |"


def test_by_library():
    group = "batch_norm forward 2x2"
    (found,) = made(
        row("test_operation", group, 8e-6, {"library": "reference"}),
        row("test_operation", group, 2e-6, {"library": "fastnorm"}),
    ).values()
    assert found.splitlines() == [
        "| call | reference, µs | fastnorm, µs | reference / fastnorm |",
        "| --- | --- | --- | --- |",
        "| batch norm forward 2x2 | 8 | 2 | 4.00 |",
    ]


def test_company():
    (found,) = made(
        row("test_alternating", "2x2x2", 1e-6, {"kind": "product"}),
        row("test_alternating", "2x2x2", 3e-6, {"kind": "both, 1 thread"}, of_parts=1.01),
    ).values()
    assert found.splitlines()[0] == "| shape | product, µs | both, 1 thread, µs |"
    assert found.splitlines()[2] == "| 2x2x2 | 1 | 3 (1.01) |"
