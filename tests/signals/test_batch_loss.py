"""``values="bls"``: losses over a whole batch, whose samples get a moving mean of the losses of their batches."""

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import FEATURES, Points, Spy, assert_trained_as_planned, fit, loader
from torch import nn
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, SampleStatistics, available_methods, get_method
from kakurenbo_lightning.errors import MismatchError, OutputsError
from kakurenbo_lightning.signals.batch_loss import BatchLoss

pytestmark = pytest.mark.filterwarnings("ignore:a scoring pass changed scored")  # the modules write down what they see
AUTHORS = json.loads(Path(__file__).with_name("bls_authors.json").read_text())
"""Of random batches: rows, loss of the batch, loss weights, and the loss that the authors' code (mrazhou/BLS, seta.py) trains; then its
scores, and which of them its InfoBatch takes for well learned."""
COUNT, BATCH = 64, 8


def scores(batches, alpha, count=COUNT):
    """Of batches (rows, loss), slow and obvious, in float32 as everything is recorded."""
    score, alpha, rest = [np.float32(0)] * count, np.float32(alpha), np.float32(1 - alpha)
    for rows, loss in batches:
        for i in rows:
            if np.isfinite(score[i]):
                score[i] = alpha * score[i] + rest * np.float32(loss)
            else:
                score[i] = np.float32(loss)
    return np.array(score, dtype=np.float32)


def folded(batches, alpha, count=COUNT, method="infobatch"):
    """The same by the library."""
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
    for rows, loss, weights, trained in run["steps"]:
        out, values = source.observe(lambda loss=loss: torch.tensor(loss), None, len(rows), None, torch.tensor(weights))
        assert float(out) == pytest.approx(trained, rel=3e-7)
        assert values["loss"].tolist() == [loss] * len(rows)


# --- through the Trainer


class Watched(pl.LightningModule):
    """Writes down the rows and the loss of every batch, those of scoring passes too."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
        self.batches, self.scored = [], []

    def training_step(self, batch, batch_idx):
        outputs = self.outputs(*batch)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        (self.batches if self.training else self.scored).append((batch[2].tolist(), loss.item()))
        return outputs

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Dice(Watched):
    """Overlap over the batch."""

    def outputs(self, x, y, index):
        p, target = self.network(x).softmax(1), F.one_hot(y, 3).float()
        return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


class DiceWithLogits(Dice):
    """And what a method may read beside it."""

    def outputs(self, x, y, index):
        return {"loss": super().outputs(x, y, index), "logits": self.network(x), "target": y}


class InfoNCE(Watched):
    """Each sample is to be found among the batch by its other view, [B, B]."""

    def outputs(self, x, y, index):
        one, other = (F.normalize(self.network(view), dim=1) for view in (x, x.roll(1, 1)))
        return F.cross_entropy(one @ other.T / 0.5, torch.arange(len(x)))


class Detector(nn.Module):
    """As torchvision's: lists of images and targets; a dict of losses in train mode, a list of detections in eval mode."""

    def __init__(self):
        super().__init__()
        self.head, self.boxes = nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 4)

    def forward(self, images, targets=None):
        features = torch.cat(
            [image[None].expand(3, -1) + 0.1 * torch.arange(3)[:, None] for image in images]
        )  # three anchors each
        if not self.training:
            return [{"boxes": self.boxes(image[None]), "scores": self.head(image[None]).softmax(1)} for image in images]
        labels = torch.cat([target["labels"].expand(3) for target in targets])
        wanted = torch.cat([target["boxes"].expand(3, -1) for target in targets])
        chosen = torch.arange(0, len(labels), 2)  # of all images together, as torchvision's samplers choose
        return {
            "loss_classifier": F.cross_entropy(self.head(features[chosen]), labels[chosen]),
            "loss_box_reg": F.smooth_l1_loss(self.boxes(features[chosen]), wanted[chosen], reduction="sum") / len(labels),
        }


class Detection(Watched):
    def __init__(self):
        super().__init__()
        self.network = Detector()

    def outputs(self, x, y, index):
        targets = [{"labels": label, "boxes": image[:4]} for image, label in zip(x, y, strict=True)]
        return sum(self.network(list(x), targets).values())


MODULES = (Dice, InfoNCE, Detection)
METHODS = {"random": {}, "infobatch": {}, "seta": {"groups": 4}}


def trained(module, method="infobatch", *callbacks, values="bls", settings=None, train=None, **trainer):
    """A run of the Trainer; its selection and spy."""
    selection = SampleSelection(method, seed=1, values=values, **(settings or {}))
    spy = Spy(selection)
    fit(module, train or loader(COUNT), selection, *callbacks, spy, **{"max_epochs": 5, **trainer})
    return selection, spy


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
    with pytest.raises(ValueError, match=rf"values='bls' is not allowed with {method}.*infobatch.*seta"):
        SampleSelection(method, values="bls")


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
