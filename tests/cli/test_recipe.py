"""The files that start runs on clusters: values arrive whole, fields exist, and SLURM's signal is obeyed once."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from classyseg.cli.main import main
from classyseg.cli.recipe import SUFFIXES

CONFIG, OUTPUT = "configs/it's my run.yaml", '/runs/Bäume 🌳 $HOME $(HOME) $$ `x` "y" 3'
OVERRIDES = ["optimizer.lr=0.02", "hooks=[{name: checkpoint, best: mean_iou}]"]
ARGUMENTS = ["train", CONFIG, "--output", OUTPUT, "--resume", *OVERRIDES]
SIZES = ["--nodes", "2", "--processes", "4", "--cpus", "6", "--minutes", "90", "--grace", "200", "--restarts", "7"]


def printed(capsys: pytest.CaptureFixture[str], recipe: str, *options: str) -> str:
    assert main(["recipe", recipe, CONFIG, "--output", OUTPUT, *SIZES, *options, *OVERRIDES]) == 0
    return capsys.readouterr().out


def test_the_arguments_of_a_training_arrive_whole_in_bash(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "slurm")
    (line,) = [line for line in text.splitlines() if line.startswith("arguments=")]
    done = subprocess.run(["bash", "-c", f'{line}; printf "%s\\n" "${{arguments[@]}}"'], capture_output=True, text=True)
    assert done.stdout.splitlines() == ARGUMENTS
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line
    )
    wanted = {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "4", "cpus-per-task": "24", "time": "90"}
    assert options.items() >= {**wanted, "signal": "USR1@200", "job-name": "b-ume-home-home-x-y-3"}.items()
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("recipe", [name for name, suffix in SUFFIXES.items() if suffix == "py"])
def test_the_arguments_of_a_training_arrive_whole_in_python(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    tree = ast.parse(printed(capsys, recipe))
    constants = [ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.List | ast.Constant)
                 and all(isinstance(part, ast.Constant) for part in getattr(node, "elts", ()))]  # fmt: skip
    if recipe == "submitit":
        assert ARGUMENTS in constants
        assert f"{OUTPUT}-jobs" in constants
    else:
        assert all(value in constants for value in (CONFIG, OUTPUT, OVERRIDES, 8, 7))


FIELDS: dict[str, dict[str, set[str]]] = {
    # Of the published CRDs: jobset.x-k8s.io_jobsets.yaml, v1alpha2, of 2026-08; kubeflow.org_pytorchjobs.yaml, v1, the
    # last. The whole files fitted them, with no field left over.
    "jobset": {
        "spec": {"failurePolicy", "network", "replicatedJobs", "successPolicy", "suspend", "ttlSecondsAfterFinished"},
        "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
        "spec.network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
        "spec.replicatedJobs.0": {"dependsOn", "groupName", "name", "replicas", "template"},
        "spec.replicatedJobs.0.template.spec": {
            "backoffLimit",
            "completionMode",
            "completions",
            "parallelism",
            "template",
        },
    },
    "pytorchjob": {
        "spec": {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"},
        "spec.runPolicy": {"activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "schedulingPolicy", "suspend"},
        "spec.elasticPolicy": {"maxReplicas", "maxRestarts", "minReplicas", "rdzvBackend", "rdzvHost", "rdzvPort"},
        "spec.pytorchReplicaSpecs.Worker": {"replicas", "restartPolicy", "template"},
    },
}


def at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[int(key) if key.isdigit() else key]
    return tree


def expanded(operator: re.Match[str]) -> str:
    """What Kubernetes makes of a dollar in a command: two are one, and a bracket names a variable."""
    return "$" if operator[1] == "$" else "VARIABLE"


@pytest.mark.parametrize("recipe", FIELDS)
def test_kubernetes_knows_every_field_and_runs_torchrun_first(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = yaml.safe_load(printed(capsys, recipe, "--image", "registry/it: 2"))
    for path, known in FIELDS[recipe].items():
        assert at(found, path).keys() <= known, path
    pods = {
        "jobset": "spec.replicatedJobs.0.template.spec.template.spec",
        "pytorchjob": "spec.pytorchReplicaSpecs.Worker.template.spec",
    }
    pod = at(found, pods[recipe])
    (container,) = pod["containers"]
    assert container["command"][0] == "torchrun"
    given = [re.sub(r"\$([$(])", expanded, word) for word in container["command"]]
    assert given[-len(ARGUMENTS) - 2 :] == ["-m", "classyseg", *ARGUMENTS]
    assert container["image"] == "registry/it: 2"
    assert container["resources"] == {"requests": {"cpu": "24"}, "limits": {"nvidia.com/gpu": "4"}}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] == 200
    if recipe == "jobset":
        assert "--nnodes=2" in container["command"]
        assert (
            f"--rdzv-endpoint={found['metadata']['name']}-train-0-0.{found['spec']['network']['subdomain']}:29500"
            in container["command"]
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--name", "My Run"], "--name: found 'My Run'"),
        (["--name", "a" * 41], "--name"),
        (["--port", "70000"], "--port: found 70000"),
        (["--name", "a", "key"], "'key'"),
        (["--output", "runs/a"], "--output: found 'runs/a'; write a folder under /runs"),
        (["--output", "/runs/../a"], "--output: found '/runs/../a'"),
        (["--output", ""], "--output: found ''"),
        (["--grace", "30"], "--grace: found 30; give more than 30 seconds"),
    ],
)
def test_what_a_cluster_would_not_take_is_one_error(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "jobset", CONFIG, *wrong[2:], "--output", "/runs/a", *wrong[:2]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["slurm", "submitit"])
def test_a_signal_that_would_come_at_the_start_is_refused(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", recipe, CONFIG, "--output", "a", "--minutes", "5", "--grace", "240"]) == 2
    assert "--grace: found 240 seconds of --minutes 5" in capsys.readouterr().err
    assert main(["recipe", recipe, CONFIG, "--output", "a", "--minutes", "6", "--grace", "240"]) == 0


def test_two_jobs_of_a_node_meet_at_ports_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for options, ports in ((), ["20077", "29999"]), (("--port", "1234"), ["1234", "1234"]):
        lines = [line for line in printed(capsys, "slurm", *options).splitlines() if line.startswith("port=")]
        for job, port in zip(("77", "1239999"), ports, strict=True):
            script = "\n".join([f"SLURM_JOB_ID={job}", *lines, 'echo "$port"'])
            assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == f"{port}\n"


# -- SLURM -------------------------------------------------------------------------------------------------------------

FAKES = {
    "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && echo node1; exit 0',
    # The signal of SLURM may reach every process of a step.
    "srun": '[ "$1" = --cpus-per-task=24 ] || exit 9; shift; "$@" & echo $! > step; wait $!',
    # `config check`, or torchrun with all below it: a training of 0.1 s or, with LONG, until it is asked to stop.
    "python": """
case "$2" in
  classyseg) exit "${CHECK:-0}" ;;
  *) echo "torchrun $*" >> calls
     trap 'echo TERM >> calls; exit 1' TERM
     for i in $(seq "${LONG:-1}"); do sleep 0.1 & wait $!; done
     exit "${CODE:-0}" ;;
esac""",
}


@pytest.fixture
def cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with the script, and with programs in place of SLURM's and of Python."""
    (tmp_path / "job.sh").write_text(printed(capsys, "slurm"))
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def started(cluster: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "PATH": f"{cluster}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", "job.sh"], cwd=cluster, env={**os.environ, **slurm, **variables})


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("variables", "code"), [({}, 0), ({"CODE": "3"}, 3), ({"CODE": "4", "LONG": "0"}, 4), ({"CHECK": "2"}, 2)]
)
def test_a_job_that_ends_by_itself_is_not_queued_again(cluster: Path, variables: dict[str, str], code: int) -> None:
    assert started(cluster, variables).wait(30) == code
    assert not [call for call in calls(cluster) if "requeue" in call]
    assert bool([call for call in calls(cluster) if "torchrun" in call]) == ("CHECK" not in variables)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_signal_asks_the_run_once_and_queues_the_job_again(cluster: Path) -> None:
    job = started(cluster, {"LONG": "200"})
    while not [call for call in calls(cluster) if "torchrun" in call]:
        time.sleep(0.05)
        assert job.poll() is None
    time.sleep(0.3)  # its trap is set right after
    for _ in range(2):
        for pid in below(int((cluster / "step").read_text())):
            with contextlib.suppress(ProcessLookupError):  # the first signal may have ended it
                os.kill(pid, signal.SIGUSR1)

    assert job.wait(30) == 143
    first, torchrun, *others = calls(cluster)
    assert first == "scontrol show hostnames node[1-2]"
    assert "--rdzv-id=77 --rdzv-endpoint=node1:20077 -m classyseg train" in torchrun
    assert others == ["TERM", "scontrol requeue 77"]


def below(pid: int) -> list[int]:
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [pid, *(found for child in children for found in below(child))]
