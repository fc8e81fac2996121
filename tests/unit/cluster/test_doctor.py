"""Every fault that the doctor looks for, planted; the line and its remedy."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import doctor
from cluster.checks import files, machine, nodes, processes, software
from cluster.checks.nodes import check_cluster, read_records
from cluster.checks.record import Record, size
from rlhf.config.ray_token import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE

GIB = 2**30


def disk_of(free: float, total: float = 100 * GIB) -> machine.StatVfs:
    return lambda _: SimpleNamespace(f_frsize=1, f_blocks=int(total), f_bavail=int(free))


def told(record: Record, status: str, *words: str) -> None:
    assert record.status == status, record
    assert all(word in f"{record.detail} {record.remedy}" for word in words), record
    assert bool(record.remedy) == (status != "ok"), "what is wrong has a remedy, what is right has none"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "auth_token"
    path.write_text("secret-of-the-test")
    path.chmod(0o600)
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    return path


def test_this_machine_is_good_enough_for_its_own_tests() -> None:
    records = doctor.diagnose(doctor.local_checks(None, quick=True))
    assert not [r for r in records if r.status == "fail"]
    assert {"python", "packages", "shared memory", "disk", "ports", "token"} <= {r.name for r in records}


@pytest.mark.parametrize(("free", "status"), [(0.06, "fail"), (1, "warn"), (9, "ok")])
def test_shared_memory(free: float, status: str) -> None:
    told(machine.check_shared_memory(statvfs=disk_of(free * GIB)), status, *(["--shm-size"] if status != "ok" else []))


@pytest.mark.parametrize(("free", "total", "status", "word"), [
    (0.5, 100, "fail", "run_dir"), (5, 100, "warn", "checkpoint"), (20, 1000, "warn", "95%"), (50, 100, "ok", "free"),
])  # fmt: skip
def test_disk(free: float, total: float, status: str, word: str, tmp_path: Path) -> None:
    told(machine.check_disk(tmp_path / "not/yet/there", statvfs=disk_of(free * GIB, total * GIB)), status, word)


def test_memory_and_open_files() -> None:
    told(machine.check_memory(GIB // 2), "fail", "end other programs")
    told(machine.check_memory(2 * GIB), "warn")
    told(machine.check_open_files(1024), "warn", "ulimit -n")
    told(machine.check_open_files(65536), "ok")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told(machine.check_ports({port: "the test"}), "warn", str(port), "the test")
    told(machine.check_ports({port: "the test"}), "ok")
    with socket.socket() as taken:  # as Ray does: on the node's address, not on the loopback
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told(machine.check_ports({port: "the test"}), "warn", str(port))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read(token: Path, mode: int) -> None:
    token.chmod(mode)
    record = machine.check_token()
    told(record, "fail", f"{mode:04o}", f"chmod 600 {token}")
    assert "secret" not in json.dumps(record.as_dict())


def test_tokens(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(machine.check_token(), "ok", "0600")
    token.write_text("")
    told(machine.check_token(), "fail", "empty")
    token.unlink()
    told(machine.check_token(needed=True), "fail", "scp HEAD")
    told(machine.check_token(), "ok", "none yet")
    monkeypatch.setenv(TOKEN_VARIABLE, "in-the-environment")
    told(machine.check_token(), "warn", TOKEN_VARIABLE)
    monkeypatch.setenv(MODE_VARIABLE, "disabled")
    told(machine.check_token(), "fail", "unset RAY_AUTH_MODE")


def test_a_host_name_that_means_the_loopback() -> None:
    told(machine.check_address(lambda _: "127.0.1.1"), "warn", "GLOO_SOCKET_IFNAME")
    told(machine.check_address(lambda _: "10.0.0.7"), "ok", "10.0.0.7")

    def unknown(_: str) -> str:
        raise socket.gaierror

    told(machine.check_address(unknown), "warn", "/etc/hosts")


def test_versions(tmp_path: Path) -> None:
    told(software.check_python("3.10.2"), "fail", "3.10.2", ">=3.11")
    told(software.check_packages(["numpy>=99", "torch>=2"]), "fail", "numpy", ">=99")
    told(software.check_packages(["no-such-package-here"]), "fail", "missing")
    told(software.check_packages(["vllm>=1; extra == 'vllm'", "numpy"]), "ok", "1 in")
    own = importlib.metadata.version("numpy")
    (tmp_path / "constraints.txt").write_text(f"numpy=={own}  # comment\ntorch==0.1\nnot-here==3\n")
    told(software.check_constraints(tmp_path / "constraints.txt"), "warn", "torch", "tested 0.1")
    (tmp_path / "constraints.txt").write_text(f"numpy=={own}\n")
    told(software.check_constraints(tmp_path / "constraints.txt"), "ok")
    told(software.same_versions({"a": {"ray": "2.60.0"}, "b": {"ray": "2.59.0"}}), "fail", "a 2.60.0", "b 2.59.0")
    told(software.same_versions({"a": {"ray": "2.60.0"}, "b": {"ray": "2.60.0"}}), "ok")


def test_operations(tmp_path: Path) -> None:
    told(software.check_operations(tmp_path), "ok", "none needed")
    (tmp_path / "fused_adam").mkdir()
    (tmp_path / "fused_adam" / "fused_adam.so").touch()
    told(software.check_operations(tmp_path), "ok", "built: fused_adam")
    (tmp_path / "fused_adam" / "lock").touch()
    told(software.check_operations(tmp_path), "warn", "fused_adam/lock", "remove")


def test_run_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told(files.check_writable(run), "ok")
    assert list(run.iterdir()) == [], "the doctor leaves nothing"
    (tmp_path / "file").write_text("")
    told(files.check_writable(tmp_path / "file" / "run"), "fail", "set run_dir elsewhere")
    told(files.check_leftovers(run), "ok")
    (run / ".summary.json.tmp").write_text("half")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "weights.partial").write_text("half")
    told(files.check_leftovers(run), "warn", "2 half-written", ".summary.json.tmp")


def test_the_lock_of_a_live_and_of_a_dead_process(tmp_path: Path) -> None:
    told(files.check_lock(tmp_path), "ok", "not held")
    lock = tmp_path / ".lock"
    lock.write_text("4242\n")
    told(files.check_lock(tmp_path), "ok", "4242", "gone")
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told(files.check_lock(tmp_path), "warn", "4242")


def test_sessions_of_runtimes_that_are_gone(tmp_path: Path) -> None:
    old, young = tmp_path / "session_old", tmp_path / "session_young"
    for folder in (old, young):
        folder.mkdir()
        with (folder / "spilled").open("wb") as handle:
            handle.truncate(2 * GIB)  # a hole: nothing is written
    os.utime(old, (1, 1))
    told(files.check_ray_sessions(tmp_path), "warn", "1 under", "2.0 GiB")
    old.rename(tmp_path / "gone")
    told(files.check_ray_sessions(tmp_path), "ok")


def test_accelerators() -> None:
    cpu = {"torch": "2.13.0", "names": [], "bf16": False}
    gpus = {"torch": "2.11.0", "names": ["NVIDIA H100"] * 2, "bf16": True}
    told(processes.check_accelerators(cpu, driver=0), "ok", "CPU")
    told(processes.check_accelerators(cpu, driver=2), "fail", "sees none", "CUDA build")
    told(processes.check_accelerators(gpus, driver=4), "warn", "2 of 4")
    told(processes.check_accelerators({**gpus, "bf16": False}, driver=2), "warn", "float32")
    told(processes.check_accelerators(gpus, driver=2), "ok", "2 x NVIDIA H100")
    told(processes.check_accelerators(None, "No module named 'torch'"), "fail", "No module named")


def test_gloo_between_processes_and_on_a_wrong_interface() -> None:
    told(processes.check_collective("gloo"), "ok", "2 processes")
    wrong = {"GLOO_SOCKET_IFNAME": "nosuch0"}
    told(processes.check_collective("gloo", ranks=1, environment=wrong), "fail", "GLOO_SOCKET_IFNAME")


def test_what_a_cluster_says() -> None:
    line = "DOCTOR " + json.dumps([Record("clocks", "warn", "b is +2.000 s off", "set-ntp").as_dict()])
    assert read_records(f"noise\n{line}\nmore")[0].name == "clocks"
    told(read_records("ModuleNotFoundError: No module named 'cluster'")[0], "fail", "No module named", "install")


def test_a_cluster_that_is_not_there(token: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told(check_cluster(f"http://127.0.0.1:{port}", None)[0], "fail", "no job server answers")
    token.unlink()
    told(check_cluster(f"http://127.0.0.1:{port}", None)[0], "fail", "no token")


def test_exit_code_and_json(token: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor.main(["--quick", "--run-dir", str(tmp_path / "run")]) == 0
    assert "ok   python" in capsys.readouterr().out
    token.chmod(0o644)
    assert doctor.main(["--quick", "--json"]) == 2
    records = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in records if r["status"] == "fail"] == ["token"]


def test_a_run_directory_on_the_nodes_is_not_made_here(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(nodes, "check_cluster", lambda address, run_dir: asked.append((address, run_dir)) or [])
    place = tmp_path / "shared/runs"
    words = ["--quick", "--run-dir", str(place), "--address"]
    assert doctor.main([*words, "http://127.0.0.1:8265"]) == 0 and not place.parent.exists()
    assert doctor.main([*words, "auto"]) == 0 and place.is_dir(), "on a node it is checked here, too"
    assert asked == [("http://127.0.0.1:8265", str(place)), ("auto", str(place))]
    assert capsys.readouterr().out.count("can be written") == 1


def test_sizes() -> None:
    assert [size(v) for v in (12, 2048, 3 * GIB, 5 * 1024 * GIB)] == ["12 B", "2.0 KiB", "3.0 GiB", "5.0 TiB"]


def test_an_interface_is_found_by_its_address() -> None:
    assert machine.interfaces_of("127.0.0.1") == ["lo"]
    assert machine.interfaces_of("203.0.113.9") == []
