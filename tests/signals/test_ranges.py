"""What a user returns is checked on the first batch: a percentage, classes in the place of logits, targets that are no classes."""

import contextlib

import pytest
import torch

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

B, C = 6, 4
LOGITS = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(B) % C
GOOD = {
    "sample_loss": torch.rand(B),
    "logits": LOGITS,
    "target": TARGET,
    "confidence": torch.rand(B),
    "correct": torch.ones(B, dtype=torch.bool),
    "entropy": torch.rand(B),
}
NAN = LOGITS.masked_fill(torch.eye(B, C).bool(), float("nan"))


def by_step(values):
    source = SampleOutputs(("loss",))
    return source, lambda: source.observe(lambda: {"loss": torch.ones(()), **values}, None, B, contextlib.nullcontext)


def by_function(values):
    source = SampleOutputs(("loss",), sample_outputs=lambda batch: values)
    return source, lambda: source.observe(lambda: torch.ones(()), None, B, contextlib.nullcontext)


@pytest.mark.parametrize("given", [by_step, by_function])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("confidence", 100 * torch.rand(B), r"confidence .* lies between .*it must be a probability in \[0, 1\] \(a percentage"),
        ("confidence", -torch.rand(B), r"confidence .* lies between -"),
        ("confidence", torch.rand(B).to(torch.complex64), "confidence .* is torch.complex64"),
        ("correct", torch.rand(B).to(torch.complex64), "correct .* is torch.complex64"),
        ("logits", LOGITS.argmax(1, keepdim=True).expand(B, C), "logits .* is torch.int64; .* not the predicted classes"),
        ("logits", LOGITS.to(torch.complex64), "logits .* is torch.complex64"),
        ("logits", NAN, "logits .* hold NaN in the first batch"),
        (
            "target",
            TARGET + 1,
            r"target .* lies between 1 and 4, but logits have 4 classes; it must be a class in \[0, 3\], or -100",
        ),
        ("target", TARGET - 1, r"target .* lies between -1 and 2"),
        ("sample_loss", torch.arange(B), "sample_loss .* is torch.int64; it must be floating-point"),
        ("sample_loss", torch.ones(B, dtype=torch.bool), "sample_loss .* is torch.bool"),
        ("entropy", torch.arange(B), "entropy .* is torch.int64; it must be floating-point"),
    ],
)
def test_a_value_out_of_its_range_is_named(given, name, value, words):
    _, run = given({**GOOD, name: value})
    source = "training_step" if given is by_step else "sample_outputs"
    with pytest.raises(OutputsError, match=f"per-sample values: {words}") as error:
        run()
    assert f"from {source}" in str(error.value)


@pytest.mark.parametrize("given", [by_step, by_function])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", torch.tensor([0.0, 1.0, 1.004, 0.5, 0.25, 1.0])),  # bfloat16 rounds up
        ("confidence", torch.ones(B, dtype=torch.int64)),
        ("confidence", torch.full((B,), float("nan"))),
        ("correct", torch.arange(B) % 2),
        ("target", TARGET.masked_fill(TARGET == 1, -100)),
        ("target", TARGET.int()),
        ("logits", LOGITS.masked_fill(TARGET[:, None] == torch.arange(C) - 1, float("-inf"))),
        ("logits", LOGITS.half()),
        ("sample_loss", torch.full((B,), float("nan"))),
        ("sample_loss", -torch.rand(B)),
    ],
)
def test_what_is_in_its_range_passes(given, name, value):
    _, run = given({**GOOD, name: value})
    _, values = run()
    assert values["loss"].shape == (B,)


def test_ranges_are_checked_once():
    steps = iter([{**GOOD}, {**GOOD, "confidence": 100 * torch.rand(B)}])
    source = SampleOutputs(("loss",))
    for _ in range(2):
        source.observe(lambda: {"loss": torch.ones(()), **next(steps)}, None, B, contextlib.nullcontext)


def test_a_class_that_is_none_is_the_criterions_own_error():
    logits = LOGITS.clone().requires_grad_()
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds|Target"):
        SampleOutputs(("loss",)).observe(
            lambda: torch.nn.functional.cross_entropy(logits, TARGET + 1), None, B, contextlib.nullcontext
        )
