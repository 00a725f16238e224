"""The wheel that a checkout builds works outside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "classyseg",
    "task_configs",
    "classy_train.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "tests",
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

pytestmark = pytest.mark.slow


def run(command: tuple[str, ...], cwd: Path, **environment: str) -> str:
    """The output of a command, with `environment` beside what it needs of ours."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CLASSYSEG"))}
    done = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    run((*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."), checkout)
    (built,) = (checkout / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The folder that the wheel is unpacked in by pip."""
    target = wheel.parents[2] / "site"
    run((*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)), wheel.parent)
    return target


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [ROOT / "classy_train.py", *(ROOT / "classyseg").rglob("*.py")]
    sources += [
        path
        for kind in ("*.json", "*.txt", "*.html", "*.j2", "*.css", "*.js")
        for path in (ROOT / "classyseg").rglob(kind)
    ]
    expected = {str(path.relative_to(ROOT)) for path in sources} | {"classyseg/py.typed"}
    configs = {f"classyseg/{path.relative_to(ROOT)}" for path in (ROOT / "task_configs").rglob("*.yaml")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == expected | configs
    assert any(name.endswith("licenses/LICENSE") for name in info)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("train", "--config", "task_configs/quickstart.yaml", "--check"), "task_configs/quickstart.yaml: ok\n"),
        (("config", "check", "task_configs/camvid/fcn_resnet18.yaml"), "task_configs/camvid/fcn_resnet18.yaml: ok\n"),
        (("models", "resnet1?"), "resnet18\n"),
    ],
    ids=["train", "config", "models"],
)
def test_the_installed_package_works_from_an_empty_folder(
    installed: Path, tmp_path: Path, arguments: tuple[str, ...], output: str
) -> None:
    command = (sys.executable, "-m", "classyseg", *arguments)
    assert run(command, tmp_path, PYTHONPATH=str(installed)) == output
    assert not list(tmp_path.iterdir())


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import classyseg, classyseg.io; print(classyseg.io.package_folder())"
    assert run((sys.executable, "-c", code), tmp_path, PYTHONPATH=str(installed)).strip() == str(
        installed / "classyseg"
    )
