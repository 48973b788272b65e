"""Two ranks whose buffers are their own (``broadcast_buffers=False``) have, after a scoring pass, what they had before it."""

import pytest
import torch
from helpers import Net, loader, trainer
from lightning.pytorch.strategies import DDPStrategy

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks.forked import printed, run_ranks


class OwnBuffers(Net):
    """Its BatchNorm sees the rank's own batches; a buffer names the rank.

    Attributes:
        seen: of each scoring pass, the rank that the buffer named in it, and the running mean.
        trained: running mean after each training step.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("who", torch.zeros(1))
        self.scored, self.trained = [], []

    def on_train_start(self):
        self.who.fill_(self.global_rank)

    def training_step(self, batch, batch_idx):
        mean = self.network[1].running_mean
        if self.trainer.training:
            before = self.trained[-1] if self.trained else mean.clone()
            assert torch.equal(mean, before), "a scoring pass has left its buffers behind"
            assert int(self.who) == self.global_rank
        else:
            self.scored.append((int(self.who), mean.tolist()))
        loss = super().training_step(batch, batch_idx)
        if self.trainer.training:
            self.trained.append(mean.clone())
        return loss


def train(folder, method, settings):
    module = OwnBuffers()
    made = trainer(
        SampleSelection(method, **settings),
        accelerator="cpu",
        devices=2,
        max_epochs=3,
        strategy=DDPStrategy(broadcast_buffers=False),
    )
    torch.manual_seed(0)
    made.fit(module, loader())
    torch.save((module.scored, [mean.tolist() for mean in module.trained]), folder / f"{made.global_rank}.pt")


@pytest.mark.parametrize(
    ("method", "settings"),
    [("kakurenbo", {"max_fraction": 0.5, "tau": 0.0}), ("selective_backprop", {"warmup_epochs": 0})],
    ids=["refresh", "scoring in each step"],
)
def test_each_rank_has_its_own_buffers_after_a_scoring_pass(tmp_path, method, settings):
    assert run_ranks(train, (tmp_path, method, settings), 2, log=tmp_path / "log") == [0, 0], printed(tmp_path / "log", 2)
    (zero, ran), (one, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert zero and len(zero) == len(one) and all(who == 0 for who, _ in zero + one), "every rank scores with rank 0's"
    assert [mean for _, mean in zero] == [mean for _, mean in one]
    assert ran[-1] != other[-1]
