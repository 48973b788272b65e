"""The user's train loader, as a session follows it."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning.core.class_labels import targets_of
from kakurenbo_lightning.core.collectives import Collectives
from kakurenbo_lightning.core.distributed import process, world_size
from kakurenbo_lightning.core.fingerprint import loader_fingerprint
from kakurenbo_lightning.core.keyed_statistics import KeyedStatistics
from kakurenbo_lightning.core.seeded_dataset import num_samples, set_dataset_epoch
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from kakurenbo_lightning.core.statistics import TARGET, NoStatistics, SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.errors import ConflictError, MismatchError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.epoch_state import EpochState
from kakurenbo_lightning.session.followed_arrivals import FollowedArrivals
from kakurenbo_lightning.session.followed_keys import FollowedKeys
from kakurenbo_lightning.session.followed_loader import FollowedLoader, everything, worker_seed
from kakurenbo_lightning.session.planning import Planner
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.signals.outputs import SampleOutputs
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.arrivals import Arrivals, is_iterable_data
from kakurenbo_lightning.trainer.compatibility import check_left
from kakurenbo_lightning.trainer.key_compatibility import check_no_index
from kakurenbo_lightning.trainer.loader import follow_sampler, sampler_for, without_position
from kakurenbo_lightning.trainer.loader_compatibility import (
    check_arrivals,
    check_length,
    check_order,
    check_same_samples,
    check_values_kept,
    no_classes,
    read_loader,
    warn_of_loader,
)
from kakurenbo_lightning.trainer.lr_schedule import EpochSchedules
from kakurenbo_lightning.trainer.sharding_compatibility import check_sharded_loader

EXPLAINED = " when this happened"  # the end of the note on an exception


class TrainLoader:
    """The place of the train loader in a session: Lightning fills it when it asks, perhaps more than once.

    Args:
        adapter: of the Trainer.
        method: the selection method.
        planner: checks the settings, when the length of an epoch is known.
        schedules: learn that length.
        settings: the user's.

    Attributes:
        is_asked_for: Lightning has asked for the loader in this fit.
    """

    def __init__(
        self,
        adapter: TrainerAdapter,
        method: Method,
        planner: Planner,
        schedules: EpochSchedules,
        settings: SessionSettings | None = None,
    ) -> None:
        self._adapter, self._method, self._planner, self._schedules = adapter, method, planner, schedules
        self._settings = settings or SessionSettings()
        self._followed: FollowedLoader | None = None
        self._checked: str | None = None  # fingerprint of the data that the method has found to be its own
        self.is_asked_for = False

    @property
    def data(self) -> FollowedLoader:
        """The loader that is followed.

        Raises:
            ConflictError: Lightning has asked for none yet.
        """
        if self._followed is None:
            raise ConflictError(self._adapter.missing_message())
        return self._followed

    @property
    def is_known(self) -> bool:
        """Whether Lightning has asked for the loader, so that :attr:`data` is there."""
        return self._followed is not None

    def expect(self) -> None:
        """A fit begins: Lightning asks for the loader once more, and its statistics stay."""
        self.is_asked_for = False

    def holds(self, loader: object) -> bool:
        """Whether ``loader`` is the copy that is followed in this fit."""
        return self.is_asked_for and loader is self.data.loader

    def check(self) -> None:
        """Raise ``ValueError`` when Lightning asked for no loader, or the method's settings do not fit its data or this training."""
        if not self.is_asked_for:
            raise ConflictError(self._adapter.missing_message())
        self._planner.check(self.data.statistics.total)

    def explain(self, exception: BaseException, state: EpochState) -> None:
        """Note on an exception of a fit how far this rank was, once batches were asked for: workers may die before an epoch is planned.

        A checkpoint that does not fit is refused before this rank is anywhere.
        """
        if isinstance(exception, MismatchError) or not (
            self._adapter.is_fitting and self.is_known and self.data.sampler.was_iterated
        ):
            return
        add_note = getattr(exception, "add_note", None)  # since Python 3.11
        explained = any(note.endswith(EXPLAINED) for note in getattr(exception, "__notes__", ()))
        if add_note is not None and not explained:
            add_note(f"SampleSelection: {self.data.position(state)}{EXPLAINED}")

    def measure(self) -> None:
        """Let the schedules know how many batches a full epoch has: of iterable data that is known when one has ended."""
        self._schedules.full_batches = self._adapter.limited(self.data.full_batches)

    def follow(self, loader: DataLoader, seed: int, on_set_epoch: Callable[[int], None], public: bool) -> FollowedLoader:
        """Follow the user's ``loader``, see :func:`follow_loader`."""
        before = self._followed
        data = follow_loader(loader, before, self._adapter, self._method, seed, on_set_epoch, public, self._settings)
        self._followed, self.is_asked_for = data, True
        self.measure()
        if not self._adapter.passive:  # the learning-rate finder has another max_steps
            self.check()
        if data.fingerprint != self._checked:  # after the check of what is there at all; a fit that failed on it checks again
            self._method.check_data(data.fingerprint)
            self._checked = data.fingerprint
        return data


def follow_loader(
    loader: DataLoader,
    before: FollowedLoader | None,
    adapter: TrainerAdapter,
    method: Method,
    seed: int,
    on_set_epoch: Callable[[int], None],
    public: bool,
    settings: SessionSettings,
) -> FollowedLoader:
    """Follow the user's ``loader``.

    Args:
        loader: the user's.
        before: what was followed until now: a reloaded loader, or that of another fit, keeps its statistics.
        adapter: of the Trainer.
        method: the selection method.
        seed: of the order.
        on_set_epoch: called when Lightning sets the epoch, before it asks for the first batch.
        public: without Lightning's private attributes.
        settings: the user's.

    Raises:
        ConflictError: the loader cannot be followed, or its samples are others than before.
    """
    if is_iterable_data(loader):
        return follow_arrivals(loader, before, adapter, method, seed, on_set_epoch, public, settings)
    if settings.keep is not None:
        check_no_index(loader)
    sharded = settings.statistics == "sharded"
    loader = without_position(loader)
    order = read_loader(loader, adapter.ranks.size, adapter.ranks.rank)
    check_order(order, method)
    if sharded:
        check_sharded_loader(order, public)
    if before is None:
        together = Collectives(process(), world_size()) if sharded and world_size() > 1 else None
        statistics, known = empty_statistics(method, loader.dataset, together), loader_fingerprint(loader)
        warn_of_loader(loader, adapter.ranks.size)
    else:
        check_length(num_samples(loader.dataset), before.statistics.total)
        same = loader.dataset is before.loader.dataset  # the user may change it in place
        statistics, known = before.statistics, before.fingerprint if same else loader_fingerprint(loader)
        check_same_samples((known, before.fingerprint), (order.universe, before.universe))
    epoch = adapter.trainer.current_epoch
    set_dataset_epoch(loader.dataset, epoch)  # workers may start before the epoch is set
    sampler, longest = sampler_for(order, adapter, method, seed, on_set_epoch, everything(order.universe, statistics))
    follower = follow_sampler(loader, sampler, worker_seed(sampler, epoch), sized=not public, ahead=method.draws_ahead)
    return FollowedLoader(follower, sampler, public, known, order.universe, statistics, longest)


def follow_arrivals(
    loader: object,
    before: FollowedLoader | None,
    adapter: TrainerAdapter,
    method: Method,
    seed: int,
    on_set_epoch: Callable[[int], None],
    public: bool,
    settings: SessionSettings,
) -> FollowedArrivals:
    """Follow the user's ``loader`` of iterable data; the arguments are those of :func:`follow_loader`.

    Raises:
        ConflictError: the method needs an index, or the loader has nothing to train.
    """
    keep = settings.keep
    check_arrivals(loader, method, public, before is None or isinstance(before, FollowedArrivals), keep is not None)
    trainer = adapter.trainer
    most = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps >= 0 else None
    extra = method.ends_short and not adapter.passive
    sampler = Arrivals(
        loader, adapter.ranks.size, adapter.ranks.rank, seed, extra, most, trainer.current_epoch, on_set_epoch, keep
    )
    set_dataset_epoch(sampler.loader.dataset, trainer.current_epoch)  # workers may start before the epoch is set
    loader, known = sampler.loader, Universe(0)
    if keep is None:
        statistics = NoStatistics() if before is None else before.statistics
        return FollowedArrivals(loader, sampler, public, "iterable data", known, statistics, longest=0)
    rows = before.statistics if before is not None else KeyedStatistics(method.columns)
    assert isinstance(rows, KeyedStatistics), "the settings of a session stay"
    keep.publish(None)
    return FollowedKeys(loader, sampler, public, "iterable data by key", known, rows, 0, keep, settings.max_hidden_epochs)


def empty_statistics(method: Method, dataset: Dataset, ranks: Collectives | None = None) -> SampleStatistics:
    """Statistics with the columns ``method`` needs, and the classes where it needs them and ``dataset`` knows them.

    Args:
        method: the selection method.
        dataset: of the train loader.
        ranks: the processes that have a share of the rows each; ``None``: all rows are here.
    """
    if ranks is not None:
        return ShardedStatistics(num_samples(dataset), ranks, method.columns)
    columns = (*method.columns, TARGET) if method.needs_classes else method.columns
    statistics = SampleStatistics(num_samples(dataset), columns=columns, repeats=method.family == "draw")
    if method.needs_classes and (targets := targets_of(dataset)) is not None:
        statistics.extra[TARGET.name].copy_(targets)
        method.check_classes(targets)
    return statistics


def check_followed(data: FollowedLoader, method: Method, largest: Method, outputs: SampleOutputs, values: str) -> None:
    """Check that the samples of a new loader suffice, and that their classes are known or will be.

    Args:
        data: what is known of the loader.
        method: the selection method.
        largest: the same with the largest share that ``save`` may choose.
        outputs: source of the sample values, which must give classes that the data set does not.
        values: the setting of that name.

    Raises:
        ValueError: too few samples would be left for a batch.
    """
    check_values_kept(values, data.statistics)
    check_left(largest, data.count, data.sampler)
    if method.needs_classes and bool((data.statistics.extra[TARGET.name] < 0).any()):
        outputs.need_classes(no_classes(method))
