"""What is said when a library of an extra is missing."""

import sys

import pytest

from kakurenbo_lightning.core.extras import require, require_or_exit
from kakurenbo_lightning.errors import MissingExtraError


def test_missing_modules_are_named_with_the_command_that_installs_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandas", None)  # Python's own way to forbid an import
    message = 'a program needs pandas, no_such_module: pip install "kakurenbo-lightning[report]"'
    with pytest.raises(MissingExtraError) as raised:
        require("a program", "report", "torch", "pandas", "no_such_module")
    assert str(raised.value) == message
    with pytest.raises(SystemExit) as ended:
        require_or_exit("a program", "report", "pandas", "no_such_module")
    assert ended.value.code == 2 and capsys.readouterr().err == f"{message}\n"


def test_modules_that_are_there_are_not_imported():
    sys.modules.pop("this", None)  # prints a poem when it is imported
    require("a program", "report", "this")
    assert "this" not in sys.modules
