"""The layer between the convolutions of `context_fcn`; numbers of mmsegmentation are in the tests of its configs."""

from __future__ import annotations

import pytest
import torch

from classyseg.heads.context_fcn import CONTEXTS, CrissCross
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

BLOCK = BlockInfo("stage4", 12, 8)


@pytest.mark.parametrize("context", CONTEXTS)
def test_before_training_the_layer_changes_nothing(context: str) -> None:
    torch.manual_seed(0)
    head = HEADS.build({"name": "context_fcn", "context": context, "channels": 16}, [BLOCK], 5).eval()
    image = torch.randn(2, 16, 5, 7)
    assert torch.equal(head.context(image), image)


def test_criss_cross_attention_is_that_of_all_positions_of_the_row_and_the_column() -> None:
    torch.manual_seed(0)
    layer = CrissCross(8, 4)
    layer.gamma.data.fill_(0.5)
    image = wanted = torch.randn(1, 8, 3, 4)
    row, column = torch.arange(12) // 4, torch.arange(12) % 4
    seen = (row[:, None] == row) | (column[:, None] == column)
    for _ in range(2):
        query, key, value = (conv(wanted).flatten(2)[0] for conv in (layer.query, layer.key, layer.value))
        attention = (query.T @ key).masked_fill(~seen, -torch.inf).softmax(1)
        wanted = wanted + 0.5 * (value @ attention.T).view(1, 8, 3, 4)
    assert torch.allclose(layer(image), wanted, atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_export_of_each_kind_equals_eager_at_another_size(context: str) -> None:
    torch.manual_seed(0)
    head = HEADS.build({"name": "context_fcn", "context": context, "channels": 16}, [BLOCK], 5).eval()
    sizes = {2: torch.export.Dim("height", min=4, max=99), 3: torch.export.Dim("width", min=4, max=99)}
    exported = torch.export.export(head, ([torch.randn(1, 12, 8, 9)],), dynamic_shapes=[[sizes]]).module()
    other = torch.randn(1, 12, 5, 13)
    assert torch.allclose(exported([other]), head([other]), atol=1e-5)
