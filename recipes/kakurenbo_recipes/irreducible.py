"""Make the table of irreducible losses that the method `rho_loss` needs: `python -m kakurenbo_recipes.irreducible`.

The training samples are split into folds. For each fold a model of its own trains on the other folds and then gives the loss of
every sample of this one, as in the paper's training without holdout data (Mindermann et al., ICML 2022): so every training
sample has a loss by a model that has not seen it. The test set is not touched.

Lightning and torch are imported when a training begins: the help and the settings (`--cfg job`) need neither.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from kakurenbo_recipes.command_line import short_errors
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.schema import IrreducibleSchema, names_of
from kakurenbo_recipes.settings import check_setting
from kakurenbo_recipes.train import config_dir


@hydra.main(config_path=config_dir(), config_name="irreducible", version_base="1.3")
def make(cfg: DictConfig) -> None:
    """Train the models of all folds and write the table."""
    check_config(cfg, names_of(IrreducibleSchema), "python -m kakurenbo_recipes.irreducible")
    output = Path(cfg.output).expanduser()
    check_setting("output", cfg.output, not output.is_dir(), "the name of a file", "Try output=irreducible.pt.")
    from kakurenbo_recipes.held_out import write_table

    losses = write_table(cfg, output)
    print(f"irreducible losses of {len(losses):,} samples (mean {losses.mean():.3f}, highest {losses.max():.2f}): {output}")
    print("Use them, with the same data settings: kakurenbo-train method=rho_loss", end="")
    print("" if cfg.output == "irreducible.pt" else f" method.irreducible={cfg.output}")


def main() -> None:
    """Start the program `python -m kakurenbo_recipes.irreducible`."""
    with short_errors(config_dir(), "irreducible", "python -m kakurenbo_recipes.irreducible"):
        make()


if __name__ == "__main__":
    main()
