"""Exports a trained model: traced, written, compared with the model, and only then kept."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from classyseg import __version__
from classyseg.config import user_path
from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.exporting.check import Case, cases, compare, noise, sizes_for
from classyseg.exporting.graph import Graph, Reference
from classyseg.exporting.int8 import (
    ANY_DIFFERENCE,
    MEASURED,
    NAME,
    Quantization,
    drop_of,
    format_of_int8,
    quantize,
    require_int8,
)
from classyseg.exporting.trace import plain, smallest_of, traced
from classyseg.inference.exported.contract import DiffersError, Format, RefusedError, Traced
from classyseg.inference.exported.facts import (
    INPUT_KINDS,
    OUTPUT_KINDS,
    Checked,
    ExportFacts,
    InputKind,
    OutputKind,
    facts_of,
)
from classyseg.inference.exported.formats import format_named
from classyseg.inference.load import files_of, load
from classyseg.io import fsync_folder
from classyseg.run_folder import kind_of

if TYPE_CHECKING:
    from classyseg.inference import Predictor

log = logging.getLogger(__name__)

TRACED = (128, 192)
"""The size of the images with which a model is traced."""
BATCH = 2
"""How many images it is traced with: one alone would become a constant."""
LARGEST = (1024, 1024)
"""The largest height and width of a format that plans memory for it, unless `largest` says another."""
SMALLEST_BOUND = (256, 320)
"""With a smaller one, there would be too few sizes to compare."""
SMALLEST_MOST = 80
"""Where a file differs at images that are smaller, it takes larger ones only."""
MOST = 2**31 - 1
"""The most images at once."""
GREY_LEVEL = 5e-3
"""The tolerance where a resize of bytes is computed in 32 bits: a few pixels differ by one grey level."""


@dataclass(frozen=True)
class Export:
    """A file that was kept, what it tells of itself, and how long it took to make and to compare it."""

    path: Path
    facts: ExportFacts
    seconds: float

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in files_of(self.path))


def export(
    model: str | Path | Predictor,
    *,
    format: str,
    output: str | Path,
    input_kind: InputKind = "image",
    output_kind: OutputKind = "labels",
    protocol: Any = None,
    batch: int | None = None,
    images: Iterable[Any] = (),
    measured: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    quantization: Quantization | None = None,
    **options: Any,
) -> Export:
    """Writes a model as a file for other programs: `export("runs/streets", format="onnx", output="streets.onnx")`.

    `model` is what `classyseg.load` takes, or a predictor. `input_kind` is what the file takes: an `image` of bytes as
    users have it, one that is `prepared` by the transforms of the training's validation, or one that is `normalized`,
    too. `output_kind` is what it gives: `labels` or `scores` at the image's own size, or the head's `logits`. The
    number of images, height and width are free; with `batch` the number is fixed. `images` are compared in addition to
    noise; `measured` are numbers that the file tells of. `tolerance` is the largest difference, as a share of the range
    of values. `quantization` is what the format `int8` needs. Further options are the format's own, such as `opset` of
    `onnx`, or `largest` (height, width) of `executorch`.

    The file is compared with the model before it gets its name; otherwise nothing is left. Where it differs at the
    smallest images alone, it takes larger ones, and a warning tells from where on.

    Raises: `ConfigError` for what cannot be exported, and why; for a file that is there; for a file that differs.
    """
    started = time.perf_counter()
    row, path = _row_of(format, output, quantization)
    _check_target(path, row, overwrite=overwrite)
    _check_kinds(input_kind, output_kind, row, options)
    _check_numbers(batch, tolerance)
    if row.bounded:
        batch, options = batch or 1, {"largest": LARGEST, **options}
        _check_largest(options["largest"])
    predictor = (
        load(model, device="cpu", precision="float32", protocol=protocol) if isinstance(model, str | Path) else model
    )
    _check_predictor(predictor, output_kind)
    result = _traced(
        predictor, row, _facts(predictor, row, input_kind, output_kind, batch, options, measured or {}), options
    )
    given = [_given(predictor, image, input_kind) for image in images]
    with _written(path, lambda: _check_target(path, row, overwrite=overwrite)) as temporary:
        row.write(result, temporary)
        rounds = not row.doubles and len(cast(Graph, result.module).steps) > 0 and result.facts.image_type == "uint8"
        limit = max(row.tolerance, GREY_LEVEL if rounds else 0) if tolerance is None else tolerance
        facts, each = _proven(temporary, row, result, predictor, given, limit)
        if quantization is not None:
            inputs = _fitting([_given(predictor, image, input_kind) for image in quantization.images], facts)
            quantize(row, temporary, inputs, facts.batch or 1)
            checks = _compared(temporary, row, facts, predictor, each, ANY_DIFFERENCE)
            facts = facts.model_copy(update={"precision": NAME, "checks": checks})
            row.annotate(result, temporary, facts.text())
            drop = drop_of(predictor, load(temporary, device="cpu"), quantization)
            facts = facts.model_copy(update={"measured": {**facts.measured, MEASURED: drop}})
        row.annotate(result, temporary, facts.text())
        if facts_of(row.read_text(temporary), temporary) != facts:
            raise ConfigError(f"--format {row.name}: the file does not hold what was written of it; this is a defect")
    return Export(path, facts, time.perf_counter() - started)


def _traced(predictor: Predictor, row: Format, facts: ExportFacts, options: Mapping[str, Any]) -> Traced:
    """The graph that gives what `facts` say. Its own facts also tell the multiple and the smallest size."""
    graph = Graph(predictor, facts.input_kind, facts.output_kind)
    if row.plain_layout:
        graph.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def example_of(multiple: int) -> Tensor:
        return noise(facts, facts.batch or BATCH, _example_size(multiple), seed=0)

    def sizes_of(multiple: int) -> list[tuple[int, int]]:
        return sizes_for(_example_size(multiple), facts.model_copy(update={"multiple": multiple}))[1:]

    program, example, multiple = traced(graph, example_of, sizes_of, facts.batch, facts.largest)
    facts = facts.model_copy(update={"multiple": multiple, "smallest": smallest_of(program)})
    return Traced(plain(program), graph, example, facts, options)


def _fitting(images: Sequence[Tensor], facts: ExportFacts) -> list[Tensor]:
    """The inputs that the file takes; how many it does not take is told. Raises: `ConfigError` for those of 16 bits."""
    wrong = next((image for image in images if str(image.dtype) != f"torch.{facts.image_type}"), None)
    if wrong is not None:
        raise ConfigError(
            f"--input-kind {facts.input_kind}: such a file takes {facts.image_type}, and the images to compare it with "
            f"are {str(wrong.dtype).removeprefix('torch.')}; take --input-kind normalized"
        )
    found = [image for image in images if _fits((image.shape[-2], image.shape[-1]), facts)]
    if len(found) < len(images):
        log.warning(
            "the file takes %d of the %d images to compare it with; others have another size than it takes",
            len(found),
            len(images),
        )
    return found


def _fits(size: tuple[int, int], facts: ExportFacts) -> bool:
    return all(
        low <= side <= high and side % facts.multiple == 0
        for side, low, high in zip(size, facts.smallest, facts.largest or size, strict=True)
    )


def _proven(
    path: Path, row: Format, result: Traced, predictor: Predictor, given: Sequence[Tensor], limit: float
) -> tuple[ExportFacts, list[Case]]:
    """The facts with the comparisons that the file at `path` has passed, and what it was compared on.

    A network may be unsteady on a few pixels: a norm of nearly equal values makes much of the last bits. Where a file
    differs at its smallest size, it takes larger images only: from twice the size on, until the comparison holds. It
    must still take all images of `given` that it took.

    Raises: `RefusedError`; `DiffersError`, also where it still differs at sides of `SMALLEST_MOST` pixels.
    """
    facts, traced_at = result.facts, (result.example.shape[-2], result.example.shape[-1])
    problem = None
    fitting = _fitting(given, facts)
    while True:
        each = [*cases(facts, traced_at, BATCH + 1, fitting)]
        try:
            checks = _compared(path, row, facts, predictor, each, limit)
            if facts.output_kind == "labels":
                checks = _with_scores(checks, path, row, result, predictor, each, limit)
        except DiffersError as error:
            low = sizes_for(traced_at, facts)[0]
            larger = facts.model_copy(update={"smallest": (2 * low[0], 2 * low[1])})
            loses_images = not all(_fits((image.shape[-2], image.shape[-1]), larger) for image in fitting)
            if error.size != low or max(larger.smallest) > SMALLEST_MOST or loses_images:
                raise
            problem, facts = problem or error, larger
            continue
        if problem is not None:
            log.warning("%s; so the file takes images from %d x %d on", problem, *facts.smallest)
        return facts.model_copy(update={"checks": checks}), each


def _compared(
    path: Path, row: Format, facts: ExportFacts, predictor: Predictor, each: Sequence[Case], limit: float
) -> tuple[Checked, ...]:
    """Compares the file at `path`, opened by its runtime, with the model. Raises: `RefusedError`; `DiffersError`."""
    try:
        run = row.open_file(path, facts, torch.device("cpu"))
    except ConfigError as error:  # the reader refuses what the graph has
        reason = str(error).removeprefix(f"{path}: ")
        raise RefusedError(f"--format {row.name}: {reason}") from None
    reference = Reference(predictor, facts.input_kind, facts.output_kind)
    return tuple(compare(run, reference, case, row, limit) for case in each)


def _with_scores(
    checks: Sequence[Checked],
    path: Path,
    row: Format,
    result: Traced,
    predictor: Predictor,
    each: Sequence[Case],
    limit: float,
) -> tuple[Checked, ...]:
    """`checks` of a file of labels, with the differences of the same model's scores in the same format.

    Labels alone hide a fault that changes none of them: a model may find one class in all noise.
    """
    facts = result.facts.model_copy(update={"output_kind": "scores", "output": "scores"})
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        row.write(_traced(predictor, row, facts, result.options), Path(folder) / path.name)
        found = _compared(Path(folder) / path.name, row, facts, predictor, each, limit)
    return tuple(mine.model_copy(update={"labels": own.labels}) for mine, own in zip(found, checks, strict=True))


def _row_of(format: str, output: str | Path, quantization: Quantization | None) -> tuple[Format, Path]:
    """The format, all of whose libraries and tools are there, and the path of the file."""
    if not isinstance(output, str | Path) or not str(output):
        raise ConfigError(f"--output: found {shown(output)}; name a file")
    path = user_path(output)
    if (format == NAME) != (quantization is not None):
        raise ConfigError("quantization", f"found {shown(quantization)} for --format {format}; int8 alone needs one")
    row = format_of_int8(path) if format == NAME else format_named(format, NAME)
    row.require()
    row.require_tools()
    if format == NAME:
        require_int8(row)
    return row, path


def _check_target(path: Path, row: Format, *, overwrite: bool) -> None:
    if not path.name.endswith(row.suffix) or path.name == row.suffix:
        raise ConfigError(f"--output {path}: a file of the format {row.name} has a name that ends in {row.suffix}")
    folder = next(each for each in path.parents if os.path.lexists(each))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "cannot be written to" if folder.is_dir() else f"is {kind_of(folder)}, no folder"
        raise ConfigError(f"--output {path}: {folder} {why}; name a file in another folder")
    for each in (path, *(path.with_suffix(end) for end in row.others)):
        if os.path.lexists(each) and kind_of(each) != "a file":
            raise ConfigError(f"--output {each}: found {kind_of(each)}; name a new file")
        if os.path.lexists(each) and not overwrite:
            raise ConfigError(f"--output {each}: is there already; name another one, or give --overwrite")


def _check_numbers(batch: int | None, tolerance: float | None) -> None:
    if batch is not None and not (_is_whole(batch) and 1 <= batch <= MOST):
        raise ConfigError("--batch", f"found {shown(batch)}; accepted are 1 to {MOST}")
    # NaN accepts nothing.
    if tolerance is not None and (not isinstance(tolerance, int | float) or not tolerance >= 0):
        raise ConfigError("tolerance", f"found {shown(tolerance)}; accepted are 0 and more")


def _check_largest(found: Any) -> None:
    is_size = isinstance(found, list | tuple) and len(found) == 2 and all(map(_is_whole, found))
    if not is_size or found[0] < SMALLEST_BOUND[0] or found[1] < SMALLEST_BOUND[1]:
        raise ConfigError(
            "--largest",
            f"found {shown(found)}; accepted is (height, width) from {SMALLEST_BOUND} on: the comparison "
            "needs so many sizes",
        )


def _is_whole(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def _check_kinds(input_kind: str, output_kind: str, row: Format, options: Mapping[str, Any]) -> None:
    for option, found, known in (
        ("--input-kind", input_kind, INPUT_KINDS),
        ("--output-kind", output_kind, OUTPUT_KINDS),
    ):
        if found not in known:
            raise ConfigError(option, f"found {shown(found)}; accepted are {', '.join(known)}")
    for name in options:
        if name not in row.options:
            accepted = ", ".join(f"--{each}" for each in row.options) or "none"
            raise ConfigError(f"--{name}", f"means nothing for --format {row.name}; its own options: {accepted}")


def _check_predictor(predictor: Predictor, output_kind: OutputKind) -> None:
    if predictor.model.takes_pixels or not any(True for _ in predictor.model.parameters()):
        raise ConfigError("export: found an exported file; export the run that it was made of")
    if predictor.model.training:
        raise ConfigError("export: the model is in training mode, in which it gives other numbers; call model.eval()")
    if predictor.network.precision != "float32":
        raise ConfigError(
            "precision",
            f"the predictor computes in {predictor.network.precision}; a file computes in float32, and is compared "
            'with its model: load it with precision="float32"',
        )
    name = predictor.protocol.config()["name"]
    if output_kind != "logits" and name != "whole":
        raise ConfigError(
            "protocol",
            f"the model was measured with {name}, and a file runs on whole images; accepted are --protocol whole, "
            "whose numbers are others, and --output-kind logits, which classyseg runs in windows",
        )


def _facts(
    predictor: Predictor,
    row: Format,
    input_kind: InputKind,
    output_kind: OutputKind,
    batch: int | None,
    options: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> ExportFacts:
    shape = predictor.model.input_shape(64, 64)
    clips = predictor.clips
    frames = None if len(shape) == 3 or clips is None else clips.frames
    is_float = input_kind == "normalized" or predictor.preparation.own_unit
    return ExportFacts(
        file_format=row.name,
        input_kind=input_kind,
        output_kind=output_kind,
        output=output_kind,
        head=predictor.head,
        whole_images=not predictor.network.gives_maps(predictor.head),
        channels=predictor.model.in_channels,
        frames=frames,
        image_type="float32" if is_float else "uint8",
        batch=batch,
        largest=options.get("largest"),
        classes=predictor.classes,
        palette=predictor.palette,
        ignore_index=predictor.ignore_index,
        multi_label=predictor.multi_label,
        clips=clips,
        normalize=predictor.normalize,
        preparation=predictor.preparation.config(),
        protocol=predictor.protocol.config(),
        options={key: value for key, value in options.items() if key != "largest"},
        measured=dict(measured),
        versions={"torch": str(torch.__version__), "classyseg": __version__},
    )


def _example_size(multiple: int) -> tuple[int, int]:
    return -(-TRACED[0] // multiple) * multiple, -(-TRACED[1] // multiple) * multiple


def _given(predictor: Predictor, image: Any, input_kind: InputKind) -> Tensor:
    """An image in any form, or a clip (C, T, H, W), as the file's input."""
    tensor = image if predictor.takes_clips else predictor.read(image)
    if input_kind == "image":
        return tensor
    whole = not predictor.network.gives_maps(predictor.head)
    prepared = predictor.preparation.apply(tensor, whole_images=whole).image
    return prepared if input_kind == "prepared" else predictor.normalized(prepared[None])[0]


@contextmanager
def _written(path: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Gives a path of that name in a new folder. At the end, what lies in there is moved to where `path` is.

    `check` is called before that once more: another export may have been faster. Without success nothing is left, no
    new folder either.
    """
    new = [each for each in path.parents if not os.path.lexists(each)]
    folder = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
        except OSError as error:
            raise ConfigError(f"--output {path}: cannot be written ({error.strerror})") from None
        yield folder / path.name
        found = sorted(folder.iterdir(), key=lambda each: each.name == path.name)  # the one that names others last
        for each in found:
            with open(each, "rb") as file:
                os.fsync(file.fileno())
        check()
        for each in found:
            os.replace(each, path.parent / each.name)
        fsync_folder(path.parent)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a folder with files stays
            for each in new:
                each.rmdir()
