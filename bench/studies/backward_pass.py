"""Vanilla against simplified: the backward pass of batch norm step by step, and in closed form.

Batch norm of 512 features of Fashion-MNIST images, over batch sizes, in float32 and float64. The
staged pass walks back through the graph node by node, the closed form is what it simplifies to,
both in plain NumPy; fastnorm's kernel computes the closed form too. Time, and error against the
specification in a wider type: float64 for float32, long double for float64.
"""

import sys
import time

import numpy as np
import plots
from study import Progress, Study, rows_text

import fastnorm as fn


def closed_form(dy, cache):
    """What the staged pass simplifies to: the parameters' gradients are all the sums that dx needs.

    ``dx = gamma * rstd * (dy - (dbeta + xhat * dgamma) / n)``
    """
    xhat = (cache.x - cache.mean) * cache.rstd
    dbeta, dgamma = dy.sum(axis=0), (dy * xhat).sum(axis=0)
    dx = cache.gamma * cache.rstd * (dy - (dbeta + xhat * dgamma) / len(dy))
    return dx, dgamma, dbeta


FEATURES = 512
WAYS = {
    "staged": (fn.reference.batch_norm_forward, fn.reference.batch_norm_backward_staged),
    "closed form": (fn.reference.batch_norm_forward, closed_form),
    "fastnorm": (fn.batch_norm_forward, fn.batch_norm_backward),
}
WIDER = {"float32": np.float64, "float64": np.longdouble}
RESULTS = ("dx", "dgamma", "dbeta")
EQUAL = 16  # units of rounding, of the largest element, within which two ways are equal


def draw(images, n, dtype, rng):
    """x, gamma, beta and dy: hidden features of n images, random parameters and gradients."""
    weight = rng.normal(0, np.sqrt(2 / images.shape[1]), (images.shape[1], FEATURES))
    x = images[rng.permutation(len(images))[:n]] @ weight
    others = rng.normal(1, 0.5, FEATURES), rng.normal(size=FEATURES), rng.normal(size=(n, FEATURES))
    return [a.astype(dtype) for a in (x, *others)]


def backward(forward, function, x, gamma, beta, dy):
    """A function that does the backward pass, the forward pass being done."""
    _, cache = forward(x, gamma, beta)
    return lambda: function(dy, cache)


def measure(calls, rounds):
    """Median seconds of each call. They take turns, so that what else the machine does hits all."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def at_one_thread(call):
    def function():
        with fn.num_threads(1):
            call()

    return function


def errors(gradients, truth):
    """Mean and largest absolute error of each gradient, in units of the truth's largest element."""
    found = {}
    for name, gradient, true in zip(RESULTS, gradients, truth, strict=True):
        difference = np.abs(gradient.astype(true.dtype) - true) / np.abs(true).max()
        found[name] = {"mean": float(difference.mean()), "largest": float(difference.max())}
    return found


def run(images, n, dtype, rounds, rng):
    arrays = draw(images, n, dtype, rng)
    calls = {way: backward(*functions, *arrays) for way, functions in WAYS.items()}
    specification = fn.reference.batch_norm_forward, fn.reference.batch_norm_backward
    truth = backward(*specification, *(a.astype(WIDER[dtype]) for a in arrays))()
    gradients = {way: call() for way, call in calls.items()}
    staged, closed = gradients["staged"][0], gradients["closed form"][0]
    apart = np.abs(staged - closed).max() / np.abs(closed).max() / np.finfo(dtype).eps
    calls["fastnorm, 1 thread"] = at_one_thread(calls["fastnorm"])
    return {
        "batch": n,
        "dtype": dtype,
        "seconds": measure(calls, rounds),
        "errors": {way: errors(g, truth) for way, g in gradients.items()},
        "staged_and_closed_apart": float(apart),
    }


# ---- Claims and output ---------------------------------------------------------------------------


def tell(study, results):
    def ratios(slow, quick):
        return [r["seconds"][slow] / r["seconds"][quick] for r in results]

    gains = ratios("staged", "closed form")
    study.claim(
        "The closed form is faster than the staged pass, at every batch size.",
        min(gains) > 1,
        least_ratio=min(gains),
        median=np.median(gains),
        largest=max(gains),
    )
    apart = [r["staged_and_closed_apart"] for r in results]
    study.claim(
        f"Their dx are equal to rounding: {EQUAL} eps of the largest element or less.",
        max(apart) <= EQUAL,
        most_eps=max(apart),
    )
    for way in ("fastnorm", "fastnorm, 1 thread"):
        gains = ratios("closed form", way)
        study.claim(
            f"{way} is faster than the closed form in NumPy, at every batch size.",
            min(gains) > 1,
            least_ratio=min(gains),
            median=np.median(gains),
            largest=max(gains),
        )
    wide = [r for r in results if np.finfo(WIDER[r["dtype"]]).eps < np.finfo(r["dtype"]).eps]
    for name in RESULTS:
        quotients = [
            r["errors"]["closed form"][name]["mean"] / r["errors"]["fastnorm"][name]["mean"]
            for r in wide
        ]
        worst = wide[int(np.argmin(quotients))]
        study.claim(
            f"fastnorm's {name} is no less accurate than the closed form's in NumPy, in the mean.",
            min(quotients) >= 1,
            cases=len(wide),
            further=sum(q < 1 for q in quotients),
            median_ratio=np.median(quotients),
            least=min(quotients),
            at=f"{worst['dtype']}, batch of {worst['batch']}",
        )


def table(results):
    ways = list(results[0]["seconds"])
    header = ["dtype, batch"] + [f"{way}, ms" for way in ways]
    header += [f"{way}: error of dx" for way in WAYS]
    lines = []
    for r in results:
        times = [f"{1e3 * r['seconds'][way]:.3f}" for way in ways]
        accuracy = [f"{r['errors'][way]['dx']['mean']:.2e}" for way in WAYS]
        lines.append([f"{r['dtype']}, {r['batch']}", *times, *accuracy])
    return "The error is the mean one, relative to the largest element of dx\n" + rows_text(
        header, lines
    )


STYLES = {
    "staged": {"color": "#777777", "marker": "s"},
    "closed form": {"color": "#D55E00", "marker": "^"},
    "fastnorm, 1 thread": {"color": "#56B4E9", "marker": "v"},
    "fastnorm": {"color": "#0072B2", "marker": "o"},
}


def draw_times_and_errors(figure, results):
    for axes, dtype in zip(figure.subplots(1, 3)[:2], WIDER, strict=True):
        chosen = [r for r in results if r["dtype"] == dtype]
        batches = [r["batch"] for r in chosen]
        for way, style in STYLES.items():
            times = [1e3 * r["seconds"][way] for r in chosen]
            axes.loglog(batches, times, markersize=4, label=way, **style)
        plots.tidy(axes, "batch size", "time of a backward pass / ms", f"time, {dtype}")
    axes = figure.axes[2]
    chosen = [r for r in results if r["dtype"] == "float32"]
    for way in WAYS:
        mean = [r["errors"][way]["dx"]["mean"] for r in chosen]
        axes.loglog([r["batch"] for r in chosen], mean, markersize=4, **STYLES[way])
    axes.set_ylim(1e-9, 1e-7)
    plots.tidy(axes, "batch size", "mean error of dx / largest |dx|", "error, float32")
    plots.legend(figure, figure.axes[0])


def main(argv=None):
    study = Study(__doc__, argv)
    images = study.data()[0]
    rng, progress = np.random.default_rng(study.seed), Progress()
    batches = (16, 256) if study.quick else (16, 64, 256, 1024, 4096)
    results = []
    for dtype in WIDER:
        for n in batches:
            rounds = 5 if study.quick else 50 if n > 256 else 500
            results.append(run(images, n, dtype, rounds, rng))
            progress.say(f"{dtype}, batch of {n}: done")
    tell(study, results)
    study.figure("backward_pass", draw_times_and_errors, results, size=(10, 3.8))
    return study.finish(results, table(results))


if __name__ == "__main__":
    sys.exit(main())
