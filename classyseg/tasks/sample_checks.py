"""A short look at the data before the first step, and a warning about settings that gain nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from classyseg.datasets import ClassyDataset
from classyseg.doctor import Finding, check_data
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError, DataError
from classyseg.models import ClassyModel

log = logging.getLogger(__name__)

SHORT_LOOK = "a look at some samples; `classyseg data check CONFIG` looks at all"
NUM_SAMPLES = 8
"""How many samples of each data set are checked before the first step."""


class SampleCheckError(DataError):
    """What a short look at the samples found; the message says which command looks at all of them."""


def check_samples(data_sets: Mapping[str, ClassyDataset], without_labels: Collection[str] = ()) -> None:
    """Checks a few samples, as `classyseg data check` checks all. They are the same ones at every start.

    If these hold only one class and ignored pixels, more samples are read, up to the first with another class. Labels
    of the data sets `without_labels` are not looked at.

    Logs warnings that hold for every sample. Raises: `DataError` with all faults and how to mend them. Faults that
    `on_bad_sample` tolerates are left out: they are counted when they come.
    """
    places = {f"dataset.{name}": dataset for name, dataset in data_sets.items()}
    unread = {f"dataset.{name}" for name in without_labels}
    diagnosis = check_data(places, samples=NUM_SAMPLES, max_files=2, without_labels=unread)
    for summary in diagnosis.summaries:
        if summary.whole_images and not summary.dataset.whole_images:
            raise ConfigError(
                summary.name,
                f"{type(summary.dataset).__name__} gives classes of whole images, which its class does "
                "not say: set whole_images = True there, or inherit from ClassificationDataset",
            )
    faults = [
        finding
        for finding in diagnosis.faults
        if (places[_root(finding, places)].on_bad_sample == "error" or not finding.in_samples)
        and finding.kind != "one_class"  # a loss may allow it: see `check_min_classes`
        # Only a training set must have more than one class.
        and (finding.kind != "mapped_to_one" or _root(finding, places) == "dataset.train")
    ]
    if faults:
        text = "\n".join(line for finding in faults for line in finding.lines())
        raise SampleCheckError(f"the data is not as the config says ({SHORT_LOOK}):\n{text}")
    sizes = {summary.name: summary.num_samples for summary in diagnosis.summaries}
    found: Counter[tuple[str, str]] = Counter()
    for finding in diagnosis.findings:
        found[_root(finding, places), finding.kind] += finding.count
    for finding in diagnosis.findings:
        root = _root(finding, places)
        if found[root, finding.kind] == sizes[root]:
            log.warning("%s\n(%s)", "\n".join(finding.lines()), SHORT_LOOK)


def _root(finding: Finding, places: Iterable[str]) -> str:
    """The data set of the task to which a finding belongs; it may lie in a part of that data set."""
    return next(place for place in places if finding.place == place or finding.place.startswith(f"{place}."))


def warn_of_compression(model: ClassyModel, runtime: RuntimeConfig) -> None:
    """Warns of activations that are to be compressed to 16 bits, where autocast computes them in 16 bits already."""
    if model.activation_compression == "bfloat16" and runtime.precision in ("bfloat16", "float16"):
        log.warning(
            "model.activation_compression: bfloat16 saves little or nothing with runtime.precision: %s, as most "
            "activations have 16 bits already; int8 saves more",
            runtime.precision,
        )
