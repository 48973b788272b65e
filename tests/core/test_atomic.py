"""A file that is written by `replacing` is whole or not there."""

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
