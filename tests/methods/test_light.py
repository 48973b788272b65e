"""Methods need torch and nothing heavier: no Lightning, no Hydra."""

import subprocess
import sys
from pathlib import Path

import kakurenbo_lightning

ALONE = """
import sys, types
package = types.ModuleType("kakurenbo_lightning")  # without what the package itself imports
package.__path__ = [sys.argv[1]]
sys.modules["kakurenbo_lightning"] = package
import kakurenbo_lightning.{module}
heavy = ("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "hydra", "omegaconf")
print(sorted(name for name in heavy if name in sys.modules))
"""


def test_methods_and_their_script_import_torch_only():
    folder = Path(kakurenbo_lightning.__file__).parent
    for module in ("methods", "cli.methods"):
        done = subprocess.run(
            [sys.executable, "-c", ALONE.format(module=module), str(folder)], capture_output=True, text=True, timeout=120
        )
        assert (done.stdout.strip(), done.stderr) == ("[]", "")
