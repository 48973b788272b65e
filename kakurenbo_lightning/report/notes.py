"""What a reader of the comparison must know: how to read it, and which of its figures are not what they seem."""

from __future__ import annotations

import pandas as pd

from kakurenbo_lightning.report.groups import BASELINE, Group, short, task_of, unlike
from kakurenbo_lightning.report.reading import Problem, Run, mapping, number
from kakurenbo_lightning.report.tables import compared, rank

NOTE = (
    "Runs that differ in their seed only are averaged. Seconds are the median step times the number of steps, the waits for batches, "
    "refresh passes and selection, without validation. That leaves out stalls, and load beside less than half of a run's steps; load "
    "beside more of them, as of other trainings that come and go, slows the median step too, and then a saving may be several times "
    "too large or too small: compare runs that had the machine for themselves, or the same load throughout. Wall: what all of this "
    "took. Difference and saving are against the baseline, in pairs of the same seed. Ideal: the most that can be saved, the share of "
    "the baseline's samples that were not trained, less what the forward-only passes cost. Not resolved: the saving lies above the "
    "ideal by more than noise, so the runs were not timed under the same conditions; time them again. Forwards are samples trained, "
    "refreshed and scored; backwards are samples trained. Hidden: share of all presentations that were hidden, or scored and "
    "rejected. ± is the standard deviation over the seeds."
)
NO_BASELINE = "No baseline of the same data and network: add method=baseline, with the same seeds, for differences and savings."
NO_DOCTOR = (
    "No data doctor (labels that are probably wrong), because no value of a sample says whether it is predicted correctly. In a "
    "classification return sample_loss, logits and target from training_step: a baseline's loss that is a criterion times a number is "
    "recorded then, too. Of a regression there is none. Without it"
)
BEST = 20  # groups in a figure
NAMED = 10  # groups in a note


def notes(groups: list[Group]) -> list[str]:
    """The notes below the comparison of these groups."""
    chosen = compared(groups)
    others = [group for group in chosen if group.method != BASELINE]
    if others and not any(group.baseline for group in others):
        found = [NO_BASELINE]
    else:
        lone = [group.name for group in others if not len(group.pairs)]
        found = _note("No baseline with the same data, network and seeds for", lone, colon="")
        found += pair_notes([(group, group.baseline) for group in others if group.baseline and len(group.pairs)])
    if not any(group.finished for group in groups):
        done = [f"{group.name} ({epochs_text(group)})" for group in chosen]
        found += _note("No run has finished: these are figures so far, of epochs done", done)
    debug = [group.name for group in chosen if any(mapping(run.config).get("debug") is True for run in group.runs)]
    found += _note("Made with debug=true on small generated data, so the figures mean nothing", debug)
    return [NOTE, *found, *_note(NO_DOCTOR, without_doctor(chosen))]


def without_doctor(groups: list[Group]) -> list[str]:
    """The groups that recorded figures over the epochs and judged no sample, of data and networks of which no run judges one."""
    recorded = [(group, run.samples) for group in groups for run in group.counted if run.samples is not None]
    judged = {task_of(group) for group, samples in recorded if samples.findings is not None}
    return list(dict.fromkeys(group.name for group, samples in recorded if samples.is_unjudged and task_of(group) not in judged))


def _note(text: str, names: list[str], colon: str = ":") -> list[str]:
    """A sentence about groups, of many the first ones; none without groups."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return [f"{text}{colon} {'; '.join([*names[:NAMED], *more])}."] if names else []


def pair_notes(pairs: list[tuple[Group, Group]]) -> list[str]:
    """What makes groups and their baselines less than comparable: places, conditions, lengths."""
    apart, other, lengths = [], [], []
    for group, baseline in pairs:
        if group.unlike("place"):
            apart.append(group.name)
        leaves = unlike(group, baseline)
        if leaves:
            named = ", ".join(short(leaf, leaves) for leaf in leaves)
            other.append(f"{group.name} (against {baseline.name}: another {named})")
        if group.unlike("epochs"):
            lengths.append(f"{group.name} ({epochs_text(group)}, its baseline {epochs_text(baseline)})")
    return [
        *_note("No saving where a run and its baseline differ in machine, device or number of processes", apart),
        *_note("No baseline under the same conditions, so another one is compared with", other),
        *_note("Epochs done differ from the baseline's, and with them what was saved", lengths),
    ]


def epochs_text(group: Group) -> str:
    """The epochs that the runs of a group did: 6, or 3 to 6."""
    done = pd.Series([number(run.info.get("epochs")) for run in group.counted]).dropna()
    return "?" if not len(done) else " to ".join(dict.fromkeys(f"{value:g}" for value in (done.min(), done.max())))


def unfinished(runs: list[Run]) -> list[Problem]:
    """The runs that are drawn and listed but not compared, because others have finished."""
    reasons = {"running": "has not finished (or was killed)", "stopped": "stopped"}
    waiting = [run for run in runs if run.status != "finished"]
    return [
        Problem(str(run.folder), f"{reasons[run.status]} after {run.progress}: drawn, but not in the comparison")
        for run in waiting
        if len(waiting) < len(runs)
    ]


def best_of(groups: list[Group]) -> list[Group]:
    """The groups that the figures show, in their order: the best by score, and as many baselines."""
    baselines = sorted((group for group in groups if group.method == BASELINE), key=rank)[:BEST]
    others = sorted((group for group in groups if group.method != BASELINE), key=rank)[:BEST]
    return [group for group in groups if group in baselines or group in others]


def not_drawn(groups: list[Group]) -> list[Problem]:
    """Which groups no figure but the map of F and tau and the points of error and cost shows, because there are too many."""
    best = best_of(groups)
    rest = [group.name for group in groups if group not in best]
    reason = f"show the {BEST} best groups by score, and as many baselines; the tables have these too: {'; '.join(rest)}"
    return [Problem("figures", reason)] if rest else []
