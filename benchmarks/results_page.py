"""Trained models and what they reach: the tables of `docs/results.md`, made of one small record for each run.

    python benchmarks/results_page.py add RUN --config task_configs/camvid/fcn_resnet18.yaml --commit 1a2b3c4
    python benchmarks/results_page.py write

`add` reads a finished run of a committed config and writes `benchmarks/results/NAME.json`: what it reached, by which
config and the code of which `--commit`, in what time, on which machine. `--evaluation FILE HOW` adds what `classyseg
evaluate` measured on test by another protocol, `--note TEXT` a remark. `write` makes the tables of the page anew from
all records.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classyseg.config import load_config
from classyseg.registry import TASKS

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- results, written by `benchmarks/results_page.py write` -->", "<!-- end -->"
BARS = "▁▂▃▄▅▆▇█"
TITLES = {"camvid": "CamVid", "nuclei": "Nuclei", "pets": "Pets"}
"""By the folder of the configs, in the order of the page."""


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def record_of(run: Path, config: Path, commit: str) -> dict[str, Any]:
    """What a run's folder tells. Raises: `SystemExit` for one of another config, or that has no `test` record."""
    path = config.resolve().relative_to(ROOT)
    if git("status", "--porcelain", "--", str(path)):
        raise SystemExit(f"{path}: is not committed")
    wanted = TASKS.validate(load_config(config)).resolved()
    found = load_config(run / "config.yaml").values
    settled = {key: found["runtime"][key] for key, value in wanted["runtime"].items() if value == "auto"}
    wanted["runtime"] = {**wanted["runtime"], **settled}
    other = sorted(key for key, value in wanted.items() if found.get(key) != value and value is not None)
    if other:
        raise SystemExit(f"{run}: was trained by another config: {', '.join(other)}")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tests = [each for each in records if each["phase"] == "test"]
    if not tests:
        raise SystemExit(f"{run}: has no record of test; did it end?")
    facts = json.loads((run / "report" / "facts.json").read_text(encoding="utf-8"))
    machine = facts["environment"]
    cpu, instructions = machine["cpu"]["name"], machine["torch"]["instructions"]
    return {
        "config": str(path),
        "commit": git("rev-parse", "--short", commit),
        "date": datetime.fromtimestamp((run / "metrics.jsonl").stat().st_mtime, tz=UTC).date().isoformat(),
        "backbone": wanted["model"]["name"],
        "head": wanted["model"]["heads"]["main"]["name"],
        "weights": (wanted.get("start") or {}).get("weights"),
        "steps": records[-1]["step"],
        "hours": round(sum(each["seconds"] for each in records) / 3600, 2),
        "machine": f"{cpu}, {instructions}, {machine['torch']['threads']} threads",
        "precision": found["runtime"]["precision"],
        "val": [[each["step"], round(each["mean_iou"], 4)] for each in records if each["phase"] == "val"],
        "test": {key: tests[-1][key] for key in ("mean_iou", "pixel_accuracy", "iou")},
    }


def curve(values: list[float]) -> str:
    """A small picture of the values in text, from the lowest to the largest."""
    low, high = min(values, default=0), max(values, default=0)
    return "".join(BARS[round((value - low) / max(high - low, 1e-9) * (len(BARS) - 1))] for value in values)


def rows_of(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| backbone + head | start | mean IoU of test | best of val | its curve | steps | hours | machine | commit |",
        "|---|---|--:|--:|---|--:|--:|---|---|",
    ]
    for each in sorted(records, key=lambda one: -one["test"]["mean_iou"]):
        values = [value for _, value in each["val"]]
        more = "".join(f"; {other['mean_iou']:.4f} {other['how']}" for other in each.get("others", ()))
        cells = (
            f"[`{each['backbone']}` + `{each['head']}`](../{each['config']})",
            each["weights"] or "random",
            f"**{each['test']['mean_iou']:.4f}**{more}",
            f"{max(values, default=0):.4f}",
            f"{values[0]:.2f} {curve(values)} {values[-1]:.2f}" if values else "",
            each["steps"],
            f"{each['hours']:.2f}",
            f"{each['machine']}, {each['precision']}",
            f"{each['commit']}, {each['date']}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def classes_of(records: list[dict[str, Any]]) -> list[str]:
    """IoU of each class on test, in percent."""
    names = list(records[0]["test"]["iou"])
    lines = ["| IoU of test, % | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for each in sorted(records, key=lambda one: -one["test"]["mean_iou"]):
        values = (each["test"]["iou"][name] for name in names)
        told = (" -" if value is None else f"{100 * value:.1f}" for value in values)
        lines.append(f"| `{each['backbone']}` + `{each['head']}`, {each['weights'] or 'random'} | {' | '.join(told)} |")
    return lines


def tables(records: list[dict[str, Any]]) -> str:
    parts: list[str] = []
    for folder, title in TITLES.items():
        own = [each for each in records if Path(each["config"]).parent.name == folder]
        if not own:
            continue
        notes = [f"- `{Path(each['config']).stem}`: {each['note']}" for each in own if each.get("note")]
        parts += [f"### {title}", "", *rows_of(own), "", *classes_of(own), "", *notes, *([""] if notes else [])]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    add = parts.add_parser("add")
    add.add_argument("run", type=Path)
    add.add_argument("--config", type=Path, required=True)
    add.add_argument("--commit", required=True, help="of the code that trained")
    add.add_argument("--evaluation", nargs=2, action="append", default=[], metavar=("FILE", "HOW"))
    add.add_argument("--note")
    parts.add_parser("write")
    parsed = parser.parse_args(arguments)
    if parsed.part == "add":
        record = record_of(parsed.run, parsed.config, parsed.commit)
        others = [(json.loads(Path(file).read_text(encoding="utf-8")), how) for file, how in parsed.evaluation]
        record["others"] = [{"how": how, "mean_iou": found["mean_iou"]} for found, how in others]
        record["note"] = parsed.note
        RECORDS.mkdir(exist_ok=True)
        path = RECORDS / f"{parsed.config.parent.name}_{parsed.config.stem}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(path)
        return
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not begin:
        raise SystemExit(f"{PAGE}: has no line {BEGIN}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(records)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
