"""A trained model at work: any image to labels or scores at its own size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from classyseg.config import user_path
from classyseg.console import shown
from classyseg.datasets.files.clip_frames import ClipConfig
from classyseg.errors import ConfigError, DataError
from classyseg.inference.budget import Budget
from classyseg.inference.card import card_text, headed, placed_at, with_license
from classyseg.inference.classy_protocol import ClassyProtocol, Kind, Size, Wanted
from classyseg.inference.description import CLASSIFICATION, SEGMENTATION, Card, Description, architecture
from classyseg.inference.device import bring, torch_device
from classyseg.inference.memory import BudgetError, bytes_of
from classyseg.inference.model_folder import FILES, write_model_folder
from classyseg.inference.network import Network, Precision
from classyseg.inference.preparation import Preparation, Prepared
from classyseg.inference.rasters import label_bands
from classyseg.inference.video_clips import clips_for, clips_of_video
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.models import ClassyModel
from classyseg.pictures import display_colors, flag_colors
from classyseg.registry import PROTOCOLS, ComponentConfig
from classyseg.structures import default_palette
from classyseg.weights.hub import SCHEME, HubAddress, Uploaded, uploaded

Labels = npt.NDArray[Any]
DRAWN_AT_ONCE = 2**18
"""The most pixels of a band of an overlay."""
GPU_BATCH = 8
"""How many images of one size a GPU takes at once; a CPU gains nothing by more than one."""


class Predictor:
    """A model at work: labels and scores of images of any size.

    `classyseg.load(FOLDER)` gives one; it may also be built around any model with a head:
    `Predictor(model, classes=["road", "sky"])`. `normalize` is what the model was trained with, `preparation` the
    geometry of its validation, `protocol` a name, a config or a built protocol. `model_config` is what `save` writes of
    the model. `max_memory`, bytes or text such as `2G`, is how much an image may take in addition to the model. An
    image that takes more is an error where a `protocol` is named; with `may_use_windows`, by default where none is, it
    is computed in windows, none smaller than `train_size` (the images of the training). `in_windows` counts these.

    With `multi_label` an image has several classes, each with a score of its own. A model of clips predicts videos:
    the scores of the clips that `clips` tells are averaged; by default one clip from the beginning. A model that takes
    single frames, too, such as ResNeXt3D, predicts images unless `clips` is given.

    The attribute `batch_size` may be set: how many consecutive images of one size are predicted at once.

    What may be predicted: a path, the bytes of an image file, a PIL image, an array (H, W) or (H, W, C), a tensor
    (C, H, W); or an iterable of these, which gives an iterator. 16-bit images are scaled as 8-bit ones; grey is
    repeated, alpha left out. A video is a path of a file or of a folder of frames, or one clip: an array (T, H, W, C),
    a tensor (C, T, H, W).
    """

    readme = ""
    """The card of the folder that the model was loaded from."""

    def __init__(
        self,
        model: ClassyModel,
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] = (),
        ignore_index: int = 255,
        multi_label: bool = False,
        clips: ClipConfig | Mapping[str, Any] | None = None,
        normalize: NormalizeConfig | Mapping[str, Any] | None = None,
        preparation: Preparation | None = None,
        protocol: Any = None,
        may_use_windows: bool | None = None,
        train_size: Size | None = None,
        precision: Precision = "float32",
        device: str | torch.device = "auto",
        max_memory: int | str | None = None,
        channels_last: bool = True,
        model_config: Mapping[str, Any] | ComponentConfig | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.multi_label = multi_label
        self.clips = clips_for(model, clips)
        self.takes_clips = self.clips is not None
        self.preparation = preparation or Preparation(channels=model.in_channels)
        self.normalize = NormalizeConfig.model_validate({} if normalize is None else normalize)
        normalizer = ImageNormalizer(self.normalize, own_unit=self.preparation.own_unit)
        if len(normalizer.mean) != model.in_channels:
            raise ConfigError(
                "normalize",
                f"found {len(normalizer.mean)} means; the model takes {model.in_channels} channels: "
                "give it one mean and one std for each",
            )
        self.normalizer: nn.Module = nn.Identity() if model.takes_pixels else normalizer
        self.protocol: ClassyProtocol = PROTOCOLS.build("whole" if protocol is None else protocol)
        self.may_use_windows = protocol is None if may_use_windows is None else may_use_windows
        self.train_size = train_size
        self.in_windows: Counter[str] = Counter()
        self.device = torch_device(device)
        self.max_memory = None if max_memory is None else bytes_of(max_memory)
        self.batch_size = GPU_BATCH if self.device.type == "cuda" and self.max_memory is None else 1
        self.channels_last = channels_last
        self._model_config = model_config.resolved() if isinstance(model_config, ComponentConfig) else model_config
        self.model = model.eval()
        self.model.set_multi_label(multi_label)
        bring(self.model, self.device, channels_last=channels_last)
        self.normalizer.to(self.device)
        self.network = Network(
            self.model,
            precision=precision,
            black=None if model.takes_pixels else black_of(normalizer),
            channels_last=channels_last,
        )
        self.head = model.main_head
        self.palette = tuple((int(c[0]), int(c[1]), int(c[2])) for c in palette) or default_palette(
            len(self.classes), flags=multi_label and self.network.gives_maps(self.head)
        )
        self._check_classes()
        self.protocol.check(self.network, [Wanted(self.head)])

    def _check_classes(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ConfigError("palette", f"found {len(self.palette)} colours for {len(self.classes)} classes")
        if self.network.num_classes(self.head) != len(self.classes):
            raise ConfigError(
                "classes",
                f"found {len(self.classes)} names; the head '{self.head}' of the model has "
                f"{self.network.num_classes(self.head)} classes",
            )

    @classmethod
    def from_description(
        cls,
        model: ClassyModel,
        description: Description,
        *,
        precision: Precision | None = None,
        protocol: Any = None,
        channels_last: bool | None = None,
        **options: Any,
    ) -> Predictor:
        """A predictor of `model` with all that a file says about it. Raises: `ConfigError`."""
        return cls(
            model,
            classes=description.classes,
            palette=description.palette,
            ignore_index=description.ignore_index,
            multi_label=description.multi_label,
            clips=description.clips,
            normalize=description.normalize,
            preparation=Preparation.of(description.preparation, model.in_channels),
            protocol=description.protocol if protocol is None else protocol,
            may_use_windows=protocol is None,
            train_size=description.train_size,
            precision=precision or description.precision,
            channels_last=description.channels_last if channels_last is None else channels_last,
            model_config=description.model,
            **options,
        )

    # -- predicting ----------------------------------------------------------------------------------------------------

    def predict(self, images: Any) -> Any:
        """The class of each pixel, (H, W), at the image's own size, in the smallest unsigned type for them.

        A model for whole images gives one class, (). With `multi_label` it is whether the image, or the pixel, has each
        class, bool (num_classes,) or (num_classes, H, W): where the score is at least a half. An iterable of images
        gives an iterator.

        Raises: `DataError` for something that is no image, or none that the model takes; `BudgetError` where
        `max_memory` is too small.
        """
        return self._each(images, ("labels",), lambda found: self._labels(*found))

    def scores(self, images: Any) -> Any:
        """The probability of each class at each pixel, float32 (num_classes, H, W), at the image's own size.

        A model for whole images gives (num_classes,). An iterable of images gives an iterator.
        """
        return self._each(images, ("scores",), lambda found: _scores(*found))

    def labels_and_scores(self, images: Any) -> Any:
        """The results of `predict` and `scores`, as a pair, from one forward pass. An iterable gives an iterator."""
        return self._each(images, ("labels", "scores"), lambda found: (self._labels(found[0]), _scores(found[1])))

    def labels_of(self, scores: Labels) -> Labels:
        """The class that scores (num_classes,) of a whole image mean, as `predict` gives it."""
        found: Labels = scores >= 0.5 if self.multi_label else np.asarray(scores.argmax())
        return found if self.multi_label else found.astype(self._label_type)

    @property
    def _label_type(self) -> np.dtype[Any]:
        return np.min_scalar_type(max(0, len(self.classes) - 1))

    def _labels(self, labels: Tensor) -> Labels:
        return labels.cpu().numpy().astype(np.bool_ if self.multi_label else self._label_type)

    def label_bands(self, path: str | Path) -> Iterator[tuple[int, Labels]]:
        """The labels of an image file of any size, TIFF or `.npy`, in bands of rows: the first row, and (h, W).

        Neither the image nor its labels are ever held whole. See `inference.rasters.label_bands`.
        """
        for first, labels in label_bands(self, user_path(path)):
            yield first, self._labels(labels)

    def overlay(self, image: Any, alpha: float = 0.5, labels: Labels | None = None) -> Image.Image:
        """The image under the colours of its classes, at the strength `alpha`; `labels` may be predicted before.

        A pixel of several classes gets the mean of their colours, and one without a class stays as it is.
        Raises: `ConfigError` for a model that classifies whole images.
        """
        if not 0 <= alpha <= 1:
            raise ConfigError(f"overlay: alpha: found {shown(alpha)}; accepted are 0 to 1")
        if not self.network.gives_maps(self.head):
            raise ConfigError("overlay: this model classifies whole images, which leaves nothing to draw")
        tensor = self.read(image)
        found: npt.NDArray[Any] = self.predict(tensor) if labels is None else np.asarray(labels)
        if found.shape != (*found.shape[:-2], *tensor.shape[-2:]) or found.ndim != 2 + self.multi_label:
            size = tuple(tensor.shape[-2:])
            raise DataError(f"overlay: labels: found {found.shape}; the image is of {size} (height, width)")
        palette = np.array(self.palette, dtype=np.float32)
        height, width = found.shape[-2:]
        drawn = np.empty((height, width, 3), np.uint8)
        # In bands, as mixing takes 60 bytes a pixel. Numbers in a unit of their own are scaled by the whole image.
        step = height if tensor.is_floating_point() else max(1, DRAWN_AT_ONCE // width)
        for top in range(0, height, step):
            band = found[..., top : top + step, :]
            share: Any = alpha
            colors: npt.NDArray[Any]
            if self.multi_label:
                colors, share = flag_colors(band, self.palette), alpha * np.asarray(band.any(0))[..., None]
            else:
                colors = palette[np.minimum(band, len(palette) - 1)]
            mixed = (1 - share) * display_colors(tensor[:, top : top + step]) + share * colors
            drawn[top : top + step] = mixed.round().clip(0, 255)
        return Image.fromarray(drawn)

    def read(self, image: Any, *, max_pixels: int | None = None) -> Tensor:
        """An image in any form as the tensor (channels, H, W) that `predict` makes of it first.

        An image file of more than `max_pixels` is refused before its pixels are decoded.
        """
        return self.preparation.read(image, max_pixels=max_pixels)

    def _each(self, images: Any, kinds: Sequence[Kind], finish: Callable[[Sequence[Tensor]], Any]) -> Any:
        """Predicts each image, and gives `finish` of the results: one tensor for each of `kinds`."""
        if _is_one(images, 4 if self.takes_clips else 3):
            return next(self._iterate([images], kinds, finish))
        if not isinstance(images, Iterable):
            return self.read(images)  # which says what is accepted
        return self._iterate(images, kinds, finish)

    def _iterate(
        self, images: Iterable[Any], kinds: Sequence[Kind], finish: Callable[[Sequence[Tensor]], Any]
    ) -> Iterator[Any]:
        whole = not self.network.gives_maps(self.head)
        waiting: list[Prepared] = []
        for image in images:
            if self.takes_clips:
                yield finish(self._of_video(image, kinds))
                continue
            try:
                prepared = self.preparation.apply(self.read(image), whole_images=whole)
            except Exception:
                yield from self._finished(waiting, kinds, finish)  # what came before is not lost with it
                raise
            if waiting and (len(waiting) >= self.batch_size or not _alike(waiting[0], prepared)):
                yield from self._finished(waiting, kinds, finish)
                waiting = []
            waiting.append(prepared)
        yield from self._finished(waiting, kinds, finish)

    def _finished(
        self, prepared: Sequence[Prepared], kinds: Sequence[Kind], finish: Callable[[Sequence[Tensor]], Any]
    ) -> Iterator[Any]:
        if not prepared:
            return
        try:
            results = self._run(prepared, kinds)
        except BudgetError:
            if len(prepared) == 1:
                raise
            for image in prepared:  # one at a time, what is chosen is the same whatever came with it
                yield from self._finished([image], kinds, finish)
            return
        for image, *maps in zip(prepared, *results, strict=True):
            yield finish([image.cut(found) for found in maps])

    def _of_video(self, video: Any, kinds: Sequence[Kind]) -> list[Tensor]:
        """The results of a video, of the mean scores of its clips."""
        path = user_path(video) if isinstance(video, str | Path) else video
        total, count = torch.zeros(len(self.classes), dtype=torch.float64), 0
        clips = clips_of_video(path, self.clips or ClipConfig(frames=1), self.preparation)
        while some := [self.preparation.apply(clip, whole_images=True) for clip in islice(clips, self.batch_size)]:
            (scores,) = self._run(some, ("scores",))
            total, count = total + scores.cpu().double().sum(0), count + len(some)
        scores = (total / count).float()
        labels = (scores >= 0.5) if self.multi_label else scores.argmax()
        return [labels.long() if kind == "labels" else scores for kind in kinds]

    @torch.no_grad()
    def _run(self, prepared: Sequence[Prepared], kinds: Sequence[Kind]) -> list[Tensor]:
        """The results for images of one size, (N, ...), at their output size."""
        images = torch.stack([item.image for item in prepared])
        wanted = [Wanted(self.head, kind) for kind in kinds]
        size = prepared[0].output_size
        is_first = not self.in_windows
        with self.budget.chosen(self.protocol, self.network, images, size, wanted, self.in_windows) as (choice, left):
            found = choice.protocol(self.network, self.normalized(images), size, wanted, left)
        if is_first:
            self.budget.warn(self.in_windows, " so far")
        return [found[item] for item in wanted]

    @property
    def budget(self) -> Budget:
        return Budget(self.max_memory, self.may_use_windows, self.train_size)

    def windows_since(self, before: Counter[str]) -> dict[str, Any]:
        """The entry for an image that the budget cut into windows since `in_windows` was `before`: their size."""
        text = next(iter(self.in_windows - before), None)
        return {} if text is None else {"windows": json.loads(text)["size"]}

    def normalized(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as the network takes them, on its device."""
        images = images.to(self.device)
        if self.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        normalized: Tensor = self.normalizer(images)
        return normalized

    @property
    def model_name(self) -> str:
        """The registered name of the model, or of its class; of an exported file the file's."""
        named = getattr(self.model, "name", type(self.model).__name__) if self._model_config is None else None
        return str(named if self._model_config is None else self._model_config["name"])

    # -- saving --------------------------------------------------------------------------------------------------------

    def description(self) -> Description:
        """What `save` writes as `config.json`. Raises: `ConfigError` for parts that no config can describe."""
        if self.model.takes_pixels or not any(True for _ in self.model.parameters()):
            raise ConfigError(f"{self.model_name}: is an exported file, which is given away as it is: copy it")
        if self._model_config is None:
            raise ConfigError(
                "model_config",
                "missing; a model that Python code built can be saved when `Predictor` is told the "
                "config that makes it again: {'name': ..., 'heads': ...}",
            )
        return Description(
            model=architecture(self._model_config),
            classes=self.classes,
            palette=self.palette,
            ignore_index=self.ignore_index,
            multi_label=self.multi_label,
            clips=self.clips,
            normalize=self.normalize,
            preparation=self.preparation.config(),
            protocol=self.protocol.config(),
            train_size=self.train_size,
            precision=self.network.precision,
            channels_last=self.channels_last,
            versions={"torch": str(torch.__version__)},
        )

    def save(self, folder: str | Path, card: Card | None = None, *, license: str | None = None) -> Path:
        """Writes a folder that `classyseg.load` takes: `model.safetensors`, `config.json`, and `README.md`, a card.

        Without `card`, the README of the folder that the model was loaded from is kept. `license` is the name of the
        model's licence, such as `apache-2.0`; the card says so where none was given. An older model's folder is
        replaced. Any other folder that is not empty is refused.
        Raises: `ConfigError`; `OSError`.
        """
        readme = self._card_text(card, license)
        return write_model_folder(Path(folder), self.model.state_dict(), self.description(), readme)

    def push(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        token: str | None = None,
        card: Card | None = None,
        license: str | None = None,
        dry_run: bool = False,
    ) -> Uploaded:
        """Uploads what `save` writes to the hub: `owner/name`, or `owner/name@branch/folder`. Nothing else goes there.

        A repository or branch that is missing is made; `private` is of a new repository. `token` is by default that of
        `hf auth login`. With `dry_run`, nothing is sent. Returns what was, or would be. Raises: `ConfigError`.
        """
        address = HubAddress.of(repo if repo.startswith(SCHEME) else SCHEME + repo)
        if revision is not None:
            if address.revision:
                raise ConfigError(f"push: found revision {shown(revision)}, and another one in {shown(repo)}; give one")
            address = replace(address, revision=revision)
        with TemporaryDirectory() as temporary:
            told = Card(task=self._kind, license=license or "")
            readme = placed_at(headed(self._card_text(card, license), self.description(), told), str(address))
            folder = write_model_folder(Path(temporary, "model"), self.model.state_dict(), self.description(), readme)
            files = {name: folder / name for name in FILES}
            return uploaded(files, address, private=private, message=message or "", token=token, dry_run=dry_run)

    @property
    def _kind(self) -> str:
        return SEGMENTATION if self.network.gives_maps(self.head) else CLASSIFICATION

    def _card_text(self, card: Card | None, license: str | None) -> str:
        if card is None and self.readme:
            return self.readme if license is None else with_license(self.readme, license)
        card = replace(card or Card(), task=self._kind)
        return card_text(self.description(), card if license is None else replace(card, license=license))


def black_of(normalizer: ImageNormalizer) -> Tensor:
    """A pixel of zeros after normalisation, one value a channel."""
    return -normalizer.mean * normalizer.scale


def _scores(scores: Tensor) -> npt.NDArray[np.float32]:
    return scores.float().cpu().numpy()


def _is_one(images: Any, num_axes: int) -> bool:
    """Whether `images` is a single image, or a single video, of up to so many axes."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim <= num_axes
    return isinstance(images, str | bytes | Path | Image.Image | Mapping)  # `read` refuses mappings


def _alike(first: Prepared, second: Prepared) -> bool:
    """Whether two images can go through the network together."""
    same = first.image.shape == second.image.shape and first.image.dtype == second.image.dtype
    return same and first.output_size == second.output_size
