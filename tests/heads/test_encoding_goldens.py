"""Models with heads against the recorded numbers of PyTorch-Encoding: keys, parameters, and values in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import (
    NOT_FILLED,
    assert_probes,
    encoding_head,
    encoding_keys,
    goldens,
    hashed,
    hashed_weight,
    parameters,
    sorted_keys_sha1,
)
from torch import Tensor
from torch.nn.functional import interpolate

from classyseg.models import ClassyModel, build_model
from classyseg.models.load_weights import match

ENTRIES = [entry for entry in goldens("float64")["segmentation"] if "params" in entry]
NUMERIC = [entry for entry in ENTRIES if "numeric" in entry]


def build(entry: dict[str, Any]) -> ClassyModel:
    """Our model of an entry, on the `meta` device."""
    theirs = entry["args"]
    kind = entry["ctor"].split(".")[-2]
    kind = {"deeplabv3": "deeplab"}.get(kind, kind)
    heads = {"main": encoding_head(kind, theirs)}
    if theirs.get("aux", True):
        heads["aux"] = {"name": "fcn", "blocks": ["stage3"], "train_only": True}
    config = {"name": theirs["backbone"], "output_stride": 32 if kind in ("upernet", "fcfpn") else 8, "heads": heads}
    with torch.device("meta"):
        return build_model(config, theirs["nclass"])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_keys_shapes_and_parameters_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    model = build(entry)
    names = encoding_keys(model)
    shapes = {names[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    assert sorted_keys_sha1(shapes) == entry["sorted_keys_sha1"]
    assert parameters(model) == entry["params"]


TABLE = {
    # PyTorch-Encoding's parameters with resnet50s at 21 and at 150 classes
    "fcn": ({"aux": True}, 35445994, 35545324),
    "fcn without aux": ({"aux": False}, 33080789, 33146966),
    "psp": ({}, 49081578, 49180908),
    "encnet": ({"aux": True, "se_loss": True}, 35999071, 36164578),
    "encnet without se": ({"aux": True, "se_loss": False}, 35988298, 36087628),
    "encnet with lateral, without se": ({"aux": True, "se_loss": False, "lateral": True}, 43855690, 43955020),
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


def deepten(backbone: str, num_classes: int) -> ClassyModel:
    config = {"name": backbone, "heads": {"main": {"name": "deepten", "blocks": ["stage4"]}}}
    with torch.device("meta"):
        return build_model(config, num_classes)


def test_keys_shapes_and_parameters_of_deepten_are_pytorch_encodings() -> None:
    """There the backbone keeps its classifier, `pretrained.fc`, of 1000 classes."""
    (entry,) = [e for e in goldens("float64")["registry"] if e["name"] == "deepten_resnet50_minc"]
    model = deepten("resnet50s", 23)
    names = encoding_keys(model)
    shapes = {names[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    head = {key: list(shape) for key, shape in shapes.items() if key.startswith("head.")}
    assert head == goldens("float64")["head_keys"]["deepten_resnet50_23"]
    shapes |= {"pretrained.fc.weight": (1000, 2048), "pretrained.fc.bias": (1000,)}
    assert sorted_keys_sha1(shapes) == entry["sorted_keys_sha1"]
    classifier = 1000 * (2048 + 1)
    assert parameters(model) + classifier == entry["params"]
    assert sum(parameter.numel() for parameter in model.heads.parameters()) == entry["head_params"]


def test_a_file_of_deepten_loads_strictly_and_gives_the_numbers_of_its_formula() -> None:
    """No outputs of DeepTEN are recorded: its head is written out, with a residual for each position and code."""
    model = deepten("resnet50s", 5).double()
    file = hashed_file(model)
    state, report = match(model, file)
    assert report.problems() == ""
    assert "module.pretrained.fc.bias" in report.ignored
    model.load_state_dict(state, strict=False, assign=True)
    theirs = {key.removeprefix("module.head."): value for key, value in file.items()}
    head = model.heads["main"].eval()
    x = torch.from_numpy(hashed("features", (2, 2048, 3, 4)))
    mapped = torch.einsum("nchw,dc->ndhw", x, theirs["0.weight"][:, :, 0, 0]) + theirs["0.bias"].view(-1, 1, 1)
    mean, variance, weight, bias = (
        theirs[f"1.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    vectors = ((mapped - mean) / (variance + 1e-5).sqrt() * weight + bias).relu().flatten(2).transpose(1, 2)
    residuals = vectors[:, :, None] - theirs["3.codewords"]
    shares = (theirs["3.scale"] * residuals.square().sum(3)).softmax(2)
    codes = (shares[..., None] * residuals).sum(1).flatten(1)
    expected = codes / codes.norm(dim=1, keepdim=True) @ theirs["6.weight"].T + theirs["6.bias"]
    with torch.no_grad():
        assert torch.allclose(head([x]), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


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
    entries = {entry["id"]: entry for entry in ENTRIES}
    psp, encnet = (build(entries[name]) for name in ("psp_resnet50s_21_aux", "encnet_resnet50s_21_lat1_se0_aux0"))
    _, report = match(encnet, hashed_file(psp))
    assert any(key.startswith("module.head.encmodule.") for key in report.missing)
    assert any(key.startswith("module.head.conv5.0.conv1.") for key in report.unexpected)
