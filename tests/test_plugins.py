"""Plugins as pip installs them: the example works by config, and a broken one fails only whoever names it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import runs
from classyseg import ConfigError, build_head, build_model
from classyseg.cli.main import main as classyseg_main
from classyseg.cli.train import main as classy_train_main
from classyseg.config import dump_yaml
from classyseg.registry import look_for_plugins_again

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "plugins" / "classyseg-example"
MODEL = """
from classyseg import ClassyModel
class Net(ClassyModel):
    def extract_features(self, image): return {}
"""
HEAD = """
from classyseg import ClassyHead
class Head(ClassyHead):
    def __init__(self, blocks, num_classes): super().__init__()
    def forward(self, features): return features[0]
"""
OLD_LOSS = """
from classyseg import ClassyLoss
class Loss(ClassyLoss):
    def total(self, logits, target): return logits.sum()
"""
BOTH = f"""
from classyseg import register_head, register_model
{MODEL}
{HEAD}
register_model("own_net")(Net)
register_head("own_head")(Head)
"""

# Distribution, version, entry points by kind, code of the module.
BROKEN: Sequence[tuple[str, str, Mapping[str, str], str]] = (
    ("broken-import", "1.0", {"models": "broken_net = broken_import:Net"}, "import a_library_that_is_not_there\n"),
    ("exits", "1.1", {"models": "exit_net = exits:Net"}, "raise SystemExit('no licence')\n"),
    ("not-a-model", "2.0", {"models": "plain_net = not_a_model:Net"}, "class Net: pass\n"),
    ("no-such-class", "2.1", {"models": "typo_net = no_such_class:Nett"}, MODEL),
    ("kwargs", "2.2", {"models": "kw_net = kwargs:Net"}, f"{MODEL}    def __init__(self, **options): pass\n"),
    ("untyped", "2.3", {"models": "untyped_net = untyped:Net"}, f"{MODEL}    def __init__(self, *, width=3): pass\n"),
    ("twin-a", "3.0", {"heads": "twin = twin_a:Head"}, HEAD),
    ("twin-b", "3.1", {"heads": "twin = twin_b:Head"}, HEAD),
    ("imposter", "4.0", {"models": "resnet18 = imposter:Net"}, MODEL),
    ("old-loss", "4.1", {"losses": "old_loss = old_loss:Loss"}, OLD_LOSS),
    (
        "registers-itself",
        "5.0",
        {"models": "own_net = registers_itself:Net", "heads": "own_head = registers_itself:Head"},
        BOTH,
    ),
)


@pytest.fixture(scope="session")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example plugin into, from a copy of its source."""
    folder = tmp_path_factory.mktemp("example")
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="session")
def broken_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distributions of `BROKEN`, as an installer leaves them."""
    site = tmp_path_factory.mktemp("broken")
    for distribution, version, offers, code in BROKEN:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        groups = [f"[classyseg.{kind}]\n{offer}\n" for kind, offer in offers.items()]
        (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return site


@pytest.fixture
def broken_installed(broken_site: Path, monkeypatch: pytest.MonkeyPatch, own_registries: None) -> Iterator[None]:
    """`broken_site` seen by this process, and forgotten after the test."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(broken_site))
        look_for_plugins_again()
        yield
    look_for_plugins_again()
    for distribution, *_ in BROKEN:
        sys.modules.pop(distribution.replace("-", "_"), None)
    importlib.invalidate_caches()


def run_python(sites: Sequence[Path], cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [*map(str, sites), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def example_config(num_epochs: int = 1) -> dict[str, Any]:
    """A tiny run with the example's backbone, head and loss, none of their options left out."""
    return runs.tiny_config(
        {
            "num_epochs": num_epochs,
            "model": {
                "name": "tinynet",
                "widths": [4, 8],
                "heads": {"main": {"name": "score_sum", "blocks": ["stage1", "stage2"], "bias": False}},
            },
            "loss": {"name": "tiny_focal", "gamma": 1.5},
            "optimizer": {"name": "sgd", "lr": 0.01},
            "dataset.train.num_samples": 16,
        }
    )


def write(folder: Path, config: Mapping[str, Any]) -> Path:
    path = folder / "task.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    return path


# -- the example -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plugins_own_tests_pass(example_site: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    done = run_python([example_site], tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout


def test_the_example_is_listed_as_working(example_site: Path, tmp_path: Path) -> None:
    done = run_python([example_site], tmp_path, "-m", "classyseg", "plugins")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["distribution", "version", "kind", "name", "ok"]
    offers = [["models", "tinynet"], ["heads", "score_sum"], ["losses", "tiny_focal"]]
    assert [row for row in rows if row[0] == "classyseg-example"] == [
        ["classyseg-example", "0.1.0", *offer, "ok"] for offer in offers
    ]


def test_the_schema_includes_the_example(example_site: Path, tmp_path: Path) -> None:
    done = run_python([example_site], tmp_path, "-m", "classyseg", "config", "schema")
    definitions = json.loads(done.stdout)["$defs"]
    assert definitions["losses.tiny_focal"]["properties"]["gamma"]["minimum"] == 0
    assert {"models.tinynet", "heads.score_sum"} <= set(definitions)


def test_a_run_with_the_example_is_not_bothered_by_broken_plugins(
    example_site: Path, broken_site: Path, tmp_path: Path
) -> None:
    config = write(tmp_path, example_config())
    arguments = ("-m", "classyseg", "train", "--config", config, "--output", tmp_path / "run")
    done = run_python([example_site, broken_site], tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for distribution, *_ in BROKEN:
        assert distribution not in done.stderr + done.stdout
    assert [record["phase"] for record in runs.read_records(tmp_path / "run" / "metrics.jsonl")] == ["train", "val"]


def test_the_example_imports_only_public_modules() -> None:
    public = {"classyseg", *(f"classyseg.{name}" for name in ("models", "heads", "losses", "layers", "structures"))}
    for path in [*EXAMPLE.rglob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert {line.split()[1] for line in lines if line.startswith("from classyseg")} <= public, path.name


# -- broken ones -------------------------------------------------------------------------------------------------------

REASONS = {
    "broken_net": ("broken-import 1.0", "No module named 'a_library_that_is_not_there'"),
    "exit_net": ("exits 1.1", "no licence"),
    "plain_net": ("not-a-model 2.0", "is no subclass of ClassyModel"),
    "typo_net": ("no-such-class 2.1", "has no attribute 'Nett'"),
    "kw_net": ("kwargs 2.2", "takes **options; list the keyword-only parameters"),
    "untyped_net": ("untyped 2.3", "the parameter 'width' has no type annotation"),
    "resnet18": ("classyseg and by imposter 4.0", "uninstall all but one"),
}


def check(folder: Path, changes: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    heads = runs.tiny_config()["model"]["heads"]
    config = runs.write_config(folder, {"model": {"name": "resnet34", "heads": heads}, **changes})
    code = classy_train_main(["--config", str(config), "--check"])
    return code, capsys.readouterr().err


@pytest.mark.usefixtures("broken_installed")
@pytest.mark.parametrize("name", REASONS)
def test_naming_a_broken_model_says_which_distribution_is_broken_and_why(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = check(tmp_path, {"model.name": name}, capsys)
    assert code == 2
    assert message.startswith("error: ")
    assert "tiny.yaml, line" in message
    assert "model.name: " in message
    for part in (name, *REASONS[name]):
        assert part in message
    assert "Traceback" not in message


@pytest.mark.usefixtures("broken_installed")
def test_a_name_that_two_distributions_offer_is_an_error_that_names_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = check(tmp_path, {"model.heads.main": {"name": "twin", "blocks": ["stage4"]}}, capsys)
    assert code == 2
    assert "model.heads.main.name: the head 'twin' is offered by twin-a 3.0 and by twin-b 3.1; uninstall" in message


@pytest.mark.usefixtures("broken_installed")
def test_a_plugin_of_an_earlier_version_is_told_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = check(tmp_path, {"loss": "old_loss"}, capsys)
    assert code == 2
    for part in ("old-loss 4.1", "old_loss.Loss", "`total`", "`PerOutputLoss`"):
        assert part in message


@pytest.mark.usefixtures("broken_installed")
def test_whoever_asks_again_for_a_broken_one_is_refused_again() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"plugin untyped 2\.3"):
            build_model("untyped_net")


@pytest.mark.usefixtures("broken_installed")
def test_everything_else_works_beside_broken_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, {}, capsys) == (0, "")


@pytest.mark.usefixtures("broken_installed")
def test_listing_imports_no_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["models"]) == 0
    printed = capsys.readouterr()
    assert {"broken_net", "exit_net", "resnet34"} <= set(printed.out.split())
    assert printed.err == ""
    assert not {"not_a_model", "registers_itself", "imposter"} & set(sys.modules)


@pytest.mark.usefixtures("broken_installed")
def test_the_listing_of_plugins_says_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["plugins"]) == 0
    rows = {(row[0], row[3]): row for row in (line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines())}
    for name, (distribution, reason) in REASONS.items():
        row = rows[distribution.split()[-2], name]
        assert row[1] == distribution.split()[-1]
        assert reason in row[4]
    assert rows["registers-itself", "own_net"][4] == rows["registers-itself", "own_head"][4] == "ok"


@pytest.mark.usefixtures("broken_installed")
def test_the_schema_leaves_out_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert classyseg_main(["config", "schema"]) == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert not {f"models.{name}" for name in REASONS} & set(definitions)
    assert {"models.resnet34", "models.own_net", "heads.own_head"} <= set(definitions)


@pytest.mark.usefixtures("broken_installed")
def test_a_component_that_also_registers_itself_does_not_collide_with_its_own_offer() -> None:
    importlib.import_module("registers_itself")
    assert type(build_model("own_net")).__module__ == "registers_itself"
    assert type(build_head("own_head", [], 2)).__module__ == "registers_itself"


@pytest.mark.usefixtures("broken_installed")
def test_loading_one_component_of_a_module_does_no_harm_to_the_others() -> None:
    assert type(build_model("own_net")).__module__ == "registers_itself"
    assert type(build_head("own_head", [], 2)).__module__ == "registers_itself"


def test_a_broken_plugin_ends_the_command_with_exit_code_2_and_no_traceback(broken_site: Path, tmp_path: Path) -> None:
    config = runs.write_config(tmp_path, {"model.name": "broken_net"})
    done = run_python([broken_site], tmp_path, ROOT / "classy_train.py", "--config", config)
    assert done.returncode == 2
    assert "broken-import 1.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
