"""Weights that torchvision does not publish: addresses and preparation, as their publishers write them.

Sources: timm 1.0 (`timm.models`; a file of safetensors per model), ResNeSt's releases, PyTorch-Encoding's model store
and PaddleSeg's configs. Publishers that give no hash have none here.
"""

from __future__ import annotations

from typing import Any

from classyseg.weights.cache import PublicWeights

_HALF = (0.5, 0.5, 0.5)
_CONTEXT = "trained on ImageNet-1k"


def catalogued(variant: str) -> dict[str, PublicWeights]:
    """The weights of this catalogue for the registered name `variant`, by name; the one to prefer comes first."""
    return dict(PUBLISHED.get(variant, {}))


def _timm(
    name: str,
    crop: int = 224,
    percent: float = 0.875,
    *,
    half: bool = False,
    bicubic: bool = True,
    mit: bool = False,
    config: tuple[tuple[str, Any], ...] = (),
) -> PublicWeights:
    trained = "ImageNet-21k" if "in21k" in name else "ImageNet-1k"
    values: dict[str, Any] = {"mean": _HALF, "std": _HALF} if half else {}
    return PublicWeights(
        url=f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",
        digest="",
        licence=f"{'MIT' if mit else 'Apache-2.0'}; trained on {trained}",
        resize=int(crop / percent),
        crop=crop,
        interpolation="bicubic" if bicubic else "bilinear",
        config=config,
        **values,
    )


def _resnest(name: str, digest: str, crop: int, resize: int) -> PublicWeights:
    url = f"https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/{name}-{digest}.pth"
    return PublicWeights(url, f"sha256:{digest}", f"Apache-2.0; {_CONTEXT}", resize=resize, crop=crop)


def pytorch_encoding(name: str, digest: str) -> PublicWeights:
    """The hash is that of the file within the archive."""
    url = f"https://s3.us-west-1.wasabisys.com/encoding/models/{name}-{digest}.zip"
    return PublicWeights(url, f"sha1:{digest}", f"MIT; {_CONTEXT}")


def _paddleseg(path: str) -> PublicWeights:
    return PublicWeights(f"https://bj.bcebos.com/paddleseg/dygraph/{path}.tar.gz", "", f"Apache-2.0; {_CONTEXT}")


def _hrnet(name: str, *, paddleseg: bool = False) -> dict[str, PublicWeights]:
    config = (("padding", "symmetric"), ("fuse_upsample", "nearest"))
    found = {"imagenet1k_ssld_paddleseg": _paddleseg(f"{name}_ssld")} if paddleseg else {}
    return found | {"imagenet1k_timm": _timm(f"{name}.ms_in1k", bicubic=False, mit=True, config=config)}


PUBLISHED = {
    "resnet50s": {
        "imagenet1k_timm": _timm("resnet50s.gluon_in1k"),
        "imagenet1k_encoding": pytorch_encoding("resnet50s", "a75c83cf"),
    },
    "resnet101s": {"imagenet1k_encoding": pytorch_encoding("resnet101s", "03a0f310")},
    "resnet152s": {"imagenet1k_encoding": pytorch_encoding("resnet152s", "36670e8b")},
    "resnet50d": {"imagenet1k_timm": _timm("resnet50d.a1_in1k", percent=0.95)},
    "resnest50": {
        "imagenet1k_resnest": _resnest("resnest50", "528c19ca", 224, 256),
        "imagenet1k_encoding": pytorch_encoding("resnest50", "fb9de5b3"),
    },
    "resnest101": {
        "imagenet1k_resnest": _resnest("resnest101", "22405ba7", 256, 293),
        "imagenet1k_encoding": pytorch_encoding("resnest101", "966fb78c"),
    },
    "resnest200": {
        "imagenet1k_resnest": _resnest("resnest200", "75117900", 320, 352),
        "imagenet1k_encoding": pytorch_encoding("resnest200", "d7fd712f"),
    },
    "resnest269": {
        "imagenet1k_resnest": _resnest("resnest269", "0cc87c48", 416, 448),
        "imagenet1k_encoding": pytorch_encoding("resnest269", "51ae5f19"),
    },
    "resnest50_fast": {"imagenet1k_resnest": _resnest("resnest50_fast_2s1x64d", "44938639", 224, 256)},
    "wide_resnet38": {"imagenet1k_encoding": pytorch_encoding("wideresnet38", "da4785cf")},
    "wide_resnet50": {"imagenet1k_encoding": pytorch_encoding("wideresnet50", "b4156216")},
    "resnet50_vd": {"imagenet1k_ssld_paddleseg": _paddleseg("resnet50_vd_ssld_v2")},
    "resnet101_vd": {"imagenet1k_ssld_paddleseg": _paddleseg("resnet101_vd_ssld")},
    "mobilenet_v3_large_x1_0": {
        "imagenet1k_ssld_paddleseg": _paddleseg("backbone/mobilenetv3_large_x1_0_ssld"),
    },
    "hrnet_w18_small_v1": _hrnet("hrnet_w18_small"),
    "hrnet_w18_small_v2": _hrnet("hrnet_w18_small_v2"),
    "hrnet_w18": _hrnet("hrnet_w18", paddleseg=True),
    "hrnet_w30": _hrnet("hrnet_w30"),
    "hrnet_w32": _hrnet("hrnet_w32"),
    "hrnet_w40": _hrnet("hrnet_w40"),
    "hrnet_w44": _hrnet("hrnet_w44"),
    "hrnet_w48": _hrnet("hrnet_w48", paddleseg=True),
    "hrnet_w64": _hrnet("hrnet_w64"),
    "xception41_deeplab": {"imagenet1k_timm": _timm("xception41.tf_in1k", 299, 0.903, half=True)},
    "xception65_deeplab": {"imagenet1k_timm": _timm("xception65.tf_in1k", 299, 0.903, half=True)},
    "xception71_deeplab": {"imagenet1k_timm": _timm("xception71.tf_in1k", 299, 0.903, half=True)},
    "vit_ti_16": {"imagenet1k_timm": _timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k", percent=0.9, half=True)},
    "vit_s_16": {"imagenet1k_timm": _timm("vit_small_patch16_224.augreg_in21k_ft_in1k", percent=0.9, half=True)},
    "vit_small_r26_s32": {
        "imagenet1k_timm": _timm("vit_small_r26_s32_224.augreg_in21k_ft_in1k", percent=0.9, half=True)
    },
    "vit_base_r50_s16": {"imagenet1k_timm": _timm("vit_base_r50_s16_384.orig_in21k_ft_in1k", 384, 1.0, half=True)},
    "vit_large_r50_s32": {
        "imagenet1k_timm": _timm("vit_large_r50_s32_224.augreg_in21k_ft_in1k", percent=0.9, half=True)
    },
}
PUBLISHED |= {"wideresnet38": PUBLISHED["wide_resnet38"], "wideresnet50": PUBLISHED["wide_resnet50"]}
