"""Steps of every kind: of which nothing is required, that skip, that squeeze, that optimize by themselves; and what they cost later."""

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LOSSES, Heads, NoScoring, cross_entropy, gradient, observed, rows_of
from torch import nn
from torch.nn.functional import cross_entropy as imported_cross_entropy

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

# --- nothing is required


def nodes(heads, batch):
    """A loss over the nodes of one graph."""
    return F.cross_entropy(heads.classes(batch["x"]), batch["y"])


FREE = {
    "token losses": lambda h, b: F.cross_entropy(h.classes(b["x"]).repeat(6, 1), b["y"].repeat(6)),
    "contrastive": lambda h, b: F.cross_entropy(h.mean(b["x"]) @ h.mean(b["x"]).T, torch.arange(len(b["x"]))) * 0.5,
    "mixup": lambda h, b: cross_entropy(h, b) + cross_entropy(h, {**b, "y": b["y"].flip(0)}),
    "by hand": LOSSES["focal"].step,
    "dice": lambda h, b: 1 - h.classes(b["x"]).sigmoid().sum() / (b["y"].sum() + 1),
    "bad values": lambda h, b: {"loss": cross_entropy(h, b), "sample_loss": torch.zeros(3)},
    "not a tensor": lambda h, b: {"loss": cross_entropy(h, b), "sample_loss": "nothing"},
    "a percentage": lambda h, b: {"loss": cross_entropy(h, b), "sample_loss": "nothing", "confidence": 99},
    "no graph": lambda h, b: torch.ones(()),
    "nothing": lambda h, b: None,
}


@pytest.mark.parametrize("name", FREE)
def test_methods_that_read_nothing_run_on_any_step(name, heads, batches):
    _, made = observed(FREE[name], heads, batches, reads=())
    for batch, (outputs, values) in zip(batches, made, strict=True):
        plain = FREE[name](heads, batch)
        assert values is None
        if isinstance(plain, torch.Tensor):
            assert torch.equal(outputs, plain)


def test_the_nodes_of_a_graph_are_no_samples(heads, batches):
    source = SampleOutputs(())
    _, values = source.observe(partial(nodes, heads, batches[0]), batches[0], 1, NoScoring)
    assert values is None and "nowhere" in source.source


def test_values_that_are_there_and_right_are_recorded_at_no_cost(heads, batches):
    calls = []

    def step(heads, batch):
        calls.append(len(batch["x"]))
        return cross_entropy(heads, batch)

    source, made = observed(step, heads, batches, reads=(), sample_outputs=lambda batch: calls.append("function"))
    assert calls == [BATCH] * 3, "no further run of the step, and no call of the function"
    for batch, (_, values) in zip(batches, made, strict=True):
        assert torch.allclose(values["loss"], F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none"))
        assert set(values) == {"loss", "confidence", "correct"}
    assert source.report.way == "captured"


def test_a_step_that_changes_its_mind_is_no_error_when_nothing_is_required(heads, batches):
    steps = iter([cross_entropy, LOSSES["focal"].step, cross_entropy])
    _, made = observed(lambda h, b: next(steps)(h, b), heads, batches, reads=())
    assert [values is None for _, values in made] == [False, True, False]


def test_weights_are_required_all_the_same(heads, batches):
    """As of random hiding with unbiased=True."""
    weights = torch.full((BATCH,), 4 / 3)
    source, made = observed(LOSSES["focal"].step, heads, batches, [None, weights, weights], reads=(), weighs=True)
    expected = gradient(4 / 3 * LOSSES["focal"].step(heads, batches[1]), heads)
    assert torch.allclose(gradient(made[1][0], heads), expected, atol=1e-6)
    assert source.report.attribution == "verified"
    with pytest.raises(OutputsError, match="cannot be split into one value for each sample"):
        observed(lambda h, b: LOSSES["mse"].step(h, b).sqrt(), heads, batches[:1], reads=(), weighs=True)


# --- steps that skip, repeat, or squeeze


def test_a_skipped_batch_decides_nothing_and_a_later_one_has_no_values(heads, batches):
    given = iter([None, cross_entropy(heads, batches[1]), None, torch.zeros((), requires_grad=True)])
    source = SampleOutputs(("loss",))
    with pytest.raises(OutputsError):  # what it was made of came before
        for batch in (batches[0], batches[1]):
            source.observe(lambda: next(given), batch, BATCH, NoScoring)
    source = SampleOutputs(("loss",))
    steps = [lambda: None, lambda: cross_entropy(heads, batches[1]), lambda: None, lambda: torch.zeros((), requires_grad=True)]
    made = [source.observe(step, batches[1], BATCH, NoScoring) for step in steps]
    assert [values is None for _, values in made] == [True, False, True, True]
    assert [outputs is None for outputs, _ in made] == [True, False, True, False]


def test_a_closure_that_calls_the_step_several_times_is_observed_each_time(heads, batches):
    source = SampleOutputs(("loss",))
    optimizer = torch.optim.LBFGS(heads.classes.parameters(), lr=0.1, max_iter=4)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss, values = source.observe(partial(LOSSES["focal"].step, heads, batches[0]), batches[0], BATCH, NoScoring)
        assert torch.allclose(values["loss"].mean(), loss.detach(), atol=1e-6)
        seen.append(float(loss.detach()))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(seen) > 2 and seen[-1] < seen[0]


@pytest.mark.parametrize("name", ["cross entropy", "focal", "masked mean", "mse", "distillation"])
def test_batches_of_one_and_short_batches_are_read_too(name, heads, batches):
    loss = LOSSES[name]
    short = [heads.batch(3, size) for size in (1, 2, 7)]
    _, made = observed(loss.step, heads, [batches[0], *short])
    for batch, (_, values) in zip(short, made[1:], strict=True):
        assert torch.allclose(values["loss"], loss.of_each(heads, batch), atol=1e-5)
    _, made = observed(loss.step, heads, short)  # the first is a batch of one
    for batch, (_, values) in zip(short[:1], made[:1], strict=True):
        assert torch.allclose(values["loss"], loss.of_each(heads, batch), atol=1e-5)


@pytest.mark.parametrize(
    "criterion",
    [
        F.mse_loss,
        lambda p, t: F.mse_loss(p, t, reduction="none").mean(),
        lambda p, t: ((p - t) ** 2).mean(),
        lambda p, t: 0.5 * F.l1_loss(p, t, reduction="none").sum() / max(1, p.numel()),
    ],
)
def test_a_batch_of_one_whose_axis_is_squeezed_away(criterion, heads):
    def step(heads, batch):
        return criterion(heads.mean(batch["x"])[:, 0].squeeze(), batch["weight"].squeeze())

    batches = [heads.batch(0), heads.batch(5, 1)]
    weights = torch.tensor([2.0])
    _, made = observed(step, heads, batches, [None, weights], weighs=True)
    for batch, (_, values) in zip(batches, made, strict=True):
        assert torch.allclose(values["loss"], torch.stack([step(heads, row) for row in rows_of(batch)]), atol=1e-6)
    assert torch.allclose(gradient(made[1][0], heads), gradient(2 * step(heads, batches[1]), heads))


def test_losses_that_the_step_maps_over_its_rows_are_seen_where_they_are_joined(heads, batches):
    def step(heads, batch):
        each = torch.vmap(lambda z, y: F.cross_entropy(z, y))(heads.classes(batch["x"]), batch["y"])
        return (each * batch["weight"]).mean()

    source, made = observed(step, heads, batches)
    for batch, (_, values) in zip(batches, made, strict=True):
        each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
        assert torch.allclose(values["loss"], each * batch["weight"], atol=1e-5)
    assert source.report.calls == ("a mean of [32]",)


def test_outputs_in_a_dict_keep_what_else_they_hold(heads, batches):
    def step(heads, batch):
        return {"loss": LOSSES["focal"].step(heads, batch), "logits": heads.classes(batch["x"]), "n": 3}

    weights = torch.linspace(0.5, 2, BATCH)
    _, made = observed(step, heads, batches[:2], [None, weights], weighs=True)
    plain = step(heads, batches[1])
    assert made[1][0]["n"] == 3 and torch.equal(made[1][0]["logits"], plain["logits"])
    expected = gradient(LOSSES["focal"].with_weights(heads, batches[1], weights), heads)
    assert torch.allclose(gradient(made[1][0]["loss"], heads), expected, atol=1e-6)


def test_auxiliary_heads_in_training_only(heads, batches):
    """As GoogLeNet's: the scoring pass has one part of several."""
    training = [True]

    def step(batch):
        logits = heads.classes(batch["x"])
        loss = F.cross_entropy(logits, batch["y"])
        return loss + 0.3 * F.cross_entropy(0.5 * logits, batch["y"]) if training[0] else loss

    source = SampleOutputs(("loss", "confidence", "correct"))
    _, values = source.observe(partial(step, batches[0]), batches[0], BATCH, NoScoring)
    logits = heads.classes(batches[0]["x"])
    main, aux = (F.cross_entropy(z, batches[0]["y"], reduction="none") for z in (logits, 0.5 * logits))
    assert torch.allclose(values["loss"], main + 0.3 * aux, atol=1e-5)
    training[0] = False
    with torch.no_grad():
        scored = source.score(partial(step, batches[0]), batches[0], BATCH)
    assert torch.allclose(scored["loss"], main, atol=1e-6)
    assert torch.equal(scored["confidence"], values["confidence"])


def test_a_loss_that_is_nan_in_the_first_batch_is_recorded_as_it_is(heads, batches):
    batch = {**batches[0], "x": batches[0]["x"].index_fill(0, torch.tensor([3]), float("nan"))}
    for name in ("cross entropy", "focal", "times a weight", "scaled"):
        _, ((_, values),) = observed(LOSSES[name].step, heads, [batch])
        assert values["loss"].isnan().tolist() == [i == 3 for i in range(BATCH)]


# --- steps that optimize by themselves


@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("name", ["cross entropy", "none, then mean", "nll by hand"])
def test_a_step_that_has_made_its_backward_pass(name, returns, heads, batches):
    def step(heads, batch):
        loss = LOSSES[name].step(heads, batch)
        loss.backward()
        return loss if returns else None

    if name == "nll by hand":
        with pytest.raises(OutputsError, match="cannot be split"):
            observed(step, heads, batches, manual=True)
        return
    if returns:
        source, made = observed(step, heads, batches, manual=True)
    else:
        with pytest.warns(UserWarning, match="cannot be verified that the loss is made of F.cross_entropy alone"):
            source, made = observed(step, heads, batches, manual=True)
    for batch, (_, values) in zip(batches, made, strict=True):
        each = F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none")
        assert torch.allclose(values["loss"], each, atol=1e-6)
    assert source.report.share == (1.0 if returns else None)
    assert source.report.attribution == "off", "a scoring pass would step its optimizers"


def test_two_losses_of_a_step_that_optimizes_by_itself_are_ambiguous(heads, batches):
    def step(heads, batch):
        (cross_entropy(heads, batch) + LOSSES["mse"].step(heads, batch)).backward()

    with pytest.raises(OutputsError, match=r"2 criterion calls \(F.cross_entropy, F.mse_loss\), and without a graph"):
        observed(step, heads, batches, manual=True)


# --- what later steps cost

READING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "is_nonzero")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_device_after_the_first_batch(name, weighted, heads, batches, monkeypatch):
    weights = torch.linspace(0.5, 2, BATCH) if weighted else None
    source, _ = observed(LOSSES[name].step, heads, batches[:1], weighs=weighted)
    waits = []

    def watched(method):
        original = getattr(torch.Tensor, method)

        def call(*args, **kwargs):
            waits.append(method)
            return original(*args, **kwargs)

        return call

    step = partial(LOSSES[name].step, heads, batches[1])
    for method in READING:
        monkeypatch.setattr(torch.Tensor, method, watched(method))
    step()
    own = list(waits)
    waits.clear()
    outputs, _ = source.observe(step, batches[1], BATCH, NoScoring, weights)
    outputs.backward()
    assert waits == own
    waits.clear()
    with torch.no_grad():
        source.score(step, batches[1], BATCH)
    assert waits == own


WAYS = {
    "by name": (cross_entropy, "seen by its name in torch.nn.functional"),
    "by another name": (lambda h, b: imported_cross_entropy(h.classes(b["x"]), b["y"]), "through a torch function mode"),
    "method": (LOSSES["gaussian nll by hand"].step, "by its name among the methods of tensors"),
    "torch.mean": (lambda h, b: torch.mean((h.mean(b["x"]) - b["target"]) ** 2), "through a torch function mode"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_cheapest_way_that_saw_the_loss_is_kept(name, heads, batches):
    step, words = WAYS[name]
    replaced = []

    def looking(heads, batch):
        modes = torch.overrides._get_current_function_mode_stack()
        hooks = len(nn.modules.module._global_forward_hooks)
        replaced.append((len(modes), hooks, F.cross_entropy is not imported_cross_entropy, "mean" in vars(torch.Tensor)))
        return step(heads, batch)

    source, _ = observed(looking, heads, batches[:2], check_attribution=False)
    assert words in source.source
    first, later = replaced
    assert first == (1, 1, True, True)
    in_mode = "mode" in words
    assert later == (int(in_mode), 0, "entropy" in repr(source.report.calls), name in ("method", "torch.mean"))


def test_nothing_of_a_step_is_kept_alive(heads, batches):
    kept = []

    def step(heads, batch):
        loss = LOSSES["distillation"].step(heads, batch)
        kept.append(weakref.ref(loss))
        return loss

    source, made = observed(step, heads, batches)
    del made
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)
    assert source.report is not None


# --- the report


def test_the_report_says_what_was_verified(heads, batches):
    source, _ = observed(LOSSES["distillation"].step, heads, batches[:1])
    assert source.report.lines() == [
        "values come from: F.kl_div + F.cross_entropy in the step, seen by its name in torch.nn.functional",
        "values: loss, confidence, correct",
        "share of the loss: 100.0%",
        "decomposes over samples: yes",
        "attribution: verified (in eval mode)",
        "loss weights: exact",
    ]
    assert SampleOutputs(()).report is None


def test_a_patch_that_the_first_step_makes_of_a_criterion_stays(monkeypatch):
    monkeypatch.setattr(F, "cross_entropy", F.cross_entropy)  # put back after the test
    original, heads = F.cross_entropy, Heads()

    def checked(*args, **kwargs):
        return original_in_step(*args, **kwargs)

    def step(batch):
        nonlocal original_in_step
        if original_in_step is None:
            original_in_step = F.cross_entropy
            F.cross_entropy = checked
        return F.cross_entropy(heads.classes(batch["x"]), batch["y"])

    original_in_step, source = None, SampleOutputs(("loss",), check_attribution=False)
    for number in range(3):
        batch = heads.batch(number * BATCH)
        _, values = source.observe(partial(step, batch), batch, BATCH, NoScoring)
        assert F.cross_entropy is checked
        expected = original(heads.classes(batch["x"]), batch["y"], reduction="none")
        assert torch.allclose(values["loss"], expected, atol=1e-5)
