"""Pre-train a reduced DeiT-Tiny on fractals, on all or on fewer samples, and fine-tune it on CIFAR-10: is anything lost?

For each seed: pre-training with each of `--runs`, then fine-tuning with the baseline from each of the checkpoints, and from
nothing. The methods are those of the transfer table in KAKURENBO's paper (baseline, ISWR, FORGET, Selective-Backprop, KAKURENBO),
and random hiding of KAKURENBO's share. Every run is a `kakurenbo-train` of its own, as a user would start it, in a folder of its
own under `--runs-folder`. Fractals are made first (`kakurenbo-fractal`) unless they are there. A run of the same command that is
there already is not made again, so a killed command continues.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import timm  # noqa: F401  so that no run spends its time on importing it
import torch
from kakurenbo_recipes import formula_images
from kakurenbo_recipes import train as program
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.report import read_runs
from recipes.benchmarks import report
from recipes.benchmarks.fits import Row, cell, summarise
from recipes.benchmarks.forked import printed, run_ranks

NETWORK = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
FRACTALS = ("data.batch_size=32", "data.test_share=0.1", "data.crop_padding=0", "data.flip=false")  # flipped ones are among them
LONGEST = 10**6  # time limit of a run in seconds
FORWARD = 1 / 3  # cost of scoring a sample, relative to training it
HIDDEN = {"forget": ["F=0.3"], "kakurenbo": ["F=0.3", "tau=0.7"]}
METHODS = ("baseline", "iswr", "forget", "selective_backprop", "kakurenbo", "random")
SETTINGS = ("categories", "instances", "epochs", "fine_tuning", "samples", "test_samples", "seeds")
RATIOS = ("samples_trained", "cost", "seconds", "cpu_s")


def shared(settings: argparse.Namespace, seed: int, epochs: int, scoring: int = 0) -> list[str]:
    """Return the overrides of every run; `scoring` epochs come before the `epochs`, after which alone it is validated."""
    options = ",".join(f"{name}: {value}" for name, value in NETWORK.items())
    network = ["model=timm", "model.name=deit_tiny_patch16_224", f"+model.options={{{options}}}"]
    steps = ["optimizer=adamw", "optimizer.lr=0.001", "schedule.warmup_epochs=1", f"seed={seed}", f"trainer.max_epochs={epochs}"]
    once = [f"trainer.check_val_every_n_epoch={epochs + scoring}", "trainer.enable_progress_bar=false"]
    return [*network, *steps, *once, f"trainer.accelerator={'gpu' if settings.device == 'cuda' else 'cpu'}"]


def be_trained(words: list[str], spent: Path, threads: int | None) -> None:
    """Run `kakurenbo-train` in this process, and write the CPU seconds that it took, without its imports."""
    if threads is not None:
        torch.set_num_threads(threads)
    sys.argv = ["kakurenbo-train", *words]
    program.main()
    spent.write_text(json.dumps(time.process_time()))


def train(folder: Path, overrides: list[str], threads: int | None) -> Row:
    """Train in a process of its own and return what it left: its result, the seconds of the processor it took, and its checkpoint."""
    done, typed = folder / "row.json", " ".join(["kakurenbo-train", *overrides])
    if done.is_file() and (row := json.loads(done.read_text()))["command"] == typed:
        return row
    shutil.rmtree(folder, ignore_errors=True)  # remains of a killed run, or of other settings
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, spent = folder.with_suffix(".log"), folder / "cpu_s.json"
    words = [*overrides, f"hydra.run.dir={folder}"]
    (code,) = run_ranks(be_trained, (words, spent, threads), log=log, seconds=LONGEST)
    if code:
        raise SystemExit(f"{typed}\n{printed(log, 1)}")
    (result,) = json.loads((folder / "results.json").read_text())
    (checkpoint,) = folder.rglob("last.ckpt")
    ((run,), _), totals = read_runs([folder]), result["totals"]
    row = {
        **{name: result[name] for name in ("method", "accuracy", "seconds")},
        "hidden_share": result["hidden_share"] + result["rejected_share"],
        "loss": float(run.history["val/loss"].iloc[-1]),
        "samples_trained": totals["samples_trained"],
        "cost": totals["samples_trained"] + FORWARD * (totals["samples_refreshed"] + totals["samples_scored"]),
        "cpu_s": json.loads(spent.read_text()),
        "checkpoint": str(checkpoint),
        "command": typed,
    }
    done.write_text(json.dumps(row))
    return row


def runs_of_a_seed(settings: argparse.Namespace, seed: int, bar: tqdm) -> list[Row]:
    """Pre-train with every method and fine-tune from each and from nothing; return a row for each way to pre-train."""
    fractals = ["data=fractal", f"data.root={settings.fractals}", *FRACTALS]
    images = ["data=cifar10", f"data.root={settings.data_root}", f"data.subset={settings.samples}", "data.batch_size=64"]
    images += [] if settings.test_samples is None else [f"data.eval_subset={settings.test_samples}"]
    images += ["method=baseline", *shared(settings, seed, settings.fine_tuning)]

    def run(name: str, overrides: list[str]) -> Row:
        bar.set_postfix_str(f"seed {seed}, {name}")
        row = train(settings.runs_folder / f"{seed}-{name}", overrides, settings.threads)
        bar.update()
        return row

    pre: dict[str, Row] = {}
    rows = [compared(seed, "none", run("tuned-none", images), {}, {})]
    for name in settings.runs:
        scoring = max(1, settings.epochs // 4) if name == "forget" else 0
        own = HIDDEN.get(name, []) + ([f"method.static_epochs={scoring}"] if scoring else [])
        if name == "random":
            own = [f"F={round(pre['kakurenbo']['hidden_share'], 3)}"]
        pre[name] = run(name, [*fractals, *shared(settings, seed, settings.epochs, scoring), f"method={name}", *own])
        tuned = run(f"tuned-{name}", [*images, f"weights='{pre[name]['checkpoint']}'"])
        rows.append(compared(seed, name, tuned, pre[name], pre["baseline"]))
    return rows


def compared(seed: int, name: str, tuned: Row, pre: Row, baseline: Row) -> Row:
    """Return the figures of fine-tuning and of the pre-training before it, its costs as a ratio to those of the baseline of the seed."""
    figures = {f"pre_{name}": pre.get(name) for name in ("accuracy", "loss")} | {"hidden_share": pre.get("hidden_share")}
    ratios = {f"{unit}_ratio": pre[unit] / baseline[unit] if pre else None for unit in RATIOS}
    return {"run": name, "seed": seed, "epochs": None, "accuracy": tuned["accuracy"], "loss": tuned["loss"], **figures, **ratios}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line, and end with an error if a setting is not possible."""
    options = report.parser("transfer", __doc__, threads=1, clock="cpu")
    options.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    options.add_argument("--fractals", type=Path, default=Path("outputs/transfer/fractals"), help="folder of the fractals")
    options.add_argument("--runs-folder", type=Path, default=Path("outputs/transfer/runs"), help="folder of the runs")
    options.add_argument(
        "--runs", nargs="+", choices=METHODS, default=list(METHODS), help="methods of pre-training, in the order of METHODS"
    )
    options.add_argument("--categories", type=report.count, default=20, help="of fractals")
    options.add_argument("--instances", type=report.count, default=300, help="of each category")
    options.add_argument("--epochs", type=report.count, default=40, help="of pre-training")
    options.add_argument("--fine-tuning", type=report.count, default=12, help="epochs of fine-tuning")
    options.add_argument("--samples", type=report.count, default=10_000, help="CIFAR-10 images to fine-tune on")
    options.add_argument("--test-samples", type=report.count, help="test images of CIFAR-10 (default: all 10,000)")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    settings = report.parse(options, arguments)
    settings.runs = [name for name in METHODS if name in settings.runs]
    for after, before in (("baseline", settings.runs[0]), ("kakurenbo", "random")):
        if before in settings.runs and after not in settings.runs:
            options.error(f"--runs {' '.join(settings.runs)} needs {after} too, which {before} is compared with")
    for name in ("data_root", "fractals", "runs_folder"):
        setattr(settings, name, getattr(settings, name).resolve())
    return settings


def make_fractals(settings: argparse.Namespace) -> None:
    """Generate the fractals if they do not exist."""
    made = {"categories": settings.categories, "instances": settings.instances, "size": NETWORK["img_size"], "format": "array"}
    description = settings.fractals / "fractal.json"
    there = json.loads(description.read_text()) if description.is_file() else {}
    if there and {name: there[name] for name in made} != made:
        raise SystemExit(f"--fractals {settings.fractals} holds other fractals ({there}): delete it, or give another folder")
    if not there:
        words = [word for name, value in made.items() for word in (f"--{name}", str(value))]
        formula_images.main([*words, "-o", str(settings.fractals)])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Generate the fractals and do all runs."""
    settings = parse(arguments)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["recipes.benchmarks.transfer"])
    make_fractals(settings)
    rows: list[Row] = []
    with tqdm(**bar_settings(total=(2 * len(settings.runs) + 1) * settings.seeds, desc="transfer", unit="run")) as bar:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            rows += runs_of_a_seed(settings, seed, bar)
    summary = summarise(
        rows, "accuracy", "loss", "pre_accuracy", "pre_loss", "hidden_share", *(f"{unit}_ratio" for unit in RATIOS)
    )
    report.print_table(
        f"Reduced DeiT-Tiny: fractals, then CIFAR-10 ({settings.samples:,} images), {settings.seeds} seeds",
        summary,
        {
            "pre-training": lambda row: row["run"],
            "fractals: loss": cell("pre_loss", ".3f"),
            "right, %": cell("pre_accuracy", ".1f", 100),
            "hidden or rejected, %": cell("hidden_share", ".1f", 100),
            "trained, ratio": cell("samples_trained_ratio", ".3f"),
            "cost, ratio": cell("cost_ratio", ".3f"),
            "time, ratio": cell("cpu_s_ratio", ".3f"),
            "CIFAR-10 after fine-tuning, %": cell("accuracy", ".2f", 100),
        },
        "Mean +- standard deviation over the seeds; ratios are to the baseline of the same seed, time is of the processor, for the "
        "whole run. Cost counts a forward-only pass as a third of training a sample: it does not depend on the machine.",
    )
    chosen = {name: getattr(settings, name) for name in SETTINGS}
    return report.write(settings, network=NETWORK, **chosen, summary=summary)


if __name__ == "__main__":
    main()
