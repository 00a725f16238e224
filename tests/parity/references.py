"""How each library builds the networks that ours are compared with, and where their blocks come out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Sizes = tuple[tuple[int, int], ...]


class Reference:
    """A torch module of another library; `nodes` are the submodules whose first outputs are the blocks."""

    def __init__(
        self,
        module: nn.Module,
        nodes: Sequence[str],
        *,
        finish: Callable[[str, Tensor], Tensor] = lambda node, x: x,
        run: Callable[[nn.Module, Tensor], Any] = lambda module, image: module(image),
    ) -> None:
        from compare import randomise

        self.module = module.eval()
        randomise(module)
        self.module.double()
        self.nodes = nodes
        self.finish = finish
        self.run = run

    def state(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()

    def blocks(self, image: Tensor) -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def keep(node: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                value = output[0] if isinstance(output, list | tuple) else output
                found.setdefault(node, value.clone())

            return hook

        handles = [self.module.get_submodule(node).register_forward_hook(keep(node)) for node in self.nodes]
        self.run(self.module, image)
        for handle in handles:
            handle.remove()
        return [self.finish(node, found[node]) for node in self.nodes]


class Listed:
    """A module that returns its blocks as a list."""

    def __init__(self, module: nn.Module, pick: Callable[[Any], Sequence[Tensor]] = lambda output: output) -> None:
        from compare import randomise

        self.module = module.eval()
        randomise(module)
        self.module.double()
        self.pick = pick

    def state(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()

    def blocks(self, image: Tensor) -> list[Tensor]:
        return list(self.pick(self.module(image)))


@dataclass(frozen=True)
class Case:
    name: str
    library: str
    reference: str
    build: Callable[[], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sizes | None = None

    @property
    def module(self) -> str:
        return {
            "classyvision": "classy_vision",
            "pytorch_encoding": "encoding",
            "paddleseg": "paddleseg",
        }.get(self.library, self.library)


# -- torchvision -----------------------------------------------------------------------------------------------------

LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")


def torchvision_case(name: str, nodes: Sequence[str], their_name: str | None = None, **options: Any) -> Case:
    def build() -> Reference:
        models = importlib.import_module("torchvision.models")
        return Reference(models.get_model(their_name or name, **options.get("arguments", {})), nodes)

    return Case(name, "torchvision", their_name or name, build, options.get("config", {}), options.get("sizes"))


TORCHVISION = [
    *(torchvision_case(name, LAYERS) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
    *(
        torchvision_case(
            "resnet50",
            LAYERS,
            arguments={"replace_stride_with_dilation": replaced},
            config={"output_stride": stride},
        )
        for stride, replaced in ((16, [False, False, True]), (8, [False, True, True]))
    ),
]

# -- ClassyVision ----------------------------------------------------------------------------------------------------

THREE_D = {
    "skip": "skip_transformation_type",
    "residual": "residual_transformation_type",
    "depths": "num_blocks",
    "stem": "stem_name",
    "stem_channels": "stem_planes",
    "stem_temporal_kernel": "stem_temporal_kernel",
    "stem_spatial_kernel": "stem_spatial_kernel",
    "stem_maxpool": "stem_maxpool",
    "stage_channels": "stage_planes",
    "temporal_kernels": "stage_temporal_kernel_basis",
    "temporal_conv_1x1": "temporal_conv_1x1",
    "temporal_strides": "stage_temporal_stride",
    "spatial_strides": "stage_spatial_stride",
    "groups": "num_groups",
    "width_per_group": "width_per_group",
}
"""Our keys of ResNeXt3D and ClassyVision's."""


def resnext3d_case(name: str) -> Case:
    def build() -> Reference:
        models = importlib.import_module("classy_vision.models")
        registry = importlib.import_module("classyseg.registry")
        options = registry.MODELS.validate({"name": name}).options()
        lists = {
            k: [list(x) if isinstance(x, tuple) else x for x in v] for k, v in options.items() if isinstance(v, tuple)
        }
        config = {theirs: lists.get(ours, options[ours]) for ours, theirs in THREE_D.items()}
        config |= {
            "name": "resnext3d",
            "input_key": None,
            "input_planes": 3,
            "clip_crop_size": 64,
            "frames_per_clip": 8,
        }
        module = models.build_model(config)
        return Reference(module, ["stem", *(f"stages.{i}" for i in range(len(options["depths"])))])

    return Case(name, "classyvision", "resnext3d", build, sizes=((64, 64), (33, 49)))


RESNEXT3D = ("resnext3d_18", "r2plus1d_18", "resnext3d_50", "resnext3d_50_image", "resnext3d_50_32x4d_preactivated")
CLASSYVISION = [*(resnext3d_case(name) for name in RESNEXT3D)]

CASES: list[Case] = [*TORCHVISION, *CLASSYVISION]
