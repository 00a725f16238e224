"""What a bug report holds, what it hides, and that a broken installation can still be reported."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import classyseg
from classyseg.cli.main import main
from classyseg.environment import without_secrets
from classyseg.registry import look_for_plugins_again

ROOT = Path(__file__).parents[2]
SECRETS = {
    "CLASSYSEG_API_TOKEN": "hf_0123456789",
    "SLURM_JOB_ACCOUNT": "secretproject",
    "MASTER_ADDR": "gpu17.example.org",
    "CLASSYSEG_DATA": "/scratch/jane/client",
    "CUDA_HOME": "relative/jane",
    "SLURM_JOB_USER": "jane",
    "SLURM_JWT": "eyJhbGciOiJIUzI1NiJ9.e30",
    "SLURM_JOB_UID": "4711",
}


def reported(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["env", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_versions_and_devices_are_those_of_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    facts = reported(capsys)

    assert facts["classyseg"] == classyseg.__version__
    assert facts["python"].startswith(platform.python_version())
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torchvision"] == torchvision.__version__
    assert facts["torch"]["backends"]["gloo"] is True
    assert facts["torch"]["backends"]["cuda"] is torch.cuda.is_available()
    assert [device["name"] for device in facts["devices"] if device["device"].startswith("cuda")] == [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]
    assert facts["cpu"]["usable_cores"] == len(os.sched_getaffinity(0))
    kilobytes = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert kilobytes is not None
    assert facts["memory"]["total"] == int(kilobytes[1]) * 1024


def test_places_people_and_secrets_are_told_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, "OMP_NUM_THREADS": "3", "NCCL_DEBUG": "INFO"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("platform.platform", lambda: "Linux at gpu17, gpu17.example.org")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu17.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "jane")

    open_facts, private = reported(capsys), reported(capsys, "--private")
    text = json.dumps(open_facts)
    assert not [word for word in (*SECRETS.values(), "jane", "gpu17", str(Path.home())) if word in text]
    assert open_facts["variables"]["NCCL_DEBUG"] == "INFO"
    assert open_facts["variables"]["OMP_NUM_THREADS"] == "3"
    assert open_facts["variables"].keys() >= SECRETS.keys()
    assert open_facts["system"] == "Linux at HOST, HOST"
    assert private["variables"]["CLASSYSEG_DATA"] == "/scratch/jane/client"
    assert private["private"]["user"] == getpass.getuser()
    assert not [secret for secret in ("hf_0123456789", "eyJ") if secret in json.dumps(private)]


def test_a_broken_plugin_is_told_with_its_distribution_and_without_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_registries: None
) -> None:
    info = tmp_path / "lost_net-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost-net\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[classyseg.models]\nlost = lost_net:Net\n")
    (tmp_path / "lost_net.py").write_text(f"raise ImportError('{tmp_path}/lib.so: cannot be opened')\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        look_for_plugins_again()
        (plugin,) = [found for found in reported(capsys)["plugins"] if found["distribution"] == "lost-net"]
        assert main(["env"]) == 0
    look_for_plugins_again()

    assert (plugin["version"], plugin["kind"], plugin["name"]) == ("1.2", "models", "lost")
    assert ".../lib.so: cannot be opened" in plugin["problem"]
    assert str(tmp_path) not in plugin["problem"]
    assert "distribution lost-net, version 1.2, kind models, name lost, problem " in capsys.readouterr().out


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "pydantic"):
            raise OSError("/opt/lib/libcudart.so.12: cannot open shared object file")
sys.meta_path.insert(0, Broken())
from classyseg.cli.main import main
from classyseg.environment import without_secrets
sys.exit(main(["env"]))
"""


def test_libraries_that_cannot_be_imported_are_reported_with_the_rest() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    problem = r"\? \(OSError: \.\.\./libcudart\.so\.12: cannot open shared object file\)"
    assert re.search(rf"^torch: {problem}$", done.stdout, re.MULTILINE)
    assert f"classyseg: {classyseg.__version__}\n" in done.stdout
    for library in ("torch", "pydantic"):  # the installed version is known without an import
        assert re.search(rf"^  {library}: \d[\d.]+ {problem}$", done.stdout, re.MULTILINE), library


def test_a_library_that_is_needed_and_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name in ("fvcore", "timm"):
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    libraries = reported(capsys)["libraries"]
    assert libraries["fvcore"] == "not installed"
    assert libraries["numpy"] == "1.0"
    assert "timm" not in libraries


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("token: hf_abc", "token: (set; not shown)"),
        ("- name: x\n  upload_token: 'a b'\n  n: 1", "- name: x\n  upload_token: (set; not shown)\n  n: 1"),
        ('{password: "a \\" b", x: 1}', "{password: (set; not shown), x: 1}"),
        ("train c.yaml hooks[0].api_key=abc --x", "train c.yaml hooks[0].api_key=(set; not shown) --x"),
        ("secret: (set; not shown)", "secret: (set; not shown)"),
        ("class_token: true\ntoken: 5\ntoken: null", "class_token: true\ntoken: 5\ntoken: null"),
        ("token_length: 5\ntokens: x\nauthor: me", "token_length: 5\ntokens: x\nauthor: me"),
    ],
)
def test_secrets_of_a_text_are_left_out_and_nothing_else(text: str, told: str) -> None:
    assert without_secrets(text) == told


def test_secrets_of_a_config_are_left_out_at_any_depth() -> None:
    config = {"auth": {"user": "jane", "n": 1}, "a": [{"secret": ["x", None]}], "class_token": True, "other": "x"}
    hidden = "(set; not shown)"
    told = {"auth": {"user": hidden, "n": 1}, "a": [{"secret": [hidden, None]}], "class_token": True, "other": "x"}
    assert without_secrets(config) == told
