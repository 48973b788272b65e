"""The recipe's data: images decoded once into memory, batched indexing, held-out images, arrays."""

import pickle

import numpy as np
import pytest
import torch
from kakurenbo_recipes.array_data import ArrayImages
from kakurenbo_recipes.data import Digits, InMemoryImages, with_label_noise
from kakurenbo_recipes.data_tools import channel_statistics, stratified
from recipe_runs import set_up

# ---- data


def test_a_batch_is_indexed_as_its_samples_are():
    images = InMemoryImages(torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8), torch.arange(10))
    batch, labels = images.__getitems__([7, 1, 1])
    assert labels.tolist() == [7, 1, 1]
    assert torch.equal(batch, torch.stack([images[i][0] for i in (7, 1, 1)]))
    assert batch.dtype == torch.uint8


def test_digits_are_split_by_class_once_and_for_all():
    first, second, other = set_up(Digits(size=8), Digits(size=8), Digits(size=8, split_seed=1))
    assert len(first.train_images) + len(first.test_images) == 1797
    shares = torch.bincount(first.test_images.labels) / (torch.bincount(first.train_images.labels) / 0.8)
    assert torch.allclose(shares, torch.full((10,), 0.2), atol=0.02)
    assert torch.equal(first.train_images.images, second.train_images.images)
    assert not torch.equal(first.train_images.labels, other.train_images.labels)


def test_digits_are_scaled_up_to_the_size_asked_for():
    images = set_up(Digits(size=20, subset=50, batch_size=50)).train_images.images
    assert images.shape == (50, 3, 20, 20) and images.dtype == torch.uint8 and images.amax() > 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": 5000}, r"data\.subset=5000 is not possible: it must be at most 1437"),
        ({"subset": 50, "drop_last": True}, r"data\.batch_size=64 is not possible: it must be at most 50"),
        (
            {"subset": 1, "batch_size": 1, "held_out": 0.1},
            r"data\.held_out=0\.1 is not possible: it must be 0 where each class has one",
        ),
    ],
)
def test_what_the_images_do_not_allow_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        set_up(Digits(size=8, **settings))


def test_the_short_last_batch_is_left_out_of_training_only():
    data = set_up(Digits(size=8, subset=50, batch_size=20, eval_batch_size=50, drop_last=True))
    assert [len(labels) for _, labels in data.train_dataloader()] == [20, 20]
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 360


# ---- label noise


def test_noise_replaces_the_share_asked_for_by_other_classes_drawn_uniformly():
    labels = torch.arange(10).repeat(2000)
    noisy = with_label_noise(labels, 0.3, 10, seed=0)
    changed = noisy != labels
    assert int(changed.sum()) == 6000 and 0 <= int(noisy.min()) <= int(noisy.max()) < 10
    # 90 pairs of a class and another one, 66.7 each: chi-square has 89 degrees of freedom, its 99.99 % quantile is 144
    pairs = torch.bincount(labels[changed] * 10 + noisy[changed], minlength=100).view(10, 10)
    counts = pairs[~torch.eye(10, dtype=torch.bool)].double()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 144


@pytest.mark.parametrize(("share", "changed"), [(0, 0), (0.001, 1), (0.29, 290), (0.9999, 1000)])
def test_the_number_of_wrong_labels_is_exact(share, changed):
    labels = torch.randint(0, 2, (1000,), generator=torch.Generator().manual_seed(0))
    assert int((with_label_noise(labels, share, 2, seed=3) != labels).sum()) == changed


def test_noise_is_of_its_seed_and_more_noise_keeps_what_less_changed():
    labels = torch.arange(1000) % 10
    little, again = (with_label_noise(labels, 0.1, 10, seed=5) for _ in range(2))
    more, other = with_label_noise(labels, 0.2, 10, seed=5), with_label_noise(labels, 0.1, 10, seed=6)
    assert torch.equal(little, again) and not torch.equal(little, other)
    assert torch.equal(more[little != labels], little[little != labels])


def test_only_training_labels_are_noisy_and_the_clean_ones_are_kept():
    random = torch.get_rng_state()
    clean, noisy = set_up(Digits(size=8, subset=200, held_out=0.2), Digits(size=8, subset=200, held_out=0.2, label_noise=0.1))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(clean.train_images.labels, clean.clean_labels) and torch.equal(noisy.clean_labels, clean.clean_labels)
    assert torch.equal(noisy.train_images.images, clean.train_images.images)
    for part in ("val_images", "test_images"):
        assert torch.equal(getattr(noisy, part).labels, getattr(clean, part).labels)
    noisy.setup("validate")
    assert int((noisy.train_images.labels != noisy.clean_labels).sum()) == round(0.1 * len(noisy.train_images))


# ---- held-out images


def test_held_out_images_are_validated_on_and_not_trained():
    whole, data, same, other = set_up(Digits(), *(Digits(held_out=0.1, held_out_seed=seed) for seed in (0, 0, 1)))
    expected = [max(1, round(0.1 * count)) for count in whole.train_images.labels.bincount().tolist()]
    assert data.val_images.labels.bincount().tolist() == expected, "a tenth of each class"
    together = torch.cat([data.train_images.images, data.val_images.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), whole.train_images.images.flatten(1).unique(dim=0))
    assert len(together) == len(whole.train_images)
    assert torch.equal(data.val_images.images, same.val_images.images)
    assert not torch.equal(data.val_images.images, other.val_images.images)
    assert data.val_dataloader().dataset is data.val_images
    assert data.test_dataloader().dataset is data.test_images
    assert whole.val_dataloader().dataset is whole.test_images


def test_a_class_of_one_image_is_trained():
    data = set_up(Digits(size=8, subset=11, batch_size=4, held_out=0.1))
    assert len(data.train_images) + len(data.val_images) == 11
    counts = torch.cat([data.train_images.labels, data.val_images.labels]).bincount(minlength=10)
    assert data.val_images.labels.bincount(minlength=10).tolist() == (counts > 1).long().tolist()


# ---- a share of each class, mean and standard deviation


def test_a_share_of_each_class_is_drawn_by_its_seed():
    labels = torch.tensor([2] * 100 + [0] * 50 + [5] * 3 + [7]).roll(13)
    kept, held = stratified(labels, 0.1, seed=0)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    assert labels[held].bincount(minlength=8).tolist() == [5, 0, 10, 0, 0, 1, 0, 0], "one at least, but never all"
    assert torch.equal(kept, kept.sort().values) and torch.equal(held, held.sort().values)
    assert [torch.equal(held, stratified(labels, 0.1, seed)[1]) for seed in (0, 1)] == [True, False]


def test_every_sample_of_a_class_is_held_out_as_often():
    labels = torch.arange(40) % 4
    drawn = torch.cat([stratified(labels, 0.3, seed)[1] for seed in range(2000)]).bincount(minlength=40)
    assert drawn.sum() == 2000 * 12
    assert ((drawn - 600).abs() < 4 * (2000 * 0.3 * 0.7) ** 0.5).all()


def test_mean_and_deviation_are_those_of_all_pixels():
    pixels = torch.randint(0, 256, (50, 3, 6, 7), dtype=torch.uint8) // torch.tensor([1, 2, 3])[None, :, None, None]
    mean, std = channel_statistics(InMemoryImages(pixels.byte(), torch.zeros(50)))
    assert torch.allclose(torch.tensor(mean), pixels.float().mean((0, 2, 3)) / 255)
    assert torch.allclose(torch.tensor(std), pixels.float().std((0, 2, 3), correction=0) / 255)


def test_mean_and_deviation_of_a_large_set_are_of_images_evenly_spread(monkeypatch):
    monkeypatch.setattr("kakurenbo_recipes.data_tools.PIXELS", 10)
    pixels = torch.arange(0, 200, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 2)  # 20 images of 2 pixels
    mean, _ = channel_statistics(InMemoryImages(pixels, torch.zeros(20)))
    assert mean == pytest.approx((80 / 255,) * 3)  # images 0, 4, 8, 12, 16
    assert channel_statistics(InMemoryImages(pixels[:1], torch.zeros(1)))[1] == (1 / 255,) * 3, "nothing is divided by zero"


# ---- arrays that stay in their file


def write_arrays(folder, classes=4, each=50, side=9):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (classes * each, side, side), dtype=np.uint8)
    labels = random.permutation(np.repeat(np.arange(classes), each))
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.mark.filterwarnings("error")
def test_arrays_are_split_by_class_and_read_by_batch(tmp_path):
    images, labels = write_arrays(tmp_path)
    data = set_up(ArrayImages(str(tmp_path), test_share=0.1, batch_size=16))
    assert data.num_classes == 4
    train, test = data.train_images, data.test_images
    assert test.labels.bincount().tolist() == [5] * 4 and len(train) == 180
    assert torch.equal(torch.cat([train.rows, test.rows]).sort().values, torch.arange(200))
    for part in (train, test):
        batch, found = part.__getitems__([7, 0, 7])
        assert batch.dtype == torch.uint8 and batch.stride(1) == 0, "three channels by a view"
        assert torch.equal(batch, images[part.rows[[7, 0, 7]]][:, None].expand(-1, 3, -1, -1))
        assert found.tolist() == labels[part.rows[[7, 0, 7]]].tolist()
        assert torch.equal(part[7][0], batch[0]) and part[7][1] == found[0]
    mean, std = images[train.rows].double().mean() / 255, images[train.rows].double().std(correction=0) / 255
    assert data.mean == pytest.approx((mean.item(),) * 3) and data.std == pytest.approx((std.item(),) * 3)
    batch, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.shape == (16, 3, 9, 9)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_arrays_and_their_copies_are_small(tmp_path, method):
    images, _ = write_arrays(tmp_path)
    settings = {"eval_batch_size": 30, "num_workers": 1, "subset": 40, "held_out": 0.25, "mean": [0.5] * 3, "std": [0.5] * 3}
    data = set_up(ArrayImages(str(tmp_path), **settings))
    assert len(pickle.dumps(data.train_images)) < 5000
    loader = data.val_dataloader()
    loader.multiprocessing_context = method
    ((batch, labels),) = list(loader)
    assert torch.equal(batch[:, 2], images[data.val_images.rows]) and torch.equal(labels, data.val_images.labels)
    assert len(data.val_images) + len(data.train_images) == 40 and data.val_images.labels.unique().tolist() == [0, 1, 2, 3]


def test_wrong_labels_of_arrays_are_those_of_the_training_alone(tmp_path):
    write_arrays(tmp_path)
    data = set_up(ArrayImages(str(tmp_path), test_share=0.1, label_noise=0.5))
    assert int((data.train_images.labels != data.clean_labels).sum()) == 90
    assert torch.equal(data.train_images.images[:, 0], torch.from_numpy(np.load(tmp_path / "images.npy"))[data.train_images.rows])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (None, [0, 1], r"holds no images\.npy\. .* kakurenbo-fractal --format array --size 32 -o"),
        (np.zeros((2, 4, 4), np.uint8), None, r"holds no labels\.npy"),
        (np.zeros((3, 4, 4), np.uint8), [0, 1], r"images\.npy holds uint8 \[3, 4, 4\], but uint8 \[2, S, S\] is needed"),
        (np.zeros((2, 4, 4), np.float32), [0, 1], r"images\.npy holds float32"),
        (np.zeros((2, 4, 4), np.uint8), [0, -1], r"labels\.npy holds int64 \[2\], with \[ 0 -1\] first, but int64 \[N\]"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, 1], r"labels\.npy holds float64"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"data\.test_share=0\.02 is not possible: it must be a share that leaves"),
    ],
)
def test_arrays_that_are_not_as_they_should_be_are_named(tmp_path, images, labels, message):
    for name, array in (("images", images), ("labels", labels)):
        if array is not None:
            np.save(tmp_path / f"{name}.npy", np.array(array))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        set_up(ArrayImages(str(tmp_path)))
