"""Errors and warnings about sample values: why they are not available, and what works instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# methods by what they need from a step; this folder must not import methods, so a test compares these names with the registry
NO_VALUES = ("random", "random_cycle", "weighted", "baseline")
BY_LOSS = ("infobatch", "seta", "orderdp", "ies")  # hide methods that read only the loss, so that values="bls" is enough for them
BY_LOSS_AND_CLASSES = ("rcap",)


def listed(names: Sequence[str], last: str = "and") -> str:
    """Join names for a sentence: "a, b and c"."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


EXAMPLE = """
    sample_loss = F.cross_entropy(logits, target, reduction="none")
    return {"loss": sample_loss.mean(), "sample_loss": sample_loss, "logits": logits, "target": target}"""

OTHERS = (
    """
a regression (its values are the loss alone):
    sample_loss = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)
    return {"loss": sample_loss.mean(), "sample_loss": sample_loss}
tokens:
    token_loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [B, T], 0 where ignored
    sample_loss = token_loss.sum(1) / (labels != -100).sum(1).clamp(min=1)
    return {"loss": sample_loss.mean(), "sample_loss": sample_loss, "logits": logits.transpose(1, 2), "target": labels}
Where training_step is not yours, give the callback a function that returns the same dict: SampleSelection(..., sample_outputs=lambda \
batch: ...). """
    + f"""{listed(NO_VALUES)} need no values and train any step; {listed(BY_LOSS)} train it by the losses of whole \
batches, SampleSelection("infobatch", values="bls")."""
)

WAYS = f"Return the values from training_step:{EXAMPLE}{OTHERS}"


def without_lines(text: str, instead: str) -> str:
    """Replace the example lines in an error by a reference to ``instead``, for a page that shows these lines only once."""
    for lines in (EXAMPLE + OTHERS, EXAMPLE):
        text = text.replace(f":{lines}", f" ({instead})").replace(lines, f" ({instead})")
    return text


DISTRIBUTED = (
    "the loss that training_step returned is a distributed tensor (DTensor), as loss_parallel makes it, so what each sample adds to it is "
    "nowhere whole. Let the last layer give whole logits (ColwiseParallel(output_layouts=Replicate()), no loss_parallel), or return a dict "
    'with "sample_loss", a plain tensor [B], beside "loss"'
)
NOT_MADE_FROM_IT = (
    "loss weights: the 'loss' that training_step returns was not made from the 'sample_loss' it returns, so the weights "
    f"never reached the gradient; make it from that one:{EXAMPLE}"
)


BY_THE_BATCH = (
    'choose by the losses of the batches that a sample was in, SampleSelection("infobatch", values="bls") (or another hide method that '
    f"reads only the loss: {listed(BY_LOSS[1:], 'or')}, or {listed(BY_LOSS_AND_CLASSES, 'or')} where the data set gives classes), use "
    f"{listed(NO_VALUES[:-1], 'or')}, or return values of your own choice"
)
_OF_THE_BATCH = f"A loss over the whole batch (Dice, Jaccard, contrastive, mined pairs, detection) has none: {BY_THE_BATCH}. "


GRAPHS = "; of nodes return what each graph has as sample_loss, torch_geometric.utils.scatter(losses, batch.batch, reduce='mean')"


def partial_calls(counts: Mapping[str, Sequence[int]], size: int) -> str:
    """Error: criteria were called on numbers of rows other than the batch's ``size``. ``counts``: numbers of rows by name."""
    said = []
    for name, rows in counts.items():
        times = f"{len(rows)} times, " if len(rows) > 1 else ""
        few, many = min(rows), max(rows)
        said.append(f"{name} was called {times}on {few if few == many else f'{few} to {many}'} row{'s' if many > 1 else ''}")
    more = all(min(rows) > size for rows in counts.values())  # more rows than samples
    joined, of_joined = (", or the nodes of joined graphs", GRAPHS) if more else ("", "")
    return (
        f"{' and '.join(said)}, and the batch has {size} samples: nothing says to which samples the rows belong that "
        f"a mask, a loop or chunks take from a batch{joined}. Call the criterion once on the whole batch with "
        f"reduction='none', and leave out what does not count "
        f"afterwards, (sample_loss * mask).sum() / mask.sum(), or tokens by ignore_index{of_joined}"
    )


def none_found(calls: Sequence[str], reasons: Sequence[str], partial: bool = False) -> str:
    """Error: nothing in the step makes its loss from values per sample. ``partial``: calls saw only a part of the batch."""
    if not calls and not reasons:
        what = (
            "no call of a criterion that is known (F.cross_entropy, F.nll_loss, F.mse_loss, ...), and no mean or sum over samples, "
            "made the loss"
        )
    else:
        what = "; ".join(reasons) if reasons else f"the loss is not made of the calls that were seen ({', '.join(calls)})"
    has_none = "" if partial else _OF_THE_BATCH
    return f"per-sample values: the loss of this training_step cannot be split into one value for each sample: {what}. {has_none}{WAYS}"


def in_scoring_pass(said: str) -> str:
    """Error: what ``said`` says happened where the step ran without training."""
    return (
        "in a scoring pass, where training_step runs on samples without training them, in eval mode (self.training and "
        f"self.trainer.training are False), and must return what it returns in training, whatever the mode: {said}"
    )


def mixed(calls: Sequence[str]) -> str:
    """Error: two criterion calls on one prediction, as in mixup."""
    return (
        f"per-sample values: training_step made {len(calls)} criterion calls ({', '.join(calls)}) on one prediction with different "
        "targets, exactly one is needed. Return the values from training_step instead (mixup: sample_loss = lam * loss_a + (1 - lam) * "
        "loss_b, with the target of the larger weight; a criterion that is only a metric may go under torch.no_grad()):"
        f"{EXAMPLE}{OTHERS}"
    )


def ambiguous(calls: Sequence[str]) -> str:
    """Error: several criterion calls, and no graph that shows which made the loss."""
    return (
        f"per-sample values: training_step made {len(calls)} criterion calls ({', '.join(calls)}), and without a graph of the loss "
        f"exactly one is needed. {WAYS}"
    )


def changed(call: str) -> str:
    """Error: a later step makes its loss in another way."""
    return (
        f"per-sample values: this step makes its loss in another way than the first one did ({call}), so its values cannot be known. "
        "Let every step, in train and in eval mode, make its loss in the same way, or return the values from training_step:"
        f"{EXAMPLE}{OTHERS}"
    )


def attribution(outcome: str) -> str:
    """Error: the test of attribution has failed."""
    if outcome == "permuted":
        what = (
            "training_step puts the samples into another order (the first half of the batch alone gives the same numbers in other "
            "places): the value recorded for a sample would belong to another one. Keep the order of the batch "
            "(shuffle in the DataLoader), "
            "or return sample_loss in the order of the batch"
        )
    else:
        what = (
            "the value of a sample depends on which others are in its batch (alone, or beside others, the first half has other numbers), "
            "as in a contrastive loss, with mixup, or in a loss normalised over the batch (Dice, Jaccard): it is not the sample's own. "
            f"{BY_THE_BATCH[0].upper()}{BY_THE_BATCH[1:]}"
        )
    return f"attribution: {what}; SampleSelection(..., check_attribution=False) trains anyway.{EXAMPLE}{OTHERS}"


def _of_it(share: float, complete: bool = False) -> str:
    """How much of the loss a part is. A bare percentage would mislead if the rest is about 0 or has the other sign.

    Args:
        share: fraction of the loss of the first batch.
        complete: whether the rest has no gradient.
    """
    if f"{share:.1%}" == "100.0%":
        rest = "the rest of which is about 0 in the first batch but has a gradient of its own"
        return "nearly all of it in the first batch" if complete else rest
    rest = "" if 0 <= share <= 1 else f", where the rest is {1 - share:.1%} of it"
    return f"{share:.1%} of it in the first batch{rest}"


_OF_THE_REST = (
    "If the rest belongs to no sample, the same whichever are trained (a penalty on weights), declare it: "
    "SampleSelection(..., unweighted_rest=True) "
    "then chooses by that part alone, and weights leave the rest as it is. If the rest depends on the whole batch (Dice over the batch, "
    'contrastive), use SampleSelection(..., values="bls") with a hide method: it chooses by the losses of the batches that a sample was in'
)


def part_of_loss(calls: str, share: float, complete: bool) -> str:
    """Warning: the values are only a part of the loss. ``complete``: the rest has no gradient."""
    rest = ", and the rest, which has no gradient, is another number in another batch" if complete else ""
    return (
        f"SampleSelection: {calls} is a part of the loss, {_of_it(share, complete)}{rest}. Samples are chosen by that part "
        "alone; to choose by all of it, return sample_loss from training_step, or, where the rest is made of the whole batch, use "
        'SampleSelection(..., values="bls") with a hide method'
    )


def small_part(calls: str, share: float, parts: int) -> str:
    """Error: the part that was found is too small to stand for the loss."""
    are = "is" if parts == 1 else "are together"
    little = (
        f"only {share:.1%} of the loss of the first batch"
        if share >= 0
        else f"of the other sign than the loss of the first batch ({share:.1%} of it)"
    )
    return (
        f"per-sample values: {calls} {are} {little}, and the rest of it has no values by sample "
        "that could be found, so samples would be chosen by what is hardly trained. Return the whole loss of each sample from "
        "training_step as sample_loss, or give the callback a function that does, SampleSelection(..., sample_outputs=lambda batch: ...); "
        f"{_OF_THE_REST[0].lower()}{_OF_THE_REST[1:]}. {listed(NO_VALUES[:-1])} need no values."
        f"{EXAMPLE}{OTHERS}"
    )


def not_verified(calls: str) -> str:
    """Warning: nothing shows whether the values are the loss."""
    return (
        f"SampleSelection: it cannot be verified that the loss is made of {calls} alone, because torch.compile made it, "
        "it has no gradient, or the step has made its own backward pass. The values are taken to be the loss; to be "
        "sure, return sample_loss from "
        "training_step"
    )


def rest_unweighted(what: str, share: float) -> str:
    """Error: loss weights would act on a part of the loss only."""
    return (
        f"loss weights: {what} is only a part of the loss, {_of_it(share)}, and weights would not reach the rest. {_OF_THE_REST}, and the "
        "whole loss of a batch is multiplied by the mean weight of its samples. Else return the whole loss of each sample from "
        'training_step, {"loss": sample_loss.mean(), "sample_loss": sample_loss}, or use a method or setting without weights '
        "(unbiased=False)"
    )


_PICKED = (
    "how much a sample counts in the loss, which is made of {calls}, depends on which others are in its batch, as when only the hardest "
    "of a batch are trained (top-k, OHEM)"
)


def picked(calls: str) -> str:
    """Warning: the other samples of the batch decide a sample's value."""
    return (
        f"SampleSelection: {_PICKED.format(calls=calls)}. A sample's value is B times what it added to the loss of its last batch: 0 where "
        "it was not taken. To choose by each sample's own loss, return sample_loss from training_step as it is before some are taken"
    )


def picked_unweighted(calls: str) -> str:
    """Error: loss weights in a loss in which the batch decides how much a sample counts."""
    return (
        f"loss weights: {_PICKED.format(calls=calls)}: if samples are left out of a batch, others are picked instead, which no weight can "
        "compensate. Train the mean of all losses, use a method or setting without weights (unbiased=False), or train anyway with "
        "SampleSelection(..., check_attribution=False)"
    )


def unverified(what: str) -> str:
    """Error: loss weights would act on a call about which nothing is proved."""
    return (
        f"loss weights: it cannot be verified that the loss is made of {what} alone, because torch.compile made it, it has no "
        "gradient, or the "
        "step has made its own backward pass. Compile the network instead of the loss (self.network = torch.compile(self.network)), "
        f"return sample_loss from training_step, or use a method or setting without weights (unbiased=False):{EXAMPLE}"
    )


def not_weighable(source: str) -> str:
    """Error: loss weights cannot enter the loss this way."""
    return (
        f"loss weights: they cannot enter the loss of this training_step, because values come from {source}. Return them "
        f"from training_step, or use a method or setting without weights (unbiased=False):{EXAMPLE}"
    )


def missing_values(names: Sequence[str], given: Sequence[str], source: str, size: int) -> str:
    """Error: the method reads values that the step does not give."""
    return (
        f"per-sample values: the method reads {', '.join(names)}, but {source} gives only "
        f"{', '.join(given)}. A regression has none: use a method that reads only the loss ({', '.join(BY_LOSS)}, selective_backprop, "
        "plb) or nothing (random), or return confidence (float in [0, 1]), correct (bool) or entropy (float) of your own, each "
        f"[{size}]. A classification returns logits and target:{EXAMPLE}{OTHERS}"
    )


# --- losses of batches instead of samples (values="bls")

NO_BATCH_LOSS = (
    "values='bls': the loss of each batch is needed, and training_step returned none; end it with `return loss` (a number, or a dict with "
    "'loss'). Under automatic_optimization=False a scoring pass takes it from sample_outputs(batch): return {'loss': loss, ...}, or use a "
    "method without scoring passes (infobatch, seta, orderdp)"
)

WEIGHED_BY_THE_BATCH = (
    "SampleSelection(values='bls'): a batch has one loss, so it is multiplied by the mean of the loss weights of its samples, as the "
    "authors of BLS do. The total weight of an epoch's steps is preserved, but samples left out of an epoch are not compensated as by "
    "weights per sample; unbiased=False leaves the loss as it is"
)


def missing_beside_batch_loss(names: Sequence[str], size: int) -> str:
    """Error: the method reads more than a loss, and the step gives only that."""
    return (
        f"values='bls': the method reads {', '.join(names)} too, which the loss of a batch does not give. Return logits and target beside "
        'it from training_step, return {"loss": loss, "logits": logits, "target": target}, or confidence (float in [0, 1]), correct (bool) '
        f"or entropy (float) of your own, each [{size}]; or use a method that reads only the loss, "
        f'SampleSelection("infobatch", values="bls"), {listed(BY_LOSS[1:], "or")}, or nothing: random'
    )
