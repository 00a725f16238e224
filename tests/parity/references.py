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
        module = models.get_model(their_name or name, **options.get("arguments", {}))
        return Reference(module, nodes, finish=options.get("finish", lambda node, x: x))

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

FLAT = ("features.1", "features.2", "features.3", "features.5", "features.7")
MOBILE = ("features.1", "features.3", "features.6", "features.13", "features.17")
REGNET = ("stem", *(f"trunk_output.block{i}" for i in range(1, 5)))
SWIN = ("features.1", "features.3", "features.5", "features.7", "norm")
PADDED = ((96, 96), (100, 132))
"""Multiples of 4: torchvision's Swin drops what is left over, ours pads."""
CONVNEXT = ("features.1", "features.3", "features.5", "features.7")
DENSENET = ("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5")


def channels_first(_node: str, x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def rectified_last(node: str, x: Tensor) -> Tensor:
    return x.relu() if node == "features.norm5" else x


def tokens_to_map(size: tuple[int, int], first: int = 1) -> Callable[[str, Tensor], Tensor]:
    def finish(_node: str, x: Tensor) -> Tensor:
        return x[:, first:].transpose(1, 2).unflatten(2, size)

    return finish


def vit_case(name: str, patch: int, depth: int) -> Case:
    def build() -> Reference:
        models = importlib.import_module("torchvision.models")
        quarter = depth // 4
        nodes = [f"encoder.layers.encoder_layer_{quarter * i - 1}" for i in (1, 2, 3)] + ["encoder.ln"]
        return Reference(models.get_model(name), nodes, finish=tokens_to_map((224 // patch, 224 // patch)))

    return Case(name, "torchvision", name, build, sizes=((224, 224),))


TORCHVISION += [
    *(torchvision_case(n, LAYERS) for n in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")),
    *(torchvision_case(n, LAYERS) for n in ("wide_resnet50_2", "wide_resnet101_2")),
    *(torchvision_case(f"densenet{n}", DENSENET, finish=rectified_last) for n in (121, 161, 169, 201)),
    *(torchvision_case(f"efficientnet_b{i}", FLAT) for i in range(8)),
    *(
        torchvision_case(f"efficientnet_v2_{size}", nodes)
        for size, nodes in (
            ("s", (*FLAT[:4], "features.6")),
            ("m", (*FLAT[:4], "features.7")),
            ("l", (*FLAT[:4], "features.7")),
        )
    ),
    torchvision_case("mobilenet_v2", MOBILE),
    torchvision_case("mobilenet_v3_small_tv", [f"features.{i}" for i in (0, 1, 3, 8, 11)], "mobilenet_v3_small"),
    torchvision_case("mobilenet_v3_large_tv", [f"features.{i}" for i in (1, 3, 6, 12, 15)], "mobilenet_v3_large"),
    *(
        torchvision_case(f"regnet_{kind}_{size}", REGNET)
        for kind, sizes in (
            ("x", ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
            ("y", ("400mf", "1_6gf", "3_2gf", "16gf", "32gf")),
        )
        for size in sizes
    ),
    *(
        torchvision_case(f"{name}_torchvision", REGNET, name)
        for name in ("regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf")
    ),
    *(torchvision_case(f"convnext_{size}", CONVNEXT) for size in ("tiny", "small", "base", "large")),
    *(torchvision_case(f"swin_{size}", SWIN, finish=channels_first, sizes=PADDED) for size in "tsb"),
    *(torchvision_case(f"swin_v2_{size}", SWIN, finish=channels_first, sizes=PADDED) for size in "tsb"),
    vit_case("vit_b_16", 16, 12),
    vit_case("vit_b_32", 32, 12),
    vit_case("vit_l_16", 16, 24),
    vit_case("vit_l_32", 32, 24),
]

# -- timm ------------------------------------------------------------------------------------------------------------

ACTIVATED = ("act1", "layer1", "layer2", "layer3", "layer4")


def timm_case(name: str, theirs: str, nodes: Sequence[str], **options: Any) -> Case:
    def build() -> Reference:
        timm = importlib.import_module("timm")
        return Reference(timm.create_model(theirs, **options.get("arguments", {})), nodes)

    return Case(name, "timm", theirs, build, options.get("config", {}), options.get("sizes"))


def timm_features_case(name: str, theirs: str, **options: Any) -> Case:
    def build() -> Listed:
        timm = importlib.import_module("timm")
        module = timm.create_model(theirs, features_only=True, **options.get("arguments", {}))
        return Listed(module, options.get("pick", list))

    return Case(name, "timm", theirs, build, options.get("config", {}), options.get("sizes"))


TIMM = [
    *(timm_case(f"resnet{n}s", f"resnet{n}s", ACTIVATED) for n in (50, 101, 152)),
    *(timm_case(f"resnet{n}d", f"resnet{n}d", ACTIVATED) for n in (18, 34, 50, 101, 152)),
    timm_case("resnest50", "resnest50d", ACTIVATED),
    timm_case("resnest101", "resnest101e", ACTIVATED),
    timm_case("resnest200", "resnest200e", ACTIVATED),
    timm_case("resnest269", "resnest269e", ACTIVATED),
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


def classyvision_case(name: str, theirs: str, nodes: Sequence[str], **options: Any) -> Case:
    def build() -> Reference:
        models = importlib.import_module("classy_vision.models")
        module = models.build_model({"name": theirs, **options.get("arguments", {})})
        return Reference(module, nodes, finish=options.get("finish", lambda node, x: x))

    return Case(name, "classyvision", theirs, build, options.get("config", {}), options.get("sizes"))


CV_BLOCKS = tuple(f"blocks.{i}" for i in range(4))
CLASSYVISION = [
    *(resnext3d_case(name) for name in RESNEXT3D),
    *(
        classyvision_case(f"regnet_{kind}_{size.replace('.', '_')}", f"regnet_{kind}_{size}", REGNET)
        for kind, sizes in (
            ("x", ("400mf", "800mf", "1.6gf", "3.2gf", "8gf", "16gf", "32gf")),
            ("y", ("400mf", "800mf", "1.6gf", "3.2gf", "8gf", "16gf", "32gf")),
            ("z", ("500mf", "4gf")),
        )
        for size in sizes
    ),
]

CASES: list[Case] = [*TORCHVISION, *TIMM, *CLASSYVISION]
