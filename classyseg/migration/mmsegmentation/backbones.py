"""mmsegmentation's backbones: their keys, and ours. What has no equivalent is noted by its path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from classyseg.console import shown
from classyseg.migration.notes import Section

DEPTHS = (18, 34, 50, 101, 152)
OUTPUT_STRIDES = {
    ((1, 2, 2, 2), (1, 1, 1, 1)): 32,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
}
MOBILE_STRIDES = {
    ((1, 2, 2, 2, 1, 2, 1), (1,) * 7): 32,
    ((1, 2, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2)): 16,
    ((1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)): 8,
}
PRETRAINED = "https://download.openmmlab.com/pretrain/third_party/"
PRETRAINED_FILES = {
    "open-mmlab://resnet18_v1c": f"{PRETRAINED}resnet18_v1c-b5776b93.pth",
    "open-mmlab://resnet50_v1c": f"{PRETRAINED}resnet50_v1c-2cccc1ad.pth",
    "open-mmlab://resnet101_v1c": f"{PRETRAINED}resnet101_v1c-e67eebb6.pth",
    "open-mmlab://resnest50": f"{PRETRAINED}resnest50_d2-7497a55b.pth",
    "open-mmlab://resnest101": f"{PRETRAINED}resnest101_d2-f3b931b2.pth",
    "open-mmlab://resnest200": f"{PRETRAINED}resnest200_d2-ca88e41f.pth",
    "open-mmlab://msra/hrnetv2_w18_small": f"{PRETRAINED}hrnetv2_w18_small-b5a04e21.pth",
    "open-mmlab://msra/hrnetv2_w18": f"{PRETRAINED}hrnetv2_w18-00eb2006.pth",
    "open-mmlab://msra/hrnetv2_w32": f"{PRETRAINED}hrnetv2_w32-dc9eeb4f.pth",
    "open-mmlab://msra/hrnetv2_w48": f"{PRETRAINED}hrnetv2_w48-d2186c55.pth",
    "mmcls://mobilenet_v2": (
        "https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/"
        "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth"
    ),
}
"""Where OpenMMLab keeps the weights that its configs name, as mmcv and mmcls list them."""


class Backbone(NamedTuple):
    """A model's config without heads, and the names of its blocks by mmsegmentation's `in_index`."""

    config: dict[str, Any]
    blocks: tuple[str, ...]
    family: str = ""


def backbone_config(model: Section) -> Backbone | None:
    """Our model for the backbone of `model`; None if there is none, which is noted."""
    section = model.section("backbone")
    kind = section.text("type").rpartition(".")[2]
    converted = _KINDS.get(kind)
    if converted is None:
        section.lost("type", f"there is no equivalent of the backbone {shown(kind)}; choose one of `classyseg models`")
        return None
    backbone = converted(section, kind)
    if backbone is None:
        return None
    weights = _weights(model, section)
    section.unused("pretrained", "init_cfg", "with_cp", "num_classes", "convert_weights")
    section.close()
    norm = backbone.config.pop("norm", {})
    config = {**backbone.config, **({"norm": norm} if norm else {}), **({"weights": weights} if weights else {})}
    return backbone._replace(config=config)


def norm_config(section: Section, key: str = "norm_cfg", *, eps: float = 1e-5) -> dict[str, Any]:
    """Our `norm` for `key`; empty for batch norm as it is by default. A note tells what has no equivalent."""
    norm = section.section(key)
    if not norm.values:
        return {}
    kind = norm.text("type", "BN")
    norm.expect("requires_grad", True, why="`model.frozen_norm` freezes norms of a backbone")
    found: dict[str, Any] = {}
    if kind == "GN":
        found = {"name": "group", "groups": norm.number("num_groups")}
    elif kind == "IN":
        found = {"name": "instance"}
    elif kind not in ("BN", "SyncBN", "BN2d", "MMSyncBN"):
        norm.lost("type", f"there is no equivalent of the norm {shown(kind)} here")
    if (value := norm.number("eps", eps)) != 1e-5:
        found |= {"eps": value}
    if (momentum := norm.number("momentum", 0.1)) != 0.1 and kind != "GN":
        found |= {"momentum": momentum}
    norm.close()
    return {"name": "batch", **found} if found else {}


def _weights(model: Section, section: Section) -> str | None:
    """Where the backbone's weights lie: a URL or a path."""
    start = section.section("init_cfg")
    source = start.text("checkpoint") if start.text("type") == "Pretrained" else ""
    source = source or section.text("pretrained") or model.text("pretrained")
    if not source:
        return None
    if source.startswith("torchvision://"):
        return "imagenet1k_v1"
    if "://" in source and not source.startswith(("http://", "https://", "file://")):
        if source not in PRETRAINED_FILES:
            model.lost("pretrained", f"the address of {shown(source)} is not known here; write a path or a URL")
        return PRETRAINED_FILES.get(source)
    return source


def _output_stride(section: Section, known: dict[Any, int], count: int) -> int:
    strides = tuple(section.numbers("strides", list(next(iter(known))[0])))
    dilations = tuple(section.numbers("dilations", [1] * count))
    stride = known.get((strides, dilations))
    if stride is None:
        accepted = ", ".join(f"strides {list(s)} with dilations {list(d)}" for s, d in known)
        section.lost(
            "dilations", f"found strides {list(strides)} and dilations {list(dilations)}; accepted: {accepted}"
        )
    return stride or 32


def _resnet(section: Section, kind: str) -> Backbone | None:
    depth = section.number("depth", 50)
    base = {"ResNeXt": "resnext", "ResNeSt": "resnest"}.get(kind, "resnet")
    name = f"{base}{depth}"
    config: dict[str, Any] = {}
    if kind == "ResNeXt":
        groups, width = section.number("groups", 1), section.number("base_width", 4)
        name = f"resnext{depth}_{groups}x{width}d"
        if name not in ("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"):
            name, config = f"resnet{depth}", {"groups": groups, "width_per_group": width}
    elif kind == "ResNeSt":
        section.expect("radix", 2)
        section.expect("reduction_factor", 4)
        section.expect("avg_down_stride", False, True)
        stem = section.number("stem_channels", 64)
        config = {"stem_width": stem // 2} if stem != {50: 64}.get(depth, 128) else {}
    elif depth not in DEPTHS:
        section.lost("depth", f"found {shown(depth)}; accepted: {', '.join(map(str, DEPTHS))}")
        return None
    if kind != "ResNeSt" and section.take("deep_stem", kind in ("ResNetV1c", "ResNetV1d")):
        config |= {"deep_stem": True, "stem_width": section.number("stem_channels", 64) // 2}
    if kind != "ResNeSt" and section.take("avg_down", kind == "ResNetV1d"):
        config["avg_down"] = True
    section.unused("deep_stem", "avg_down", "stem_channels", "radix", "reduction_factor", "avg_down_stride")
    section.unused("groups", "base_width")
    section.expect("num_stages", 4)
    section.expect("out_indices", [0, 1, 2, 3])
    section.expect("base_channels", 64)
    section.expect("style", "pytorch", why="`caffe` strides in the first convolution of a block")
    stride = _output_stride(section, OUTPUT_STRIDES, 4)
    if stride != 32:
        config["output_stride"] = stride
        section.expect("contract_dilation", True, why="the first block of a dilated stage keeps the dilation before it")
        if depth in (18, 34):
            config["dilate_second"] = False
    section.unused("contract_dilation")
    section.expect("multi_grid", None, why="its numbers are dilations in mmsegmentation, and factors here")
    section.expect("dcn", None)
    section.expect("plugins", None)
    section.expect("conv_cfg", None)
    if section.take("zero_init_residual", True) and kind != "ResNeSt":
        config["last_gamma"] = True
    _in_channels(section, config)
    _frozen(section, config)
    config["norm"] = norm_config(section)
    return Backbone({"name": name, **config}, ("stage1", "stage2", "stage3", "stage4"), "resnet")


def _hrnet(section: Section, kind: str) -> Backbone | None:
    extra = section.section("extra")
    stages = [extra.section(f"stage{i}") for i in (1, 2, 3, 4)]
    blocks = [stage.numbers("num_blocks", []) for stage in stages]
    channels = [stage.numbers("num_channels", []) for stage in stages]
    modules = [stage.number("num_modules", 1) for stage in stages]
    for stage, wanted in zip(stages, ("BOTTLENECK", "BASIC", "BASIC", "BASIC"), strict=True):
        stage.expect("block", wanted)
        stage.unused("num_branches")
        stage.close()
    extra.close()
    section.expect("multiscale_output", True)
    section.expect("conv_cfg", None)
    section.unused("zero_init_residual")
    config: dict[str, Any] = {
        "name": "hrnet",
        "num_modules": modules[1:],
        "num_blocks": blocks,
        "num_channels": channels,
        "padding": "symmetric",
    }
    _in_channels(section, config)
    _frozen(section, config)
    config["norm"] = norm_config(section)
    return Backbone(config, ("branch1", "branch2", "branch3", "branch4"), "hrnet")


def _mobilenet_v2(section: Section, kind: str) -> Backbone | None:
    width = section.number("widen_factor", 1.0)
    section.expect("out_indices", [1, 2, 4, 6])
    stride = _output_stride(section, MOBILE_STRIDES, 7)
    if stride != 32:
        section.lost("dilations", "there the first layer of a stage is dilated, here all the others are")
    config: dict[str, Any] = {"name": "mobilenet_v2", "output_stride": stride}
    if width != 1.0:
        config["width"] = float(width)
    section.expect("conv_cfg", None)
    act = section.section("act_cfg")
    act.expect("type", "ReLU6")
    act.close()
    _frozen(section, config)
    config["norm"] = norm_config(section)
    return Backbone(config, ("stage1", "stage2", "stage3", "stage4"), "mobilenet_v2")


def _swin(section: Section, kind: str) -> Backbone | None:
    section.unused("pretrain_img_size")
    section.expect("patch_size", 4)
    section.expect("strides", [4, 2, 2, 2])
    section.expect("out_indices", [0, 1, 2, 3])
    section.expect("qkv_bias", True)
    section.expect("qk_scale", None)
    section.expect("patch_norm", True)
    section.expect("use_abs_pos_embed", False)
    config: dict[str, Any] = {
        "name": "swin",
        "embed_dim": section.number("embed_dims", 96),
        "depths": section.numbers("depths", [2, 2, 6, 2]),
        "num_heads": section.numbers("num_heads", [3, 6, 12, 24]),
        "window_size": section.number("window_size", 7),
        "mlp_ratio": float(section.number("mlp_ratio", 4)),
        "dropout": float(section.number("drop_rate", 0.0)),
        "attention_dropout": float(section.number("attn_drop_rate", 0.0)),
        "stochastic_depth": float(section.number("drop_path_rate", 0.1)),
        "norm_stages": True,
    }
    _gelu_and_layer_norm(section)
    _in_channels(section, config)
    _frozen(section, config)
    return Backbone(config, ("stage1", "stage2", "stage3", "norm"), "swin")


def _mix_transformer(section: Section, kind: str) -> Backbone | None:
    section.expect("num_stages", 4)
    section.expect("patch_sizes", [7, 3, 3, 3])
    section.expect("strides", [4, 2, 2, 2])
    section.expect("out_indices", [0, 1, 2, 3])
    section.expect("qkv_bias", True)
    heads = section.numbers("num_heads", [1, 2, 4, 8])
    width = section.number("embed_dims", 64)
    config: dict[str, Any] = {
        "name": "mix_transformer",
        "channels": [width * count for count in heads],
        "depths": section.numbers("num_layers", [3, 4, 6, 3]),
        "num_heads": heads,
        "reductions": section.numbers("sr_ratios", [8, 4, 2, 1]),
        "mlp_ratio": float(section.number("mlp_ratio", 4)),
        "dropout": float(section.number("drop_rate", 0.0)),
        "attention_dropout": float(section.number("attn_drop_rate", 0.0)),
        "stochastic_depth": float(section.number("drop_path_rate", 0.0)),
    }
    _gelu_and_layer_norm(section, eps=1e-6)
    _in_channels(section, config)
    _frozen(section, config)
    return Backbone(config, ("stage1", "stage2", "stage3", "stage4"), "mix_transformer")


def _unet(section: Section, kind: str) -> Backbone | None:
    stages, width = section.number("num_stages", 5), section.number("base_channels", 64)
    section.expect("strides", [1] * stages)
    section.expect("enc_num_convs", [2] * stages)
    section.expect("dec_num_convs", [2] * (stages - 1))
    section.expect("downsamples", [True] * (stages - 1))
    section.expect("enc_dilations", [1] * stages)
    section.expect("dec_dilations", [1] * (stages - 1))
    section.expect("conv_cfg", None)
    section.expect("dcn", None)
    section.expect("plugins", None)
    act, up = section.section("act_cfg"), section.section("upsample_cfg")
    act.expect("type", "ReLU")
    up.expect("type", "InterpConv")
    act.close()
    up.close()
    config: dict[str, Any] = {"name": "plain_unet", "channels": width, "num_stages": stages}
    _in_channels(section, config)
    _frozen(section, config)
    config["norm"] = norm_config(section)
    return Backbone(config, tuple(f"stride{2**i}" for i in reversed(range(stages))), "plain_unet")


def _gelu_and_layer_norm(section: Section, eps: float | None = None) -> None:
    """Reads the activation and the norm of a transformer, which are fixed here. With `eps`, the norm may tell this."""
    act, norm = section.section("act_cfg"), section.section("norm_cfg")
    act.expect("type", "GELU")
    norm.expect("type", "LN")
    if eps is not None:
        norm.expect("eps", eps)
    norm.unused("requires_grad")
    norm.close()
    act.close()


def _in_channels(section: Section, config: dict[str, Any]) -> None:
    if (channels := section.number("in_channels", 3)) != 3:
        config["in_channels"] = channels


def _frozen(section: Section, config: dict[str, Any]) -> None:
    """`frozen_stages` counts the stages that do not train, the stem being 0; `norm_eval` keeps the statistics."""
    stages = section.number("frozen_stages", -1)
    if stages >= 0:
        config["frozen"] = f"stage{stages}" if stages else "stem"
    if section.take("norm_eval", False):
        section.lost("norm_eval", "statistics of norms stay while their weights train; `model.frozen_norm` stops both")


_KINDS: dict[str, Callable[[Section, str], Backbone | None]] = {
    **dict.fromkeys(("ResNet", "ResNetV1c", "ResNetV1d", "ResNeXt", "ResNeSt"), _resnet),
    "HRNet": _hrnet,
    "MobileNetV2": _mobilenet_v2,
    "SwinTransformer": _swin,
    "UNet": _unet,
    "MixVisionTransformer": _mix_transformer,
}
