"""Logits are those recorded of torchvision and timm: backbone and classifier come from one file, by the loader.

`--every-variant` runs all of them.
"""

from __future__ import annotations

import pytest
import torch
from goldens import assert_fingerprint, drawn, drawn_input, golden, golden_names, reference_state

from classyseg.models import create_backbone, list_models
from classyseg.models.load_weights import match

TORCHVISION = {
    "resne": ["fc"],
    "wide_resnet": ["fc"],
    "regnet": ["fc"],
    "densenet": ["classifier"],
    "efficientnet": ["classifier.1"],
    "mobilenet_v2": ["classifier.1"],
    "mobilenet_v3": ["classifier.0", "classifier.3"],
    "swin": ["head"],
    "vit": ["heads.head"],
}
TIMM = {
    "resnet": ["fc"],
    "resnext": ["fc"],
    "wide_resnet": ["fc"],
    "efficientnet": ["classifier"],
    "swin": ["head.fc"],
    "xception": ["head.fc"],
    "vit_base_patch16": ["head"],
    "vit_large_patch16": ["head"],
}
"""The linear layers of the classifier by the start of the recorded name; others in timm have one of another kind."""
RENAMED = {
    "mobilenet_v3_large": "mobilenet_v3_large_torchvision",
    **{f"regnet_{name}": f"regnet_{name}_torchvision" for name in ("x_400mf", "x_32gf")},
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "xception41": "xception41_deeplab",
    "vit_base_patch16_224": "vit_b_16",
    "vit_large_patch16_224": "vit_l_16",
}
SMALL = ["resnet18", "regnet_x_400mf", "regnet_y_400mf", "mobilenet_v3_large", "swin_t", "swin_tiny_patch4_window7_224"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every, found = metafunc.config.getoption("--every-variant"), []
    for library, families in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in golden_names(library):
            layers = next((layers for start, layers in families.items() if name.startswith(start)), None)
            if layers and (every or name in SMALL):
                found.append(pytest.param(library, name, layers, id=f"{library}-{name}"))
    metafunc.parametrize(("library", "name", "layers"), found)


def test_logits_are_those_recorded(library: str, name: str, layers: list[str]) -> None:
    ours = RENAMED.get(name, name)
    config = {"output_stride": 32} if name.startswith("xception") else {}
    model = create_backbone(ours if ours in list_models() else name, features_only=False, **config)
    named = library == "timm" and any(naming.library == library for naming in model.namings)
    file = reference_state(model, library) if named else reference_state(model)
    sizes = [m.out_features for m in model.heads["main"].modules() if isinstance(m, torch.nn.Linear)]
    channels = model.classifier_block.channels
    for layer, size in zip(layers, sizes, strict=True):
        for leaf, shape in (("weight", (size, channels)), ("bias", (size,))):
            file[f"{layer}.{leaf}"] = torch.from_numpy(drawn(f"{layer}.{leaf}", shape))
        channels = size
    state, report = match(model, file, classifier="main")
    assert report.problems() == ""
    model.load_state_dict(state, strict=False)
    expected = golden(library, name)
    with torch.no_grad():
        logits = model.eval()(drawn_input(*map(int, expected["input"].split("x")[2:])))["main"]
    assert_fingerprint(logits, expected["logits_fingerprint"])
