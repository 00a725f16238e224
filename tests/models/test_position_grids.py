"""Position embeddings are placed on the grid that the file or the user tells, and refused where nobody does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.checkpoint import save_checkpoint
from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone, load_weights

CHANNELS = 8
NAMES = ("vision_transformer", "hybrid_vit")
KEY = "encoder.pos_embedding"


def tiny(name: str, image_size: Any, **options: Any) -> ClassyModel:
    """A transformer over patches of 16 pixels."""
    sizes = {"num_layers": 4, "num_heads": 2, "hidden_dim": CHANNELS, "mlp_dim": 16, "image_size": image_size}
    if name == "hybrid_vit":
        sizes |= {"num_layers": 1, "depths": (1, 1, 1)}
    torch.manual_seed(0)
    return create_backbone(name, **sizes, **options)


def table(rows: int, columns: int, num_extra: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(1, num_extra + rows * columns, CHANNELS, generator=generator)


def resized(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """As torchvision's `interpolate_embeddings` resizes them, which has square grids alone."""
    token, grid_part = positions[:, :1], positions[:, 1:]
    maps = grid_part.permute(0, 2, 1).reshape(1, CHANNELS, *grid)
    maps = functional.interpolate(maps, size, mode="bicubic", align_corners=True)
    return torch.cat([token, maps.reshape(1, CHANNELS, -1).permute(0, 2, 1)], 1)


def loaded(model: ClassyModel, positions: Tensor, path: Path, **options: Any) -> Tensor:
    torch.save({**model.state_dict(), KEY: positions}, path)
    load_weights(model, str(path), **options)
    return model.state_dict()[KEY]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 128])
def test_a_told_oblong_grid_is_placed_right_whatever_the_models_is(name: str, side: int, tmp_path: Path) -> None:
    """16 positions are those of 4 x 4 as well: on the model's own grid, too, the option counts."""
    model, positions, own = tiny(name, side), table(2, 8), (side // 16, side // 16)
    found = loaded(model, positions, tmp_path / "w.pth", grid=(2, 8))
    torch.testing.assert_close(found, resized(positions, (2, 8), own))


@pytest.mark.parametrize("name", NAMES)
def test_a_square_number_is_taken_for_a_square_and_that_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, positions = tiny(name, 128), table(2, 8)
    found = loaded(model, positions, tmp_path / "w.pth")
    torch.testing.assert_close(found, resized(positions, (4, 4), (8, 8)))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the 16 position embeddings 'encoder.pos_embedding' are taken for a grid of 4 x 4" in record.message
    assert "resized to 8 x 8; if theirs is another grid, tell it: grid: [rows, columns]" in record.message


def test_as_many_positions_as_the_model_has_load_without_a_word_but_where_two_oblong_grids_have_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    positions, oblong = table(4, 4), table(2, 3)
    assert torch.equal(loaded(tiny("vision_transformer", 64), positions, tmp_path / "w.pth"), positions)
    lying, standing = tiny("vision_transformer", (32, 48)), tiny("vision_transformer", (48, 32))
    assert torch.equal(loaded(lying, oblong, tmp_path / "w.pth", grid=(2, 3)), oblong)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    assert torch.equal(loaded(lying, oblong, tmp_path / "w.pth"), oblong)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "are taken for a grid of 2 x 3, as this model has; if theirs is another grid, tell it" in record.message
    turned = loaded(standing, oblong, tmp_path / "w.pth", grid=(2, 3))
    torch.testing.assert_close(turned, resized(oblong, (2, 3), (3, 2)))


@pytest.mark.parametrize(
    ("positions", "image_size", "options", "message"),
    [
        (table(4, 8), 128, {}, r"33 positions \(32 without the class token's\), no square number; tell it: .*\[4, 8\]"),
        (table(4, 8), (64, 64), {}, "no square number"),
        (table(2, 8), (32, 128), {}, "16 positions, on a grid of 2 x 8, as this model's, or of 4 x 4; tell it"),
        (table(2, 8), 128, {"grid": (3, 8)}, r"grid: found \[3, 8\], 24 positions; .* has 17 positions \(16 without"),
        (torch.zeros(1, 17, CHANNELS + 1), 128, {}, r"is \(1, 17, 9\), expected \(1, 65, 8\)"),
    ],
)
def test_a_grid_that_nobody_tells_is_refused_and_nothing_is_loaded(
    positions: Tensor, image_size: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = tiny("vision_transformer", image_size)
    before = model.state_dict()[KEY].clone()
    with pytest.raises(ConfigError, match=message):
        loaded(model, positions, tmp_path / "w.pth", **options)
    assert torch.equal(model.state_dict()[KEY], before)


def test_a_map_tells_its_grid_and_positions_without_a_token_get_none(tmp_path: Path) -> None:
    positions, model = table(2, 6), tiny("vision_transformer", 128)
    positions[:, 0] = 0
    expected = resized(positions, (2, 6), (8, 8))
    rows = positions[:, 1:].unflatten(1, (2, 6))
    for given in (rows, rows.permute(0, 3, 1, 2)):
        torch.testing.assert_close(loaded(model, given, tmp_path / "w.pth"), expected)
    found = loaded(model, positions[:, 1:], tmp_path / "w.pth", grid=(2, 6))
    torch.testing.assert_close(found, expected)


def test_a_run_of_ours_tells_its_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the config in its checkpoint: also where the model's own grid has as many positions."""
    positions = table(2, 8)
    saved = {**tiny("vision_transformer", (32, 128)).state_dict(), KEY: positions}
    config = {"model": {"name": "vision_transformer", "image_size": [32, 128]}}
    folder = save_checkpoint(tmp_path, 1, {"model": saved}, {"config": config})
    for image_size, grid in (((32, 128), (2, 8)), (64, (4, 4)), (128, (8, 8))):
        model = tiny("vision_transformer", image_size)
        load_weights(model, str(folder))
        torch.testing.assert_close(model.state_dict()[KEY], resized(positions, (2, 8), grid))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_grid_of_a_config_reaches_the_loader_and_means_nothing_elsewhere(tmp_path: Path) -> None:
    positions = table(2, 8)
    torch.save({**tiny("vision_transformer", 128).state_dict(), KEY: positions}, tmp_path / "w.pth")
    weights = {"source": str(tmp_path / "w.pth"), "grid": [2, 8]}
    found = tiny("vision_transformer", 128, weights=weights).state_dict()[KEY]
    torch.testing.assert_close(found, resized(positions, (2, 8), (8, 8)))
    with pytest.raises(ConfigError, match=r"grid\[0\]: found 0"):
        tiny("vision_transformer", 128, weights={**weights, "grid": [0, 8]})
    torch.save(create_backbone("resnet18").state_dict(), tmp_path / "r.pth")
    with pytest.raises(ConfigError, match=r"weights\.grid.*\[2, 8\].*ResNet.*position embeddings"):
        create_backbone("resnet18", weights={"source": str(tmp_path / "r.pth"), "grid": [2, 8]})


@pytest.mark.parametrize("name", NAMES)
def test_an_oblong_model_is_the_square_one_with_positions_of_its_grid(name: str) -> None:
    square, oblong = tiny(name, 64).eval(), tiny(name, (32, 128)).eval()
    oblong.load_state_dict({**square.state_dict(), KEY: resized(square.state_dict()[KEY], (4, 4), (2, 8))})
    image = torch.rand(1, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block, value in square(image).items():
            torch.testing.assert_close(oblong(image)[block], value)
    with pytest.raises(ConfigError, match=r"image_size.*\[32, 100\].* 16; .*\[32, 96\]"):
        tiny(name, (32, 100))
    with pytest.raises(ConfigError, match=r"image_size.*40.* 16; .*32"):
        tiny(name, 40)


def test_a_table_of_other_windows_is_refused_though_it_is_as_long(tmp_path: Path) -> None:
    model = create_backbone("swin_t", depths=(1, 1, 1, 1), embed_dim=12, num_heads=(1, 1, 1, 1), window_size=8)
    key = "features.1.0.attn.relative_position_index"
    torch.save({**model.state_dict(), key: torch.zeros(65, 65, dtype=torch.int64)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"relative_position_index.*\(65, 65\)"):
        load_weights(model, str(tmp_path / "w.pth"))
