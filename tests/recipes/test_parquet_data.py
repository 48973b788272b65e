"""Images in parquet files as Hugging Face writes them: small ones decoded into memory, large ones by workers."""

import pickle
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import trainer
from image_files import encoded, random_images, write_parquet
from kakurenbo_recipes import parquet_data
from kakurenbo_recipes.parquet_data import CIFAR10, ParquetImages, ParquetLargeImages, in_memory
from kakurenbo_recipes.parquet_part import ParquetPart, part_files
from PIL import Image
from recipe_runs import set_up


def as_tensor(images):
    """The images [N, H, W, 3] as data modules hold them, [N, 3, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def write_set(root, train=9, test=4, **settings):
    """Write train.parquet and test.parquet of three classes, and return their images as the data modules hold them."""
    images = random_images(train + test, side=8)
    write_parquet(root / "train.parquet", images[:train], [number % 3 for number in range(train)], **settings)
    write_parquet(root / "test.parquet", images[train:], [number % 3 for number in range(test)], **settings)
    return as_tensor(images).split([train, test])


def images_of(root, kind=ParquetImages, **settings):
    return set_up(kind(root=str(root), **settings))


# ---- what is asked for


@pytest.fixture
def decoded(monkeypatch):
    """The number of images that are decoded, of each part that is read."""
    counts, images = [], ParquetPart.images

    def counted(part):
        counts.append(0)
        for image in images(part):
            counts[-1] += 1
            yield image

    monkeypatch.setattr(ParquetPart, "images", counted)
    return counts


def test_only_what_is_asked_for_is_decoded(tmp_path, decoded):
    train, test = write_set(tmp_path)
    data = images_of(tmp_path, subset=5, eval_subset=2)
    assert decoded == [5, 2]
    assert torch.equal(data.train_images.images, train[:5]) and torch.equal(data.test_images.images, test[:2])
    assert data.train_images.labels.tolist() == [0, 1, 2, 0, 1] and data.test_images.labels.tolist() == [0, 1]
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 2


@pytest.mark.parametrize(("setting", "there"), [("subset", 9), ("eval_subset", 4)])
def test_more_than_there_are_is_refused(tmp_path, setting, there):
    write_set(tmp_path)
    with pytest.raises(ValueError, match=rf"data\.{setting}=10 is not possible: it must be at most {there}"):
        images_of(tmp_path, **{setting: 10})


def test_the_runs_of_a_process_share_what_they_ask_for_alike(tmp_path, decoded):
    train, _ = write_set(tmp_path)
    first = images_of(tmp_path, subset=6, label_noise=0.5)
    second = images_of(tmp_path, subset=6, batch_size=3)
    assert decoded == [6, 4] and second.train_images.images.data_ptr() == first.train_images.images.data_ptr()
    assert torch.equal(second.train_images.labels, first.clean_labels) and not torch.equal(*map(labels_of, (first, second)))
    images_of(tmp_path, subset=7)
    assert decoded == [6, 4, 7]
    write_parquet(tmp_path / "train.parquet", random_images(9, side=8, seed=1), [0, 1, 2] * 3)
    changed = images_of(tmp_path, subset=7)
    assert decoded == [6, 4, 7, 7] and not torch.equal(changed.train_images.images, train[:7])


def labels_of(data):
    return data.train_images.labels


@pytest.mark.parametrize("shows", [True, False])
def test_decoding_shows_progress_as_the_trainer_does(tmp_path, monkeypatch, shows):
    write_set(tmp_path)
    quiet = []
    monkeypatch.setattr(parquet_data, "tqdm", lambda items, **settings: quiet.append(settings["disable"]) or items)
    data = ParquetImages(root=str(tmp_path))
    data.trainer = trainer(enable_progress_bar=shows)
    data.setup("fit")
    assert quiet == [not shows, not shows]


# ---- files


def test_shards_are_found_in_their_order(tmp_path):
    paths = [write_parquet(tmp_path / "data" / f"train-{n:05d}-of-00011.parquet", random_images(1), [0]) for n in range(11)]
    (tmp_path / "data" / "train-notes.parquet").touch()
    assert part_files(tmp_path, "train") == part_files(tmp_path / "data", "train") == paths
    assert part_files(tmp_path, "test") == []
    hashed = write_parquet(tmp_path / "test-00000-of-00001-0a1b2c3d.parquet", random_images(1), [0])
    assert part_files(tmp_path, "test") == [hashed]


@pytest.mark.parametrize("names", [("0-of-3", "2-of-3"), ("0-of-1", "0-of-2", "1-of-2")], ids=["one missing", "two downloads"])
def test_a_part_that_is_not_whole_is_named(tmp_path, names):
    for name in names:
        (tmp_path / f"train-{name}.parquet").touch()
    with pytest.raises(FileNotFoundError, match=rf"holds train-{names[0]}\.parquet, .*: a part of 'train', or two downloads"):
        part_files(tmp_path, "train")


def test_a_part_that_is_not_there_is_named(tmp_path):
    neither = r"data\.root='.*' holds no train\.parquet and no train-00000-of-\*\.parquet, neither"
    with pytest.raises(FileNotFoundError, match=neither):
        _ = ParquetImages(root=str(tmp_path)).num_classes
    write_parquet(tmp_path / "train.parquet", random_images(1), [0])
    with pytest.raises(FileNotFoundError, match=r"nor any of validation, valid, val, neither itself nor .*data\.test"):
        images_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PAR1" * 100])
@pytest.mark.parametrize("name", ["train.parquet", "test.parquet"])
def test_a_file_that_is_not_whole_is_named(tmp_path, content, name):
    write_set(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a whole parquet file .*Download it again .* Git LFS"):
        images_of(tmp_path)


def test_a_file_without_rows_is_named(tmp_path):
    path = write_parquet(tmp_path / "part.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(ValueError, match=r"part\.parquet holds no rows"):
        in_memory(ParquetPart([path]))


# ---- in memory


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_images_come_back_pixel_by_pixel(tmp_path, column, as_bytes):
    images = random_images(5)
    read = in_memory(ParquetPart([write_parquet(tmp_path / "part.parquet", images, [3, 1, 4, 1, 5], column, as_bytes=as_bytes)]))
    assert torch.equal(read.images, as_tensor(images))
    assert read.labels.tolist() == [3, 1, 4, 1, 5] and read.labels.dtype == torch.int64


def test_shards_are_read_one_after_the_other(tmp_path):
    images = random_images(7)
    for number, rows in enumerate((slice(4), slice(4, 7))):
        labels = pa.array(range(7)[rows], pa.uint8())
        write_parquet(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", images[rows], labels, "img", "fine_label")
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", images[:2], [6, 0], "img", "fine_label")
    data = images_of(tmp_path)
    assert data.num_classes == 7
    assert torch.equal(data.train_images.images, as_tensor(images))
    assert data.train_images.labels.tolist() == list(range(7)) and data.test_images.labels.tolist() == [6, 0]


def test_other_parts_and_columns_are_asked_for_by_name(tmp_path):
    images = random_images(4)
    for part in ("extra", "odd", "test"):
        write_parquet(tmp_path / f"{part}.parquet", images, [0, 1, 2, len(part) - 2], "picture", "kind")
    data = images_of(tmp_path, train="extra", test="odd", image_column="picture", label_column="kind")
    assert data.train_images.labels.tolist() == [0, 1, 2, 3] and data.test_images.labels.tolist() == [0, 1, 2, 1]


def test_held_out_images_are_enough_where_there_is_no_part_to_test_on(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(20, side=8), [number % 2 for number in range(20)])
    data = images_of(tmp_path, held_out=0.2, batch_size=4)
    assert data.test_images is None and data.val_images.labels.tolist() == data.test_dataloader().dataset.labels.tolist()
    assert data.val_images.labels.bincount().tolist() == [2, 2] and len(data.train_images) == 16
    with pytest.raises(FileNotFoundError, match=r"holds no test\.parquet .*some of the training images: data\.held_out=0\.1"):
        images_of(tmp_path, batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"holds no odd\.parquet"):
        images_of(tmp_path, test="odd", held_out=0.2, batch_size=4)


@pytest.mark.parametrize(("names", "classes"), [(None, 3), (["a", "b", "c", "d"], 4)])
def test_classes_are_counted_by_their_names_where_hugging_face_wrote_them(tmp_path, names, classes):
    write_set(tmp_path, names=names)
    data = images_of(tmp_path)
    assert data.num_classes == classes and data.class_names == names and data.train_images.classes == names


def test_images_of_other_modes_get_three_channels(tmp_path):
    image = random_images(1)[0]
    modes = [encoded(image, mode) for mode in ("RGBA", "L", "P", "1")]
    read = in_memory(ParquetPart([write_parquet(tmp_path / "part.parquet", modes, [0, 0, 0, 0])]))
    assert torch.equal(read.images[0], torch.from_numpy(image).permute(2, 0, 1))
    grey = torch.from_numpy(np.array(Image.fromarray(image).convert("L")))
    assert torch.equal(read.images[1], grey.expand(3, -1, -1))


def test_mean_and_deviation_are_computed_from_what_is_trained_unless_they_are_set(tmp_path):
    train, _ = write_set(tmp_path)
    data, given = images_of(tmp_path, subset=5), images_of(tmp_path, mean=[0.1, 0.2, 0.3], std=[1, 2, 3])
    assert torch.allclose(torch.tensor(data.mean), train[:5].float().mean((0, 2, 3)) / 255)
    assert given.mean == (0.1, 0.2, 0.3) and given.std == (1, 2, 3)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"image": "picture"}, {}, r"has the columns \['picture', 'label'\], but 'image' or 'img' is .*data\.image_column="),
        (
            {"label": "class"},
            {},
            r"\['image', 'class'\], but 'label' or 'labels' or 'fine_label' is missing.*data\.label_column=",
        ),
        ({}, {"label_column": "kind"}, r"but 'kind' is missing\. "),
        ({}, {"label_column": "image"}, r"part\.parquet is not .*integer labels \(.* cast from struct.*data\.label_column="),
        ({}, {"image_column": "label"}, r"part\.parquet is not .* cast from int64 to struct.*data\.image_column="),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(tmp_path, columns, settings, message):
    path = write_parquet(tmp_path / "part.parquet", random_images(1), [0], **columns)
    with pytest.raises(ValueError, match=message):
        in_memory(ParquetPart([path], **settings))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, r"row 2 has the label -1 in the column 'label', but it must be 0 or more .*data\.test=validation"),
        (None, "row 2 has the label -1"),
        (7, "row 2 has the label 7 .* must be below 3, the classes of the training part"),
    ],
)
def test_a_label_that_is_hidden_or_unknown_to_training_is_named(tmp_path, label, message):
    write_set(tmp_path)
    path = write_parquet(tmp_path / "test.parquet", random_images(3, side=8), [0, 1, label])
    with pytest.raises(ValueError, match=rf"{path}: {message}"):
        images_of(tmp_path)


def test_images_of_several_sizes_are_refused_by_row(tmp_path):
    path = write_parquet(tmp_path / "part.parquet", [*random_images(2), random_images(1)[0, :16]], [0, 1, 2])
    with pytest.raises(ValueError, match=r"row 2 is an image of shape \(3, 16, 32\).*or use data=parquet_large"):
        in_memory(ParquetPart([path]))


@pytest.mark.parametrize("damaged", [b"no image", encoded(random_images(1)[0])[:300], None], ids=["other", "short", "null"])
@pytest.mark.parametrize("read", [in_memory, lambda part: part[3]], ids=["in memory", "one by one"])
def test_a_damaged_image_is_named_by_file_and_row(tmp_path, damaged, read):
    sound = random_images(1)[0]
    paths = [
        write_parquet(tmp_path / f"part-{number}.parquet", [sound, other], [0, 1])
        for number, other in enumerate((sound, damaged))
    ]
    with pytest.raises(ValueError, match=rf"{paths[1]}: row 1 cannot be decoded .*Download the file again, or remove the row"):
        read(ParquetPart(paths, cache=tmp_path / "cache"))


# ---- CIFAR-10


def test_cifar10_reads_parquet_and_trains_on_the_first_rows(tmp_path):
    images = random_images(12)
    write_parquet(tmp_path / "train.parquet", images[:8], list(range(8)))
    write_parquet(tmp_path / "test.parquet", images[8:], list(range(4)))
    data = CIFAR10(root=str(tmp_path), subset=5)
    data.prepare_data()
    set_up(data)
    assert data.train_images.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(data.test_images.images, as_tensor(images[8:]))
    assert data.num_classes == 10 and data.mean == CIFAR10.mean


def test_cifar10_falls_back_to_torchvision(tmp_path, monkeypatch):
    images, calls = random_images(6), []

    def download(root, train=True, download=False):
        calls.append(download)
        return SimpleNamespace(data=images[:4] if train else images[4:], targets=[0, 1, 2, 3] if train else [4, 5])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    data = CIFAR10(root=str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    assert calls == [True, False, False]
    assert torch.equal(data.train_images.images, as_tensor(images[:4]))
    assert data.test_images.labels.tolist() == [4, 5]


@pytest.mark.parametrize("partial", [False, True])
def test_cifar10_without_data_or_network_says_what_to_get_and_leaves_nothing_empty(tmp_path, monkeypatch, partial):
    root = tmp_path / "data" / "cifar10"

    def no_network(*arguments, **settings):
        if partial:
            (root / "cifar-10-python.tar.gz").write_text("half of it")
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(FileNotFoundError, match=r"data\.root='.*no network.*huggingface\.co.*test\.parquet") as raised:
        CIFAR10(root=str(root)).prepare_data()
    assert raised.value.__suppress_context__, "the cause is in the message"
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")]
    assert left == ["data/cifar10/cifar-10-python.tar.gz"] * partial and root.exists() is partial


# ---- large images


def write_large(root, train=12, test=6):
    """Images of different sizes, two files for each part, each image of one colour, which tells its row."""
    for part, count in (("train", train), ("test", test)):
        images = [np.full((20 + number % 5, 30 - number % 7, 3), 10 * number, np.uint8) for number in range(count)]
        for number, chosen in enumerate((slice(5), slice(5, count))):
            labels = [row % 3 for row in range(count)][chosen]
            write_parquet(root / "data" / f"{part}-{number:05d}-of-00002.parquet", images[chosen], labels)


def large(root, **settings):
    usual = {"size": 16, "batch_size": 4, "eval_batch_size": 6, "num_workers": 0, "cache": str(root / "cache")}
    return images_of(root, ParquetLargeImages, **(usual | settings))


def rows_of(data, images):
    """The rows that images of `write_large` are of."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.std, data.mean))
    return ((images * std + mean) * 25.5).round().amax((1, 2, 3)).int().tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_decoded_where_they_are_asked_for(tmp_path, workers):
    write_large(tmp_path)
    data = large(tmp_path, num_workers=workers)
    assert data.num_classes == 3
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (6, 3, 16, 16) and images.dtype == torch.float32
    assert rows_of(data, images) == list(range(6)) and labels.tolist() == [0, 1, 2, 0, 1, 2]
    batches = list(data.train_dataloader())
    assert sorted(row for images, _ in batches for row in rows_of(data, images)) == list(range(12))
    assert data.train_images.targets.tolist() == [row % 3 for row in range(12)]
    assert len(list(data.test_dataloader())) == 1


def test_workers_map_the_copy_and_get_no_images_sent(tmp_path):
    images = random_images(12, side=64)
    part = ParquetPart([write_parquet(tmp_path / "train.parquet", images, [0] * 12)], cache=tmp_path / "cache")
    assert np.array_equal(part[3][0], images[3])
    sent = pickle.dumps(part)
    assert len(sent) < images[0].nbytes
    assert np.array_equal(pickle.loads(sent)[7][0], images[7])


def test_the_copy_is_made_once_and_again_when_the_files_change(tmp_path):
    write_large(tmp_path)

    def copies():
        return {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.arrow")}

    running = large(tmp_path)
    before = copies()
    large(tmp_path)
    assert copies() == before and len(before) == 2
    write_large(tmp_path, train=9)
    again = large(tmp_path)
    assert len(again.train_images) == 9 and again.train_images[8][1] == 2
    assert before.items() <= copies().items() and rows_of(running, running.train_images[11][0][None]) == [11]


def test_one_cache_holds_the_copies_of_other_parts_and_folders(tmp_path):
    runs = []
    for folder, part, factor in (("one", "train", 10), ("one", "extra", 5), ("two", "train", 20)):
        images = [np.full((20, 20, 3), factor * row, np.uint8) for row in range(12)]
        write_parquet(tmp_path / folder / f"{part}.parquet", images, [0] * 12)
        write_parquet(tmp_path / folder / "test.parquet", images[:1], [0])
        runs.append(large(tmp_path / folder, train=part, cache=str(tmp_path / "cache")))  # before the others read an image
    assert [rows_of(run, run.train_images[6][0][None]) for run in runs] == [[6], [3], [12]]


@pytest.mark.parametrize("damage", ["no folder", "damaged"])
def test_a_copy_that_cannot_be_made_or_read_says_where_and_what_to_set(tmp_path, damage):
    part = ParquetPart([write_parquet(tmp_path / "train.parquet", random_images(2), [0, 1])], cache=tmp_path / "cache")
    if damage == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:
        _ = part.copy
        (copied,) = (tmp_path / "cache").rglob("*.arrow")
        copied.write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"the copy of .*train\.parquet in .*cache cannot be made or read .*data\.cache"):
        ParquetPart(part.files, cache=part.cache)[0]


def test_a_share_is_held_out_where_there_is_no_other_part(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(30, side=20), [number % 3 for number in range(30)])
    data = large(tmp_path, held_out=0.2)
    assert (
        torch.cat([labels for _, labels in data.val_dataloader()]).bincount().tolist() == [2, 2, 2] and data.test_images is None
    )
