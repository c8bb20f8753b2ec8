"""Does a small CNN learn Fashion-MNIST with each normalisation, and how fast?

{3 x 3 convolution, normalisation, ReLU, max-pool} twice, with 16 and 32 channels, affine, softmax
cross-entropy; Adam, batches of 100, its rate falling linearly to zero. No augmentation.

    python bench/studies/cnn.py --quick
    python bench/studies/cnn.py --figures docs/studies
"""

import sys

import nn
import numpy as np
import plots
from study import Progress, Study, rows_text
from training import Trainer, train

BATCH_SIZE, LR = 100, 2e-3


def images(x):
    """Rows of 784 pixels as images, channels last."""
    return x.reshape(-1, 28, 28, 1)


def draw(figure, results):
    panels = figure.subplots(1, 2)
    for norm, run in results["runs"].items():
        losses = np.asarray(run["losses"])
        epochs = len(run["test_accuracy"])
        window = max(len(losses) // (20 * epochs), 1)  # twenty points an epoch
        smooth = losses[: len(losses) // window * window].reshape(-1, window).mean(axis=1)
        at = (np.arange(len(smooth)) + 0.5) * window * epochs / len(losses)
        line = plots.style(norm)
        panels[0].plot(at, smooth, **line | {"marker": None, "linewidth": 1.1})
        panels[1].plot(range(1, epochs + 1), run["test_accuracy"], **line)
    panels[0].set_yscale("log")
    ticks = [0.1, 0.2, 0.3, 0.5, 1, 2]
    panels[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    panels[0].minorticks_off()
    panels[1].set_xticks(range(1, epochs + 1))
    plots.tidy(panels[0], "epoch", "training loss (nats)")
    plots.tidy(panels[1], "epoch", "test accuracy")
    plots.legend(figure, panels[1])


def main(argv=None):
    study = Study(__doc__, argv)
    x, labels, x_test, labels_test = study.data()
    data = images(x), labels, images(x_test), labels_test
    epochs = 2 if study.quick else 5

    runs = {}
    for norm in nn.NORMS:
        rng = np.random.default_rng(study.seed)
        trainer = Trainer(nn.convolutional_network(norm, rng), nn.Adam)
        run = train(trainer, data, epochs, BATCH_SIZE, LR, rng, Progress(), norm)
        runs[norm] = {
            "losses": np.round(run.losses, 4),
            "epoch_losses": run.epoch_losses(),
            "test_accuracy": run.test_accuracy,
            "seconds": run.seconds,
        }
    results = {"epochs": epochs, "runs": runs}

    check(study, runs)
    study.figure("cnn", draw, results, size=(9, 3.8))
    header = ("norm", *(f"epoch {e + 1}" for e in range(epochs)), "last loss", "s/epoch")
    rows = [
        (
            norm,
            *(f"{a:.4f}" for a in run["test_accuracy"]),
            f"{run['epoch_losses'][-1]:.3f}",
            f"{np.mean(run['seconds']):.1f}",
        )
        for norm, run in runs.items()
    ]
    return study.finish(results, f"Test accuracy\n{rows_text(header, rows)}")


def check(study, runs):
    final = {norm: run["test_accuracy"][-1] for norm, run in runs.items()}
    study.claim(
        "Every variant learns: 0.88 of the test images at least.",
        min(final.values()) >= 0.88,
        test_accuracy=final,
    )
    best = max(final, key=final.get)
    study.claim(
        "The best has 0.91 at least.", final[best] >= 0.91, norm=best, test_accuracy=final[best]
    )


if __name__ == "__main__":
    sys.exit(main())
