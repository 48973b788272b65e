"""The console script ``kakurenbo-inspect``: what a checkpoint holds of a selection."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.checkpoint_file import check_whole
from kakurenbo_lightning.errors import DamagedCheckpointError, NoSelectionError
from kakurenbo_lightning.session.checkpoint import STATE_VERSION, brief
from kakurenbo_lightning.session.totals import Totals

ABOUT = "Print the selection state of a Lightning checkpoint: method, epoch, hidden share, what it cost, which samples are hidden most."

EXAMPLES = """\
examples:
  kakurenbo-inspect checkpoints/last.ckpt              one page
  kakurenbo-inspect checkpoints/last.ckpt --most 100   more of the most hidden samples
  kakurenbo-inspect checkpoints/last.ckpt --json       the same for programs

How often a sample was hidden is in the checkpoint of a run with a RunRecorder among its callbacks (kakurenbo-train has one); without it the
samples that are hidden now are listed, those of lowest loss first. Indices are those of the data set."""


def selection_in(path: Path, trust: bool = False) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The state of the :class:`~kakurenbo_lightning.SampleSelection` of a checkpoint, and its ``RunRecorder``'s counts if there is one.

    Args:
        path: of the checkpoint.
        trust: load objects of any kind, which can run code.

    Raises:
        NoSelectionError: there is no such file, it is damaged or no checkpoint, or holds no selection of this version.
    """
    if not path.is_file():
        there = f"; it holds {', '.join(sorted(file.name for file in path.glob('*.ckpt'))[:5])}" if path.is_dir() else ""
        raise NoSelectionError(f"CHECKPOINT={str(path)!r} is not a file{there}; give a .ckpt that Lightning saved")
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise NoSelectionError(f"{path} is no checkpoint of Lightning (no zip file); give a .ckpt that it saved")
    try:
        check_whole(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
    except DamagedCheckpointError as error:
        raise NoSelectionError(str(error)) from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {named[1]}" if named else "objects that are no tensors or plain values"
        raise NoSelectionError(
            f"{path} holds {what}. If you trust the file, add --trust: it loads them, which can run code"
        ) from None
    except Exception as error:  # torch raises errors of many kinds for what it cannot read
        raise NoSelectionError(f"{path} cannot be read ({error})") from None
    callbacks = checkpoint.get("callbacks", {}) if isinstance(checkpoint, Mapping) else None
    if not isinstance(callbacks, Mapping):
        raise NoSelectionError(f"{path} is no checkpoint of Lightning; give a .ckpt that it saved")
    states = [state for state in callbacks.values() if isinstance(state, Mapping)]
    found = next((state for state in states if {"plan_metrics", "statistics", "hidden"} <= state.keys()), None)
    if found is None:
        raise NoSelectionError(
            f"{path} holds no selection: it has the callbacks {', '.join(map(str, callbacks)) or 'none'}. One is saved when "
            "SampleSelection is among the Trainer's callbacks and training has begun"
        )
    if found.get("version") != STATE_VERSION:
        raise NoSelectionError(
            f"{path} has selection state of version {found.get('version')!r}, this release reads {STATE_VERSION}"
        )
    return dict(found), next((dict(state["counts"]) for state in states if {"rows", "counts"} <= state.keys()), None)


def summary(state: Mapping[str, Any], recorded: Mapping[str, Any] | None, most: int) -> dict[str, Any]:
    """Plain values that say what a state is.

    Args:
        state: of the selection.
        recorded: the counts of the recorder: how often samples were trained and hidden.
        most: how many of the most hidden samples.
    """
    statistics, hidden, count = state["statistics"], state["hidden"], state["num_samples"]
    measured = statistics["epoch_seen"] >= 0
    loss, totals = statistics["loss"], Totals(**state["totals"])
    finite = loss[measured & loss.isfinite()]
    some = finite[:: max(1, len(finite) // 1_000_000)]  # torch.quantile takes no more than 16 million
    quantiles = torch.quantile(some, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() if len(some) else []
    known = recorded is not None and len(recorded["hidden"]) == count
    kept = ("hidden", "trained") if known else ()
    times = {name: recorded[name] for name in kept}
    return {
        "method": state["method"],
        "settings": dict(state["settings"]),
        "seed": state["seed"],
        "num_samples": count,
        "epoch": state["epoch"],
        "step": state["step"],
        "world_size": state["world_size"],
        "batch_size": state["batch_size"],
        "hidden": len(hidden),
        "hidden_share": len(hidden) / max(1, count),
        "lr_factor": state["lr_factor"],
        "measured": int(measured.count_nonzero()),
        "not_finite": int((measured & ~loss.isfinite()).count_nonzero()),
        "correct": int((statistics["correct"] & measured).count_nonzero()),
        "loss_quantiles": quantiles,
        "totals": dict(state["totals"]),
        "saved_seconds": totals.saved_seconds,
        "most_hidden": _most_hidden(hidden, loss, times, most),
        "waits": _waiting(state.get("driven")),
    }


def _most_hidden(hidden: Tensor, loss: Tensor, times: Mapping[str, Tensor], most: int) -> list[dict[str, Any]]:
    """Those hidden most often, of equal ones those trained least; without counts, those hidden now, of lowest loss first."""
    if not times:
        rows = hidden[loss[hidden].nan_to_num(nan=torch.inf).argsort(stable=True)[:most]]
    else:
        least_trained = times["trained"].argsort(stable=True)
        rows = least_trained[times["hidden"][least_trained].argsort(descending=True, stable=True)[:most]]
    counts = [{f"times_{name}": int(values[row]) for name, values in times.items()} for row in rows]
    return [{"index": int(row), **told, "loss": float(loss[row])} for row, told in zip(rows, counts, strict=True)]


def _waiting(driven: Any) -> int:
    """Samples that a backprop method has chosen and not trained yet, on the ranks that saved."""
    pools = [state.get("pool", []) for state in driven or [] if isinstance(state, Mapping)]
    return sum(len(part["indices"]) for pool in pools for part in pool)


def page(told: Mapping[str, Any], family: str = "") -> str:
    """The summary as text."""
    totals = Totals(**told["totals"])
    settings = ", ".join(f"{name}={brief(value)}" for name, value in told["settings"].items())
    lines = {
        "method": f"{told['method']}({settings})",
        "seed": told["seed"],
        "data": f"{told['num_samples']:,} samples",
        "where": f"epoch {told['epoch']} (counted from 0), after step {told['step']}",
        "ranks": f"{told['world_size']}, with batches of {told['batch_size']}",
        "hidden now": f"{told['hidden']:,} ({told['hidden_share']:.1%}), learning rate x {told['lr_factor']:.3f}",
        "measured": f"{told['measured']:,} samples, {told['correct']:,} predicted correctly, {told['not_finite']:,} without a finite loss",
        "so far": totals.summary(family),
    }
    if told["loss_quantiles"]:
        lines["loss"] = "{:.3g} least, {:.3g} | {:.3g} | {:.3g} quartiles, {:.3g} largest".format(*told["loss_quantiles"])
    if told["waits"]:
        lines["waiting"] = f"{told['waits']:,} samples are chosen and not trained yet"
    width = max(map(len, lines))
    text = [f"{name.ljust(width)}  {value}" for name, value in lines.items()]
    if told["most_hidden"]:
        heads = list(told["most_hidden"][0])
        text += ["", "most hidden (then least trained) samples" if len(heads) > 2 else "hidden now, lowest loss first"]
        rows = [[head.replace("_", " ") for head in heads]]
        rows += [[f"{value:.4g}" if name == "loss" else str(value) for name, value in row.items()] for row in told["most_hidden"]]
        sizes = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        text += ["  " + "  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the command line asks for; a file without a selection ends with exit code 2."""
    parser = argparse.ArgumentParser(
        "kakurenbo-inspect", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt file of Lightning")
    parser.add_argument("--most", type=int, default=10, metavar="K", help="list K of the most hidden samples (default: 10)")
    parser.add_argument("--trust", action="store_true", help="load objects of any kind, which can run code: only files you trust")
    parser.add_argument("--json", action="store_true", help="print JSON")
    settings = parser.parse_args(arguments)
    if settings.most < 0:
        parser.error(f"--most {settings.most} is not possible: it must be at least 0")
    try:
        state, recorded = selection_in(settings.checkpoint, settings.trust)
    except NoSelectionError as error:
        parser.error(str(error))
    told = summary(state, recorded, settings.most)
    text = json.dumps(_without_nan(told), indent=2, allow_nan=False) if settings.json else page(told, _family(told["method"]))
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _without_nan(value: Any) -> Any:
    """The same with ``None`` for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _family(method: str) -> str:
    from kakurenbo_lightning.methods import available_methods

    known = available_methods().get(method)
    return known.family if known is not None else ""


if __name__ == "__main__":
    main()
