import platform

import pytest
import torch

from inferscope.errors import UnknownDeviceError
from inferscope.hardware import probe
from inferscope.hardware.probe import identify, last_level_cache_bytes

MIB = 1 << 20
X86 = """processor\t: 0
model name\t: Some CPU @ 3 GHz
cpu family\t: 6
model\t\t: 143
stepping\t: 8

processor\t: 1
model name\t: Another
"""


def describe_cache(root, cpu, index, *, level, size, sharing, kind="Unified"):
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in {"level": level, "size": size, "type": kind, "shared_cpu_list": sharing}.items():
        (folder / name).write_text(f"{text}\n")


@pytest.fixture
def two_sockets(tmp_path):
    """Four processors, two per last-level cache."""
    for cpu in range(4):
        describe_cache(tmp_path, cpu, 0, level=1, size="48K", sharing=cpu, kind="Data")
        describe_cache(tmp_path, cpu, 1, level=4, size="64M", sharing=cpu, kind="Instruction")
        describe_cache(tmp_path, cpu, 2, level=3, size="32768K", sharing="0-1" if cpu < 2 else "2,3")
    return tmp_path


def test_a_cpu_says_what_it_is():
    spec = identify()
    assert spec.kind == "cpu"
    assert spec.name
    assert spec.threads == torch.get_num_threads()
    assert spec.torch_version == str(torch.__version__)
    assert spec.memory_bytes > 0
    for part in (spec.name, f"threads {spec.threads}", f"torch {torch.__version__}"):
        assert part in spec.key
    assert spec == identify("cpu")


def test_nothing_is_measured():
    spec = identify()
    assert spec.compute_flops_per_s == {}
    assert spec.copy_bytes_per_s is None
    assert spec.dispatch_ns is None
    assert spec.measured_unix_ns is None


def test_another_number_of_threads_is_another_device():
    before, threads = identify(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        after = identify()
    finally:
        torch.set_num_threads(threads)
    assert after.key != before.key
    assert after.threads == threads + 1


def test_another_float32_precision_is_another_device():
    before, precision = identify(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert identify().key == f"{before.key}, float32 products medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert identify() == before


def test_each_last_level_cache_counts_once(two_sockets):
    assert last_level_cache_bytes(two_sockets, range(4)) == 64 * MIB


def test_only_caches_of_usable_processors_count(two_sockets):
    assert last_level_cache_bytes(two_sockets, [1]) == 32 * MIB


def test_an_unreadable_cache_is_unknown(tmp_path, two_sockets):
    assert last_level_cache_bytes(tmp_path / "nowhere", [0]) is None
    assert last_level_cache_bytes(two_sockets, []) is None
    (two_sockets / "cpu3" / "cache" / "index2" / "size").write_text("large\n")
    (two_sockets / "cpu3" / "cache" / "index0" / "size").write_text("0K\n")
    assert last_level_cache_bytes(two_sockets, [3]) is None


def test_the_generation_stands_beside_the_name():
    assert probe._cpu_name(X86) == ("Some CPU @ 3 GHz", "cpu family 6 model 143 stepping 8")


def test_a_processor_without_a_model_name_goes_by_its_architecture():
    name, generation = probe._cpu_name("processor: 0\nCPU implementer: 0x41\n")
    assert name in {platform.processor(), platform.machine()}
    assert generation == ""


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_CGROUP_ROOT", tmp_path)
    free, total = probe.available_memory_bytes(), identify().memory_bytes
    (tmp_path / "memory.max").write_text(f"{100 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{80 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {30 * MIB}\n")
    assert probe.available_memory_bytes() == 50 * MIB < free
    assert identify().memory_bytes == 100 * MIB < total


def test_a_container_without_a_limit_is_no_limit(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("7\n")
    monkeypatch.setattr(probe, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(probe, "_MEMINFO", tmp_path / "none")
    assert probe.available_memory_bytes() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_an_error():
    with pytest.raises(UnknownDeviceError, match="CUDA is not available"):
        identify("cuda:1")


def test_a_device_torch_does_not_know_is_an_error():
    with pytest.raises(UnknownDeviceError, match="'abacus'"):
        identify("abacus")


def test_other_kinds_have_a_name_and_no_key():
    spec = identify("meta")
    assert (spec.name, spec.kind, spec.key) == ("meta", "meta", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_what_it_is():
    spec = identify("cuda")
    assert spec.kind == "cuda"
    assert spec.key.startswith("cuda:")
    assert spec.memory_bytes == torch.cuda.get_device_properties(0).total_memory
