"""A project's own function by the name of one of torch.nn.functional is called as often as without a callback."""

import functools

import pytest
import torch
import torch.nn.functional as F
from losses import observed

WAYS = ("bare", "wraps", "twice", "an object")
plain = F.cross_entropy


def doubled(way, function):
    """``function`` times 2, or 4 where it is patched twice, as a patch of this kind."""

    def bare(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    @functools.wraps(function)
    def wrapping(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    class Patch:
        def __call__(self, *args, **kwargs):
            return 2 * function(*args, **kwargs)

    return {"bare": bare, "wraps": wrapping, "an object": Patch()}.get(way) or doubled("wraps", wrapping)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("within", [False, True], ids=["before", "within the step"])
def test_a_patched_criterion_is_applied_once(way, within, heads, batches, monkeypatch):
    factor = 4 if way == "twice" else 2

    def step(heads, batch):
        if not within:
            return F.cross_entropy(heads.classes(batch["x"]), batch["y"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "cross_entropy", doubled(way, F.cross_entropy))
            return F.cross_entropy(heads.classes(batch["x"]), batch["y"])

    if not within:
        monkeypatch.setattr(F, "cross_entropy", doubled(way, plain))
    _, made = observed(step, heads, batches)
    for batch, (loss, values) in zip(batches, made, strict=True):
        each = factor * plain(heads.classes(batch["x"]), batch["y"], reduction="none")
        assert torch.allclose(values["loss"], each, atol=1e-5)
        assert torch.allclose(loss, each.mean()), "the training is as without a callback"


def test_another_patched_function_is_applied_once(heads, batches, monkeypatch):
    log_softmax = F.log_softmax
    monkeypatch.setattr(F, "log_softmax", lambda *args, **kwargs: 0.5 * log_softmax(*args, **kwargs))

    def step(heads, batch):
        return F.nll_loss(F.log_softmax(heads.classes(batch["x"]), 1), batch["y"])

    _, ((loss, values),) = observed(step, heads, batches[:1])
    each = 0.5 * plain(heads.classes(batches[0]["x"]), batches[0]["y"], reduction="none")
    assert torch.allclose(values["loss"], each, atol=1e-5) and torch.allclose(loss, each.mean())
