"""ClassyVision's models and heads, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from classyseg.console import shown
from classyseg.migration.notes import Section

RESNETS = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
CLIP_KEYS = {
    "skip_transformation_type": "skip",
    "residual_transformation_type": "residual",
    "num_blocks": "depths",
    "stem_name": "stem",
    "stem_planes": "stem_channels",
    "stem_temporal_kernel": "stem_temporal_kernel",
    "stem_spatial_kernel": "stem_spatial_kernel",
    "stem_maxpool": "stem_maxpool",
    "stage_planes": "stage_channels",
    "stage_temporal_kernel_basis": "temporal_kernels",
    "temporal_conv_1x1": "temporal_conv_1x1",
    "stage_temporal_stride": "temporal_strides",
    "stage_spatial_stride": "spatial_strides",
    "num_groups": "groups",
    "width_per_group": "width_per_group",
    "zero_init_residual_transform": "zero_init_residual",
    "frames_per_clip": "frames",
}
"""The keys of `resnext3d`, and ours."""
SAME_KEYS = {
    "densenet": "num_blocks init_planes growth_rate expansion small_input final_bn_relu use_se se_reduction_ratio",
    "regnet": (
        "depth w_0 w_a w_m group_width bottleneck_multiplier stem_type stem_width block_type activation use_se se_ratio"
    ),
    "anynet": (
        "depths widths group_widths bottleneck_multipliers strides stem_type stem_width block_type activation use_se "
        "se_ratio"
    ),
    "vision_transformer": (
        "image_size patch_size num_layers num_heads hidden_dim mlp_dim dropout_rate attention_dropout_rate classifier "
        "conv_stem_layers"
    ),
    "mlp": "input_dim output_dim hidden_dims dropout first_dropout use_batchnorm first_batchnorm",
}
"""Models whose keys are ours."""
FLOATS = ("dropout_rate", "attention_dropout_rate", "w_a", "w_m", "dropout", "bottleneck_multiplier", "se_ratio")
PRESETS = re.compile(
    r"(?P<resnet>resnet(18|34|50|101|152))|(?P<resnext>resnext(50|101|152)_32x4d)|(?P<efficientnet>efficientnet_b[0-7])|"
    r"(?P<regnet>regnet_[xyz]_[\d.]+[gm]f)|(?P<vit>vit_[bl]_(16|32)|vit_h_14)"
)


def model_config(section: Section) -> tuple[dict[str, Any], int | None] | None:
    """Our model with its heads, and the number of classes that a head is for; None if there is no equivalent."""
    name = section.text("name")
    preset = PRESETS.fullmatch(name)
    if preset is not None:
        config = _preset(section, name, preset)
    elif name in ("resnet", "resnext"):
        config = _resnet(section, name)
    elif name == "resnext3d":
        config = _clips(section)
    elif name in SAME_KEYS:
        config = {"name": name, **_same(section, SAME_KEYS[name].split())}
        if name == "densenet" and not section.take("num_blocks"):
            section.lost("num_blocks", "missing")
    else:
        section.lost("name", f"there is no equivalent of the model {shown(name)}; choose one of `classyseg models`")
        return None
    heads, num_classes = _heads(section, config)
    section.unused("num_classes", "model_name")
    section.expect("freeze_trunk", None, False)
    section.close()
    return {**config, "heads": heads}, num_classes


def _same(section: Section, keys: list[str]) -> dict[str, Any]:
    read = {key: section.number(key) if key in FLOATS else section.take(key) for key in keys if key in section}
    return {key: float(value) if key in FLOATS else value for key, value in read.items() if value is not None}


def _preset(section: Section, name: str, preset: re.Match[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"name": name.replace(".", "_")}
    if preset["resnet"] or preset["resnext"]:
        config["last_gamma"] = True
        config |= _squeeze(section)
        section.expect("small_input", False)
    if preset["vit"]:
        config |= _same(section, SAME_KEYS["vision_transformer"].split())
    return config


def _squeeze(section: Section) -> dict[str, Any]:
    used, ratio = section.take("use_se", False), section.number("se_reduction_ratio", 16)
    return {"se_reduction": ratio} if used else {}


def _resnet(section: Section, name: str) -> dict[str, Any]:
    depths = section.numbers("num_blocks", [])
    basic = bool(section.take("basic_layer", False))
    known = RESNETS.get(tuple(depths))
    if basic and tuple(depths) == (3, 4, 6, 3):
        known = "resnet34"
    config: dict[str, Any] = {"name": known} if known and basic == (known in ("resnet18", "resnet34")) else {}
    config = config or {"name": "resnet", "depths": depths, "block": "basic" if basic else "bottleneck"}
    if len(depths) != 4:
        section.lost("num_blocks", f"found {depths}; a ResNet has four stages here")
    width = section.numbers("base_width_and_cardinality")
    if width is not None:
        config |= {"width_per_group": width[0], "groups": width[1]}
    elif name == "resnext":
        section.lost("base_width_and_cardinality", "missing")
    if section.take("small_input", False):
        config["small_input"] = True
    if section.take("zero_init_bn_residuals", False):
        config["last_gamma"] = True
    config |= _squeeze(section)
    section.expect("init_planes", 64)
    section.expect("reduction", 4, 1)
    section.expect("final_bn_relu", True)
    return config


def _clips(section: Section) -> dict[str, Any]:
    found = {ours: section.take(theirs) for theirs, ours in CLIP_KEYS.items() if theirs in section}
    found["depths"] = section.numbers("num_blocks")
    if (planes := section.number("input_planes", 3)) != 3:
        found["in_channels"] = planes
    section.unused("input_key", "clip_crop_size")
    return {"name": "resnext3d", **{key: value for key, value in found.items() if value is not None}}


# -- heads -----------------------------------------------------------------------------------------------------------


def _heads(section: Section, config: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    found: dict[str, Any] = {}
    num_classes = None
    for head in section.sections("heads"):
        name, kind = head.text("unique_id", "main"), head.text("name")
        name = re.sub(r"\W", "_", name)
        convert = _HEADS.get(kind)
        if convert is None:
            head.lost("name", f"there is no equivalent of the head {shown(kind)}")
            continue
        block = _block(head, config)
        found[name] = {"name": kind.removesuffix("_head"), "blocks": [block], **convert(head)}
        num_classes = head.number("num_classes", num_classes)
        head.unused("in_plane")
        head.close()
    if not found:
        section.lost("heads", "the model has no head; give it one, such as {name: linear, blocks: [stage4]}")
    return found, num_classes


def _block(head: Section, config: dict[str, Any]) -> str:
    """Our block for `fork_block`: the last one of a stage is the stage's."""
    fork = head.text("fork_block")
    name = str(config["name"])
    depths = config.get("depths") or next((list(d) for d, known in RESNETS.items() if known == name), [3, 4, 6, 3])
    if found := re.fullmatch(r"block(\d)-(\d+)", fork):
        stage, block = int(found[1]), int(found[2])
        if name.startswith(("resnet", "resnext")) and stage < len(depths):
            return f"stage{stage + 1}" if block == depths[stage] - 1 else f"layer{stage + 1}.{block}"
    found = re.fullmatch(r"pathway0-stage([1-4])-block(\d+)(-relu)?", fork)
    if found and [int(found[2]) + 1] == depths[int(found[1]) - 1 : int(found[1])]:
        return f"stage{found[1]}"
    if fork == "trunk_output":
        return {"vision_transformer": "pre_logits", "mlp": "output"}.get(
            name, "pre_logits" if name.startswith(("vit_", "efficientnet")) else "stage4"
        )
    if found := re.fullmatch(r"block(\d)", fork):
        return f"stage{found[1]}"
    head.lost("fork_block", f"which block {shown(fork)} is here is not known; stage4 stands in its place")
    return "stage4"


def _fully_connected(head: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (channels := head.number("conv_planes")) is not None:
        found["conv_channels"] = channels
    if head.take("zero_init_bias", False):
        found["zero_init_bias"] = True
    if (activation := head.text("activation", "relu")) != "relu":
        found["activation"] = activation
    return {**found, **_normalized(head)}


def _normalized(head: Section) -> dict[str, Any]:
    kind = head.take("normalize_inputs")
    return {} if kind is None else {"normalize": kind}


def _convolutional(head: Section) -> dict[str, Any]:
    found: dict[str, Any] = {"pool_size": head.numbers("pool_size")}
    found["activation"] = head.text("activation_func", "softmax")
    ratio = float(head.number("dropout_ratio", 0.5))
    if head.take("use_dropout", False):
        found["dropout"] = ratio
    return {key: value for key, value in found.items() if value is not None}


def _transformer(head: Section) -> dict[str, Any]:
    hidden = head.number("hidden_dim")
    return {**({} if hidden is None else {"hidden_dim": hidden}), **_normalized(head)}


def _identity(head: Section) -> dict[str, Any]:
    return {"pool": True}


_HEADS: dict[str, Callable[[Section], dict[str, Any]]] = {
    "fully_connected": _fully_connected,
    "fully_convolutional_linear": _convolutional,
    "vision_transformer_head": _transformer,
    "identity": _identity,
}
