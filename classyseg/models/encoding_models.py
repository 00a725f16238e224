"""PyTorch-Encoding's models with heads: names for a backbone, its heads, and the number of classes of a data set.

Source: H. Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, "Deep TEN: Texture Encoding Network",
CVPR 2017, and "ResNeSt: Split-Attention Networks", 2020, as PyTorch-Encoding has them. Its plain backbones
(`resnet50s`, `wideresnet38`, ...) are registered where their classes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from classyseg.weights.cache import PublicWeights
from classyseg.weights.catalogue import pytorch_encoding

NUM_CLASSES = {"ade20k": 150, "pascal_context": 59, "coco": 21, "minc": 23}
"""Of each data set; those of COCO are PASCAL VOC's."""

Head = dict[str, Any]


@dataclass(frozen=True)
class EncodingModel:
    """The registered name of a backbone, the heads as in a config, and the data set whose classes they have."""

    backbone: str
    dataset: str
    heads: Mapping[str, Head]
    output_stride: int = 8

    @property
    def num_classes(self) -> int:
        return NUM_CLASSES[self.dataset]


_PYRAMID = ["stage1", "stage2", "stage3", "stage4"]
_AUX: Head = {"name": "fcn", "blocks": ["stage3"], "train_only": True}
_FCN: Head = {"name": "fcn", "blocks": ["stage4"]}
_PSP: Head = {"name": "psp", "blocks": ["stage4"], "norm_image": True, "align_corners": True}
_ENCNET: Head = {"name": "encnet", "blocks": ["stage4"], "se_branch": True}
_ENCNET_LATERAL: Head = _ENCNET | {"blocks": ["stage2", "stage3", "stage4"]}
_ATTEN: Head = {"name": "atten", "blocks": ["stage4"], "norm_image": True}
_DEEPLAB: Head = {
    "name": "deeplabv3",
    "blocks": ["stage4"],
    "dropout": 0.5,
    "drop_channels": True,
    "classifier_dropout": 0.1,
    "norm_image": True,
}
_UPERNET: Head = {"name": "upernet", "blocks": _PYRAMID, "norm_image": True, "align_corners": True}
_FCFPN: Head = {"name": "fcfpn", "blocks": _PYRAMID, "align_corners": True}
_DEEPTEN: Head = {"name": "deepten", "blocks": ["stage4"]}


_S = ("resnet50s", "resnet101s")
_RESNEST = ("resnest50", "resnest101", "resnest200", "resnest269")


def _with_aux(backbone: str, dataset: str, main: Head) -> EncodingModel:
    return EncodingModel(backbone, dataset, {"main": main, "aux": _AUX})


ENCODING_MODELS: dict[str, EncodingModel] = {
    "deepten_resnet50_minc": EncodingModel("resnet50s", "minc", {"main": _DEEPTEN}, output_stride=32),
    "encnet_resnet101s_coco": _with_aux("resnet101s", "coco", _ENCNET),
    **{f"encnet_{name}_pcontext": _with_aux(name, "pascal_context", _ENCNET_LATERAL) for name in _S},
    **{f"encnet_{name}_ade": _with_aux(name, "ade20k", _ENCNET) for name in _S},
    "fcn_resnet50s_pcontext": EncodingModel("resnet50s", "pascal_context", {"main": _FCN}),
    "fcn_resnet50s_ade": _with_aux("resnet50s", "ade20k", _FCN),
    "psp_resnet50s_ade": _with_aux("resnet50s", "ade20k", _PSP),
    "fcn_resnest50_ade": _with_aux("resnest50", "ade20k", _FCN),
    "fcn_resnest50_pcontext": _with_aux("resnest50", "pascal_context", _FCN),
    **{f"deeplab_{name}_ade": _with_aux(name, "ade20k", _DEEPLAB) for name in _RESNEST},
    **{f"deeplab_{name}_pcontext": _with_aux(name, "pascal_context", _DEEPLAB) for name in _RESNEST},
    # These PyTorch-Encoding builds, but does not register.
    "encnet_resnet152s_ade": _with_aux("resnet152s", "ade20k", _ENCNET),
    "deeplab_resnet50s_ade": _with_aux("resnet50s", "ade20k", _DEEPLAB),
    "atten_resnet50s_ade": _with_aux("resnet50s", "ade20k", _ATTEN),
    "upernet_resnet50s_ade": EncodingModel("resnet50s", "ade20k", {"main": _UPERNET}, output_stride=32),
    "fcfpn_resnet50_ade": EncodingModel("resnet50", "ade20k", {"main": _FCFPN}, output_stride=32),
}


def with_heads(backbones: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of the named models on `backbones`, which are settings by name: what `Registry.variants` takes."""
    return {
        name: {**backbones[model.backbone], "output_stride": model.output_stride, "heads": dict(model.heads)}
        for name, model in ENCODING_MODELS.items()
        if model.backbone in backbones
    }


def _with_heads(name: str, digest: str, crop: int = 480, resize: int = 520) -> dict[str, PublicWeights]:
    dataset = ENCODING_MODELS[name].dataset
    licence = f"MIT; trained on {dataset}"
    found = replace(pytorch_encoding(name, digest), licence=licence, crop=crop, resize=resize, has_heads=True)
    return {f"{dataset}_encoding": found}


WEIGHTS = {
    "deepten_resnet50_minc": _with_heads("deepten_resnet50_minc", "1225f149", 224, 256),
    "encnet_resnet101s_ade": _with_heads("encnet_resnet101s_ade", "3f54fa3b", 576, 640),
    **{
        name: _with_heads(name, digest)
        for name, digest in {
            "encnet_resnet50s_ade": "07ac287c",
            "encnet_resnet50s_pcontext": "4de91d59",
            "encnet_resnet101s_pcontext": "9f27ea13",
            "fcn_resnet50s_ade": "662e979d",
            "fcn_resnest50_ade": "4aba491a",
            "fcn_resnest50_pcontext": "77a2161d",
            "deeplab_resnest50_ade": "2225f09d",
            "deeplab_resnest101_ade": "06ca799c",
            "deeplab_resnest200_ade": "7b9e7d3e",
            "deeplab_resnest269_ade": "0074dd10",
            "deeplab_resnest50_pcontext": "08dccbc4",
            "deeplab_resnest101_pcontext": "faf58418",
            "deeplab_resnest200_pcontext": "fe76a265",
            "deeplab_resnest269_pcontext": "b661fd26",
        }.items()
    },
}
"""The public weights of whole models, by the name of the model."""
