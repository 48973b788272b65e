"""Trainings with a backprop method, and what each step really trained."""

from helpers import Net, fit, loader
from lightning.pytorch.callbacks import Callback

from kakurenbo_lightning import SampleSelection

EPOCHS, BATCH = 5, 8


class Trained(Callback):
    """What each step really trained: the indices and inputs that ``training_step`` got in train mode, by epoch."""

    def __init__(self):
        self.batches, self.counts, self.looked = {}, {}, {}

    def on_train_start(self, trainer, pl_module):
        step = pl_module.training_step

        def watched(batch, batch_idx):
            seen = self.batches if pl_module.training else self.looked
            seen.setdefault(trainer.current_epoch, []).append(batch)
            return step(batch, batch_idx)

        pl_module.training_step = watched

    def on_train_epoch_end(self, trainer, pl_module):
        self.counts[trainer.current_epoch] = {
            key.removeprefix("selection/"): value.item() for key, value in trainer.callback_metrics.items()
        }

    def indices(self, epoch):
        return [index for batch in self.batches.get(epoch, []) for index in batch[2].tolist()]


def sb_fit(method, module=None, train=None, *callbacks, **settings):
    # attribution is tested by two more passes over the first batch, which tests that count passes leave out
    selection, trained = SampleSelection(method, check_attribution=False), Trained()
    module = module or Net(dropout=0.0)
    made = fit(module, train or loader(61), selection, trained, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, selection, trained, module
