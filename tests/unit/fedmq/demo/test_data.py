import hashlib
from importlib import import_module

import numpy as np
import pytest

from fedmq.demo.data import SAMPLE, dirichlet, iid, load_mnist, shards
from fedmq.demo.data.cut_sample import cut
from fedmq.schemas.errors import InputError

LABELS = np.repeat(np.arange(10), [70, 80, 90, 100, 110, 100, 90, 130, 120, 110])


def test_the_sample_has_800_training_and_200_test_images_of_each_digit():
    data = load_mnist()
    assert np.bincount(data.y_train).tolist() == [800] * 10
    assert np.bincount(data.y_test).tolist() == [200] * 10
    assert data.x_train.shape == (8000, 28, 28)
    assert data.x_train.dtype == np.uint8
    assert SAMPLE.stat().st_size < 2_000_000


def test_cutting_the_sample_again_gives_the_same_bytes(tmp_path):
    sample = load_mnist()
    digests = set()
    for name in ("a.npz", "b.npz"):
        np.savez_compressed(tmp_path / name, **cut(sample, 20, 5)._asdict())
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    assert np.bincount(load_mnist(tmp_path / "a.npz").y_train).tolist() == [20] * 10


def test_a_missing_file_a_broken_one_and_one_of_other_keys_are_each_named(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "flat.npz", x_train=np.zeros((5, 784)), y_train=np.zeros(5), x_test=0, y_test=0)
    with pytest.raises(InputError, match="There is no data file"):
        load_mnist(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"broken.npz is not a readable .npz file"):
        load_mnist(tmp_path / "broken.npz")
    with pytest.raises(InputError, match=r"has the arrays \['images'\], expected"):
        load_mnist(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"x_train is \[5, 784\]"):
        load_mnist(tmp_path / "flat.npz")


def test_full_is_read_from_the_cache_of_keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError, match="not in Keras's cache"):
        load_mnist("full", download=False)
    (tmp_path / "datasets").mkdir()
    np.savez(tmp_path / "datasets" / "mnist.npz", **cut(load_mnist(), 2, 1)._asdict())
    assert len(load_mnist("full").y_train) == 20


DEALS = {
    "iid": lambda seed: iid(1000, 7, seed),
    "iid of unequal sizes": lambda seed: iid(1000, 3, seed, weights=[5, 3, 2]),
    "dirichlet": lambda seed: dirichlet(LABELS, 7, 0.3, seed),
    "dirichlet of unequal sizes": lambda seed: dirichlet(LABELS, 3, 0.3, seed, weights=[5, 3, 2]),
    "shards": lambda seed: shards(LABELS, 7, 2, seed),
}


@pytest.mark.parametrize("name", DEALS)
@pytest.mark.parametrize("seed", range(20))
def test_every_example_goes_to_exactly_one_participant(name, seed):
    assert sorted(np.concatenate(DEALS[name](seed)).tolist()) == list(range(1000))


@pytest.mark.parametrize("name", DEALS)
def test_a_seed_repeats_the_deal_and_another_changes_it(name):
    first, again, other = DEALS[name](1), DEALS[name](1), DEALS[name](2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_make_sizes_in_their_proportion():
    assert [len(rows) for rows in iid(1000, 3, 0, weights=[5, 3, 2])] == [500, 300, 200]


def test_a_small_alpha_skews_the_labels_and_a_large_one_does_not():
    def largest_class(alpha):
        deal = dirichlet(LABELS, 5, alpha, seed=3)
        return np.mean([np.bincount(LABELS[rows], minlength=10).max() / len(rows) for rows in deal])

    assert largest_class(0.05) > 0.4
    assert largest_class(1000) < 0.15


def test_two_shards_each_hold_few_classes():
    for rows in shards(np.repeat(np.arange(10), 100), 10, 2, seed=0):
        assert len(np.unique(LABELS[rows])) <= 4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dirichlet(LABELS, 3, 0.0, 1), "alpha is 0.0"),
        (lambda: iid(10, 0, 1), "num_participants is 0"),
        (lambda: iid(10, 2, 1, weights=[1, -1]), "expected 2 positive numbers"),
        (lambda: shards(LABELS, 600, 2, 1), "600 participants with 2 shards each from 1000 examples"),
    ],
)
def test_impossible_deals_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_an_app_has_the_same_names_from_fedmq_data():
    public, own = import_module("fedmq.data"), import_module("fedmq.demo.data")
    assert public.__all__ == own.__all__
    assert all(getattr(public, name) is getattr(own, name) for name in own.__all__)
