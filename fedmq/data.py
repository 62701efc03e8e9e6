"""Data for apps: MNIST, and ways to deal a data set out to participants. `fedmq.demo.data` has the code."""

from fedmq.demo.data import SAMPLE, Mnist, dirichlet, full_mnist, iid, load_mnist, shards

__all__ = ["SAMPLE", "Mnist", "dirichlet", "full_mnist", "iid", "load_mnist", "shards"]
