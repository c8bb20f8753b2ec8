"""Draw what bench/test_sizes.py measured: two pictures, operations down and passes across.

    pip install ".[plot]"
    pytest bench/test_sizes.py --benchmark-only --benchmark-json=sizes.json
    python bench/plot.py sizes.json plots

``time.png`` is nanoseconds per element over the number of elements. ``share.png`` is the share of
the copy bandwidth: a call that reads and writes each array once, as fast as `numpy.copyto` moves
that many bytes, has 100 %. Libraries that the file does not have are left out.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PASSES = ("inference", "forward", "backward")

# Arrays of x's size that a pass reads and writes at least, beside the two of a copy.
FLOOR = {"inference": 1, "forward": 1, "backward": 1.5}

# Colours of Okabe and Ito, which the colour-blind can tell apart; the markers differ too.
LIBRARIES = {
    "reference": {"label": "NumPy reference", "color": "#777777", "marker": "s"},
    "pytorch": {"label": "PyTorch", "color": "#D55E00", "marker": "^"},
    "fastnorm": {"label": "fastnorm", "color": "#0072B2", "marker": "o"},
}
ITEMSIZE = 4  # float32


@dataclass(frozen=True, order=True)
class Point:
    """A row of the benchmark: the number of elements, and the least time of a call."""

    elements: int
    seconds: float
    copies: float

    @property
    def ns_per_element(self):
        return self.seconds * 1e9 / self.elements


def curves(data):
    """Points by (view, pass) and library, from a JSON of pytest-benchmark.

    Rows of other benchmarks are passed over; a file that has none of bench/test_sizes.py is a
    ValueError.
    """
    found = defaultdict(lambda: defaultdict(list))
    for row in data["benchmarks"]:
        params = row["params"] or {}
        if "log2_elements" in params:
            point = Point(
                2 ** params["log2_elements"], row["stats"]["min"], row["extra_info"]["copies"]
            )
            found[params["view"], params["pass_"]][params["library"]].append(point)
    if not found:
        raise ValueError("no rows of bench/test_sizes.py in this file")
    return {
        panel: {library: sorted(lines[library]) for library in LIBRARIES if library in lines}
        for panel, lines in found.items()
    }


def share(point, pass_):
    """Of the copy bandwidth, in percent."""
    return 100 * FLOOR[pass_] / point.copies


def outgrows(last_cache, pass_):
    """The number of elements from which the bytes of a pass are more than the last cache holds."""
    return last_cache / (2 * FLOOR[pass_] * ITEMSIZE)


def size_label(elements):
    """4096 as 4 Ki, 2²⁰ as 1 Mi."""
    for unit, name in ((2**20, "Mi"), (2**10, "Ki")):
        if elements >= unit:
            return f"{elements // unit} {name}"
    return str(elements)


# ---- drawing -------------------------------------------------------------------------------------


def draw(data, value_of, title, caption, log):
    """A figure of small multiples; ``value_of(point, pass_)`` is what goes up."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panels = curves(data)
    views = list(dict.fromkeys(view for view, _ in panels))
    passes = [p for p in PASSES if any(pass_ == p for _, pass_ in panels)]
    figure, grid = plt.subplots(
        len(views),
        len(passes),
        figsize=(3.3 * len(passes) + 0.6, 2.1 * len(views) + 1.3),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles = {}
    for row, view in zip(grid, views, strict=True):
        for axes, pass_ in zip(row, passes, strict=True):
            for library, points in panels.get((view, pass_), {}).items():
                style = LIBRARIES[library] | {"markersize": 3.5, "linewidth": 1.5}
                values = [value_of(point, pass_) for point in points]
                (line,) = axes.plot([point.elements for point in points], values, **style)
                handles[library] = line
            cache = data["machine_info"].get("last_cache")
            if cache:
                axes.axvline(outgrows(cache, pass_), color="#bbbbbb", linewidth=1, linestyle=":")
            axes.set_xscale("log", base=2)
            axes.set_xticks([2**k for k in range(12, 26, 4)])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size_label(int(x))))
            axes.minorticks_off()
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(bottom=0)
                axes.axhline(100, color="#333333", linewidth=0.8, linestyle="--")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
            axes.grid(color="#e6e6e6", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            if axes in grid[0]:
                axes.set_title(pass_, fontsize=10)
        row[0].set_ylabel(view, fontsize=10)
    figure.supxlabel("elements (float32)\n" + caption, fontsize=9)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    handles = [handles[library] for library in reversed(LIBRARIES) if library in handles]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    return figure


def draw_all(data, folder):
    """Write both pictures; returns their paths."""
    info = data["machine_info"]
    machine = f"{info.get('cpu', {}).get('brand_raw', 'unknown CPU')}, one thread"
    dotted = "dotted: from here on the arrays are larger than the last cache"
    figures = {
        "time": draw(
            data,
            lambda point, pass_: point.ns_per_element,
            "Nanoseconds per element",
            f"{machine}; {dotted}",
            log=True,
        ),
        "share": draw(
            data,
            share,
            "Share of the copy bandwidth",
            f"{machine}; {dotted}; dashed: numpy.copyto",
            log=False,
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=150)
    return paths


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw a JSON of bench/test_sizes.py.")
    parser.add_argument("json", type=Path, help="from pytest --benchmark-json")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args(argv)
    data = json.loads(arguments.json.read_text(encoding="utf-8"))

    import matplotlib

    matplotlib.use("agg")  # files, no windows
    for path in draw_all(data, arguments.folder):
        print(path)


if __name__ == "__main__":
    main()
