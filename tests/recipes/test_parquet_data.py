"""Images in parquet files as Hugging Face writes them, made here and decoded into memory."""

import io
import json
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kakurenbo_recipes.parquet_data import CIFAR10, ParquetImages, read_parquet
from kakurenbo_recipes.parquet_files import ParquetPart, part_files
from PIL import Image


def encoded(image, mode=None, kind="PNG"):
    """The bytes of an image, which keep every pixel."""
    stream = io.BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(stream, format=kind)
    return stream.getvalue()


def write_parquet(path, images, labels, image="image", label="label", names=None, as_bytes=False):
    """Write images (uint8 [H, W, 3], or bytes as they are) in the layout of Hugging Face."""
    data = [one if one is None or isinstance(one, bytes) else encoded(one) for one in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(data, pa.binary()) if as_bytes else pa.array([{"bytes": one, "path": None} for one in data], struct)
    table = pa.table({image: column, label: labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def random_images(count, seed=0, side=32):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_set(root, train=9, test=4, **settings):
    """Write train.parquet and test.parquet, and return their images as the data modules hold them."""
    images = random_images(train + test, side=8)
    write_parquet(root / "train.parquet", images[:train], [number % 3 for number in range(train)], **settings)
    write_parquet(root / "test.parquet", images[train:], [number % 3 for number in range(test)], **settings)
    return torch.from_numpy(images).permute(0, 3, 1, 2).split([train, test])


# ---- files


def test_shards_are_found_in_their_order(tmp_path):
    paths = [write_parquet(tmp_path / "data" / f"train-{n:05d}-of-00011.parquet", random_images(1), [0]) for n in range(11)]
    (tmp_path / "data" / "train-notes.parquet").touch()
    assert part_files(tmp_path, "train") == tuple(paths)
    assert part_files(tmp_path / "data", "train") == tuple(paths)
    assert part_files(tmp_path, "test") == ()
    hashed = write_parquet(tmp_path / "test-00000-of-00001-0a1b2c3d.parquet", random_images(1), [0])
    assert part_files(tmp_path, "test") == (hashed,)


def test_a_missing_shard_is_named(tmp_path):
    for number in (0, 2):
        write_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", random_images(1), [0])
    with pytest.raises(
        FileNotFoundError, match=r"holds 2 of the 3 files of the part 'train', but not train-00001-of-00003\.parquet"
    ):
        part_files(tmp_path, "train")


def test_shards_of_two_downloads_are_refused(tmp_path):
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_parquet(tmp_path / f"{name}.parquet", random_images(1), [0])
    with pytest.raises(FileNotFoundError, match="holds the part 'train' in 1 and in 2 files"):
        part_files(tmp_path, "train")


def test_a_part_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"data\.root='.*' holds no train\.parquet and no train-00000-of-\*\.parquet, neither"
    ):
        _ = ParquetImages(str(tmp_path)).num_classes
    write_parquet(tmp_path / "train.parquet", random_images(1), [0])
    with pytest.raises(
        FileNotFoundError, match=r"nor any of validation, valid, val, neither itself nor in its folder data\. .*data\.test"
    ):
        ParquetImages(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PAR1" * 100])
def test_a_file_that_is_not_whole_is_named(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet is not a whole parquet file .*Download it anew; .* Git LFS"):
        _ = ParquetImages(str(tmp_path)).num_classes


# ---- in memory


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_parquet_images_come_back_pixel_by_pixel(tmp_path, column, as_bytes):
    images = random_images(5)
    path = write_parquet(tmp_path / "part.parquet", images, [3, 1, 4, 1, 5], column, as_bytes=as_bytes)
    read = read_parquet(ParquetPart((path,)))
    assert torch.equal(read.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert read.labels.tolist() == [3, 1, 4, 1, 5]
    assert read.labels.dtype == torch.int64


def test_shards_are_read_one_after_the_other(tmp_path):
    images = random_images(7)
    for number, rows in enumerate((slice(4), slice(4, 7))):
        labels = pa.array(range(7)[rows], pa.uint8())
        write_parquet(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", images[rows], labels, "img", "fine_label")
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", images[:2], [6, 0], "img", "fine_label")
    data = ParquetImages(str(tmp_path))
    assert data.num_classes == 7
    data.setup("fit")
    assert torch.equal(data.train_images.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert data.train_images.labels.tolist() == list(range(7)) and data.test_images.labels.tolist() == [6, 0]
    assert [path.name for path in data.files.test_part.files] == ["validation-00000-of-00001.parquet"]


def test_other_parts_and_columns_are_asked_for_by_name(tmp_path):
    images = random_images(4)
    for part in ("extra", "odd", "test"):
        write_parquet(tmp_path / f"{part}.parquet", images, [0, 1, 2, len(part) - 2], "picture", "kind")
    data = ParquetImages(str(tmp_path), train="extra", test="odd", image_column="picture", label_column="kind")
    data.setup("fit")
    assert data.train_images.labels.tolist() == [0, 1, 2, 3] and data.test_images.labels.tolist() == [0, 1, 2, 1]


def test_held_out_images_are_enough_where_there_is_no_part_to_test_on(tmp_path):
    images = random_images(20, side=8)
    write_parquet(tmp_path / "train.parquet", images, [number % 2 for number in range(20)])
    data = ParquetImages(str(tmp_path), held_out=0.2, batch_size=4)
    data.setup("fit")
    assert data.test_images is None and data.val_images.labels.tolist() == data.test_dataloader().dataset.labels.tolist()
    assert data.val_images.labels.bincount().tolist() == [2, 2] and len(data.train_images) == 16
    with pytest.raises(
        FileNotFoundError, match=r"holds no test\.parquet .*validate on some of the training images: data\.held_out=0\.1"
    ):
        ParquetImages(str(tmp_path), batch_size=4).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"holds no odd\.parquet"):
        ParquetImages(str(tmp_path), test="odd", held_out=0.2, batch_size=4).setup("fit")


@pytest.mark.parametrize(("names", "classes"), [(None, 3), (["a", "b", "c", "d"], 4)])
def test_classes_are_counted_by_their_names_where_hugging_face_wrote_them(tmp_path, names, classes):
    write_set(tmp_path, names=names)
    data = ParquetImages(str(tmp_path))
    data.setup("fit")
    assert data.num_classes == classes and data.class_names == names and data.train_images.classes == names


@pytest.mark.parametrize("written", ["{", "[]", '{"info": null}', '{"info": {"features": {"label": {"_type": "Value"}}}}'])
def test_metadata_in_another_form_do_not_matter(tmp_path, written):
    path = write_parquet(tmp_path / "train.parquet", random_images(2), [0, 4])
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": written}), path)
    assert ParquetImages(str(tmp_path)).num_classes == 5


def test_images_of_other_modes_get_three_channels(tmp_path):
    image = random_images(1)[0]
    path = write_parquet(tmp_path / "part.parquet", [encoded(image, mode) for mode in ("RGBA", "L", "P", "1")], [0, 0, 0, 0])
    read = read_parquet(ParquetPart((path,)))
    assert torch.equal(read.images[0], torch.from_numpy(image).permute(2, 0, 1))
    grey = torch.from_numpy(np.array(Image.fromarray(image).convert("L")))
    assert torch.equal(read.images[1], grey.expand(3, -1, -1))


def test_mean_and_deviation_are_computed_from_what_is_trained_unless_they_are_set(tmp_path):
    train, _ = write_set(tmp_path)
    data, given = ParquetImages(str(tmp_path), subset=5), ParquetImages(str(tmp_path), mean=[0.1, 0.2, 0.3], std=[1, 2, 3])
    for each in (data, given):
        each.setup("fit")
    assert torch.allclose(torch.tensor(data.mean), train[:5].float().mean((0, 2, 3)) / 255)
    normal = data.normalise(data.train_images.images)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    assert given.mean == (0.1, 0.2, 0.3) and given.std == (1, 2, 3)


def test_parquet_without_images_names_its_columns(tmp_path):
    path = write_parquet(tmp_path / "part.parquet", random_images(1), [0], image="picture")
    with pytest.raises(
        ValueError, match=r"part\.parquet has the columns \['picture', 'label'\], but 'image' or 'img', .*data\.image_column="
    ):
        read_parquet(ParquetPart((path,)))


def test_parquet_without_labels_names_its_columns(tmp_path):
    path = write_parquet(tmp_path / "part.parquet", random_images(1), [0], label="class")
    expected = (
        r"part\.parquet has the columns \['image', 'class'\], but 'label' or 'labels' or 'fine_label', integers, is missing"
    )
    with pytest.raises(ValueError, match=expected):
        read_parquet(ParquetPart((path,)))
    with pytest.raises(ValueError, match=r"but 'kind', integers, is missing\. .*data\.label_column="):
        read_parquet(ParquetPart((path,), label_column="kind"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_column": "image"},
            r"the column 'image' holds struct<.*>, not integers\. Name another one of \['image', 'label'\]",
        ),
        ({"image_column": "label"}, r"the column 'label' holds int64, not a struct with the field 'bytes'"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path, settings, message):
    path = write_parquet(tmp_path / "part.parquet", random_images(1), [0])
    with pytest.raises(ValueError, match=message):
        read_parquet(ParquetPart((path,), **settings))


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_hidden_label_is_named(tmp_path, hidden):
    write_set(tmp_path)
    path = write_parquet(tmp_path / "test.parquet", random_images(3, side=8), [0, 1, hidden])
    with pytest.raises(ValueError, match=rf"{path}: row 2 has the label -1 in the column 'label' .*try data\.test=validation"):
        ParquetImages(str(tmp_path)).setup("fit")


def test_a_label_that_training_does_not_know_is_named(tmp_path):
    write_set(tmp_path)
    write_parquet(tmp_path / "test.parquet", random_images(3, side=8), [0, 7, 1])
    with pytest.raises(ValueError, match=r"test\.parquet: row 1 has the label 7, but the training part has 3 classes"):
        ParquetImages(str(tmp_path)).setup("fit")


def test_parquet_of_several_sizes_names_the_row(tmp_path):
    images = [*random_images(2), random_images(1)[0, :16]]
    path = write_parquet(tmp_path / "part.parquet", images, [0, 1, 2])
    with pytest.raises(ValueError, match=r"row 2 is an image of shape \(3, 16, 32\).*or use data=parquet_large"):
        read_parquet(ParquetPart((path,)))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"no image", r"cannot be decoded \(UnidentifiedImageError: .*Download the file anew, or remove the row"),
        (encoded(random_images(1)[0])[:300], "cannot be decoded"),
        (None, "holds no encoded image: its bytes are null"),
    ],
)
def test_a_damaged_image_is_named_by_file_and_row(tmp_path, damaged, message):
    paths = [
        write_parquet(tmp_path / f"part-{number}.parquet", [random_images(1)[0], other], [0, 1])
        for number, other in enumerate((random_images(1)[0], damaged))
    ]
    with pytest.raises(ValueError, match=rf"{paths[1]}: row 1 {message}"):
        read_parquet(ParquetPart(tuple(paths)))


def test_a_file_without_rows_is_named(tmp_path):
    path = write_parquet(tmp_path / "part.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(ValueError, match=r"part\.parquet holds no rows"):
        read_parquet(ParquetPart((path,)))


# ---- CIFAR-10


def test_cifar10_reads_parquet_and_trains_on_the_first_rows(tmp_path):
    images = random_images(12)
    write_parquet(tmp_path / "train.parquet", images[:8], list(range(8)))
    write_parquet(tmp_path / "test.parquet", images[8:], list(range(4)))
    data = CIFAR10(root=str(tmp_path), subset=5)
    data.prepare_data()
    data.setup("fit")
    assert data.train_images.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(data.test_images.images, torch.from_numpy(images[8:]).permute(0, 3, 1, 2))
    assert data.num_classes == 10 and data.mean == CIFAR10.mean


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
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == [
        "data/cifar10/cifar-10-python.tar.gz"
    ] * partial
    assert root.exists() is partial and tmp_path.exists()
