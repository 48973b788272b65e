"""A training that is only observed is the training without the callback."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, SureNet, fit, loader

from kakurenbo_lightning import SampleSelection


class WithOutputs(Net):
    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


class WithModule(Net):
    """Calls an nn.Module criterion with options."""

    def training_step(self, batch, batch_idx):
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0]))
        return criterion(self.network(batch[0]), batch[1])


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}],
    ids=lambda settings: next(iter(settings), "plain"),
)
@pytest.mark.slow_cases("WithModule")  # its criterion is seen as that of Net is
@pytest.mark.parametrize("module", [Net, SureNet, WithOutputs, WithModule])
def test_a_run_that_is_only_observed_is_the_run_without_the_callback(module, settings):
    weights = []
    for callbacks in ([], [SampleSelection("baseline")]):
        # without a generator of its own a plain DataLoader takes a number from the global stream in each epoch
        train = loader(61, shuffle=False, generator=torch.Generator())
        net = module()
        fit(net, train, *callbacks, **settings)
        weights.append(net.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_what_the_step_returns_reaches_other_callbacks_unchanged():
    class Outputs(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append({name: value.detach().clone() for name, value in outputs.items()})

    seen = []
    for callbacks in ([], [SampleSelection("baseline")]):
        outputs = Outputs()
        fit(SureNet(), loader(shuffle=False, generator=torch.Generator()), *callbacks, outputs, max_epochs=2)
        seen.append(outputs.seen)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)
