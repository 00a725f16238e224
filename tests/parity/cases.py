"""Which networks are compared with which, library by library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from references import Case, as_map, channels_first, concatenated, rectified, rows

from classyseg.registry import MODELS

LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")
REGNET = ("stem", *(f"trunk_output.block{i}" for i in range(1, 5)))
ONE_SIZE = ((224, 224),)
STRIDES = "32 16 8"
VITS = {"vit_b_16": (16, 12), "vit_b_32": (32, 12), "vit_l_16": (16, 24), "vit_l_32": (32, 24), "vit_h_14": (14, 32)}
VITS |= {"vit_s_16": (16, 12), "vit_ti_16": (16, 12)}
"""The side of a patch and the number of layers."""


def transformers(library: str, names: Mapping[str, str], layer: str, norm: str, tokens: int = 1) -> list[Case]:
    """The networks whose maps come after each quarter of the layers, the last one after the `norm`."""
    cases = []
    for name, theirs in names.items():
        patch, depth = VITS[name]
        nodes = (*(layer.format(depth // 4 * i - 1) for i in (1, 2, 3)), norm)
        cases.append(Case(name, library, theirs, nodes, finish=as_map(224 // patch, tokens), sizes=ONE_SIZE))
    return cases


def numbered(form: str, *numbers: object) -> str:
    return " ".join(form.format(number) for number in numbers)


# -- torchvision -----------------------------------------------------------------------------------------------------

_torchvision = partial(rows, "torchvision")
_FLAT = ("features.1", "features.2", "features.3", "features.5", "features.7")
_DENSE = ("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5")
_OF_FOUR = ((96, 96), (100, 132))
"""Multiples of 4: torchvision's Swin drops what is left over, ours pads."""
_OTHER_REGNETS = {f"{name}_torchvision": name for name in ("regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf")}
_VITS = {name: name for name in list(VITS)[:5]}

TORCHVISION = [
    *_torchvision(numbered("resnet{}", 18, 34, 50, 101, 152), LAYERS),
    *(
        Case(
            "resnet50",
            "torchvision",
            "resnet50",
            LAYERS,
            {"output_stride": stride},
            {"replace_stride_with_dilation": stages},
        )
        for stride, stages in ((16, (False, False, True)), (8, (False, True, True)))
    ),
    *_torchvision("resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2", LAYERS),
    *_torchvision(numbered("densenet{}", 121, 161, 169, 201), _DENSE, finish=rectified("features.norm5")),
    *_torchvision(numbered("efficientnet_b{}", *range(8)), _FLAT),
    *_torchvision("efficientnet_v2_s", (*_FLAT[:4], "features.6")),
    *_torchvision("efficientnet_v2_m efficientnet_v2_l", _FLAT),
    *_torchvision("mobilenet_v2", [f"features.{i}" for i in (1, 3, 6, 13, 17)]),
    *_torchvision(
        {"mobilenet_v3_small_torchvision": "mobilenet_v3_small"}, [f"features.{i}" for i in (0, 1, 3, 8, 11)]
    ),
    *_torchvision(
        {"mobilenet_v3_large_torchvision": "mobilenet_v3_large"}, [f"features.{i}" for i in (1, 3, 6, 12, 15)]
    ),
    *_torchvision(numbered("regnet_x_{}", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf"), REGNET),
    *_torchvision(numbered("regnet_y_{}", "400mf", "1_6gf", "3_2gf", "16gf", "32gf", "128gf"), REGNET),
    *_torchvision(_OTHER_REGNETS, REGNET),
    *_torchvision(numbered("convnext_{}", "tiny", "small", "base", "large"), [f"features.{i}" for i in (1, 3, 5, 7)]),
    *_torchvision(
        numbered("swin_{}", "t", "s", "b", "v2_t", "v2_s", "v2_b"),
        ("features.1", "features.3", "features.5", "features.7", "norm"),
        finish=channels_first,
        sizes=_OF_FOUR,
    ),
    *transformers("torchvision", _VITS, "encoder.layers.encoder_layer_{}", "encoder.ln"),
]

# -- timm ------------------------------------------------------------------------------------------------------------

_timm = partial(rows, "timm")
_ACTIVATED = ("act1", *LAYERS[1:])
_STAGES = tuple(f"blocks.{i}" for i in (0, 1, 2, 4, 6))
_REGNET = ("stem", "s1", "s2", "s3", "s4")
_SWIN = (*(f"layers.{i}" for i in range(4)), "norm")
_SIZES = {"t": "tiny", "s": "small", "b": "base"}
_X = {"400mf": "004", "800mf": "008", "1_6gf": "016", "3_2gf": "032", "8gf": "080", "16gf": "160", "32gf": "320"}
_REGNETS = {f"regnet_{kind}_{ours}": f"regnet{kind}_{theirs}" for kind in "xy" for ours, theirs in _X.items()}
_REGNETS |= {"regnet_y_64gf": "regnety_640", "regnet_z_500mf": "regnetz_005", "regnet_z_4gf": "regnetz_040"}
_HRNETS = {"hrnet_w18_small_v1": "hrnet_w18_small", "hrnet_w18_small_v2": "hrnet_w18_small_v2"}
_HRNETS |= {f"hrnet_w{width}": f"hrnet_w{width}" for width in (18, 30, 32, 40, 44, 48, 64)}
_HYBRIDS = {"vit_small_r26_s32": (4, 7), "vit_base_r50_s16": (3, 14), "vit_large_r50_s32": (4, 7)}
"""The stages of the ResNet and the side of the tokens' map."""
_TIMM_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
_TIMM_VITS = {name: f"vit_{_TIMM_SIZES[name.split('_')[1]]}_patch{VITS[name][0]}_224" for name in VITS}
_DEFAULT_EPS = {"norm": {"eps": 1e-5}}

TIMM = [
    *_timm("resnet18 resnet34 resnet101 resnet152 resnext101_32x4d wide_resnet50_2", _ACTIVATED),
    *_timm("resnet50 resnext50_32x4d", _ACTIVATED, strides=STRIDES),
    *_timm(numbered("resnet{}s", 50, 101, 152), _ACTIVATED),
    *_timm(numbered("resnet{}d", 18, 34, 50, 101, 152), _ACTIVATED),
    *_timm({"resnet50": "seresnet50", "resnext50_32x4d": "seresnext50_32x4d"}, _ACTIVATED, config={"se_reduction": 16}),
    *_timm({"resnest50": "resnest50d"}, _ACTIVATED),
    *_timm({f"resnest{depth}": f"resnest{depth}e" for depth in (101, 200, 269)}, _ACTIVATED),
    *_timm(numbered("densenet{}", 121, 161, 169, 201), ("features.norm0", *_DENSE[1:])),
    *_timm(numbered("efficientnet_b{}", *range(5)), _STAGES, strides=STRIDES),
    *_timm(numbered("efficientnet_b{}", *range(5, 9)), _STAGES, config=_DEFAULT_EPS),
    *_timm({"efficientnet_v2_s": "efficientnetv2_s"}, (*_STAGES[:4], "blocks.5"), config=_DEFAULT_EPS),
    *_timm({f"efficientnet_v2_{size}": f"efficientnetv2_{size}" for size in "ml"}, _STAGES, config=_DEFAULT_EPS),
    *_timm({f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in range(3)}, _STAGES),
    *_timm({"mobilenet_v2": "mobilenetv2_100"}, _STAGES, strides=STRIDES),
    *_timm(_REGNETS, _REGNET),
    *_timm({"regnet_x_400mf": "regnetx_004"}, _REGNET, strides="16 8"),
    *_timm(numbered("convnext_{}", "tiny", "small", "base", "large"), [f"stages.{i}" for i in range(4)]),
    *_timm("convnext_tiny", [f"stages.{i}" for i in range(4)], strides="16"),
    *_timm({"xception41_deeplab": "xception41"}, ("blocks.0", "blocks.12"), strides=STRIDES),
    *_timm({"xception65_deeplab": "xception65"}, ("blocks.0", "blocks.20"), strides=STRIDES),
    *_timm({"xception71_deeplab": "xception71"}, ("blocks.0", "blocks.22"), strides="32 16"),
    *_timm(
        _HRNETS,
        ("stage4",),
        config={"padding": "symmetric", "fuse_upsample": "nearest"},
        finish=concatenated,
        sizes=((96, 96), (64, 128)),
    ),
    *_timm(
        {f"swin_{size}": f"swin_{theirs}_patch4_window7_224" for size, theirs in _SIZES.items()},
        _SWIN,
        finish=channels_first,
        sizes=ONE_SIZE,
    ),
    *_timm(
        {f"swin_v2_{size}": f"swinv2_{theirs}_window8_256" for size, theirs in _SIZES.items()},
        _SWIN,
        finish=channels_first,
        sizes=((256, 256),),
    ),
    *transformers("timm", _TIMM_VITS, "blocks.{}", "norm"),
    *(
        case
        for name, (stages, side) in _HYBRIDS.items()
        for case in _timm(
            {name: f"{name}_224"},
            (*(f"patch_embed.backbone.stages.{i}" for i in range(stages)), "norm"),
            finish=as_map(side),
            sizes=ONE_SIZE,
        )
    ),
]

# -- ClassyVision ----------------------------------------------------------------------------------------------------

_classyvision = partial(rows, "classyvision")
_RESNET = ("initial_block._module.2", *(f"blocks.{i}" for i in range(4)))
_SIZES_2D = ("400mf", "800mf", "1.6gf", "3.2gf", "8gf", "16gf", "32gf")
_KINDS = [*(f"x_{size}" for size in _SIZES_2D), *(f"y_{size}" for size in _SIZES_2D), "y_64gf", "y_128gf", "y_256gf"]
_KINDS += ["z_500mf", "z_4gf"]
_THREE_D = {
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
_CLIP = {"input_key": None, "input_planes": 3, "clip_crop_size": 64, "frames_per_clip": 8}
_ANYNET = {"depths": [2, 1], "widths": [16, 32], "group_widths": [8, 8], "strides": [2, 2]}
_ANYNET |= {"bottleneck_multipliers": [1.0, 1.0]}
_BLOCKS = {
    "vanilla_block": {"stem_type": "res_stem_cifar"},
    "res_basic_block": {"stem_type": "res_stem_in"},
    "res_bottleneck_block": {"use_se": False},
    "res_bottleneck_linear_block": {"activation": "silu"},
}
_CONV_STEM = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 48}
_CONV_STEM |= {"conv_stem_layers": [{"kernel": 3, "stride": 2, "out_channels": 8 * 2**i} for i in range(4)]}
_MLP = {"input_dim": 12, "output_dim": 5, "hidden_dims": [8, 6], "use_batchnorm": True, "first_batchnorm": True}


def _settings(name: str, *keys: str) -> dict[str, Any]:
    """What our registered name stands for, of these keys; with lists, which ClassyVision asks for."""
    options = MODELS.validate({"name": name}).options()
    return json.loads(json.dumps({key: options[key] for key in keys}))


def _three_d(name: str) -> list[Case]:
    ours = _settings(name, *_THREE_D)
    arguments = {_THREE_D[key]: value for key, value in ours.items()} | _CLIP
    nodes = ("stem", *(f"stages.{i}" for i in range(len(ours["depths"]))))
    return _classyvision({name: "resnext3d"}, nodes, arguments=arguments, sizes=((64, 64), (33, 49)))


def _efficientnet(name: str) -> list[Case]:
    depth = _settings(name, "depth")["depth"]
    last = {i: math.ceil(depth * count) - 1 for i, count in ((0, 1), (1, 2), (2, 2), (4, 3), (6, 1))}
    nodes = [f"blocks.block{stage}-{i}" for stage, i in last.items()]
    return _classyvision(name, nodes, config={"norm": {"eps": 1e-3}})


def _densenet(name: str, **both: bool) -> list[Case]:
    nodes = ("initial_block.2", *(f"features.block_{i}" for i in range(3)), "features.trunk_output")
    return _classyvision(
        {name: "densenet"}, nodes, arguments=_settings(name, "num_blocks", "init_planes", "growth_rate"), both=both
    )


CLASSYVISION = [
    *_three_d("resnext3d_18"),
    *_three_d("r2plus1d_18"),
    *_three_d("resnext3d_50"),
    *_three_d("resnext3d_50_image"),
    *_three_d("resnext3d_50_32x4d_preactivated"),
    *_classyvision({f"regnet_{kind.replace('.', '_')}": f"regnet_{kind}" for kind in _KINDS}, REGNET),
    *(
        case
        for block, more in _BLOCKS.items()
        for case in _classyvision("anynet", REGNET[:3], both={**_ANYNET, "block_type": block, **more})
    ),
    *_classyvision(numbered("resnet{}", 18, 34, 50, 101, 152), _RESNET),
    *_classyvision(numbered("resnext{}_32x4d", 50, 101, 152), _RESNET),
    *_classyvision("resnet18 resnet50", _RESNET, config={"se_reduction": 16}, arguments={"use_se": True}),
    *_classyvision("resnet18 resnet34", _RESNET, both={"small_input": True}),
    *(case for depth in (121, 161, 169, 201) for case in _densenet(f"densenet{depth}")),
    *_densenet("densenet121", use_se=True, final_bn_relu=False),
    *_densenet("densenet121", small_input=True),
    *(case for i in range(8) for case in _efficientnet(f"efficientnet_b{i}")),
    *transformers("classyvision", _VITS, "encoder.layers.layer_{}", "encoder.ln", tokens=0),
    *_classyvision(
        "vision_transformer",
        (*(f"encoder.layers.layer_{i}" for i in range(3)), "encoder.ln"),
        both={**_CONV_STEM, "classifier": "gap"},
        finish=as_map(4, tokens=0, num_others=0),
        sizes=((64, 64),),
    ),
    *_classyvision("mlp", ("mlp",), both=_MLP, finish=lambda _node, x: x[:, :, None, None]),
]

# -- PyTorch-Encoding ------------------------------------------------------------------------------------------------


def _encoding(module: str, names: str, nodes: tuple[str, ...] = LAYERS, strides: str = STRIDES) -> list[Case]:
    arguments = {"32": {}, "16": {"dilation": 2}, "8": {"dilated": True}}
    config = {"reference_eval": True} if module == "wideresnet" else {}
    return [
        Case(name, "pytorch_encoding", f"{module}.{name}", nodes, {"output_stride": int(s), **config}, arguments[s])
        for s in strides.split()
        for name in names.split()
    ]


PYTORCH_ENCODING = [
    *_encoding("resnet", numbered("resnet{}", 50, 101, 152)),
    *_encoding("resnet_variants", "resnet50s resnet101s resnet152s resnet50d"),
    *_encoding("resnext", "resnext50_32x4d resnext101_32x8d"),
    *_encoding("resnest", "resnest50 resnest101 resnest200 resnest269 resnest50_fast resnest101_fast"),
    *_encoding("wideresnet", "wideresnet38 wideresnet50", ("mod2", "mod3", "mod4", "mod5", "bn_out"), "32 8"),
    *rows(
        "pytorch_encoding",
        {"xception65": "xception.Xception65", "xception71": "xception.Xception71"},
        ("bn2", "block1", "block2", "midflow", "bn5"),
        strides=STRIDES,
        finish=rectified("bn2", "block1", "bn5"),
    ),
]

# -- PaddleSeg -------------------------------------------------------------------------------------------------------

_paddleseg = partial(rows, "paddleseg")
_VD50 = {"resnet50_vd": "resnet_vd.ResNet50_vd"}
_W18 = {"hrnet_w18": "hrnet.HRNet_W18"}
_SMALL = {f"hrnet_w18_small_v{i}": f"hrnet.HRNet_W18_Small_V{i}" for i in (1, 2)}
_SCALES = ("x0_35", "x0_5", "x0_75", "x1_0", "x1_25", "x1_0_os8")

PADDLESEG = [
    *_paddleseg(
        {f"resnet{depth}_vd": f"resnet_vd.ResNet{depth}_vd" for depth in (18, 34, 50, 101, 152, 200)}, strides=STRIDES
    ),
    *_paddleseg(_VD50, both={"multi_grid": (1, 2, 4)}, strides=STRIDES),
    *_paddleseg(_VD50, both={"multi_grid": (2, 4, 8)}, strides="32"),
    *_paddleseg(_SMALL | {f"hrnet_w{width}": f"hrnet.HRNet_W{width}" for width in (18, 30, 32, 40, 44, 48, 60, 64)}),
    *_paddleseg(_W18, both={"has_se": True}),
    *_paddleseg(_W18, both={"align_corners": True}),
    *_paddleseg(_W18, config={"padding": "symmetric"}, arguments={"padding_same": False}),
    *_paddleseg({f"mobilenet_v3_small_{scale}": f"mobilenetv3.MobileNetV3_small_{scale}" for scale in _SCALES}),
    *_paddleseg({f"mobilenet_v3_large_{scale}": f"mobilenetv3.MobileNetV3_large_{scale}" for scale in _SCALES}),
    *_paddleseg(
        {f"xception{depth}_deeplab": f"xception_deeplab.Xception{depth}_deeplab" for depth in (41, 65, 71)},
        config={"reference_strides": True},
        strides=STRIDES,
    ),
]

CASES: list[Case] = [*TORCHVISION, *TIMM, *CLASSYVISION, *PYTORCH_ENCODING, *PADDLESEG]
