"""pytorch-tabular, whose TabularModel makes the Trainer: of the other name of Lightning."""

import numpy as np
import pandas as pd
import pytest
from foreign import BATCH, EPOCHS, METHODS, NO_PREDICTIONS, Case, Training, check
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, GANDALFConfig

ROWS = 60


class Tabular(Training):
    """A TabularModel, its module and its loader.

    Args:
        model: of pytorch-tabular.
        table: the training data, of which it takes a fifth to validate.
    """

    def __init__(self, model: TabularModel, table: pd.DataFrame) -> None:
        self.model = model
        self.data = model.prepare_dataloader(train=table, seed=0)
        super().__init__(model.prepare_model(self.data), self.data.train_dataloader())
        self.module.train()

    def fit(self, callbacks):
        self.model.train(self.module, self.data, callbacks=callbacks)

    def loss_alone(self, module, sample):
        """Of the row twice: its metrics cannot be computed of a batch of one."""
        return module.training_step(self.loader.collate_fn([sample, sample]), 0)


def table():
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(ROWS, 3))
    frame = pd.DataFrame(numbers, columns=["a", "b", "c"])
    frame["kind"] = generator.choice(["red", "green", "blue"], ROWS)
    frame["amount"] = numbers @ np.array([1.0, -2.0, 0.5]) + generator.normal(size=ROWS)
    frame["share"] = generator.uniform(size=ROWS)
    frame["label"] = (frame["amount"] > 0).map({True: "more", False: "less"})
    return frame


def training(task, targets, network=None, learning_rate=1e-3):
    model = TabularModel(
        data_config=DataConfig(target=targets, continuous_cols=["a", "b", "c"], categorical_cols=["kind"]),
        model_config=(network or plain)(task, learning_rate),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=BATCH,
            max_epochs=EPOCHS,
            accelerator="cpu",
            progress_bar="none",
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            trainer_kwargs={"enable_model_summary": False},
        ),
        verbose=False,
    )
    return Tabular(model, table())


def plain(task, learning_rate):
    """Its BatchNorm of the input columns is turned off, so that a row's loss does not depend on its batch."""
    return CategoryEmbeddingModelConfig(task=task, layers="16-8", batch_norm_continuous_input=False, learning_rate=learning_rate)


def gandalf(task, learning_rate):
    return GANDALFConfig(task=task, gflu_stages=2, batch_norm_continuous_input=False, learning_rate=learning_rate)


PACKAGE = "pytorch-tabular"
CASES = [
    Case("CategoryEmbedding, classification", PACKAGE, lambda: training("classification", ["label"])),
    Case("CategoryEmbedding, regression", PACKAGE, lambda: training("regression", ["amount"]), NO_PREDICTIONS),
    Case("CategoryEmbedding, two targets", PACKAGE, lambda: training("regression", ["amount", "share"]), NO_PREDICTIONS),
    Case("GANDALF, classification", PACKAGE, lambda: training("classification", ["label"], gandalf)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tabular(case, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes lightning_logs
    check(case, method)
