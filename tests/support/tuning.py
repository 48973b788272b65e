"""Lightning's learning-rate finder, and a module that brings its own loaders for it."""

from helpers import Points, SureNet
from lightning.pytorch.callbacks import LearningRateFinder
from torch.utils.data import DataLoader

FIND = {"min_lr": 1e-4, "max_lr": 1e-2, "num_training_steps": 12, "early_stop_threshold": None}


class SelfLoadingNet(SureNet):
    """Brings its own loaders, of :attr:`batch_size`."""

    batch_size = 8

    def train_dataloader(self):
        return DataLoader(Points(64), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Points(16), batch_size=self.batch_size)


class FindLater(LearningRateFinder):
    """As in Lightning's documentation: looks for a rate before some epochs."""

    def on_fit_start(self, *args):
        return

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            self.lr_find(trainer, pl_module)
