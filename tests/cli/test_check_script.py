"""The console script `kakurenbo-check`, and `SampleSelection.check`: what the first batch proves, without training."""

import re
import textwrap

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import SureNet, fit, loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from kakurenbo_lightning import SampleSelection, available_methods
from kakurenbo_lightning.cli.check import main
from kakurenbo_lightning.errors import ConflictError, OutputsError

NO_VALUES = {"baseline", "random", "random_cycle", "weighted"}


class Module(pl.LightningModule):
    """A network with a BatchNorm and a Dropout, and a loss."""

    def __init__(self, loss, manual=False):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.loss, self.automatic_optimization = loss, not manual

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def items(size=24):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(size, 4, generator=generator), torch.arange(size) % 3), 8, shuffle=True)


def dice(logits, target):
    p, one = logits.sigmoid(), F.one_hot(target, 3)
    return 1 - 2 * (p * one).sum() / (p.sum() + one.sum())


def works(report):
    return {name for name, reason in report.methods.items() if not reason}


def test_a_classification_works_with_every_method():
    report = SampleSelection.check(Module(F.cross_entropy), items())
    assert works(report) == set(available_methods()) == set(report.families)
    assert report.values.calls == ("F.cross_entropy",) and report.values.share == pytest.approx(1)
    assert report.values.decomposes and report.values.attribution == "verified" and report.values.weights == "exact"
    assert not report.problem
    text = str(report)
    assert "values come from: F.cross_entropy in the step" in text and "share of the loss: 100.0%" in text
    assert re.search(r"infobatch +hide +yes", text)


def test_a_loss_of_the_batch_works_with_methods_that_read_nothing():
    report = SampleSelection.check(Module(dice), items())
    assert report.values is None and works(report) == NO_VALUES
    assert "cannot be split into one value for each sample" in report.problem
    text = str(report)
    assert text.startswith("the loss of each sample is not available, see [1]\n")
    assert text.count("cannot be split into one value") == 1 and re.search(r"infobatch +hide +no, see \[1\]", text)


def test_a_part_of_the_loss_works_without_weights():
    module = Module(lambda logits, target: F.cross_entropy(logits, target) + 0.1 * module.network[0].weight.square().sum())
    with pytest.warns(UserWarning, match="F.cross_entropy is a part of the loss"):
        report = SampleSelection.check(module, items())
    assert 0 < report.values.share < 1 and not report.values.decomposes
    assert "kakurenbo" in works(report) and "unweighted_rest=True" in report.methods["infobatch"]


def test_a_regression_works_with_methods_that_read_the_loss_alone():
    report = SampleSelection.check(Module(lambda prediction, target: F.mse_loss(prediction[:, 0], target.float())), items())
    assert report.values.gives == ("loss",)
    assert {"infobatch", "plb", "selective_backprop"} <= works(report)
    assert "reads confidence, correct" in report.methods["kakurenbo"]


@pytest.mark.parametrize("manual", [False, True])
def test_nothing_is_trained_and_everything_is_put_back(manual):
    module, data = Module(F.cross_entropy, manual), items()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    report = SampleSelection.check(module, data)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and all(part.training for part in module.modules())
    assert ("automatic_optimization" in report.methods["infobatch"]) == manual
    trainer = fit(module, data, SampleSelection("random"), max_epochs=1)
    assert trainer.global_step == 3, "the module trains as if nothing had been tried"


class Restless(Module):
    """Changes everything it has in a step."""

    def __init__(self, manual):
        super().__init__(F.cross_entropy, manual)
        self.register_buffer("centre", torch.zeros(3))
        self.mean, self.count, self.seen = torch.zeros(3), 0, []
        self.accuracy = MeanMetric()

    def setup(self, stage):
        self.extra = nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        self.centre = self.centre * 0.9 + 1
        self.mean.add_(1)
        self.count += 1
        self.seen.append(batch_idx)
        self.accuracy.update(self.mean.mean())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("manual", [False, True])
def test_the_module_is_what_it_was_however_restless(manual, precision):
    module, data = Restless(manual), pl.LightningDataModule.from_datasets(items().dataset, batch_size=8)
    kept, centre = module.network[0].weight, module.centre
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = {name: set(vars(part)) for name, part in module.named_modules()}
    SampleSelection.check(module, data, precision=precision)
    assert module.network[0].weight is kept and module.centre is centre and kept.grad is None
    after = module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(value.dtype == before[name].dtype for name, value in after.items()) and module.dtype == torch.float32
    assert not module.mean.any() and module.count == 0 and module.seen == [] and module.accuracy._update_count == 0
    assert {name: set(vars(part)) for name, part in module.named_modules()} == names
    assert module._trainer is None and data.trainer is None


def test_a_lazy_module_can_be_trained_afterwards():
    module = Module(F.cross_entropy)
    module.network = nn.Sequential(nn.LazyLinear(3))
    assert works(SampleSelection.check(module, items())) == set(available_methods())
    assert module.network(torch.ones(2, 4)).shape == (2, 3)


def test_gradients_that_are_there_stay():
    module = Module(F.cross_entropy, manual=True)
    module.network[0].weight.grad = gradient = torch.ones(3, 4)
    SampleSelection.check(module, items())
    assert module.network[0].weight.grad is gradient and bool((gradient == 1).all())
    assert module.network[0].bias.grad is None


class ByMode(Module):
    """Returns the values of samples in training alone."""

    def __init__(self, asked):
        super().__init__(F.cross_entropy)
        self.asked = asked

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        losses = F.cross_entropy(logits, batch[1], reduction="none")
        values = {"loss": losses.mean(), "sample_loss": losses, "logits": logits, "target": batch[1]}
        return values if self.asked(self) else losses.mean()


@pytest.mark.parametrize(
    "asked", [lambda module: module.training, lambda module: module.trainer.training], ids=["module", "trainer"]
)
def test_values_that_are_returned_in_training_alone_are_no_use_in_a_scoring_pass(asked):
    report = SampleSelection.check(ByMode(asked), items())
    assert {*NO_VALUES, "infobatch", "seta", "rcap"} <= works(report)
    assert not {"kakurenbo", "selective_backprop", "plb"} & works(report)
    said = "in a scoring pass, where training_step runs on samples without training them"
    assert said in report.methods["kakurenbo"] and "returned a Tensor" in report.methods["kakurenbo"]
    assert "returned a Tensor" in report.values.attribution and "\n" not in report.values.attribution
    with pytest.raises(OutputsError, match=said):
        fit(ByMode(asked), items(), SampleSelection("kakurenbo"), max_epochs=1)
    fit(ByMode(asked), items(), SampleSelection("infobatch"), max_epochs=2)


def test_values_of_a_function():
    def values_of(batch):
        return {"sample_loss": batch[0].mean(1), "confidence": torch.full((len(batch[0]),), 0.5), "correct": batch[1] > 0}

    report = SampleSelection.check(Module(dice), items(), sample_outputs=values_of)
    assert report.values.way == "function" and "kakurenbo" in works(report) and "infobatch" not in works(report)


def test_a_module_that_cannot_be_used_at_all_is_an_error():
    class Iterating(SureNet):
        def training_step(self, dataloader_iter):
            return None

    with pytest.raises(ConflictError, match="dataloader_iter"):
        SampleSelection.check(Iterating(), loader())


def test_a_data_module_and_settings_of_the_trainer():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return items()

    report = SampleSelection.check(Module(F.cross_entropy), Data(), precision="bf16-mixed")
    assert works(report) == set(available_methods())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a module of a model and its data."""
    (tmp_path / "project_of_a_user.py").write_text(
        textwrap.dedent("""
            import lightning.pytorch as pl
            from helpers import Net, Points, loader
            from torch.utils.data import DataLoader
            from test_check_script import Module, dice

            class Broken(Module):
                def __init__(self):
                    super().__init__(dice)

            class NoLoader(pl.LightningDataModule):
                pass

            model, data, number, dataset = Net(), loader(), 3, Points()
            wrong = DataLoader([1.0] * 8, 4)
            def make_data():
                return loader()
            def nothing():
                pass
            def failing():
                raise RuntimeError("no such folder")
        """)
    )
    monkeypatch.chdir(tmp_path)


def said(capsys, code, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    out = capsys.readouterr()
    return out.out or out.err


def test_the_script_prints_the_table(project, capsys):
    name = "project_of_a_user"
    for model in ("model", "Net"):
        text = said(capsys, 0, f"{name}:{model}", f"{name}:make_data")
        assert (
            "values come from:" in text
            and "attribution: verified (in eval mode)" in text
            and re.search(r"kakurenbo +hide +yes", text)
        )
    text = said(capsys, 1, f"{name}:Broken", "test_check_script:items")
    assert "the loss of each sample is not available" in text and re.search(r"random +hide +yes", text)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("project_of_a_user", "data", "MODEL='project_of_a_user' is not of the form MODULE:NAME"),
        ("other", "data", "MODEL='project_of_a_user:other' cannot be imported: AttributeError"),
        ("nowhere_at_all:model", "data", "MODEL='nowhere_at_all:model' cannot be imported: ModuleNotFoundError"),
        ("number", "data", "model=3 is an object of class int; it must be a LightningModule"),
        (
            "test_check_script:Module",
            "data",
            "MODEL='test_check_script:Module' cannot be made without arguments: Module needs loss. Write a function that makes one, "
            "`def make(): return Module(loss=...)`, and give its name, test_check_script:make",
        ),
        ("failing", "data", "MODEL='project_of_a_user:failing' cannot be made: failing() raised RuntimeError: no such folder"),
        (
            "model",
            "number",
            "DATA='project_of_a_user:number': data=3 is an object of class int; it must be a LightningDataModule or a",
        ),
        (
            "model",
            "dataset",
            "is an object of class Points; it must be a LightningDataModule or a train DataLoader: put a data set into",
        ),
        ("model", "model", "is an object of class Net; it must be a LightningDataModule or a train DataLoader"),
        ("model", "nothing", "data=None is an object of class NoneType"),
        ("model", "NoLoader", "has no train_dataloader; a LightningDataModule must return one DataLoader from it"),
        ("model", "failing", "DATA='project_of_a_user:failing' cannot be made"),
        ("model", "wrong", "cannot train the first batch of DATA='project_of_a_user:wrong': "),
    ],
)
def test_what_cannot_be_checked_is_named_in_one_sentence(model, data, words, project, capsys):
    names = [name if ":" in name or name == "project_of_a_user" else f"project_of_a_user:{name}" for name in (model, data)]
    text = said(capsys, 1, *names)
    assert words in text and text.startswith("kakurenbo-check: error: ") and text.count("\n") == 1


def test_the_values_of_tokens_are_all_that_methods_read():
    class Tokens(Module):
        def __init__(self):
            super().__init__(F.cross_entropy)
            self.network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))

        def training_step(self, batch, batch_idx):
            return self.loss(self.network(batch[0]).flatten(0, 1), batch[0].flatten())

    tokens = torch.randint(0, 5, (24, 6), generator=torch.Generator().manual_seed(0))
    report = SampleSelection.check(Tokens(), DataLoader(TensorDataset(tokens), 8))
    assert "values: loss, confidence, correct, el2n, entropy\n" in str(report) and works(report) == set(available_methods())


def test_the_lines_that_help_are_printed_once():
    regression = Module(lambda prediction, target: F.mse_loss(prediction[:, 0], target.float()))
    for module in (regression, Module(dice)):
        text = str(SampleSelection.check(module, items()))
        assert text.count("sample_loss = F.cross_entropy(") == text.count("a regression (its values") == 1
        assert "what training_step can return:" in text and "see below" not in text


def test_help_teaches_by_examples(capsys):
    text = said(capsys, 0, "--help")
    assert "kakurenbo-check my_project.model:Net my_project.data:DigitsData" in text and "MODULE:NAME" in text
