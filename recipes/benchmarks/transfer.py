"""Pre-train a reduced DeiT-Tiny on fractals, on all or on fewer samples, and fine-tune it on CIFAR-10: is anything lost?

For each seed: pre-training with the baseline, KAKURENBO and random hiding of KAKURENBO's share, then fine-tuning from each of
the checkpoints, and from nothing. Every run is a `kakurenbo-train` of its own, as a user would start it; the commands are in the
JSON file. Fractals are made first (`kakurenbo-fractal`) unless they are there. A run of the same command that is there already is
not made again, so what was killed goes on.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.benchmarks import report
from recipes.benchmarks.fits import Row, save, spread, written

NETWORK = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
FRACTALS = ["data.batch_size=32", "data.test_share=0.1", "data.crop_padding=0", "data.flip=false"]  # flipped ones are among them
HIDE = {"kakurenbo": ["F=0.3", "tau=0.7"], "random": []}


def shared(settings: argparse.Namespace, seed: int, epochs: int) -> list[str]:
    """Return the overrides of every run."""
    options = ",".join(f"{name}: {value}" for name, value in NETWORK.items())
    return [
        *(
            "model=timm",
            "model.name=deit_tiny_patch16_224",
            f"+model.options={{{options}}}",
            "optimizer=adamw",
            "optimizer.lr=0.001",
        ),
        *(
            "schedule.warmup_epochs=1",
            f"seed={seed}",
            f"trainer.max_epochs={epochs}",
            f"trainer.check_val_every_n_epoch={epochs}",
        ),
        f"trainer.accelerator={'gpu' if settings.device == 'cuda' else 'cpu'}",
        "trainer.enable_progress_bar=false",
    ]


def train(folder: Path, overrides: list[str], threads: int | None) -> Row:
    """Run `kakurenbo-train` and return what it left: its result, the seconds of the processor it took, and its checkpoint."""
    done, typed = folder / "row.json", " ".join(["kakurenbo-train", *overrides])
    if done.is_file() and (row := json.loads(done.read_text()))["command"] == typed:
        return row
    command = [sys.executable, "-m", "kakurenbo_recipes.train", *overrides]
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
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
        "samples_refreshed": result["totals"]["samples_refreshed"],
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "checkpoint": str(checkpoint),
        "command": typed,
    }
    save(done, row)
    return row


def runs_of_a_seed(settings: argparse.Namespace, seed: int, bar: tqdm) -> list[Row]:
    """Pre-train three times and fine-tune four times."""
    rows = []
    fractals = ["data=fractal", f"data.root={settings.fractals}", *FRACTALS, *shared(settings, seed, settings.epochs)]
    images = ["data=cifar10", f"data.root={settings.data_root}", f"data.subset={settings.samples}"]
    images += ["data.batch_size=64", "method=baseline", *shared(settings, seed, settings.fine_tuning)]

    def tuned(name: str, further: list[str]) -> Row:
        bar.set_postfix_str(f"seed {seed}, fine-tuning after {name}")
        row = train(settings.runs / f"{seed}-tuned-{name}", images + further, settings.threads)
        bar.update()
        return row

    rows.append({"seed": seed, "pre-training": "none", "tuned": tuned("none", [])})
    share = 0.0
    for name in ("baseline", "kakurenbo", "random"):
        bar.set_postfix_str(f"seed {seed}, pre-training with {name}")
        hides = HIDE.get(name, []) + ([f"F={round(share, 3)}"] if name == "random" else [])
        pre = train(settings.runs / f"{seed}-{name}", [*fractals, f"method={name}", *hides], settings.threads)
        bar.update()
        share = pre["hidden_share"] if name == "kakurenbo" else share
        rows.append({"seed": seed, "pre-training": name, "pre": pre, "tuned": tuned(name, [f"weights='{pre['checkpoint']}'"])})
    return rows


def summarise(rows: list[Row]) -> list[Row]:
    """Return mean and deviation over the seeds of each way to pre-train, seconds as a ratio to the baseline's of the seed."""
    base = {row["seed"]: row["pre"] for row in rows if row["pre-training"] == "baseline"}
    summary = []
    for name in dict.fromkeys(row["pre-training"] for row in rows):
        mine = [row for row in rows if row["pre-training"] == name]
        figures = {"accuracy": spread([row["tuned"]["accuracy"] for row in mine])}
        if "pre" in mine[0]:
            figures["pre_accuracy"] = spread([row["pre"]["accuracy"] for row in mine])
            figures["hidden_share"] = spread([row["pre"]["hidden_share"] for row in mine])
            for unit in ("samples_trained", "seconds", "cpu_s"):
                ratios = [row["pre"][unit] / base[row["seed"]][unit] for row in mine if row["seed"] in base]
                figures[f"{unit}_ratio"] = spread(ratios) if ratios else None
        summary.append({"pre-training": name, "seeds": len(mine), **figures})
    return summary


def show(result: Row) -> None:
    """Print one row for each way to pre-train."""

    def cells(row: Row) -> list[str]:
        keys = ("pre_accuracy", "hidden_share", "samples_trained_ratio", "cpu_s_ratio")
        forms = ((".1f", 100), (".1f", 100), (".3f", 1), (".3f", 1))
        before = [written(row[key], *form) if row.get(key) else "-" for key, form in zip(keys, forms, strict=True)]
        return [row["pre-training"], *before, written(row["accuracy"], ".2f", 100)]

    report.print_table(
        f"Reduced DeiT-Tiny: fractals, then CIFAR-10 ({result['samples']:,} images), {result['seeds']} seeds",
        ["pre-training", "fractals right, %", "hidden, %", "trained, ratio", "time, ratio", "CIFAR-10 after fine-tuning, %"],
        [cells(row) for row in result["summary"]],
        "Mean +- standard deviation over the seeds; ratios are to the baseline of the same seed, time is of the processor, for the "
        "whole process.",
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    options = report.parser("transfer", __doc__)
    options.set_defaults(threads=1, clock="cpu")
    options.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    options.add_argument("--fractals", type=Path, default=Path("outputs/transfer/fractals"), help="folder of the fractals")
    options.add_argument("--runs", type=Path, default=Path("outputs/transfer/runs"), help="folder of the runs")
    options.add_argument("--categories", type=report.count, default=20, help="of fractals")
    options.add_argument("--instances", type=report.count, default=300, help="of each category")
    options.add_argument("--epochs", type=report.count, default=40, help="of pre-training")
    options.add_argument("--fine-tuning", type=report.count, default=12, help="epochs of fine-tuning")
    options.add_argument("--samples", type=report.count, default=10_000, help="CIFAR-10 images to fine-tune on")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    settings = options.parse_args(arguments)
    for name in ("data_root", "fractals", "runs"):
        setattr(settings, name, getattr(settings, name).resolve())
    return settings


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Make the fractals and all runs."""
    settings = parse(arguments)
    made = {"categories": settings.categories, "instances": settings.instances, "size": NETWORK["img_size"], "format": "array"}
    told = settings.fractals / "fractal.json"
    there = json.loads(told.read_text()) if told.is_file() else {}
    if there and {name: there[name] for name in made} != made:
        raise SystemExit(f"--fractals {settings.fractals} holds other fractals ({there}): delete it, or give another folder")
    if not there:
        words = [word for name, value in made.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "kakurenbo_recipes.fractal", *words, "-o", str(settings.fractals)], check=True)
    names = ("categories", "instances", "epochs", "fine_tuning", "samples", "seeds")
    result = {"benchmark": "transfer", "machine": report.machine(settings.device), "network": NETWORK}
    result |= {name: getattr(settings, name) for name in names}
    rows: list[Row] = []
    with tqdm(total=7 * settings.seeds, desc="transfer", unit="run") as bar:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            rows += runs_of_a_seed(settings, seed, bar)
            save(settings.json, result | {"summary": summarise(rows), "runs": rows})
    result |= {"summary": summarise(rows), "runs": rows}
    show(result)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
