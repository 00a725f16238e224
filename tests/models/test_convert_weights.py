"""`classyseg convert-weights` writes any readable file as safetensors; `classyseg weights` lists what is public."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import pytest
import torch
from goldens import encoding_keys
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from classyseg.cli.main import main
from classyseg.models import Naming, ResNet, create_backbone, create_model, load_weights
from classyseg.weights.key_maps import PADDLE_LEAVES
from weight_files import as_arrays, paddle_bytes, torch_bytes, write


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return create_backbone("resnet18").state_dict()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_without_a_model_the_keys_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = torch.arange(6.0).view(2, 3)
    tree = {"net": {"a": base, "tied": base, "columns": base.t(), "part": base[1]}, "epoch": 3, "empty": torch.zeros(0)}
    source = write(tmp_path / "w.pth", torch_bytes(tree))
    assert main(["convert-weights", str(source), str(tmp_path / "o.safetensors")]) == 0
    found = load_file(tmp_path / "o.safetensors")
    expected = {"net.a": base, "net.tied": base, "net.columns": base.t(), "net.part": base[1], "empty": torch.zeros(0)}
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata(tmp_path / "o.safetensors") == {"format": "pt", "source": "w.pth", "source_sha256": digest}
    assert capsys.readouterr().out == f"{tmp_path / 'o.safetensors'}: 5 tensors\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def save_file(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"a half")
        signal.raise_signal(number)

    source = write(tmp_path / "w.pth", torch_bytes({"net.b": torch.ones(2)}))
    monkeypatch.setattr("classyseg.models.convert_weights.save_file", save_file)
    assert main(["convert-weights", str(source), str(tmp_path / "o.safetensors")]) == 128 + number
    assert capsys.readouterr().err == "stopped\n"
    assert [*tmp_path.iterdir()] == [source]


@pytest.mark.parametrize(
    ("key", "values", "problem"),
    [
        ("net.a", [1.0, float("nan")], "values that are not finite: net.a"),
        ("net.a", [float("inf"), 1.0], "values that are not finite: net.a"),
        ("net.bn.running_var", [1.0, -0.5], "a variance below 0: net.bn.running_var"),
        ("net.bn._variance", [1.0, -0.5], "a variance below 0: net.bn._variance"),
    ],
)
def test_values_that_no_weights_have_are_not_written(
    key: str, values: list[float], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "w.pth", torch_bytes({key: torch.tensor(values), "net.b": torch.ones(2)}))
    assert main(["convert-weights", str(source), str(tmp_path / "o.safetensors")]) == 2
    assert capsys.readouterr().err == f"error: {source}: 1 tensors hold {problem}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_with_a_model_the_keys_become_its_own_and_what_is_beside_is_left_out(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    naming = Naming("paddleseg", (*PADDLE_LEAVES, (r"^conv1\.", "stem.")), ("fc.",))
    monkeypatch.setattr(ResNet, "namings", (naming,))
    theirs = {f"backbone.{naming.key(key)}": value for key, value in state.items() if "num_batches" not in key}
    arrays = as_arrays({**theirs, "backbone.fc.weight": torch.ones(2, 2), "head.conv.weight": torch.ones(2)})
    source, target = write(tmp_path / "w.pdparams", paddle_bytes(arrays)), tmp_path / "o.safetensors"
    assert main(["convert-weights", str(source), str(target), "--model", "resnet18"]) == 0
    assert set(load_file(target)) == {key for key in state if "num_batches" not in key}
    told = metadata(target)
    assert (told["library"], told["prefix"], told["model"]) == ("paddleseg", "backbone.", "resnet18")
    out = capsys.readouterr().out
    assert "100 tensors loaded with the names of paddleseg under 'backbone.'; ignored: backbone (1), head (1)" in out
    model = create_backbone("resnet18")
    assert not load_weights(model, str(target)).problems()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_name_with_heads_is_converted_whole(tmp_path: Path) -> None:
    model = create_model("deepten_resnet50_minc")
    theirs = {name: model.state_dict()[key] for key, name in encoding_keys(model).items()}
    source, target = write(tmp_path / "w.pth", torch_bytes({"state_dict": theirs})), tmp_path / "o.safetensors"
    assert main(["convert-weights", str(source), str(target), "--model", "deepten_resnet50_minc"]) == 0
    assert set(load_file(target)) == set(model.state_dict())
    again = create_model("deepten_resnet50_minc", weights=target)
    assert torch.equal(again.state_dict()["heads.main.fc.weight"], model.state_dict()["heads.main.fc.weight"])


def test_a_model_that_does_not_fit_is_an_error_and_nothing_is_written(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path / "w.pth", torch_bytes(state)), tmp_path / "o.safetensors"
    assert main(["convert-weights", str(source), str(target), "--model", "resnet34"]) == 2
    assert "missing keys: layer1.2.conv1.weight" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_target_is_only_replaced_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path / "w.pth", torch_bytes({"w": torch.ones(1)})), tmp_path / "o.safetensors"
    target.write_text("mine")
    assert main(["convert-weights", str(source), str(target)]) == 2
    assert "exists already; choose another name, or --force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["convert-weights", str(source), str(target), "--force"]) == 0
    assert load_file(target)["w"].tolist() == [1]
    assert main(["convert-weights", str(source), str(tmp_path / "o.pth")]) == 2
    assert main(["convert-weights", str(source), str(tmp_path / "no" / "o.safetensors")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors", "w.pth"]


def test_public_weights_are_listed_with_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "resnet5*"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "name", "licence", "preprocessing", "digest", "URL"]
    (row,) = [row for row in rows if row.startswith("resnet50 ") and "imagenet1k_v2" in row]
    for part in ("BSD-3-Clause", "resize 232 bilinear, crop 224, mean 0.485 0.456 0.406", "sha256:11ad3fa6"):
        assert part in row
    assert row.endswith("https://download.pytorch.org/models/resnet50-11ad3fa6.pth")
    assert main(["weights", "nothing*"]) == 2
    assert "no public weights are known of models that match 'nothing*'" in capsys.readouterr().err
