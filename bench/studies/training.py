"""Training as all studies do it: batches in random order, a rate that falls to zero, accuracies."""

import time
from dataclasses import dataclass, field

import nn
import numpy as np


class Trainer:
    """A network with its optimiser, by default gradient descent with momentum."""

    def __init__(self, layers, optimiser=nn.SGD, functions=None):
        self.network = nn.Sequential(layers, functions)
        self.optimiser = optimiser(self.network.layers)

    def step(self, x, labels, lr):
        """One training step; return the loss before it."""
        scores = self.network.forward(x)
        loss, dscores = nn.softmax_cross_entropy(scores, labels)
        self.network.backward(dscores, input_gradient=False)
        self.optimiser.step(lr)
        return loss

    def accuracy(self, x, labels, batch_size=1000):
        """The share of labels that get the highest score."""
        right = 0
        for i in range(0, len(x), batch_size):
            scores = self.network.forward(x[i : i + batch_size], training=False)
            right += np.count_nonzero(scores.argmax(axis=1) == labels[i : i + batch_size])
        return right / len(x)


@dataclass
class Run:
    """What a training run leaves: the loss of each step, the rest once per epoch."""

    losses: list = field(default_factory=list)
    test_accuracy: list = field(default_factory=list)
    seconds: list = field(default_factory=list)  # without the accuracies

    def epoch_losses(self):
        """The mean loss of each epoch's steps."""
        return [float(np.mean(part)) for part in np.split(np.array(self.losses), len(self.seconds))]


def train(trainer, data, epochs, batch_size, lr, rng, progress=None, label=""):
    """Train for some epochs; the learning rate falls linearly from lr to zero.

    data : training images and labels, test images and labels. An incomplete batch at the end of an
    epoch is left out. The order of the images comes from rng.
    """
    x, labels, x_test, labels_test = data
    per_epoch = len(x) // batch_size
    run = Run()
    for epoch in range(epochs):
        name = f"{label}: epoch {epoch + 1}/{epochs}"
        order = rng.permutation(len(x))
        start = time.perf_counter()
        for i in range(per_epoch):
            batch = order[i * batch_size : (i + 1) * batch_size]
            rate = lr * (1 - len(run.losses) / (epochs * per_epoch))
            run.losses.append(trainer.step(x[batch], labels[batch], rate))
            if progress:
                progress.step(name, i + 1, per_epoch)
        run.seconds.append(time.perf_counter() - start)
        run.test_accuracy.append(trainer.accuracy(x_test, labels_test))
        if progress:
            loss = np.mean(run.losses[-per_epoch:])
            progress.say(f"{name}, loss {loss:.3f}, test accuracy {run.test_accuracy[-1]:.4f}")
    return run
