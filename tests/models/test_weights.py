"""Weights load whole or not at all, and every difference is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from jsonschema import Draft202012Validator
from safetensors.torch import save_file
from torch import Tensor

from classyseg.checkpoint import save_checkpoint
from classyseg.config import ConfigError
from classyseg.models import ResNet, build_model, create_backbone, create_model, load_weights
from classyseg.models.backbones.convnext import ConvNeXt
from classyseg.models.backbones.hrnet import HRNet
from classyseg.placement import WeightsConfig
from classyseg.registry import task_schema
from classyseg.weights.cache import PublicWeights

HEADS = {"main": {"name": "fcn", "blocks": ["stage4"]}}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture(params=[".pth", ".safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path, reference: dict[str, Tensor]) -> Path:
    path = tmp_path / f"weights{request.param}"
    write(path, reference)
    return path


def write(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def test_torchvisions_weights_load_strictly_into_a_model_with_heads(file: Path, reference: dict[str, Tensor]) -> None:
    model = build_model({"name": "resnet18", "weights": str(file), "heads": HEADS}, 5)
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in reference.items() if not key.startswith("fc."))


def test_missing_unexpected_and_mismatched_keys_are_named_and_nothing_is_loaded(
    tmp_path: Path, reference: dict[str, Tensor]
) -> None:
    state = {key: value for key, value in reference.items() if key != "layer1.0.conv1.weight"}
    state |= {"layer9.weight": torch.zeros(1), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    write(tmp_path / "w.safetensors", state)
    model = create_backbone("resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        build_model({"name": "resnet18", "weights": str(tmp_path / "w.safetensors")})
    message = str(error.value)
    assert "1 missing keys: layer1.0.conv1.weight" in message
    assert "1 unexpected keys: layer9.weight" in message
    assert "conv1.weight is (64, 1, 7, 7), expected (64, 3, 7, 7)" in message
    with pytest.raises(ConfigError):
        load_weights(model, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("value", [-1e-30, -1.0, float("-inf"), float("nan")])
def test_a_variance_that_cannot_be_is_refused(value: float, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    key = "layer2.0.bn1.running_var"
    broken = reference[key].index_fill(0, torch.tensor([3]), value)
    write(tmp_path / "w.pth", {**reference, key: broken})
    with pytest.raises(ConfigError, match=r"1 tensors hold (a variance below 0|values that are not finite): layer2\.0"):
        load_weights(create_backbone("resnet18"), str(tmp_path / "w.pth"))


KEY = "conv1.weight"
UNFIT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "shape": (lambda value: value[:, :, :3], r"conv1\.weight is \(64, 3, 3, 7\), expected \(64, 3, 7, 7\)"),
    "transposed": (lambda value: value.transpose(0, 1).contiguous(), r"is \(3, 64, 7, 7\), expected"),
    "integers": (lambda value: value.to(torch.int8), r"of torch\.int8"),
    "complex": (lambda value: value.to(torch.complex64), r"of torch\.complex64"),
    "nan": (lambda value: value.masked_fill(torch.arange(7) == 3, torch.nan), r"not finite: conv1\.weight"),
    "inf": (lambda value: value.masked_fill(torch.arange(7) == 3, -torch.inf), r"not finite: conv1\.weight"),
    "too_large": (lambda value: value.double() * 1e300, r"not finite: conv1\.weight"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_tensor_that_does_not_fit_changes_nothing(name: str, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    change, message = UNFIT[name]
    write(tmp_path / "w.pth", {**reference, KEY: change(reference[KEY])})
    model = create_backbone("resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_weights(model, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_folder_gives_the_whole_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = build_model({"name": "resnet18", "heads": HEADS}, 5)
    folder = save_checkpoint(tmp_path, 7, {"model": trained.state_dict()}, {})
    model = build_model({"name": "resnet18", "weights": str(folder), "heads": HEADS}, 5)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"shapes.*heads\.main\.classifier\.weight"):
        build_model({"name": "resnet18", "weights": str(folder), "heads": HEADS}, 6)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "marker")}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"w.pth.*(posix|os)\.mkdir"):
        build_model({"name": "resnet18", "weights": str(tmp_path / "w.pth")})
    assert not (tmp_path / "marker").exists()


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=rf"{file.name}.*weights"):
        build_model({"name": "resnet18", "weights": str(file)})


def test_a_training_checkpoint_of_another_kind_is_explained(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="dict without tensors"):
        build_model({"name": "resnet18", "weights": str(tmp_path / "w.pth")})


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'imagenet1k_v2'.*Known: imagenet1k_v2, imagenet1k_v1"):
        build_model({"name": "resnet50", "weights": "imagnet1k_v2"})


def test_a_known_name_is_found_and_its_hash_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: dict[str, Tensor]
) -> None:
    write(tmp_path / "w.pth", reference)
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    url = (tmp_path / "w.pth").as_uri()
    known = {"wrong": PublicWeights(url, "sha256:0123abcd", ""), "right": PublicWeights(url, f"sha256:{digest}", "")}
    monkeypatch.setattr(ResNet, "known_weights", classmethod(lambda cls, variant: known))
    model = create_backbone("resnet18", weights="right")
    assert torch.equal(model.state_dict()["conv1.weight"], reference["conv1.weight"])
    with pytest.raises(ConfigError, match=rf"w\.pth.*{digest[:8]}.*0123abcd"):
        create_backbone("resnet18", pretrained=True)  # the first name


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"sorce": "w.pth"},
            r"weights\.sorce: unknown key; did you mean 'source'\? Known: adapt_input, grid, source, strict",
        ),
        ({"strict": False}, r"weights\.source: missing"),
        ({"source": "w.pth", "strict": "no"}, r"weights\.strict: found 'no'; input should be a valid boolean"),
        (5, "weights: found 5; input should be a valid string"),
    ],
)
def test_the_options_of_weights_are_checked(weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model({"name": "resnet18", "weights": weights})


def test_a_config_may_ask_for_a_part_and_for_another_number_of_channels(
    tmp_path: Path, reference: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    part = {key: value for key, value in reference.items() if not key.startswith("layer4.")}
    write(tmp_path / "w.pth", part)
    weights = {"source": str(tmp_path / "w.pth"), "strict": False, "adapt_input": True}
    found = build_model({"name": "resnet18", "in_channels": 1, "weights": weights}).state_dict()
    torch.testing.assert_close(found["conv1.weight"], reference["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(found["layer3.0.conv1.weight"], reference["layer3.0.conv1.weight"])
    assert not torch.equal(found["layer4.0.conv1.weight"], reference["layer4.0.conv1.weight"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert create_backbone("resnet18", in_channels=2, weights=_whole(tmp_path, reference), adapt_input=True)


def test_the_functions_take_weights_in_every_form_of_a_config(tmp_path: Path, reference: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pth"
    write(path, reference)
    for form in (str(path), path, {"source": str(path)}, {"source": path}, WeightsConfig(source=str(path))):
        for model in (create_backbone("resnet18", weights=form), create_model("resnet18", num_classes=3, weights=form)):
            assert torch.equal(model.state_dict()[KEY], reference[KEY])
    model = create_backbone("resnet18")
    load_weights(model, path)
    assert torch.equal(model.state_dict()[KEY], reference[KEY])
    write(path, {KEY: reference[KEY]})
    part = {"source": path, "strict": False, "adapt_input": True}
    assert create_backbone("resnet18", in_channels=1, weights=part).state_dict()[KEY].shape[1] == 1
    with pytest.raises(ConfigError, match="missing keys"):
        create_backbone("resnet18", weights={**part, "strict": True})


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"sorce": "w.pth"}, r"weights: sorce: unknown key"),
        ({}, r"weights: source: missing"),
        (5, r"weights: source: found 5; input should be a valid string"),
    ],
)
def test_other_forms_of_weights_are_one_error(form: Any, message: str) -> None:
    for create in (create_backbone, partial(create_model, num_classes=3)):
        with pytest.raises(ConfigError, match=message):
            create("resnet18", weights=form)


def _whole(folder: Path, state: dict[str, Tensor]) -> str:
    write(folder / "whole.safetensors", state)
    return str(folder / "whole.safetensors")


def test_the_schema_shows_both_forms_of_weights() -> None:
    schema = task_schema()
    accepts = Draft202012Validator({"$ref": "#/$defs/models.resnet18", "$defs": schema["$defs"]}).is_valid
    assert accepts({"name": "resnet18", "weights": "w.pth"})
    assert accepts({"name": "resnet18", "weights": {"source": "w.pth", "strict": False}})
    assert accepts({"name": "resnet18", "weights": None})
    assert not accepts({"name": "resnet18", "weights": {"source": "w.pth", "strickt": False}})
    assert not accepts({"name": "resnet18", "weights": {"strict": False}})


def test_a_model_can_be_built_before_its_weights_are_there() -> None:
    assert build_model({"name": "resnet18", "weights": "not there"}, load=False)


def test_public_weights_are_those_that_torchvision_knows() -> None:
    known = ResNet.known_weights("resnet50")
    assert list(known) == ["imagenet1k_v2", "imagenet1k_v1"]  # torchvision's default first
    assert known["imagenet1k_v2"].url.endswith("resnet50-11ad3fa6.pth")
    assert (known["imagenet1k_v2"].digest, known["imagenet1k_v2"].resize) == ("sha256:11ad3fa6", 232)
    assert ResNet.known_weights("resnet") == {}


def test_the_reference_classifier_is_taken_when_it_is_asked_for(tmp_path: Path, reference: dict[str, Tensor]) -> None:
    write(tmp_path / "w.safetensors", reference)
    model = create_backbone("resnet18", weights=str(tmp_path / "w.safetensors"), features_only=False)
    assert torch.equal(model.state_dict()["heads.main.fc.weight"], reference["fc.weight"])
    image = torch.randn(1, 3, 64, 64)
    expected = torchvision.models.resnet18()
    expected.load_state_dict(reference)
    torch.testing.assert_close(model.eval()(image)["main"], expected.eval()(image), rtol=1e-4, atol=1e-5)


def test_output_indices_choose_blocks_and_keep_the_keys() -> None:
    whole, some = create_backbone("resnet18"), create_backbone("resnet18", output_indices=[1, -1])
    assert list(some(torch.randn(2, 3, 64, 64))) == ["stage1", "stage4"]
    assert list(some.state_dict()) == list(whole.state_dict())
    with pytest.raises(ConfigError, match=r"output_indices.*\[7\].*'resnet18'.*5 blocks"):
        create_backbone("resnet18", output_indices=[7])


def test_pretrained_needs_a_variant_with_public_weights() -> None:
    with pytest.raises(ConfigError, match="'resnet' knows no public weights"):
        create_backbone("resnet", pretrained=True)


def test_weights_that_want_other_options_say_so_or_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = create_backbone("hrnet_w18_small_v1", padding="symmetric", fuse_upsample="nearest")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    options = (("padding", "symmetric"), ("fuse_upsample", "nearest"))
    known = {"v1": PublicWeights((tmp_path / "w.safetensors").as_uri(), "", "MIT", config=options)}
    monkeypatch.setattr(HRNet, "known_weights", classmethod(lambda cls, variant: known))
    with pytest.raises(ConfigError, match=r"'v1'.*padding: symmetric.*model\.padding: same"):
        build_model({"name": "hrnet_w18_small_v1", "weights": "v1"})
    model = create_backbone("hrnet_w18_small_v1", pretrained=True)
    assert (model.padding, model.fuse_upsample) == ("symmetric", "nearest")
    with pytest.raises(ConfigError, match=r"fuse_upsample: nearest.*model\.fuse_upsample: bil"):
        create_backbone("hrnet_w18_small_v1", pretrained=True, fuse_upsample="bilinear")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny"])
def test_a_classifier_of_several_layers_gives_the_reference_s_logits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    expected = torchvision.models.get_model(name).eval()
    for parameter in expected.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(1, 3, 64, 64)
    for keys in (list, sorted):
        state = {key: expected.state_dict()[key] for key in keys(expected.state_dict())}
        torch.save(state, tmp_path / "w.pth")
        ours = "mobilenet_v3_small_torchvision" if name == "mobilenet_v3_small" else name
        model = create_backbone(ours, features_only=False, weights=str(tmp_path / "w.pth")).eval()
        torch.testing.assert_close(model(image)["main"], expected(image), rtol=1e-4, atol=1e-4)


def test_timm_s_classifier_of_a_convnext_is_taken_though_its_norm_comes_last(tmp_path: Path) -> None:
    source = create_backbone("convnext_tiny", features_only=False)
    (timm,) = ConvNeXt.namings
    state = torchvision.models.convnext_tiny().state_dict()
    file = {timm.key(key): tensor for key, tensor in state.items()}
    for ours, theirs in {"classifier.0": "head.norm", "classifier.2": "head.fc"}.items():
        file |= {f"{theirs}.{leaf}": file.pop(f"{ours}.{leaf}") for leaf in ("weight", "bias")}
    save_file(dict(sorted(file.items())), tmp_path / "w.safetensors")
    loaded = create_backbone("convnext_tiny", features_only=False, weights=str(tmp_path / "w.safetensors"))
    assert list(loaded.state_dict()) == list(source.state_dict())
    assert torch.equal(loaded.state_dict()["heads.main.norm.weight"], state["classifier.0.weight"])
    assert torch.equal(loaded.state_dict()["heads.main.fc.bias"], state["classifier.2.bias"])


def test_a_classifier_with_other_layers_is_refused(tmp_path: Path) -> None:
    state = create_backbone("resnet18").state_dict()
    weights = {f"fc.{i}.weight": torch.zeros(3, 3) for i in (0, 2)}
    save_file(state | weights, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"2 layers \(fc\.0\.weight, fc.*ResNet 1"):
        create_backbone("resnet18", features_only=False, weights=str(tmp_path / "w.safetensors"))
    create_backbone("resnet18", weights=str(tmp_path / "w.safetensors"))
