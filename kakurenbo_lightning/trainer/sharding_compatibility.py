"""What statistics that are spread over the ranks cannot work with; each is refused by name as early as it is known."""

from __future__ import annotations

from kakurenbo_lightning.core.flavour import AnyTrainer
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import available_methods, method_class
from kakurenbo_lightning.trainer import compatibility
from kakurenbo_lightning.trainer.loader_compatibility import LoaderOrder


def check_values(values: str, statistics: str, method: Method) -> None:
    """Raise ``ValueError`` for ``values`` that the method does not plan by, and for a method that needs the statistics of all samples on
    every rank, or a setting of it that does, where they are sharded."""
    compatibility.check_values(values, method)
    if statistics != "sharded":
        return
    able = [
        name
        for name, info in available_methods().items()
        if info.family == "hide" and not method_class(name).needs_all_rows and method_class(name).needs_classes is not True
    ]
    why = ""
    if method.family != "hide":
        why = f"the {method.family} family compares samples, or draws them, while an epoch is trained"
    elif method.needs_all_rows or _is_older(method, "choose") or _is_older(method, "plan"):
        why = method.needs_all_rows or Method.needs_all_rows
    elif method.needs_classes:
        why = "balance and protected_classes need the class of every sample on every rank: leave them out, or"
    elif values == "bls":
        why = "values='bls' reads a sample's mean of losses wherever it is trained: use values='sample_loss', or"
    if why:
        other = "" if why.endswith("or") else f" a method that plans by thresholds and draws ({', '.join(able)}), or"
        raise ValueError(
            f"SampleSelection: statistics='sharded' is not allowed with {method.name}: {why}{';' * bool(other)}{other} use "
            "statistics='replicated'"
        )


def _is_older(method: Method, name: str) -> bool:
    """Whether a class overrides the method ``name``, but only a base of it says that no rank needs all rows."""
    bases = type(method).__mro__
    written, said = (next(n for n, base in enumerate(bases) if each in vars(base)) for each in (name, "needs_all_rows"))
    return written < said


def check_spread(trainer: AnyTrainer, statistics: str) -> None:
    """Raise ``ConflictError`` for a callback that reads the statistics of all samples on one rank, where they are sharded."""
    if statistics != "sharded" or trainer.world_size == 1:
        return
    for callback in trainer.callbacks:
        if any(base.__name__ == "RunRecorder" for base in type(callback).__mro__):
            raise ConflictError(
                "SampleSelection(statistics='sharded') is not allowed with a RunRecorder, which reads the statistics of all samples on "
                "each rank; leave it out (selection/* is logged all the same), or use statistics='replicated'"
            )


def check_sharded_loader(order: LoaderOrder, public: bool) -> None:
    """Raise ``ConflictError`` for a sampler of the user's own, whose samples every rank would have to know, or ``selection.wrap``."""
    if order.listed is not None or order.universe.indices is not None:
        listed = f"lists the order of {order.universe.num_samples} samples, of which every rank would have a copy"
        some = f"yields {len(order.universe)} of {order.universe.num_samples} samples, of which every rank would have the list"
        raise ConflictError(
            f"SampleSelection(statistics='sharded'): the sampler of the train loader {listed if order.listed else some}; "
            "use DataLoader(shuffle=...) without a sampler of your own, or statistics='replicated'"
        )
    if public:
        raise ConflictError(
            "SampleSelection(statistics='sharded'): selection.wrap(...) plans before the ranks can talk to each other; leave wrap out, or "
            "use statistics='replicated'"
        )
