"""Train the network that batch, layer and weight normalisation were invented for, on Fashion-MNIST.

{affine, normalisation, ReLU} x (depth - 1), affine, softmax cross-entropy; gradient descent with
momentum, its rate falling linearly to zero. For trying things out: norm, depth, width, epochs,
batch size and learning rate are options, and nothing is claimed.

    python bench/studies/fashion_mnist.py --quick
    python bench/studies/fashion_mnist.py --norm batch layer weight none --epochs 5
"""

import sys

import nn
import numpy as np
from study import Progress, Study, positive, rows_text
from training import Trainer, train

NORMS = ("batch", "layer", "weight", "none")


def add_options(parser):
    parser.add_argument("--norm", nargs="+", choices=NORMS, default=["batch"])
    parser.add_argument("--depth", type=positive, default=5, help="affine layers (5)")
    parser.add_argument("--width", type=positive, default=256, help="of the hidden layers (256)")
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate at the start (0.05)")


def main(argv=None):
    study = Study(__doc__, argv, add_options)
    args, data = study.args, study.data()
    if args.batch_size > len(data[0]):
        sys.exit(f"{study.name}: --batch-size exceeds the {len(data[0])} training images")

    sizes = [data[0].shape[1], *[args.width] * (args.depth - 1), 10]
    results = []
    for norm in args.norm:
        rng = np.random.default_rng(study.seed)
        trainer = Trainer(nn.normalised_network(norm, sizes, rng))
        run = train(
            trainer, data, args.epochs, args.batch_size, args.lr, rng, Progress(), label=norm
        )
        results.append(
            {
                "norm": norm,
                "first_loss": run.losses[0],
                "last_loss": run.losses[-1],
                "test_accuracy": run.test_accuracy,
                "seconds_per_epoch": sum(run.seconds) / args.epochs,
            }
        )
    rows = [
        (r["norm"], f"{r['test_accuracy'][-1]:.4f}", f"{r['seconds_per_epoch']:.2f}")
        for r in results
    ]
    return study.finish(results, rows_text(("norm", "test accuracy", "s/epoch"), rows))


if __name__ == "__main__":
    sys.exit(main())
