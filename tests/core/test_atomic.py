"""A file that is written by `replacing` is whole or not there."""

import os
import signal

import pytest

from kakurenbo_lightning.core.atomic import replacing


def test_a_file_appears_when_it_is_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent
        partial.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_file_that_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ValueError, match="as planned"), replacing(path) as partial:
        partial.write_text("half")
        raise ValueError("as planned")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_the_next_one_of_another_name(tmp_path):
    child = os.fork()
    if child == 0:
        with replacing(tmp_path / "step=1.ckpt") as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = tmp_path / ".step=1.ckpt.partial"
    assert left.read_text() == "half"
    with replacing(tmp_path / "table.csv") as partial:
        partial.write_text("whole")
    assert left.exists(), "files of other suffixes may be another program's"
    with replacing(tmp_path / "step=2.ckpt") as partial:
        assert not left.exists()
        partial.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=2.ckpt", "table.csv"]


def test_what_a_living_writer_writes_stays(tmp_path):
    with replacing(tmp_path / "one.ckpt") as slow:
        slow.write_text("one")
        with replacing(tmp_path / "two.ckpt") as fast:
            fast.write_text("two")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one.ckpt": "one", "two.ckpt": "two"}
