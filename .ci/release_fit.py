"""Train two epochs with the installed wheel and start its scripts: run by .ci/release-check in an environment without any extra."""

import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import kakurenbo_lightning
from kakurenbo_lightning import SampleSelection, available_methods

SAMPLES = 64
LIGHT_SCRIPTS = {"kakurenbo-advise", "kakurenbo-check", "kakurenbo-methods", "kakurenbo-inspect"}  # the others need an extra
EXTRA_MODULES = ("pandas", "matplotlib", "torchvision", "timm", "pytest")


class Tiny(L.LightningModule):
    """A linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(4, 2)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean loss; the callback sees each sample's inside."""
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD at a rate that learns the data in one epoch."""
        return torch.optim.SGD(self.parameters(), lr=0.5)


def train() -> None:
    """Two epochs, of which the second hides samples, and a checkpoint ``last.ckpt``."""
    L.seed_everything(0)
    classes = torch.arange(SAMPLES) % 2
    points = 2.0 * F.one_hot(classes, 4) + 0.1 * torch.randn(SAMPLES, 4)
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[selection], **quiet)
    trainer.fit(Tiny(), DataLoader(TensorDataset(points, classes), batch_size=8, shuffle=True))
    assert 0 < selection.plan.hidden_fraction <= 0.5, selection.plan
    trainer.save_checkpoint("last.ckpt")


def script(*command: str, code: int = 0) -> str:
    """What a console script prints; it must end with ``code``."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def main() -> None:
    """Check the installation, train, and start every script."""
    assert Path(kakurenbo_lightning.__file__).is_relative_to(sys.prefix), kakurenbo_lightning.__file__
    installed = distribution("kakurenbo-lightning")
    number = installed.version
    assert number == kakurenbo_lightning.__version__ == Path(sys.argv[1]).name.split("-")[1]
    found = [module for module in EXTRA_MODULES if find_spec(module)]
    assert not found, f"{found} are installed: the environment is to have core dependencies alone"
    core = [line for line in installed.requires or () if "extra" not in line]
    print(f"kakurenbo-lightning {number}; core dependencies {core}")
    train()
    listed = script("kakurenbo-methods")
    assert all(name in listed for name in available_methods())
    assert "--- " in script("kakurenbo-methods", "kakurenbo"), "the method's card is in the wheel"
    assert "kakurenbo(" in script("kakurenbo-inspect", "last.ckpt")
    assert "MODULE:NAME" in script("kakurenbo-check", "--help")
    scripts = {point.name for point in installed.entry_points if point.group == "console_scripts"}
    for program in sorted(scripts - LIGHT_SCRIPTS):
        said = script(program, ".", code=2)
        assert 'pip install "kakurenbo-lightning[' in said, f"{program} does not say which extra it needs: {said}"
    print(f"kakurenbo-lightning {number} can be released")


if __name__ == "__main__":
    main()
