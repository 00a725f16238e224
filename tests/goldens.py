"""Recorded numbers of the reference implementations, and the weights without files that they were recorded with.

`float32`: `goldens/backbones.json`, weights drawn by `drawn(key, shape)` from the key as the reference spells it.
`float64`: `goldens/pytorch_encoding.json`, weights hashed by `hashed(key, shape)`.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classyseg.models import ClassyModel, create_backbone
from classyseg.models.load_weights import encoding_names, match
from classyseg.registry import HEADS

FOLDER = Path(__file__).parent / "goldens"
FILES = {"float32": "backbones.json", "float64": "pytorch_encoding.json"}
OWN = "classyseg"
TOLERANCE = 1e-4
"""Of the largest magnitude: kernels differ in float32."""
PIECE = 1 << 15
NOT_FILLED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")

Shape = tuple[int, ...]


@cache
def goldens(precision: str) -> dict[str, Any]:
    return json.loads((FOLDER / FILES[precision]).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def golden(section: str, name: str) -> dict[str, Any]:
    """One entry of the float32 goldens."""
    return goldens("float32")[section][name]  # type: ignore[no-any-return]


def golden_names(section: str, precision: str = "float32") -> list[str]:
    return list(goldens(precision)[section])


# -- weights ---------------------------------------------------------------------------------------------------------


def by_pieces(shape: Shape, dtype: type, values: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """An array of `values(start, stop)`, asked for in order: what is computed on the way stays in the cache.

    Networks of a hundred million parameters are filled so. Whole arrays of float64 on the way took longer than the
    random numbers, since the system clears each one's memory.
    """
    found = np.empty(shape, dtype)
    flat = found.reshape(-1)
    for start in range(0, flat.size, PIECE):
        stop = min(start + PIECE, flat.size)
        flat[start:stop] = values(start, stop)
    return found


def drawn(key: str, shape: Shape, fan_in_axis: int = 1) -> np.ndarray:
    """The value that `key` had when the float32 goldens were recorded."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.rpartition(".")[2]

    def normal(deviation: float) -> np.ndarray:
        return by_pieces(shape, np.float32, lambda start, stop: random.standard_normal(stop - start) * deviation)

    if leaf in ("running_var", "_variance"):
        return (0.5 + random.random_sample(shape)).astype(np.float32)
    if leaf in ("running_mean", "_mean") or (len(shape) == 1 and "bias" in leaf):
        return normal(0.1)
    if leaf == "weight" and len(shape) >= 4:
        return normal(np.sqrt(2 / np.prod(shape[1:])))
    if leaf in ("weight", "in_proj_weight") and len(shape) == 2:
        return normal(np.sqrt(1 / shape[fan_in_axis]))
    if leaf == "weight" and len(shape) == 1:
        return (0.5 + 0.5 * random.random_sample(shape)).astype(np.float32)
    return normal(0.02)


def drawn_input(height: int, width: int, channels: int = 3) -> Tensor:
    shape = (1, channels, height, width)
    return torch.from_numpy(np.random.RandomState(12345).standard_normal(shape).astype(np.float32))


def hashed(key: str, shape: Shape) -> np.ndarray:
    """Float64 numbers in [-1, 1) from an integer hash, as the float64 goldens were recorded with."""
    mask, offset = np.uint64(0xFFFFFFFF), np.uint64(zlib.crc32(key.encode()))

    def values(start: int, stop: int) -> np.ndarray:
        x = (np.arange(start, stop, dtype=np.uint64) + offset) & mask
        x = (x * np.uint64(2654435761)) & mask
        x ^= x >> np.uint64(16)
        x = (x * np.uint64(0x45D9F3B)) & mask
        x ^= x >> np.uint64(16)
        return x.astype(np.float64) / 2**31 - 1

    return by_pieces(shape, np.float64, values)


def hashed_weight(key: str, shape: Shape) -> np.ndarray:
    value, leaf = hashed(key, shape), key.rpartition(".")[2]
    if leaf == "running_mean":
        return 0.1 * value
    if leaf == "running_var":
        return 1 + 0.2 * value
    if leaf == "codewords":
        return value / np.prod(shape) ** 0.5
    if leaf == "scale":
        return (value - 1) / 2
    if leaf == "weight" and len(shape) >= 2:
        value *= (3 / np.prod(shape[1:])) ** 0.5
        value *= 1.2
        return value
    return 1 + 0.1 * value if leaf == "weight" else 0.1 * value


def fill_hashed(module: nn.Module, theirs: Callable[[str], str] = lambda key: key) -> None:
    """Gives a float64 module the numbers of the float64 goldens, by the reference's names `theirs` of its keys."""
    for key, value in module.state_dict().items():
        if not key.endswith(NOT_FILLED):
            value.copy_(torch.from_numpy(hashed_weight(theirs(key), tuple(value.shape))))


def reference_state(
    model: ClassyModel,
    library: str = OWN,
    *,
    weight: Callable[[str, Shape], np.ndarray] = drawn,
    shape: Callable[[str, Shape], Shape] = lambda key, ours: ours,
) -> dict[str, Tensor]:
    """A file of `library` for `model`: filled by `weight` under its own keys.

    `shape(our key, our shape)` is the shape that the library gives the tensor, where it is another.
    """
    naming = next((naming for naming in model.namings if naming.library == library), None)
    assert naming or library == OWN, f"{type(model).__name__} has no naming of {library}"
    state = {}
    for key, value in model.state_dict().items():
        if not key.endswith(NOT_FILLED) and not key.startswith("heads."):
            theirs = naming.key(key) if naming else key
            state[theirs] = torch.from_numpy(weight(theirs, shape(key, tuple(value.shape))))
    return state


def on_meta(name: str, **config: Any) -> ClassyModel:
    """A network without values, for those of a file: the initial ones of a large network take seconds."""
    with torch.device("meta"):
        return create_backbone(name, **config)


def load_reference(model: ClassyModel, library: str = OWN, **options: Any) -> ClassyModel:
    """Fills `model` as the reference was filled, through the weight loader; in eval mode.

    `model` may be `on_meta` if it has no buffers but those of the file.
    """
    state, report = match(model, reference_state(model, library, **options))
    assert report.problems() == ""
    assert report.library == library
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval()


# -- comparing -------------------------------------------------------------------------------------------------------


def assert_fingerprint(found: Tensor, expected: Mapping[str, Any], tolerance: float = TOLERANCE) -> None:
    """Mean, deviation, largest magnitude and 8 evenly spaced values, each within `tolerance` of the largest."""
    values = found.detach().double().flatten()
    at = torch.from_numpy(np.linspace(0, values.numel() - 1, 8).astype(np.int64))
    found_numbers = [values.mean(), values.std(correction=0), values.abs().max(), *values[at]]
    numbers = [expected["mean"], expected["std"], expected["absmax"], *expected["samples_at_linspace_flat_idx"]]
    limit = tolerance * expected["absmax"]
    assert [float(value) for value in found_numbers] == pytest.approx(numbers, rel=0, abs=limit)


def assert_probes(found: Tensor, expected: Mapping[str, Any], tolerance: float = 1e-6) -> None:
    """The same of the float64 goldens: mean, deviation, extremes and the recorded probes."""
    values = found.detach().double().flatten()
    found_numbers = [
        values.mean(),
        values.std(correction=0),
        values.min(),
        values.max(),
        *values[expected["probe_idx"]],
    ]
    numbers = [expected["mean"], expected["std"], expected["min"], expected["max"], *expected["probes"]]
    limit = tolerance * max(abs(expected["min"]), abs(expected["max"]))
    assert [float(value) for value in found_numbers] == pytest.approx(numbers, rel=0, abs=limit)


def parameters(model: ClassyModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- PyTorch-Encoding ------------------------------------------------------------------------------------------------

LARGE = 60_000_000
"""Parameters beyond which only a slow test gives a network values."""


def encoding_entries(*families: str) -> list[dict[str, Any]]:
    """The networks of the float64 goldens whose constructors begin so; those with equal keys side by side."""
    found = [e for e in goldens("float64")["backbones"] if _constructor(e).startswith(families)]
    return sorted(found, key=lambda entry: (entry["params"], entry["keys_sha1"]))


def _constructor(entry: Mapping[str, Any]) -> str:
    return entry["ctor"].rpartition(".")[2].lower()


def encoding_config(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our name and config of one of these networks."""
    theirs = dict(entry["args"])
    config: dict[str, Any] = {}
    stride = {1: 32, 2: 16, 4: 8}[theirs.pop("dilation", 1)]
    config["output_stride"] = theirs.pop("output_stride", 8 if theirs.pop("dilated", False) else stride)
    if theirs.pop("deep_base", False):
        config["deep_stem"] = True
    if theirs.pop("multi_grid", False):
        config["multi_grid"] = (1, 2) if "resnet18" in entry["ctor"] else (1, 2, 4)
    ignored = ("final_drop", "num_classes")  # of the classifier
    return _constructor(entry), config | {key: value for key, value in theirs.items() if key not in ignored}


def with_ids(entries: list[dict[str, Any]], *, slow_beyond: float = math.inf) -> list[Any]:
    """`entries` as test parameters; those with more parameters than `slow_beyond` are marked slow."""
    return [
        pytest.param(entry, id=entry["id"], marks=[pytest.mark.slow] if entry["params"] > slow_beyond else [])
        for entry in entries
    ]


def assert_encodings_keys_and_shapes(entry: Mapping[str, Any], blocks: Mapping[str, str]) -> None:
    """Keys in order, their shapes, parameters, and the shapes of `blocks` (ours by PyTorch-Encoding's module)."""
    name, config = encoding_config(entry)
    with torch.device("meta"):
        model = create_backbone(name, **config).eval()
    lines = [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()]
    channels, classes = model.classifier_block.channels, entry["args"].get("num_classes", 1000)
    lines += [f"fc.weight {(classes, channels)}", f"fc.bias {(classes,)}"]
    assert hashlib.sha1("\n".join(lines).encode()).hexdigest() == entry["keys_sha1"]
    assert parameters(model) == entry["params_no_fc"]
    for height, width in ((64, 64), (97, 129)):
        features = model(torch.empty(1, 3, height, width, device="meta"))
        expected = entry[f"stages_{height}x{width}"]
        found = {theirs: list(features[ours].shape) for theirs, ours in blocks.items()}
        assert found == {theirs: expected[theirs] for theirs in blocks}


def run_encoding(entry: Mapping[str, Any], **config: Any) -> dict[str, Tensor]:
    """What the network gives for the goldens' weights and input, in float64: its blocks, and `logits`.

    The weights come by the loader from a file like those of PyTorch-Encoding's segmentation models.
    """
    name, settings = encoding_config(entry)
    classes = entry["args"].get("num_classes", 1000)
    with torch.device("meta"):
        model = create_backbone(name, **settings, **config)
        keys = ["fc.weight", "fc.bias", *model.state_dict()]  # heads come first
        model.attach_head("main", HEADS.build("linear", [model.classifier_block], classes))
        model.double()
    shapes = [tuple(value.shape) for value in model.state_dict().values()]
    filled = [(key, shape) for key, shape in zip(keys, shapes, strict=True) if not key.endswith(NOT_FILLED)]
    state, report = match(model, hashed_file(tuple(filled)), classifier="main")
    assert (report.problems(), report.prefix) == ("", "pretrained.")
    model.load_state_dict(state, strict=False, assign=True)
    with torch.no_grad():
        features = model.eval().forward_features(torch.from_numpy(hashed("input:(1, 3, 64, 64)", (1, 3, 64, 64))))
        return features | {"logits": model(features)["main"]}


@lru_cache(maxsize=1)
def hashed_file(shapes: tuple[tuple[str, Shape], ...]) -> dict[str, Tensor]:
    return {f"pretrained.{key}": torch.from_numpy(hashed_weight(key, shape)) for key, shape in shapes}


# -- PyTorch-Encoding's heads ----------------------------------------------------------------------------------------

LATERAL = ["stage2", "stage3", "stage4"]
PYRAMID = ["stage1", *LATERAL]
DEEPLAB = {"norm_image": True, "dropout": 0.5, "drop_channels": True, "classifier_dropout": 0.1}


def encoding_head(kind: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """Our main head of PyTorch-Encoding's model `kind`."""
    lateral = theirs.get("lateral") or theirs.get("with_lateral")
    blocks = PYRAMID if kind in ("upernet", "fcfpn") else LATERAL if lateral else ["stage4"]
    options: dict[str, dict[str, Any]] = {
        "fcn": {"with_global": True, "norm_image": True} if theirs.get("with_global") else {},
        "psp": {"norm_image": True, "align_corners": True},
        "encnet": {"se_branch": theirs.get("se_loss", True)},
        "deeplab": DEEPLAB,
        "upernet": {"norm_image": True, "align_corners": True},
        "fcfpn": {"align_corners": True},
        "atten": {
            "num_heads": theirs.get("nheads", 8),
            "num_mixtures": theirs.get("nmixs", 1),
            "se_branch": theirs.get("se_loss", False),
            "norm_image": True,
        },
    }
    return {"name": {"deeplab": "deeplabv3"}.get(kind, kind), "blocks": blocks, **options[kind]}


def encoding_keys(model: ClassyModel) -> dict[str, str]:
    backbone = {key: f"pretrained.{key}" for key in model.state_dict() if not key.startswith("heads.")}
    return backbone | encoding_names(model)


def _with_aliases(keys: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """PyTorch-Encoding's model ATTEN holds its attention under two names, and the keys' convolution under two more."""
    twice = {key.replace("head.atten.", "head.atten_layers.1."): shape for key, shape in keys.items()} | keys
    return {key.replace("conv_qs", "conv_ks"): shape for key, shape in twice.items()} | twice


def sorted_keys_sha1(shapes: Mapping[str, Shape]) -> str:
    """The hash that the goldens have of a state dict's keys and shapes, from ours under PyTorch-Encoding's names."""
    lines = sorted(f"{key} {shape}" for key, shape in _with_aliases(dict(shapes)).items())
    return hashlib.sha1("\n".join(lines).encode()).hexdigest()
