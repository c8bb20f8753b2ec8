"""Make the subset of Fashion-MNIST that is kept here, from the whole data set.

    python bench/studies/data/make_subset.py DIRECTORY

The rule: the first 400 training images and the first 100 test images of each class, in the order
of the files.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from dataset import read_directory  # noqa: E402


def first_of_each_class(images, labels, count):
    index = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
    return images[index], labels[index]


def main():
    images, labels, test_images, test_labels = read_directory(sys.argv[1])
    images, labels = first_of_each_class(images, labels, 400)
    test_images, test_labels = first_of_each_class(test_images, test_labels, 100)
    np.savez_compressed(
        HERE / "fashion_mnist_subset.npz",
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
    )


if __name__ == "__main__":
    main()
