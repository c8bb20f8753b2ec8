"""How much does the scale of the initial weights matter, with and without normalisation?

Six affine layers (five hidden ones of 100), trained by Adam on 10,000 images, with all initial
weights drawn with the same standard deviation, from 1e-4 to 1: final accuracy on the training and
the test images, several seeds each.

    python bench/studies/initial_scale.py --quick
    python bench/studies/initial_scale.py --figures docs/studies
"""

import sys

import nn
import numpy as np
import plots
from study import Progress, Study, mean_spread, rows_text
from training import Trainer, train

NORMS = ("none", "batch", "layer", "weight")
HIDDEN = (100,) * 5
BATCH_SIZE, LR = 50, 1e-3


def accuracies(norm, scale, data, epochs, seed):
    """Final accuracy on training and test images."""
    rng = np.random.default_rng(seed)
    sizes = [data[0].shape[1], *HIDDEN, 10]
    trainer = Trainer(nn.normalised_network(norm, sizes, rng, weight_scale=scale), nn.Adam)
    run = train(trainer, data, epochs, BATCH_SIZE, LR, rng)
    return trainer.accuracy(*data[:2]), run.test_accuracy[-1]


def draw(figure, results):
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("train", "test"), strict=True):
        for norm, accuracy in results[part].items():
            plots.means(axes, results["scales"], accuracy, **plots.style(norm))
        axes.set_xscale("log")
        axes.set_ylim(0, 1)
        axes.axhline(0.1, color="#333333", linewidth=0.8, linestyle="--")
        title = {"train": "training images", "test": "test images"}[part]
        plots.tidy(axes, "standard deviation of the initial weights", "accuracy", title)
    panels[1].text(results["scales"][-1], 0.11, "chance", ha="right", va="bottom", fontsize=8)
    panels[1].set_ylabel("")
    plots.legend(figure, panels[0])


def main(argv=None):
    study = Study(__doc__, argv)
    x, labels, x_test, labels_test = study.data()
    images = 2000 if study.quick else 10_000
    data = x[:images], labels[:images], x_test, labels_test
    scales = np.logspace(-4, 0, 5 if study.quick else 9)
    epochs, repeats = (2, 1) if study.quick else (5, 3)

    progress, runs = Progress(), len(NORMS) * len(scales) * repeats
    results = {"scales": scales, "images": images, "epochs": epochs, "train": {}, "test": {}}
    done = 0
    for norm in NORMS:
        grid = np.empty((len(scales), repeats, 2))
        for i, r in np.ndindex(grid.shape[:2]):
            grid[i, r] = accuracies(norm, scales[i], data, epochs, study.seed + r)
            done += 1
            progress.step(f"{norm}, scale {scales[i]:.0e}", done, runs)
        results["train"][norm], results["test"][norm] = grid[..., 0], grid[..., 1]
        worst, best = np.sort(grid[..., 1].mean(axis=1))[[0, -1]]
        progress.say(f"{norm}: test accuracy {worst:.3f} to {best:.3f} over the scales")

    check(study, results)
    study.figure("initial_scale", draw, results, size=(9, 3.8))
    rows = [
        (f"{scale:.0e}", *(mean_spread(results["test"][norm][i]) for norm in NORMS))
        for i, scale in enumerate(scales)
    ]
    table = rows_text(("scale", *NORMS), rows)
    return study.finish(results, f"Test accuracy, mean ± deviation of {repeats}\n{table}")


def check(study, results):
    by_scale = {norm: a.mean(axis=1) for norm, a in results["test"].items()}
    spread = {norm: np.ptp(a) for norm, a in by_scale.items()}
    study.claim(
        "Batch norm is far less sensitive: its accuracies over the scales lie within a third of "
        "the range of the plain network's.",
        spread["batch"] <= spread["none"] / 3,
        range_plain=spread["none"],
        range_batch_norm=spread["batch"],
    )
    study.claim(
        "So is layer norm.",
        spread["layer"] <= spread["none"] / 3,
        range_layer_norm=spread["layer"],
    )
    study.claim(
        "From the smallest weights the plain network does not learn: it stays at chance.",
        abs(by_scale["none"][0] - 0.1) < 0.02,
        test_accuracy=by_scale["none"][0],
    )
    study.claim(
        "Weight norm, whose lengths start as those of the weights, does not help there.",
        abs(by_scale["weight"][0] - 0.1) < 0.02,
        test_accuracy=by_scale["weight"][0],
    )


if __name__ == "__main__":
    sys.exit(main())
