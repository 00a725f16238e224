"""The plugin as its users meet it: by name, after `pip install`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from classyseg import BlockInfo, ConfigError, build_head, build_loss, build_model, list_models


def test_the_backbone_is_listed() -> None:
    assert "tinynet" in list_models("tiny*")


def test_blocks_have_the_channels_and_strides_that_they_declare() -> None:
    model = build_model({"name": "tinynet", "widths": [4, 8]})
    features = model(torch.rand(2, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "stage1": (2, 4, 16, 24),
        "stage2": (2, 8, 8, 12),
    }
    assert [(block.channels, block.stride) for block in model.blocks.values()] == [(4, 4), (8, 8)]


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(ConfigError, match="width: unknown key; did you mean 'widths'"):
        build_model({"name": "tinynet", "width": [4, 8]})


def test_the_head_adds_the_scores_of_its_blocks() -> None:
    head = build_head("score_sum", [BlockInfo("fine", 2, 4), BlockInfo("coarse", 3, 8)], 5)
    fine, coarse = torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4)
    alone = head([fine, torch.zeros_like(coarse)]) - head([torch.zeros_like(fine), torch.zeros_like(coarse)])
    added = head([fine, coarse]) - head([torch.zeros_like(fine), coarse])
    assert added.shape == (1, 5, 8, 8)
    torch.testing.assert_close(added, alone)


def test_the_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 8, 8))
    target[:, :3] = 255
    expected = functional.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(build_loss({"name": "tiny_focal", "gamma": 0.0})(logits, target), expected)


def test_the_focal_loss_of_a_pixel_is_that_of_the_paper() -> None:
    logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1)
    loss = build_loss({"name": "tiny_focal", "gamma": 2.0})(logits, torch.tensor([[[0]]]))
    torch.testing.assert_close(loss, 0.75**2 * torch.tensor(4.0).log())


def test_nothing_valid_gives_zero_and_certainty_gives_a_finite_gradient() -> None:
    loss = build_loss({"name": "tiny_focal", "gamma": 0.5})
    assert loss(torch.randn(1, 3, 4, 4), torch.full((1, 8, 8), 255)) == 0
    logits = nn.Parameter(torch.tensor([100.0, -100.0]).view(1, 2, 1, 1))
    loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_model_with_the_head_learns_from_the_loss() -> None:
    torch.manual_seed(0)
    heads = {"main": {"name": "score_sum", "blocks": ["stage1", "stage2", "stage3"]}}
    model = build_model({"name": "tinynet", "heads": heads}, 2).train()
    loss, optimizer = build_loss("tiny_focal"), torch.optim.Adam(model.parameters(), lr=0.01)
    target = torch.zeros(2, 32, 32, dtype=torch.int64)
    target[:, :, 16:] = 1
    image = target.unsqueeze(1).expand(-1, 3, -1, -1).float() + 0.1 * torch.randn(2, 3, 32, 32)
    losses = []
    for _ in range(10):
        losses.append(loss(model(image), target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
