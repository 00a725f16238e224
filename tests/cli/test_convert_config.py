"""`classyseg convert-config` writes a config that `config check` accepts, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from migration import mmseg_files

from classyseg.cli.main import main

DROPPED = "model = dict(decode_head=dict(gate=3))"


def test_a_config_is_written_with_its_notes_and_passes_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = mmseg_files.write(tmp_path), tmp_path / "new.yaml"
    assert main(["convert-config", str(source), str(target)]) == 0
    assert main(["config", "check", str(target)]) == 0
    text = target.read_text()
    assert "# - model.decode_head.loss_decode: mmsegmentation divides the loss by all pixels" in text
    assert "differs: model.decode_head.loss_decode" in capsys.readouterr().err


def test_what_changes_numbers_is_an_error_unless_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = mmseg_files.write(tmp_path, changes=DROPPED), tmp_path / "new.yaml"
    assert main(["convert-config", str(source), str(target)]) == 2
    assert not target.exists()
    assert "model.decode_head.gate: 3 has no equivalent" in capsys.readouterr().err
    assert main(["convert-config", str(source), str(target), "--partial"]) == 0
    assert "# - model.decode_head.gate: 3 has no equivalent" in target.read_text()
    assert main(["config", "check", str(target)]) == 0


def test_without_a_target_the_config_goes_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert-config", str(mmseg_files.write(tmp_path, name="x.py")), "--processes", "5"]) == 0
    assert "\nbatch_size: 10\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.py"], "gone.py"),
        (["net_4xb2-400.py", "out.txt"], "expected .yaml"),
        (["net_4xb2-400.py", "there.yaml"], "exists already"),
        (["there.yaml"], "no config of"),
        (["note.txt"], "accepted"),
    ],
)
def test_wrong_use_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mmseg_files.write(tmp_path)
    (tmp_path / "there.yaml").write_text("a: 1\n")
    (tmp_path / "note.txt").write_text("a: 1\n")
    assert main(["convert-config", *arguments]) == 2
    assert told in capsys.readouterr().err
