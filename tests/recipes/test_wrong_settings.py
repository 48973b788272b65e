"""A wrong setting of data, a network, a task or a schedule is named, with its value and what is allowed."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from kakurenbo_recipes.array_data import ArrayImages
from kakurenbo_recipes.climate_data import DeepCam, GeneratedDeepCam
from kakurenbo_recipes.data import Digits
from kakurenbo_recipes.models import CifarResNet, WideResNet, timm_network
from kakurenbo_recipes.schedules import schedule
from kakurenbo_recipes.segmentation import DeepLab, Segmenter
from kakurenbo_recipes.settings import made_method
from kakurenbo_recipes.torchvision_data import FolderImages, TorchvisionImages
from kakurenbo_recipes.train import config_dir

folders, arrays = partial(FolderImages, "nowhere"), partial(ArrayImages, "nowhere")
segmenter, rates = partial(Segmenter, None, None, 3), partial(schedule, None, None)
WRONG = [
    (Digits, {"batch_size": 0}, "data.batch_size=0 is not possible: it must be an int >= 1. Try 128."),
    (Digits, {"batch_size": True}, "data.batch_size=True"),
    (Digits, {"eval_batch_size": 1.5}, "data.eval_batch_size=1.5"),
    (Digits, {"num_workers": -1}, "data.num_workers=-1 is not possible: it must be an int >= 0"),
    (Digits, {"subset": 0}, "data.subset=0 is not possible: it must be null or an int >= 1"),
    (Digits, {"eval_subset": 0}, "data.eval_subset=0 is not possible: it must be null or an int >= 1. Use null for all test"),
    (
        Digits,
        {"label_noise": 1.0},
        "data.label_noise=1.0 is not possible: it must be a number in [0, 1). Try 0.1, or 0 for none.",
    ),
    (Digits, {"label_noise": -0.1}, "data.label_noise=-0.1"),
    (Digits, {"label_noise": True}, "data.label_noise=True"),
    (Digits, {"label_noise": "10 %"}, "data.label_noise='10 %'"),
    (Digits, {"label_noise": float("nan")}, "data.label_noise=nan"),
    (Digits, {"label_noise_seed": -1}, "data.label_noise_seed=-1 is not possible: it must be an int >= 0. Try 0."),
    (Digits, {"drop_last": 1}, "data.drop_last=1 is not possible: it must be true or false"),
    (Digits, {"crop_padding": -1}, "data.crop_padding=-1"),
    (Digits, {"flip": "yes"}, "data.flip='yes' is not possible: it must be true or false"),
    (Digits, {"cutout": -1}, "data.cutout=-1"),
    (Digits, {"held_out": 1.0}, "data.held_out=1.0"),
    (Digits, {"held_out_seed": "a"}, "data.held_out_seed='a'"),
    (Digits, {"resize": 4}, "data.resize=4 is not possible: it must be null or an int >= 8. Use null to leave the images as"),
    (Digits, {"size": 4}, "data.size=4 is not possible: it must be an int >= 8"),
    (Digits, {"test_share": 1.0}, "data.test_share=1.0 is not possible: it must be within 0.01 and 0.99"),
    (Digits, {"split_seed": -1}, "data.split_seed=-1"),
    (arrays, {"test_share": 0}, "data.test_share=0 is not possible: it must be a number above 0 and below 1. Try 0.02."),
    (arrays, {"split_seed": -1}, "data.split_seed=-1 is not possible"),
    (arrays, {"mean": [0.5] * 3}, "data.std=None is not possible: it must be three numbers above 0, one for each channel. Set"),
    (arrays, {"mean": [0.5], "std": [1, 1, 1]}, "data.mean=[0.5] is not possible: it must be three numbers, one for each"),
    (arrays, {"mean": [0.5] * 3, "std": [1, 0, 1]}, "data.std=[1, 0, 1] is not possible"),
    (arrays, {"mean": "abc", "std": [1, 1, 1]}, "data.mean='abc'"),
    (TorchvisionImages, {"name": "cifar1000"}, "data.name='cifar1000' is not possible: it must be one of cifar100, svhn"),
    (folders, {"size": 4}, "data.size=4 is not possible: it must be an int >= 8"),
    (folders, {"held_out": 1}, "data.held_out=1 is not possible: it must be null or a number in [0, 1). Try 0.02"),
    (folders, {"train_transform": "crop"}, "data.train_transform='crop' is not possible: it must be null or something to call"),
    (folders, {"eval_size": 4}, "data.eval_size=4 is not possible: it must be null or an int >= 8"),
    (folders, {"eval_resize": "a"}, "data.eval_resize='a' is not possible: it must be null or an int >= 8"),
    (folders, {"eval_resize": 100}, "data.eval_resize=100 is not possible: it must be at least eval_size=224"),
    (DeepCam, {"batch_size": 0}, "data.batch_size=0"),
    (DeepCam, {"eval_batch_size": True}, "data.eval_batch_size=True"),
    (DeepCam, {"num_workers": -1}, "data.num_workers=-1"),
    (DeepCam, {"drop_last": 1}, "data.drop_last=1"),
    (DeepCam, {"held_out": 1}, "data.held_out=1 is not possible: it must be a number in [0, 1)"),
    (DeepCam, {"held_out_seed": -1}, "data.held_out_seed=-1"),
    (GeneratedDeepCam, {"height": 16}, "data.height=16 is not possible: it must be an int from 32 to 4096"),
    (CifarResNet, {"depth": 9}, "model.depth=9 is not possible: it must be 6n + 2 with n >= 1"),
    (CifarResNet, {"depth": 2}, "model.depth=2"),
    (CifarResNet, {"width": 0}, "model.width=0 is not possible: it must be an int >= 1. Try 16."),
    (WideResNet, {"depth": 27}, "model.depth=27"),
    (WideResNet, {"width": 0}, "model.width=0"),
    (WideResNet, {"dropout": 1.0}, "model.dropout=1.0"),
    (timm_network, {"name": "resnet_18", "num_classes": 10}, "model.name='resnet_18' is not possible: it must be the name of a"),
    (DeepLab, {"name": "deeplabv3_resnet5"}, "model.name='deeplabv3_resnet5' is not possible: it must be one of deeplabv3_"),
    (DeepLab, {"channels": 0}, "model.channels=0"),
    (segmenter, {"class_weights": [1.0, 2.0]}, "task.class_weights=[1.0, 2.0] is not possible: it must be null or a number >= 0"),
    (segmenter, {"class_weights": [1.0, -2.0, 1.0]}, "task.class_weights="),
    (segmenter, {"class_names": ["a"]}, "task.class_names=['a']"),
    (rates, {"warmup_epochs": -1}, "schedule.warmup_epochs=-1"),
    (rates, {"warmup_factor": 0}, "schedule.warmup_factor=0"),
]


@pytest.mark.parametrize(("make", "settings", "message"), WRONG, ids=[message.split(" ")[0] for _, _, message in WRONG])
def test_a_wrong_setting_is_named_with_what_is_allowed(make, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)), torch.device("meta"):
        make(**settings)


@pytest.mark.parametrize(("make", "name"), [(timm_network, "resnet_18"), (DeepLab, "deeplabv3_resnet5")])
def test_an_unknown_network_gets_a_suggestion(make, name):
    with pytest.raises(ValueError, match=r"Did you mean .*(resnet18|deeplabv3_)"):
        make(name, num_classes=10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["F=1.5"], "kakurenbo: F=1.5 (max_fraction) is not allowed; max_fraction must be a number in [0, 1)"),
        (["method=random", "F=-1"], "random: F=-1.0 (max_fraction) is not allowed"),
        (["tau=2"], "kakurenbo: tau=2.0 is not allowed"),
        (["method.max_fraction=1.5"], "kakurenbo: max_fraction=1.5 is not allowed"),
    ],
)
def test_an_error_names_what_the_command_line_sets(compose, overrides, message):
    with pytest.raises(InstantiationException, match=re.escape(message)) as raised:
        made_method(compose(*overrides).method)
    assert str(raised.value.__cause__).startswith(message)


def test_the_help_says_that_f_is_max_fraction():
    text = " ".join((Path(config_dir()) / "train.yaml").read_text().split())
    assert "F is the method's max_fraction" in text
