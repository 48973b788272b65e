"""Losses of many rows for each sample: averaged by sequence over the positions that count."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from losses import NoScoring
from torch import nn

from kakurenbo_lightning.core.batch_rows import slice_batch
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

B, T, V = 6, 12, 40
READS = ("loss", "confidence", "correct")


def numbers(*shape, high=V, seed=0):
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(seed))


def masked(labels, share, seed=1):
    """-100 at a random share of the positions and behind the end of each sequence, of which no two are of one length."""
    hidden = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < share
    ends = torch.arange(labels.shape[1]) >= labels.shape[1] - torch.arange(B)[:, None]
    hidden[:, :2] = False
    return labels.masked_fill(hidden | ends, -100)


IDS = numbers(B, T)
MASK = (torch.arange(T) < T - torch.arange(B)[:, None]).long()
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert(kind, **settings):
    return kind(transformers.BertConfig(vocab_size=V, max_position_embeddings=32, **SMALL, **settings))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=1, n_head=2))


def t5():
    config = transformers.T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


# the model, its labels, and which of them count (of GPT-2 those behind the first)
MODELS = {
    "BERT, token classes": (
        lambda: bert(transformers.BertForTokenClassification, num_labels=5),
        masked(numbers(B, T, high=5, seed=2) % 5, 0.2),
        slice(None),
    ),
    "BERT, masked tokens": (lambda: bert(transformers.BertForMaskedLM), masked(IDS, 0.6), slice(None)),
    "BERT, one class": (
        lambda: bert(transformers.BertForSequenceClassification, num_labels=5),
        numbers(B, high=5, seed=2) % 5,
        None,
    ),
    "GPT-2": (gpt2, masked(IDS, 0.1), slice(1, None)),
    "T5": (t5, masked(IDS, 0.1)[:, :7].contiguous(), slice(None)),
}


class EvalMode:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.model.eval()

    def __exit__(self, *error):
        self.model.train()


def gradient(loss, model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, made, strict=True)])


@pytest.mark.parametrize("sliced", [True, False], ids=["tested", "by the batch alone"])
@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_model_that_returns_its_loss_works_untouched(name, sliced):
    make, labels, counted = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": labels}

    def step(batch):
        return model(**batch).loss

    source = SampleOutputs(READS, weighs=True, check_attribution=sliced)
    observe = partial(source.observe, partial(step, batch), batch, B, partial(EvalMode, model))
    observe()
    model.eval()  # so that what is seen once more is the same
    _, values = observe()
    alone = torch.stack([step(slice_batch(batch, torch.tensor([i]), B)) for i in range(B)])
    assert torch.allclose(values["loss"], alone, atol=1e-5)
    assert values["confidence"].shape == values["correct"].shape == (B,)
    assert source.report.attribution == ("verified" if sliced else "off")
    with torch.no_grad():
        scored = source.score(partial(step, batch), batch, B)
    assert all(torch.allclose(scored[key].float(), values[key].float(), atol=1e-5) for key in values)
    weights = torch.linspace(0.5, 2, B)
    loss, _ = observe(weights=weights)
    share = torch.full((B,), 1.0) if counted is None else (labels[:, counted] != -100).sum(1)
    expected = gradient((weights * share * alone).sum() / share.sum(), model)
    assert (gradient(loss, model) - expected).norm() <= 1e-4 * expected.norm()


def test_confidence_and_correctness_are_means_over_the_positions_of_a_sequence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator, requires_grad=True)
    labels = masked(logits.argmax(2) * (torch.arange(B)[:, None] < 3), 0.3)
    batch = {"x": logits, "labels": labels}
    source = SampleOutputs((*READS, "entropy", "el2n"))
    _, values = source.observe(lambda: F.cross_entropy(logits.view(-1, V), labels.view(-1)), batch, B, NoScoring)
    _, expected = SampleOutputs((*READS, "entropy", "el2n")).observe(
        lambda: F.cross_entropy(logits.transpose(1, 2), labels), batch, B, NoScoring
    )
    assert values.keys() == expected.keys() == {*READS, "entropy", "el2n"}
    for name in values:
        assert torch.allclose(values[name].float(), expected[name].float(), atol=1e-6), name
    assert values["correct"].tolist() == [True] * 3 + [False] * 3


def test_predictions_of_positions_are_not_worked_out_when_nobody_reads_them():
    logits, labels = torch.randn(B, T, V, requires_grad=True), numbers(B, T)
    _, values = SampleOutputs(("loss",)).observe(
        lambda: F.cross_entropy(logits.view(-1, V), labels.view(-1)), {"y": labels}, B, NoScoring
    )
    assert list(values) == ["loss"]


# --- which rows are whose


def flat(logits, labels):
    return F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1))


class Tokens(nn.Module):
    """Predicts each token from itself."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(V, V)


def each(model, ids, labels):
    loss = F.cross_entropy(model.embedding(ids).transpose(1, 2), labels, reduction="none")
    return loss.sum(1) / (labels != -100).sum(1).clamp(min=1)


def test_labels_shifted_by_one_are_found():
    model, batch = Tokens(), {"ids": IDS}
    source = SampleOutputs(("loss",))
    _, values = source.observe(lambda: flat(model.embedding(IDS[:, :-1]), IDS[:, 1:]), batch, B, NoScoring)
    assert torch.allclose(values["loss"], each(model, IDS[:, :-1], IDS[:, 1:]))


def test_positions_that_come_first_are_found_by_the_batch_or_proved_by_the_test():
    """As recurrent networks have them, ``[T, B]``."""
    model = Tokens()
    expected = each(model, IDS, IDS.roll(1, 1))
    by_position = {"ids": IDS.T.contiguous()}
    step = lambda: flat(model.embedding(by_position["ids"]), by_position["ids"].roll(1, 0))  # noqa: E731
    source = SampleOutputs(("loss",))
    _, values = source.observe(step, by_position, B, NoScoring)
    assert torch.allclose(values["loss"], expected)

    def turned(batch):  # the batch holds no tensor that shows it
        ids = batch["ids"][..., 0].T
        return flat(model.embedding(ids), ids.roll(1, 0))

    batch = {"ids": torch.stack([IDS, IDS], 2)}
    source = SampleOutputs(("loss",))
    _, values = source.observe(partial(turned, batch), batch, B, NoScoring)
    assert torch.allclose(values["loss"], expected)
    assert source.report.attribution == "verified"


def test_rows_that_nothing_shows_to_be_whose_are_refused():
    """Two views of each sample, joined; a batch without a hint; pairs that are not of one sample."""
    model = Tokens()

    def views(batch):
        both = torch.cat([batch["ids"], batch["ids"].flip(1)])
        return F.cross_entropy(model.embedding(both).mean(1), torch.cat([batch["y"], batch["y"]]))

    batch = {"ids": IDS, "y": numbers(B)}
    with pytest.raises(OutputsError, match=r"12 rows, 2 for each of 6 samples, but the batch holds no tensor of 2 for each"):
        SampleOutputs(("loss",), check_attribution=False).observe(partial(views, batch), batch, B, NoScoring)
    source = SampleOutputs(("loss",))
    _, values = source.observe(partial(views, batch), batch, B, NoScoring)  # proved to come view by view
    logits = [model.embedding(ids).mean(1) for ids in (batch["ids"], batch["ids"].flip(1))]
    expected = sum(F.cross_entropy(z, batch["y"], reduction="none") for z in logits) / 2
    assert torch.allclose(values["loss"], expected)

    def pairs(batch):
        a, b = (model.embedding(batch["ids"]).mean(1),) * 2
        return F.cross_entropy(torch.cat([a @ b.T, b @ a.T.flip(0)]), torch.arange(len(a)).repeat(2))

    with pytest.raises(OutputsError, match=r"2 for each of 6 samples, but nothing shows which are whose"):
        SampleOutputs(("loss",)).observe(partial(pairs, batch), batch, B, NoScoring)


def test_positions_of_images_are_found():
    network = nn.Conv2d(3, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.randn(B, 3, 8, 8, generator=generator), torch.randint(4, (B, 8, 8), generator=generator)
    masks[0, :3] = 255

    def step(batch):
        logits = network(batch[0]).permute(0, 2, 3, 1).reshape(-1, 4)
        return F.cross_entropy(logits, batch[1].flatten(), ignore_index=255)

    source = SampleOutputs(READS)
    _, values = source.observe(partial(step, (images, masks)), (images, masks), B, NoScoring)
    alone = torch.stack([step((images[i : i + 1], masks[i : i + 1])) for i in range(B)])
    assert torch.allclose(values["loss"], alone, atol=1e-5)
