"""Learning-rate schedules of the recipes, stepped per batch, made of torch's."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from kakurenbo_recipes.settings import check_setting, is_count


def schedule(
    optimizer: Optimizer,
    trainer: L.Trainer,
    milestones: Sequence[float] | None = None,
    gamma: float = 0.1,
    warmup_epochs: float = 0,
    warmup_factor: float = 0.1,
    final_factor: float = 0.0,
) -> dict[str, Any]:
    """Return the `lr_scheduler` dict for `configure_optimizers`: a schedule that ends exactly with the last step.

    Args:
        optimizer: the optimizer whose learning rate is scheduled.
        trainer: provides the number of steps and epochs.
        milestones: epochs at which the learning rate is multiplied by `gamma`; None for a cosine down to `final_factor`.
        gamma: factor at each milestone.
        warmup_epochs: first epochs, in which the learning rate rises linearly. Milestones count them too.
        warmup_factor: factor on the learning rate at the start of the warm-up.
        final_factor: factor on the learning rate at the end of the cosine.
    """
    is_number = isinstance(warmup_epochs, int | float) and warmup_epochs >= 0
    check_setting("schedule.warmup_epochs", warmup_epochs, is_number, "a number >= 0", "Try 5, or 0 for none.")
    check_setting("schedule.warmup_factor", warmup_factor, 0 < warmup_factor <= 1, "a number in (0, 1]", "Try 0.1.")
    check_setting("schedule.final_factor", final_factor, 0 <= final_factor <= 1, "a number in [0, 1]", "Try 0.01, or 0.")
    are_epochs = all(isinstance(epoch, int | float) and epoch >= 0 for epoch in milestones or ())
    check_setting("schedule.milestones", milestones, are_epochs, "null or a list of epochs", "Try [60,120,160].")
    known = is_count(trainer.max_epochs, 1)
    check_setting("trainer.max_epochs", trainer.max_epochs, known, "an int >= 1", "A schedule must know where it ends.")
    steps = int(trainer.estimated_stepping_batches)
    per_epoch = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)  # not from `steps`, which max_steps may cut
    warm = min(steps - 1, round(warmup_epochs * per_epoch))
    after: LRScheduler
    if milestones is None:
        after = CosineAnnealingLR(optimizer, steps - warm, eta_min=final_factor * optimizer.param_groups[0]["lr"])
    else:
        after = MultiStepLR(optimizer, [round(epoch * per_epoch) - warm for epoch in milestones], gamma)
    if warm:
        after = SequentialLR(optimizer, [LinearLR(optimizer, warmup_factor, total_iters=warm), after], [warm])
    return {"scheduler": after, "interval": "step"}
