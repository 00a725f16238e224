"""Whether `classyseg new project` keeps its promises: it runs as written, in its minutes, and without a warning.

    python benchmarks/new_project.py --data-root ../shared/data --minutes 3 10 [--only camvid]

For CamVid, nuclei, a copy of the nuclei as COCO JSON, and pets: makes the project, checks the config and its data,
trains, and measures `val` again (and `test`, where there is one) by `classyseg evaluate`. A row tells the minutes that
were asked for and taken, and mean IoU. Minutes are wall time of `classyseg train`, from its start to its end, so the
machine must have nothing else to do. `--config FILE` trains that config for as many steps as fit into the same minutes,
by the time of its own steps: what a config written by hand reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from classyseg.config import dump_yaml, load_config
from classyseg.io import read_json_lines

COPY = "nuclei as coco_json"
FOLDERS = {"camvid": "camvid", "nuclei": "nuclei_dsb2018", COPY: "", "pets": "pets_voc_layout"}
TRIED_STEPS = 12


def call(*words: str, root: Path) -> str:
    """Runs the command; what it prints. Raises: `SystemExit` where it fails."""
    environment = {**os.environ, "CLASSYSEG_DATA": str(root)}
    done = subprocess.run([sys.executable, "-m", "classyseg", *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def as_coco(root: Path, folder: Path) -> Path:
    """The nuclei, written as COCO JSON."""
    config = folder / "nuclei.yaml"
    call("data", "import", str(root / FOLDERS["nuclei"]), "--output", str(config), root=root)
    call("data", "export", str(config), "--output", str(folder / "coco"), "--format", "coco_json", root=root)
    return folder / "coco"


def measured(run: Path, config: Path, root: Path) -> dict[str, float]:
    """Mean IoU of each split."""
    found = {}
    for split in ("val", "test"):
        if split in load_config(config).values["dataset"]:
            call("evaluate", str(run), "--split", split, root=root)
            numbers = json.loads((run / f"evaluation-{split}.json").read_text(encoding="utf-8"))
            found[split] = numbers["mean_iou"]
    return found


def trained(config: Path, run: Path, root: Path) -> float:
    """Trains, and gives the minutes that it took."""
    began = time.perf_counter()
    call("train", str(config), "--output", str(run), root=root)
    return (time.perf_counter() - began) / 60


def of_project(data: Path, minutes: float, folder: Path, root: Path) -> dict[str, Any]:
    project = folder / "project"
    call("new", "project", str(project), "--data", str(data), "--minutes", f"{minutes:g}", "--device", "cpu", root=root)
    config = project / "config.yaml"
    checked = call("config", "check", str(config), root=root)
    doctor = call("data", "check", str(config), root=root)
    quiet = checked.strip().endswith(": ok") and "0 faults, 0 warnings" in doctor
    taken = trained(config, project / "run", root)
    return {"taken": taken, "quiet": quiet, **measured(project / "run", config, root)}


def of_config(path: Path, minutes: float, folder: Path, root: Path) -> dict[str, Any]:
    """The config with as many steps as fit into the minutes, validated once, at the end."""
    values = load_config(path).values
    values = {key: value for key, value in values.items() if key not in ("num_epochs", "val_every_steps", "val_every")}
    values["dataset"].pop("test", None)
    short, whole = folder / "short", folder / "whole"
    for place in (short, whole):
        place.mkdir()

    def written(place: Path, steps: int) -> Path:
        schedule = values["optimizer"].get("schedule")
        if isinstance(schedule, dict):
            schedule.pop("warmup_epochs", None)
            schedule["warmup_steps"] = steps // 20
        values["hooks"] = ["precise_batch_norm"] if steps < 1000 else [{"name": "ema", "decay": 1 - 20 / steps}]
        config = place / "config.yaml"
        config.write_text(dump_yaml({**values, "num_steps": steps, "val_every_steps": steps}), encoding="utf-8")
        return config

    began = time.perf_counter()
    trained(written(short, TRIED_STEPS), short / "run", root)
    around = time.perf_counter() - began
    records = list(read_json_lines(short / "run" / "metrics.jsonl"))
    seconds = sum(each["seconds"] for each in records if each["phase"] == "train") / TRIED_STEPS
    steps = max(TRIED_STEPS, int((60 * minutes - (around - seconds * TRIED_STEPS)) / seconds))
    taken = trained(written(whole, steps), whole / "run", root)
    return {"taken": taken, "quiet": None, **measured(whole / "run", whole / "config.yaml", root)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0, 10.0])
    parser.add_argument("--only", action="append", choices=FOLDERS)
    parser.add_argument("--config", type=Path, action="append", default=[], help="also a config written by hand")
    arguments = parser.parse_args()
    root = arguments.data_root.absolute()
    print("| data | minutes | taken | mean IoU of val | of test | checked without a word |")
    print("|---|--:|--:|--:|--:|---|")
    names = [*(arguments.only or ([] if arguments.config else FOLDERS)), *arguments.config]
    for name in names:
        for minutes in arguments.minutes:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                if isinstance(name, Path):
                    found = of_config(name, minutes, folder, root)
                else:
                    data = as_coco(root, folder) if name == COPY else root / FOLDERS[name]
                    found = of_project(data, minutes, folder, root)
            ious = [f"{found[split]:.4f}" if split in found else "-" for split in ("val", "test")]
            quiet = {True: "yes", False: "no", None: "-"}[found["quiet"]]
            print(f"| {name} | {minutes:g} | {found['taken']:.2f} | {' | '.join(ious)} | {quiet} |", flush=True)


if __name__ == "__main__":
    main()
