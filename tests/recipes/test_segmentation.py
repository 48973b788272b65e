"""Segmentation: DeepLabv3, batches of one image, the losses of dense samples, and intersection over union."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from climate_files import SIZE, data_of
from helpers import fit, trainer
from kakurenbo_recipes.climate_data import CLASS_FREQUENCIES, ClimateFiles, DeepCam
from kakurenbo_recipes.deepcam import Synthetic
from kakurenbo_recipes.segmentation import DeepLab, Segmenter
from kakurenbo_recipes.train import config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection

WEIGHTS = DeepCam.class_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A synthetic set, written once."""
    folder = tmp_path_factory.mktemp("made") / "deepcam"
    Synthetic(files=52, validation=5, **SIZE).write(folder)
    return folder


def segmenter(network, rate=0.1, **settings):
    return Segmenter(network, partial(torch.optim.SGD, lr=rate), 3, **{"class_weights": WEIGHTS, **settings})


def pixelwise():
    """A network whose logits of a pixel depend on that pixel alone."""
    torch.manual_seed(0)
    return nn.Conv2d(16, 3, 1)


# ---- the network


def test_deeplab_gives_logits_of_the_size_of_the_images():
    network = DeepLab("deeplabv3_mobilenet_v3_large", channels=16, num_classes=3)
    assert network(torch.zeros(2, 16, 40, 56)).shape == (2, 3, 40, 56)
    assert network.eval()(torch.zeros(1, 16, 40, 56)).shape == (1, 3, 40, 56)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"])
def test_deeplab_takes_any_number_of_channels_and_keeps_the_rest_of_torchvisions_network(name):
    with torch.device("meta"):
        states = [DeepLab(name, channels=channels, num_classes=5).state_dict() for channels in (3, 16)]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    assert shapes[0].keys() == shapes[1].keys()
    (changed,) = (key for key in shapes[0] if shapes[0][key] != shapes[1][key])
    assert shapes[1][changed][1] == 16 and shapes[0][changed][1] == 3


def test_images_of_other_channels_are_refused():
    network = DeepLab("deeplabv3_mobilenet_v3_large", channels=4)
    with pytest.raises(ValueError, match=r"model\.channels=4, but the images have 16 channels: set it to the number of data"):
        network(torch.zeros(2, 16, 32, 48))


class Lengths(Callback):
    """Writes down how many images each step trained."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.steps.append(len(batch[0]))


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Nine files: an epoch in batches of four ends with one that is left over."""
    folder = tmp_path_factory.mktemp("nine") / "deepcam"
    Synthetic(files=9, validation=1, **SIZE).write(folder)
    return folder


def test_an_image_that_is_left_over_is_trained_with_the_batch_before(nine):
    lengths, module = Lengths(), segmenter(DeepLab("deeplabv3_mobilenet_v3_large"))
    fit(module, data_of(nine), SampleSelection("baseline"), lengths, max_epochs=1)
    assert lengths.steps == [4, 3, 2]


def test_without_the_callback_a_single_image_is_refused_and_drop_last_helps(nine):
    with pytest.raises(ValueError, match=r"DeepLab cannot train on a batch of one image.* use data\.drop_last=true"):
        fit(segmenter(DeepLab("deeplabv3_mobilenet_v3_large")), data_of(nine), max_epochs=1)
    lengths = Lengths()
    fit(segmenter(DeepLab("deeplabv3_mobilenet_v3_large")), data_of(nine, drop_last=True), lengths, max_epochs=1)
    assert lengths.steps == [4, 4]


# ---- losses, metrics and selection


def losses_by_numpy(logits, labels):
    """The mean of weight[class] * -log softmax over the pixels of each image, float64 [N]."""
    logits = logits.astype(np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    picked = np.take_along_axis(log_softmax, labels[:, None], 1)[:, 0]
    return (-np.array(WEIGHTS)[labels] * picked).mean((1, 2))


def everything(root, part, count):
    files = ClimateFiles(sorted((root / part).iterdir()), *data_of(root)._range())
    images, labels = zip(*(files[index] for index in range(count)), strict=True)
    return torch.stack(images), torch.stack(labels)


def test_the_losses_of_samples_equal_a_numpy_reference(root):
    network, selection = pixelwise(), SampleSelection("baseline")
    images, labels = everything(root, "train", 52)
    with torch.no_grad():
        logits = network(images).numpy()
    expected = losses_by_numpy(logits, labels.numpy())
    made = fit(segmenter(network, rate=0.0), data_of(root), selection, max_epochs=2)
    assert np.allclose(selection.statistics.loss, expected, rtol=1e-5)
    odds = np.exp(logits)
    confidence = (odds.max(1) / odds.sum(1)).mean((1, 2))
    assert np.allclose(selection.statistics.confidence.float(), confidence, atol=1e-3)
    right = (logits.argmax(1) == labels.numpy()).mean((1, 2)) >= 0.5
    assert np.array_equal(selection.statistics.correct, right)
    assert made.callback_metrics["train/loss"].item() == pytest.approx(expected.mean(), rel=1e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_samples(root):
    images, labels = everything(root, "train", 6)
    module = segmenter(pixelwise())
    logits = module(images)
    expected = losses_by_numpy(logits.detach().numpy(), labels.numpy())
    assert module.loss(logits, labels).item() == pytest.approx(expected.mean(), rel=1e-5)


def test_the_logged_iou_is_that_of_a_numpy_reference(root):
    images, labels = everything(root, "validation", 5)
    labels[0] = labels[0].clamp(max=0)  # an image without events
    network = pixelwise()
    with torch.no_grad():
        network.bias += torch.tensor([0.0, -9.0, 0.0])  # no cyclone is predicted
        predicted = network(images).argmax(1).numpy()
    module = segmenter(network, class_names=["background", "cyclone", "river"])
    found = trainer().validate(module, DataLoader(TensorDataset(images, labels), batch_size=3), verbose=False)[0]

    def iou(guess, truth):
        either = [((guess == kind) | (truth == kind)).sum() for kind in range(3)]
        both = [((guess == kind) & (truth == kind)).sum() for kind in range(3)]
        return np.array([b / e if e else np.nan for b, e in zip(both, either, strict=True)])

    expected = iou(predicted, labels.numpy())
    assert np.isfinite(expected).all() and expected[1] == 0
    assert [found[f"val/iou_{name}"] for name in ("background", "cyclone", "river")] == pytest.approx(list(expected), rel=1e-5)
    assert found["val/iou"] == pytest.approx(expected.mean(), rel=1e-5)
    each = [np.nan_to_num(iou(*pair), nan=1.0).mean() for pair in zip(predicted, labels.numpy(), strict=True)]
    assert found["val/iou_per_image"] == pytest.approx(np.mean(each), rel=1e-5)


def test_a_class_that_is_nowhere_does_not_count_in_the_mean(root):
    images, labels = everything(root, "validation", 3)
    labels = labels.clamp(max=0)
    network = pixelwise()
    with torch.no_grad():
        network.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    found = trainer().validate(segmenter(network), DataLoader(TensorDataset(images, labels), batch_size=3), verbose=False)[0]
    assert found["val/iou"] == 1.0 and found["val/iou_per_image"] == 1.0 and found["val/iou_2"] == 0.0


def test_the_oldest_torchmetrics_that_is_allowed_is_tested():
    """Before 1.7.1 a class that an image does not have counts as 0 there."""
    repository = Path(config_dir()).parent
    allowed = [line for line in (repository / "pyproject.toml").read_text().splitlines() if "torchmetrics>" in line]
    assert allowed == ['    "torchmetrics>=1.7.1",']
    assert "torchmetrics==1.7.1" in (repository / ".ci" / "oldest.txt").read_text().splitlines()


def test_kakurenbo_hides_images_and_drops_those_of_highest_loss(root):
    selection = SampleSelection("kakurenbo", max_fraction=0.3, tau=0.0, fractions=(1.0,), milestones=(), drop_top=0.02)
    made = fit(segmenter(pixelwise()), data_of(root), selection, max_epochs=2)
    hidden = selection.plan.hidden.tolist()
    assert 1 < len(hidden) <= 16  # of 52: 15 of lowest loss and 1 of highest
    assert selection.totals.samples_hidden == len(hidden) and selection.totals.samples_trained == 104 - len(hidden)
    assert {"train/loss", "val/loss", "val/iou", "val/iou_0", "val/iou_1", "val/iou_2"} <= made.callback_metrics.keys()
    assert 0 < made.callback_metrics["val/iou"] < 1


def test_the_image_of_highest_loss_is_left_out(root):
    """With a network that stays as it is, losses are known: the 15 lowest that are right and the highest one are hidden."""
    network, images_labels = pixelwise(), everything(root, "train", 52)
    with torch.no_grad():
        network.bias += torch.tensor([5.0, 0.0, 0.0])  # background nearly everywhere
        losses = losses_by_numpy(network(images_labels[0]).numpy(), images_labels[1].numpy())
    selection = SampleSelection("kakurenbo", max_fraction=0.3, tau=0.0, fractions=(1.0,), milestones=(), drop_top=0.02)
    fit(segmenter(network, rate=0.0), data_of(root), selection, max_epochs=2)
    order = losses.argsort()
    assert sorted(selection.plan.hidden.tolist()) == sorted([*order[:15], order[-1]])


def test_the_weights_of_the_config_are_those_of_the_reference_code():
    task = OmegaConf.load(os.path.join(config_dir(), "task", "segmentation.yaml"))
    assert task.class_weights == pytest.approx([share**-0.125 for share in CLASS_FREQUENCIES])
    assert task.class_weights == pytest.approx(DeepCam.class_weights)
