"""Sample values of a step that returns none, read from the criterion calls that made its loss."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.attribution import Verdict
from kakurenbo_lightning.signals.criteria import PRIORITY, CriterionCall
from kakurenbo_lightning.signals.criterion_module import Findings
from kakurenbo_lightning.signals.cut import Cut, Form, Made, Part, Term, numbers_of, terms_of, with_divisors
from kakurenbo_lightning.signals.finding import find, sign_of
from kakurenbo_lightning.signals.graph import from_the_beginning, gradients, is_hidden, reduced_by, root_of
from kakurenbo_lightning.signals.linearity import why_not_linear
from kakurenbo_lightning.signals.predictions import Reads, Values
from kakurenbo_lightning.signals.watching import EVERYTHING, Key, LossCall, Recording, Sight

_PREDICTIONS = frozenset({"confidence", "correct", "el2n", "entropy", "target"})


@dataclass(frozen=True)
class Prediction:
    """The criterion call from which confidence and correctness are read.

    Attributes:
        key: identifies the call among those of the step.
        order: how the call's rows are ordered, see :func:`grouped`.
        by_sample: each row is one sample. Where a sample has many rows, predictions are computed only when they are read.
        module: findings about a loss module; ``None`` for a functional criterion.
        alike: number of calls with the same name in the step.
        used: how many of those calls have a graph.
        before: how many of the calls with a graph come before this one.
    """

    key: Key
    order: str = "samples"
    by_sample: bool = True
    module: Findings | None = None
    alike: int = 1
    used: int = 1
    before: int = 0

    @classmethod
    def of(cls, call: LossCall, recording: Recording, order: str, by_sample: bool, module: Findings | None = None) -> Prediction:
        """Describe ``call`` of the step that is being verified, so that :meth:`found` can find it in later steps."""
        alike = [other for other in recording.calls if other.key[:2] == call.key[:2]]
        used = [other for other in alike if other.edge is not None]
        return cls(call.key, order, by_sample, module, len(alike), len(used), used.index(call) if call in used else 0)

    def found(self, recording: Recording, terms: Sequence[Term], cut: Cut) -> LossCall | None:
        """Find the same call in a later step; ``None`` if it is not known which one it is.

        Args:
            recording: the calls of that step.
            terms: the parts of its loss.
            cut: the parts that were verified first.
        """
        parts = [term for term in terms if term.call.key[:2] == self.key[:2]]
        if {term.part.key for term in terms} != {part.key for part in cut.parts}:  # this step makes its loss in another way
            if parts:
                return max(parts, key=_weight).call  # max returns the first of equal ones
        elif one := next((term.call for term in parts if term.part.key == self.key), None):
            return one
        alike = [call for call in recording.calls if call.key[:2] == self.key[:2]]
        used = [call for call in alike if call.edge is not None]
        if used and self.used and not recording.leaves:
            return used[0] if len(used) == 1 else used[self.before] if len(used) == self.used else None
        if len(alike) == 1 or len(alike) == self.alike or (len(alike) < self.alike and self.key[2] == 0):
            return alike[0] if len(alike) == 1 else next((call for call in alike if call.key == self.key), None)
        return None


class CapturedLoss:
    """Knows how a step makes its loss: decided on the first batch, used to read the sample values of every later step.

    Attributes:
        known: the verified parts of the loss; ``None`` before the first batch.
        calls: names of the calls that are the parts.
        clone: whether rows are copied, because the step changes them in place.
        throughout: whether a scoring pass enables gradients from its beginning instead of from the first part of the loss; ``None``
            before the first scoring pass.
    """

    def __init__(self) -> None:
        self.known: Cut | None = None
        self._sight: Sight = EVERYTHING
        self._modules: list[weakref.ref[nn.Module]] = []
        self.calls: tuple[str, ...] = ()
        self.clone = True
        self.throughout: bool | None = None
        self._ways: list[tuple[Cut, set[Form]]] = []  # verified parts, each with the forms in which they have made the loss
        self._prediction: Prediction | None = None

    @property
    def cut(self) -> Cut:
        """The verified parts of the loss. Only valid after the first batch."""
        assert self.known is not None, "the first batch comes before"
        return self.known

    @property
    def source(self) -> str:
        """One line for the log that says where the values come from."""
        return f"{' + '.join(self.calls)} in the step, seen {self.manner}"

    @property
    def sight(self) -> Sight:
        """Which calls have to be watched in the next step."""
        if not self._modules:
            return self._sight
        modules = [reference() for reference in self._modules]
        return replace(self._sight, modules=True if any(m is None for m in modules) else tuple(dict.fromkeys(modules)))

    @property
    def manner(self) -> str:
        """How the calls are intercepted, in words for the log."""
        ways = [
            *(["by its name in torch.nn.functional"] if self._sight.criteria and not self._sight.mode else []),
            *(["by its name among the methods of tensors"] if self._sight.reductions and not self._sight.mode else []),
            *(["through a torch function mode"] if self._sight.mode else []),
            *(["by a hook of the module"] if self._modules else []),
        ]
        return " and ".join(ways)

    # --- the first batch

    def decide(self, recording: Recording, loss: Any, batch: Any, provable: bool, manual: bool = False) -> list[Cut]:
        """Find the ways to split the loss into parts with one value per sample, the best first; waits for the device.

        Args:
            recording: the calls of the step.
            loss: the loss that the step returned.
            batch: the batch that the step was given.
            provable: whether a test of attribution follows, which can prove a guess.
            manual: the step has run its own backward pass, so the graph of the loss is gone.

        Raises:
            OutputsError: there is none.
        """
        root = root_of(loss) if isinstance(loss, Tensor) else None
        if manual or root is None or is_hidden(root):
            return [self._without_graph(recording, loss)]
        finding = find(recording.calls, loss, batch, recording.size, provable)
        if not finding.cuts:
            names = sorted({call.name for call in recording.calls if call.edge is not None and call.kind == "criterion"})
            of_parts = {name: list(rows.values()) for name, rows in finding.partial.items()}
            reasons = [*([refusals.partial_calls(of_parts, recording.size)] if of_parts else []), *finding.reasons]
            raise OutputsError(refusals.none_found(names, reasons, partial=bool(of_parts) and not finding.reasons))
        return [self._unmixed(cut, recording.calls, provable) for cut in finding.cuts]

    def decide_freely(self, recording: Recording, loss: Any) -> bool:
        """Use captured values where they cost nothing: the loss is one criterion's result. Returns whether it is."""
        if isinstance(loss, Tensor) and (found := _plain_calls(recording, loss, ("criterion",))):
            call, plain = found[0]
            if len(_rows(call)) == recording.size:
                cut = Cut((Part(call.key, call.rows is not None, plain),), True, True)
                self.settle([cut], recording, loss, Verdict("off"))
                return True
        return False

    def again(self, before: Cut, cuts: Sequence[Cut], attribution: str) -> Verdict:
        """Keep what a scoring pass has proved about ``before`` if one of the training step's ``cuts`` has the same parts."""
        for cut in cuts:
            known = {part.key: part for part in before.parts}
            if known.keys() == {part.key for part in cut.parts}:
                parts = tuple(replace(known[part.key], plain=part.plain, share=part.share) for part in cut.parts)
                return Verdict(attribution, cut=replace(cut, parts=parts, guess="", constant=before.constant))
        return Verdict("skipped", "in training the step makes its loss in another way than in a scoring pass")

    def _without_graph(self, recording: Recording, loss: Any) -> Cut:
        """Find the part of a loss that has no graph: the call that returned this very tensor, or the only criterion call."""
        if isinstance(loss, Tensor) and (found := _plain_calls(recording, loss, ("criterion", "reduction"))):
            call, plain = found[0]
            return Cut((Part(call.key, call.rows is not None, plain),), True, True)
        criteria = [call for call in recording.calls if call.kind == "criterion"]
        criteria = [call for call in criteria if call.edge is not None] or criteria
        if len(criteria) > 1:
            raise OutputsError(refusals.ambiguous([call.name for call in criteria]))
        if not criteria or not _is_by_sample(criteria[0], recording.size):
            shapes = [
                f"{c.name} has shape {list(_rows(c).shape)}, but the batch trains {recording.size} samples" for c in criteria
            ]
            raise OutputsError(refusals.none_found([call.name for call in criteria], shapes))
        (call,) = criteria
        part = Part(call.key, call.rows is not None, "result" if call.rows is None else "mean")
        return Cut((part,), False, False, verified=False, numbers=numbers_of(recording.calls))

    def _unmixed(self, cut: Cut, calls: Sequence[LossCall], provable: bool) -> Cut:
        """Refuse several criterion calls on one prediction (mixup), unless a test of attribution can prove that the values are the
        samples' own.
        """
        keys = {part.key for part in cut.parts}
        parts = [call for call in calls if call.key in keys and isinstance(call.arguments, CriterionCall)]
        for number, one in enumerate(parts):
            for other in parts[:number]:
                if _is_mixed(one.criterion, other.criterion):
                    if not provable:
                        raise OutputsError(refusals.mixed([call.name for call in parts]))
                    return replace(cut, guess=refusals.mixed([call.name for call in parts]))
        return cut

    def settle(self, cuts: Sequence[Cut], recording: Recording, loss: Tensor, verdict: Verdict) -> None:
        """Choose one of the possible cuts after the test of attribution, and what to watch from now on.

        Raises:
            OutputsError: the test has failed, or could not be made where only it can prove the way.
        """
        self.known = cut = verdict.cut or cuts[0]
        if cut.guess:
            raise OutputsError(cut.guess)
        if verdict.outcome in ("permuted", "batch"):
            raise OutputsError(refusals.attribution(verdict.outcome))
        made = terms_of(cut, recording, loss) if cut.verified and isinstance(loss, Tensor) else None
        if made is not None:
            self.known = cut = with_divisors(cut, made.terms)
        self._ways = [(cut, set() if made is None else {made.form})]
        self._prediction = self._predicting(recording, loss)
        parts = {part.key for part in cut.parts}
        others = {part.count for part in cut.parts} | {self._prediction and self._prediction.key}
        needed = [call for call in recording.calls if call.key in parts | others]
        names = {call.key[:2] for call in needed}
        alike = [call for call in recording.calls if call.key[:2] in names]  # they are counted together
        kinds = {kind for kind, _ in names}
        functions = tuple(name.removeprefix("F.") for kind, name in names if kind == "criterion")
        self._sight = Sight(functions, "reduction" in kinds, not all(call.named for call in alike))
        self._modules = [weakref.ref(call.module.module) for call in alike if call.kind == "module"]
        self.clone = any(call.changed_in_place for call in needed)
        self.calls = tuple(dict.fromkeys(call.described for call in needed if call.key in parts))

    def _predicting(self, recording: Recording, loss: Tensor) -> Prediction | None:
        """Find the call that most likely belongs to the task's prediction, among those that the loss depends on."""
        orders = {part.key: part.order for part in self.cut.parts}
        order = self.cut.parts[0].order
        share = {part.key: abs(part.share) for part in self.cut.parts}
        calls = [call for call in recording.calls if call.arguments is not None and self._is_used(call, loss)]
        criteria = [
            call for call in calls if call.kind == "criterion" and call.criterion.predicts and _is_by_sample(call, recording.size)
        ]
        criteria.sort(key=lambda call: (PRIORITY[call.criterion.function], -share.get(call.key, 0.0)))
        if criteria:
            call = criteria[0]
            return Prediction.of(call, recording, orders.get(call.key, order), len(_rows(call)) == recording.size)
        for call in calls:
            if call.kind == "module" and call.module.read_target(call.result):
                by_sample = call.module.rows == recording.size
                return Prediction.of(call, recording, orders.get(call.key, order), by_sample, call.module.findings)
        return None

    def _is_used(self, call: LossCall, loss: Tensor) -> bool:
        if not self.cut.verified or not loss.requires_grad:
            return call.key in {part.key for part in self.cut.parts}
        return call.edge is not None and gradients(loss, [call.edge])[0] is not None

    # --- each step

    def recording(self, size: int, graph: bool = False, scoring: bool = False) -> Recording:
        """Return an empty :class:`Recording` for one run of the step."""
        return Recording(size, graph, self._leaves if scoring else frozenset(), self.clone)

    @property
    def _leaves(self) -> frozenset[Key]:
        """Calls at which a scoring pass starts a graph. Empty if the loss has always been the plain result of one call."""
        return frozenset().union(*(cut.leaves for cut, _ in self._ways))

    def made(self, recording: Recording, loss: Any, batch: Any) -> Made:
        """Find how this step made its loss. Each new form of the loss is verified once, which waits for the device.

        Raises:
            OutputsError: it was made of something else than the first one.
        """
        if not self.cut.verified:
            if (call := self._only_call(recording)) is not None:
                return Made([Term(self.cut.parts[0], call, None)], ())
        elif isinstance(loss, Tensor):
            for cut, forms in self._ways:
                made = terms_of(cut, recording, loss, forms)
                if made is not None:
                    return made
            if root_of(loss) is not None and (made := self._verified_once_more(recording, loss, batch)) is not None:
                return made
        raise OutputsError(refusals.changed(" + ".join(self.calls)))

    def _only_call(self, recording: Recording) -> LossCall | None:
        """The only criterion call of a step whose loss could not be proved to be made of it."""
        part = self.cut.parts[0]
        alike = [call for call in recording.calls if call.key[:2] == part.key[:2]]
        with_graph = [call for call in alike if call.edge is not None]
        if len(with_graph) > 1 or (not with_graph and len(alike) > 1 and not self.cut.is_numbered(recording, {part.key[:2]})):
            raise OutputsError(refusals.ambiguous([call.name for call in with_graph or alike]))
        return next(iter(with_graph), None) or next((call for call in alike if call.key == part.key), None)

    def _verified_once_more(self, recording: Recording, loss: Tensor, batch: Any) -> Made | None:
        """Find the parts of a loss that has a new form. They must be the verified calls; ``None`` otherwise."""
        for known, forms in self._ways:
            made = terms_of(known, recording, loss)
            if made is not None:  # the parts are known, so only linearity has to be shown again
                calls = [term.call for term in made.terms]
                if why_not_linear(loss, [c.known_edge for c in calls], [c.values for c in calls], recording.size):
                    return None
                if any(t.gradient is not None and sign_of(t.gradient) * t.part.sign < 0 for t in made.terms):
                    return None  # the sign has flipped, as in flooding: hard samples would look easy
                forms.add(made.form)
                return made
        parts = [part for known, _ in self._ways for part in known.parts]
        for cut in find(recording.calls, loss, batch, recording.size, False).cuts:
            alike = [[one.sign * part.sign >= 0 for one in parts if one.key[:2] == part.key[:2]] for part in cut.parts]
            if all(any(known) for known in alike) and (cut.complete or not self.cut.complete):
                made = terms_of(cut, recording, loss)
                if made is not None:
                    self._ways.append((cut, {made.form}))
                    return made
        return None

    @contextlib.contextmanager
    def scoring(self, frozen: Callable[[], Any]) -> Iterator[None]:
        """Context of a scoring pass. A loss with several parts, or with operations after them, needs a graph of that last stretch even
        there.

        ``frozen`` makes a context in which no parameter of the network requires a gradient.
        """
        if self._leaves:
            with torch.inference_mode(False), from_the_beginning(frozen) if self.throughout else torch.no_grad():
                yield
        else:
            yield

    def values(self, made: Made, recording: Recording, reads: Reads) -> Values:
        """The values of the samples, each ``[B]``, detached. Synchronises with the host only if the loss has got other parts."""
        wanted, size = self._prediction, recording.size
        with torch.no_grad():
            values = {"loss": made.values(size)}
            if wanted is None or not (wanted.by_sample or _PREDICTIONS.intersection(reads)):
                return values
            call = wanted.found(recording, made.terms, self.cut)
            if call is None:
                raise OutputsError(refusals.changed(wanted.key[1]))
            if wanted.module is not None:
                call.module.findings = wanted.module
            return {**values, **call.given.predictions(size, wanted.order, reads)}

    def weighted(self, made: Made, loss: Tensor, weights: Tensor) -> Tensor:
        """The loss in which the share of sample i counts ``weights[i]`` times, in value and in gradient."""
        shares = made.shares(len(weights))
        return loss + ((weights.to(shares.dtype) - 1) * shares).sum().to(loss.dtype)


def _weight(term: Term) -> float:
    """How much a part counts in the loss, independent of its values; waits for the device."""
    return 1.0 if term.gradient is None else round(float(term.gradient.abs().sum()), 4)


def _plain_calls(recording: Recording, loss: Tensor, kinds: tuple[str, ...]) -> list[tuple[LossCall, str]]:
    """Calls whose result is the loss itself, or the mean or sum of whose rows is; each with which of these it is, criteria first."""
    root, found = root_of(loss), []
    how = None if root is None else reduced_by(root)
    for call in sorted(recording.calls, key=lambda call: call.kind):
        if call.kind not in kinds or not _is_by_sample(call, recording.size):
            continue
        if call.rows is None and (call.gave(loss) or (root is not None and call.edge == root)):
            found.append((call, "result"))
        elif call.rows is not None and how is not None and how[1] == call.edge:
            found.append((call, how[0]))
        elif call.kind == "reduction" and call.gave(loss) and call.name in ("mean", "sum"):
            found.append((call, call.name))
    return found


def _rows(call: LossCall) -> Tensor:
    rows = call.evaluate() if call.rows is None else call.rows
    return rows if rows.dim() else rows.reshape(1)  # of a batch of one, whose axis the step has squeezed away


def _is_by_sample(call: LossCall, size: int) -> bool:
    return len(_rows(call)) % size == 0


def _is_mixed(one: CriterionCall, other: CriterionCall) -> bool:
    """Whether two calls compare the same prediction with different targets."""
    targets = [call.options["target"] for call in (one, other) if isinstance(call.options.get("target"), Tensor)]
    if one.function is not other.function or one.options.get("input") is not other.options.get("input"):
        return False
    return len(targets) == 2 and not torch.equal(targets[0], targets[1])
