"""The global random streams of a process, as plain tensors and numbers."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch


def rng_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's global generators and that of the current CUDA device.

    Loads with ``weights_only=True``. CUDA's is left out while nothing has used CUDA: asking for it would start CUDA.
    """
    numpy: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            int(numpy["state"]["pos"]),
            int(numpy["has_gauss"]),
            float(numpy["gauss"]),
        ],
        "torch": torch.get_rng_state(),
    }
    if (
        torch.cuda.is_initialized()
    ):  # is_available() looks for a driver each time where there is none, and this is called in every step
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def same_rng_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of :func:`rng_state` continue with the same numbers."""
    if one["python"] != other["python"] or one["numpy"][1:] != other["numpy"][1:] or one.keys() != other.keys():
        return False
    tensors = [(state["numpy"][0], state["torch"], *([state["cuda"]] if "cuda" in state else [])) for state in (one, other)]
    return all(torch.equal(*pair) for pair in zip(*tensors, strict=True))


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """The global streams are afterwards what they were before."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def seed_everything(seed: int) -> None:
    """Seed the generators of :func:`rng_state` from one 63-bit number.

    Not by ``torch.manual_seed``: it also seeds what is not in the state, now the other devices and later, when CUDA starts, this one.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def stream_seed(seed: int, epoch: int, stream: str) -> int:
    """A 63-bit seed for one ``stream`` (for example ``"deal"``) of one epoch of one run."""
    digest = hashlib.blake2b(f"{stream}:{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream_generator(seed: int, epoch: int, stream: str) -> torch.Generator:
    """A CPU generator seeded by :func:`stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, epoch, stream))
