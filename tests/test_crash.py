"""A run that fails in its own code ends, and says why, with data workers too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from classyseg.cli.train import main
from classyseg.registry import TRANSFORMS
from classyseg.transforms import ClassyTransform

@TRANSFORMS.register("fails_at_20")
class FailsAt20(ClassyTransform):
    def __call__(self, sample, generator):
        if sample.name.endswith(" 20"):
            raise RuntimeError("sample 20 cannot be had")
        return sample

sys.exit(main(sys.argv[1:]))
"""


def test_a_transform_that_raises_in_a_worker_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    overrides = ["dataset.train.num_samples=32", "dataset.train.transforms=[fails_at_20]", "runtime.workers=2"]
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "--config",
        "task_configs/quickstart.yaml",
        "--output",
        str(tmp_path / "run"),
    ]
    run = subprocess.run(
        [*command, *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 1
    assert "RuntimeError: sample 20 cannot be had" in run.stderr
