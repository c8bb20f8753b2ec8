"""Agreement with the frameworks: how far from each other, and from the truth.

Batch, layer and weight normalisation and the affine layer, forward and every gradient, by
fastnorm, by TensorFlow (Keras' layers and GradientTape) and by PyTorch, in float32, on batches of
Fashion-MNIST and of random numbers, channels last and channels first. The truth is the
specification in plain NumPy in float64, on the same float32 numbers. Mean and largest absolute
differences. A framework that is not installed is left out.
"""

import sys
from itertools import combinations
from typing import NamedTuple

import frameworks
import numpy as np
import plots
from study import Progress, Study, rows_text

OPERATIONS = ("batch_norm", "layer_norm", "weight_norm", "affine")
EPS = 1e-3  # Keras' default, given to all
BATCH = 128
REPORT = 4.4569155e-8  # the mean absolute difference to TensorFlow in the coursework report
ORDER = np.sqrt(10)  # "of the order of" reaches half an order of magnitude up


class Case(NamedTuple):
    """One operation on one kind of data in one layout."""

    operation: str
    label: str
    shape: tuple
    axes: tuple  # batch and weight norm: the channels'; layer norm: those normalised over
    real: bool  # the data is Fashion-MNIST's

    @property
    def results(self):
        return {
            "weight_norm": ("w", "dv", "dg"),
            "affine": ("y", "dx", "dweight", "dbias"),
        }.get(self.operation, ("y", "dx", "dgamma", "dbeta"))


def cases():
    """The images as they are; their 4 x 4 patches as 16 channels; random maps; rows of pixels."""
    image, patches, random, row = (28, 28, 1), (7, 7, 16), (14, 14, 32), (784,)

    def layouts(shape):
        yield "last", (BATCH, *shape), 3
        yield "first", (BATCH, shape[2], *shape[:2]), 1

    for data, shape in (("images", image), ("patches", patches), ("random", random)):
        for layout, full, channels in layouts(shape):
            label = f"{data}, channels {layout}"
            yield Case("batch_norm", label, full, (channels,), data != "random")
            if data != "patches":
                yield Case(
                    "layer_norm", f"{label}, over C, H, W", full, (1, 2, 3), data != "random"
                )
            if data != "images":
                yield Case("layer_norm", f"{label}, over C", full, (channels,), data != "random")
    for real, data in ((True, "rows of pixels"), (False, "random rows")):
        yield Case("batch_norm", data, (BATCH, *row), (1,), real)
        yield Case("layer_norm", data, (BATCH, *row), (1,), real)
        yield Case("affine", f"{data}, 784 to 256", (BATCH, *row), (), real)
        which = "gradient from pixels" if real else "random gradient"
        yield Case("weight_norm", f"784 x 256, {which}", (784, 256), (1,), real)
        yield Case("weight_norm", f"256 x 784, {which}", (256, 784), (0,), real)
    yield Case("weight_norm", "3 x 3 x 16 x 32, channels last", (3, 3, 16, 32), (3,), False)
    yield Case("weight_norm", "32 x 16 x 3 x 3, channels first", (32, 16, 3, 3), (0,), False)


# ---- Data ----------------------------------------------------------------------------------------


def images_as(images, shape, rng):
    """A batch of images in the shape of a case."""
    x = images[rng.permutation(len(images))[: shape[0]]]
    if len(shape) == 2:
        return x
    channels_last = shape[1] == shape[2]
    side, size = (shape[1], shape[3]) if channels_last else (shape[2], shape[1])
    patch = 28 // side
    x = x.reshape(-1, side, patch, side, patch).transpose(0, 1, 3, 2, 4)
    x = x.reshape(-1, side, side, size)
    return np.ascontiguousarray(x if channels_last else x.transpose(0, 3, 1, 2))


def draw(case, images, rng):
    """The arguments of an engine's method for the case: float32 arrays, and its options."""

    def normal(*shape, mean=0.0, std=1.0):
        return rng.normal(mean, std, shape).astype(np.float32)

    if case.operation == "weight_norm":
        (axis,), n = case.axes, case.shape[case.axes[0]]
        if not case.real:
            dw = normal(*case.shape)
        else:  # as an affine layer's backward pass gives it, for a mean over the batch
            x = images[rng.permutation(len(images))[:BATCH]]
            dw = x.T @ normal(BATCH, 256) / np.float32(BATCH)
            dw = np.ascontiguousarray(dw if axis == 1 else dw.T)
        return normal(*case.shape, std=0.05), normal(n, mean=1, std=0.5), dw, axis
    x = images_as(images, case.shape, rng) if case.real else normal(*case.shape)
    if case.operation == "affine":
        std = np.sqrt(2 / 784)  # He's, so that y is of the order of 1
        return x, normal(784, 256, std=std), normal(256), normal(BATCH, 256)
    shape = tuple(case.shape[a] for a in case.axes)
    where = case.axes[0] if case.operation == "batch_norm" else case.axes
    return x, normal(*shape, mean=1, std=0.5), normal(*shape), normal(*case.shape), where, EPS


# ---- Differences ---------------------------------------------------------------------------------


def differences(case, engines, truth, images, batches, rng):
    """For each result, (of whom, from whom): [mean, largest] absolute difference over batches."""
    sums = {}
    for _ in range(batches):
        arguments = draw(case, images, rng)
        everyone = {
            name: getattr(engine, case.operation)(*arguments)
            for name, engine in {**engines, "truth": truth}.items()
        }
        for pair in combinations(everyone, 2):
            for result, a, b in zip(case.results, *map(everyone.get, pair), strict=True):
                difference = np.abs(a.astype(np.float64) - b)
                entry = sums.setdefault(result, {}).setdefault(pair, [0.0, 0.0])
                entry[0] += difference.mean() / batches
                entry[1] = max(entry[1], difference.max())
    return sums


def tell(study, rows, engines):
    """The claims. A row is one result of one case; an error is a difference from the truth."""

    def of(row, *pair, largest=False):
        return row["differences"][" - ".join(pair)][largest]

    def error_ratio(row, name, **options):
        """The framework's error over fastnorm's; 1 where both are 0."""
        ours, theirs = (of(row, n, "truth", **options) for n in ("fastnorm", name))
        return theirs / ours if ours else 1.0 if theirs == ours else float("inf")

    affine = [r for r in rows if r["operation"] == "affine"]
    norms = [r for r in rows if r["operation"] != "affine"]
    if "TensorFlow" in engines:
        limit = REPORT * ORDER
        outputs = [r for r in norms if r["result"] in ("y", "w")]
        apart = [of(r, "fastnorm", "TensorFlow") for r in outputs]
        far = [r for r, mean in zip(outputs, apart, strict=True) if mean > limit]
        study.claim(
            f"The outputs of the norms differ from TensorFlow's by the order of the report's "
            f"{REPORT:.3e} or less (up to {limit:.1e}), in the mean of every row.",
            not far,
            rows=len(outputs),
            above=len(far),
            median=np.median(apart),
            largest=max(apart),
        )
        ratios = [error_ratio(r, "TensorFlow") for r in far]
        study.claim(
            "Where they differ by more, it is TensorFlow that is further from the truth.",
            all(q > 1 for q in ratios),
            rows=len(far),
            **({"least_ratio_of_errors": min(ratios)} if far else {}),
        )
    for name in engines:
        if name == "fastnorm":
            continue
        for title, chosen in (("norms", norms), ("affine layer", affine)):
            ratios = [error_ratio(r, name) for r in chosen]
            worst = chosen[int(np.argmin(ratios))]
            study.claim(
                f"The {title}: fastnorm is closer to the truth than {name}, in the mean of every "
                "row.",
                all(q > 1 for q in ratios),
                rows=len(chosen),
                closer=sum(q > 1 for q in ratios),
                equal=sum(q == 1 for q in ratios),
                further=sum(q < 1 for q in ratios),
                closer_by_the_largest=sum(error_ratio(r, name, largest=True) > 1 for r in chosen),
                median_ratio_of_errors=np.median(ratios),
                least=min(ratios),
                at=f"{worst['result']} of {worst['case']}",
            )


# ---- Output --------------------------------------------------------------------------------------


def table(rows, engines):
    header = ["", "result"]
    header += [f"{name}: mean" for name in engines] + [f"{name}: largest" for name in engines]
    header += [f"fastnorm - {name}" for name in engines if name != "fastnorm"]
    lines = []
    for r in rows:
        errors = [r["differences"][f"{name} - truth"] for name in engines]
        apart = [r["differences"][f"fastnorm - {n}"][0] for n in engines if n != "fastnorm"]
        numbers = [e[0] for e in errors] + [e[1] for e in errors] + apart
        lines.append([r["case"], r["result"], *(f"{n:.2e}" for n in numbers)])
    return "Absolute errors, and mean absolute differences\n" + rows_text(header, lines)


MARKERS = {
    "fastnorm": {"color": "#0072B2", "marker": "o"},
    "TensorFlow": {"color": "#D55E00", "marker": "^", "fillstyle": "none"},
    "PyTorch": {"color": "#009E73", "marker": "s", "fillstyle": "none"},
}


def draw_errors(figure, rows, engines):
    names = list(dict.fromkeys(r["case"] for r in rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, results, title in (
        (left, ("y", "w"), "output"),
        (right, ("dx", "dv"), "gradient of x or v"),
    ):
        for name in engines:
            errors = {
                r["case"]: r["differences"][f"{name} - truth"][0]
                for r in rows
                if r["result"] in results
            }
            at = [names.index(case) for case in errors]
            axes.plot(errors.values(), at, linestyle="", markersize=6, label=name, **MARKERS[name])
        axes.set_xscale("log")
        plots.tidy(axes, "mean absolute error", "", title)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    plots.legend(figure, left)


def main(argv=None):
    study = Study(__doc__, argv)
    images = study.data()[0]
    progress = Progress()
    engines, truth = frameworks.available(progress.say), frameworks.truth()
    batches = 2 if study.quick else 32
    rng = np.random.default_rng(study.seed)
    rows, todo = [], sorted(cases(), key=lambda c: OPERATIONS.index(c.operation))
    for done, case in enumerate(todo):
        name = f"{case.operation.replace('_', ' ')}: {case.label}"
        progress.step(name, done, len(todo))
        found = differences(case, engines, truth, images, batches, rng)
        for result, pairs in found.items():
            pairs = {" - ".join(pair): value for pair, value in pairs.items()}
            rows.append(
                {
                    "case": name,
                    "operation": case.operation,
                    "shape": case.shape,
                    "result": result,
                    "differences": pairs,
                }
            )
        progress.say(f"{name}: done")
    tell(study, rows, engines)
    study.figure("agreement", draw_errors, rows, engines, size=(9, 6.5))
    results = {
        "versions": {name: engine.version for name, engine in engines.items()},
        "batches": batches,
        "rows": rows,
    }
    return study.finish(results, table(rows, engines))


if __name__ == "__main__":
    sys.exit(main())
