"""The processor time of `classyseg config check` on a ResNet-50, beside that of `import torch` alone."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CONFIG = "task_configs/camvid/deeplabv3_resnet50.yaml"
TORCH = "import torch"
CHECK = "from classyseg.cli.main import main; main(['config', 'check', {config!r}])"
REPORT = "; import sys, time; print(time.process_time(), file=sys.stderr)"


def seconds(code: str) -> float:
    """The processor time of a fresh Python that runs `code`, its start included."""
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    return float(done.stderr.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=CONFIG)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for name, code in (("import torch", TORCH), ("config check", CHECK.format(config=arguments.config))):
        found = [seconds(code) for _ in range(arguments.runs)]
        print(f"{name}: {statistics.median(found):.2f} s of processor time (median of {arguments.runs})")


if __name__ == "__main__":
    main()
