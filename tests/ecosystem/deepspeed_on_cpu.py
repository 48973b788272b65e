"""DeepSpeed's own engine on a CPU: methods that hide and draw train under ZeRO 1 and 2 what one device does, to the bit, and resume.

In an environment with DeepSpeed, which is no part of `make test-ecosystem` because it is built from source, in the repository::

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=29655 \\
        PYTHONPATH=.:tests/support python tests/ecosystem/deepspeed_on_cpu.py
"""

import sys
import tempfile
from pathlib import Path

import deepspeed.comm.torch  # noqa: F401  (see below)
import torch
from helpers import Net, loader, trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.methods import PLB, Baseline, InfoBatch, Kakurenbo, RandomHiding

METHODS = (Baseline(), RandomHiding(max_fraction=0.3), Kakurenbo(tau=0.0, max_fraction=0.5), PLB(), InfoBatch(end_fraction=0.0))
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # would compile a collective for processes that share memory


class OnCpu(DeepSpeedStrategy):
    """Without Lightning's check that there is a GPU."""

    root_device = property(lambda self: torch.device("cpu", 0))

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class Seen(Net):
    """Writes down what it trains; saves once, in the middle of epoch 1, where it has a path."""

    def __init__(self, path=None):
        super().__init__()
        self.trained, self.path = [], path

    def training_step(self, batch, batch_idx):
        if self.training:
            self.trained.append(batch[2].tolist())
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.path and (self.current_epoch, batch_idx) == (1, 1):
            self.trainer.save_checkpoint(self.path)


def fit(strategy, method, path=None, ckpt_path=None):
    torch.manual_seed(0)
    module = Seen(path)
    made = trainer(SampleSelection(method, seed=0), accelerator="cpu", devices=1, strategy=strategy, max_epochs=3)
    made.fit(module, loader(), ckpt_path=ckpt_path)
    return module


def zero(stage):
    zeros = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return OnCpu(config={**zeros, "train_micro_batch_size_per_gpu": 8})


def difference(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def main(folder):
    for stage in (1, 2):
        for method in METHODS:
            path = folder / f"{stage}-{method.name}.ckpt"
            plain, whole = fit("auto", method), fit(zero(stage), method, path)
            resumed = fit(zero(stage), method, ckpt_path=path)
            left = whole.trained[len(whole.trained) - len(resumed.trained) :]
            print(
                f"ZeRO {stage}, {method.name}: as one device {whole.trained == plain.trained}, weights differ by "
                f"{difference(plain, whole)}; resumed {resumed.trained == left}, by {difference(whole, resumed)}",
                flush=True,
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
