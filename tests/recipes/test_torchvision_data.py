"""Data sets of torchvision in memory, and folders of images; the files are made here."""

import pickle
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from kakurenbo_recipes.torchvision_data import SOURCES, FolderImages, TorchvisionImages, joined
from PIL import Image
from recipe_runs import set_up
from scipy.io import savemat
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.datasets import cifar, svhn
from torchvision.transforms import v2

from kakurenbo_lightning.core.class_labels import targets_of


def write_mnist(folder, count, side=28):
    """The idx files of MNIST: a header of big-endian numbers, then bytes."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    made = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        images = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, code, array in (("images-idx3-ubyte", 0x803, images), ("labels-idx1-ubyte", 0x801, labels)):
            header = np.array([code, *array.shape], dtype=">i4").tobytes()
            (folder / f"{name}-{kind}").write_bytes(header + array.tobytes())
        made[part] = images, labels
    return made


def test_grey_images_get_three_channels(tmp_path):
    made = write_mnist(tmp_path / "MNIST" / "raw", 12)
    data = TorchvisionImages("mnist", str(tmp_path), batch_size=4)
    data.prepare_data()
    set_up(data)
    assert data.num_classes == 10 and not data.flip
    for images, (pixels, labels) in ((data.train_images, made["train"]), (data.test_images, made["test"])):
        assert images.images.shape == (12, 3, 28, 28) and images.images.dtype == torch.uint8
        assert torch.equal(images.images, torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1))
        assert images.labels.tolist() == labels.tolist()


def test_cifar100_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # the files are not the published ones
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 32, 32), dtype=np.uint8)
    for name, images in zip(("train", "test"), pixels, strict=True):
        labels = list(range(90, 95))
        (folder / name).write_bytes(pickle.dumps({"data": images.reshape(5, -1), "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(n) for n in range(100)]}))
    data = set_up(TorchvisionImages("cifar100", str(tmp_path)))
    assert torch.equal(data.train_images.images, torch.from_numpy(pixels[0]))
    assert data.test_images.labels.tolist() == [90, 91, 92, 93, 94]
    assert data.num_classes == 100 and data.flip


def test_svhn_trains_on_the_extra_images_too(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "check_integrity", lambda *_: True)
    pixels = {}
    for number, part in enumerate(("train", "extra", "test")):
        pixels[part] = np.random.default_rng(number).integers(0, 256, (32, 32, 3, 4 + number), dtype=np.uint8)
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels[part], "y": np.full((4 + number, 1), 10 - number)})
    data = set_up(TorchvisionImages("svhn_extra", str(tmp_path)))
    assert len(data.train_images) == 9 and len(data.test_images) == 6
    assert data.train_images.labels.tolist() == [0] * 4 + [9] * 5  # svhn writes 0 as 10
    assert torch.equal(data.train_images.images[4], torch.from_numpy(pixels["extra"][:, :, :, 0]).permute(2, 0, 1))
    assert len(set_up(TorchvisionImages("svhn", str(tmp_path))).train_images) == 4


class Allocated(TorchDispatchMode):
    """Remembers the memory of all tensors that are made within it, by address."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # what is kept keeps its address

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.storages[made.untyped_storage().data_ptr()] = made.untyped_storage()
        return made


@pytest.mark.parametrize("shape", [(50, 28, 28), (50, 32, 32, 3), (50, 3, 32, 32)])
def test_images_are_copied_into_memory_once(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    parts = [SimpleNamespace(data=pixels[rows], targets=list(range(50))[rows]) for rows in (slice(20), slice(20, 50))]
    with Allocated() as allocated:
        images = joined(parts)
    for part in parts:  # was there before
        allocated.storages.pop(part.data.ctypes.data, None)
    assert images.images.is_contiguous() and images.labels.tolist() == list(range(50))
    whole = torch.from_numpy(pixels)
    expected = whole[:, None].expand(-1, 3, -1, -1) if whole.dim() == 3 else whole.movedim(3, 1) if shape[3] == 3 else whole
    assert torch.equal(images.images, expected)
    labels = 2 * images.labels.nbytes  # of the parts, and together
    assert sum(storage.nbytes() for storage in allocated.storages.values()) == images.images.nbytes + labels
    for limit in (7, 20, 30, 99):
        some = joined(parts, limit)
        assert torch.equal(some.images, expected[:limit]) and some.labels.tolist() == list(range(50))[:limit]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_missing_files_are_named_with_what_to_do(tmp_path, name):
    data = TorchvisionImages(name, str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=rf"data.root='.*nothing' holds no {name}: .*Add data.download=true to fetch it"):
        data.prepare_data()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_download_leaves_no_empty_folder(tmp_path, monkeypatch, there):
    def no_network(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    root = tmp_path / "some" / "where"
    if there:
        (root / "empty").mkdir(parents=True)
    expected = r"holds no mnist: the download failed \(.*no network.*\)\. Try again where the network is there, or put what"
    with pytest.raises(FileNotFoundError, match=expected) as raised:
        TorchvisionImages("mnist", str(root), download=True).prepare_data()
    assert raised.value.__suppress_context__, "the cause is in the message"
    assert list(tmp_path.rglob("*")) == ([root.parent, root, root / "empty"] if there else [])


# ---- folders


def write_folders(root, classes=3, each=4, size=20):
    for part in ("train", "val"):
        for number in range(classes):
            folder = root / part / f"class{number}"
            folder.mkdir(parents=True)
            for index in range(each):
                Image.new("RGB", (size, size + 4), (80 * number, 40 * index, 7)).save(folder / f"{index}.png")


def test_folders_are_cropped_and_normalised(tmp_path):
    write_folders(tmp_path)
    data = set_up(FolderImages(str(tmp_path), size=16, batch_size=5, eval_batch_size=12, num_workers=0))
    assert data.num_classes == 3 and len(data.train_images) == 12
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (12, 3, 16, 16) and images.dtype == torch.float32
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    red = (torch.tensor([0.0, 80.0, 160.0]) / 255 - 0.485) / 0.229
    assert torch.allclose(images[::4, 0, 8, 8], red, atol=1e-5)
    assert next(iter(data.train_dataloader()))[0].shape == (5, 3, 16, 16)


def test_a_share_of_each_class_is_held_out_where_there_is_no_validation_folder(tmp_path):
    write_folders(tmp_path, each=10)
    settings = {"val": None, "size": 16, "num_workers": 0, "eval_batch_size": 100}
    seeds = ({"held_out": 0.2, "held_out_seed": seed} for seed in (0, 1))
    data, more, other = set_up(*(FolderImages(str(tmp_path), **settings, **given) for given in ({}, *seeds)))
    assert len(data.val_images) == 3 and len(data.train_images) == 27, "two of a hundred, but one of each class at least"
    assert sorted([*more.val_images.indices, *more.train_images.indices]) == list(range(30))
    assert more.val_images.indices != other.val_images.indices
    images, labels = next(iter(more.val_dataloader()))
    assert labels.bincount().tolist() == [2, 2, 2]
    assert torch.equal(images, torch.stack([more.val_images[row][0] for row in range(6)])), "validated without augmentation"
    assert targets_of(more.train_images).bincount().tolist() == [8, 8, 8]


def test_the_scale_and_the_training_transform_can_be_set(tmp_path):
    write_folders(tmp_path)
    to_tensor = v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    scale = {"mean": [0.5] * 3, "std": [0.25] * 3, "train_transform": to_tensor}
    data = set_up(FolderImages(str(tmp_path), size=16, num_workers=0, eval_batch_size=12, **scale))
    assert data.train_images[0][0].shape == (3, 8, 8) and data.train_images[4][0].min() >= 0
    red = (torch.tensor([0.0, 80.0, 160.0]) / 255 - 0.5) / 0.25
    assert torch.allclose(next(iter(data.val_dataloader()))[0][::4, 0, 8, 8], red, atol=1e-5)


def test_images_can_be_validated_in_another_size(tmp_path):
    write_folders(tmp_path)
    settings = {"size": 16, "num_workers": 0, "eval_batch_size": 12, "batch_size": 6}
    for held_out in (None, 0.25):
        data = set_up(FolderImages(str(tmp_path), **settings, held_out=held_out, eval_size=24, eval_resize=40))
        assert next(iter(data.train_dataloader()))[0].shape == (6, 3, 16, 16)
        assert next(iter(data.val_dataloader()))[0].shape[1:] == (3, 24, 24)
    assert next(iter(data.test_dataloader()))[0].shape[1:] == (3, 24, 24)
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (9, 3, 12), "held out in its place"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    image.save(tmp_path / "val" / "class0" / "0.png")
    for given, resize in (({"eval_size": 24, "eval_resize": 40}, 40), ({"eval_size": 28}, 32), ({}, 18)):
        data = set_up(FolderImages(str(tmp_path), **settings, **given))
        steps = [v2.Resize(resize, antialias=True), v2.CenterCrop(given.get("eval_size", 16)), v2.ToImage()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
        assert torch.equal(data.val_images[0][0], v2.Compose(steps)(image))


def test_folders_of_other_classes_are_refused(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "val" / "class1").rename(tmp_path / "val" / "class9")
    with pytest.raises(ValueError, match=r"the class 'class1' has a folder in only one of train and val\. Both need the same"):
        set_up(FolderImages(str(tmp_path), size=16))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no folder 'train' with a folder for each class; put the images into"):
        _ = FolderImages(str(tmp_path)).num_classes


def test_without_validation_images_some_must_be_held_out(tmp_path):
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"data\.held_out=0 is not possible: it must be above 0 where there are no test images"):
        set_up(FolderImages(str(tmp_path), val=None, held_out=0))
