"""mmsegmentation's heads, and ours: which blocks they read, their options, and the outputs that a loss reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from classyseg.console import shown
from classyseg.migration.mmsegmentation.backbones import Backbone, norm_config
from classyseg.migration.notes import Section

DEFAULT_DROPOUT = 0.1
CONTEXTS = {"NLHead": "non_local", "DNLHead": "disentangled", "GCHead": "global", "CCHead": "criss_cross"}
"""Heads of mmsegmentation, and the `context` of ours."""


@dataclass
class Head:
    """One of our heads. `outputs` are those that a loss reads in mmsegmentation, each with its losses."""

    name: str
    config: dict[str, Any]
    section: Section
    outputs: dict[str, list[Section]] = field(default_factory=dict)
    num_classes: int | None = None


def heads_of(model: Section, backbone: Backbone) -> list[Head]:
    """The heads of `model`: `main`, and `aux`, `aux2`, ... . What has no equivalent is noted."""
    decode = model.sections("decode_head")
    found: list[Head | None] = [_main(model, decode, backbone)]
    for i, section in enumerate(model.sections("auxiliary_head")):
        head = _head(section, f"aux{i + 1 if i else ''}", backbone)
        if head is not None:
            head.config["train_only"] = True
        found.append(head)
    return [head for head in found if head is not None]


def _main(model: Section, decode: list[Section], backbone: Backbone) -> Head | None:
    kinds = [section.text("type") for section in decode]
    has_pyramid = bool(model.values.get("neck"))
    if has_pyramid and kinds not in (["FPNHead"], ["FPNHead", "PointHead"]):
        kind = model.section("neck").text("type")
        model.lost("neck", f"there is no equivalent of the neck {shown(kind)} before {', '.join(kinds)}")
    if len(decode) == 1:
        return _pyramid(model, decode[0], backbone) if kinds == ["FPNHead"] else _head(decode[0], "main", backbone)
    if kinds == ["FCNHead", "OCRHead"]:
        return _ocr(decode[0], decode[1], backbone)
    if kinds == ["FPNHead", "PointHead"]:
        return _point_rend(model, decode[0], decode[1], backbone)
    model.lost("decode_head", f"there is no equivalent of the heads {', '.join(kinds) or 'none'} one after the other")
    return None


def _head(section: Section, name: str, backbone: Backbone) -> Head | None:
    kind = section.text("type")
    converted = _KINDS.get(kind)
    if converted is None:
        section.lost("type", f"there is no equivalent of the head {shown(kind)}; choose one of docs/configs.md#heads")
        return None
    head = Head(name, {}, section)
    converted(head, section, backbone)
    return _finished(head, section)


def _finished(head: Head, section: Section) -> Head:
    """The head, after the keys that all of them have."""
    head.outputs.setdefault(head.name, section.sections("loss_decode"))
    _common(section)
    if section.take("align_corners", False):
        section.differs(
            "align_corners", "logits are resized without aligned corners here, in training and in evaluation"
        )
    head.num_classes = section.number("num_classes")
    section.unused("sampler")  # the losses read it
    section.expect("threshold", None)
    section.expect("out_channels", None, head.num_classes)
    section.close()
    return head


def _common(section: Section) -> None:
    section.unused("in_channels", "input_transform", "init_cfg", "ignore_index")
    act = section.section("act_cfg")
    act.expect("type", "ReLU")
    act.unused("inplace")
    act.close()
    section.expect("conv_cfg", None)


def _blocks(section: Section, backbone: Backbone) -> list[str]:
    index = section.take("in_index", -1)
    places = index if isinstance(index, list) else [index]
    count = len(backbone.blocks)
    if not all(isinstance(place, int) and -count <= place < count for place in places):
        section.lost("in_index", f"found {shown(index)}; the backbone has {count} blocks, counted from 0")
        return [backbone.blocks[-1]]
    return [backbone.blocks[place] for place in places]


def _concatenated(section: Section, backbone: Backbone) -> list[str]:
    """HRNet's four branches, concatenated, are its block `stage4`."""
    blocks = _blocks(section, backbone)
    return ["stage4"] if backbone.family == "hrnet" and blocks == list(backbone.blocks) else blocks


def _dropout(section: Section) -> dict[str, Any]:
    """mmsegmentation drops whole channels. Its default is 0.1; -1 means none."""
    share = max(0.0, float(section.number("dropout_ratio", DEFAULT_DROPOUT)))
    return {"dropout": share, "drop_channels": True} if share else {"dropout": 0.0}


def _norm(section: Section) -> dict[str, Any]:
    if section.values.get("norm_cfg") is None:
        section.lost("norm_cfg", "the head has no norms in mmsegmentation; those here have one behind each convolution")
        return {}
    norm = norm_config(section)
    return {"norm": norm} if norm else {}


def _pyramid_options(section: Section) -> dict[str, Any]:
    aligned = {"align_corners": True} if section.values.get("align_corners") else {}
    return {"bins": section.numbers("pool_scales", [1, 2, 3, 6]), "norm_image": True, **aligned}


def _fcn(head: Head, section: Section, backbone: Backbone) -> None:
    num_convs, kernel = section.number("num_convs", 2), section.number("kernel_size", 3)
    if num_convs < 1:
        section.lost("num_convs", f"found {num_convs}; the head 'fcn' has at least one convolution")
    config = {"name": "fcn", "blocks": _concatenated(section, backbone), "channels": section.number("channels", 256)}
    options = {
        "num_convs": (num_convs, 1),
        "kernel": (kernel, 3),
        "dilation": (section.number("dilation", 1), 1),
        "concat_input": (section.take("concat_input", True), False),
    }
    config |= {key: value for key, (value, default) in options.items() if value != default}
    head.config = {**config, **_dropout(section), **_norm(section)}


def _psp(head: Head, section: Section, backbone: Backbone) -> None:
    config = {"name": "psp", "blocks": _blocks(section, backbone), "channels": section.number("channels", 512)}
    head.config = {**config, **_pyramid_options(section), **_dropout(section), **_norm(section)}


def _rates(section: Section) -> list[int]:
    dilations = section.numbers("dilations", [1, 6, 12, 18])
    if not dilations or dilations[0] != 1:
        section.lost("dilations", f"found {dilations}; the first branch is a 1x1 convolution here, of dilation 1")
    return list(dilations[1:])


def _aspp(head: Head, section: Section, backbone: Backbone) -> None:
    config = {"name": "deeplabv3", "blocks": _blocks(section, backbone), "channels": section.number("channels", 512)}
    config |= {"rates": _rates(section), "projection_kernel": 3, "num_convs": 0, "norm_image": True}
    head.config = {**config, **_dropout(section), **_norm(section)}


def _separable_aspp(head: Head, section: Section, backbone: Backbone) -> None:
    low = section.number("c1_channels", 48)
    if not section.number("c1_in_channels", 0):
        section.lost("c1_in_channels", "found 0, a decoder without a shallow block; the head 'deeplabv3plus' reads one")
    blocks = [backbone.blocks[0], *_blocks(section, backbone)]
    config = {"name": "deeplabv3plus", "blocks": blocks, "channels": section.number("channels", 512)}
    config |= {"low_channels": low, "rates": _rates(section), "separable": True}
    config |= {"projection_kernel": 3, "norm_image": True}
    head.config = {**config, **_dropout(section), **_norm(section)}


def _upernet(head: Head, section: Section, backbone: Backbone) -> None:
    channels = section.number("channels", 512)
    config = {"name": "upernet", "blocks": _blocks(section, backbone), "channels": channels}
    config |= {"fused_channels": channels, "pool_channels": channels}
    head.config = {**config, **_pyramid_options(section), **_dropout(section), **_norm(section)}


def _encnet(head: Head, section: Section, backbone: Backbone) -> None:
    blocks = _blocks(section, backbone)
    lateral, presence = section.take("add_lateral", False), section.take("use_se_loss", True)
    config = {"name": "encnet", "blocks": blocks if lateral else blocks[-1:]}
    config |= {"channels": section.number("channels", 512), "num_codes": section.number("num_codes", 32)}
    config |= {"se_branch": presence}
    head.config = {**config, **_dropout(section), **_norm(section)}
    if presence:
        head.outputs[head.name] = section.sections("loss_decode")
        head.outputs[f"{head.name}.se"] = section.sections("loss_se_decode")
    section.unused("loss_se_decode")


def _context(head: Head, section: Section, backbone: Backbone) -> None:
    """The heads that are `FCNHead` with attention between its two convolutions."""
    kind = CONTEXTS[section.text("type")]
    config: dict[str, Any] = {"name": "context_fcn", "context": kind, "blocks": _concatenated(section, backbone)}
    config |= {"channels": section.number("channels", 512), "concat_input": bool(section.take("concat_input", True))}
    section.expect("kernel_size", 3)
    section.expect("dilation", 1)
    if kind == "criss_cross":
        section.expect("recurrence", 2)
    elif kind == "global":
        section.expect("pooling_type", "att")
        section.expect("fusion_types", ["channel_add"])
        ratio = float(section.number("ratio", 0.25))
        config["reduction"] = max(1, round(1 / ratio)) if ratio > 0 else 4
        if ratio * config["reduction"] != 1:
            section.lost("ratio", f"found {ratio}; accepted: 1 divided by a number")
    else:
        section.expect("mode", "embedded_gaussian")
        section.expect("use_scale", True)
        config["reduction"] = section.number("reduction", 2)
        if kind == "disentangled":
            section.expect("temperature", 0.05)
    head.config = {**config, **_dropout(section), **_norm(section)}


def _segformer(head: Head, section: Section, backbone: Backbone) -> None:
    section.expect("interpolate_mode", "bilinear")
    config = {"name": "segformer", "blocks": _blocks(section, backbone), "channels": section.number("channels", 256)}
    head.config = {**config, "norm_blocks": True, **_dropout(section), **_norm(section)}


def _ocr(coarse: Section, section: Section, backbone: Backbone) -> Head | None:
    """mmsegmentation's two heads are one here, whose output `coarse` is the first one's."""
    section.unused("type")
    coarse.unused("type")
    own, blocks = _concatenated(coarse, backbone), _concatenated(section, backbone)
    if own != blocks or coarse.number("kernel_size", 3) != 1 or coarse.number("num_convs", 2) != 1:
        coarse.lost(
            "in_index",
            "the coarse prediction of the head 'ocr' reads the same blocks, through a 1x1 convolution",
        )
    coarse.expect("concat_input", True, False)
    coarse.unused("channels", "dropout_ratio", "norm_cfg", "align_corners", "num_classes", "dilation")
    head = Head("main", {}, section)
    head.outputs = {"main": section.sections("loss_decode"), "main.coarse": coarse.sections("loss_decode")}
    head.config = {
        "name": "ocr",
        "blocks": blocks,
        "channels": section.number("channels", 512),
        "key_channels": section.number("ocr_channels", 256),
        "dropout": max(0.0, float(section.number("dropout_ratio", DEFAULT_DROPOUT))),
        **_norm(section),
    }
    section.expect("scale", 1)
    _common(coarse)
    coarse.close()
    return _finished(head, section)


def _feature_pyramid(model: Section, section: Section, backbone: Backbone) -> dict[str, Any]:
    """The options of `semantic_fpn`, which has the neck within itself."""
    neck = model.section("neck")
    neck.expect("type", "FPN")
    channels = neck.number("out_channels", 256)
    count = len(neck.take("in_channels", []) or backbone.blocks)
    neck.expect("num_outs", count)
    neck.expect("norm_cfg", None)
    for key in ("add_extra_convs", "extra_convs_on_inputs", "relu_before_extra_convs", "no_norm_on_lateral"):
        neck.expect(key, False)
    neck.unused("upsample_cfg", "start_level", "end_level", "init_cfg")
    neck.close()
    section.unused("in_index", "feature_strides")
    config = {"name": "semantic_fpn", "blocks": list(backbone.blocks)[:count], "pyramid_channels": channels}
    norm = _norm(section)
    return {
        **config,
        "channels": section.number("channels", 128),
        **_dropout(section),
        "norm": {"name": "batch"},
        **norm,
    }


def _pyramid(model: Section, section: Section, backbone: Backbone) -> Head:
    section.unused("type")
    head = Head("main", _feature_pyramid(model, section, backbone), section)
    return _finished(head, section)


def _point_rend(model: Section, section: Section, points: Section, backbone: Backbone) -> Head:
    inner = _feature_pyramid(model, section, backbone)
    points.unused("type", "in_index")
    points.lost(
        "in_channels",
        "the points' network reads the finest level of the feature pyramid in mmsegmentation, and the backbone's "
        "finest block in the head 'point_rend'",
    )
    section.unused("type")
    train, test = model.section("train_cfg"), model.section("test_cfg")
    blocks = inner.pop("blocks")
    head = Head("main", {}, section)
    head.config = {
        "name": "point_rend",
        "blocks": [blocks[0], *blocks],
        "head": inner,
        "channels": points.number("channels", 256),
        "num_layers": points.number("num_fcs", 3),
        "num_points": train.number("num_points", 2048),
        "oversampling": float(train.number("oversample_ratio", 3)),
        "uncertain_share": float(train.number("importance_sample_ratio", 0.75)),
        "num_subdivisions": test.number("subdivision_steps", 2),
        "num_refined": test.number("subdivision_num_points", 8196),
    }
    points.expect("coarse_pred_each_layer", True)
    points.expect("dropout_ratio", -1)
    points.unused("num_classes", "align_corners", "norm_cfg")
    head.outputs = {"main": section.sections("loss_decode"), "main.points": points.sections("loss_decode")}
    _common(points)
    points.close()
    return _finished(head, section)


_KINDS: dict[str, Callable[[Head, Section, Backbone], None]] = {
    "FCNHead": _fcn,
    "PSPHead": _psp,
    "ASPPHead": _aspp,
    "DepthwiseSeparableASPPHead": _separable_aspp,
    "UPerHead": _upernet,
    "EncHead": _encnet,
    "SegformerHead": _segformer,
    **dict.fromkeys(CONTEXTS, _context),
}
