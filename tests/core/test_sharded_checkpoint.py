"""A sharded checkpoint, as torch.distributed.checkpoint writes it, that is not what was written is refused by name."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from kakurenbo_lightning import DamagedCheckpointError
from kakurenbo_lightning.core.sharded_checkpoint import META, begin, check_sharded, is_sharded_checkpoint, parts_of

VALUES = torch.arange(3000)
DECOY = torch.frombuffer(bytearray(b"PK\x05\x06" + bytes(40)), dtype=torch.uint8)  # looks like the end of a zip file


@pytest.fixture
def folder(tmp_path):
    dcp.save({"values": VALUES, "decoy": DECOY, "plain": {"step": 3}}, checkpoint_id=tmp_path / "x.ckpt")
    torch.save({"callbacks": {}, "values": VALUES}, tmp_path / "x.ckpt" / META)
    return tmp_path / "x.ckpt"


def shard_of(folder):
    return next(folder.glob("*.distcp"))


def changed(path, at):
    content = bytearray(path.read_bytes())
    content[at(content)] ^= 1
    path.write_bytes(content)


def test_a_whole_folder_passes(folder):
    assert is_sharded_checkpoint(folder) and not is_sharded_checkpoint(folder.parent)
    assert parts_of(folder) == {folder / META: 1, shard_of(folder): shard_of(folder).stat().st_size}
    check_sharded(folder)


@pytest.mark.parametrize("name", [META, "shard"])
def test_a_changed_byte_of_a_tensor_is_refused(folder, name):
    path = shard_of(folder) if name == "shard" else folder / name
    changed(path, lambda content: content.index(VALUES.numpy().tobytes()) + 1234)
    with pytest.raises(
        DamagedCheckpointError, match=f"{path.name} is damaged: [^ ]* does not match its checksum; resume from an earlier"
    ):
        check_sharded(folder)


def test_a_file_that_ends_between_two_tensors_is_refused(folder):
    """What is left of it matches its checksums."""
    path = shard_of(folder)
    content = path.read_bytes()
    for end in (content.index(b"PK\x03\x04", content.index(b"PK\x05\x06")), 0):
        path.write_bytes(content[:end])
        with pytest.raises(
            DamagedCheckpointError, match=rf"distcp is truncated .*it has {end} of {len(content)} bytes\); resume"
        ):
            check_sharded(folder)


@pytest.mark.parametrize("kept", [0, 10, 1_000, -1])
@pytest.mark.parametrize("name", [META, ".metadata", "shard"])
def test_a_truncated_file_is_refused(folder, name, kept):
    path = shard_of(folder) if name == "shard" else folder / name
    path.write_bytes(path.read_bytes()[: min(kept, path.stat().st_size - 1)])
    with pytest.raises(
        DamagedCheckpointError, match=r"x\.ckpt.* is (truncated or damaged \(.*\)|not finished: .*); resume from an earlier"
    ):
        check_sharded(folder)


@pytest.mark.parametrize("name", [META, ".metadata", "shard"])
def test_a_missing_file_is_refused(folder, name):
    (shard_of(folder) if name == "shard" else folder / name).unlink()
    assert is_sharded_checkpoint(folder), "it is one that is damaged, and no other folder"
    said = "not finished: meta.pt, which is written last, is not there" if name == META else "No such file"
    with pytest.raises(DamagedCheckpointError, match=rf"x\.ckpt.*{said}.*; resume from an earlier"):
        check_sharded(folder)


def test_a_folder_that_is_being_saved_over_is_refused(folder):
    """Each of its files may be whole, some of them old and some new."""
    begin(folder)
    assert is_sharded_checkpoint(folder)
    with pytest.raises(DamagedCheckpointError, match=r"x\.ckpt is not finished: meta\.pt, which is written last, is empty"):
        check_sharded(folder)


def test_a_folder_that_is_to_be_made_is_left_alone(tmp_path):
    begin(tmp_path / "new.ckpt")
    assert not (tmp_path / "new.ckpt").exists()


def test_files_of_more_than_one_frame_of_a_pickle_are_known(tmp_path):
    """Its list of 600 tensors is over 64 kB, after which pickle begins another frame."""
    dcp.save({f"tensor {number}": torch.ones(1) for number in range(600)}, checkpoint_id=tmp_path / "x.ckpt")
    torch.save({}, tmp_path / "x.ckpt" / META)
    assert (tmp_path / "x.ckpt" / ".metadata").stat().st_size > 2**16
    assert list(parts_of(tmp_path / "x.ckpt").values()) == [1, shard_of(tmp_path / "x.ckpt").stat().st_size]


def test_the_list_of_files_runs_nothing(folder, monkeypatch):
    """It is a pickle, which may come from anywhere."""
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR.")
    check_sharded(folder)
    assert not (folder / "ran").exists()
