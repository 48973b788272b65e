"""Pre-train a reduced DeiT-Tiny on fractals, on all or on fewer samples, and fine-tune it on CIFAR-10: is anything lost?

For each seed: pre-training with the baseline, KAKURENBO and random hiding of KAKURENBO's share, then fine-tuning from each of
the checkpoints, and from nothing. Every run is a `kakurenbo-train` of its own, as a user would start it, in a folder of its own under
`--runs`. Fractals are made first (`kakurenbo-fractal`) unless they are there. A run of the same command that is there already is
not made again, so what was killed goes on.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.fits import Row, cell, summarise

NETWORK = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
FRACTALS = ("data.batch_size=32", "data.test_share=0.1", "data.crop_padding=0", "data.flip=false")  # flipped ones are among them
HIDE = {"kakurenbo": ["F=0.3", "tau=0.7"], "random": []}
SETTINGS = ("categories", "instances", "epochs", "fine_tuning", "samples", "seeds")
RATIOS = ("samples_trained", "seconds", "cpu_s")


def shared(settings: argparse.Namespace, seed: int, epochs: int) -> list[str]:
    """Return the overrides of every run."""
    options = ",".join(f"{name}: {value}" for name, value in NETWORK.items())
    network = ["model=timm", "model.name=deit_tiny_patch16_224", f"+model.options={{{options}}}"]
    steps = ["optimizer=adamw", "optimizer.lr=0.001", "schedule.warmup_epochs=1", f"seed={seed}", f"trainer.max_epochs={epochs}"]
    once = [f"trainer.check_val_every_n_epoch={epochs}", "trainer.enable_progress_bar=false"]
    return [*network, *steps, *once, f"trainer.accelerator={'gpu' if settings.device == 'cuda' else 'cpu'}"]


def train(folder: Path, overrides: list[str], threads: int | None) -> Row:
    """Run `kakurenbo-train` and return what it left: its result, the seconds of the processor it took, and its checkpoint."""
    done, typed = folder / "row.json", " ".join(["kakurenbo-train", *overrides])
    if done.is_file() and (row := json.loads(done.read_text()))["command"] == typed:
        return row
    command = [sys.executable, "-m", "kakurenbo_recipes.train", *overrides]
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, or of other settings
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (result,) = json.loads((folder / "results.json").read_text())
    (checkpoint,) = folder.rglob("last.ckpt")
    row = {
        **{name: result[name] for name in ("method", "accuracy", "seconds", "hidden_share")},
        "samples_trained": result["totals"]["samples_trained"],
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "checkpoint": str(checkpoint),
        "command": typed,
    }
    done.write_text(json.dumps(row))
    return row


def runs_of_a_seed(settings: argparse.Namespace, seed: int, bar: tqdm) -> list[Row]:
    """Pre-train three times and fine-tune four times; return a row for each way to pre-train."""
    fractals = ["data=fractal", f"data.root={settings.fractals}", *FRACTALS, *shared(settings, seed, settings.epochs)]
    images = ["data=cifar10", f"data.root={settings.data_root}", f"data.subset={settings.samples}", "data.batch_size=64"]
    images += ["method=baseline", *shared(settings, seed, settings.fine_tuning)]

    def run(name: str, overrides: list[str]) -> Row:
        bar.set_postfix_str(f"seed {seed}, {name}")
        row = train(settings.runs / f"{seed}-{name}", overrides, settings.threads)
        bar.update()
        return row

    pre: dict[str, Row] = {}
    rows = [compared(seed, "none", run("tuned-none", images), {}, {})]
    for name in ("baseline", "kakurenbo", "random"):
        share = [f"F={round(pre['kakurenbo']['hidden_share'], 3)}"] if name == "random" else []
        pre[name] = run(name, [*fractals, f"method={name}", *HIDE.get(name, []), *share])
        tuned = run(f"tuned-{name}", [*images, f"weights='{pre[name]['checkpoint']}'"])
        rows.append(compared(seed, name, tuned, pre[name], pre["baseline"]))
    return rows


def compared(seed: int, name: str, tuned: Row, pre: Row, baseline: Row) -> Row:
    """Return the figures of fine-tuning and of the pre-training before it, its costs as a ratio to those of the baseline of the seed."""
    figures = {"pre_accuracy": pre.get("accuracy"), "hidden_share": pre.get("hidden_share")}
    ratios = {f"{unit}_ratio": pre[unit] / baseline[unit] if pre else None for unit in RATIOS}
    return {"run": name, "seed": seed, "epochs": None, "accuracy": tuned["accuracy"], **figures, **ratios}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    options = report.parser("transfer", __doc__, threads=1, clock="cpu")
    options.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    options.add_argument("--fractals", type=Path, default=Path("outputs/transfer/fractals"), help="folder of the fractals")
    options.add_argument("--runs", type=Path, default=Path("outputs/transfer/runs"), help="folder of the runs")
    options.add_argument("--categories", type=report.count, default=20, help="of fractals")
    options.add_argument("--instances", type=report.count, default=300, help="of each category")
    options.add_argument("--epochs", type=report.count, default=40, help="of pre-training")
    options.add_argument("--fine-tuning", type=report.count, default=12, help="epochs of fine-tuning")
    options.add_argument("--samples", type=report.count, default=10_000, help="CIFAR-10 images to fine-tune on")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    settings = report.parse(options, arguments)
    for name in ("data_root", "fractals", "runs"):
        setattr(settings, name, getattr(settings, name).resolve())
    return settings


def make_fractals(settings: argparse.Namespace) -> None:
    """Make the fractals unless they are there."""
    made = {"categories": settings.categories, "instances": settings.instances, "size": NETWORK["img_size"], "format": "array"}
    description = settings.fractals / "fractal.json"
    there = json.loads(description.read_text()) if description.is_file() else {}
    if there and {name: there[name] for name in made} != made:
        raise SystemExit(f"--fractals {settings.fractals} holds other fractals ({there}): delete it, or give another folder")
    if not there:
        words = [word for name, value in made.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "kakurenbo_recipes.formula_images", *words, "-o", str(settings.fractals)], check=True)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Make the fractals and all runs."""
    settings = parse(arguments)
    make_fractals(settings)
    rows: list[Row] = []
    with tqdm(**bar_settings(total=7 * settings.seeds, desc="transfer", unit="run")) as bar:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            rows += runs_of_a_seed(settings, seed, bar)
    summary = summarise(rows, "accuracy", "pre_accuracy", "hidden_share", *(f"{unit}_ratio" for unit in RATIOS))
    report.print_table(
        f"Reduced DeiT-Tiny: fractals, then CIFAR-10 ({settings.samples:,} images), {settings.seeds} seeds",
        summary,
        {
            "pre-training": lambda row: row["run"],
            "fractals right, %": cell("pre_accuracy", ".1f", 100),
            "hidden, %": cell("hidden_share", ".1f", 100),
            "trained, ratio": cell("samples_trained_ratio", ".3f"),
            "time, ratio": cell("cpu_s_ratio", ".3f"),
            "CIFAR-10 after fine-tuning, %": cell("accuracy", ".2f", 100),
        },
        "Mean +- standard deviation over the seeds; ratios are to the baseline of the same seed, time is of the processor, for the "
        "whole process.",
    )
    chosen = {name: getattr(settings, name) for name in SETTINGS}
    return report.write(settings, network=NETWORK, **chosen, summary=summary)


if __name__ == "__main__":
    main()
