"""Random streams that depend only on what they are for, so that every rank and every resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, epoch: int, stream: str) -> int:
    """A 63-bit seed for one ``stream`` (for example ``"deal"``) of one epoch of one run."""
    digest = hashlib.blake2b(f"{stream}:{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream_generator(seed: int, epoch: int, stream: str) -> torch.Generator:
    """A CPU generator seeded by :func:`stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, epoch, stream))
