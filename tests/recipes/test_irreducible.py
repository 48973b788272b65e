"""The recipe that makes RHO-Loss's table: held-out losses, the fingerprint of a run's data, a file that is whole."""

import os

import pytest
import torch
import torch.nn.functional as F
from helpers import trainer
from hydra.utils import instantiate
from kakurenbo_recipes import held_out as recipe
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from processes import program
from recipe_runs import composing, set_up

from kakurenbo_lightning import SampleSelection, get_method
from kakurenbo_lightning.session.checkpoint import describe_method

SAMPLES = 97
DATA = ["data.size=8", f"data.subset={SAMPLES}", "data.batch_size=16", "data.crop_padding=1", "model.width=4"]
TINY = [*DATA, "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]


@pytest.fixture
def compose(tmp_path):
    """Compose the config as the program would, with the run's folder at tmp_path."""
    with composing("irreducible", tmp_path, *TINY) as compose_with:
        yield compose_with


@pytest.fixture
def data(compose):
    return set_up(instantiate(compose().data))


@pytest.mark.parametrize("folds", [2, 3, 97])
def test_folds_hold_every_row_once_and_are_of_one_size(folds):
    parts = recipe.split(SAMPLES, folds, seed=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(SAMPLES))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert [part.tolist() for part in parts] != [part.tolist() for part in recipe.split(SAMPLES, folds, seed=1)]


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_a_model_trains_on_the_other_folds_and_never_sees_the_test_set(compose, monkeypatch, held_out):
    data = set_up(instantiate(compose(f"data.held_out={held_out}").data))
    samples = len(data.train_images)
    assert (samples < SAMPLES) is (held_out > 0)
    rows, seen = torch.arange(0, samples, 2), {"train": [], "val": []}
    everything, val, test = data.train_images, data.val_images, data.test_images

    class Watched(recipe.HeldOutClassifier):
        def training_step(self, batch, batch_idx):
            seen["train"] += batch[1].tolist()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen["val"].append(batch[0].clone())
            super().validation_step(batch, batch_idx)

    monkeypatch.setattr(recipe, "HeldOutClassifier", Watched)
    model = recipe.held_out_losses(compose("trainer.max_epochs=1"), data, rows)
    rest = torch.arange(1, samples, 2)
    assert sorted(seen["train"]) == sorted(everything.labels[rest].tolist())
    assert torch.equal(torch.cat(seen["val"]), data.normalise(everything.images[rows]))
    assert data.train_images is everything and data.val_images is val and data.test_images is test
    with torch.no_grad():
        logits = model.eval()(data.normalise(everything.images[rows]))
    assert torch.equal(model.losses, F.cross_entropy(logits, everything.labels[rows], reduction="none"))


def test_the_losses_of_the_epoch_with_the_lowest_mean_are_kept():
    model = recipe.HeldOutClassifier(CifarResNet(width=4), None, 10)
    model.log_dict = lambda *arguments, **settings: None
    for losses in ([3.0, 1.0], [0.5, 0.7], [0.1, 9.0]):
        model._seen = [(torch.tensor(losses), torch.tensor([True, False]))]
        model.on_validation_epoch_end()
    assert model.losses.tolist() == torch.tensor([0.5, 0.7]).tolist()
    assert model.best_accuracy == 0.5


def test_every_sample_gets_a_loss_and_the_same_seed_gives_the_same(compose, data):
    first, second = (recipe.irreducible_losses(compose("folds=3", "trainer.max_epochs=1"), data) for _ in range(2))
    assert first.shape == (SAMPLES,) and first.dtype == torch.float32 and first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["folds=1"], "folds=1 is not possible: it must be an int from 2 to 97"),
        (["folds=98"], "folds=98"),
        (["trainer.limit_val_batches=1"], "trainer.limit_val_batches=1 is not possible: it must be null"),
        (["trainer.devices=2"], "trainer.devices=2 is not possible: it must be 1"),
    ],
)
def test_a_wrong_setting_is_named(compose, data, overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        recipe.irreducible_losses(compose(*overrides), data)


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder" / "table.pt"
    recipe.save({"irreducible": torch.ones(3)}, path)
    with pytest.raises(Exception, match="pickle"):
        recipe.save({"irreducible": lambda: None}, path)
    assert torch.load(path, weights_only=True)["irreducible"].tolist() == [1, 1, 1]
    assert os.listdir(path.parent) == ["table.pt"]


def test_the_fingerprint_is_that_of_a_run(tmp_path, data):
    table = tmp_path / "irreducible.pt"
    recipe.save({"irreducible": torch.zeros(SAMPLES), "fingerprint": recipe.fingerprint(data.train_images)}, table)
    selection = SampleSelection("rho_loss", irreducible=table, fraction=0.5)
    model = ImageClassifier(CifarResNet(width=4), lambda parameters: torch.optim.SGD(parameters, lr=0.1), 10)
    trainer(selection, max_epochs=2).fit(model, datamodule=data)
    assert selection.session.loader.data.fingerprint == torch.load(table, weights_only=True)["fingerprint"]
    assert selection.totals.samples_scored == SAMPLES


def test_a_table_with_other_losses_is_another_setting(tmp_path):
    table, described = tmp_path / "irreducible.pt", []
    for value in (0.0, 0.0, 1.0):
        recipe.save({"irreducible": torch.full((5,), value)}, table)
        described.append(describe_method(get_method("rho_loss", irreducible=table)))
    assert described[0] == described[1] != described[2]


@pytest.mark.slow
def test_the_two_commands_work_one_after_the_other_and_the_wrong_data_are_refused(tmp_path):
    said = program("kakurenbo_recipes.train", *TINY, "method=rho_loss", cwd=tmp_path, fails=True)
    assert "python -m kakurenbo_recipes.irreducible" in said
    said = program("kakurenbo_recipes.irreducible", *TINY, cwd=tmp_path)
    assert "kakurenbo-train method=rho_loss" in said
    made = torch.load(tmp_path / "irreducible.pt", weights_only=True)
    assert made["irreducible"].shape == (SAMPLES,)
    assert "scored 97" in program("kakurenbo_recipes.train", *TINY, "method=rho_loss", cwd=tmp_path)
    said = program("kakurenbo_recipes.train", *TINY, "method=rho_loss", "data.split_seed=1", cwd=tmp_path, fails=True)
    assert "fingerprint" in said and "python -m kakurenbo_recipes.irreducible" in said


@pytest.mark.slow
def test_help_teaches(tmp_path):
    said = program("kakurenbo_recipes.irreducible", "--help", cwd=tmp_path)
    words = [
        "kakurenbo-train method=rho_loss",
        "python -m kakurenbo_recipes.irreducible data=cifar10",
        "data: cifar10, ",
        "folds: 2",
    ]
    assert [word for word in words if word not in said] == [] and "digits" in said
