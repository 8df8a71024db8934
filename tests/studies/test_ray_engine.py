"""The Ray engine on two nodes on this machine: the sequential numbers, a lost actor and node, no cluster at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handful.errors import ConfigError, RunError
from handful.studies.engines import JobAdvanced, JobStarted, SequentialEngine, make_engine
from handful.studies.ray_engine import RayEngine, check_versions, versions
from handful.studies.study import RESULTS, Study
from handful.testing import check_engine, toy_study

pytest.importorskip("ray", reason="needs the extra ray")

MARK = f"HANDFUL_TEST_CLUSTER={os.getpid()}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, with one CPU each. All their processes have MARK in their environment."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(*MARK.split("="))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


def test_two_nodes_give_the_sequential_numbers(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_engine(make_engine("ray", address=cluster.address), tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ray" not in err.lower()
    left = [path for path in (tmp_path / "found").rglob("*") if path.name.endswith((".partial", ".progress", ".old"))]
    assert not left


def test_jobs_of_a_killed_actor_and_of_a_lost_node_are_done_again(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = toy_study(tmp_path / "data", seeds=1, epochs=60)
    expected = Study(recipe, tmp_path / "expected", tmp_path / "data")
    expected.run(SequentialEngine(), lambda event: None)
    started: list[JobStarted] = []
    lost: list[str] = []

    def lose(event: object) -> None:
        """An actor at the first news of a step; a node at the first behind the job that is begun once more."""
        if isinstance(event, JobStarted):
            started.append(event)
        if isinstance(event, JobAdvanced) and not lost:
            lost.append("actor")
            os.kill(busy_actors()[0], signal.SIGKILL)
        elif isinstance(event, JobAdvanced) and len(lost) == 1 and any(begun.attempt > 1 for begun in started):
            lost.append("node")
            cluster.remove_node(next(iter(cluster.worker_nodes)))

    study = Study(recipe, tmp_path / "found", tmp_path / "data")
    study.run(RayEngine(address=cluster.address), lose)
    assert lost == ["actor", "node"]
    assert (study.folder / RESULTS).read_bytes() == (expected.folder / RESULTS).read_bytes()
    assert capfd.readouterr().out == ""  # Ray would tell us there
    cluster.add_node(num_cpus=1)


def test_no_cluster_is_told_within_seconds(tmp_path: Path) -> None:
    recipe = toy_study(tmp_path / "data", seeds=1)
    study = Study(recipe, tmp_path / "study", tmp_path / "data")
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=answer_wrongly, args=(server,), daemon=True).start()
        with pytest.raises(RunError, match=f"no Ray cluster at {address} \\(something else answers there\\)"):
            study.run(RayEngine(address=address), lambda event: None)
    with pytest.raises(RunError, match=f"no Ray cluster at {address} \\(Connection refused\\)\n\nhint: `ray status`"):
        study.run(RayEngine(address=address), lambda event: None)
    assert time.monotonic() - begun < 10
    assert len(study.state().open) == len(study.jobs)  # none is written off


def answer_wrongly(server: socket.socket) -> None:
    """A service that is not Ray's."""
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_what_cannot_be_asked_of_ray(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_study(tmp_path / "data", seeds=1)
    study = Study(recipe.model_copy(update={"threads": 2}), tmp_path / "study", tmp_path / "data")
    for address in ("head", "ray://head:10001", "head:port"):
        with pytest.raises(ConfigError, match="expected HOST:PORT of the cluster's head, or auto, found"):
            study.run(RayEngine(address=address), lambda event: None)
    with pytest.raises(ConfigError, match="a worker needs 2 CPUs; the largest of 2 nodes has 1 CPUs"):
        study.run(RayEngine(address=cluster.address), lambda event: None)
    with pytest.raises(ConfigError, match="workers: expected at least 1"):
        RayEngine(workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray\n\nhint: pip install 'handful\[ray\]'"):
        study.run(RayEngine(), lambda event: None)


def test_other_versions_on_a_node_are_refused() -> None:
    check_versions(versions())
    with pytest.raises(RunError, match=r"a node of the Ray cluster has torch 1\.0, here "):
        check_versions({**versions(), "torch": "1.0"})


def busy_actors() -> list[int]:
    """Process ids of the actors of our cluster that are doing a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::RayWorker.do") and MARK.encode() in environment:
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.slow
def test_a_cluster_of_ours_is_for_ourselves_and_imports_nothing_from_here(tmp_path: Path) -> None:
    """In a process of its own: Ray reads its settings once."""
    (tmp_path / "here").mkdir()
    for name in ("queue", "torch", "handful"):
        (tmp_path / "here" / f"{name}.py").write_text("open(__file__ + '.run', 'w').close()\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", LISTENING, str(tmp_path)], cwd=tmp_path / "here", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 3
    assert {address.removeprefix("::ffff:") for address in found["listening"]} == {"127.0.0.1"}
    assert "Unauthenticated" in found["stranger"] or "token" in found["stranger"].lower()
    assert found["failed"] == [] and found["done"] == 1
    assert [path.name for path in (tmp_path / "here").glob("*.run")] == []


LISTENING = """
import json, os, subprocess, sys
from pathlib import Path
import psutil
from handful.studies.engines import JobStarted
from handful.studies.ray_engine import RayEngine
from handful.studies.recipe import Recipe
from handful.studies.study import Study
from handful.testing import toy_study

root = Path(sys.argv[1])
toy = toy_study(root / "data", seeds=1).to_dict()
recipe = Recipe.from_dict(toy | {"tasks": ["letters"], "methods": ["head"]})
found = {"listening": []}

def listen(event):
    if isinstance(event, JobStarted):
        import ray
        ours = psutil.Process().children(recursive=True)
        for process in [psutil.Process(), *ours]:
            for connection in process.net_connections(kind="inet"):
                if connection.status == "LISTEN":
                    found["listening"].append(connection.laddr.ip)
        address = ray.get_runtime_context().gcs_address
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        code = f"import ray; ray.init(address={address!r}); print('connected')"
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, env=environment
            )
            found["stranger"] = done.stdout[-500:] + done.stderr[-3000:]
        except subprocess.TimeoutExpired:
            found["stranger"] = "no answer without the token"

state = Study(recipe, root / "study", root / "data").run(RayEngine(1), listen)
found |= {"failed": list(state.failed.values()), "done": len(state.done)}
print(json.dumps(found))
"""
