"""`classyseg predict`: a trained model labels images, folders and videos."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classyseg.cli.arguments import A_MODEL, add_model_arguments, exit_code_of, positive, predictor_of
from classyseg.cli.output import complain, emit, in_columns, json_text, logging_lines
from classyseg.console import printable

if TYPE_CHECKING:
    from classyseg.cli.inputs import Input, Inputs, Plan
    from classyseg.cli.prediction import Job
    from classyseg.inference import Predictor
    from classyseg.inference.class_rule import ClassRule

SUMMARY = "predictions.json"
TABLE = "predictions.csv"
FAILED = 1
MAX_SHOWN = 20
"""The pixels of at most this many classes are printed; the summary file has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help=A_MODEL)
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="files, folders with all below them, patterns such as 'a/**/*.jpg'"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help=f"the folder for label maps, {SUMMARY} and, of classes, {TABLE}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--overlay", action="store_true", help="also write the image under the colours of its labels")
    parser.add_argument("--overlay-format", choices=("jpg", "png"), default="jpg", help="of overlays of images (jpg)")
    parser.add_argument("--alpha", type=_share, default=0.5, metavar="A", help="how much colours cover, 0 to 1 (0.5)")
    parser.add_argument("--scores", action="store_true", help="also write the probabilities of the classes, as .npy")
    parser.add_argument(
        "--scores-type", choices=("float32", "float16"), default="float32", help="of --scores (float32); float16: half"
    )
    parser.add_argument(
        "--topk", type=positive, metavar="K", help="so many classes of each whole image or video, by score (5)"
    )
    parser.add_argument(
        "--threshold",
        type=_share,
        metavar="T",
        help="the classes of at least this score, of a model of several classes (0.5)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images of one size at once (8; 1 on a CPU or with --max-memory)",
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text:.40}; 0 to 1 are accepted")
    return value


def run(arguments: argparse.Namespace) -> int:
    with logging_lines():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from classyseg.cli.inputs import as_videos, check_plans, find_inputs
    from classyseg.cli.prediction import Job
    from classyseg.cli.prediction_table import table
    from classyseg.config import user_path
    from classyseg.errors import ConfigError
    from classyseg.io import write_atomically
    from classyseg.run_folder import require_writable

    if not arguments.output:
        raise ConfigError("--output: found ''; name a folder")
    output = user_path(arguments.output)
    inputs = find_inputs(arguments.inputs, output)
    predictor = predictor_of(arguments)
    if arguments.batch_size is not None:
        predictor.batch_size = arguments.batch_size
    rule = _rule(arguments, predictor)
    if predictor.takes_clips:
        as_videos(inputs)
    plans = {given: _plan(given, output, arguments, predictor) for given in inputs.files}
    check_plans(plans, [output / SUMMARY, *([output / TABLE] if rule else [])], overwrite=arguments.overwrite)
    try:
        output.mkdir(parents=True, exist_ok=True)
        require_writable(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror})") from None
    job = Job(
        predictor,
        plans,
        alpha=arguments.alpha,
        scores=arguments.scores_type if arguments.scores else None,
        problems=inputs.problems,
        rule=rule,
    )
    started, is_complete, stopped = time.perf_counter(), False, 0
    try:
        job.run()
        is_complete = True
    except KeyboardInterrupt as error:
        stopped = exit_code_of(error)
        complain(f"stopped after {len(job.records)} of {len(plans)} files, which {output / SUMMARY} names")
    finally:  # also after a full disk, if this can still be written
        seconds = time.perf_counter() - started
        summary = _summary(arguments, job, inputs, seconds, is_complete=is_complete)
        write_atomically(output / SUMMARY, json_text(summary))
        if rule is not None:
            write_atomically(output / TABLE, table(summary["files"], rule))
    if not is_complete:
        return stopped
    emit("\n".join(_report(summary, output)))
    for failed in summary["failed"]:
        complain(f"{failed['file']}: {failed['reason']}")
    return FAILED if job.failures else 0


def _rule(arguments: argparse.Namespace, predictor: Predictor) -> ClassRule | None:
    """Which classes of whole images are told; None for a model that gives maps. Raises: `ConfigError`."""
    from classyseg.errors import ConfigError
    from classyseg.inference.class_rule import ClassRule

    gives_maps = predictor.network.gives_maps(predictor.head)
    if arguments.overlay and not gives_maps:
        raise ConfigError("--overlay: this model classifies whole images, which leaves nothing to draw; leave it out")
    for option, value in (("--topk", arguments.topk), ("--threshold", arguments.threshold)):
        if value is not None and gives_maps:
            raise ConfigError(f"{option}: this model gives a class for each pixel, not for each image; leave it out")
    if arguments.threshold is not None and not predictor.multi_label:
        raise ConfigError("--threshold: this model gives one class for each image; leave it out, or take --topk")
    return None if gives_maps else ClassRule.of(predictor, arguments.topk, arguments.threshold)


def _plan(given: Input, output: Path, arguments: argparse.Namespace, predictor: Predictor) -> Plan:
    """The output paths of an input.

    Labels and scores of a video are folders of frames, unless a model of clips scores the video itself. A class of a
    whole image has no map. Where pixels have several classes, the maps of each lie in a folder of its name.
    """
    from classyseg.cli.inputs import Plan
    from classyseg.cli.prediction_files import TIFF_SUFFIXES, class_folders, geo_tags
    from classyseg.errors import DataError
    from classyseg.inference.rasters import reads_in_bands

    gives_maps = predictor.network.gives_maps(predictor.head)
    folders = class_folders(predictor.classes) if gives_maps and predictor.multi_label else ()
    in_frames = given.is_video and not predictor.takes_clips
    place, stem = output / given.name.parent, given.name.name if given.is_frames else given.name.stem
    geo = geo_tags(given.path) if gives_maps and not given.is_video else {}
    try:
        in_bands = not given.is_video and reads_in_bands(predictor, given.path)
    except DataError:  # whoever reads its pixels says what is wrong
        in_bands = False
    if in_frames:
        labels, scores, form = place / stem, place / stem, "mp4"
    else:
        name = given.name if given.name.suffix.lower() in TIFF_SUFFIXES else given.name.with_suffix(".tif")
        labels = place / (name.name if geo or in_bands else f"{stem}.png")
        scores, form = place / f"{stem}.npy", arguments.overlay_format
    return Plan(
        labels=labels if gives_maps and not folders else None,
        flags=tuple(output / folder / labels.relative_to(output) for folder in folders),
        overlay=place / f"{stem}_overlay.{form}" if arguments.overlay and gives_maps else None,
        scores=scores if arguments.scores else None,
        geo=geo,
        in_frames=in_frames,
        in_bands=in_bands,
    )


def _summary(
    arguments: argparse.Namespace, job: Job, inputs: Inputs, seconds: float, *, is_complete: bool
) -> dict[str, Any]:
    """The content of `predictions.json`, with files in the order in which they were found."""
    predictor = job.predictor
    files = [{"file": str(given.path), **job.records[given.path]} for given in job.plans if given.path in job.records]
    pixels = {name: sum(record.get("pixels", {}).get(name, 0) for record in files) for name in predictor.classes}
    found = Counter(name for record in files for name in job.classes_of(record))
    of_images = {name: found[name] for name in predictor.classes}
    return {
        "run": arguments.model,
        "model": predictor.model_name,
        "protocol": predictor.protocol.config(),
        "precision": predictor.network.precision,
        "classes": list(predictor.classes),
        "computed_in_windows": predictor.budget.report(predictor.in_windows),
        "is_complete": is_complete,
        "files": files,
        "failed": [{"file": str(path), "reason": reason} for path, reason in sorted(job.failures.items())],
        "skipped": dict(sorted(inputs.skipped.items())),
        "totals": {
            "files": len(files),
            "failed": len(job.failures),
            "skipped": sum(inputs.skipped.values()),
            **({"pixels": pixels} if job.rule is None else {"images": of_images}),
            **({"all_pixels": job.all_pixels} if job.gives_flags else {}),
            "seconds": seconds,
        },
    }


def _report(summary: Mapping[str, Any], output: Path) -> Iterator[str]:
    totals = summary["totals"]
    counted = "images" if "images" in totals else "pixels"
    counts: Mapping[str, int] = totals[counted]
    total = sum(counts.values())
    if total:
        total = totals["files"] if counted == "images" else totals.get("all_pixels", total)
        most = sorted(enumerate(counts.items()), key=lambda item: -item[1][1])[:MAX_SHOWN]
        rows = [["", "class", counted, "share"]]
        rows += [[str(i), name, f"{count:,}", f"{count / total:.2%}"] for i, (name, count) in sorted(most)]
        yield from in_columns(rows, right=(0, 2, 3), names=1)
    if totals["skipped"]:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in summary["skipped"].items())
        yield f"skipped, as their names are not those of images: {kinds}"
    done, failed = totals["files"], totals["failed"]
    told = f", {failed} failed" if failed else ""
    yield f"{done} of {done + failed} files in {totals['seconds']:.1f} s{told}: {printable(str(output))}"
