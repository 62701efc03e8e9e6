"""MNIST for the demo and the examples, and ways to deal a data set out to participants."""

from fedmq.demo.data.mnist import SAMPLE, Mnist, full_mnist, load_mnist
from fedmq.demo.data.partitions import dirichlet, iid, shards

__all__ = ["SAMPLE", "Mnist", "dirichlet", "full_mnist", "iid", "load_mnist", "shards"]
