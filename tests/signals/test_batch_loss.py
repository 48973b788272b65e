"""``values="bls"``: losses over a whole batch, whose samples get a moving mean of the losses of their batches."""

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from batch_losses import BATCH, COUNT, METHODS, MODULES, Dice, InfoNCE, scores, trained
from helpers import assert_trained_as_planned, fit, loader

from kakurenbo_lightning import SampleSelection, SampleStatistics, available_methods, get_method
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.batch_loss import BatchLoss

pytestmark = pytest.mark.filterwarnings("ignore:a scoring pass changed scored")  # the modules write down what they see

AUTHORS = json.loads(Path(__file__).with_name("bls_authors.json").read_text())
"""Of random batches: rows, loss of the batch, loss weights, and the loss that the authors' code (mrazhou/BLS, seta.py) trains; then its
scores, and which of them its InfoBatch takes for well learned."""


def folded(batches, alpha, count=COUNT, method="infobatch"):
    """The same as ``scores`` by the library."""
    source, statistics, method = BatchLoss(("loss",), alpha=alpha), SampleStatistics(count), get_method(method)
    for rows, loss in batches:
        rows = torch.tensor(rows)
        _, values = source.observe(lambda loss=loss: torch.tensor(loss), None, len(rows), None)
        statistics.record(rows, source.averaged(statistics, rows, values), 0)
    return statistics


# --- against the authors' code


@pytest.mark.parametrize("run", AUTHORS, ids=[f"alpha {run['alpha']}" for run in AUTHORS])
def test_scores_are_those_of_the_authors_code(run):
    batches = [(rows, loss) for rows, loss, _, _ in run["steps"]]
    statistics = folded(batches, run["alpha"], run["count"])
    theirs = np.array(run["scores"], dtype=np.float32)
    np.testing.assert_allclose(statistics.loss.numpy(), theirs, rtol=3e-7)
    np.testing.assert_allclose(scores(batches, run["alpha"], run["count"]), theirs, rtol=3e-7)
    score = statistics.loss
    assert (score < score.double().mean()).nonzero().squeeze(1).tolist() == run["well_learned"]


@pytest.mark.parametrize("run", AUTHORS, ids=[f"alpha {run['alpha']}" for run in AUTHORS])
def test_the_loss_that_is_trained_is_that_of_the_authors_code(run):
    """A batch's loss times the mean of its weights; what is recorded is the loss before."""
    source = BatchLoss(("loss",), weighs=True, alpha=run["alpha"])
    with pytest.warns(UserWarning, match="multiplied by the mean of the loss weights"):
        source.observe(lambda: torch.tensor(1.0), None, 2, None, torch.ones(2))
    for rows, loss, weights, made in run["steps"]:
        out, values = source.observe(lambda loss=loss: torch.tensor(loss), None, len(rows), None, torch.tensor(weights))
        assert float(out) == pytest.approx(made, rel=3e-7)
        assert values["loss"].tolist() == [loss] * len(rows)


# --- through the Trainer


@pytest.mark.slow_cases("random", "seta")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("module", MODULES)
def test_methods_that_read_only_the_loss_train_by_the_loss_of_batches(module, method):
    made = module()
    selection, spy = trained(made, method, settings=METHODS[method])
    assert_trained_as_planned(spy)
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7), rtol=1e-6)
    assert not made.scored, "a method without scoring passes runs nothing beside its steps, on the first batch too"


@pytest.mark.parametrize("module", MODULES)
def test_the_refusal_of_such_a_loss_shows_the_line_to_write(module):
    with pytest.raises(OutputsError) as error:
        trained(module(), values="sample_loss")
    line = 'SampleSelection("infobatch", values="bls")'
    assert line in str(error.value)
    trained(module(), eval(line, {"SampleSelection": lambda method, values: method}), max_epochs=1)


def test_every_method_that_refusals_name_reads_only_the_loss():
    for name in ("infobatch", "seta"):
        assert available_methods()[name].family == "hide" and get_method(name).reads == ("loss",)


def test_the_last_uneven_batch_counts_as_any_other():
    made = InfoNCE()
    selection, _ = trained(made, train=loader(61), max_epochs=3)
    sizes = {len(rows) for rows, _ in made.batches}
    assert len(sizes) > 1
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7, 61), rtol=1e-6)


def test_alpha_0_is_the_last_batch_alone():
    made = Dice()
    selection, _ = trained(made, settings={"bls_alpha": 0.0})
    last = {i: loss for rows, loss in made.batches for i in rows}
    np.testing.assert_allclose(selection.statistics.loss, [last[i] for i in range(COUNT)], rtol=1e-6)


def test_accumulated_batches_are_recorded_as_their_own_losses():
    made = Dice()
    selection, _ = trained(made, train=loader(61), accumulate_grad_batches=3)
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7, 61), rtol=1e-6)


def test_a_batch_whose_loss_is_not_finite_makes_no_sample_look_easy():
    """It is counted and not hidden, and its score goes on with the next loss itself, not from 0."""

    class Failing(Dice):
        def outputs(self, x, y, index):
            loss = super().outputs(x, y, index)
            return loss * float("nan") if len(self.batches) == 9 else loss

        def on_after_backward(self):
            for parameter in self.parameters():
                parameter.grad.nan_to_num_()

    made = Failing()
    selection, spy = trained(made, settings={"end_fraction": 0.0}, max_epochs=5)
    bad = made.batches[9][0]
    assert not set(bad) & set(spy.hidden[2])
    np.testing.assert_allclose(selection.statistics.loss, scores(made.batches, 0.7), rtol=1e-6)
    assert selection.statistics.nonfinite() == 0
    assert folded([(bad, float("nan"))], 0.7).nonfinite() == len(bad)
    recovered = folded([(bad, 1.0), (bad, float("inf")), (bad, 2.0), (bad, 1.0)], 0.7).loss[bad]
    np.testing.assert_allclose(recovered, 0.7 * 2 + 0.3, rtol=1e-6)


def test_a_skipped_batch_changes_no_score():
    class Skipping(Dice):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    made = Skipping()
    selection, _ = trained(made, max_epochs=1)
    measured = sorted(i for rows, _ in made.batches for i in rows)
    assert selection.statistics.measured.nonzero().squeeze(1).tolist() == measured and len(measured) == COUNT - BATCH


def test_weights_multiply_the_loss_by_their_mean(recwarn):
    seen = []

    class Weighed(Dice):
        def on_before_backward(self, loss):
            seen.append(loss.item())

    made = Weighed()
    selection = SampleSelection("infobatch", values="bls", seed=1, mean_over_samples=False, end_fraction=0.0)
    weights = []

    class Reading(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            of_samples = selection.plan.weights
            weights.append(1.0 if of_samples is None else float(of_samples[batch[2]].mean()))

    fit(made, loader(COUNT), selection, Reading(), max_epochs=4)
    assert len({round(weight, 4) for weight in weights}) > 3
    np.testing.assert_allclose(seen, [loss * weight for (_, loss), weight in zip(made.batches, weights, strict=True)], rtol=1e-5)
    assert len([one for one in recwarn if "multiplied by the mean of the loss weights" in str(one.message)]) == 1


def test_the_report_claims_nothing():
    selection, _ = trained(Dice(), max_epochs=1)
    report = selection.session.outputs.report
    lines = "\n".join(report.lines())
    assert report.way == "batch" and "they are no losses of samples" in report.source
    assert "share of the loss: not known" in lines and "decomposes over samples: not known" in lines
    assert "attribution: not tested" in lines and "the mean of a batch's weights" in lines
