"""Models on the hub: up, down and at work, against a stand-in of its API on 127.0.0.1; and hostile repositories."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from predicted import noise, save
from safetensors.torch import save as safetensors_of

import classyseg
from classyseg.cli.main import main
from classyseg.errors import ConfigError
from classyseg.inference import Card, Predictor
from classyseg.inference.card import placed_at
from classyseg.models import build_model
from classyseg.weights import hub as hub_files
from hub_server import Hub
from local_server import running
from runs import SMALL_BACKBONE
from served import small_predictor

ROOT = Path(__file__).parents[2]
IMAGE = noise(40, 50)
TOKEN = "hf_of_a_test"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(Hub()) as found:
        for name, value in {
            "ENDPOINT": found.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": found.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture(scope="module")
def files(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = predictor.save(tmp_path_factory.mktemp("model") / "model")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def downloads(hub: Hub) -> list[str]:
    return sorted({request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /o/n/resolve")})


# -- up and down -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [".safetensors", ".none"])
def test_a_model_comes_back_as_it_was_pushed(hub: Hub, predictor: Predictor, large: str) -> None:
    hub.large_suffix = large  # by git-LFS, or within the commit
    card = Card(title="Streets", records={"val": {"mean_iou": 0.75}})
    done = predictor.push("o/n", private=True, message="the first", token=TOKEN, card=card, license="MIT")
    repository = hub.repositories["o/n"]
    assert repository.private
    assert repository.messages[-1] == "the first"
    assert set(repository.commits[repository.branches["main"]]) == {"README.md", "config.json", "model.safetensors"}
    assert done.url.startswith(f"{hub.url}/o/n/commit/")
    repository.private = False
    found = classyseg.load("hf://o/n", device="cpu")
    assert np.array_equal(found.predict(IMAGE), predictor.predict(IMAGE))
    assert np.array_equal(found.scores(IMAGE), predictor.scores(IMAGE))
    assert found.classes == predictor.classes
    assert 'classyseg.load("hf://o/n")' in found.readme
    assert "| mean_iou | 0.7500 |" in found.readme
    assert "license: mit" in found.readme


@pytest.mark.parametrize("before", ["FOLDER", "hf://a/x@v1"])
def test_the_examples_of_a_card_load_from_where_it_goes(before: str) -> None:
    text = f'model = classyseg.load("{before}")\nclassyseg predict {before} photo.jpg\nMade from hf://a/x@v1.\n'
    expected = 'model = classyseg.load("hf://b/y")\nclassyseg predict hf://b/y photo.jpg\nMade from hf://a/x@v1.\n'
    assert placed_at(text, "hf://b/y") == expected


def test_revisions_and_folders_are_apart(hub: Hub, predictor: Predictor, files: dict[str, bytes]) -> None:
    hub.add("o/n", {f"small/{name}": content for name, content in files.items()})
    with pytest.raises(ConfigError, match=r"hf://o/n: has no config\.json and no model\.safetensors.*small/README\.md"):
        classyseg.load("hf://o/n")
    assert classyseg.load("hf://o/n/small", device="cpu").classes == predictor.classes
    predictor.push("o/n", revision="v2", token=TOKEN)
    predictor.push("o/n@feature%2Fx/deep/er", token=TOKEN)
    first = hub.repositories["o/n"].branches["v2"]
    for address in ("hf://o/n@v2", f"hf://o/n@{first}", "hf://o/n@feature%2Fx/deep/er"):
        found = classyseg.load(address, device="cpu")
        assert np.array_equal(found.predict(IMAGE), predictor.predict(IMAGE)), address
    with pytest.raises(ConfigError, match="hf://o/n: has no revision 'v3'"):
        classyseg.load("hf://o/n@v3")


def test_folders_whose_names_look_alike_are_apart(hub: Hub, predictor: Predictor, tmp_path: Path) -> None:
    other = small_predictor()
    for parameter in other.model.parameters():
        parameter.data.neg_()
    for name, each in (("a/b", predictor), ("a--b", other)):  # of one commit, and with files of the same sizes
        folder = each.save(tmp_path / name)
        hub.add("o/n", {f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
    for name, each in (("a/b", predictor), ("a--b", other)):
        assert np.array_equal(classyseg.load(f"hf://o/n/{name}", device="cpu").predict(IMAGE), each.predict(IMAGE)), (
            name
        )
    assert not np.array_equal(predictor.predict(IMAGE), other.predict(IMAGE))


def test_what_was_loaded_once_is_loaded_without_network(
    hub: Hub, predictor: Predictor, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/n", files)
    classyseg.load("hf://o/n", device="cpu")
    before = len(hub.requests)
    hub.fails = 503
    assert np.array_equal(classyseg.load("hf://o/n", device="cpu").predict(IMAGE), predictor.predict(IMAGE))
    assert len(hub.requests) > before  # it was asked, and is down
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert classyseg.load("hf://o/n", device="cpu").classes == predictor.classes
    with pytest.raises(ConfigError, match="hf://o/other: the hub cannot be reached, and its cache does not have all"):
        classyseg.load("hf://o/other")


def test_a_new_commit_is_taken(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("o/n", files)
    assert classyseg.load("hf://o/n", device="cpu").classes[0] == "sky"
    values = json.loads(files["config.json"]) | {"classes": ["air", "b", "c", "d"]}
    hub.repositories["o/n"].commit({"config.json": json.dumps(values).encode()})
    assert classyseg.load("hf://o/n", device="cpu").classes[0] == "air"


def test_a_hub_that_nobody_reaches_is_one_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1, raising=False)
    with pytest.raises(ConfigError, match="hf://o/n: the hub cannot be reached"):
        classyseg.load("hf://o/n")
    with pytest.raises(ConfigError, match="hf://o/n: the hub cannot be reached"):
        small_predictor().push("o/n", token=TOKEN)


@pytest.mark.parametrize(
    ("options", "address", "told"),
    [
        ({}, "hf://o/missing", "no such repository, or a private one"),
        ({"private": True}, "hf://o/n", "no such repository, or a private one that you may not see"),
        ({"gated": True}, "hf://o/n", "its owner grants access"),
    ],
)
def test_a_repository_that_is_not_to_be_seen_is_one_error(
    hub: Hub, files: dict[str, bytes], options: dict[str, bool], address: str, told: str
) -> None:
    hub.add("o/n", files, **options)
    with pytest.raises(ConfigError, match=told):
        classyseg.load(address)


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://name",
        "hf://o/n@",
        "hf://o/../n",
        "hf://o/n/../x",
        "hf://o/n@%2e%2e%2f%2e%2e%2fx",
        "hf://o/n@v1%0a",
        "hf://o/n@a b",
        "hf://o/n?x=1",
        "hf:///o/n",
        "hf://o/n//x",
    ],
)
def test_an_address_that_is_none_is_one_error(hub: Hub, address: str) -> None:
    with pytest.raises(ConfigError, match="accepted are such as hf://owner/name"):
        classyseg.load(address)
    assert hub.requests == []


def test_a_token_that_may_not_write_is_one_error(hub: Hub, predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="hf://o/n: you may not do that: check `hf auth login`"):
        predictor.push("o/n")
    assert hub.repositories == {}


# -- hostile repositories ----------------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def test_only_the_files_of_a_models_folder_are_downloaded(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    others = {
        "pytorch_model.bin": pickle.dumps(Attack()),
        "model.py": b"raise SystemExit",
        "../x": b"",
        "a/b.json": b"",
    }
    hub.add("o/n", files | others)
    classyseg.load("hf://o/n", device="cpu")
    assert downloads(hub) == ["README.md", "config.json", "model.safetensors"]


def test_other_formats_under_the_name_of_weights_are_refused(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zipped = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, zipped)
    link = b"../../../etc/passwd"
    for content in (pickle.dumps(Attack()), zipped.getvalue(), link, b"", b"\xff" * 8 + b"{" + bytes(50)):
        hub.add("o/n", files | {"model.safetensors": content})
        with pytest.raises(ConfigError, match=r"hf://o/n: model\.safetensors is no file of safetensors"):
            classyseg.load("hf://o/n")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_files_that_are_too_large_are_refused_before_they_come(
    hub: Hub, files: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/n", files)
    hub.told_sizes = {name: 2**40}
    with pytest.raises(ConfigError, match=rf"hf://o/n: {name} has 1,099,511,627,776 bytes; accepted are up to"):
        classyseg.load("hf://o/n")
    assert downloads(hub) == []


def test_a_file_that_says_it_is_small_and_never_ends_is_given_up(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/n", files)
    hub.endless = True
    monkeypatch.setitem(hub_files.MAX_BYTES, "model.safetensors", 5 * 2**20)
    with pytest.raises(ConfigError, match="more than 5,242,880 bytes came"):
        classyseg.load("hf://o/n")
    assert sum(path.stat().st_size for path in (tmp_path / "hf").rglob("*") if path.is_file()) < 2**20


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "os.system", "heads": {}}},
        {"model": {"name": "classyseg.models.resnet:ResNet"}},
        {"model": {**SMALL_BACKBONE, "weights": "/etc/passwd"}},
        {"model": {**SMALL_BACKBONE, "class": "builtins.exec"}},
        {"preparation": {"transforms": [{"name": "__import__('os')"}]}},
        {"classes": ["a"] * 70_000},
        {"model": {**SMALL_BACKBONE, "widths": [100_000] * 4, "group_widths": [100_000] * 4}},
    ],
)
def test_a_config_names_components_never_import_paths_nor_a_large_model(
    hub: Hub, files: dict[str, bytes], changes: dict[str, Any]
) -> None:
    values = json.loads(files["config.json"]) | changes
    hub.add("o/n", files | {"config.json": json.dumps(values).encode()})
    with pytest.raises(ConfigError, match=r"config\.json"):
        classyseg.load("hf://o/n")


# -- weights and commands ----------------------------------------------------------------------------------------------


def test_the_weights_of_a_model_config_may_be_on_the_hub(hub: Hub) -> None:
    torch.manual_seed(3)
    source = build_model(SMALL_BACKBONE, 4)
    hub.add(
        "o/backbone", {"model.safetensors": safetensors_of(source.state_dict()), "config.json": b"of another library"}
    )
    found = build_model({**SMALL_BACKBONE, "weights": "hf://o/backbone"}, 4)
    assert all(value.equal(source.state_dict()[key]) for key, value in found.state_dict().items())


def test_commands_take_addresses_where_they_take_a_run(
    hub: Hub, files: dict[str, bytes], predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("o/n", files)
    image = save(tmp_path / "a.png", IMAGE)
    assert main(["predict", "hf://o/n", str(image), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    written = (tmp_path / "out" / "a.png").read_bytes()
    assert written
    names = json.loads(files["config.json"]) | {"classes": ["background", "disc", "square", "triangle"]}
    hub.add("o/n", files | {"config.json": json.dumps(names).encode()})
    data = "dataset.val={name: synthetic_shapes, split: test, num_samples: 2, size: [32, 32]}"
    assert main(["evaluate", "hf://o/n", data, "--device", "cpu", "--output", str(tmp_path / "measured")]) == 0
    assert (tmp_path / "measured" / "evaluation-val.json").is_file()


def test_push_says_what_is_uploaded_and_a_dry_run_sends_nothing(
    hub: Hub, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = predictor.save(tmp_path / "model", license="Apache-2.0")
    (tmp_path / "secret.txt").write_text("secret")
    assert main(["push", str(folder), "o/n", "--dry-run", "--private"]) == 0
    assert hub.requests == []
    told = capsys.readouterr().out
    assert "would be uploaded to hf://o/n, a private repository if it is new" in told
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(folder), "o/n", "--licence", "My own"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[:3]] == ["config.json", "model.safetensors", "README.md"]
    uploaded = hub.repositories["o/n"].commits[hub.repositories["o/n"].branches["main"]]
    assert set(uploaded) == {"config.json", "model.safetensors", "README.md"}
    assert b"license_name: My own" in uploaded["README.md"]
    assert str(tmp_path).encode() not in b"".join(uploaded.values())


def test_a_card_of_ones_own_gets_the_header_that_the_hub_needs(hub: Hub, predictor: Predictor, tmp_path: Path) -> None:
    folder = predictor.save(tmp_path / "model")
    for own in ("My own text.\n", "---\ntags: [mine]\nlicense: mit\n---\nMy own text.\n"):
        (folder / "README.md").write_text(own)
        classyseg.load(folder, device="cpu").push("o/n", token=TOKEN)
        repository = hub.repositories["o/n"]
        card = ModelCard(repository.commits[repository.branches["main"]]["README.md"].decode())
        assert (card.data.library_name, card.data.pipeline_tag) == ("classyseg", "image-segmentation")
        assert (card.data.license, card.text.strip()) == ("mit" if "mit" in own else None, "My own text.")
        assert card.data.tags == (["mine"] if "mine" in own else ["classyseg", "anynet"])


def test_a_missing_extra_is_one_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(ConfigError, match=r"pip install 'classyseg\[hub\]'"):
        classyseg.load("hf://o/n")


@pytest.mark.slow
def test_the_variables_of_the_hub_work_in_a_process_of_its_own(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("o/n", files, private=True)
    save(tmp_path / "a.png", IMAGE)
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    words = ["predict", "hf://o/n", str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "classyseg", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Bearer {TOKEN}" in hub.tokens
    assert list((tmp_path / "home").rglob("model.safetensors"))
