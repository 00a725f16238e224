"""Classification of whole images: one class of each, or several."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from classyseg import distributed
from classyseg.config import MAX_SEED
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError
from classyseg.layers import NormalizeConfig
from classyseg.losses import ClassyLoss
from classyseg.problems import Problems
from classyseg.registry import (
    TASKS,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
)
from classyseg.structures import Sample
from classyseg.tasks.assembly import TaskSpec
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.data import DatasetsConfig
from classyseg.tasks.data_checks import Data
from classyseg.transforms.batch_mixing import BatchMixing, MixingConfig, check_shares


@TASKS.register("classification")
class ClassificationTask(ClassyTask):
    """Trains a model with a head for whole images on images with their classes, and measures it on others.

    An image has one class, or several where the data set is `multi_label`. The head is one for whole images, such as
    `linear`; the loss `cross_entropy` (with `label_smoothing`), for soft targets `soft_target_cross_entropy`, for
    several classes `binary_cross_entropy`. All keys but `mixing` are those of every task.

    Args:
        mixing: Mix-up and cut-mix of the images of each training batch; see key `mixing`. null: none.
        meters: Meters, computed on the validation and the test set.
    """

    whole_images = True

    def __init__(
        self,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
        num_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None,
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: DatasetsConfig,
        model: ModelConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig | None = None,
        mixing: MixingConfig | None = None,
        seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0,
        meters: tuple[MeterConfig, ...] = ("accuracy",),
        hooks: tuple[HookConfig, ...] = ("checkpoint", "progress_bar", "report"),
        normalize: NormalizeConfig | None = None,
        val_every_epochs: Annotated[int, Field(ge=1)] | None = None,
        val_every_steps: Annotated[int, Field(ge=1)] | None = None,
        protocol: ProtocolConfig = "whole",
        runtime: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        mixing = None if mixing is None else MixingConfig.model_validate(mixing)
        super().__init__(
            {"mixing": mixing},
            num_epochs=num_epochs,
            num_steps=num_steps,
            batch_size=batch_size,
            dataset=dataset,
            model=model,
            loss=loss,
            optimizer=optimizer,
            seed=seed,
            meters=meters,
            hooks=hooks,
            normalize=normalize,
            val_every_epochs=val_every_epochs,
            val_every_steps=val_every_steps,
            protocol=protocol,
            runtime=runtime,
        )
        classes, ignored = self.data.reference_set.classes, self.data.reference_set.ignore_index
        self.mixing = None if mixing is None else BatchMixing(mixing, len(classes), ignored)

    @classmethod
    def check_own(cls, spec: TaskSpec, data: Data, loss: ClassyLoss | None, problems: Problems) -> None:
        if spec.own["mixing"] is None or not spec.trains:
            return
        with problems.collected():
            check_shares(spec.batch_size, distributed.world_size())
        if loss is not None and not loss.takes_soft_targets:
            with problems.collected():
                raise ConfigError(
                    "mixing", "gives shares of classes, which the loss cannot take; use 'soft_target_cross_entropy'"
                )
        if spec.runtime.cache_features is not None:
            with problems.collected():
                raise ConfigError(
                    "mixing", "found together with runtime.cache_features; a mixed image has no features to keep"
                )

    def training_batch(self, batch: Sample) -> Sample:
        if self.mixing is None:
            return batch
        height, width = batch.image.shape[-2:]
        whole = self.mixing.draw(self.batch_size, (height, width), self.seed, self.progress.step)
        return self.mixing.mixed(batch, whole.part(distributed.rank(), distributed.world_size()))
