"""How the recipe's images are augmented: whole batches, each rank by draws of its own, and a resumed run as the uninterrupted one."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import trainer
from kakurenbo_recipes.data import Digits, ImageData, InMemoryImages, crop_and_flip, cut_out
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from recipe_runs import set_up

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks.forked import printed, run_ranks

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
    augmented = Digits(crop_padding=2, flip=True).augment(image.expand(200, -1, -1, -1))
    assert len(augmented.flatten(1).unique(dim=0)) > 40  # of 5 x 5 places x 2


@pytest.mark.parametrize("training", [True, False])
def test_images_are_augmented_only_in_training(training):
    data = Digits()
    data.trainer = SimpleNamespace(training=training, global_rank=0)
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    batch, labels = data.on_after_batch_transfer((images, torch.arange(32)), 0)
    assert torch.equal(batch, data.normalise(images)) is not training
    assert labels.tolist() == list(range(32))


def test_normalised_digits_have_zero_mean_and_unit_variance():
    data = set_up(Digits())
    images = data.normalise(data.train_images.images)
    assert images.dtype == torch.float32 and images.mean().abs() < 0.01 and (images.std() - 1).abs() < 0.01


# ---- cutout and scaling


def test_a_square_is_cut_out_of_each_image():
    images, expected = torch.ones(2, 3, 2, 8, 10)
    expected[0, :, 2:6, 3:7] = expected[1, :, :2, :2] = expected[2, :, 5:, 7:] = 0
    assert torch.equal(cut_out(images, 4, torch.tensor([[0.5, 0.0, 0.99], [0.5, 0.0, 0.99]])), expected)
    assert torch.equal(images, torch.ones(3, 2, 8, 10)), "the images stay as they are"


@pytest.mark.parametrize("training", [True, False])
def test_a_hole_is_of_the_mean_colour_and_made_before_the_scaling(training):
    white, made = torch.full((50, 3, 8, 8), 255, dtype=torch.uint8), []
    for resize in (None, 16):
        data = Digits(size=8, cutout=4, crop_padding=0, resize=resize)
        data.trainer = SimpleNamespace(training=training, global_rank=0)
        torch.manual_seed(0)
        made.append(data.on_after_batch_transfer((white, torch.zeros(50)), 0)[0])
    assert torch.equal(made[1], F.interpolate(made[0], size=(16, 16), mode="bicubic", antialias=True))
    assert made[0].unique().tolist() == [0, *data.normalise(white).unique().tolist()][not training :]
    holes = (made[0] == 0).all(1).flatten(1).sum(1)
    assert (holes.max() == 16 and holes.min() >= 4) if training else holes.max() == 0


def test_images_are_scaled_on_the_device_after_all_else():
    data = set_up(Digits(size=8, resize=24))
    images, labels = next(iter(data.val_dataloader()))
    scaled, same = data.on_after_batch_transfer((images, labels), 0)
    assert scaled.shape == (len(images), 3, 24, 24) and scaled.dtype == torch.float32
    assert same is labels
    middles = scaled[:, :, 1::3, 1::3]  # the middle of the nine pixels that one has become is that pixel
    assert torch.allclose(middles[:, :, 2:-2, 2:-2], data.normalise(images)[:, :, 2:-2, 2:-2], atol=0.02)


# ---- ranks and resumed runs


class OneImage(ImageData):
    """The same image again and again: two batches are equal when they are augmented alike."""

    num_classes, mean, std = 2, (0.5,) * 3, (0.25,) * 3

    def load(self):
        image = torch.arange(3 * 64).view(1, 3, 8, 8).to(torch.uint8)
        return (InMemoryImages(image.expand(count, -1, -1, -1), torch.arange(count) % 2) for count in (96, 8))


class Watched(ImageClassifier):
    """Remembers the images it was trained on, by epoch and batch."""

    def training_step(self, batch, batch_idx):
        if self.training and torch.is_grad_enabled():
            self.seen[f"{self.current_epoch} {batch_idx}"] = batch[0].clone()
        return super().training_step(batch, batch_idx)


def fit(folder, seed=0, resume=None):
    """Train on the ranks of this process's group, with a checkpoint in the middle; what rank r saw and learned goes to `<r>.pt`."""
    folder.mkdir(exist_ok=True)
    world_size, rank = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    torch.manual_seed(0)
    model = Watched(CifarResNet(width=4, num_classes=2), lambda parameters: torch.optim.SGD(parameters, lr=0.01), 2)
    model.seen = {}
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0, fractions=(1.0,), milestones=(), seed=0)
    save = [] if resume else [SaveAt(folder / "cut.ckpt", "on_train_batch_end", 1, 1)]
    ranks = {"devices": world_size, "strategy": "ddp" if world_size > 1 else "auto"}
    made = trainer(selection, *save, accelerator="cpu", max_epochs=3, **ranks)
    torch.manual_seed(seed)
    made.fit(model, datamodule=OneImage(batch_size=8, eval_batch_size=8, cutout=2), ckpt_path=resume)
    hidden = made.callback_metrics["selection/hidden_fraction"].item()
    torch.save({"seen": model.seen, "weights": model.state_dict(), "hidden": hidden}, folder / f"{rank}.pt")


def fit_and_resume(folder):
    fit(folder)
    fit(folder / "resumed", seed=9, resume=folder / "cut.ckpt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a training on two ranks, and of one that goes on from its middle."""
    folder = tmp_path_factory.mktemp("two")
    assert run_ranks(fit_and_resume, (folder,), 2, log=folder / "log", seconds=120) == [0, 0], printed(folder / "log", 2)
    return folder


def results(folder, rank=0):
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def test_ranks_augment_by_draws_of_their_own(two):
    first, second = (results(two, rank)["seen"] for rank in (0, 1))
    assert first.keys() == second.keys() and len(first) > 8
    assert not any(torch.equal(images, second[at]) for at, images in first.items())
    batches = [images for images in (*first.values(), *second.values()) if len(images) == 8]
    assert len(torch.stack(batches).unique(dim=0)) == len(batches), "no two batches of a run are alike"


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_run_that_resumes_augments_as_if_nothing_had_been(tmp_path, two, ranks, rank):
    if ranks == 1:
        fit_and_resume(tmp_path)
    folder = tmp_path if ranks == 1 else two
    whole, resumed = results(folder, rank), results(folder / "resumed", rank)
    assert 0.1 < whole["hidden"] == resumed["hidden"], "some are hidden, and refreshed"
    assert resumed["seen"].keys() == {at for at in whole["seen"] if at > "1 1"}
    for name in ("seen", "weights"):
        assert all(torch.equal(value, whole[name][key]) for key, value in resumed[name].items()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_need_not_be_waited_for():
    data = OneImage(cutout=2)
    data.trainer = SimpleNamespace(training=True, global_rank=0)
    images, labels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8, device="cuda"), torch.zeros(8, device="cuda")
    data.on_after_batch_transfer((images, labels), 0)  # moves mean and deviation there
    torch.cuda.set_sync_debug_mode("error")
    try:
        data.on_after_batch_transfer((images, labels), 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
