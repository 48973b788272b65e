"""The console script ``kakurenbo-inspect``: prints the selection state that a checkpoint holds."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kakurenbo_lightning.cli.text_table import aligned, show, terminal_width
from kakurenbo_lightning.core.checkpoint_file import check_whole, is_old_format
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.sharded_checkpoint import META, check_sharded, is_sharded_checkpoint
from kakurenbo_lightning.errors import DamagedCheckpointError, MismatchError, NoSelectionError
from kakurenbo_lightning.methods import available_methods
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.record.schema import json_ready
from kakurenbo_lightning.session.totals import Totals

if TYPE_CHECKING:  # torch is imported only when there is a checkpoint to read, so --help is fast
    from torch import Tensor

    from kakurenbo_lightning.session.checkpoint import SessionState

ABOUT = "Print the selection state of a Lightning checkpoint: method, epoch, hidden share, what it cost, which samples are hidden most."

EXAMPLES = """\
examples:
  kakurenbo-inspect checkpoints/last.ckpt              one page
  kakurenbo-inspect checkpoints/last.ckpt --most 100   more of the most hidden samples
  kakurenbo-inspect checkpoints/last.ckpt --json       the same for programs

A checkpoint may be a folder, too: the sharded one of ModelParallelStrategy.

A checkpoint says how often each sample was hidden if a RunRecorder was among the callbacks (kakurenbo-train adds one). Without it the
samples that are hidden now are listed, lowest loss first. Indices are those of the data set; samples of iterable data have keys, which
are integers as they are and hashes of strings."""


def selection_in(path: Path, trust: bool = False) -> tuple[SessionState, dict[str, Any] | None, int | None]:
    """Read the selection state of a checkpoint.

    Returns the state of the :class:`~kakurenbo_lightning.SampleSelection`, the counts of the ``RunRecorder`` if there was one, and the
    number of optimizer steps, which Lightning counts and puts into a file's name.

    Args:
        path: path of the checkpoint.
        trust: allow objects of any kind, whose loading can run code.

    Raises:
        NoSelectionError: the file does not exist, is damaged, is not a checkpoint, or holds no selection state of this version.
    """
    from kakurenbo_lightning.session.checkpoint import from_state

    checkpoint = _checkpoint(path, trust)
    callbacks = checkpoint.get("callbacks", {}) if isinstance(checkpoint, Mapping) else None
    if not isinstance(callbacks, Mapping):
        raise NoSelectionError(f"{path} is not a Lightning checkpoint; give a .ckpt that it saved")
    states = [state for state in callbacks.values() if isinstance(state, Mapping)]
    found = next((state for state in states if {"statistics", "rng", "totals"} <= state.keys()), None)
    if found is None:
        raise NoSelectionError(
            f"{path} holds no selection: it has the callbacks {', '.join(map(str, callbacks)) or 'none'}. It has one if "
            "SampleSelection was among the Trainer's callbacks and training had begun"
        )
    try:
        selection = from_state(found)
    except MismatchError as error:
        raise NoSelectionError(f"{path}: {error}") from None
    counts = next((dict(state["counts"]) for state in states if {"rows", "counts"} <= state.keys()), None)
    steps = checkpoint.get("global_step")
    return selection, counts, steps if isinstance(steps, int) else None


def _checkpoint(path: Path, trust: bool) -> Any:
    """The content of a file that Lightning may have saved; of a sharded checkpoint, a folder, what is beside the weights."""
    sharded = is_sharded_checkpoint(path)
    if not sharded and not path.is_file():
        there = f"; it holds {', '.join(sorted(file.name for file in path.glob('*.ckpt'))[:5])}" if path.is_dir() else ""
        raise NoSelectionError(f"CHECKPOINT={str(path)!r} is not a file{there}; give a .ckpt that Lightning saved")
    if sharded:
        try:
            check_sharded(path)
        except DamagedCheckpointError as error:
            raise NoSelectionError(str(error)) from None
        path = path / META
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped and not is_old_format(path):
        raise NoSelectionError(f"{path} is not a Lightning checkpoint (no zip file); give a .ckpt that it saved")
    try:
        check_whole(path)
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    except DamagedCheckpointError as error:
        raise NoSelectionError(str(error)) from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {named[1]}" if named else "objects other than tensors and plain values"
        raise NoSelectionError(
            f"{path} holds {what}. If you trust the file, add --trust: it loads them, which can run code"
        ) from None
    except Exception as error:  # torch.load raises many kinds of errors for unreadable files
        raise NoSelectionError(f"{path} cannot be read ({error})") from None


def summary(state: SessionState, counts: Mapping[str, Tensor] | None, steps: int | None, most: int) -> dict[str, Any]:
    """Return what a selection state holds, as plain Python values.

    Args:
        state: the selection state.
        counts: how often each sample was ``"trained"`` and ``"hidden"``, from a recorder; ``None`` without one.
        steps: optimizer steps since training began.
        most: how many of the most hidden samples to list.
    """
    statistics, plan, count = state.statistics, state.epoch.plan, state.num_samples
    keys = statistics["keys"] if isinstance(plan, KeyPlan) else None  # of iterable data, ascending
    hidden = plan.hidden if keys is None else torch.searchsorted(keys, plan.hidden)
    measured = statistics["epoch_seen"] >= 0
    judged = measured & (statistics["epoch_seen"] >= state.judged_since if state.judged_since is not None else False)
    loss = statistics["loss"]
    finite = loss[measured & loss.isfinite()]
    some = finite[:: max(1, len(finite) // 1_000_000)]  # torch.quantile takes at most 16 million values
    quantiles = torch.quantile(some, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() if len(some) else []
    times = counts if counts is not None and len(counts["hidden"]) == count else {}
    return {
        **state.method,
        "seed": state.seed,
        "num_samples": count,
        "keyed": keys is not None,
        "epoch": state.epoch.epoch,
        "step": steps,
        "epoch_batches": state.epoch.step,
        "world_size": state.layout.world_size,
        "batch_size": state.layout.batch_size,
        "lr_factor": plan.lr_factor,
        "hidden": len(hidden),
        "hidden_share": len(hidden) / max(1, count),
        "measured": int(measured.count_nonzero()),
        "not_finite": int((measured & ~loss.isfinite()).count_nonzero()),
        "correct": int((statistics["correct"] & judged).count_nonzero()) if bool(judged.any()) else None,
        "loss_quantiles": quantiles,
        "totals": asdict(state.totals),
        "saved_seconds": state.totals.saved_seconds,
        "ideal": state.totals.ideal,
        "most_hidden": _most_hidden(hidden, loss, times, most, keys),
        "waits": _waiting(state.engines),
    }


def _most_hidden(
    hidden: Tensor, loss: Tensor, times: Mapping[str, Tensor], most: int, keys: Tensor | None
) -> list[dict[str, Any]]:
    """The samples hidden most often, ties ordered by fewest times trained. Samples never hidden are left out.

    Without counts, the samples that are hidden now, lowest loss first.
    """
    if not times:
        rows = hidden[loss[hidden].nan_to_num(nan=torch.inf).argsort(stable=True)[:most]].tolist()
        names = [{"index": row} if keys is None else {"key": int(keys[row])} for row in rows]
        return [{**name, "loss": float(loss[row])} for name, row in zip(names, rows, strict=True)]
    least_trained = times["trained"].argsort(stable=True)
    order = least_trained[times["hidden"][least_trained].argsort(descending=True, stable=True)[:most]]
    rows = order[times["hidden"][order] > 0].tolist()
    counted = [{f"times_{name}": int(times[name][row]) for name in ("hidden", "trained")} for row in rows]
    return [{"index": row, **one, "loss": float(loss[row])} for row, one in zip(rows, counted, strict=True)]


def _waiting(engines: Any) -> int:
    """Number of samples that a backprop method has chosen but not trained yet, over the ranks that saved."""
    pools = [state.get("pool", []) for state in engines or [] if isinstance(state, Mapping)]
    return sum(len(part["indices"]) for pool in pools for part in pool)


def position(found: Mapping[str, Any]) -> str:
    """Epoch and step as Lightning writes them in a file's name, and how far into the epoch that is."""
    step = "" if found["step"] is None else f", step {found['step']:,}"
    batches = found["epoch_batches"]
    return (
        f"epoch {found['epoch']} (counted from 0){step}, after {batches:,} {'batch' if batches == 1 else 'batches'} of the epoch"
    )


def page(found: Mapping[str, Any], family: str = "") -> str:
    """Format the summary as a page of text for the terminal."""
    from kakurenbo_lightning.session.plain_values import brief, default_settings, is_same

    is_known = found["method"] in available_methods()  # not if it is the user's own, which only the training imports
    usual = default_settings(method_class(found["method"])) if is_known else {}
    changed = {name: value for name, value in found["settings"].items() if not (name in usual and is_same(value, usual[name]))}
    settings = ", ".join(f"{name}={brief(value)}" for name, value in changed.items())
    right = found["correct"]
    lines = {
        "method": f"{found['method']}({settings})",
        "seed": found["seed"],
        "data": f"{found['num_samples']:,} samples{' of iterable data, by key' * found['keyed']}"
        if found["num_samples"]
        else "iterable data, whose samples have no index",
        "position": position(found),
        "ranks": f"{found['world_size']}, with batches of {found['batch_size']}",
        "hidden now": f"{found['hidden']:,} ({found['hidden_share']:.1%}), learning rate x {found['lr_factor']:.3f}",
        "measured": f"{found['measured']:,} samples, {'unknown how many' if right is None else f'{right:,}'} predicted correctly, "
        f"{found['not_finite']:,} without a finite loss",
        "so far": f"{Totals(**found['totals']).summary(family)} (of whole epochs)",
    }
    if found["loss_quantiles"]:
        lines["loss"] = "{:.3g} least, {:.3g} | {:.3g} | {:.3g} quartiles, {:.3g} largest".format(*found["loss_quantiles"])
    if found["waits"]:
        lines["waiting"] = f"{found['waits']:,} samples are chosen and not trained yet"
    width = max(map(len, lines))
    text = [f"{name.ljust(width)}  {value}" for name, value in lines.items()]
    if found["most_hidden"]:
        heads = list(found["most_hidden"][0])
        rows = [
            [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in found["most_hidden"]
        ]
        title = "most hidden (then least trained) samples" if len(heads) > 2 else "hidden now, lowest loss first"
        text += ["", title, *aligned([head.replace("_", " ") for head in heads], rows, terminal_width(), figures=True)]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the command line asks for. A file without a selection ends with exit code 2."""
    parser = argparse.ArgumentParser(
        "kakurenbo-inspect", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .ckpt saved by Lightning, file or folder, for example checkpoints/last.ckpt",
    )
    parser.add_argument("--most", type=int, default=10, metavar="K", help="list K of the most hidden samples (default: 10)")
    parser.add_argument(
        "--trust", action="store_true", help="load objects of any kind, which can run code: use it only for files you trust"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    settings = parser.parse_args(arguments)
    if settings.most < 0:
        parser.error(f"--most {settings.most} is not possible: it must be at least 0")
    try:
        held = selection_in(settings.checkpoint, settings.trust)
    except NoSelectionError as error:
        parser.error(str(error))
    found = summary(*held, settings.most)
    show(json.dumps(json_ready(found), indent=2, allow_nan=False) if settings.json else page(found, _family(found["method"])))


def _family(method: str) -> str:
    known = available_methods().get(method)
    return "" if known is None else known.family


if __name__ == "__main__":
    main()
