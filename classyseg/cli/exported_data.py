"""A data set as an exported file measures it, where the file transforms images itself."""

from __future__ import annotations

import torch

from classyseg.datasets import ClassyDataset
from classyseg.errors import ConfigError
from classyseg.inference import Predictor, Preparation
from classyseg.inference.exported.model import ExportedModel
from classyseg.transforms import Resize
from classyseg.transforms.classy_transform import ClassyTransform


def batch_size_for(predictor: Predictor, batch_size: int) -> int:
    """How many images are measured at once: one, where a file takes them as they are stored, of different sizes.

    Clips have one size, and those of a video belong together.
    """
    model = predictor.model
    takes_stored = isinstance(model, ExportedModel) and model.facts.input_kind == "image" and not predictor.takes_clips
    return 1 if takes_stored else batch_size


def leave_to_file(dataset: ClassyDataset, predictor: Predictor) -> None:
    """Takes out of `dataset` the transforms that a file does itself and that leave the labels alone.

    Does nothing for other models.

    Raises: `ConfigError` where other transforms of the data set would be done twice.
    """
    model = predictor.model
    if not isinstance(model, ExportedModel) or model.facts.input_kind != "image" or not dataset.transforms:
        return
    inside = Preparation(model.facts.preparation.transforms, channels=model.facts.channels).transforms
    before = dataset.transforms
    if [type(step) for step in before] == [type(step) for step in inside]:
        dataset.transforms = [] if dataset.whole_images else [step for step in before if not _leaves_labels(step)]
    if dataset.transforms and not dataset.whole_images:
        _check_once(dataset, predictor)


def _leaves_labels(step: ClassyTransform) -> bool:
    return isinstance(step, Resize) and step.image_only


def _check_once(dataset: ClassyDataset, predictor: Predictor) -> None:
    """Raises: `ConfigError` where the file changes images that the data set has transformed already."""
    file = predictor.model
    if not isinstance(file, ExportedModel):
        return
    facts = file.facts
    steps = [
        step
        for step in Preparation(facts.preparation.transforms, channels=facts.channels).transforms
        if not _leaves_labels(step)
    ]
    image = dataset[0].image
    again = Preparation(steps, channels=facts.channels).apply(image, whole_images=False).image
    if again.shape != image.shape or not torch.equal(again, image):
        names = ", ".join(type(step).__name__ for step in dataset.transforms)
        raise ConfigError(
            "transforms",
            f"{file.name} transforms images itself, and those of the data set ({names}) would be transformed "
            "twice; write transforms=[] for it, which counts labels at their own size, or export with "
            "--input-kind prepared",
        )
