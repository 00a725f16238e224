"""WideResNet-38 and -50 are PyTorch-Encoding's, with the activations that its evaluation leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import (
    assert_encodings_keys_and_shapes,
    assert_fingerprint,
    assert_probes,
    drawn_input,
    encoding_entries,
    golden,
    golden_names,
    parameters,
    reference_state,
    run_encoding,
    with_ids,
)
from torch import nn

from classyseg.models import create_backbone

ENCODINGS = encoding_entries("wideresnet")
BLOCKS = {"mod2": "stem", "mod3": "stage1", "mod4": "stage2", "mod5": "stage3", "bn_out": "stage4"}
TINY: dict[str, Any] = {"width": 4, "depths": (1, 1, 2, 2, 2, 2)}


@pytest.mark.parametrize("entry", with_ids(ENCODINGS))
def test_keys_and_shapes_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    assert_encodings_keys_and_shapes(entry, BLOCKS)


@pytest.mark.slow
@pytest.mark.parametrize("entry", with_ids(ENCODINGS))
@pytest.mark.parametrize("section", ["numeric_with_act", "numeric"])
def test_values_are_pytorch_encodings_with_and_without_activations(entry: dict[str, Any], section: str) -> None:
    found = run_encoding(entry, reference_eval=section == "numeric")
    for theirs, ours in {"mod5": "stage3", "bn_out": "stage4", "logits": "logits"}.items():
        assert_probes(found[ours], entry[section][theirs])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in golden_names("pytorch_encoding") if "wideresnet" in name])
def test_values_at_224_pixels_are_pytorch_encodings(name: str) -> None:
    expected = golden("pytorch_encoding", name)
    variant, _, dilated = name.removeprefix("pe/").partition("/dilated=")
    with torch.device("meta"):
        model = create_backbone(variant, output_stride=8 if dilated == "True" else 32, reference_eval=True).eval()
    model.load_state_dict(reference_state(model), strict=False, assign=True)
    assert parameters(model) == expected["params_without_fc"]
    with torch.no_grad():
        found = list(model(drawn_input(224, 224)).values())
    shapes = expected["shapes_224"]  # of mod2 to mod7 and bn_out
    assert [list(feature.shape) for feature in found] == [*shapes[:4], shapes[6]]
    assert_fingerprint(found[-1], expected["last_fingerprint"])


def test_both_spellings_name_the_same_network() -> None:
    with torch.device("meta"):
        ours, theirs = create_backbone("wide_resnet50"), create_backbone("wideresnet50")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [256, 225])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(output_stride: int, size: int) -> None:
    torch.manual_seed(0)
    plain = randomised(create_backbone("wide_resnet", **TINY))
    dilated = create_backbone("wide_resnet", output_stride=output_stride, **TINY).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, size, size)
    step = 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_evaluation_has_the_activations_of_training_unless_the_reference_is_asked_for() -> None:
    for reference_eval, below in ((False, False), (True, True)):
        torch.manual_seed(0)
        model = create_backbone("wide_resnet", reference_eval=reference_eval, dropout=(0, 0), **TINY)
        assert model.train()(torch.randn(2, 3, 64, 64))["stage4"].min() > -0.1
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            image = torch.randn(2, 3, 64, 64)
            model(image)
            assert (model.eval()(image)["stage4"].min() < -0.5) == below


def test_dropout_works_in_the_last_two_groups_in_training_alone() -> None:
    torch.manual_seed(0)
    model = create_backbone("wide_resnet", dropout=(0.5, 0.0), norm={"name": "group", "groups": 4}, **TINY)
    image = torch.randn(1, 3, 64, 64)
    first, second = model(image), model(image)
    assert torch.equal(first["stage3"], second["stage3"])
    assert not torch.equal(first["stage4"], second["stage4"])
    assert torch.equal(model.eval()(image)["stage4"], model(image)["stage4"])


def test_images_may_have_any_number_of_channels() -> None:
    assert create_backbone("wide_resnet", in_channels=5, **TINY)(torch.randn(2, 5, 64, 64))["stage4"].shape[1] == 256
