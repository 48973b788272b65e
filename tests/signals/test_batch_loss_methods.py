"""Losses of a whole batch: methods that read more than the loss, and checkpoints."""

import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batch_losses import BATCH, COUNT, Detection, Dice, DiceWithLogits, Watched, scores, trained
from cuts import SaveAt
from helpers import Points, assert_trained_as_planned, fit
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import MismatchError, OutputsError
from kakurenbo_lightning.methods.registry import registered
from kakurenbo_lightning.signals import refusals

pytestmark = pytest.mark.filterwarnings("ignore:a scoring pass changed scored")  # the modules write down what they see


# --- methods that read more


@pytest.mark.parametrize("method", ["kakurenbo", "forget_online"])
def test_what_else_a_method_reads_comes_from_what_the_step_returns_beside_its_loss(method):
    """Hidden samples are scored by the losses of batches of hidden samples."""
    made = DiceWithLogits()
    settings = {"max_fraction": 0.4, **({"tau": 0.0} if method == "kakurenbo" else {})}
    selection, spy = trained(made, method, settings=settings)
    assert_trained_as_planned(spy)
    assert made.scored and selection.totals.samples_refreshed == sum(len(rows) for rows, _ in made.scored)
    epochs, rest, scored = [], list(made.batches), list(made.scored)
    for epoch in range(5):
        epochs += [rest.pop(0) for _ in spy.batches[epoch]]
        hidden = len(spy.hidden[epoch]) if epoch < 4 else 0  # the last ones are not scored
        while hidden > 0:
            epochs.append(scored.pop(0))
            hidden -= len(epochs[-1][0])
    assert not rest and not scored
    np.testing.assert_allclose(selection.statistics.loss, scores(epochs, 0.7), rtol=1e-6)
    assert selection.statistics.judged.all()


@pytest.mark.parametrize(
    ("method", "named"), [("kakurenbo", "confidence, correct"), ("forget_online", "correct"), ("el2n", "el2n")]
)
def test_a_method_that_reads_more_than_there_is_is_refused_by_name(method, named):
    with pytest.raises(OutputsError) as error:
        trained(Dice(), method)
    message = str(error.value)
    assert f"reads {named} too" in message
    for works in (
        'return {"loss": loss, "logits": logits, "target": target}',
        'SampleSelection("infobatch", values="bls")',
        "random",
    ):
        assert works in message


@pytest.mark.parametrize("method", ["selective_backprop", "plb", "iswr", "rho_loss"])
def test_methods_of_other_families_are_refused_when_they_are_made(method):
    works = r"\(ies, infobatch, orderdp, seta\), where the data set gives classes also rcap"
    with pytest.raises(ValueError, match=rf"values='bls' is not allowed with {method}.*reads only the loss {works}"):
        SampleSelection(method, values="bls")


def test_refusals_name_the_methods_that_are_registered():
    ours = {cls.name: cls for cls in registered() if cls.__module__.startswith("kakurenbo_lightning.")}
    by_loss = {name: cls for name, cls in ours.items() if cls.family == "hide" and cls.reads == ("loss",)}
    assert {name for name, cls in by_loss.items() if cls.needs_classes is not True} == set(refusals.BY_LOSS)
    assert {name for name, cls in by_loss.items() if cls.needs_classes is True} == set(refusals.BY_LOSS_AND_CLASSES)
    assert {name for name, cls in ours.items() if not cls.reads} == set(refusals.NO_VALUES)


@pytest.mark.parametrize("method", refusals.BY_LOSS_AND_CLASSES + refusals.BY_LOSS)
def test_every_method_that_is_named_for_batch_losses_hides_by_them(method):
    settings = {"ies": {"threshold": 1.0, "window": 1}}.get(method)
    selection, spy = trained(Dice(), method, settings=settings)
    assert_trained_as_planned(spy)
    assert selection.totals.samples_hidden > 0


@pytest.mark.parametrize(
    "given",
    [{"values": "batch"}, {"values": None}, {"bls_alpha": 1.0}, {"bls_alpha": -0.1}, {"bls_alpha": float("nan")}],
    ids=str,
)
def test_other_values_are_refused_by_name(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"SampleSelection: {name}="):
        SampleSelection("infobatch", **given)


class Manual(Dice):
    """Optimizes by itself."""

    def __init__(self, returns=True):
        super().__init__()
        self.automatic_optimization, self.returns = False, returns

    def training_step(self, batch, batch_idx):
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss if self.returns else None


def test_a_step_that_optimizes_by_itself_must_return_its_loss():
    made = Manual()
    selection, spy = trained(made, settings={"unbiased": False})
    assert_trained_as_planned(spy)
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7), rtol=1e-6)
    with pytest.raises(OutputsError, match="training_step returned none; end it with `return loss`"):
        trained(Manual(returns=False), settings={"unbiased": False})


def test_under_manual_optimization_a_scoring_pass_takes_the_loss_of_sample_outputs():
    class Scored(Manual):
        def sample_outputs(self, batch):
            x, y, index = batch
            loss = Dice.outputs(self, x, y, index)
            if not self.training:
                self.scored.append((index.tolist(), loss.item()))
            return {"loss": loss, "logits": self.network(x), "target": y}

    made = Scored()
    selection, spy = trained(made, "kakurenbo", settings={"max_fraction": 0.4, "tau": 0.0})
    assert_trained_as_planned(spy)
    assert selection.totals.samples_refreshed > 0 and selection.statistics.judged.all()


class HalfDice(Watched):
    """Cross-entropy of labels beside an overlap over the batch."""

    def outputs(self, x, y, index):
        target = F.one_hot(y, 3).float()
        return 0.5 * F.binary_cross_entropy_with_logits(self.network(x), target) + 0.5 * Dice.outputs(self, x, y, index)


def test_a_rest_over_the_whole_batch_has_another_way_out_than_one_that_is_no_samples():
    with pytest.raises(OutputsError) as error:
        trained(HalfDice(), values="sample_loss")
    said = str(error.value)
    assert (
        "loss weights: F.binary_cross_entropy_with_logits is only a part of the loss" in said and "F.cross_entropy(" not in said
    )
    assert re.search(
        r"belongs to no sample, the same .* penalty on weights.*unweighted_rest=True\) .* weights leave the rest as it is", said
    )
    assert re.search(r'whole batch \(Dice .*values="bls"\).* multiplied by the mean weight', said)
    selection, spy = trained(HalfDice())
    assert_trained_as_planned(spy)
    assert selection.totals.samples_hidden > 0


# --- checkpoints


def states(selection, module):
    return {**selection.statistics.state_dict(), **module.state_dict()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


@pytest.mark.slow_cases("training_step", "optimizer_step", "on_train_epoch_end")
@pytest.mark.parametrize(
    ("hook", "batch"),
    [
        ("training_step", 1),
        ("on_after_backward", 2),
        ("optimizer_step", 2),
        ("on_train_batch_end", 2),
        ("on_train_epoch_end", None),
    ],
)
def test_a_resumed_run_has_the_same_scores_to_the_bit(tmp_path, hook, batch):
    """Each batch counts once, wherever the run was cut."""
    save, module = SaveAt(tmp_path / "cut.ckpt", hook, 2, batch or 0), DiceWithLogits()
    settings = {"max_fraction": 0.4, "tau": 0.0}
    selection, _ = trained(module, "kakurenbo", save, settings=settings)
    whole, again = states(selection, module), DiceWithLogits()
    resumed, _ = trained(again, "kakurenbo", settings=settings, ckpt_path=save.path)
    assert_same_bits(whole, states(resumed, again))
    torch.load(save.path, weights_only=True)


class Interrupted(Exception):
    pass


def test_a_scoring_pass_that_was_interrupted_counts_once(tmp_path):
    class Breaking(DiceWithLogits):
        def training_step(self, batch, batch_idx):
            if not self.training and len(self.scored) == 1 and self.breaks:
                raise Interrupted
            return super().training_step(batch, batch_idx)

    class SaveThen(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / "cut.ckpt")

    settings = {"max_fraction": 0.4, "tau": 0.0}
    runs = []
    for breaks, path in ((False, None), (True, None), (False, tmp_path / "cut.ckpt")):
        module = Breaking()
        module.breaks = breaks
        try:
            selection, _ = trained(module, "kakurenbo", SaveThen(), settings=settings, ckpt_path=path)
            runs.append(states(selection, module))
        except Interrupted:
            assert breaks
    assert (tmp_path / "cut.ckpt").exists()
    assert_same_bits(*runs)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"values": "sample_loss"}, "values='not set', the checkpoint has 'bls'"),
        ({"settings": {"bls_alpha": 0.5}}, "bls_alpha=0.5"),
    ],
    ids=["values", "alpha"],
)
def test_scores_of_another_kind_are_not_gone_on_with(tmp_path, now, said):
    save = SaveAt(tmp_path / "cut.ckpt", "on_train_epoch_end", 1)
    trained(Dice(), "infobatch", save)
    with pytest.raises(MismatchError, match=said):
        trained(Dice(), "infobatch", ckpt_path=save.path, **now)


def test_the_table_of_a_dataloader_with_lists_is_trained_too():
    """Detection data comes in tuples of lists, which nothing needs to slice."""
    data = DataLoader(Points(COUNT), BATCH, shuffle=True, collate_fn=lambda items: tuple(zip(*items, strict=True)))

    class Lists(Detection):
        def training_step(self, batch, batch_idx):
            x, y, index = batch
            return super().training_step((torch.stack(x), torch.stack(y), torch.tensor(index)), batch_idx)

    made = Lists()
    selection = SampleSelection("infobatch", values="bls", seed=1)
    fit(made, data, selection, max_epochs=4)
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7), rtol=1e-6)
    assert selection.totals.samples_hidden > 0
