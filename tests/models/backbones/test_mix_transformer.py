"""SegFormer's backbone against its authors' counts and Hugging Face's numbers, and under each library's names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from classyseg import create_backbone
from classyseg.errors import ConfigError
from classyseg.models import load_weights

GOLDEN = json.loads((Path(__file__).parents[2] / "goldens" / "segformer_transformers.json").read_text())
SMALL = {"channels": (8, 16, 40, 64), "depths": (1, 2, 1, 1)}
MILLIONS = {"mit_b0": 3.4, "mit_b1": 13.1, "mit_b2": 24.2, "mit_b3": 44.0, "mit_b4": 60.8, "mit_b5": 81.4}
"""Parameters of the encoders in table 1 of the paper."""


def tensor_of(key: str, shape: list[int]) -> Tensor:
    """What stands in a file under `key`: it depends on the key alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5).float()


def published() -> dict[str, Tensor]:
    return {key: tensor_of(key, shape) for key, shape in GOLDEN["shapes"].items()}


def of_the_authors() -> dict[str, Tensor]:
    """The same weights under the names of the authors' code, which joins keys and values."""
    found = {}
    for key, value in published().items():
        place = key.removeprefix("encoder.").split(".")
        stage = int(place[1]) + 1
        if place[0] == "patch_embeddings":
            found[f"patch_embed{stage}.{'norm' if place[2] == 'layer_norm' else 'proj'}.{place[3]}"] = value
        elif place[0] == "layer_norm":
            found[f"norm{stage}.{place[2]}"] = value
        elif ".self.value." not in key:
            inner = ".".join(place[3:])
            if ".self.key." in key:
                value = torch.cat([value, published()[key.replace(".key.", ".value.")]])
            for old, new in (
                ("attention.self.query", "attn.q"),
                ("attention.self.key", "attn.kv"),
                ("attention.self.sr", "attn.sr"),
                ("attention.self.layer_norm", "attn.norm"),
                ("attention.output.dense", "attn.proj"),
                ("layer_norm_", "norm"),
                ("dense", "fc"),
            ):
                inner = inner.replace(old, new)
            found[f"block{stage}.{place[2]}.{inner}"] = value
    return {**found, "head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}


@pytest.mark.parametrize("name", MILLIONS)
def test_the_backbones_have_the_papers_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.1)


@pytest.mark.parametrize(
    ("library", "start", "tensors"),
    [("transformers", "segformer.", published), ("nvlabs", "", of_the_authors)],
)
def test_the_features_are_those_of_hugging_face(tmp_path: Path, library: str, start: str, tensors: object) -> None:
    path = tmp_path / "mit.safetensors"
    save_file({start + key: value for key, value in tensors().items()}, path)  # type: ignore[operator]
    model = create_backbone("mit_b0", **SMALL).eval()
    assert load_weights(model, path).library == library
    with torch.no_grad():
        features = model(torch.linspace(-1, 1, 3 * 96 * 96).view(1, 3, 96, 96))
    for feature, wanted in zip(features.values(), GOLDEN["features"], strict=True):
        assert feature.flatten()[::7][:8].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_images_smaller_than_the_reduction_pass() -> None:
    features = create_backbone("mit_b0", **SMALL).eval()(torch.rand(1, 3, 9, 20))
    assert [tuple(x.shape[2:]) for x in features.values()] == [(3, 5), (2, 3), (1, 2), (1, 1)]


def test_a_number_of_heads_that_divides_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        create_backbone("mit_b0", num_heads=(3, 2, 5, 8))
