"""The console script `kakurenbo-advise`."""

import textwrap

import pytest

from kakurenbo_lightning.cli import advise


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a module of a model and its data."""
    (tmp_path / "advised_project.py").write_text(
        textwrap.dedent("""
            from helpers import Net, loader

            model, number = Net(), 3
            def make_data():
                return loader(64, 8)
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_table_of_a_project(project, capsys):
    words = ["--max-epochs", "10", "--steps", "8", "--sample", "32", "--devices", "2", "--accelerator", "cpu"]
    advise.main(["advised_project:model", "advised_project:make_data", *words])
    text = capsys.readouterr().out
    assert "64 samples, 10 epochs on 2 ranks" in text and "random_cycle" in text and "scoring pass" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["advised_project:number", "advised_project:make_data", "--max-epochs", "3"],
            "must be a LightningModule with a training_step",
        ),
        (
            ["advised_project:model", "advised_project:number", "--max-epochs", "3"],
            "must be a LightningDataModule or a train DataLoader",
        ),
        (
            ["advised_project:none", "advised_project:number", "--max-epochs", "3"],
            "MODEL='advised_project:none' cannot be imported",
        ),
        (
            ["advised_project:model", "advised_project:make_data", "--max-epochs", "0"],
            "'0' is not allowed; it must be an int >= 1",
        ),
    ],
)
def test_what_cannot_be_advised_is_named_in_one_sentence(project, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        advise.main(words)
    assert ended.value.code in (1, 2) and said in capsys.readouterr().err
