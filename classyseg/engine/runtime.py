"""Where and how a task computes: devices, precision, workers."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from classyseg.config import Bool, ConfigRecord, Float, Int, Text
from classyseg.distributed import world_size
from classyseg.engine.non_finite import NonFinitePolicy
from classyseg.errors import ConfigError, within
from classyseg.foreign import instead_of_key
from classyseg.inference.device import torch_device
from classyseg.inference.network import Precision

AUTO_KEYS = ("precision", "channels_last", "threads", "workers")
"""The keys that may be `auto`: a few steps on this machine choose their values when a run starts."""


class RuntimeConfig(ConfigRecord):
    """What belongs to the machine, not to the experiment.

    `precision` changes the numbers of a run. With batch norm, `sync_batch_norm` in several processes and
    `accumulate_steps` change them, too; `accumulate_steps` also changes what dropout draws. `device`, `compile`,
    `strategy`, `channels_last`, `threads`, `deterministic` and `eval_batch_size` change the order of sums, so at most
    the last bits; but dropout draws otherwise on another `device`, and with another `channels_last`. `workers` changes
    nothing.

    Args:
        device: `auto` (this machine's accelerator, else the CPU), `cpu`, `cuda` (GPUs of NVIDIA and AMD), `mps`
            (Apple), `xpu` (Intel), or one by its number: `cuda:1`. Under `torchrun` each process takes its own. With
            `mps`, losses are computed on the host, as they need 64 bits, and only one process can train.
        precision: `float32`, or autocast to `bfloat16` or `float16` (the latter with loss scaling). Weights stay
            float32. `auto`: on a CPU, `bfloat16` where a few steps at the start show that it is faster there and gives
            the same loss; on a GPU of NVIDIA, where the GPU has it, which is not measured; else `float32`. The log and
            the run's `config.yaml` tell what was chosen; a resumed run keeps it.
        compile: `torch.compile` the network. For training it is compiled for the size of the images. For
            measuring it is compiled with free sizes, so that images of many sizes share a form or two.
        channels_last: Memory format of images and weights; faster for most convolutions. `auto`: on a CPU, `false`
            where a few steps at the start show that it is faster; else `true`.
        workers: Processes that load data, for each training process; 0 loads in the training process. The samples do
            not depend on it. `auto`: as many as the time to load a sample needs, compared to that of a step.
        worker_timeout: How many seconds a worker may spend on one sample. Then the run ends, and names the sample.
            `null` waits for ever.
        strategy: What several processes share. `ddp`: each has the whole model, and they share images alone. `fsdp`:
            each also keeps only its part of the weights that train, of their gradients and of the optimizer's state,
            and gets the others' when they are needed: for models that do not fit otherwise. Checkpoints are the same.
        accumulate_steps: Splits each process's batch into so many parts, whose gradients are added, to save memory. The
            loss is divided by what counts in the whole batch, so that only batch norm and what dropout (or
            `point_rend`) draws differ. For `ohem_cross_entropy` and `point_cross_entropy`, which must see the outputs
            of all parts at once, a step takes one more forward pass.
        eval_batch_size: Images measured at once in each process. 1 takes images of different sizes, and computes every
            image alone, so that the counts are the same on any number of processes.
        sync_batch_norm: With several processes, on GPUs or CPUs, batch norm uses the statistics of the job's whole
            batch, and not those of each process's share: the numbers of one process.
        deterministic: `torch.use_deterministic_algorithms`: repeatable bits on a GPU, at some cost.
        threads: torch's number of CPU threads; null leaves torch's choice. `auto`: on a CPU, the number that is
            measured to be fastest: one, a half of the cores, or all.
        non_finite: What happens after a training step whose loss or a gradient is not finite (NaN or infinite), in any
            process. Nothing is learnt from such a step, and `non_finite.jsonl` in the run's folder lists it with the
            samples of its batch. `stop` ends the run with exit code 3; nothing is saved after the step. `skip_step`
            goes on with the next batch. `rollback` goes back to the newest checkpoint (before the first one, to the
            start), and from then on takes other samples in place of those of the batch. On a GPU a step is looked at
            when the loss is logged, at the end of a phase and before a checkpoint is saved, so that no step waits.
        non_finite_limit: After so many skipped steps in a row, or so many rollbacks of the run, the run ends as with
            `stop`. null: 10 steps, 3 rollbacks.
        cache_features: A folder in which the features of a frozen backbone (`model.frozen: true`) are kept, so that
            later epochs and runs read them instead of computing them. Two hashes find them: one of the image after its
            transforms, one of the weights, the model's config, the normalisation and the precision. So nothing old is
            ever read. Random transforms make the cache useless (flips double it); a warning says so after the second
            epoch. The log tells after each phase how many images were read. With a full disk or a damaged file,
            features are computed. Nothing is removed; delete the folder when done.
        cache_gigabytes: What all files in that folder may hold together, whatever processes and runs write them; beyond
            it, features are computed each time.
    """

    free_on_resume: ClassVar[tuple[str, ...]] = (
        "workers",
        "worker_timeout",
        "device",
        "compile",
        "strategy",
        "channels_last",
        "eval_batch_size",
        "deterministic",
        "threads",
        "non_finite",
        "non_finite_limit",
        "cache_features",
        "cache_gigabytes",
    )
    """The keys that may change when a run is resumed: they leave its numbers as they are."""

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return instead_of_key("runtime", key, cls.model_fields)

    device: Annotated[Text, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = "auto"
    precision: Precision | Literal["auto"] = "float32"
    compile: Bool = False
    channels_last: Bool | Literal["auto"] = True
    workers: Annotated[Int, Field(ge=0, le=256)] | Literal["auto"] = 2
    worker_timeout: Annotated[Float, Field(gt=0, le=1e9)] | None = 600.0
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate_steps: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    eval_batch_size: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    sync_batch_norm: Bool = True
    deterministic: Bool = False
    threads: Annotated[Int, Field(ge=1, le=1024)] | Literal["auto"] | None = None
    non_finite: NonFinitePolicy = "stop"
    non_finite_limit: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    cache_features: Annotated[Text, Field(min_length=1)] | None = None
    cache_gigabytes: Annotated[Float, Field(gt=0, le=1e9)] = 50.0

    @property
    def takes_channels_last(self) -> bool:
        """The layout until something else is chosen, too."""
        return self.channels_last is not False

    @property
    def left_to_machine(self) -> tuple[str, ...]:
        """The keys whose values are not chosen yet."""
        return tuple(key for key in AUTO_KEYS if getattr(self, key) == "auto")

    def torch_device(self) -> torch.device:
        """This process's device. Raises: `ConfigError` for a GPU that is not there."""
        with within("runtime"):
            device = torch_device(self.device)
            if device.type == "mps" and self.precision == "float16":
                raise ConfigError(
                    "precision", "found float16, whose loss scaling needs 64 bits, which mps has not; take bfloat16"
                )
        return device

    def loading(self, device: torch.device) -> dict[str, Any]:
        """The options of `make_loader` for batches that go to `device`."""
        on_gpu = device.type in ("cuda", "xpu")
        return {"workers": self.workers, "worker_timeout": self.worker_timeout, "pin_memory": on_gpu}

    def apply(self) -> None:
        """Sets the process-wide switches of torch."""
        if isinstance(self.threads, int):
            torch.set_num_threads(self.threads)
        if self.deterministic:
            # cuBLAS is repeatable only with a fixed workspace; torch raises an error without this variable.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


def check_batch_size(batch_size: int, accumulate_steps: int) -> None:
    """Raises: `ConfigError` when the job cannot share `batch_size` evenly; it names the nearest sizes that fit."""
    parts = world_size() * accumulate_steps
    if batch_size % parts:
        low = batch_size // parts * parts
        near = f"{low} or {low + parts}" if low else str(parts)
        raise ConfigError(
            "batch_size",
            f"found {batch_size}, which {world_size()} processes x {accumulate_steps} accumulation steps "
            f"cannot share evenly; the nearest sizes are {near}",
        )
