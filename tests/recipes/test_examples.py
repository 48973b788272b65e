"""The programs under recipes/examples run as a user would run them, and are short."""

from pathlib import Path

import pytest

from recipes.examples import lightning_cli, plain_pytorch, text_classification, timm_torchvision

FOLDER = Path(timm_torchvision.__file__).parent


@pytest.mark.parametrize("example", [timm_torchvision, text_classification], ids=lambda example: example.__name__.split(".")[-1])
def test_an_example_hides_samples(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    selection = example.main()
    assert selection.totals.samples_hidden > 0
    assert selection.statistics.measured.all()


def test_the_plain_loop_hides_samples_and_nothing_at_first(capsys):
    hidden = plain_pytorch.main()
    assert hidden[0] == 0 and max(hidden) > 20
    assert "epoch 5: hid" in capsys.readouterr().out


def test_lightning_cli_takes_the_selection_from_its_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = lightning_cli.main(["fit", "--config", str(FOLDER / "lightning_cli.yaml"), "--trainer.max_epochs", "2"])
    (selection,) = [callback for callback in cli.trainer.callbacks if type(callback).__name__ == "SampleSelection"]
    assert (selection.method.name, selection.method.max_fraction, selection.method.tau) == ("kakurenbo", 0.3, 0.1)
    assert selection.totals.samples_trained + selection.totals.samples_hidden == 2 * 96


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_under_60_lines(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 60
