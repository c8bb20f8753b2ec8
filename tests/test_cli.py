"""The console command: what it prints, and that it notices what is wrong."""

import json
import math
import os
import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest

import fastnorm as fn
from fastnorm import _cli
from fastnorm._registry import OPERATIONS, PASSES

COMMAND = ("-W", "error", "-c", "import sys; from fastnorm._cli import main; sys.exit(main())")
NAMES = [operation.name for operation in OPERATIONS]


@pytest.fixture
def command(run_python):
    """A function that runs ``fastnorm WORDS`` in a process of its own."""

    def run(*words, **options):
        return run_python(*COMMAND, *map(str, words), **options)

    return run


@pytest.fixture
def few_cases(monkeypatch):
    """A small registry, for what is not about the kernels."""
    operations = [replace(o, cases=(o.typical,), bench_cases=(o.typical,)) for o in OPERATIONS]
    monkeypatch.setattr(_cli, "OPERATIONS", operations)
    return operations


# ---- check ---------------------------------------------------------------------------------------


def test_whole_check(command):
    """All is right here: a line per operation, one that sums up, and status 0."""
    done = command("check", timeout=120)
    lines = done.stdout.splitlines()
    for name in NAMES:
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert " ok " in line
        assert "tolerance" in line
    assert lines[-1].startswith("All ")
    assert done.stderr == ""  # progress is for terminals


def test_check_says_what_it_leaves_out(few_cases, monkeypatch, capsys):
    _cli.main(["check"])
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr(_cli, "DTYPES", _cli.DTYPES[:3])
    _cli.main(["check"])
    assert "bfloat16 is left out: `pip install ml_dtypes`" in capsys.readouterr().out


def mutant(wrong):
    """A facade function that does its work and then something wrong."""

    def mutate(function):
        def mutated(*args, **kwargs):
            result = function(*args, **kwargs)
            first, *others = result if isinstance(result, tuple) else (result,)
            source = next((kwargs[name] for name in ("x", "v") if name in kwargs), None)
            source = args[0] if source is None else source
            first[...] = wrong(first, np.asarray(source))
            return (first, *others) if isinstance(result, tuple) else first

        return mutated

    return mutate


def without_last_row(result, source):
    values = result.copy()
    if values.ndim > 1:
        values.reshape(-1, values.shape[-1])[-1] = 0
    return values


def without_a_block(result, source):
    """What a thread that does nothing leaves of an array that its caller filled with NaN."""
    values = result.copy()
    values.reshape(-1)[values.size // 2 : -1] = np.nan
    return values


def its_input(result, source):
    return source if source.shape == result.shape else result


def a_little_off(result, source):
    return result * result.dtype.type(1 + 1e-5)


WRONG = (without_last_row, without_a_block, its_input, a_little_off)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
@pytest.mark.parametrize("pass_", PASSES)
def test_check_notices(operation, square, pass_, wrong, monkeypatch, capsys):
    """One wrong kernel among the right ones, with status 1 and the name of the culprit."""
    name = operation.function(pass_)
    monkeypatch.setattr(fn, name, mutant(wrong)(getattr(fn, name)))
    monkeypatch.setattr(_cli, "OPERATIONS", [replace(operation, cases=(operation.typical, square))])
    status = _cli.main(["check"])
    printed = capsys.readouterr().out
    assert status == 1
    assert f"{operation.name}" in printed
    assert name in printed
    assert printed.splitlines()[-1].startswith("FAILED: ")


def test_check_notices_a_missing_beta(few_cases, monkeypatch, capsys):
    layer_norm = fn.layer_norm
    monkeypatch.setattr(fn, "layer_norm", lambda **given: layer_norm(**given | {"beta": None}))
    assert _cli.main(["check"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: layer_norm (")


def test_check_notices_bits_that_depend_on_threads(few_cases, monkeypatch, capsys):
    weight_norm = fn.weight_norm

    def mutated(**given):
        w = weight_norm(**given)
        if fn.get_num_threads() > 1:
            w[...] = np.nextafter(w, 2)
        return w

    monkeypatch.setattr(fn, "weight_norm", mutated)
    with fn.num_threads(2):
        assert _cli.main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "unlike 1 thread" in printed
    assert "FAILED: weight_norm" in printed


def test_check_goes_on_after_an_exception(few_cases, monkeypatch, capsys):
    def broken(**given):
        raise RuntimeError("this kernel is broken")

    monkeypatch.setattr(fn, "batch_norm", broken)
    assert _cli.main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: this kernel is broken" in printed
    assert all(name in printed for name in NAMES)
    assert printed.splitlines()[-1].startswith("FAILED: batch_norm (")


# ---- bench ---------------------------------------------------------------------------------------


def test_bench(command, tmp_path):
    done = command("bench", "--quick", "--only", "layer_norm", "--threads", 1, "--json", "b.json")
    rows = [line for line in done.stdout.splitlines() if line.startswith("layer_norm ")]
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["config"]["num_threads"] == 1
    assert len(written["results"]) == len(rows) > 0
    assert {row["pass"] for row in written["results"]} == set(PASSES)
    for row in written["results"]:
        assert row["operation"] == "layer_norm"
        assert min(row["reference_ms"], row["fastnorm_ms"], row["gb_per_s"]) > 0
        assert row["speedup"] == pytest.approx(row["reference_ms"] / row["fastnorm_ms"])
        assert row["error"] < 1e-5
    assert done.stderr == ""


def test_bench_times_all_operations(few_cases, capsys):
    assert _cli.main(["bench", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for operation in few_cases:
        rows = [line.split() for line in lines if line.startswith(f"{operation.name} ")]
        assert [row[1] for row in rows] == list(PASSES)


def test_bench_is_summed_up(few_cases, capsys):
    _cli.main(["bench", "--quick", "--json", os.devnull])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith(tuple(o.name for o in few_cases))]
    mean = math.prod(float(row[-3].removesuffix("x")) for row in rows) ** (1 / len(rows))
    said, _, rest = lines[-1].partition(" ")
    assert float(said) == pytest.approx(mean, rel=0.1, abs=0.1)  # of rounded numbers
    assert rest == f"times as fast as the reference (geometric mean of {len(rows)} passes)."


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.01234, "0.0123"), (1.899, "1.90"), (20.04, "20.0"), (617.6, "618"), (12345.6, "12346")],
)
def test_figures(value, printed):
    assert _cli.figures(value) == printed


def test_times_are_taken_in_turn(monkeypatch):
    times = iter([3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(_cli, "least_time", lambda call, seconds: next(times))
    assert _cli.least_times([None, None], 1) == [2.0, 1.0]


def test_every_operation_has_a_quick_shape():
    for operation in OPERATIONS:
        assert any(prod(case.shape) <= 2**19 for case in operation.bench_cases)


# ---- the rest ------------------------------------------------------------------------------------


def test_info(command):
    printed = command("info").stdout
    assert fn.__version__ in printed
    assert fn.show_config(mode="dicts")["isa"] in printed


def test_version(command):
    assert command("--version").stdout == f"fastnorm {fn.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [(), ("nonsense",), ("bench", "--only", "nonsense"), ("bench", "--threads", 0)],
    ids=str,
)
def test_wrong_words(command, words):
    done = command(*words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fastnorm")


def test_progress_is_for_terminals(few_cases, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _cli.main(["check"])
    captured = capsys.readouterr()
    assert "layer_norm: case 1 of 1" in captured.err
    assert captured.err.endswith("\r\x1b[K")
    assert "\x1b" not in captured.out


def test_the_installed_command():
    """The entry point is what the tests above call."""
    from importlib.metadata import entry_points

    (point,) = entry_points(group="console_scripts", name="fastnorm")
    assert point.load() is _cli.main
