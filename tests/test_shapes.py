"""Shapes without values: those that torch itself finds on the `meta` device, and no import that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import ConfigError
from classyseg.models import LATER, build_model
from classyseg.registry import MODELS
from classyseg.shapes import MAX_MODULES, Shapes, bounded
from runs import slow_imports

ROOT = Path(__file__).parents[1]


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


CASES: dict[str, Callable[[], Any]] = {
    "conv": lambda: F.conv2d(empty(2, 6, 33, 40), empty(8, 3, 3, 5), stride=(2, 1), padding=1, dilation=2, groups=2),
    "conv same": lambda: F.conv2d(empty(2, 6, 33, 40), empty(8, 6, 3, 3), padding="same"),
    "conv of one image": lambda: F.conv2d(empty(6, 33, 40), empty(8, 6, 3, 3)),
    "conv of other channels": lambda: F.conv2d(empty(2, 5, 33, 40), empty(8, 6, 3, 3)),
    "conv of too little": lambda: F.conv2d(empty(2, 6, 2, 40), empty(8, 6, 3, 3)),
    "relu": lambda: F.relu(empty(2, 3), inplace=True),
    "batch norm": lambda: F.batch_norm(empty(2, 3, 4, 4), empty(3), empty(3), empty(3), empty(3), training=True),
    "batch norm of one value": lambda: F.batch_norm(empty(1, 3, 1, 1), empty(3), empty(3), training=True),
    "batch norm of other channels": lambda: F.batch_norm(empty(2, 4, 4, 4), empty(3), empty(3), empty(3), empty(3)),
    "interpolate": lambda: F.interpolate(empty(2, 3, 5, 7), size=(9, 4), mode="bilinear", align_corners=False),
    "interpolate by a factor": lambda: F.interpolate(empty(2, 3, 5, 7), scale_factor=2.0),
    "adaptive pool": lambda: F.adaptive_avg_pool2d(empty(2, 3, 5, 7), (3, 2)),
    "adaptive pool of a side": lambda: F.adaptive_avg_pool2d(empty(2, 3, 5, 7), (None, 2)),
    "max pool": lambda: F.max_pool2d(empty(2, 3, 15, 18), 3, stride=2, padding=1),
    "max pool up": lambda: F.max_pool2d(empty(2, 3, 15, 18), 2, ceil_mode=True),
    "sum": lambda: empty(2, 3, 4, 4) + empty(2, 1, 1, 4),
    "sum of other sizes": lambda: empty(2, 3, 4, 4) + empty(2, 2, 4, 4),
    "sum in place": lambda: empty(2, 3, 4).add_(empty(2, 1, 4)),
    "sum in place that grows": lambda: empty(2, 1, 4).add_(empty(2, 3, 4)),
    "product": lambda: 0.5 * empty(2, 3) * empty(2, 3),
    "sum of two types": lambda: empty(2, 3) + empty(2, 3).half(),
    "integers": lambda: torch.ones(2, 3, dtype=torch.int64, device="meta") + 0.5,
    "cat": lambda: torch.cat([empty(2, 3, 4), empty(2, 5, 4)], 1),
    "cat from behind": lambda: torch.cat((empty(2, 3, 4), empty(2, 3, 5)), dim=-1),
    "cat of other sizes": lambda: torch.cat([empty(2, 3, 4), empty(2, 5, 5)], 1),
    "mean": lambda: empty(2, 3, 4, 5).mean((2, 3), keepdim=True),
    "mean of one": lambda: torch.mean(empty(2, 3, 4, 5), dim=-1),
    "mean of all": lambda: empty(2, 3).mean(),
    "mean of a dimension that is not there": lambda: empty(2, 3).mean(2),
    "mean of a dimension twice": lambda: empty(2, 3).mean((1, -1)),
    "total": lambda: empty(2, 3, 4).square().sum(-1, keepdim=True),
    "sum of fewer dimensions": lambda: 2 * empty(2, 3, 4) + empty(4),
    "sum of fewer dimensions that do not fit": lambda: empty(2, 3, 4) + empty(3),
    "softmax": lambda: F.softmax(empty(2, 3, 4), dim=1),
    "softmax of another type": lambda: empty(2, 3, 4).softmax(-1, torch.float64),
    "softmax of a dimension that is not there": lambda: torch.softmax(empty(2, 3), 2),
    "product of matrices": lambda: empty(2, 3, 4) @ empty(5, 4).T,
    "product of matrices that do not fit": lambda: empty(2, 3, 4) @ empty(5, 4),
    "products of stacks": lambda: empty(2, 3, 4).transpose(1, 2) @ empty(2, 3, 5),
    "products of stacks of other sizes": lambda: empty(2, 3, 4) @ empty(5, 4, 2),
    "linear": lambda: F.linear(empty(2, 3, 4), empty(5, 4), empty(5)),
    "linear of other channels": lambda: F.linear(empty(2, 3), empty(5, 4), empty(5)),
    "dropout": lambda: F.dropout2d(empty(2, 3, 4, 5), 0.5, training=True),
    "sigmoid": lambda: empty(2, 3).sigmoid(),
    "sigmoid of integers": lambda: torch.ones(2, 3, dtype=torch.int64, device="meta").sigmoid(),
    "gelu": lambda: F.gelu(empty(2, 3), approximate="tanh"),
    "gelu of an unknown kind": lambda: F.gelu(empty(2, 3), approximate="none of these"),
    "gelu of integers": lambda: F.gelu(torch.ones(2, 3, dtype=torch.int64, device="meta")),
    "leaky relu": lambda: F.leaky_relu(empty(2, 3), 0.2, inplace=True),
    "hardswish": lambda: F.hardswish(empty(2, 3), True),
    "silu without an argument that it has": lambda: F.silu(empty(2, 3), inplace="yes"),  # type: ignore[arg-type]
    "group norm": lambda: F.group_norm(empty(1, 6, 1, 1), 3, empty(6), empty(6)),
    "group norm of one value": lambda: F.group_norm(empty(1, 3, 1, 1), 3, empty(3)),
    "group norm of other channels": lambda: F.group_norm(empty(1, 6, 2, 2), 3, empty(5), empty(5)),
    "group norm of groups that do not fit": lambda: F.group_norm(empty(1, 6, 2, 2), 4),
    "layer norm": lambda: F.layer_norm(empty(2, 3, 4), (3, 4), empty(3, 4)),
    "layer norm of other channels": lambda: F.layer_norm(empty(2, 3, 4), (3,), empty(3)),
    "layer norm of other weights": lambda: F.layer_norm(empty(2, 3, 4), (4,), empty(3)),
    "drawn": lambda: nn.init.kaiming_normal_(empty(4, 3, 3, 3)),
    "zero": lambda: nn.init.zeros_(empty(4)),
}


def outcome(run: Callable[[], Any]) -> Any:
    try:
        found = run()
    except (RuntimeError, ValueError, IndexError) as error:
        return type(error), str(error).partition("\n")[0]
    return found.shape, found.dtype, found.device


@pytest.mark.parametrize("name", CASES)
def test_a_function_gives_what_torch_gives_on_the_meta_device(name: str) -> None:
    with torch.no_grad():
        expected = outcome(CASES[name])
        with Shapes():
            assert outcome(CASES[name]) == expected


HEADS = ("fcn", "psp", "deeplabv3", "encnet", "ocr", "atten", "upernet", "unet", "lraspp", "point_rend", "segformer")
BLOCKS = {"upernet": ["stage1", "stage2", "stage3", "stage4"], "lraspp": ["stage2", "stage4"]}
BLOCKS |= {"unet": BLOCKS["upernet"], "segformer": BLOCKS["upernet"], "point_rend": ["stage1", "stage4"]}


@pytest.mark.parametrize("head", HEADS)
def test_a_model_with_a_head_gives_what_torch_gives_on_the_meta_device(head: str) -> None:
    config = {"name": "resnet18", "heads": {"main": {"name": head, "blocks": BLOCKS.get(head, ["stage4"])}}}
    with torch.device("meta"):
        model = build_model(config, 5).train()
    with torch.no_grad():
        expected = {name: value.shape for name, value in model(empty(2, 3, 96, 64)).items()}
        with Shapes():
            assert {name: value.shape for name, value in model(empty(2, 3, 96, 64)).items()} == expected


def test_values_are_computed_as_ever_beside_shapes() -> None:
    image = torch.rand(2, 3, 8, 8)
    with Shapes():
        assert torch.equal(F.relu(image - 0.5), (image - 0.5).clamp(min=0))


def test_a_check_of_a_resnet_imports_nothing_that_takes_a_second() -> None:
    code = (
        "from classyseg.cli.main import main; "
        "status = main(['config', 'check', 'task_configs/camvid/deeplabv3_resnet50.yaml']); "
        "status += main(['config', 'check', 'task_configs/pascal_context/encnet_resnet50s.yaml'])"
    )
    assert slow_imports(code) == "0"


def test_what_is_imported_later_is_found_by_its_name() -> None:
    patterns = {name: patterns for names, patterns in LATER.values() for name in names}
    late = {name: MODELS.entry(name).component.__name__ for name in MODELS.names()}
    late = {name: component for name, component in late.items() if component in patterns}
    assert len(late) > 60
    assert [n for n, component in late.items() if not any(fnmatch(n, p) for p in patterns[component])] == []


def test_a_model_is_bounded_while_it_is_built_and_no_longer() -> None:
    with pytest.raises(ConfigError, match="layers"), bounded():
        nn.ModuleList(nn.Identity() for _ in range(MAX_MODULES + 1))
    with pytest.raises(ConfigError, match="parameters"), bounded(), torch.device("meta"):
        nn.Linear(200_000, 200_000)
    assert len(nn.ModuleList(nn.Identity() for _ in range(MAX_MODULES + 1))) > MAX_MODULES
