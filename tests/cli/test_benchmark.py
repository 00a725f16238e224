"""`classyseg benchmark`: its numbers are those of others, and what is wrong is said before anything is timed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from classyseg.cli.main import main
from classyseg.cli.measured_process import MeasuredProcess, Setup
from classyseg.config import dump_yaml, load_config
from classyseg.errors import ConfigError

REPEATS = 5


@pytest.fixture(scope="module")
def compared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--json` tells of a run, of a copy of its `model/` elsewhere, and of one with classes of other names."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(trained / "model", folder / "copy")
    shutil.copytree(trained / "model", folder / "other")
    told = json.loads((folder / "other" / "config.json").read_text(encoding="utf-8"))
    told["classes"] = [f"another {name}" for name in told["classes"]]
    (folder / "other" / "config.json").write_text(json.dumps(told), encoding="utf-8")
    options = ["--size", "48x32", "--batch-size", "3", "--repeats", REPEATS, "--threads", "1"]
    words = ["benchmark", trained, folder / "copy", folder / "other", *options, "--json", folder / "found.json"]
    assert main([*map(str, words)]) == 0
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_times_are_told_with_their_median_and_the_ratio_to_the_first(compared: dict[str, Any]) -> None:
    first = compared["models"][0]
    assert compared["size"] == [48, 32]
    for model in compared["models"]:
        assert [model[name]["images"] for name in ("latency", "batch")] == [1, 3]
        for name in ("latency", "batch"):
            times = model[name]["times_seconds"]
            assert len(times) == REPEATS
            assert min(times) > 0
            assert model[name]["median_seconds"] == statistics.median(times)
            assert model[name]["low_seconds"] == sorted(times)[1]
            assert model[name]["high_seconds"] == sorted(times)[3]
            ratio = statistics.median(times) / statistics.median(first[name]["times_seconds"])
            assert model[f"{name}_ratio"] == pytest.approx(ratio)


@pytest.mark.slow
def test_the_precision_is_a_choice_for_runs_and_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", trained, "--split", "none", "--size", "32x32", "--batch-size", "1", "--repeats", "1"]
    for options, kind in ((), "torch"), (("--precision", "bfloat16"), "torch bfloat16"):
        assert main([*map(str, words), "--json", str(tmp_path / "b.json"), *options]) == 0
        assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["models"][0]["kind"] == kind
        assert kind in capsys.readouterr().out


@pytest.mark.slow
def test_mean_iou_is_that_of_evaluate_also_of_a_folder_without_a_run(
    compared: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(trained), "--output", str(tmp_path), "--worst", "0"]) == 0
    wanted = json.loads((tmp_path / "evaluation-val.json").read_text(encoding="utf-8"))["mean_iou"]
    assert [model["measured"]["mean_iou"] for model in compared["models"][:2]] == [wanted, wanted]


@pytest.mark.slow
def test_sizes_on_disk_are_those_of_the_files_that_are_read(compared: dict[str, Any], trained: Path) -> None:
    files = [trained / "model" / name for name in ("model.safetensors", "config.json")]
    assert [model["disk_bytes"] for model in compared["models"][:2]] == [sum(file.stat().st_size for file in files)] * 2


@pytest.mark.slow
def test_a_model_that_cannot_be_measured_says_why_and_takes_nothing_from_the_others(compared: dict[str, Any]) -> None:
    assert [model["measured"] is None for model in compared["models"]] == [False, False, True]
    assert [model["not_measured"] is None for model in compared["models"]] == [True, True, False]
    assert "its classes" in compared["models"][2]["not_measured"]
    assert compared["data"] is not None


@pytest.mark.slow
def test_memory_is_of_the_model_alone_and_a_process_that_dies_is_one_error(trained: Path) -> None:
    found = []
    process = MeasuredProcess(Setup(str(trained), device="cpu", threads=1))
    try:
        process.load()
        for size in ((32, 32), (1500, 1000)):
            process.prepare(size, 1)
            found.append(process.memory().host)
        children = multiprocessing.active_children()
        (child,) = (child for child in children if str(trained) in child.name)
        child.kill()
        with pytest.raises(ConfigError, match="killed"):
            process.seconds()
    finally:
        process.close()
    assert found[0] < 80_000_000, "it counts what torch itself takes"
    assert found[1] - found[0] > 1500 * 1000 * (3 * 4 + 8), "float32 of three channels, and the int64 labels"


@pytest.mark.slow
def test_without_data_the_rest_is_measured_and_the_table_says_why(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    values = load_config(copy / "config.yaml").values
    values["dataset"]["val"] = {"name": "camvid", "split": "val"}
    (copy / "config.yaml").write_text(dump_yaml(values), encoding="utf-8")
    words = ["benchmark", str(copy), "--size", "32x32", "--batch-size", "1", "--repeats", "1", "--threads", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(str(copy))
    assert lines[2].endswith(" -")
    assert "camvid" in lines[3]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["RUN", "--json", "absent/found.json"], "--json"),
        (["RUN", "--json", ""], "--json"),
        (["absent"], "absent"),
        (["RUN", "--data", "absent"], "absent"),
        (["RUN", "--protocol", "sliding"], "protocol"),
    ],
)
def test_mistakes_are_told_before_a_process_starts(
    trained: Path,
    words: list[str],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MeasuredProcess, "__init__", lambda *_: pytest.fail("a process has started"))
    assert main(["benchmark", *(str(trained) if word == "RUN" else word for word in words)]) == 2
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("size", ["360", "0x3", "360x", "axb", "360x480x3", "100000x2", "-1x5"])
def test_a_wrong_size_says_how_one_is_written(trained: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", str(trained), f"--size={size}"])
    assert ended.value.code == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
