"""Models with heads against the recorded numbers of PyTorch-Encoding: keys, parameters, and values in float64."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from goldens import NOT_FILLED, assert_probes, goldens, hashed, hashed_weight, parameters, wanted
from torch import Tensor
from torch.nn.functional import interpolate

from classyseg.models import ClassyModel, build_model
from classyseg.models.weights import match
from classyseg.models.weights.load import encoding_names

ENTRIES = [entry for entry in goldens("float64").get("segmentation", ()) if "params" in entry]
NUMERIC = [entry for entry in ENTRIES if "numeric" in entry]
LATERAL = ["stage2", "stage3", "stage4"]
PYRAMID = ["stage1", *LATERAL]
DEEPLAB = {"norm_image": True, "dropout": 0.5, "drop_channels": True, "classifier_dropout": 0.1}


def head_config(kind: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """Our main head of PyTorch-Encoding's model `kind`."""
    lateral = theirs.get("lateral") or theirs.get("with_lateral")
    blocks = PYRAMID if kind in ("upernet", "fcfpn") else LATERAL if lateral else ["stage4"]
    options: dict[str, dict[str, Any]] = {
        "fcn": dict.fromkeys(("with_global", "norm_image"), theirs.get("with_global", False)),
        "psp": {"norm_image": True, "align_corners": True},
        "encnet": {"se_branch": theirs.get("se_loss", True)},
        "deeplab": DEEPLAB,
        "upernet": {"norm_image": True, "align_corners": True},
        "fcfpn": {"align_corners": True},
        "atten": {
            "num_heads": theirs.get("nheads", 8),
            "num_mixtures": theirs.get("nmixs", 1),
            "se_branch": theirs.get("se_loss", False),
            "norm_image": True,
        },
    }
    return {"name": {"deeplab": "deeplabv3"}.get(kind, kind), "blocks": blocks, **options[kind]}


def build(entry: dict[str, Any]) -> ClassyModel:
    """Our model of an entry, on the `meta` device."""
    theirs = entry["args"]
    kind = entry["ctor"].split(".")[-2]
    kind = {"deeplabv3": "deeplab"}.get(kind, kind)
    heads = {"main": head_config(kind, theirs)}
    if theirs.get("aux", True):
        heads["aux"] = {"name": "fcn", "blocks": ["stage3"], "train_only": True}
    config = {"name": theirs["backbone"], "output_stride": 32 if kind in ("upernet", "fcfpn") else 8, "heads": heads}
    with torch.device("meta"):
        return build_model(config, theirs["nclass"])


def encoding_keys(model: ClassyModel) -> dict[str, str]:
    backbone = {key: f"pretrained.{key}" for key in model.state_dict() if not key.startswith("heads.")}
    return backbone | encoding_names(model)


def with_aliases(keys: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """PyTorch-Encoding's model ATTEN holds its attention under two names, and the keys' convolution under two more."""
    twice = {key.replace("head.atten.", "head.atten_layers.1."): shape for key, shape in keys.items()} | keys
    return {key.replace("conv_qs", "conv_ks"): shape for key, shape in twice.items()} | twice


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_keys_shapes_and_parameters_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    model = build(entry)
    names = encoding_keys(model)
    shapes = {names[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    lines = sorted(f"{key} {shape}" for key, shape in with_aliases(shapes).items())
    assert hashlib.sha1("\n".join(lines).encode()).hexdigest() == entry["sorted_keys_sha1"]
    assert parameters(model) == entry["params"]


TABLE = {
    # PyTorch-Encoding's parameters with resnet50s at 21 and at 150 classes
    "fcn": ({"aux": True}, 35445994, 35545324),
    "fcn without aux": ({"aux": False}, 33080789, 33146966),
    "psp": ({}, 49081578, 49180908),
    "encnet": ({"aux": True, "se_loss": True}, 35999071, 36164578),
    "encnet with lateral": ({"aux": True, "se_loss": True, "lateral": True}, 43866463, 44031970),
    "deeplab": ({}, 42127850, 42194156),
    "upernet": ({"aux": False}, 44229589, 44295766),
    "fcfpn": ({"aux": False}, 35312597, 35378774),
    "atten": ({}, 38641482, 38806860),
}


@pytest.mark.parametrize("kind", TABLE)
def test_parameters_are_those_of_the_published_table(kind: str) -> None:
    theirs, *expected = TABLE[kind]
    ctor = f"encoding.models.sseg.{kind.split()[0]}.X"
    found = [
        parameters(build({"ctor": ctor, "args": {**theirs, "backbone": "resnet50s", "nclass": count}}))
        for count in (21, 150)
    ]
    assert found == expected


def hashed_file(model: ClassyModel) -> dict[str, Tensor]:
    """A file of PyTorch-Encoding's for `model`, with what such files have beside: `fc`, and a prefix."""
    names = encoding_keys(model)
    shapes = {names[key]: tuple(v.shape) for key, v in model.state_dict().items() if not key.endswith(NOT_FILLED)}
    state = {f"module.{key}": torch.from_numpy(hashed_weight(key, shape)) for key, shape in shapes.items()}
    state["module.pretrained.fc.bias"] = torch.zeros(1000)
    if "head.atten.conv.weight" in shapes:
        state["module.head.atten_layers.1.conv_ks.bias"] = torch.zeros(1)
        state["module.head.atten.conv_ks.bias"] = torch.zeros(1)
    return state


@pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry["id"])
def test_values_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    model = build(entry).double()
    state, report = match(model, hashed_file(model))
    assert report.problems() == ""
    assert "module.pretrained.fc.bias" in report.ignored
    model.load_state_dict(state, strict=False, assign=True)
    for key, value in model.state_dict().items():
        if key.endswith(NOT_FILLED):
            model.get_submodule(key.rpartition(".")[0]).num_batches_tracked = torch.zeros_like(value, device="cpu")
    found = training_outputs_with_statistics(model, entry["numeric"]["input"])
    expected = entry["numeric"]["outputs"]
    assert set(found) == set(expected)
    for name, probes in expected.items():
        assert_probes(found[name], probes)


def training_outputs_with_statistics(model: ClassyModel, text: str) -> dict[str, Tensor]:
    """What each head gives in training, but with running statistics and nothing dropped; resized as there."""
    shape = tuple(int(number) for number in text.partition("((")[2].partition(")")[0].split(","))
    image = torch.from_numpy(hashed(f"input:{shape}", shape))
    model.eval().training = True
    for head in model.heads.values():
        head.training = True
    with torch.no_grad():
        outputs = model(image)
    names = {"main": "pred", "main.se": "se", "aux": "aux"}
    return {
        names[name]: interpolate(x, shape[2:], mode="bilinear", align_corners=True) if x.dim() == 4 else x
        for name, x in outputs.items()
    }


def test_a_file_of_another_head_does_not_load() -> None:
    wanted(goldens("float64"))
    entries = {entry["id"]: entry for entry in ENTRIES}
    psp, encnet = (build(entries[name]) for name in ("psp_resnet50s_21_aux", "encnet_resnet50s_21_lat1_se0_aux0"))
    _, report = match(encnet, hashed_file(psp))
    assert any(key.startswith("module.head.encmodule.") for key in report.missing)
    assert any(key.startswith("module.head.conv5.0.conv1.") for key in report.unexpected)
