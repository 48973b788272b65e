"""What a console script imports before there is something to do: neither Lightning nor torch, whose imports take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = (
    *("torch", "torchvision", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", "timm", "datasets"),
    *("pandas", "pyarrow", "matplotlib", "sklearn", "scipy", "tensorboard", "h5py", "transformers", "wandb"),
)
PROGRAM = f"""\
import sys
from {{module}} import {{function}} as main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", *(name for name in {HEAVY} if name in sys.modules))
"""


def scripts():
    """The console scripts of pyproject.toml: name -> ``module:function``."""
    text = (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0]
    return dict(line.replace('"', "").split(" = ") for line in text.splitlines())


def started(script, *arguments, cwd):
    """What a script printed, and which heavy libraries it had imported in the end."""
    module, _, function = scripts()[script].partition(":")
    command = [sys.executable, "-c", PROGRAM.format(module=module, function=function), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    printed, _, heavy = done.stdout.rpartition("heavy:")
    return printed, heavy.split()


@pytest.mark.parametrize("script", scripts())
def test_the_help_of_every_script_needs_no_heavy_library(script, tmp_path):
    printed, heavy = started(script, "--help", cwd=tmp_path)
    assert script in printed and heavy == []


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("kakurenbo-train", ["--cfg", "job", "method=plb", "data=cifar10", "method.mix=0.2"], "mix: 0.2"),
        ("kakurenbo-methods", [], "bytes: of state per sample"),
        ("kakurenbo-methods", ["kakurenbo"], "max_fraction"),
    ],
    ids=["settings", "methods", "one method"],
)
def test_what_is_known_without_training_needs_no_heavy_library(script, arguments, said, tmp_path):
    printed, heavy = started(script, *arguments, cwd=tmp_path)
    assert said in printed and heavy == []
