"""ResNet and its relatives against the recorded numbers of PyTorch-Encoding, torchvision, timm and ClassyVision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import (
    TOLERANCE,
    assert_encodings_keys_and_shapes,
    assert_fingerprint,
    assert_probes,
    drawn_input,
    encoding_entries,
    golden,
    golden_names,
    load_reference,
    on_meta,
    parameters,
    reference_state,
    run_encoding,
    with_ids,
)

from classyseg.models import ClassyModel

LARGE = 60_000_000
BLOCKS = {"layer1": "stage1", "layer2": "stage2", "layer3": "stage3", "layer4": "stage4"}
STAGES = [*BLOCKS.values()]
ENCODINGS = encoding_entries("resnet", "resnext", "resnest")
FAMILIES = ("resnet", "resnext", "resnest", "wide_resnet")
TIMM = {
    "resnest26d": ("resnest50", {"depths": (2, 2, 2, 2)}),
    "resnest101e": ("resnest101", {}),
    "resnest269e": ("resnest269", {}),
}
"""timm's names that we do not have, and what they are here."""
DEEP = ("resnest200", "resnest269e")
"""Float32 outputs of these differ by up to 7e-3 between processors and numbers of threads, timm's own, too. So ours are
computed in float64; the recorded ones are within 1e-3 of them."""
SLOW = ("wide_resnet101_2", "resnest269e", "resnext101_32x8d", "resnest200")


def names(section: str, prefix: str = "") -> list[Any]:
    found = [n.removeprefix(prefix) for n in golden_names(section) if n.startswith(tuple(prefix + f for f in FAMILIES))]
    return [pytest.param(n, marks=[pytest.mark.slow] if n.startswith(SLOW) else []) for n in found if "3d/" not in n]


@pytest.mark.parametrize("entry", with_ids(ENCODINGS))
def test_keys_and_shapes_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    assert_encodings_keys_and_shapes(entry, BLOCKS)


@pytest.mark.parametrize("entry", with_ids([e for e in ENCODINGS if "numeric" in e], slow_beyond=LARGE))
def test_values_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    found = run_encoding(entry)
    for theirs, ours in {"layer3": "stage3", "layer4": "stage4", "logits": "logits"}.items():
        assert_probes(found[ours], entry["numeric"][theirs])


def tolerance(name: str) -> float:
    return 1e-3 if name.startswith(DEEP) else TOLERANCE


def run_at(model: ClassyModel, height: int, width: int) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model(drawn_input(height, width).to(next(model.parameters()).dtype))


@pytest.mark.parametrize("name", names("timm"))
def test_blocks_are_timms_and_torchvisions(name: str) -> None:
    """Not the values of dilated networks with pools: timm pools the shortcut in windows, and drops the others."""
    expected = golden("timm", name)["features_only"]
    ours, config = TIMM.get(name, (name, {}))
    state = reference_state(on_meta(ours, **config))
    for output_stride in (32, 16, 8):
        network = expected[f"os{output_stride}"]
        model = on_meta(ours, output_stride=output_stride, **config).eval()
        assert parameters(model) == network["params"]["trainable_params"]
        blocks = model.blocks.values()
        assert [[b.channels for b in blocks], [b.stride for b in blocks]] == [network["channels"], network["reduction"]]
        if output_stride < 32 and name.startswith(SLOW):  # dilation is the same in the small ones
            features = model(torch.empty(1, 3, 224, 224, device="meta"))
            assert [list(feature.shape) for feature in features.values()] == network["shapes"]
            continue
        model.load_state_dict(state, strict=False, assign=True)
        found = list(run_at(model.double() if name.startswith(DEEP) else model, 224, 224).values())
        assert [list(feature.shape) for feature in found] == network["shapes"]
        same = 5 if output_stride == 32 or not name.endswith(("d", "e")) else 2 + output_stride // 8
        for feature, fingerprint in zip(found[:same], network["fingerprint"][:same], strict=True):
            assert_fingerprint(feature, fingerprint, tolerance(name))
        if output_stride == 32 and name in golden_names("torchvision"):
            for feature, fingerprint in zip(found, golden("torchvision", name)["fingerprint"].values(), strict=True):
                assert_fingerprint(feature, fingerprint)


def test_every_recorded_network_of_torchvision_is_one_of_timms() -> None:
    ours = {name for name in golden_names("torchvision") if name.startswith(FAMILIES)}
    assert ours <= set(golden_names("timm"))


@pytest.mark.parametrize("name", names("classyvision", "cv/"))
def test_values_are_classyvisions_through_its_names(name: str) -> None:
    expected = golden("classyvision", f"cv/{name}")
    model = load_reference(on_meta(name), "classyvision")
    assert parameters(model) == expected["trainable_params"]
    found = run_at(model, *expected["input"][2:])
    assert [list(found[s].shape) for s in STAGES] == [stage["shape"] for stage in expected["stages"][1:]]
    assert_fingerprint(found["stage4"], expected["fingerprint"]["blocks.3"])


@pytest.mark.parametrize("name", names("pytorch_encoding", "pe/"))
def test_values_at_224_pixels_are_pytorch_encodings(name: str) -> None:
    expected = golden("pytorch_encoding", f"pe/{name}")
    variant, _, dilated = name.partition("/dilated=")
    model = load_reference(on_meta(variant, output_stride=8 if dilated == "True" else 32))
    assert parameters(model) == expected["params_without_fc"]
    found = run_at(model.double() if name.startswith(DEEP) else model, 224, 224)
    assert [list(found[stage].shape) for stage in STAGES] == expected["shapes_224"]
    assert_fingerprint(found["stage4"], expected["last_fingerprint"], tolerance(name))
