"""A classifier that is wanted comes from the file, or an error says why not: it is never random in silence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from head_blocks import deepest
from safetensors.torch import save_file
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.heads import ClassyHead, build_head
from classyseg.models import ClassyModel, create_backbone, create_model, load_weights
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

TINY = {"depths": (1, 1, 1, 1)}
CLASSYVISION = "classy_state_dict.base_model.model"


def backbone_keys() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(create_backbone("resnet18", **TINY).state_dict())


def classifier(num_classes: int = 1000, channels: int = 512) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(num_classes)
    return {
        "weight": torch.randn(num_classes, channels, generator=generator),
        "bias": torch.randn(num_classes, generator=generator),
    }


def write(path: Path, state: dict[str, Any], layer: str = "", num_classes: int = 1000) -> str:
    more = {f"{layer}.{leaf}": value for leaf, value in classifier(num_classes).items()} if layer else {}
    torch.save({**state, **more}, path)
    return str(path)


def is_loaded(model: ClassyModel, layer: str, num_classes: int = 1000) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[f"{layer}.{leaf}"], value) for leaf, value in classifier(num_classes).items())


# -- the doors -------------------------------------------------------------------------------------------------------


def test_a_file_without_a_classifier_is_an_error_where_one_is_wanted(tmp_path: Path) -> None:
    file = write(tmp_path / "backbone.pth", backbone_keys())
    message = r"backbone\.pth' holds no classifier for the head 'main' of resnet18 \(looked for keys such as fc\.\*\)"
    with pytest.raises(ConfigError, match=message):
        create_model("resnet18", weights=file, **TINY)
    with pytest.raises(ConfigError, match=message):
        create_model("resnet18", num_classes=1000, weights=file, **TINY)
    with pytest.raises(ConfigError, match=message):
        create_backbone("resnet18", features_only=False, weights=file, **TINY)
    create_backbone("resnet18", weights=file, **TINY)


def test_a_new_classifier_is_asked_for_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "backbone.pth", backbone_keys())
    model = create_model("resnet18", weights={"source": file, "strict": False}, **TINY)
    assert (
        "holds no classifier for the head 'main', of 1000 classes: heads.main.fc.weight, heads.main.fc.bias are random"
        in caplog.text
    )
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], backbone_keys()["layer1.0.conv1.weight"])


@pytest.mark.parametrize("given", [1000, 0])
def test_other_classes_than_the_file_s_start_anew_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: int
) -> None:
    file = write(tmp_path / "w.pth", backbone_keys(), "fc" if given else "", given)
    create_model("resnet18", num_classes=7, weights=file, **TINY)
    found = "its classifier has 1000 classes, the head 'main' has 7" if given else "the head 'main', of 7 classes"
    assert f"{found}: heads.main.fc.weight, heads.main.fc.bias are random" in caplog.text


def test_a_classifier_of_the_classes_that_are_asked_for_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", backbone_keys(), "fc", 7)
    assert is_loaded(create_model("resnet18", num_classes=7, weights=file, **TINY), "heads.main.fc", 7)
    with pytest.raises(ConfigError, match=r"fc\.weight is \(7, 512\), expected \(1000, 512\)"):
        create_model("resnet18", weights=file, **TINY)


def test_our_own_checkpoint_brings_its_head(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = create_model("resnet18", num_classes=7, **TINY)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = create_model("resnet18", num_classes=7, weights=tmp_path / "own.pth", **TINY)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


# -- ClassyVision's layout ---------------------------------------------------------------------------------------------


def classyvision(path: Path, heads: dict[str, Any], around: str = CLASSYVISION) -> str:
    """A file as ClassyVision 0.7.0 writes it: the heads beside the trunk, by block and by their own names."""
    tree: dict[str, Any] = {"trunk": backbone_keys(), "heads": heads}
    for key in reversed(around.split(".")):
        tree = {key: tree}
    torch.save({"input_args": None, **tree}, path)
    return str(path)


@pytest.mark.parametrize("around", [CLASSYVISION, "model"])
def test_classyvisions_own_head_is_loaded(tmp_path: Path, around: str) -> None:
    layer = {f"fc.{leaf}": value for leaf, value in classifier().items()}
    file = classyvision(tmp_path / "checkpoint.torch", {"block3-1": {"default_head": layer}}, around)
    model = create_model("resnet18", weights=file, **TINY)
    assert is_loaded(model, "heads.main.fc")
    assert is_loaded(create_backbone("resnet18", features_only=False, weights=file, **TINY), "heads.main.fc")
    model = create_backbone("resnet18", **TINY)
    model.attach_head("cls", build_head("fully_connected", [model.block("stage4")], 1000))
    load_weights(model, file, classifier="cls")
    assert is_loaded(model, "heads.cls.fc")


def test_classyvisions_two_layer_head_goes_into_ours_of_two_layers(tmp_path: Path) -> None:
    hidden = {f"layers.pre_logits.{leaf}": value for leaf, value in classifier(32).items()}
    last = {f"layers.head.{leaf}": value for leaf, value in classifier(1000, 32).items()}
    file = classyvision(tmp_path / "c.torch", {"trunk_output": {"h": hidden | last}})
    with pytest.raises(ConfigError, match=r"2 layers .*ResNet 1"):
        create_model("resnet18", weights=file, **TINY)
    model = create_backbone("resnet18", **TINY)
    head = build_head({"name": "vision_transformer", "hidden_dim": 32}, [model.block("stage4")], 1000)
    model.attach_head("main", head)
    load_weights(model, file, classifier="main")
    assert is_loaded(model, "heads.main.layers.pre_logits", 32)
    assert torch.equal(model.state_dict()["heads.main.layers.head.bias"], last["layers.head.bias"])


@pytest.mark.parametrize("heads", [{}, {"block3-1": {"a": {"fc.weight": 1}, "b": {"fc.weight": 1}}}])
def test_no_head_and_two_heads_of_classyvision_are_errors(tmp_path: Path, heads: dict[str, Any]) -> None:
    tensors = {block: {name: {"fc.weight": torch.zeros(3, 512)} for name in own} for block, own in heads.items()}
    file = classyvision(tmp_path / "c.torch", tensors)
    message = "holds no classifier" if not heads else r"2 layers \(.*heads\.block3-1\.a\.fc\.weight, .*b\.fc\.weight"
    with pytest.raises(ConfigError, match=message):
        create_model("resnet18", weights=file, **TINY)


# -- any head ----------------------------------------------------------------------------------------------------------

TAKES_A_CLASSIFIER = {"linear": "fc", "fully_connected": "fc", "vision_transformer": "layers.head"}
TAKES_A_CLASSIFIER |= {"fully_convolutional_linear": "projection"}


class TwoSteps(ClassyHead):
    """A plugin's head: its linear layer is called as it likes."""

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()
        self.decide = nn.Linear(blocks[0].channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.decide(features[0].mean((2, 3)))


@pytest.mark.parametrize("name", [*HEADS.names(), "test_two_steps"])
def test_every_head_takes_the_classifier_or_says_why_not(name: str, tmp_path: Path, own_registries: None) -> None:
    """None is left as it was in silence, and none fails otherwise."""
    HEADS.register("test_two_steps")(TwoSteps)
    file = write(tmp_path / "w.pth", backbone_keys(), "fc", 512)
    model = create_backbone("resnet18", **TINY)
    blocks = list(model.blocks.values())[1:]
    model.attach_head("main", build_head(name, deepest(name, blocks), 512))
    layer = {"test_two_steps": "decide", **TAKES_A_CLASSIFIER}.get(name)
    if layer is not None:
        load_weights(model, file, classifier="main")
        assert is_loaded(model, f"heads.main.{layer}", 512)
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"^classifier.*'main' \(\w+Head\).*(layers of other|no layer)"):
        load_weights(model, file, classifier="main")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_weights(model, file)


def test_a_head_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = create_model("resnet18", **TINY)
    with pytest.raises(ConfigError, match=r"classifier.*'mian'.*'main'"):
        load_weights(model, write(tmp_path / "w.pth", backbone_keys(), "fc"), classifier="mian")


def test_a_bias_without_a_place_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    model = create_model("resnet18", **TINY)
    file = write(tmp_path / "w.pth", {**backbone_keys(), "fc.weight": classifier()["weight"]})
    with pytest.raises(ConfigError, match=r"1 missing keys: fc\.bias"):
        load_weights(model, file, classifier="main")
    model.heads["main"].fc = nn.Linear(512, 1000, bias=False)
    with pytest.raises(ConfigError, match=r"fc\.bias.*heads\.main\.fc.*no bias"):
        load_weights(model, write(tmp_path / "b.pth", backbone_keys(), "fc"), classifier="main")
    load_weights(model, file, classifier="main")
    assert torch.equal(model.state_dict()["heads.main.fc.weight"], classifier()["weight"])


def test_heads_of_which_the_file_holds_nothing_are_told(tmp_path: Path) -> None:
    save_file(backbone_keys(), tmp_path / "w.safetensors")
    model = create_backbone("resnet18", **TINY)
    model.attach_head("main", build_head("fcn", [model.block("stage4")], 5))
    report = load_weights(model, str(tmp_path / "w.safetensors"))
    assert report.new_heads == ("main",)
    assert report.summary().endswith("; random, as initialised: heads.main")


def test_the_heads_that_a_name_brings_are_told_where_the_file_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"depths": (1, 1, 1, 1)}
    torch.save(create_backbone("fcn_resnet50s_ade", **small).state_dict(), tmp_path / "w.pth")
    create_model("fcn_resnet50s_ade", weights=tmp_path / "w.pth", **small)
    assert "w.pth' holds nothing of heads.main, heads.aux: as initialised" in caplog.text
