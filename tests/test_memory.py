"""What memory is free for caches: SLURM's words, control groups, workers that share."""

import os
import resource
from pathlib import Path

import psutil
import pytest
import torch

from kvx.config.schema import SHARING, SHARING_GPU
from kvx.engines.kvpress.memory import (
    cgroup_free,
    free_bytes,
    free_for_caches,
    part_of_gpu,
    slurm_bytes,
)
from kvx.run.pools.local import Local

MIB, GIB = 2**20, 2**30
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("SLURM_") or n == SHARING]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MEM_PER_NODE": "0"}, None),  # all there is
        ({"MEM_PER_NODE": ""}, None),
        ({"MEM_PER_NODE": "2048"}, 2 * GIB),
        ({"MEM_PER_NODE": "2G"}, 2 * GIB),
        ({"MEM_PER_NODE": "512MB"}, 512 * MIB),
        ({"MEM_PER_NODE": "1.5g"}, 3 * GIB // 2),
        ({"MEM_PER_NODE": "1024K"}, MIB),
        ({"MEM_PER_NODE": "1T"}, 1024 * GIB),
        ({"MEM_PER_NODE": "much"}, None),
        ({"MEM_PER_CPU": "500"}, 500 * MIB),
        ({"MEM_PER_CPU": "500", "CPUS_ON_NODE": "4"}, 2000 * MIB),
        ({"MEM_PER_CPU": "500", "JOB_CPUS_PER_NODE": "4(x2),8"}, 2000 * MIB),
        ({"MEM_PER_CPU": "500", "CPUS_PER_TASK": "3"}, 1500 * MIB),
        ({"MEM_PER_CPU": "0", "CPUS_ON_NODE": "4"}, None),
        ({"MEM_PER_GPU": "1000"}, 1000 * MIB),
        ({"MEM_PER_GPU": "1G", "GPUS_ON_NODE": "2"}, 2 * GIB),
        ({"MEM_PER_GPU": "1G", "JOB_GPUS": "0,2-3"}, 3 * GIB),
        ({"MEM_PER_NODE": "0", "MEM_PER_CPU": "500"}, None),
    ],
)
def test_a_jobs_memory(environment: dict[str, str], expected: int | None) -> None:
    found = slurm_bytes({f"SLURM_{name}": value for name, value in environment.items()})
    assert found == expected


def test_free_memory_is_what_a_job_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = free_bytes(CPU)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert free_bytes(CPU) > whole / 2
    own = psutil.Process().memory_info().rss
    job_mib = own // MIB + 200
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(job_mib))
    assert 100 * MIB < free_bytes(CPU) < 300 * MIB
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", str(job_mib))
    assert 100 * MIB < free_bytes(CPU) < 300 * MIB
    monkeypatch.setenv(SHARING, "2")  # half of the job is less than this process has
    assert free_bytes(CPU) == 0
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    assert free_bytes(CPU) < 0.7 * whole


def test_free_memory_is_below_ulimit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 500 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        assert free_bytes(CPU) <= 500 * MIB
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_limits_of_control_groups_of_version_2(tmp_path: Path) -> None:
    """Of the process's own group and those around it; cache of files counts as free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "slurm/job_7/step_0", max="max", high="max", current=300)
    stat = "anon 100\ninactive_file 400\nactive_file 1"
    group(top / "slurm/job_7", max=1000, high="max", current=600, stat=stat)
    group(top / "slurm", max=5000, high=4000, current=1000, stat="anon 1")
    assert sorted(cgroup_free(tmp_path)) == [800, 3000, 4000]


def test_a_container_sees_its_limit_at_the_root(tmp_path: Path) -> None:
    for version, line in ((2, "0::/\n"), (1, "4:cpu,memory:/docker/af3c\n1:name=systemd:/x\n")):
        root = tmp_path / str(version)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(line)
        if version == 2:
            group(root / "sys/fs/cgroup", max=1000, current=600)
        else:  # the path is the host's
            files = {"limit_in_bytes": 1000, "usage_in_bytes": 600}
            group(root / "sys/fs/cgroup/memory", **files, stat="total_inactive_file 50")
    assert cgroup_free(tmp_path / "2") == [400]
    assert cgroup_free(tmp_path / "1") == [450]


def test_a_job_in_control_groups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n9:memory:/slurm/uid_0/job_1\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    group(top / "slurm/uid_0/job_1", limit_in_bytes=500, usage_in_bytes=100)
    group(top, limit_in_bytes=9223372036854771712, usage_in_bytes=900)  # no limit
    assert cgroup_free(tmp_path) == [400]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_free(tmp_path) == []


@pytest.mark.parametrize(("workers", "model"), [(2, 10), (2, 30), (4, 10), (3, 25)])
@pytest.mark.parametrize("together", [True, False])
def test_workers_on_one_gpu_never_plan_for_more_than_it_has(
    workers: int, model: int, together: bool
) -> None:
    """Whether all have loaded their model when they look, or one after the other."""
    total, taken, planned = 100, 0, 0.0
    if together:
        taken = workers * model
    for _ in range(workers):
        taken += 0 if together else model
        planned += 0.6 * part_of_gpu(total - taken, total, model, workers)
    assert planned + workers * model <= total
    assert planned > 0


def test_one_worker_has_all_that_is_free_on_its_gpu() -> None:
    assert part_of_gpu(70, 100, 20, 1) == 70


@pytest.mark.parametrize(
    ("gpus", "workers", "sharing"),
    [
        ("4,7", 2, ["1", "1"]),
        ("4,7", 4, ["2", "2", "2", "2"]),
        ("4,7", 3, ["2", "1", "2"]),
        ("0", 2, ["2", "2"]),
        ("0,0", 2, ["2", "2"]),  # one GPU, named twice
        ("", 3, [None, None, None]),
    ],
)
def test_workers_know_how_many_share_their_gpu_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: str, workers: int, sharing: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    pool = Local(workers=workers)
    environments = [pool._environment(n) for n in range(workers)]
    assert [e.get(SHARING_GPU) for e in environments] == sharing
    assert {e[SHARING] for e in environments} == {str(workers)}


def test_the_device_with_the_least_room_for_its_layers_decides() -> None:
    whole = free_bytes(CPU)
    assert free_for_caches({CPU: 4}) == pytest.approx(whole, rel=0.1)
    # a device with a quarter of the layers holds a quarter of each cache
    assert free_for_caches({CPU: 1, torch.device("cpu", 0): 3}) >= 0.9 * whole
