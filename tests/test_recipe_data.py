"""The recipe's data: images decoded once into memory, batched indexing, augmentation of whole batches."""

import io
import re
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from recipes.data import CIFAR10, Digits, InMemoryImages, crop_and_flip, cut_out, read_parquet, with_label_noise


def write_parquet(path, images, labels, column="image"):
    """Write uint8 images [N, H, W, 3] as PNG bytes, which keep every pixel."""
    rows = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    pa.parquet.write_table(pa.table({column: rows, "label": labels}), path)


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


# ---- data


def test_a_batch_is_indexed_as_its_samples_are():
    images = InMemoryImages(torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8), torch.arange(10))
    batch, labels = images.__getitems__([7, 1, 1])
    assert labels.tolist() == [7, 1, 1]
    assert torch.equal(batch, torch.stack([images[i][0] for i in (7, 1, 1)]))
    assert batch.dtype == torch.uint8


def test_digits_are_split_by_class_once_and_for_all():
    first, second, other = Digits(size=8), Digits(size=8), Digits(size=8, split_seed=1)
    for data in (first, second, other):
        data.setup("fit")
    assert len(first.train_images) + len(first.test_images) == 1797
    shares = torch.bincount(first.test_images.labels) / (torch.bincount(first.train_images.labels) / 0.8)
    assert torch.allclose(shares, torch.full((10,), 0.2), atol=0.02)
    assert torch.equal(first.train_images.images, second.train_images.images)
    assert not torch.equal(first.train_images.labels, other.train_images.labels)


def test_digits_are_scaled_up_to_the_size_asked_for():
    data = Digits(size=20, subset=50, batch_size=50)
    data.setup("fit")
    assert data.train_images.images.shape == (50, 3, 20, 20)
    assert data.train_images.images.dtype == torch.uint8
    assert data.train_images.images.amax() > 240


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_images_come_back_pixel_by_pixel(tmp_path, column):
    images = random_images(5)
    write_parquet(tmp_path / "part.parquet", images, [3, 1, 4, 1, 5], column)
    read = read_parquet(tmp_path / "part.parquet")
    assert torch.equal(read.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert read.labels.tolist() == [3, 1, 4, 1, 5]
    assert read.labels.dtype == torch.int64


def test_parquet_without_images_names_its_columns(tmp_path):
    write_parquet(tmp_path / "part.parquet", random_images(1), [0], column="picture")
    with pytest.raises(ValueError, match=r"part\.parquet has the columns \['picture', 'label'\], but 'image'"):
        read_parquet(tmp_path / "part.parquet")


def test_parquet_of_several_sizes_names_the_row(tmp_path):
    images = [*random_images(2), random_images(1)[0, :16]]
    write_parquet(tmp_path / "part.parquet", images, [0, 1, 2])
    with pytest.raises(ValueError, match=r"row 2 is an image of shape \(3, 16, 32\)"):
        read_parquet(tmp_path / "part.parquet")


def test_cifar10_reads_parquet_and_trains_on_the_first_rows(tmp_path):
    images = random_images(12)
    write_parquet(tmp_path / "train.parquet", images[:8], list(range(8)))
    write_parquet(tmp_path / "test.parquet", images[8:], list(range(4)))
    data = CIFAR10(root=str(tmp_path), subset=5)
    data.prepare_data()
    data.setup("fit")
    assert data.train_images.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(data.test_images.images, torch.from_numpy(images[8:]).permute(0, 3, 1, 2))


def test_cifar10_falls_back_to_torchvision(tmp_path, monkeypatch):
    images = random_images(6)
    calls = []

    def download(root, train=True, download=False):
        calls.append(download)
        return SimpleNamespace(data=images[:4] if train else images[4:], targets=[0, 1, 2, 3] if train else [4, 5])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    data = CIFAR10(root=str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    assert calls == [True, False, False]
    assert torch.equal(data.train_images.images, torch.from_numpy(images[:4]).permute(0, 3, 1, 2))
    assert data.test_images.labels.tolist() == [4, 5]


def test_cifar10_without_data_or_network_says_what_to_get(tmp_path, monkeypatch):
    def download(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    with pytest.raises(FileNotFoundError, match=r"data\.root='.*no network.*huggingface\.co.*test\.parquet"):
        CIFAR10(root=str(tmp_path)).prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0 is not possible: it must be an int >= 1. Try 128."),
        ({"batch_size": True}, "data.batch_size=True"),
        ({"eval_batch_size": 1.5}, "data.eval_batch_size=1.5"),
        ({"num_workers": -1}, "data.num_workers=-1 is not possible: it must be an int >= 0"),
        ({"subset": 0}, "data.subset=0 is not possible: it must be null or an int >= 1"),
        ({"label_noise": 1.0}, "data.label_noise=1.0 is not possible: it must be a number in [0, 1). Try 0.1, or 0 for none."),
        ({"label_noise": -0.1}, "data.label_noise=-0.1"),
        ({"label_noise": True}, "data.label_noise=True"),
        ({"label_noise": "10 %"}, "data.label_noise='10 %'"),
        ({"label_noise": float("nan")}, "data.label_noise=nan"),
        ({"label_noise_seed": -1}, "data.label_noise_seed=-1 is not possible: it must be an int >= 0. Try 0."),
        ({"drop_last": 1}, "data.drop_last=1 is not possible: it must be true or false"),
        ({"crop_padding": -1}, "data.crop_padding=-1"),
        ({"flip": "yes"}, "data.flip='yes' is not possible: it must be true or false"),
        ({"size": 4}, "data.size=4 is not possible: it must be an int >= 8"),
        ({"test_share": 1.0}, "data.test_share=1.0 is not possible: it must be within 0.01 and 0.99"),
        ({"split_seed": -1}, "data.split_seed=-1"),
    ],
)
def test_a_wrong_data_setting_is_named_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Digits(**settings)


def test_a_subset_beyond_the_data_set_is_refused():
    data = Digits(size=8, subset=5000)
    with pytest.raises(ValueError, match=r"data\.subset=5000 is not possible: it must be at most 1437"):
        data.setup("fit")


def test_a_batch_larger_than_the_data_set_is_refused_where_it_would_be_dropped():
    with pytest.raises(ValueError, match=r"data\.batch_size=64 is not possible: it must be at most 50"):
        Digits(size=8, subset=50, batch_size=64, drop_last=True).setup("fit")


def test_the_short_last_batch_is_left_out_of_training_only():
    data = Digits(size=8, subset=50, batch_size=20, eval_batch_size=50, drop_last=True)
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == [20, 20]
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 360


# ---- label noise


def test_noise_replaces_the_share_asked_for_by_other_classes_drawn_uniformly():
    labels = torch.arange(10).repeat(2000)
    noisy = with_label_noise(labels, 0.3, 10, seed=0)
    changed = noisy != labels
    assert int(changed.sum()) == 6000
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 10
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
    assert torch.equal(little, again)
    assert not torch.equal(little, other)
    assert torch.equal(more[little != labels], little[little != labels])


def test_only_training_labels_are_noisy_and_the_clean_ones_are_kept():
    clean, noisy = Digits(size=8, subset=200), Digits(size=8, subset=200, label_noise=0.1)
    random = torch.get_rng_state()
    for data in (clean, noisy):
        data.setup("fit")
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(clean.train_images.labels, clean.clean_labels)
    assert torch.equal(noisy.clean_labels, clean.clean_labels)
    assert torch.equal(noisy.test_images.labels, clean.test_images.labels)
    assert torch.equal(noisy.train_images.images, clean.train_images.images)
    assert int((noisy.train_images.labels != noisy.clean_labels).sum()) == 20
    noisy.setup("validate")
    assert int((noisy.train_images.labels != noisy.clean_labels).sum()) == 20


# ---- augmentation


def slow_crop_and_flip(images, top, left, flipped, padding):
    """One sample, one pixel at a time."""
    result = torch.zeros_like(images)
    batch, _, height, width = images.shape
    for i in range(batch):
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if flipped[i] else x
                from_y, from_x = int(top[i]) + y - padding, int(left[i]) + column - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[i, :, y, x] = images[i, :, from_y, from_x]
    return result


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_and_flip_equals_the_slow_reference(padding):
    generator = torch.Generator().manual_seed(padding)
    images = torch.randint(0, 256, (9, 3, 5, 7), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, 9), generator=generator)
    flipped = torch.rand(9, generator=generator) < 0.5
    fast = crop_and_flip(images, top, left, flipped, padding)
    assert torch.equal(fast, slow_crop_and_flip(images, top, left, flipped, padding))
    assert fast.dtype == torch.uint8


def test_each_sample_is_augmented_by_its_own_draw():
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    augmented = CIFAR10(crop_padding=2).augment(image.expand(200, -1, -1, -1))
    assert len(augmented.flatten(1).unique(dim=0)) > 40  # of 5 x 5 places x 2


@pytest.mark.parametrize("training", [True, False])
def test_images_are_augmented_only_in_training(training):
    data = Digits()
    data.trainer = SimpleNamespace(training=training)
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    batch, labels = data.on_after_batch_transfer((images, torch.arange(32)), 0)
    assert torch.equal(batch, data.normalise(images)) is not training
    assert labels.tolist() == list(range(32))


def test_normalised_digits_have_zero_mean_and_unit_variance():
    data = Digits()
    data.setup("fit")
    images = data.normalise(data.train_images.images)
    assert images.dtype == torch.float32
    assert images.mean().abs() < 0.01
    assert (images.std() - 1).abs() < 0.01


# ---- cutout and held-out images


def test_a_square_is_cut_out_of_each_image():
    images = torch.ones(3, 2, 8, 10)
    places = torch.tensor([[0.5, 0.0, 0.99], [0.5, 0.0, 0.99]])
    cut = cut_out(images, 4, places)
    expected = torch.ones(3, 2, 8, 10)
    expected[0, :, 2:6, 3:7] = 0
    expected[1, :, :2, :2] = 0
    expected[2, :, 5:, 7:] = 0
    assert torch.equal(cut, expected)
    assert torch.equal(images, torch.ones(3, 2, 8, 10))


def test_only_training_images_are_cut():
    data = Digits(size=8, cutout=4, crop_padding=0)
    data.setup("fit")
    whole = torch.full((50, 3, 8, 8), 255, dtype=torch.uint8)
    zeros = (data.augment(whole)[:, 0] == 0).flatten(1).sum(1)
    assert zeros.max() == 16 and zeros.min() >= 4


def test_held_out_images_are_validated_on_and_not_trained():
    whole, data, same, other = Digits(), Digits(held_out=0.1), Digits(held_out=0.1), Digits(held_out=0.1, held_out_seed=1)
    for each in (whole, data, same, other):
        each.setup("fit")
    assert len(data.val_images) == round(0.1 * len(whole.train_images))
    together = torch.cat([data.train_images.images, data.val_images.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), whole.train_images.images.flatten(1).unique(dim=0))
    assert len(together) == len(whole.train_images)
    assert torch.equal(data.val_images.images, same.val_images.images)
    assert not torch.equal(data.val_images.images, other.val_images.images)
    assert data.val_dataloader().dataset is data.val_images
    assert data.test_dataloader().dataset is data.test_images
    assert whole.val_dataloader().dataset is whole.test_images


def test_wrong_labels_are_not_validated_on():
    clean, noisy = Digits(held_out=0.2), Digits(held_out=0.2, label_noise=0.5)
    for each in (clean, noisy):
        each.setup("fit")
    assert torch.equal(clean.val_images.labels, noisy.val_images.labels)
    assert not torch.equal(clean.train_images.labels, noisy.train_images.labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cutout": -1}, "cutout=-1"), ({"held_out": 1.0}, r"held_out=1\.0"), ({"held_out_seed": "a"}, "held_out_seed='a'")],
)
def test_a_wrong_cutout_or_split_is_named(settings, message):
    with pytest.raises(ValueError, match="data." + message):
        Digits(**settings)
