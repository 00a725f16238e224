"""Whether the true classes are among the k most likely: of images, of clips' videos, of pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.layers import rank_at
from classyseg.meters.classy_meter import ClassyMeter, sum_of_job
from classyseg.registry import METERS

TopK = tuple[Annotated[int, Field(ge=1)], ...]
ClipsPerVideo = Annotated[int, Field(ge=1)]


class _TopKMeter(ClassyMeter):
    """Counts true classes among the first k of the logits; of equal logits the lower class comes first.

    Logits (N, C) of images go with a class of each (N,), or with a flag for each class (N, C), set where above 0.
    Logits of pixels (N, C, h, w) go with masks (N, H, W), and each valid pixel counts as a sample. Samples whose class
    is `ignore_index` are left out. A video is `clips_per_video` consecutive samples: their scores are averaged. It is
    left out if one of its clips is.
    """

    reads = "scores"
    takes_logits = True
    best_is = "largest"
    value_name: str

    def __init__(
        self, classes: Sequence[str], ignore_index: int, *, topk: TopK = (1,), head: str | None = None
    ) -> None:
        if not topk or max(topk) > len(classes):
            raise ConfigError(
                "topk", f"found {list(topk)}; accepted: numbers from 1 to {len(classes)}, the number of classes"
            )
        self.ignore_index = ignore_index
        self.topk = tuple(topk)
        self.head = head
        self.number_names = tuple(f"{self.value_name}_top_{k}" for k in self.topk)
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(len(self.topk) + 4, dtype=torch.int64)
        """Right ones for each k; then samples, true classes, videos with clips of different classes, wrong labels."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        target = target if target.is_floating_point() else target.long()
        mixed = torch.zeros((), dtype=torch.int64, device=target.device)
        if self.clips_per_video > 1:
            prediction, target, mixed = self._videos(prediction, target)
        ranks, true = _ranks(prediction, target, self.ignore_index)
        right = [self.right(true & (ranks < k)) for k in self.topk]
        samples = torch.full_like(mixed, len(ranks))
        wrong = ((target < 0) | (target >= prediction.shape[1])) & (target != self.ignore_index)
        num_wrong = torch.zeros_like(mixed) if _are_flags(prediction, target) else wrong.sum()
        counts = torch.stack([*right, samples, true.sum(), mixed, num_wrong])
        self.counts = self.counts.to(counts.device) + counts

    def compute(self) -> dict[str, Any]:
        *right, samples, true, mixed, wrong = sum_of_job(self.counts).tolist()
        if wrong:
            raise ValueError(f"{self.value_name}: {wrong} labels are no classes and not ignore_index")
        if mixed:
            raise ValueError(f"{self.value_name}: {mixed} videos have clips with different classes; all must be alike")
        of = [self.out_of(k, samples, true) for k in self.topk]
        return {name: n / m if m else None for name, n, m in zip(self.number_names or (), right, of, strict=True)}

    def right(self, found: Tensor) -> Tensor:
        """How much counts as right. `found` (samples, true classes) says which true classes are among the first."""
        return found.sum()

    @abstractmethod
    def out_of(self, k: int, samples: int, true: int) -> int:
        """The divisor of the right ones, from the numbers of samples and of true classes."""

    def _videos(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and targets of videos from those of their clips; how many videos have clips of different targets."""
        if len(prediction) % self.clips_per_video:
            raise ConfigError(
                self.value_name,
                f"found a batch of {len(prediction)} clips; accepted: whole videos, multiples of "
                f"clips_per_video: {self.clips_per_video} (see runtime.eval_batch_size)",
            )
        clips = target.unflatten(0, (-1, self.clips_per_video))
        valid = (clips != self.ignore_index).all(1)
        mixed = ((clips != clips[:, :1]) & valid[:, None]).flatten(1).any(1).sum()
        target = clips[:, 0].where(valid, self.ignore_index)
        return prediction.float().unflatten(0, (-1, self.clips_per_video)).mean(1), target, mixed


def _are_flags(logits: Tensor, target: Tensor) -> bool:
    return target.dim() == 2 and logits.dim() == 2


def _ranks(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The ranks of classes by each sample's logits, and which of them are true: both (samples, 1 or C).

    A true class whose logit is NaN comes last.
    """
    if _are_flags(logits, target):
        counted = (target != ignore_index).any(1)
        logits, target = logits[counted], target[counted]
        order = logits.argsort(dim=1, descending=True, stable=True)
        places = torch.empty_like(order).scatter_(
            1, order, torch.arange(logits.shape[1], device=order.device).expand_as(order)
        )
        return places.masked_fill_(logits.isnan(), logits.shape[1]), (target > 0) & (target != ignore_index)
    if target.dim() == 1:
        logits, target = logits[:, :, None, None], target[:, None, None]
    ranks = rank_at(logits, target)[target != ignore_index][:, None]
    return ranks, torch.ones_like(ranks, dtype=torch.bool)


@METERS.register("accuracy")
class AccuracyMeter(_TopKMeter):
    """`accuracy_top_K` for each k of `topk`: the share of samples with a true class among the k most likely.

    A sample is a valid pixel, or an image where the logits are of whole images, with one class or (by flags) several.
    Of equal logits the lower class comes first.

    Args:
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "accuracy"

    def right(self, found: Tensor) -> Tensor:
        return found.any(1).sum()

    def out_of(self, k: int, samples: int, true: int) -> int:
        return samples


@METERS.register("precision")
class PrecisionMeter(_TopKMeter):
    """`precision_top_K` for each k of `topk`: the share of true classes among the k most likely of all samples.

    The same as ClassyVision's `precision_at_k`.

    Args:
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "precision"

    def out_of(self, k: int, samples: int, true: int) -> int:
        return k * samples


@METERS.register("recall")
class RecallMeter(_TopKMeter):
    """`recall_top_K` for each k of `topk`: the share of all true classes that are among the k most likely.

    The same as ClassyVision's `recall_at_k`.

    Args:
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "recall"

    def out_of(self, k: int, samples: int, true: int) -> int:
        return true


class _VideoMeter(_TopKMeter):
    """The same of videos: the scores of the clips of one are averaged before they are measured."""

    takes_logits = False  # a mean of logits has another order than a mean of scores

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int,
        *,
        clips_per_video: ClipsPerVideo,
        topk: TopK = (1,),
        head: str | None = None,
    ) -> None:
        super().__init__(classes, ignore_index, topk=topk, head=head)
        self.clips_per_video = clips_per_video


@METERS.register("video_accuracy")
class VideoAccuracyMeter(_VideoMeter, AccuracyMeter):
    """`video_accuracy_top_K`: as `accuracy`, of the mean scores of `clips_per_video` samples that follow each other.

    Args:
        clips_per_video: So many samples that follow each other are one video; the scores of its clips are averaged.
            Batches of `val` (`runtime.eval_batch_size`) and the set itself must hold whole videos, a video one target.
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "video_accuracy"


@METERS.register("video_precision")
class VideoPrecisionMeter(_VideoMeter, PrecisionMeter):
    """`video_precision_top_K`: as `precision`, of the mean scores of a video's clips.

    Args:
        clips_per_video: So many samples that follow each other are one video; the scores of its clips are averaged.
            Batches of `val` (`runtime.eval_batch_size`) and the set itself must hold whole videos, a video one target.
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "video_precision"


@METERS.register("video_recall")
class VideoRecallMeter(_VideoMeter, RecallMeter):
    """`video_recall_top_K`: as `recall`, of the mean scores of a video's clips.

    Args:
        clips_per_video: So many samples that follow each other are one video; the scores of its clips are averaged.
            Batches of `val` (`runtime.eval_batch_size`) and the set itself must hold whole videos, a video one target.
        topk: The numbers k; none may be above the number of classes.
        head: The head whose predictions count.
    """

    value_name = "video_recall"
