"""Large images in parquet files, made here: copied into Arrow files once, and decoded by workers."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from kakurenbo_recipes.arrow_data import ParquetLargeImages, arrow_copy
from kakurenbo_recipes.parquet_files import ParquetPart
from test_parquet_data import random_images, write_parquet


def write_large(root, train=12, test=6):
    """Images of different sizes, two files for each part, each image of one colour, which tells its row."""
    for part, count in (("train", train), ("test", test)):
        images = [np.full((20 + number % 5, 30 - number % 7, 3), 10 * number, np.uint8) for number in range(count)]
        for number, chosen in enumerate((slice(5), slice(5, count))):
            labels = [row % 3 for row in range(count)][chosen]
            write_parquet(root / "data" / f"{part}-{number:05d}-of-00002.parquet", images[chosen], labels)


def large(root, **settings):
    return ParquetLargeImages(str(root), **{"size": 16, "batch_size": 4, "eval_batch_size": 6, "num_workers": 0, **settings})


def copies(cache, part):
    """The one copy of a part."""
    (path,) = cache.glob(f"{part}-*.arrow")
    return path


def colours(data, images):
    """The rows that images of `write_large` are of."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.std, data.mean))
    return ((images * std + mean) * 25.5).round().amax((1, 2, 3)).int().tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_decoded_where_they_are_asked_for(tmp_path, workers):
    write_large(tmp_path)
    data = large(tmp_path, num_workers=workers)
    assert data.num_classes == 3
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (6, 3, 16, 16) and images.dtype == torch.float32
    assert colours(data, images) == list(range(6)) and labels.tolist() == [0, 1, 2, 0, 1, 2]
    batches = list(data.train_dataloader())
    assert sorted(row for images, _ in batches for row in colours(data, images)) == list(range(12))
    assert data.train_images.targets.tolist() == [row % 3 for row in range(12)]
    assert len(list(data.test_dataloader())) == 1


def test_copies_in_other_processes_map_the_file_anew(tmp_path):
    write_large(tmp_path)
    data = large(tmp_path)
    data.setup("fit")
    assert data.train_images[3][1] == 0  # has opened the file
    data.train_images.transform = None
    copied = pickle.loads(pickle.dumps(data.train_images))
    assert "encoded" not in copied.__dict__
    assert np.array_equal(copied[7][0], data.train_images[7][0])


def test_the_copy_is_made_once_and_anew_when_the_files_change(tmp_path):
    write_large(tmp_path)
    data = large(tmp_path, cache=str(tmp_path / "elsewhere"))
    data.prepare_data()
    copied, other = copies(tmp_path / "elsewhere", "train"), copies(tmp_path / "elsewhere", "test")
    assert sorted(os.listdir(copied.parent)) == sorted([copied.name, other.name])
    assert not (tmp_path / "arrow").exists()
    before = copied.stat().st_ino
    data.prepare_data()
    assert copied.stat().st_ino == before
    write_large(tmp_path, train=9)
    again = large(tmp_path, cache=str(tmp_path / "elsewhere"))
    again.setup("fit")
    assert len(again.train_images) == len(again.train_images.encoded) == 9
    copied.write_bytes(b"damaged")
    again.prepare_data()
    assert copied.stat().st_size > 1000
    assert len(os.listdir(copied.parent)) == 2, "a copy of what is no more is replaced"


def test_runs_on_other_parts_have_copies_of_their_own(tmp_path):
    write_large(tmp_path)
    extra = [np.full((20, 20, 3), 250 - 10 * row, np.uint8) for row in range(12)]
    write_parquet(tmp_path / "data" / "extra.parquet", extra, [2] * 12)
    first, second = large(tmp_path), large(tmp_path, train="extra")
    first.setup("fit")
    second.setup("fit")  # before the first one reads an image
    assert colours(first, torch.stack([first.train_images[row][0] for row in (0, 7)])) == [0, 7]
    assert [first.train_images[row][1] for row in (0, 7)] == [0, 1]
    assert colours(second, second.train_images[0][0][None]) == [25] and second.train_images[0][1] == 2
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "arrow").iterdir())
    assert names == ["extra", "test", "train"]
    before = {path: path.stat().st_ino for path in (tmp_path / "arrow").iterdir()}
    for _ in range(2):
        large(tmp_path).prepare_data()
        large(tmp_path, train="extra").prepare_data()
    assert {path: path.stat().st_ino for path in (tmp_path / "arrow").iterdir()} == before


def test_one_cache_may_hold_copies_from_several_folders(tmp_path):
    runs = []
    for name, factor in (("one", 10), ("two", 20)):
        images = [np.full((20, 20, 3), factor * row, np.uint8) for row in range(12)]
        for part in ("train", "test"):
            write_parquet(tmp_path / name / f"{part}.parquet", images, [row % 3 for row in range(12)])
        runs.append(large(tmp_path / name, cache=str(tmp_path / "cache")))
        runs[-1].setup("fit")
    assert [colours(run, run.train_images[6][0][None]) for run in runs] == [[6], [12]]
    assert len(os.listdir(tmp_path / "cache")) == 4


def test_a_copy_that_is_no_longer_of_the_files_whose_classes_were_read_is_refused(tmp_path):
    write_large(tmp_path)
    running, gone = large(tmp_path), large(tmp_path)
    for data in (running, gone):
        data.setup("fit")
    write_large(tmp_path, test=7)  # as many training images, but other files
    large(tmp_path).prepare_data()
    with pytest.raises(
        ValueError, match=r"train-\w+\.arrow is not the copy of the 12 images whose classes were read from .*Delete"
    ):
        _ = running.train_images[0]
    copies(tmp_path / "arrow", "train").unlink()
    with pytest.raises(ValueError, match=r"train-\w+\.arrow is not the copy of the 12 images"):
        _ = gone.train_images[0]


def test_a_copy_of_another_length_is_made_anew(tmp_path):
    write_large(tmp_path)
    data = large(tmp_path)
    data.prepare_data()
    copied = copies(tmp_path / "arrow", "train")
    with pa.memory_map(str(copied)) as file:
        short = pa.ipc.open_file(file).read_all().slice(0, 5).combine_chunks()
        with pa.OSFile(str(tmp_path / "short"), "wb") as target, pa.ipc.new_file(target, short.schema) as writer:
            writer.write_table(short)
    (tmp_path / "short").replace(copied)
    data.setup("fit")
    assert colours(data, data.train_images[11][0][None]) == [11]


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", random_images(2), [0, 1])
    (tmp_path / "arrow").write_text("a file")
    with pytest.raises(OSError, match=r"train\.arrow cannot be written .*: set data\.cache to a folder that has room"):
        arrow_copy(ParquetPart((path,)), tmp_path / "arrow" / "train.arrow")
    (tmp_path / "folder" / "train.arrow").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot be written"):
        arrow_copy(ParquetPart((path,)), tmp_path / "folder" / "train.arrow")
    assert os.listdir(tmp_path / "folder") == ["train.arrow"]


def test_a_share_of_each_class_is_held_out_where_there_is_no_other_part(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(30, side=20), [number % 3 for number in range(30)])
    data, more = large(tmp_path), large(tmp_path, held_out=0.2)
    for each in (data, more):
        each.setup("fit")
    assert len(data.val_images) == 3 and len(data.train_images) == 27 and data.test_images is None
    labels = torch.cat([labels for _, labels in more.val_dataloader()])
    assert labels.bincount().tolist() == [2, 2, 2]
    with pytest.raises(
        ValueError, match=r"data\.held_out=0\.0 is not possible: it must be above 0 where there are no test images"
    ):
        large(tmp_path, held_out=0.0).setup("fit")


def test_a_damaged_large_image_is_named_by_file_and_row(tmp_path):
    images = [*random_images(4, side=20), b"no image"]
    path = write_parquet(tmp_path / "train.parquet", images, [0, 1, 0, 1, 0])
    data = large(tmp_path)
    data.setup("fit")
    data.train_images = data.train_images.dataset
    with pytest.raises(ValueError, match=rf"{path}: row 4 cannot be decoded"):
        list(data.train_dataloader())
