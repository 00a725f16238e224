"""Heads attach by name to declared blocks and to submodules, and leave a backbone as they found it."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Mapping, Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.heads import ClassyHead, FCNHead, LinearHead
from classyseg.layers import tell_progress
from classyseg.models import ClassyModel, build_model, classy_model, create_backbone
from classyseg.models.memory.freezing import freeze
from classyseg.models.memory.recompute import checkpoint_activations
from classyseg.structures import BlockInfo, outputs_of

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resnet18() -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone("resnet18")


def test_a_declared_block_and_a_submodule_are_described_alike() -> None:
    model = resnet18()
    assert model.block("stage3") == BlockInfo("stage3", 256, 16)
    assert model.block("layer3.1.conv2") == BlockInfo("layer3.1.conv2", 256, 16)
    assert model.block("layer2.0.conv1") == BlockInfo("layer2.0.conv1", 128, 8)
    assert {"stage4", "layer4.1.bn2", "conv1"} <= set(model.attachable_block_names)


def test_finding_a_submodules_channels_changes_nothing() -> None:
    model = resnet18().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.block("layer3.1.conv2")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_several_heads_read_one_model_and_one_head_reads_several_blocks() -> None:
    model = resnet18().eval()
    pair = [model.block("stage2"), model.block("layer4.1.conv2")]
    model.attach_head("pair", FCNHead(pair, 5))
    model.attach_head("image", LinearHead([model.block("stage4")], 7))
    logits = model(torch.randn(2, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"pair": (2, 5, 8, 12), "image": (2, 7)}


def test_a_head_sees_exactly_what_its_submodule_puts_out() -> None:
    model = resnet18().eval()
    seen = []
    model.layer3[1].conv2.register_forward_hook(lambda _m, _i, output: seen.append(output))  # type: ignore[index, union-attr]
    head = FCNHead([model.block("layer3.1.conv2")], 5).eval()
    model.attach_head("main", head)
    image = torch.randn(1, 3, 64, 64)
    found = model(image)["main"]
    assert torch.equal(found, head([seen[-1]]))


def test_detaching_restores_the_backbone() -> None:
    model = resnet18().eval()
    image = torch.randn(1, 3, 64, 64)
    before = model(image)
    head = FCNHead([model.block("layer2.0.conv1")], 5)
    model.attach_head("main", head)
    assert model.detach_head("main") is head
    after = model(image)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_shared_tap_stays_until_its_last_head_is_detached() -> None:
    model = resnet18().eval()
    block = model.block("layer2.0.conv1")
    model.attach_head("a", FCNHead([block], 5))
    model.attach_head("b", FCNHead([block], 5))
    model.detach_head("a")
    assert set(model(torch.randn(1, 3, 64, 64))) == {"b"}


def test_a_train_only_head_is_not_computed_in_eval_mode() -> None:
    model = resnet18()
    model.attach_head("main", FCNHead([model.block("stage4")], 5))
    model.attach_head("aux", FCNHead([model.block("stage3")], 5), train_only=True)
    image = torch.randn(2, 3, 64, 64)
    assert list(model.train()(image)) == ["main", "aux"]
    assert list(model.eval()(image)) == ["main"]
    assert model.main_head == "main"


class PresenceHead(ClassyHead):
    """Logits, another output, and something that it does not name."""

    output_names = ("logits", "se")

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(blocks[0].channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        logits = self.classifier(features[0])
        return {"logits": logits, "se": logits.mean((2, 3)), "other": logits}


def test_a_heads_outputs_are_given_by_name_in_training_and_evaluation() -> None:
    model = resnet18()
    model.attach_head("main", PresenceHead([model.block("stage4")], 5))
    model.attach_head("aux", FCNHead([model.block("stage3")], 5), train_only=True)
    image = torch.randn(2, 3, 64, 64)
    logits = model.train()(image)
    assert {name: tuple(x.shape) for name, x in logits.items()} == {
        "main": (2, 5, 2, 2),
        "main.se": (2, 5),
        "aux": (2, 5, 4, 4),
    }
    assert list(logits) == model.output_names
    assert torch.equal(logits["main.se"], logits["main"].mean((2, 3)))
    assert list(model.eval()(image)) == ["main", "main.se"]
    assert outputs_of(logits, "main").keys() == {"logits", "se"}
    assert model.unused_in_training()  # unless a loss reads the other output


class StrangeHead(PresenceHead):
    """Gives what it is told to, in place of logits."""

    gives: object = None

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return self.gives  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ({"scores": torch.zeros(2, 5)}, r"gives a mapping of 'scores' \(Tensor\); expected .*'logits'"),
        (
            {"logits": None, "se": torch.zeros(2, 5)},
            r"gives a mapping of 'logits' \(NoneType\), 'se' \(Tensor\); expected",
        ),
        ({"logits": torch.zeros(2, 5)}, r"gives a mapping of 'logits' \(Tensor\); expected .*'logits', 'se'"),
        ({}, "gives a mapping of nothing; expected .*'logits'"),
        ([torch.zeros(2, 5)], "gives an object of the type list; expected .*'logits'"),
        (None, "gives an object of the type NoneType"),
    ],
)
def test_a_head_that_gives_no_logits_is_named_with_what_it_gives(gives: object, message: str) -> None:
    model = resnet18()
    head = StrangeHead([model.block("stage4")], 5)
    head.gives = gives
    model.attach_head("main", head)
    with pytest.raises(ConfigError, match=rf"model\.heads\.main.*StrangeHead {message}"):
        model.train()(IMAGE.expand(2, -1, -1, -1))


class Ramp(nn.Module):
    """A plugin's layer, of no base of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def set_progress(self, progress: float) -> None:
        self.told.append(progress)


def test_every_layer_with_set_progress_is_told_wherever_it_stands() -> None:
    model = resnet18()
    head = FCNHead([model.block("stage4")], 5)
    layers = [Ramp(), Ramp()]
    model.layer1.add_module("ramp", layers[0])  # type: ignore[operator]
    head.conv.add_module("ramp", layers[1])
    model.attach_head("main", head)
    for progress in (0.0, 0.25):
        tell_progress(model, progress)
    assert [layer.told for layer in layers] == [[0.0, 0.25]] * 2


def test_a_backbone_that_changes_itself_is_told_and_so_are_its_layers() -> None:
    class Changing(Pooled, Ramp):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[float] = []
            self.ramp = Ramp()

    model = Changing()
    tell_progress(model, 0.5)
    assert (model.told, model.ramp.told) == ([0.5], [0.5])


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("main", BlockInfo("stgae4", 512, 32), "did you mean 'stage4'"),
        ("main", BlockInfo("stage4", 99, 32), "with 99 channels, but it has 512"),
        ("main", BlockInfo("layer3.0.relu", 256, 16), "runs 2 times"),
        ("main", BlockInfo("layer3.0.conv9", 256, 16), "did you mean 'layer3.0.conv"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_and_nothing_changes(name: str, block: BlockInfo, message: str) -> None:
    model = resnet18()
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        model.attach_head(name, FCNHead([block], 5))
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())


def test_an_attached_head_takes_the_models_mode() -> None:
    model = resnet18().eval()
    model.attach_head("main", FCNHead([model.block("stage4")], 5))
    assert not any(module.training for module in model.modules())


def test_a_name_in_use_is_refused() -> None:
    model = resnet18()
    model.attach_head("main", FCNHead([model.block("stage4")], 5))
    with pytest.raises(ConfigError, match=r"heads.main.*has a head"):
        model.attach_head("main", FCNHead([model.block("stage3")], 5))


def test_threads_that_share_a_model_do_not_mix_their_images() -> None:
    model = resnet18().eval()
    model.attach_head("main", FCNHead([model.block("layer3.1.conv2")], 5))
    images = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(image)["main"] for image in images]
    wrong = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(3):
                for image, logits in zip(images, expected, strict=True):
                    if not torch.allclose(model(image)["main"], logits, atol=1e-5):
                        wrong.append(image)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not model.taps.outputs.by_thread


def test_a_head_on_a_submodule_trains() -> None:
    torch.manual_seed(0)
    model = build_model({"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["layer3.1.conv2"]}}}, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    image = torch.randn(4, 3, 32, 32)
    target = (functional.avg_pool2d(image, 16)[:, 0] > 0).long()
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(model(image)["main"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_heads_without_a_number_of_classes_are_an_error() -> None:
    with pytest.raises(ConfigError, match="pass num_classes"):
        build_model({"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}})


class Pooled(ClassyModel):
    """A backbone with a submodule that gives no feature map and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.flat = nn.Flatten()
        self.idle = nn.Conv2d(8, 8, 1)
        self.add_block("stage1", 8, 2)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x = self.conv(image)
        self.flat(x.mean((2, 3), keepdim=True))
        return {"stage1": x}


@pytest.mark.parametrize(
    ("name", "message"),
    [("flat", r"'flat' puts out \(1, 8\); a head needs a feature map"), ("idle", r"'idle' runs 0 times")],
)
def test_a_submodule_without_one_feature_map_is_refused(name: str, message: str) -> None:
    model = Pooled()
    with pytest.raises(ConfigError, match=message):
        model.block(name)
    assert not any(module._forward_hooks for module in model.modules())


def tapped() -> ClassyModel:
    model = resnet18().eval()
    model.attach_head("main", FCNHead([model.block("layer3.1.conv2"), model.block("stage4")], 5))
    return model


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_tapped_model_stands_on_its_own(how: str) -> None:
    model, image = tapped(), torch.randn(1, 3, 64, 64)
    expected = model(image)["main"]
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    nn.init.zeros_(model.get_submodule("layer3.1.conv2").weight)  # type: ignore[arg-type]
    assert torch.equal(twin(image)["main"], expected)
    twin.detach_head("main")
    assert not any(module._forward_hooks for module in twin.modules())
    assert not torch.equal(model(image)["main"], expected)


@pytest.mark.parametrize("name", ["layer1.0.bn1", "layer1.0.bn2", "bn1"])
def test_a_tapped_submodule_gives_its_output_though_the_next_layer_works_in_place(name: str) -> None:
    model = build_model("resnet18").eval()
    model.attach_head("main", FCNHead([model.block(name)], 3))
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.forward_features(image)[name], seen[0])
    assert seen[0].min() < 0


def test_what_a_later_freeze_leaves_out_trains_again() -> None:
    model = create_backbone("resnet18")
    model.conv1.weight.requires_grad_(False)  # somebody else's choice stays
    freeze(model, "stage4", norm=True)
    freeze(model, "stem")
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == {"conv1.weight", "bn1.weight", "bn1.bias"}
    freeze(model, False)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"conv1.weight"}


def test_kept_blocks_change_neither_freezing_nor_the_classifier() -> None:
    model = create_backbone("resnet18", output_indices=[-1, 0])
    assert list(model(IMAGE)) == list(model.blocks) == ["stem", "stage4"]
    assert model.classifier_block.name == "stage4"
    freeze(model, "stage1")
    assert not model.layer1[0].conv1.weight.requires_grad
    whole = create_backbone("resnet18", output_indices=[0], features_only=False)
    assert whole(IMAGE)["main"].shape == (1, 1000)


@pytest.mark.parametrize("indices", [[], [0, 0], [0, -5], [True], [9]])
def test_strange_output_indices_are_errors(indices: list[int]) -> None:
    with pytest.raises(ConfigError, match="output_indices"):
        create_backbone("resnet18", output_indices=indices)


class Plain(ClassyModel):
    """A plugin's backbone that runs its layer itself, on images of one size only."""

    def __init__(self, layer: str = "conv") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.add_block("block", 4, 2, layer)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        assert image.shape[2:] == (64, 64), "images of 64 x 64 only"
        return {"block": self.conv(image)}


def test_a_backbone_that_takes_one_size_can_be_built_and_says_what_it_cannot() -> None:
    model = Plain()
    checkpoint_activations(model, False)
    with pytest.raises(ConfigError, match=r"Plain.*meta device.*256 x 256.*64 x 64 only"):
        checkpoint_activations(model, True)


def test_layers_that_do_not_exist_and_layers_that_cannot_be_computed_again_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"Plain.*'block'.*layer 'c'"):
        freeze(Plain("c"), "block")

    class AnySize(Plain):
        def extract_features(self, image: Tensor) -> dict[str, Tensor]:
            return {"block": self.conv(image)}

    with pytest.raises(ConfigError, match=r"true.*AnySize.*`self\.run_layer`"):
        checkpoint_activations(AnySize(), True)


def test_nothing_tapped_stays_after_a_pass_that_failed() -> None:
    model = create_backbone("resnet18")
    model.watch("layer1.0.conv1")
    with pytest.raises(RuntimeError), mock.patch.object(model.layer4, "forward", side_effect=RuntimeError):
        model(IMAGE)
    assert not model.taps.outputs.by_thread


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("mobilenet_v2", "efficientnet_lite0", "efficientnet_b0")),
        *((name, False) for name in ("vit_ti_16", "hrnet_w18_small_v1", "resnet18_vd", "resnet18")),
    ],
)
def test_layers_of_an_optional_block_that_nobody_reads_get_no_gradient(name: str, expected: bool) -> None:
    model = create_backbone(name)
    deepest = list(model.blocks)[-1]
    model.attach_head("main", FCNHead([model.block(deepest)], 2))
    image = torch.rand(2, 3, 64, 64)
    model(image)["main"].sum().backward()
    assert any(parameter.grad is None for parameter in model.parameters()) == expected
    assert model.unused_in_training() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_submodule_of_a_model_of_another_precision_is_found(dtype: torch.dtype) -> None:
    model = create_backbone("resnet18").to(dtype)
    assert model.block("layer3.1.conv2") == create_backbone("resnet18").block("layer3.1.conv2")


def test_the_contract_knows_no_other_library_and_no_address() -> None:
    modules = {module.__name__ for module in vars(classy_model).values() if hasattr(module, "__file__")}
    origins = {str(getattr(value, "__module__", "")) for value in vars(classy_model).values()} | modules
    assert not {"encoding_models", "catalogue", "public_weights"} & {origin.rpartition(".")[2] for origin in origins}
