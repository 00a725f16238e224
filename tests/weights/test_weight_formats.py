"""Good files of weights: every format is read bit by bit, and the backbone is found in what libraries wrap it in."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import logging
import pathlib
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.heads import LinearHead
from classyseg.models import LoadedWeights, Naming, ResNet, build_model, create_backbone, load_weights
from classyseg.weights.read import read_tensors
from weight_files import (
    as_arrays,
    call,
    dictionary,
    integer,
    paddle_bytes,
    program,
    safetensors_bytes,
    torch_bytes,
    torch_legacy,
    torch_zip,
    write,
    zip_bytes,
)

TYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet18().state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))


# -- torch -----------------------------------------------------------------------------------------------------------

FLAVOURS: list[dict[str, Any]] = [
    {},
    {"pickle_protocol": 3},
    {"pickle_protocol": 4},
    {"pickle_protocol": 5},
    {"_use_new_zipfile_serialization": False},
    {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
]


@pytest.mark.parametrize("options", FLAVOURS, ids=str)
def test_torch_files_of_every_type_are_read_bit_by_bit(options: dict[str, Any], tmp_path: Path) -> None:
    numbers = torch.arange(60) % 2
    state = {str(dtype): numbers.to(dtype).view(3, 4, 5) for dtype in TYPES}
    base = torch.randn(4, 6)
    state |= {"whole": base, "columns": base.t(), "part": base[1:3, ::2], "empty": torch.zeros(0, 3)}
    state |= {"scalar": torch.tensor(2.5), "parameter": nn.Parameter(torch.randn(3)), "again": base}
    path = write(tmp_path / "w.pth", torch_bytes(state, **options))

    found = read_tensors(path)

    assert_same(found, {key: value.detach() for key, value in state.items()})
    assert found["whole"].data_ptr() == found["again"].data_ptr()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_marked_as_negative_or_conjugate_have_their_values(zipped: bool, tmp_path: Path) -> None:
    numbers = torch.randn(2, 3, dtype=torch.complex64)
    state = {"neg": torch._neg_view(torch.randn(3)), "conj": numbers[0].conj(), "imag": numbers.clone()[1].conj().imag}
    content = torch_bytes(state, _use_new_zipfile_serialization=zipped)
    found = read_tensors(write(tmp_path / "w.pth", content))
    assert_same(found, {key: value.resolve_neg().resolve_conj() for key, value in state.items()})


def test_a_pickle_of_protocol_1_is_told_which_protocols_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", torch_bytes({"w": torch.ones(1)}, pickle_protocol=1))
    with pytest.raises(ConfigError, match=r"INT, .*protocols 2 to 5"):
        read_tensors(path)


def test_a_file_of_python_2_has_texts_as_bytes(tmp_path: Path) -> None:
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00(K\x04t(K\x01ttR"
    content = torch_legacy(program(b"}U\x01w", tensor, b"s"), ["0"], struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert read_tensors(write(tmp_path / "w.pth", content))["w"].tolist() == [1, 2, 3, 4]


def test_safetensors_are_told_from_formats_whose_magic_is_their_header_length(tmp_path: Path) -> None:
    for length in (0x80, 0x4B50, 0x3C * 2):  # as of a pickle, a zip, a web page
        header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        path = write(tmp_path / "w.bin", safetensors_bytes(header, struct.pack("<f", 5)))
        assert read_tensors(path)["w"].tolist() == [5]


BESIDE: dict[str, Any] = {
    "tuple_keys": {(1, "a"): 3, (2, "b"): torch.ones(1)},
    "time": [datetime.datetime(2024, 1, 31), datetime.timedelta(1), datetime.datetime.now(datetime.UTC)],
    "numbers": [1j, 2**3000, -(2**9000)],
    "range": [slice(1, 2), bytearray(b"ab")],
    "sparse": [torch.eye(3).to_sparse()],
    "meta": torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", BESIDE)
def test_what_does_nothing_is_read_over_beside_the_weights(name: str, protocol: int, tmp_path: Path) -> None:
    weights = {"w": torch.randn(2)}
    path = write(tmp_path / "w.pth", torch_bytes({**weights, name: BESIDE[name]}, pickle_protocol=protocol))
    found = read_tensors(path)
    assert_same({"w": found.pop("w")}, weights)
    assert list(found) == (["tuple_keys.(2, 'b')"] if name == "tuple_keys" else [])


def test_a_bytearray_of_any_length_takes_no_memory(tmp_path: Path) -> None:
    large = torch_zip(program(dictionary(w=call("builtins.bytearray", integer(10**11)))))
    with pytest.raises(ConfigError, match="found a dict without tensors"):
        read_tensors(write(tmp_path / "w.pth", large))


# -- Paddle ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    kinds = ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "?", "c8", ">f4")
    found = {f"layer.{kind}": random.integers(0, 99, (3, 4)).astype(kind) for kind in kinds}
    found |= {"columns": np.asfortranarray(random.random((3, 4), np.float32)), "scalar": np.array(3.5, np.float32)}
    return {**found, "empty": np.zeros((0, 2), np.float32), "nan": np.array([np.nan, -0.0], np.float32)}


@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pdparams_are_read_bit_by_bit(
    protocol: int, numpy_1: bool, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    names = {"StructuredToParameterName@@": {key: f"conv2d_{i}.w_0" for i, key in enumerate(arrays)}}
    content = paddle_bytes({**arrays, **names}, protocol, numpy_1=numpy_1)
    assert (b"numpy.core" in content) == numpy_1

    found = read_tensors(write(tmp_path / "w.pdparams", content))

    native = {key: value.astype(value.dtype.newbyteorder("=")) for key, value in arrays.items()}
    assert_same(found, {key: torch.from_numpy(np.array(value, order="C")) for key, value in native.items()})


def test_bfloat16_of_paddle_is_not_taken_for_whole_numbers(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2, 3e30], dtype=torch.bfloat16)
    path = write(tmp_path / "w.pdparams", paddle_bytes({"w": values.view(torch.uint16).numpy()}))
    assert read_tensors(path)["w"].equal(values)


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_that_paddle_cut_are_joined(protocol: int, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).random((5, 7), np.float32)
    parts = {f"w@@.{i}": whole.flatten()[i * 12 : i * 12 + 12] for i in range(3)}
    info = {"UnpackBigParamInfor@@": {"w": {"OriginShape": (5, 7), "slices": list(parts)}}}
    path = write(tmp_path / "w.pdparams", paddle_bytes({"b": whole[0], **parts, **info}, protocol))
    assert_same(read_tensors(path), {"b": torch.from_numpy(whole[0]), "w": torch.from_numpy(whole)})


def test_tensors_in_nested_places_are_pairs_of_a_name_and_an_array(tmp_path: Path) -> None:
    pair = ("linear_0.w_0", np.ones((2, 3), np.float32))
    tree = {"model": {"w": pair}, "optimizer": {"w_moment1": pair, "LR_Scheduler": {"last_lr": 0.1}}, "epoch": 3}
    found = read_tensors(write(tmp_path / "w.pdparams", paddle_bytes(tree, 2)))
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "model.w": (2, 3),
        "optimizer.w_moment1": (2, 3),
    }


def test_a_pair_that_paddle_made_by_calling_tuple_is_read(tmp_path: Path) -> None:
    array = pickle.dumps(np.ones(2, np.float32), 2)[2:-1]
    called = b"c__builtin__\ntuple\n(X\x01\0\0\0n" + array + b"t\x85R"
    found = read_tensors(write(tmp_path / "w.pdparams", program(b"}X\x01\0\0\0w", called, b"s")))
    assert found["w"].tolist() == [1, 1]


# -- archives and folders --------------------------------------------------------------------------------------------


def test_the_one_file_of_weights_in_an_archive_is_read(reference: dict[str, Tensor], tmp_path: Path) -> None:
    state = {"conv1.weight": reference["conv1.weight"]}
    members = {"model/readme.md": b"x", "model/w.pth.tar": torch_bytes(state)}
    path = write(tmp_path / "w.zip", zip_bytes(members, zipfile.ZIP_DEFLATED))
    assert_same(read_tensors(path), state)
    tar = tmp_path / "w.tar"
    write(tmp_path / "w.pdparams", paddle_bytes(as_arrays(state)))
    with tarfile.open(tar, "w") as archive:
        archive.add(tmp_path / "w.pdparams", "folder/w.pdparams")
    assert_same(read_tensors(tar), state)
    assert_same(read_tensors(write(tmp_path / "w.tgz", gzip.compress(tar.read_bytes()))), state)


# -- what libraries wrap a backbone in -------------------------------------------------------------------------------


class HistoryBuffer:
    """Stands in for mmengine's: an array, and functions of its own by name."""

    __module__ = "mmengine.logging.history_buffer"

    def __init__(self) -> None:
        self.history = np.arange(3.0)
        self.methods = {"mean": HistoryBuffer.mean}

    def mean(self) -> None: ...


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes that module one that can be imported, for the pickler."""
    parts = HistoryBuffer.__module__.split(".")
    for i in range(1, len(parts) + 1):
        module: Any = types.ModuleType(".".join(parts[:i]))
        module.HistoryBuffer = HistoryBuffer
        monkeypatch.setitem(sys.modules, module.__name__, module)


State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def no_classifier(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def encoding_checkpoint(state: State) -> dict[str, Any]:
    """What the training script of PyTorch-Encoding keeps."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    arguments = argparse.Namespace(lr=np.float64(0.1), dataset="ade20k", path=pathlib.PosixPath("runs"))
    heads = {"head.conv5.0.weight": torch.ones(2, 2, 3, 3), "auxlayer.conv5.0.weight": torch.ones(2)}
    whole = under("module.pretrained.", state) | under("module.", heads)
    return {"epoch": 7, "state_dict": whole, "optimizer": momentum, "best_pred": np.float64(0.4), "args": arguments}


def classy_checkpoint(state: State) -> dict[str, Any]:
    heads = {"block3-1": {"default_head": {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}}}
    model = {"model": {"trunk": no_classifier(state), "heads": heads}}
    rest = {"optimizer": {"optim": {"state": {}}}, "losses": [0.5], "train": True, "hooks": {"Profiler": {}}}
    return {"input_args": {"config": {"name": "x"}}, "classy_state_dict": {"base_model": model, **rest}}


def mmseg_checkpoint(state: State) -> dict[str, Any]:
    heads = {"decode_head.conv_seg.weight": torch.ones(19, 512, 1, 1), "auxiliary_head.conv_seg.bias": torch.ones(19)}
    hub = {"log_scalars": collections.OrderedDict(loss=HistoryBuffer()), "runtime_info": {"seed": np.int64(4)}}
    return {"meta": {"time": "now"}, "state_dict": under("backbone.", state) | heads, "message_hub": hub}


def ema_checkpoint(state: State) -> dict[str, Any]:
    average = {key: torch.zeros_like(value) for key, value in state.items()}
    return {"state_dict": state, "state_dict_ema": average, "arch": "resnet18", "metric": np.float32(0.7)}


@pytest.mark.usefixtures("mmengine")
@pytest.mark.parametrize(
    ("wrap", "prefix", "ignored"),
    [
        (lambda state: state, "", {"fc"}),
        (lambda state: {"state_dict": state}, "state_dict.", {"state_dict"}),
        (lambda state: {"model": under("module.", state), "epoch": 3}, "model.module.", {"model"}),
        (lambda state: under("module.backbone.", state), "module.backbone.", {"module"}),
        (encoding_checkpoint, "state_dict.module.pretrained.", {"state_dict", "optimizer"}),
        (classy_checkpoint, "classy_state_dict.base_model.model.trunk.", {"classy_state_dict"}),
        (mmseg_checkpoint, "state_dict.backbone.", {"state_dict"}),
        (ema_checkpoint, "state_dict.", {"state_dict", "state_dict_ema"}),
    ],
    ids=["bare", "state_dict", "model.module", "backbone", "PyTorch-Encoding", "ClassyVision", "mmseg", "EMA"],
)
def test_a_backbone_is_found_under_any_wrapping(
    wrap: Callable[[State], Any], prefix: str, ignored: set[str], reference: State, tmp_path: Path
) -> None:
    content = torch_bytes(wrap(reference))
    model = create_backbone("resnet18")

    report = load_weights(model, str(write(tmp_path / "w.pth", content)))

    assert (report.library, report.prefix, report.problems()) == ("classyseg", prefix, "")
    assert {key.partition(".")[0] for key in report.ignored} == ignored
    assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())


def test_the_report_tells_in_one_line_what_was_ignored(
    reference: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.save({"model": reference, "ema": reference, "steps": torch.ones(1)}, tmp_path / "w.pth")
    report = load_weights(create_backbone("resnet18"), str(tmp_path / "w.pth"))
    assert report.summary() == "120 tensors loaded under 'model.'; ignored: ema (122), model (2), steps (1)"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert report.summary() in caplog.text


# -- which keys count ------------------------------------------------------------------------------------------------


class Renamed(ResNet):
    """A family whose keys another library spells otherwise, with its linear layers transposed."""

    namings: ClassVar = (Naming("elsewhere", ((r"^layer(\d)", r"stages.\1"), (r"^conv1\.", "stem.")), ("fc.",)),)


def load_into(model: ResNet, state: State, folder: Path, **options: Any) -> LoadedWeights:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "w.safetensors")
    return load_weights(model, str(folder / "w.safetensors"), **options)


def small(kind: type[ResNet] = ResNet, **config: Any) -> ResNet:
    torch.manual_seed(len(config))
    return kind(block="basic", depths=(1, 1, 1, 1), **config)


def test_the_names_of_another_library_are_recognised(tmp_path: Path) -> None:
    model, source = small(Renamed), small(in_channels=3)
    naming = Renamed.namings[0]
    state = under("net.", {naming.key(key): value for key, value in source.state_dict().items()})
    report = load_into(model, {**state, "net.fc.weight": torch.ones(1)}, tmp_path)
    assert (report.library, report.prefix, report.ignored) == ("elsewhere", "net.", ("net.fc.weight",))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_part_is_loaded_on_request_with_one_warning_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = small(in_channels=3)
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("layer4.")}
    state |= {"layer9.weight": torch.ones(1), "bn1.bias": torch.ones(3)}
    model = small()
    with pytest.raises(ConfigError, match=r"ResNet.*15 missing keys.*layer4"):
        load_into(model, state, tmp_path)
    report = load_into(model, state, tmp_path, strict=False)
    assert (len(report.missing), report.unexpected, len(report.mismatched)) == (15, ("layer9.weight",), 1)
    assert model.conv1.weight.equal(source.conv1.weight)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "was loaded in part: 15 missing keys: layer4.0" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_nothing_that_fits_is_an_error_even_when_a_part_would_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ResNet.*keys such as w; .*conv1"):
        load_into(small(), {"w": torch.ones(1)}, tmp_path, strict=False)


def test_counted_batches_may_be_missing_and_are_kept_where_they_are(tmp_path: Path) -> None:
    state = small().state_dict()
    without = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert not load_into(small(), without, tmp_path).problems()
    model = small()
    load_into(model, {**state, "bn1.num_batches_tracked": torch.tensor(7)}, tmp_path)
    assert model.bn1.num_batches_tracked == 7


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 7])
def test_a_first_convolution_is_adapted_on_request(channels: int, tmp_path: Path) -> None:
    source, model = small(), small(in_channels=channels)
    message = rf"conv1.weight is \(64, 3, 7, 7\), expected \(64, {channels}, 7, 7\), which adapt_input: true fits$"
    with pytest.raises(ConfigError, match=message):
        load_into(model, source.state_dict(), tmp_path)
    load_into(model, source.state_dict(), tmp_path, adapt_input=True)
    expected, found = source.conv1.weight, model.conv1.weight
    assert found.shape[1] == channels
    if channels > 2:
        for colour in range(3):
            same = found[:, colour::3]
            torch.testing.assert_close(same, expected[:, [colour]].expand_as(same) / same.shape[1])
    grey = torch.rand(2, 1, 32, 32)
    given = model.conv1(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(given, source.conv1(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    assert model.layer1[0].conv1.weight.equal(source.layer1[0].conv1.weight)


def test_smaller_floats_are_widened(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in small().state_dict().items()}
    model = small(in_channels=3)
    load_into(model, state, tmp_path)
    assert model.conv1.weight.dtype == torch.float32
    assert model.conv1.weight.equal(state["conv1.weight"].float())


def test_a_backbone_takes_its_part_of_a_whole_model_and_a_model_takes_all(tmp_path: Path) -> None:
    heads = {"main": {"name": "fcn", "blocks": ["stage2"]}}
    trained = build_model({"name": "resnet18", "heads": heads}, 3)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    backbone = create_backbone("resnet18")
    report = load_weights(backbone, str(tmp_path / "w.safetensors"))
    assert {key.split(".")[0] for key in report.ignored} == {"heads"}
    assert backbone.conv1.weight.equal(trained.conv1.weight)  # type: ignore[union-attr]
    other = build_model({"name": "resnet18", "heads": {"other": heads["main"]}}, 3)
    with pytest.raises(ConfigError, match=r"missing.*heads\.other.*unexpected.*heads\.main"):
        load_weights(other, str(tmp_path / "w.safetensors"))


class WithHeadsInItsClassifier(ResNet):
    """torchvision's ViT calls its own classifier `heads.head`."""

    classifier_prefixes = ("heads.head.",)


def test_a_reference_classifier_under_heads_is_not_taken_for_ours(tmp_path: Path) -> None:
    model = small(WithHeadsInItsClassifier)
    model.attach_head("main", LinearHead([model.classifier_block], 2))
    report = load_into(model, {**small().state_dict(), "heads.head.weight": torch.ones(2, 2)}, tmp_path)
    assert report.ignored == ("heads.head.weight",)
