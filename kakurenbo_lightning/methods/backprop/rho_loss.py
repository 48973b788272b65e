"""RHO-Loss: trains the samples whose loss can still be reduced.

Sören Mindermann, Jan Brauner, Muhammed Razzak, Mrinank Sharma, Andreas Kirsch, Winnie Xu, Benedikt Höltgen, Aidan N. Gomez, Adrien
Morisot, Sebastian Farquhar, Yarin Gal: "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt", ICML 2022.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, at_least_two, hard
from kakurenbo_lightning.methods.frozen_module import FrozenModule, path_or_module
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, number, setting
from kakurenbo_lightning.methods.topk import exact_floor

if TYPE_CHECKING:
    from torch import Tensor


@register_method("rho_loss")
@dataclass(frozen=True)
class RhoLoss(BackpropMethod):
    """RHO-Loss (Mindermann et al., ICML 2022).

    Of each batch of B the ``floor(fraction * B)`` samples of highest ``loss - irreducible loss`` are trained at once; at least two are. A
    sample whose irreducible loss is missing (NaN) is never chosen, and counted.
    """

    fraction: float = setting(
        0.1, number(0, 1, above=True), "share of a batch that is trained; at least two samples are (BatchNorm refuses one)"
    )
    irreducible: Any = setting(  # noqa: RUF009  # a path, or a FrozenModule
        "irreducible.pt",
        path_or_module(),
        "a model that was trained on other data and gives the loss of each sample when it comes, or a file with that of every one, "
        "`{'irreducible': float32[N], 'fingerprint': str}`; `python -m kakurenbo_recipes.irreducible` makes it; relative to where the "
        "program was started",
        fix="For example: 'irreducible.pt', or Model.load_from_checkpoint('held_out.ckpt').",
    )

    summary: ClassVar[str] = "trains the samples of each batch whose loss is highest above their irreducible loss"
    paper: ClassVar[str] = "Mindermann et al., ICML 2022"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    pooled: ClassVar[bool] = False
    without_index: ClassVar[str] = "irreducible=a trained LightningModule"

    @property
    def reference(self) -> FrozenModule | None:
        """The model of irreducible losses; ``None`` where a table has them."""
        return self.irreducible if isinstance(self.irreducible, FrozenModule) else None

    @property
    def needs_index(self) -> bool:
        """Whether irreducible losses are in a table, which has a row for each index."""
        return self.reference is None

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Check that the table of irreducible losses, if there is one, has one row per sample."""
        if self.reference is not None:
            return
        check = checker(self)
        make = "Make it with `python -m kakurenbo_recipes.irreducible` and the data settings of this run (--help explains)."
        check(Path(self.irreducible).is_file(), "irreducible", "an existing file", make)
        check(
            isinstance(self._file, dict) and isinstance(self._file.get("irreducible"), torch.Tensor),
            "irreducible",
            "a file with {'irreducible': float32[N], 'fingerprint': str}",
            make,
        )
        rows = len(self._file["irreducible"])
        check(rows == num_samples, "irreducible", f"of a data set of {num_samples} samples, this file has {rows}", make)

    def check_data(self, fingerprint: str) -> None:
        """Check that the table of irreducible losses, if there is one, was made for this data set."""
        if self.reference is not None:
            return
        saved = self._file.get("fingerprint")
        checker(self)(
            saved in (None, fingerprint),
            "irreducible",
            "made from this training data (the fingerprint of a few samples differs)",
            "Make it again with `python -m kakurenbo_recipes.irreducible`, for the data as this run loads it.",
        )

    def contents(self) -> dict[str, str]:
        """A hash of the table of irreducible losses, if there is one; a model is compared by the setting itself."""
        if self.reference is not None:
            return {}
        table = self._table[torch.device("cpu")].contiguous().numpy()
        return {"irreducible losses": hashlib.blake2b(table.tobytes(), digest_size=8).hexdigest()}

    @cached_property
    def _file(self) -> Any:
        try:
            return torch.load(self.irreducible, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises many kinds of errors for other bytes, a KeyError for some text
            return None

    @cached_property
    def _table(self) -> dict[torch.device, Tensor]:
        return {torch.device("cpu"): self._file["irreducible"].float()}

    def _rows(self, indices: Tensor) -> Tensor:
        """Those rows of the table, on the device of ``indices``."""
        if indices.device not in self._table:
            self._table[indices.device] = self._table[torch.device("cpu")].to(indices.device)
        return self._table[indices.device][indices]

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Choose the samples with the highest reducible losses; among equal ones, those that come first."""
        losses = hard(values["loss"])
        irreducible = values["reference"].float() if self.reference is not None else self._rows(indices)
        known = irreducible.isfinite()
        score = torch.where(known, losses - irreducible, -float("inf"))
        count = at_least_two(exact_floor(self.fraction, len(losses)), len(losses))
        return Picked(score.argsort(descending=True, stable=True), known.sum().clamp(max=count), unknown=(~known).sum())
