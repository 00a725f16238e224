"""The command line: fast help, exit codes, and one message for what a user can mend."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import runs
from classyseg.claims import check_free
from classyseg.cli.main import main as classyseg_main
from classyseg.cli.models import WRITTEN
from classyseg.cli.train import main as classy_train_main
from classyseg.config import ConfigError, load_config
from classyseg.registry import REGISTRIES

ROOT = Path(__file__).parents[1]
QUICKSTART = "task_configs/quickstart.yaml"


def run_program(arguments: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# -- help --------------------------------------------------------------------------------------------------------------

HELP = [
    [ROOT / "classy_train.py", "--help"],
    ["-m", "classyseg", "--help"],
    ["-m", "classyseg", "train", "--help"],
    ["-m", "classyseg", "config", "check", "--help"],
]


@pytest.mark.parametrize("arguments", HELP, ids=lambda words: " ".join(str(word) for word in words[1:]) or "train")
def test_help_imports_nothing_heavy(arguments: list[object], tmp_path: Path) -> None:
    done = run_program(["-X", "importtime", *arguments], tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "classyseg" in imported
    assert not imported & {"torch", "torchvision", "numpy", "pydantic", "yaml", "PIL", "fvcore", "iopath"}


def test_help_answers_within_half_a_second_of_cpu_time(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_program([ROOT / "classy_train.py", "--help"], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_names_every_option_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        classy_train_main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "CONFIG",
        "--config",
        "--output",
        "--resume",
        "--check",
        "--data-root",
        "key=value",
        "Exit codes: 0 done; 2 ",
    ):
        assert part in text


# -- exit codes --------------------------------------------------------------------------------------------------------


def test_a_check_says_ok_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = runs.write_config(tmp_path)
    assert classy_train_main(["--config", str(config), "--check"]) == 0
    assert capsys.readouterr() == (f"{config}: ok\n", "")
    assert list(tmp_path.iterdir()) == [config]


def test_a_packaged_config_is_found_by_name_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (QUICKSTART, "quickstart.yaml", "camvid/fcn_resnet18.yaml"):
        assert classy_train_main(["--config", name, "--check"]) == 0, capsys.readouterr().err


def test_a_file_that_is_there_goes_before_a_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("name: mine\n", encoding="utf-8")
    assert classy_train_main(["--config", "quickstart.yaml", "--check"]) == 2
    assert "quickstart.yaml, line 1: name: 'mine': unknown task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "none.yaml: no such file, and no packaged task config; packaged: ade20k/"),
        (["--config", ""], "no such file"),
        (["--config", "."], ".: is a folder"),
        (["--config", QUICKSTART, "lr"], "override 'lr': expected key.sub=value"),
        (
            ["--config", QUICKSTART, "optimizer.lrr=1"],
            "override 'optimizer.lrr=1': optimizer.lrr: unknown key; did you",
        ),
        (["--config", QUICKSTART, "optimizer.lr=fast"], "override 'optimizer.lr=fast': optimizer.lr: found 'fast'"),
        (["--config", QUICKSTART, "runtime.device=cuda:77"], "runtime.device: found cuda:77"),
        (["--config", QUICKSTART, "batch_size=5", "runtime.accumulate_steps=2"], "batch_size: found 5"),
    ],
)
def test_what_the_user_wrote_wrong_is_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert classy_train_main([*arguments, "--output", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", QUICKSTART, "--bogus"], ["--resum"]])
def test_a_wrong_option_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        classy_train_main(arguments)
    assert done.value.code == 2
    assert "usage: classy_train.py" in capsys.readouterr().err


@pytest.mark.parametrize("program", [classy_train_main, lambda words: classyseg_main(["train", *words])])
def test_overrides_may_stand_before_and_after_options(
    program: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["batch_size=4", "--config", QUICKSTART, "seed=1", "--check"]) == 0
    for arguments in (["seed=x", "--config", QUICKSTART, "--check"], ["--check", "--config", QUICKSTART, "seed=x"]):
        assert program(["batch_size=4", *arguments]) == 2
        assert "override 'seed=x'" in capsys.readouterr().err


@pytest.mark.parametrize("program", [classy_train_main, lambda words: classyseg_main(["train", *words])])
def test_the_config_stands_in_first_place_or_after_its_option(
    program: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "lr=1.yaml"  # a file before an override
    odd.write_bytes((ROOT / QUICKSTART).read_bytes())
    for words in (
        [QUICKSTART, "seed=1", "--check"],
        ["--check", QUICKSTART, "seed=1"],
        [QUICKSTART, "--check", "seed=1"],
        ["--config", QUICKSTART, "seed=1", "--check"],
        ["seed=1", "--check", "--config", QUICKSTART],
        [str(odd), "--check"],
    ):
        assert program(words) == 0
        assert capsys.readouterr().out.endswith("yaml: ok\n")
    for words, message in (
        ([QUICKSTART, "--config", QUICKSTART], "two configs"),
        (["--check"], "the config is missing"),
        (["seed=1", QUICKSTART], "the config comes before the overrides (CONFIG key=value ...); found 'seed=1' first"),
    ):
        with pytest.raises(SystemExit) as done:
            program(words)
        assert done.value.code == 2
        assert message in capsys.readouterr().err
    assert program([QUICKSTART, "lr"]) == 2
    assert "override 'lr': expected key.sub=value" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.write_config(tmp_path)
    for name in ("config.yaml", "checkpoints", "metrics.jsonl"):
        folder = tmp_path / f"with-{name}"
        (folder / name).mkdir(parents=True)
        assert classy_train_main(["--config", str(config), "--output", str(folder)]) == 2
        assert f"--output {folder}: holds a run already; continue it with --resume" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [name]


def test_an_output_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        classy_train_main([str(runs.write_config(tmp_path)), "--output", ""])
    assert ended.value.code == 2
    assert "argument --output: found ''; name a folder" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.write_config(tmp_path)
    for output in (config, config / "below"):
        assert classy_train_main(["--config", str(config), "--output", str(output)]) == 2
        assert f"--output {output}: cannot be written (" in capsys.readouterr().err


NOBODY = 65534


def test_an_output_without_permission_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:  # nobody else may enter pytest's own folder
        locked = Path(name)
        process = os.fork()
        if process == 0:
            try:
                locked.chmod(0o555)
                if os.geteuid() == 0:  # who writes everywhere
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                check_free(locked / "run", resume=False, overwrite=False)
            except ConfigError as error:
                os.write(1, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(process, 0)
        assert capfd.readouterr().out == f"--output {locked / 'run'}: cannot be written (Permission denied)"


CAMVID = "task_configs/camvid/fcn_resnet18.yaml"


def test_a_missing_data_set_names_the_folder_and_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLASSYSEG_DATA", "elsewhere")
    (tmp_path / "CamVid11").mkdir()
    arguments = ["--config", CAMVID, "--output", str(tmp_path / "run"), "--data-root", str(tmp_path)]
    assert classy_train_main(arguments) == 2
    message = capsys.readouterr().err
    assert (
        f"{tmp_path / 'camvid'}: no such folder; did you mean 'CamVid11'? (data folders are looked up under" in message
    )
    assert "--data-root" in message
    assert "$CLASSYSEG_DATA" in message


def test_a_user_error_has_no_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    arguments = ["-m", "classyseg", "train", "--config", CAMVID, "--data-root", "nowhere"]
    done = run_program(arguments, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    train, val = done.stderr.splitlines()  # all problems at once
    assert train.startswith(f"error: dataset.train.root: {tmp_path / 'nowhere/camvid'}: no such folder")
    assert val.startswith(f"dataset.val.root: {tmp_path / 'nowhere/camvid'}: no such folder")


def test_a_training_that_diverges_is_one_message_and_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.write_config(tmp_path, {"num_epochs": 1, "optimizer.lr": 1e6, "optimizer.weight_decay": 1e6})
    assert classy_train_main(["--config", str(config), "--output", str(tmp_path / "run")]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "rror" in line] == lines[-1:]
    assert lines[-1].startswith("error: step ")
    assert "the training loss is " in lines[-1]


# -- the other commands ------------------------------------------------------------------------------------------------


def test_config_check_says_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["config", "check", QUICKSTART, "seed=3"]) == 0
    assert capsys.readouterr() == (f"{QUICKSTART}: ok\n", "")


def test_config_check_finds_what_train_finds(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.heads.main.blocks=[stage7]"]
    assert classyseg_main(["config", "check", QUICKSTART, *overrides]) == 2
    found = capsys.readouterr().err
    assert classy_train_main(["--config", QUICKSTART, *overrides]) == 2
    assert capsys.readouterr().err == found


def test_config_show_prints_a_whole_config_that_shows_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classyseg_main(["config", "show", QUICKSTART, "optimizer.lr=0.02"]) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "shown.yaml"
    path.write_text(shown, encoding="utf-8")
    values = load_config(path).values
    assert values["optimizer"]["lr"] == 0.02
    assert values["optimizer"]["momentum"] == 0.9
    assert values["runtime"]["device"] == "auto"
    assert classyseg_main(["config", "show", str(path)]) == 0
    assert capsys.readouterr().out == shown


def test_config_schema_prints_a_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    assert "models.resnet50" in schema["$defs"]


def test_models_lists_those_that_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["models", "resnet1?*_vd"]) == 0
    assert capsys.readouterr().out.split() == ["resnet101_vd", "resnet152_vd", "resnet18_vd"]


def test_models_as_a_table_tell_what_stands_behind_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["models", "resnet18", "--table"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0] == "| `resnet18`"
    assert row[1:3] == ["11.18", "1.81"]
    assert "`stage4`: 512 / 32" in row[3]
    assert row[4:] == ["8, 16, 32", "`imagenet1k_v1` |"]


@pytest.mark.parametrize("command", [("models", "resnet18"), ("config", "keys")], ids=" ".join)
def test_a_page_that_cannot_be_written_is_one_error(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe")
    for page, reason in (("missing.md", "No such file"), ("binary.md", "no text in UTF-8"), ("", "directory")):
        assert classyseg_main([*command, "--write", str(tmp_path / page)]) == 2
        assert reason in capsys.readouterr().err


def test_new_rows_of_backbones_leave_the_others_and_the_text_before_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    row = "| `resnet34` | of before |"
    everything = "\n".join(f"| `{name}` | kept |" for name in REGISTRIES["models"].names() if name != "resnet18")
    page.write_text(f"# Title\n\n{WRITTEN}{everything}\n{row}\n| `no_more` | gone |\n", encoding="utf-8")
    assert classyseg_main(["models", "resnet18", "--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{WRITTEN}\n## ")
    assert "| `resnet18` | 11.18 | 1.81 |" in text
    assert row in text
    assert "| `vit_b_16` | kept |" in text
    assert "no_more" not in text


def test_models_that_do_not_exist_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["models", "vgg*"]) == 2
    assert "'vgg*' matches nothing: unknown model" in capsys.readouterr().err


def test_plugins_prints_its_header_where_nothing_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["plugins"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["distribution", "version", "kind", "name", "ok"]


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["config"], ["trian"]):
        with pytest.raises(SystemExit) as done:
            classyseg_main(arguments)
        assert done.value.code == 2
        assert "usage: classyseg" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", ["config schema", "data check task_configs/quickstart.yaml --samples 2 --workers 0 --json"]
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments: str, tmp_path: Path) -> None:
    listing = f"{sys.executable} -m classyseg {arguments}"
    command = ["bash", "-c", f"set -o pipefail; {listing} | head -n 1 > /dev/null"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def run_unread(arguments: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program whose standard output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    try:
        return subprocess.run(
            command, cwd=cwd, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)


def test_a_listing_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    done = run_unread(["-m", "classyseg", "models"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_progress(tmp_path: Path) -> None:
    config = runs.write_config(tmp_path, {"num_epochs": 2, "hooks": ["progress_bar", "checkpoint"]})
    done = run_unread(["-m", "classyseg", "train", "--config", config, "--output", tmp_path / "run"], tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("progress is not printed any more (Broken pipe)") == 1
    assert (tmp_path / "run/checkpoints/LATEST").read_text(encoding="utf-8") == "step-12"
    assert [record["epoch"] for record in runs.read_records(tmp_path / "run/metrics.jsonl")] == [1, 1, 2, 2]


def test_a_run_that_a_broken_pipe_ends_is_a_failure(tmp_path: Path) -> None:
    code = "import sys; from classyseg.cli.train import guarded; sys.exit(guarded(lambda: print('x', flush=True)))"
    done = run_unread(["-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"


def test_every_argument_of_every_command_says_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {}
    add = argparse.ArgumentParser.add_argument

    def add_argument(parser: argparse.ArgumentParser, *names: str, **options: Any) -> argparse.Action:
        found[f"{parser.prog} {names[-1]}"] = options.get("help")
        return add(parser, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    with pytest.raises(SystemExit):
        classyseg_main(["--help"])
    assert len(found) > 50
    assert [argument for argument, meaning in found.items() if not meaning] == []
