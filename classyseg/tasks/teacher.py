"""A trained model that teaches: read from its folder, checked against the student's data, run without gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classyseg.config import ConfigTree
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.facts import DataFacts
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError, moving, within
from classyseg.heads.classy_head import LOGITS, outputs_of
from classyseg.inference import Network, Predictor, load
from classyseg.inference.description import Description
from classyseg.inference.device import bring
from classyseg.inference.load import described
from classyseg.inference.network import Precision, autocast
from classyseg.io import existing_path
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.models import ClassyModel, build_model
from classyseg.registry import MODELS
from classyseg.shapes import Shapes, bounded
from classyseg.structures import BlockInfo

WEIGHTS = "teacher.weights"
"""The key by which messages call it."""


def _precision(runtime: RuntimeConfig) -> Precision:
    """That of the student; float32 as long as it is not chosen."""
    return "float32" if runtime.precision == "auto" else runtime.precision


@dataclass
class Teacher:
    """A trained model, and what its folder tells of it; on the `meta` device where only a config is checked."""

    model: ClassyModel
    classes: tuple[str, ...]
    normalize: NormalizeConfig
    own_unit: bool
    source: str

    @classmethod
    def loaded(cls, source: str, runtime: RuntimeConfig) -> Teacher:
        """The teacher with its weights, on the CPU: see `place`. Raises: `ConfigError`."""
        with within(WEIGHTS):
            found: Predictor = load(source, device="cpu", precision=_precision(runtime))
        found.model.requires_grad_(False)
        own_unit = found.preparation.own_unit
        return cls(found.model.eval(), found.classes, found.normalize, own_unit, source)

    @classmethod
    def on_meta(cls, source: str) -> Teacher | None:
        """The teacher without weights, for a check of a config. None if the folder is not there yet."""
        with within(WEIGHTS):
            if not existing_path(source).exists():
                return None
            found: Description = described(source)
            config = MODELS.validate(ConfigTree(dict(found.model), source), placed=True)
            try:
                with torch.device("meta"), Shapes(), bounded():
                    model = build_model(config, len(found.classes), load=False)
            except (NotImplementedError, RuntimeError):  # a plugin's model may need values: the build looks at it
                return None
        return cls(model.eval(), found.classes, found.normalize, found.preparation.bits == 32, source)

    # -- what it must be ---------------------------------------------------------------------------------------------

    def check(self, facts: DataFacts, *, reads_logits: bool) -> None:
        """Checks that it can teach on data of these facts. Raises: `ConfigError` that names the first difference."""
        with within(WEIGHTS):
            if facts.classes is not None and facts.classes != self.classes:
                raise ConfigError(
                    f"{self.source}: its classes {shown(list(self.classes), MAX_NAME)} are not those of the data, "
                    f"{shown(list(facts.classes), MAX_NAME)}; accepted: a teacher of the same classes in the same order"
                )
            if facts.channels is not None and facts.channels != self.model.in_channels:
                raise ConfigError(
                    f"{self.source}: it takes images of {self.model.in_channels} channels; those of the data have "
                    f"{facts.channels}"
                )
            if facts.in_own_unit != self.own_unit:
                found, given = ("numbers", "other images") if self.own_unit else ("images scaled to 0..1", "numbers")
                raise ConfigError(
                    f"{self.source}: it takes {found}, and the data has {given} (`bits: 32`); accepted: a teacher that "
                    "was trained on data of the same bits"
                )
            if (len(self.model.input_shape(64, 64)) == 4) != facts.gives_clips:
                kinds = ("images", "clips")
                raise ConfigError(
                    f"{self.source}: it takes {kinds[not facts.gives_clips]}, and the data has "
                    f"{kinds[facts.gives_clips]}"
                )
            self._check_head(facts, reads_logits=reads_logits)

    def _check_head(self, facts: DataFacts, *, reads_logits: bool) -> None:
        head = self.model.main_head
        if not reads_logits:
            return
        if LOGITS not in self.model.head(head).output_names:
            raise ConfigError(
                f"{self.source}: its head '{head}' gives {', '.join(self.model.head(head).output_names)}; terms of "
                "classes need a teacher whose main head gives logits. Take features alone, with soft_targets: null"
            )
        if Network(self.model).gives_maps(head) == facts.whole_images:
            found, given = ("whole images", "a mask") if not facts.whole_images else ("pixels", "one class")
            raise ConfigError(f"{self.source}: it classifies {found}; the data has {given} for each image")

    def watch(self, names: Sequence[str], places: Sequence[str]) -> list[BlockInfo]:
        """The blocks of these names, which `outputs` gives from now on. Raises: `ConfigError` at their `places`."""
        blocks = []
        for name, place in zip(names, places, strict=True):
            with moving("blocks", place):
                blocks += self.model.watch(name)
        return blocks

    # -- at work -----------------------------------------------------------------------------------------------------

    def place(self, device: torch.device, runtime: RuntimeConfig, student: ImageNormalizer) -> None:
        """Brings it to the device. It will see images that the `student`'s normaliser made."""
        bring(self.model, device, channels_last=runtime.takes_channels_last)
        self._precision = _precision(runtime)
        own = ImageNormalizer(self.normalize, own_unit=self.own_unit).to(device)
        self._factor, self._shift = own.scale / student.scale, (student.mean - own.mean) * own.scale
        same = student.mean.shape == own.mean.shape and self._factor.eq(1).all() and self._shift.eq(0).all()
        self._is_same = bool(same)

    @torch.no_grad()
    def outputs(self, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The outputs of its main head, by the head's own names, and its features by block.

        `image` is a batch as the student gets it; where the teacher was trained with another mean and deviation, it is
        normalised anew.
        """
        if not self._is_same:
            shape = (-1, *[1] * (image.dim() - 2))
            image = image * self._factor.view(shape) + self._shift.view(shape)
        with autocast(image.device.type, self._precision):
            features = self.model.forward_features(image)
            outputs = self.model(features)
        return outputs_of(outputs, self.model.main_head), features

    def fingerprint(self) -> str:
        """A hash of its weights and normalisation: the same for the same teacher, wherever its folder lies."""
        digest = hashlib.sha256(f"{type(self.model).__name__} {self.normalize}".encode())
        for key, value in self.model.state_dict().items():
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
