"""A Hydra app as many have it, in the shape of lightning-hydra-template: everything is made from a group of its own."""

from pathlib import Path

import hydra
import lightning as L
from omegaconf import DictConfig, OmegaConf


def made(group: DictConfig | None) -> list:
    """What stands side by side in the group of callbacks or loggers."""
    nodes = (group or {}).values()
    return [hydra.utils.instantiate(node) for node in nodes if isinstance(node, DictConfig) and "_target_" in node]


@hydra.main(config_path=str(Path(__file__).parents[1] / "configs"), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float:
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule, model = hydra.utils.instantiate(cfg.data), hydra.utils.instantiate(cfg.model)
    callbacks, loggers = made(cfg.get("callbacks")), made(cfg.get("logger"))
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    trainer.fit(model, datamodule, ckpt_path=cfg.ckpt_path)
    score = trainer.callback_metrics["val/acc"].item()
    trainer.test(model, datamodule, verbose=False)
    for callback in callbacks:
        if type(callback).__name__ == "SampleSelection":
            print("selection", callback.method, callback.totals.samples_hidden)
    return score


if __name__ == "__main__":
    main()
