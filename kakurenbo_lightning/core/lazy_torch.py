"""torch, for the modules that declare methods: it is imported when one of its names is first used, and not before.

Its import takes seconds. What methods are called, which settings they have and what those mean is known without it, so a script's help,
the list of methods and the configs that Hydra composes of them need not wait::

    from kakurenbo_lightning.core.lazy_torch import torch

    if TYPE_CHECKING:
        from torch import Tensor  # for annotations; isinstance(value, torch.Tensor) elsewhere

Such a module uses no name of torch while it is imported: a :class:`~kakurenbo_lightning.core.statistics.Column` takes the name of its
dtype. The modules of other packages, methods of their own among them, import torch as ever.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            real = __import__("torch")
            for key, module in list(sys.modules.items()):
                if key.startswith("kakurenbo_lightning.") and vars(module).get("torch") is self:  # this one too
                    module.torch = real  # so that the next use costs what it costs elsewhere
            return getattr(real, name)

    torch = _Torch()
