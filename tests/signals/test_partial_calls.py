"""Steps that call their criterion on a part of the batch: the refusal says that it does, how often, and what to do."""

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, TOKENS, each_cross_entropy, observed, tokens

from kakurenbo_lightning.errors import OutputsError


def logits_of(heads, batch):
    return heads.classes(batch["x"])


def looped(heads, batch):
    logits = logits_of(heads, batch)
    return sum(F.cross_entropy(logits[i : i + 1], batch["y"][i : i + 1]) for i in range(BATCH)) / BATCH


def looped_over_samples(heads, batch):
    return sum(F.cross_entropy(z, y) for z, y in zip(logits_of(heads, batch), batch["y"], strict=True)) / BATCH


def chunked(heads, batch):
    chunks = zip(logits_of(heads, batch).chunk(4), batch["y"].chunk(4), strict=True)
    return sum(F.cross_entropy(z, y) for z, y in chunks) / 4


def masked(heads, batch):
    kept = batch["keep"] > 0
    return F.cross_entropy(logits_of(heads, batch)[kept], batch["y"][kept])


def by_class(heads, batch):
    logits, y = logits_of(heads, batch), batch["y"]
    return sum(F.cross_entropy(logits[y == c], y[y == c], reduction="sum") for c in y.unique()) / BATCH


def masked_tokens(heads, batch):
    logits = heads.classes(batch["x"][:, None] * torch.linspace(0.5, 2, TOKENS)[:, None])
    kept = tokens(batch) != -100
    return F.cross_entropy(logits[kept], tokens(batch)[kept])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (looped, r"F.cross_entropy was called 32 times, on 1 row, and the batch has 32 samples"),
        (looped_over_samples, r"F.cross_entropy was called 32 times, on 1 row, and the batch has 32 samples"),
        (chunked, r"F.cross_entropy was called 4 times, on 8 rows, and the batch has 32 samples"),
        (masked, r"F.cross_entropy was called on \d+ rows, and the batch has 32 samples"),
        (by_class, r"F.cross_entropy was called \d+ times, on \d to \d rows, and the batch has 32 samples"),
        (masked_tokens, r"F.cross_entropy was called on \d+ rows, and the batch has 32 samples"),
    ],
)
def test_a_criterion_that_sees_a_part_of_the_batch_is_named_once_with_the_fix(step, said, heads, batches):
    with pytest.raises(OutputsError, match=said) as error:
        observed(step, heads, batches[:1])
    message = str(error.value)
    assert message.count("F.cross_entropy was called") == 1
    assert "a mask, a loop or chunks" in message and "(sample_loss * mask).sum() / mask.sum()" in message
    assert "Dice" not in message, "it is no loss over the whole batch"
    assert ("graph" in message) is (step is masked_tokens), "more rows than samples may be the nodes of graphs, fewer cannot"


def nodes(heads, batch):
    """Samples of 2 to 4 nodes each, joined as PyTorch Geometric does."""
    graph = torch.arange(BATCH).repeat_interleave(2 + batch["y"] % 3)
    return F.cross_entropy(heads.classes(batch["x"][graph]), batch["y"][graph], reduction="none"), graph


def test_nodes_of_joined_graphs_are_refused_by_a_text_that_names_them_and_what_it_advises_is_recorded(heads, batches):
    def advised(heads, batch):
        losses, graph = nodes(heads, batch)
        sample_loss = losses.new_zeros(BATCH).scatter_reduce(0, graph, losses, "mean", include_self=False)
        return {"loss": sample_loss.mean(), "sample_loss": sample_loss}

    said = r"F.cross_entropy was called on \d+ rows, .* nodes of joined graphs\. .* return what each graph has as sample_loss"
    with pytest.raises(OutputsError, match=said):
        observed(lambda heads, batch: nodes(heads, batch)[0].mean(), heads, batches[:1])
    source, ((_, values),) = observed(advised, heads, batches[:1], check_attribution=False)
    assert source.report.complete and torch.allclose(values["loss"], each_cross_entropy(heads, batches[0]), atol=1e-5)


def test_what_it_advises_is_recorded(heads, batches):
    def step(heads, batch):
        sample_loss, mask = each_cross_entropy(heads, batch), batch["keep"]
        return (sample_loss * mask).sum() / mask.sum()

    def ignoring(heads, batch):
        logits = heads.classes(batch["x"][:, None] * torch.linspace(0.5, 2, TOKENS)[:, None])
        return F.cross_entropy(logits.transpose(1, 2), tokens(batch), ignore_index=-100)

    for advised in (step, ignoring):
        source, ((_, values),) = observed(advised, heads, batches[:1])
        assert source.report.attribution == "verified" and values["loss"].shape == (BATCH,)
