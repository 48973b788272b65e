"""A file of ``torch.save`` that is not what was written is refused by name."""

import re

import pytest
import torch

from kakurenbo_lightning import DamagedCheckpointError
from kakurenbo_lightning.core.checkpoint_file import check_whole

VALUES = torch.arange(3000)


@pytest.fixture
def path(tmp_path):
    torch.save({"values": VALUES}, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_a_whole_file_passes(path):
    check_whole(path)


@pytest.mark.parametrize("kept", [0, 10, 12_000, -1])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        DamagedCheckpointError, match=f"{re.escape(str(path))} is truncated or damaged .*; resume from an earlier"
    ):
        check_whole(path)


def test_a_changed_byte_of_a_tensor_is_refused(path):
    content = bytearray(path.read_bytes())
    content[content.index(VALUES.numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="does not match its checksum; resume from an earlier"):
        check_whole(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DamagedCheckpointError, match="No such file"):
        check_whole(tmp_path / "none.ckpt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DamagedCheckpointError, match=f"{re.escape(str(tmp_path))} is a folder; give the file"):
        check_whole(tmp_path)


def test_bytes_before_the_file_are_refused(path):
    path.write_bytes(b"HTTP 200\n" + path.read_bytes())
    with pytest.raises(DamagedCheckpointError, match="has 9 bytes before its beginning, cut them off or resume from"):
        check_whole(path)


def test_a_file_of_the_old_format_is_not_damaged(path):
    torch.save({"values": VALUES}, path, _use_new_zipfile_serialization=False)
    check_whole(path)
