"""Models by name: PyTorch-Encoding's 35, and some that it builds without listing them, with their files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import encoding_head, encoding_keys, goldens, parameters, sorted_keys_sha1
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.datasets.named import ade20k, pascal_context, pascal_voc
from classyseg.models import ClassyModel, build_model, create_backbone, create_model, list_models, load_weights
from classyseg.models.backbones.resnet import ResNet
from classyseg.models.encoding_models import ENCODING_MODELS, NUM_CLASSES, WEIGHTS
from classyseg.models.meta import features_on_meta
from classyseg.models.public_weights import default_num_classes, public_weights
from classyseg.registry import MODELS

CLASSIFIER = 2048 * 1000 + 1000
"""PyTorch-Encoding's DeepTEN keeps ImageNet's classifier, and does not use it."""
RESNET50S, RESNET101S, RESNEST50, RESNEST101, RESNEST200, RESNEST269 = (
    23631808,
    42623936,
    25434240,
    46226016,
    68152544,
    108880480,
)
"""Parameters of its backbones, and below of its heads and auxiliary heads, by classes."""
FCN_59, FCN_150, PSP_150 = 9468475, 9515158, 23150742
ENCNET_21, ENCNET_150, LATERAL_59 = 10002058, 10134412, 17908438
DEEPLAB_59, DEEPLAB_150 = 16140603, 16163990
AUX_21, AUX_59, AUX_150 = 2365205, 2374971, 2398358

PARAMETERS = {
    "resnet50": 25557032,
    "resnet101": 44549160,
    "resnet152": 60192808,
    "resnest50": 27483240,
    "resnest101": 48275016,
    "resnest200": 70201544,
    "resnest269": 110929480,
    "resnet50s": 25680808,
    "resnet101s": 44672936,
    "resnet152s": 60316584,
    "resnet50d": 25576264,
    "resnext50_32x4d": 25028904,
    "resnext101_32x8d": 88791336,
    "xception65": 39916312,
    "wideresnet38": 109167912,
    "wideresnet50": 153231656,
    "deepten_resnet50_minc": 26041695 - CLASSIFIER,
    "encnet_resnet101s_coco": RESNET101S + ENCNET_21 + AUX_21,
    "fcn_resnet50s_pcontext": RESNET50S + FCN_59,
    "encnet_resnet50s_pcontext": RESNET50S + LATERAL_59 + AUX_59,
    "encnet_resnet101s_pcontext": RESNET101S + LATERAL_59 + AUX_59,
    "encnet_resnet50s_ade": 36164578,
    "encnet_resnet101s_ade": RESNET101S + ENCNET_150 + AUX_150,
    "fcn_resnet50s_ade": 35545324,
    "psp_resnet50s_ade": RESNET50S + PSP_150 + AUX_150,
    "fcn_resnest50_ade": RESNEST50 + FCN_150 + AUX_150,
    "fcn_resnest50_pcontext": RESNEST50 + FCN_59 + AUX_59,
    "deeplab_resnest50_ade": RESNEST50 + DEEPLAB_150 + AUX_150,
    "deeplab_resnest50_pcontext": RESNEST50 + DEEPLAB_59 + AUX_59,
    "deeplab_resnest101_ade": RESNEST101 + DEEPLAB_150 + AUX_150,
    "deeplab_resnest101_pcontext": RESNEST101 + DEEPLAB_59 + AUX_59,
    "deeplab_resnest200_ade": RESNEST200 + DEEPLAB_150 + AUX_150,
    "deeplab_resnest200_pcontext": RESNEST200 + DEEPLAB_59 + AUX_59,
    "deeplab_resnest269_ade": RESNEST269 + DEEPLAB_150 + AUX_150,
    "deeplab_resnest269_pcontext": RESNEST269 + DEEPLAB_59 + AUX_59,
}
"""All that PyTorch-Encoding registers."""
UNLISTED = {
    "encnet_resnet152s_ade": 58267584 + ENCNET_150 + AUX_150,
    "deeplab_resnet50s_ade": 42194156,
    "atten_resnet50s_ade": 38806860,
    "upernet_resnet50s_ade": 44295766,
    "fcfpn_resnet50_ade": 35378774 - RESNET50S + 23508032,
}
KINDS = {
    "fcn": "fcn_resnet50s_ade",
    "fcn without aux": "fcn_resnet50s_pcontext",
    "psp": "psp_resnet50s_ade",
    "encnet": "encnet_resnet50s_ade",
    "encnet with lateral": "encnet_resnet50s_pcontext",
    "deeplab": "deeplab_resnest50_ade",
    "atten": "atten_resnet50s_ade",
    "upernet": "upernet_resnet50s_ade",
    "fcfpn": "fcfpn_resnet50_ade",
    "deepten": "deepten_resnet50_minc",
}
"""One of each kind of file."""
SHALLOW = {"depths": (1, 1, 1, 1)}


@cache
def on_meta(name: str) -> ClassyModel:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(("name", "expected"), (PARAMETERS | UNLISTED).items())
def test_parameters_are_pytorch_encodings(name: str, expected: int) -> None:
    assert parameters(on_meta(name)) == expected


def test_every_name_with_heads_is_counted() -> None:
    assert len(PARAMETERS) == 35
    assert (
        {name for name in PARAMETERS | UNLISTED if name in ENCODING_MODELS}
        == set(ENCODING_MODELS)
        <= set(list_models())
    )


def test_classes_are_those_of_the_data_sets() -> None:
    classes = {"ade20k": ade20k.CLASSES, "pascal_context": pascal_context.CLASSES, "coco": pascal_voc.CLASSES}
    assert {dataset: len(names) for dataset, names in classes.items()}.items() <= NUM_CLASSES.items()
    assert {*classes, "minc"} == set(NUM_CLASSES)


def their_keys(name: str, model: ClassyModel) -> dict[str, str]:
    """PyTorch-Encoding's names of our keys; a plain backbone's classifier is its `fc`."""
    if name in ENCODING_MODELS:
        return encoding_keys(model)
    return {key: key.removeprefix("heads.main.") for key in model.state_dict()}


@pytest.mark.parametrize("entry", goldens("float64")["registry"], ids=lambda entry: entry["name"])
def test_keys_and_shapes_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    model = on_meta(entry["name"])
    keys = their_keys(entry["name"], model)
    shapes = {keys[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    if entry["name"].startswith("deepten"):
        shapes |= {"pretrained.fc.weight": (1000, 2048), "pretrained.fc.bias": (1000,)}
    assert sorted_keys_sha1(shapes) == entry["sorted_keys_sha1"]
    assert PARAMETERS[entry["name"]] == entry["params"] - CLASSIFIER * entry["name"].startswith("deepten")
    if entry["nclass"] is not None:
        assert default_num_classes(type(model), entry["name"]) == entry["nclass"]
        assert ("aux" in model.heads) == entry["aux"]


@pytest.mark.parametrize("name", [name for name in ENCODING_MODELS if not name.startswith("deepten")])
def test_heads_are_of_the_forms_whose_values_equal_pytorch_encodings(name: str) -> None:
    kind = name.partition("_")[0]
    main = encoding_head(kind, {"lateral": kind == "encnet" and name.endswith("_pcontext")})
    found: Any = MODELS.validate(name, placed=True)
    assert found.output_stride == (32 if kind in ("upernet", "fcfpn") else 8)
    resolved = MODELS.validate({"name": "resnet50", "heads": {"main": main}}, placed=True).resolved()
    assert found.resolved()["heads"]["main"] == resolved["heads"]["main"]
    aux = found.heads.get("aux")
    assert aux is None or (aux.name, aux.blocks, aux.train_only) == ("fcn", ["stage3"], True)


@pytest.mark.parametrize("name", ENCODING_MODELS)
def test_every_name_gives_logits_of_its_classes(name: str) -> None:
    model, classes = on_meta(name), ENCODING_MODELS[name].num_classes
    run = model.train()(torch.empty(2, 3, 65, 97, device="meta"))
    size = () if name.startswith("deepten") else (17, 25) if ENCODING_MODELS[name].output_stride == 32 else (9, 13)
    expected = dict.fromkeys(model.heads, (2, classes, *size))
    expected |= {"main.se": (2, classes)} if name.startswith("encnet") else {}
    assert {key: tuple(value.shape) for key, value in run.items()} == expected


# -- files -----------------------------------------------------------------------------------------------------------


def their_file(folder: Path, model: ClassyModel) -> Path:
    """A training checkpoint of PyTorch-Encoding's for `model`, in half precision, with what stands beside the model."""
    state: dict[str, Tensor] = {}
    for i, (key, name) in enumerate(encoding_keys(model).items()):
        value = model.state_dict()[key]
        state[f"module.{name}"] = torch.full(value.shape, i, dtype=torch.half if value.is_floating_point() else None)
    state["module.pretrained.fc.weight"] = torch.zeros(1000, 8)
    state["module.pretrained.fc.bias"] = torch.zeros(1000)
    if "module.head.atten.conv.weight" in state:
        for name in ("atten_layers.1.conv_ks", "atten_layers.1.conv_qs", "atten.conv_ks"):
            state[f"module.head.{name}.bias"] = state["module.head.atten.conv_qs.bias"]
    path = folder / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}, "best_pred": np.float64(0.4)}, path)
    return path


@pytest.mark.parametrize("name", KINDS.values(), ids=list(KINDS))
def test_a_file_of_pytorch_encodings_loads_whole_and_strictly(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = create_model(name, **SHALLOW)
    path = their_file(tmp_path, shapes)
    model = create_model(name, **SHALLOW)
    report = load_weights(model, str(path), variant=name)
    for i, key in enumerate(encoding_keys(model)):
        assert model.state_dict()[key].eq(i).all(), key
    assert (report.problems(), report.prefix) == ("", "state_dict.module.pretrained.")
    assert len(report.loaded) == len(model.state_dict())


def test_a_file_of_another_number_of_classes_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = their_file(tmp_path, create_model("fcn_resnet50s_ade", **SHALLOW))
    with pytest.raises(ConfigError) as caught:
        create_model("fcn_resnet50s_ade", num_classes=7, weights=path, **SHALLOW)
    text = str(caught.value)
    assert "4 other shapes or types: state_dict.module.head.conv5.4.weight is (150, 512, 1, 1), expected (7," in text
    assert text.endswith(
        "if these heads are for another number of classes, weights: {source: ..., strict: false} "
        "loads all the rest, or give the model the file's number"
    )
    model = create_model("fcn_resnet50s_ade", num_classes=7, weights={"source": path, "strict": False}, **SHALLOW)
    state, keys = model.state_dict(), list(encoding_keys(model))
    left = [key for i, key in enumerate(keys) if not state[key].eq(i).all()]
    assert left == [f"heads.{head}.classifier.{leaf}" for head in ("main", "aux") for leaf in ("weight", "bias")]


def test_other_differences_have_no_such_hint(tmp_path: Path) -> None:
    path = their_file(tmp_path, create_model("fcn_resnet50s_ade", **SHALLOW))
    with pytest.raises(ConfigError, match="missing keys") as caught:
        create_model("psp_resnet50s_ade", weights=path, **SHALLOW)
    assert "number of classes" not in str(caught.value)


def test_pretrained_takes_the_file_of_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = their_file(tmp_path, create_model("fcn_resnet50s_ade", **SHALLOW))
    known = WEIGHTS["fcn_resnet50s_ade"]["ade20k_encoding"]
    assert known.digest == "sha1:662e979d"
    assert known.url.endswith("/encoding/models/fcn_resnet50s_ade-662e979d.zip")
    monkeypatch.setitem(WEIGHTS, "fcn_resnet50s_ade", {"ade20k_encoding": replace(known, url=path.as_uri(), digest="")})
    model = create_model("fcn_resnet50s_ade", pretrained=True, **SHALLOW)
    assert model.state_dict()["heads.main.classifier.bias"].unique().numel() == 1
    backbone = create_backbone("fcn_resnet50s_ade", pretrained=True, **SHALLOW)
    assert torch.equal(backbone.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])


def test_a_name_also_knows_its_backbones_weights_and_no_others_for_its_heads() -> None:
    assert list(public_weights(ResNet, "encnet_resnet50s_ade")) == [
        "ade20k_encoding",
        "imagenet1k_timm",
        "imagenet1k_encoding",
    ]
    with pytest.raises(ConfigError, match=r"no public weights.*weights='imagenet1k_timm'"):
        create_model("psp_resnet50s_ade", pretrained=True)


# -- building --------------------------------------------------------------------------------------------------------


def test_a_config_of_the_name_alone_gives_its_heads_and_classes() -> None:
    with torch.device("meta"):
        model = build_model({"name": "encnet_resnet50s_pcontext"})
        small = build_model("encnet_resnet50s_pcontext", 2)
    assert (model.main_head, model.train_only_heads) == ("main", {"aux"})
    assert [m.heads["main"].classifier.out_channels for m in (model, small)] == [59, 2]  # type: ignore[union-attr]


def test_classes_heads_and_options_may_be_given() -> None:
    with torch.device("meta"):
        model = create_model("fcn_resnet50s_ade", num_classes=7, output_stride=16)
        other = create_model("fcn_resnet50s_ade", heads={"lr": {"name": "lraspp", "blocks": ["stage2", "stage4"]}})
        bare = create_model("fcn_resnet50s_ade", heads={})
    assert model.heads["aux"].classifier.out_channels == 7  # type: ignore[union-attr]
    assert model.blocks["stage4"].stride == 16
    assert list(other.heads) == ["lr"]
    assert features_on_meta(other, 64)["stage4"].shape[1] == 2048
    assert bare.heads["main"].fc.out_features == 1000  # type: ignore[union-attr]


def test_a_plain_backbone_has_its_classifier_or_needs_a_number_for_heads() -> None:
    assert on_meta("resnet18").heads["main"].fc.out_features == 1000  # type: ignore[union-attr]
    assert default_num_classes(ResNet, "resnet18") is None
    with pytest.raises(ConfigError, match=r"heads.*number of classes"):
        create_model("resnet18", heads={"main": {"name": "fcn", "blocks": ["stage4"]}})


@pytest.mark.parametrize("name", ["encnet_resnet50s_ade", "upernet_resnet50s_ade"])
def test_create_backbone_leaves_the_heads_out(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
        plain = create_backbone("resnet50s")
        classifier = create_backbone(name, features_only=False)
    assert not backbone.heads
    assert list(backbone.state_dict()) == list(plain.state_dict())
    assert backbone.blocks["stage4"].stride == ENCODING_MODELS[name].output_stride
    assert classifier.heads["main"].fc.out_features == 1000  # type: ignore[union-attr]
