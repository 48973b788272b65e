"""Search for settings with Optuna: the console script `kakurenbo-search`.

    kakurenbo-search 'F=interval(0.1,0.5)' 'tau=interval(0.5,0.9)' data=cifar10 --trials 20 --folder search

Settings are those of `kakurenbo-train`, and each run is one, in a process and a folder of its own. Values to search over are in Hydra's
words: interval(a,b), int(interval(a,b)), tag(log,interval(a,b)), range(a,b,step), choice(a,b). A run is chosen by the scores of those
before it. The score is that of a tenth of the training images, which are held out (data.held_out=0.1), because the test images must not
choose: train the best settings again with other seeds in the end. The same command continues a search that was killed, and several
processes and machines that see the folder search together. `kakurenbo-report FOLDER` makes tables and pictures of the runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from kakurenbo_lightning.cli.text_table import aligned, terminal_width
from kakurenbo_recipes.settings import MACHINE, check_setting

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages.journal import JournalFileBackend
except ImportError as error:
    raise ImportError('kakurenbo-search needs Optuna: pip install "kakurenbo-lightning[sweeps]"') from error

HELD_OUT = "data.held_out=0.1"


def numbers(values: Sequence[float]) -> Callable[..., BaseDistribution]:
    """Return the class of distribution for some values: that of ints if all are ints."""
    return IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution


def distribution(override: Override) -> BaseDistribution:
    """Convert a sweep in Hydra's syntax to an Optuna distribution. `range` excludes its stop, as everywhere in Hydra.

    Raises:
        ValueError: it holds no values.
    """
    sweep, text = override.value(), override.input_line
    if isinstance(sweep, IntervalSweep):
        low, high = cast(float, sweep.start), cast(float, sweep.end)  # Hydra's grammar requires both ends
        log = "log" in sweep.tags
        rises = low < high and (low > 0 or not log)
        check_setting("search", text, rises, "an interval that rises, with log from above 0", "Write F=interval(0.1,0.5).")
        return numbers((low, high))(low, high, log=log)
    if isinstance(sweep, RangeSweep):
        values = sorted(cast(Iterator[float], override.sweep_iterator()))  # a range yields only numbers
        check_setting("search", text, bool(values), "a range over values", "Write epochs=range(1,10,3).")
        return numbers(values)(values[0], values[-1], step=abs(sweep.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))  # strings as they were typed


def search_space(overrides: list[str]) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
    """Return the distributions, and all other overrides as typed, by setting. The last override of a setting counts."""
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        name = override.get_key_element().lstrip("+~")
        space.pop(name, None)
        fixed.pop(name, None)
        if override.is_sweep_override():
            space[override.get_key_element()] = distribution(override)
        else:
            fixed[name] = cast(str, override.input_line)  # always set by Hydra's parser
    hint = "Write 'F=interval(0.1,0.5)', for example."
    check_setting("search", " ".join(overrides), bool(space), "settings of which one has values to search over", hint)
    return space, fixed


def open_study(folder: Path, fixed: dict[str, str]) -> optuna.Study:
    """Start the study in `folder/study.journal`, or continue it.

    Raises:
        ValueError: the study was started with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(journal)
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    now = sorted(line for key, line in fixed.items() if not f"{key}.".startswith(MACHINE))
    before = study.user_attrs.get("settings", now)
    check_setting("--folder", str(folder), now == before, f"of a search with {before}, not {now}", "Or give another --folder.")
    study.set_user_attr("settings", now)
    return study


def asked(study: optuna.Study, space: dict[str, BaseDistribution], seed: int) -> optuna.Trial:
    """Return a new trial, whose values are drawn from a seed that includes its number, so that parallel processes and a continued
    search draw others.
    """
    trial = study.ask()
    study.sampler = optuna.samplers.TPESampler(seed=seed + trial.number, constant_liar=True)
    for name, values in space.items():
        if isinstance(values, CategoricalDistribution):
            trial.suggest_categorical(name, values.choices)
        elif isinstance(values, IntDistribution):
            trial.suggest_int(name, values.low, values.high, step=values.step, log=values.log)
        elif isinstance(values, FloatDistribution):
            trial.suggest_float(name, values.low, values.high, step=values.step, log=values.log)
    return trial


def score_of(trial: optuna.Trial, fixed: dict[str, str], folder: Path) -> float | None:
    """Train with the settings of a trial and return its score; None when the training failed or was not validated.

    Only one method is trained, even if the experiment compares several.
    """
    folder = (folder / str(trial.number)).resolve()
    settings = ["compare=null", *fixed.values(), *(f"{name}={value}" for name, value in trial.params.items())]
    done = subprocess.run([sys.executable, "-m", "kakurenbo_recipes.train", *settings, f"hydra.run.dir='{folder}'"])
    return None if done.returncode else json.loads((folder / "results.json").read_text())[0]["score"]


def search(study: optuna.Study, space: dict[str, BaseDistribution], fixed: dict[str, str], settings: argparse.Namespace) -> None:
    """Run trials until the requested number has finished, counting those of other processes.

    Raises:
        SystemExit: too many trials have failed in this process.
    """
    failed = 0
    while sum(trial.state.is_finished() for trial in study.trials) < settings.trials:
        trial = asked(study, space, settings.seed)
        score = score_of(trial, fixed, settings.folder)
        study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
        failed += score is None
        if failed > settings.failures:
            raise SystemExit(
                f"run {trial.number} with {trial.params} failed or left no score, see above and {settings.folder / str(trial.number)}. The "
                "search goes by the validation metric: leave trainer.limit_val_batches and trainer.check_val_every_n_epoch as they are. "
                "The same command continues; --failures N lets N runs fail."
            )


def show(study: optuna.Study, folder: Path) -> None:
    """Print the runs, best first, and write the best one to `folder/best.json`."""
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    ranked = sorted(ended, key=lambda trial: -1 if trial.value is None else trial.value, reverse=True)
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    rows = []
    for trial in ranked:
        score = "failed" if trial.value is None else f"{trial.value:.2%}"
        values = [trial.params.get(name, "-") for name in names]
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(folder / str(trial.number)), *shown, score])
    print("\n".join([f"{len(ranked)} runs", *aligned(["folder", *names, "score"], rows, terminal_width(), figures=True)]))
    best = {"score": ranked[0].value, "settings": ranked[0].params, "folder": str(folder / str(ranked[0].number))}
    (folder / "best.json").write_text(json.dumps(best, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the search and print the runs."""
    options = argparse.ArgumentParser(
        "kakurenbo-search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "settings",
        nargs="+",
        help="settings of kakurenbo-train, at least one with values to search over, for example 'F=interval(0.1,0.5)'",
    )
    options.add_argument("--folder", type=Path, default=Path("search"), help="of the study and the runs (default: search)")
    options.add_argument("--trials", type=int, default=20, help="runs of the whole search, over all processes (default: 20)")
    options.add_argument("--failures", type=int, default=0, help="runs that may fail before this process stops (default: 0)")
    options.add_argument("--seed", type=int, default=0, help="of what is tried (default: 0)")
    settings = options.parse_intermixed_args(arguments)
    try:
        space, fixed = search_space([HELD_OUT, *settings.settings])
        hint = "Search with each method by itself: method=kakurenbo."
        check_setting(
            "search",
            fixed.get("compare"),
            fixed.get("compare", "compare=null") == "compare=null",
            "for the score of one method",
            hint,
        )
        check_setting("--trials", settings.trials, settings.trials > 0, "at least 1", "Try 20.")
        study = open_study(settings.folder, fixed)
    except (ValueError, HydraException) as error:
        options.error(str(error))
    search(study, space, fixed, settings)
    show(study, settings.folder)


if __name__ == "__main__":
    main()
