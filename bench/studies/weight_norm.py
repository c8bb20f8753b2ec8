"""What does weight norm gain by separating direction and length, ``w = g * v / ‖v‖``?

A small problem first: a linear neuron, squared error, 20 inputs whose mean is not zero, as with
pixels, so that the loss is 81 times as steep along the inputs' mean as across it. The condition of
the loss is that of its Hessian at the solution, in w, and in v and g, whose Jacobian comes from
fastnorm's backward pass. The solution lies along the mean, or across it; gradient descent starts
near it, where the condition decides, or far from it. Then the network of `fashion_mnist.py`:
training curves beside no norm and batch norm, and learning rates.

    python bench/studies/weight_norm.py --quick
    python bench/studies/weight_norm.py --figures docs/studies
"""

import sys

import nn
import numpy as np
import plots
from study import Progress, Study, mean_spread, rows_text
from training import Trainer, train

import fastnorm as fn

# ---- The small problem ---------------------------------------------------------------------------

INPUTS, MEAN = 20, 2.0
RATIOS = np.logspace(-1, 2, 61)  # g / ‖v‖
TOLERANCE, MOST_STEPS = 1e-8, 3000
STARTS = [(start, learned) for start in ("near", "far") for learned in ("w", "v and g")]


def hessian():
    """That of half the mean squared error in w, for inputs with mean MEAN and covariance one."""
    return np.eye(INPUTS) + MEAN**2


def solutions(rng):
    """Unit weights along the inputs' mean, and across it."""
    along = np.full(INPUTS, INPUTS**-0.5)
    across = rng.normal(size=INPUTS)
    across -= across @ along * along
    return {"along": along, "across": across / np.linalg.norm(across)}


def gradients(v, g, dw):
    """dv and dg of one neuron, v (INPUTS,) and g a number."""
    _, cache = fn.weight_norm_forward(v[:, None], np.array([g]), axis=1)
    dv, dg = fn.weight_norm_backward(dw[:, None], cache)
    return dv[:, 0], dg[0]


def condition_in_w():
    eigenvalues = np.linalg.eigvalsh(hessian())
    return eigenvalues[-1] / eigenvalues[0]


def condition_in_v_and_g(w, ratio):
    """At the solution w, with ‖v‖ = g / ratio.

    There the gradient in w is zero, and the Hessian in (v, g) is J^T H J. One of its eigenvalues is
    zero, since v's length is free; the condition is that of the others.
    """
    g = np.linalg.norm(w)
    rows = [gradients(w / ratio, g, dw) for dw in np.eye(INPUTS)]  # of J: w_i by v and g
    jacobian = np.array([[*dv, dg] for dv, dg in rows])
    eigenvalues = np.linalg.eigvalsh(jacobian.T @ hessian() @ jacobian)
    return eigenvalues[-1] / eigenvalues[1]


def best_ratio(condition):
    """The ratio of the least condition; of several as good, that nearest to one."""
    good = RATIOS[condition <= 1.001 * np.min(condition)]
    return good[np.abs(np.log(good)).argmin()]


def descend(start, solution, lr, ratio=None):
    """Gradient descent from start: the loss before each step, and at each ‖v‖ and v . dv, relative
    to the lengths of what they are made of.

    In w, or with a ratio in v and g, g / ‖v‖ being that at the start. It ends at TOLERANCE of the
    loss at the start, or where the loss is a thousand times that.
    """
    h = hessian()
    v, g = start.copy(), np.linalg.norm(start)
    if ratio:
        v /= ratio
    losses, lengths, products = [], [], []
    for _ in range(MOST_STEPS + 1):
        w = g * v / np.linalg.norm(v) if ratio else v
        dw = h @ (w - solution)
        losses.append(0.5 * (w - solution) @ dw)
        if not TOLERANCE * losses[0] < losses[-1] < 1000 * losses[0]:
            break
        if ratio:
            dv, dg = gradients(v, g, dw)
            lengths.append(np.linalg.norm(v))
            products.append(abs(v @ dv) / abs(g * np.linalg.norm(dw)))
            g -= lr * dg
        else:
            dv = dw
        v = v - lr * dv
    return losses, lengths, products


def steps_needed(losses):
    """Infinite, if the tolerance was not reached."""
    return len(losses) - 1 if losses[-1] <= TOLERANCE * losses[0] else np.inf


def small_problem(seed, count):
    """Conditions, and descents over count learning rates, for both solutions.

    "steps" and "curve" (of the best rate) are by start, solution, and what is learned. Near the
    solution g / ‖v‖ is the best ratio; far from it 1, as layers start.
    """
    rng = np.random.default_rng(seed)
    rates = np.logspace(-1.5, 1.5, count)  # times 1 / the steepest curvature
    steepest = np.linalg.eigvalsh(hessian())[-1]
    results = {"condition_in_w": condition_in_w(), "ratios": RATIOS, "rates": rates}
    results |= {"condition": {}, "best_ratio": {}, "steps": {}, "curve": {}}
    products, growth = [], []
    away = rng.normal(size=INPUTS) / INPUTS**0.5
    for name, w in solutions(rng).items():
        condition = np.array([condition_in_v_and_g(w, ratio) for ratio in RATIOS])
        best = best_ratio(condition)
        results["condition"][name], results["best_ratio"][name] = condition, best
        for start, at, ratio in (("near", w + 0.01 * away, best), ("far", away, 1.0)):
            for learned, ratio_or_none in (("w", None), ("v and g", ratio)):
                runs = [descend(at, w, rate / steepest, ratio_or_none) for rate in rates]
                steps = np.array([steps_needed(losses) for losses, *_ in runs])
                key = f"{start}, {name}, {learned}"
                results["steps"][key] = steps
                results["curve"][key] = runs[int(np.argmin(steps))][0]
                for _, lengths, product in runs:
                    products += product
                    growth += (np.diff(lengths) / lengths[:-1]).tolist()
    return results | {"largest_product": max(products), "least_growth": min(growth)}


def draw_small(figure, results):
    panels = figure.subplots(1, 3)
    colours = {"w": plots.STYLES["none"]["color"], "v and g": plots.STYLES["weight"]["color"]}
    panels[0].axhline(results["condition_in_w"], color=colours["w"])
    for name, dash in (("along", "-"), ("across", "--")):
        condition = results["condition"][name]
        panels[0].loglog(results["ratios"], condition, dash, color=colours["v and g"])
        for learned, colour in colours.items():
            label = f"{learned}, solution {name} the mean"
            curve = np.array(results["curve"][f"near, {name}, {learned}"])
            panels[1].loglog(np.arange(1, len(curve) + 1), curve / curve[0], dash, color=colour)
            steps = results["steps"][f"far, {name}, {learned}"]
            panels[2].loglog(results["rates"], steps, dash, color=colour, label=label)
    plots.tidy(panels[0], "g / ‖v‖", "condition number", "at the solution")
    plots.tidy(panels[1], "step", "loss / loss at the start", "from near, with the best rate")
    panels[2].set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    panels[2].set_yticks([300, 1000, 3000], ["300", "1000", "3000"])
    title = "from far, g / ‖v‖ = 1 at the start"
    plots.tidy(panels[2], "learning rate × steepest curvature", "steps to 1e-8 of the loss", title)  # noqa: RUF001
    plots.legend(figure, panels[2])


# ---- The network ---------------------------------------------------------------------------------

NORMS = ("none", "weight", "batch")
HIDDEN = (256,) * 4
BATCH_SIZE, LR = 128, 0.05
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def fit(norm, data, epochs, lr, seed):
    rng = np.random.default_rng(seed)
    trainer = Trainer(nn.normalised_network(norm, [data[0].shape[1], *HIDDEN, 10], rng))
    with np.errstate(all="ignore"):  # the highest rates may overflow
        return train(trainer, data, epochs, BATCH_SIZE, lr, rng)


def training(data, few, epochs, repeats, seed):
    """Loss and test accuracy by epoch; final test accuracy over learning rates on few images."""
    progress = Progress()
    results = {"epochs": epochs, "rates": RATES, "loss": {}, "test": {}, "by_rate": {}}
    for norm in NORMS:
        runs = []
        for r in range(repeats):
            runs.append(fit(norm, data, epochs, LR, seed + r))
            progress.step(f"{norm}, training", r + 1, repeats)
        results["loss"][norm] = np.transpose([run.epoch_losses() for run in runs])
        results["test"][norm] = np.transpose([run.test_accuracy for run in runs])
        grid = np.empty((len(RATES), repeats))
        for n, (i, r) in enumerate(np.ndindex(grid.shape)):
            grid[i, r] = fit(norm, few, epochs, RATES[i], seed + r).test_accuracy[-1]
            progress.step(f"{norm}, learning rates", n + 1, grid.size)
        results["by_rate"][norm] = grid
        final = mean_spread(results["test"][norm][-1], 4)
        progress.say(f"{norm}: test accuracy {final}; by rate {np.round(grid.mean(axis=1), 3)}")
    return results


def draw_training(figure, results):
    panels = figure.subplots(1, 3)
    epochs = range(1, results["epochs"] + 1)
    for norm in NORMS:
        line = plots.style(norm)
        plots.means(panels[0], epochs, results["loss"][norm], **line)
        plots.means(panels[1], epochs, results["test"][norm], **line)
        plots.means(panels[2], RATES, results["by_rate"][norm], **line)
    panels[2].set_xscale("log")
    panels[2].set_ylim(0, 1)
    for axes in panels[:2]:
        axes.set_xticks(epochs)
    plots.tidy(panels[0], "epoch", "training loss (nats)")
    plots.tidy(panels[1], "epoch", "test accuracy")
    plots.tidy(panels[2], "learning rate at the start", "final test accuracy")
    plots.legend(figure, panels[0])


# ---- The study -----------------------------------------------------------------------------------


def main(argv=None):
    study = Study(__doc__, argv)
    data = study.data()
    small = small_problem(study.seed, 13 if study.quick else 49)
    few = (data[0][:1000], data[1][:1000], *data[2:])
    if study.quick:
        trained = training(few, few, 2, 1, study.seed)
    else:
        few = (data[0][:10_000], data[1][:10_000], *data[2:])
        trained = training(data, few, 5, 3, study.seed)

    check_small(study, small)
    check_training(study, trained)
    study.figure("weight_norm_small", draw_small, small, size=(11, 3.6))
    study.figure("weight_norm", draw_training, trained, size=(11, 3.6))
    results = {"small": {k: v for k, v in small.items() if k != "curve"}, "training": trained}
    return study.finish(results, f"{table_small(small)}\n\n{table_training(trained)}")


def fewest(small, key):
    return np.min(small["steps"][key])


def width(small, key):
    """The largest learning rate that converges over the smallest."""
    rates = small["rates"][np.isfinite(small["steps"][key])]
    return rates[-1] / rates[0]


def check_small(study, small):
    study.claim(
        "The gradient of v is at right angles to v, to rounding.",
        small["largest_product"] < 1e-14,
        largest_relative_product=small["largest_product"],
    )
    study.claim(
        "So v never becomes shorter, whatever the learning rate.",
        small["least_growth"] >= -1e-15,
        least_relative_growth=small["least_growth"],
    )
    study.claim(
        "With the solution along the mean of the inputs, direction and length have each their own "
        "curvature, and the right ‖v‖ makes the problem all but perfectly conditioned.",
        min(small["condition"]["along"]) < 1.1,
        in_w=small["condition_in_w"],
        in_v_and_g=min(small["condition"]["along"]),
        g_over_v=small["best_ratio"]["along"],
    )
    study.claim(
        "From near that solution gradient descent then needs a tenth of the steps at most, each "
        "with its best rate.",
        fewest(small, "near, along, v and g") <= fewest(small, "near, along, w") / 10,
        steps_in_w=fewest(small, "near, along, w"),
        steps_in_v_and_g=fewest(small, "near, along, v and g"),
    )
    study.claim(
        "With the solution across the mean there is nothing to gain in condition.",
        min(small["condition"]["across"]) >= 0.99 * small["condition_in_w"],
        in_w=small["condition_in_w"],
        in_v_and_g=min(small["condition"]["across"]),
    )
    for name in ("along", "across"):
        key = f"far, {name}"
        study.claim(
            f"From far, with the solution {name} the mean, a wider range of learning rates "
            "converges, though the best of them needs no fewer steps.",
            width(small, f"{key}, v and g") > width(small, f"{key}, w")
            and fewest(small, f"{key}, v and g") >= fewest(small, f"{key}, w"),
            largest_over_smallest_in_w=width(small, f"{key}, w"),
            in_v_and_g=width(small, f"{key}, v and g"),
            fewest_steps_in_w=fewest(small, f"{key}, w"),
            fewest_steps_in_v_and_g=fewest(small, f"{key}, v and g"),
        )


def check_training(study, trained):
    final = {norm: a[-1].mean() for norm, a in trained["test"].items()}
    loss = {norm: a.mean(axis=1) for norm, a in trained["loss"].items()}
    study.claim(
        "Weight norm trains the network as well as batch norm, within 0.01 of test accuracy.",
        abs(final["weight"] - final["batch"]) <= 0.01,
        test_accuracy=final,
    )
    study.claim(
        "Batch norm has the lowest training loss in every epoch, and weight norm that of no norm, "
        "within 0.01.",
        np.all(loss["batch"] < np.minimum(loss["weight"], loss["none"]))
        and np.all(np.abs(loss["weight"] - loss["none"]) <= 0.01),
        loss_by_epoch=loss,
    )
    learns = {norm: int(np.sum(a > 0.5)) for norm, a in trained["by_rate"].items()}
    study.claim(
        "Weight norm stands a higher learning rate than no norm does, and batch norm a higher one "
        "still: more of the runs over all rates learn half of the test images.",
        learns["none"] < learns["weight"] < learns["batch"],
        runs_that_learn=learns,
        of=trained["by_rate"]["none"].size,
    )


def table_small(small):
    rows = [
        (
            f"solution {name}",
            f"{small['condition_in_w']:.1f}",
            f"{min(small['condition'][name]):.1f}",
            f"{small['best_ratio'][name]:.2g}",
            *(fewest(small, f"{start}, {name}, {learned}") for start, learned in STARTS),
        )
        for name in ("along", "across")
    ]
    header = ("small problem", "condition, w", "v and g", "at g/‖v‖")
    return rows_text((*header, *(f"{start}, {learned}" for start, learned in STARTS)), rows)


def table_training(trained):
    rows = [
        (f"loss, epoch {e + 1}", *(mean_spread(trained["loss"][norm][e]) for norm in NORMS))
        for e in range(trained["epochs"])
    ]
    final = (mean_spread(trained["test"][norm][-1], 4) for norm in NORMS)
    rows.append(("test accuracy", *final))
    for i, rate in enumerate(RATES):
        accuracy = (mean_spread(trained["by_rate"][norm][i]) for norm in NORMS)
        rows.append((f"few images, rate {rate:g}", *accuracy))
    return rows_text(("network", *NORMS), rows)


if __name__ == "__main__":
    sys.exit(main())
