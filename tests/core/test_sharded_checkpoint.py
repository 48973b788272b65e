"""A sharded checkpoint, as torch.distributed.checkpoint writes it, that is not what was written is refused by name."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from kakurenbo_lightning import DamagedCheckpointError
from kakurenbo_lightning.core.sharded_checkpoint import META, check_sharded, is_sharded_checkpoint, parts_of

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
    assert parts_of(folder) == [folder / META, shard_of(folder)]
    check_sharded(folder)


@pytest.mark.parametrize("name", [META, "shard"])
def test_a_changed_byte_of_a_tensor_is_refused(folder, name):
    path = shard_of(folder) if name == "shard" else folder / name
    changed(path, lambda content: content.index(VALUES.numpy().tobytes()) + 1234)
    with pytest.raises(
        DamagedCheckpointError, match=f"{path.name} is damaged: [^ ]* does not match its checksum; resume from an earlier"
    ):
        check_sharded(folder)


@pytest.mark.parametrize("kept", [0, 10, 1_000, -1])
@pytest.mark.parametrize("name", [META, ".metadata", "shard"])
def test_a_truncated_file_is_refused(folder, name, kept):
    path = shard_of(folder) if name == "shard" else folder / name
    path.write_bytes(path.read_bytes()[: min(kept, path.stat().st_size - 1)])
    with pytest.raises(DamagedCheckpointError, match=r"is truncated or damaged \(.*\); resume from an earlier"):
        check_sharded(folder)


@pytest.mark.parametrize("name", [META, ".metadata", "shard"])
def test_a_missing_file_is_refused(folder, name):
    (shard_of(folder) if name == "shard" else folder / name).unlink()
    with pytest.raises(DamagedCheckpointError, match="No such file"):
        check_sharded(folder)


def test_the_list_of_files_runs_nothing(folder, monkeypatch):
    """It is a pickle, which may come from anywhere."""
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR.")
    check_sharded(folder)
    assert not (folder / "ran").exists()
