"""How does the batch size act on batch norm and on layer norm?

Six affine layers (five hidden ones of 100), trained by Adam for the same number of epochs on 10,000
images with batches of 2 to 200, several seeds each. Layer norm is the control: it takes the same
steps on the same images, and knows nothing of the batch. For batch norm the test accuracy is also
measured with statistics of all training images in the place of the running ones, which tells what
was learned badly from what was only estimated badly.

    python bench/studies/batch_size.py --quick
    python bench/studies/batch_size.py --figures docs/studies
"""

import sys

import nn
import numpy as np
import plots
from study import Progress, Study, mean_spread, rows_text
from training import Trainer, train

import fastnorm as fn

NORMS = ("batch", "layer", "none")
SIZES = (2, 5, 10, 50, 200)
HIDDEN = (100,) * 5
LR = 1e-3


def accuracies(norm, batch_size, data, epochs, seed):
    """Final accuracy on training and test images, and the latter with exact statistics."""
    rng = np.random.default_rng(seed)
    sizes = [data[0].shape[1], *HIDDEN, 10]
    trainer = Trainer(nn.normalised_network(norm, sizes, rng), nn.Adam)
    run = train(trainer, data, epochs, batch_size, LR, rng)
    on_train = trainer.accuracy(*data[:2])
    set_statistics(trainer.network, data[0])
    return on_train, run.test_accuracy[-1], trainer.accuracy(*data[2:])


def set_statistics(network, x):
    """Give batch norm the statistics of all of x for its running ones."""
    for layer in network.layers:
        if isinstance(layer, fn.layers.BatchNorm):
            layer.decay, layer.ddof = 0.0, 0  # what has run counts for nothing
    network.forward(x, training=True)


def draw(figure, results):
    panels = figure.subplots(1, 2, sharey=True)
    sizes = results["sizes"]
    for norm in NORMS:
        for axes, part in zip(panels, ("train", "test"), strict=True):
            plots.means(axes, sizes, results[part][norm], **plots.style(norm))
    exact = plots.style("batch") | {"linestyle": "--", "label": "batch norm, exact statistics"}
    plots.means(panels[1], sizes, results["exact"]["batch"], **exact)
    for axes, title in zip(panels, ("training images", "test images"), strict=True):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        plots.tidy(axes, "batch size (images)", "accuracy", title)
    panels[1].set_ylabel("")
    plots.legend(figure, panels[1])


def main(argv=None):
    study = Study(__doc__, argv)
    x, labels, x_test, labels_test = study.data()
    images = 1000 if study.quick else 10_000
    data = x[:images], labels[:images], x_test, labels_test
    epochs, repeats = (2, 1) if study.quick else (5, 3)

    progress, runs = Progress(), len(NORMS) * len(SIZES) * repeats
    results = {"sizes": SIZES, "images": images, "epochs": epochs}
    results |= {"train": {}, "test": {}, "exact": {}}
    done = 0
    for norm in NORMS:
        grid = np.empty((len(SIZES), repeats, 3))
        for i, r in np.ndindex(grid.shape[:2]):
            grid[i, r] = accuracies(norm, SIZES[i], data, epochs, study.seed + r)
            done += 1
            progress.step(f"{norm}, batches of {SIZES[i]}", done, runs)
        for part, values in zip(("train", "test", "exact"), np.moveaxis(grid, 2, 0), strict=True):
            results[part][norm] = values
        by_size = ", ".join(f"{a:.3f}" for a in grid[..., 1].mean(axis=1))
        progress.say(f"{norm}: test accuracy {by_size}")

    check(study, results)
    study.figure("batch_size", draw, results, size=(9, 3.8))
    columns = [results["test"][norm] for norm in NORMS] + [results["exact"]["batch"]]
    rows = [(size, *(mean_spread(column[i]) for column in columns)) for i, size in enumerate(SIZES)]
    table = rows_text(("batch size", *NORMS, "batch, exact"), rows)
    return study.finish(results, f"Test accuracy, mean ± deviation of {repeats}\n{table}")


def check(study, results):
    mean = {norm: a.mean(axis=1) for norm, a in results["test"].items()}
    exact = results["exact"]["batch"].mean(axis=1)
    study.claim(
        "Batch norm gains with the batch size, from 2 to its best, by 0.05 at least.",
        mean["batch"].max() - mean["batch"][0] >= 0.05,
        test_accuracy=dict(zip(SIZES, mean["batch"], strict=True)),
    )
    study.claim(
        "Layer norm hardly moves: a third of batch norm's range at most.",
        np.ptp(mean["layer"]) <= np.ptp(mean["batch"]) / 3,
        test_accuracy=dict(zip(SIZES, mean["layer"], strict=True)),
    )
    study.claim(
        "With 2 images layer norm is ahead of batch norm, by 0.05 at least.",
        mean["layer"][0] - mean["batch"][0] >= 0.05,
        layer_norm=mean["layer"][0],
        batch_norm=mean["batch"][0],
    )
    study.claim(
        "With 50 and more, batch norm is not behind layer norm, by 0.005 at most.",
        np.all(mean["batch"][3:] >= mean["layer"][3:] - 0.005),
        batch_norm=mean["batch"][3:],
        layer_norm=mean["layer"][3:],
    )
    study.claim(
        "A part of what batch norm loses with 2 images is only the running statistics: with those "
        "of all training images it is better.",
        exact[0] > mean["batch"][0],
        running=mean["batch"][0],
        exact=exact[0],
    )


if __name__ == "__main__":
    sys.exit(main())
