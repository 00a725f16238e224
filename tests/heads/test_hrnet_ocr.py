"""HRNet-OCR, the head `ocr` on an HRNet's branches: its parameters, and what its blocks may be called."""

from __future__ import annotations

import torch

from classyseg.models import ClassyModel, build_model

BRANCHES = ["branch1", "branch2", "branch3", "branch4"]


def hrnet_ocr(name: str, blocks: list[str], num_classes: int) -> ClassyModel:
    return build_model({"name": name, "heads": {"main": {"name": "ocr", "blocks": blocks}}}, num_classes)


def test_parameters_are_those_of_the_papers_model() -> None:
    """With width 48 and the 19 classes of Cityscapes, 70.37 million, written out as the authors' code has them.

    Two of their convolutions, of 512 and 720 channels, have a bias that the batch norm behind takes off again.
    """
    with torch.device("meta"):
        model = hrnet_ocr("hrnet_w48", ["stage4"], 19)
    coarse = 720 * 720 + 2 * 720 + 19 * (720 + 1)
    conv = 9 * 720 * 512 + 2 * 512
    query = key = 512 * 256 + 2 * 256 + 256 * 256 + 2 * 256
    value, output = 512 * 256 + 2 * 256, 256 * 512 + 2 * 512
    fuse = 1024 * 512 + 2 * 512
    classifier = 19 * (512 + 1)
    head = sum(parameter.numel() for parameter in model.heads.parameters())
    assert head == coarse + conv + query + key + value + output + fuse + classifier
    assert sum(parameter.numel() for parameter in model.parameters()) + 512 + 720 == 70_372_678


def test_the_four_branches_as_blocks_are_the_same_model_as_stage4() -> None:
    torch.manual_seed(0)
    whole = hrnet_ocr("hrnet_w18_small_v1", ["stage4"], 3).eval()
    branches = hrnet_ocr("hrnet_w18_small_v1", BRANCHES, 3).eval()
    branches.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        found, expected = branches(image)["main"], whole(image)["main"]
    assert found.shape == (1, 3, 17, 25)
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()))
