"""`segkit doctor`: each check where all is well, and where it is not."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from segkit.cli import doctor as command
from segkit.cli import main
from segkit.data.names import data_sets
from segkit.doctor import data, gpu, machine, packages
from segkit.io import write_png
from segkit.ops.kernels import first_use

Usage = namedtuple("Usage", "total used free")
Findings = dict[str, dict[str, str]]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is wrong, wherever the test runs: a roomy machine without a GPU, an empty folder, no variables."""
    monkeypatch.chdir(tmp_path)
    for name in (*data.VARIABLES, "OMP_NUM_THREADS", *machine._PRETENDING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_import_fault", lambda module: None)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("segkit.doctor.machine.free_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "driver_version", lambda: None)


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Findings]]:
    """Runs the command; the exit code and what was found, by check."""

    def run(*arguments: str) -> tuple[int, Findings]:
        code = main(["doctor", "--json", *arguments])
        found = json.loads(capsys.readouterr().out)
        checks: list[dict[str, str]] = found["checks"]
        assert found["wrong"] == sum(one["status"] == "wrong" for one in checks) and code == (found["wrong"] > 0)
        assert all("\n" not in one["found"] + one["cure"] for one in checks)
        assert all(one["cure"] for one in checks if one["status"] != "ok")
        return code, {one["check"]: one for one in checks}

    return run


Examine = Callable[..., tuple[int, Findings]]


def test_nothing_is_wrong(examine: Examine) -> None:
    code, found = examine()
    assert code == 0 and found["torch"]["found"] == torch.__version__.split("+")[0]
    assert {check for check, one in found.items() if one["status"] == "note"} == {"data"}  # none here


def test_every_package_is_imported_by_a_name_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(packages, "_import_fault", imported.append)
    assert {one.status for one in packages.packages()} == {"ok"}
    assert {"cv2", "PIL", "yaml", "torch", "pytorch_lightning"} < set(imported)
    assert [name for name in imported if find_spec(name) is None] == []


@pytest.mark.parametrize(
    "name, version, found, cure",
    [
        ("pytorch-lightning", "2.6.2", "2.6.2: malware", "pip uninstall -y pytorch-lightning; replace all passwords"),
        ("lightning", "2.6.3", "2.6.3: malware", "pip uninstall -y lightning"),
        ("jsonargparse", "5.0.0", "5.0.0: without what Lightning", "pip install 'jsonargparse<5,>=4.51'"),
        ("albumentations", "2.0.9", "2.0.9: not the release", "pip install 'albumentations==2.0.8'"),
        ("albucore", "0.0.23", "0.0.23: not the release", "pip install 'albucore==0.0.24'"),
        ("timm", "0.9.16", "0.9.16, and segkit needs <2,>=1.0.20", "pip install 'timm<2,>=1.0.20'"),
        ("torchvision", None, "not installed", "pip install 'torchvision>=0.26'"),
    ],
)
def test_a_wrong_version(
    name: str, version: str | None, found: str, cure: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, imported = packages._version, []
    monkeypatch.setattr(packages, "_version", lambda one: version if one == name else installed(one))
    monkeypatch.setattr(packages, "_import_fault", imported.append)
    code, checks = examine()
    assert code == 1 and checks[name]["status"] == "wrong"
    assert checks[name]["found"].startswith(found) and cure in checks[name]["cure"]
    assert name.replace("-", "_") not in imported  # malware must not run


def test_a_package_that_cannot_be_imported(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(packages, "_bounds", lambda: {"tqdm": ">=4.66"})
    monkeypatch.setitem(packages._MODULES, "tqdm", "broken_in_this_test")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_in_this_test.py").write_text("raise OSError('libGL.so.1: cannot open\\nshared object file')\n")
    _, checks = examine()
    assert checks["tqdm"]["status"] == "wrong"
    assert checks["tqdm"]["found"].endswith("cannot be imported: OSError: libGL.so.1: cannot open shared object file")
    assert "--force-reinstall 'tqdm>=4.66'" in checks["tqdm"]["cure"]


def test_another_python(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    code, checks = examine()
    assert code == 1 and checks["python"]["cure"] == "install Python <3.14,>=3.11"


@pytest.mark.parametrize(
    "there, found",
    [
        (["opencv-python", "opencv-python-headless"], "side by side"),
        (["opencv-contrib-python-headless", "opencv-python-headless"], "side by side"),
        (["opencv-python"], "needs libraries of a desktop"),
        ([], "none of its wheels"),
    ],
)
def test_opencv(there: list[str], found: str, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packages._version
    wheels = dict.fromkeys(there, "4.12.0.88")
    monkeypatch.setattr(packages, "_version", lambda n: wheels.get(n) if n in packages.OPENCV else installed(n))
    code, checks = examine()
    assert code == 1 and found in checks["opencv"]["found"]
    assert checks["opencv"]["cure"].endswith("pip install opencv-python-headless")


def test_a_check_that_fails_is_a_finding(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ImportError("libtorch.so")

    monkeypatch.setattr(torch, "get_num_threads", fails)
    code, checks = examine()
    assert code == 1 and checks["threads"]["found"] == "cannot be checked: ImportError: libtorch.so"
    assert checks["memory"]["status"] == "ok"  # what follows is looked at all the same


def test_precision(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    found = examine()[1]
    assert "avx2 avx512_bf16; PyTorch uses AVX512" in found["processor"]["found"]
    assert "auto takes bfloat16" in found["precision"]["found"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = examine()[1]
    assert "held back by ONEDNN_MAX_CPU_ISA=AVX2" in found["processor"]["found"]
    assert "auto takes float32 on the CPU, which is held back" in found["precision"]["found"]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert "which lacks AVX-512 BF16" in examine()[1]["precision"]["found"]


def test_threads(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine()[1]["threads"]["status"] == "ok"
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.0)
    threads = examine()[1]["threads"]
    assert threads["status"] == "note" and threads["cure"] == "export OMP_NUM_THREADS=1"
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "cores are idle" in examine()[1]["threads"]["found"]


@pytest.mark.parametrize("text, quota", [("max 100000", None), ("150000 100000", 1.5), ("", None)])
def test_a_containers_time(text: str, quota: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "_CPU_QUOTA", tmp_path / "cpu.max")
    assert machine.cpu_quota() == quota


def test_memory_and_disks(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    _, found = examine()
    assert found["memory"]["found"] == "16 GB free for this process" and found["shared memory"]["status"] == "ok"
    monkeypatch.setattr("segkit.doctor.machine.free_memory", lambda: 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 64 * 10**6))
    code, found = examine()
    assert code == 1 and found["memory"]["status"] == "note" and "--shm-size" in found["shared memory"]["cure"]
    assert [found[name]["status"] for name in ("working folder", "weights cache", "temporary files")] == ["wrong"] * 3


def test_a_cache_that_cannot_be_written(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "file"))
    code, found = examine()
    assert (
        code == 1
        and "is a file" in found["weights cache"]["found"]
        and "SEGKIT_CACHE" in found["weights cache"]["cure"]
    )


@pytest.mark.parametrize("built, cure", [(None, "the build for CUDA"), ("13.0", "CUDA_VISIBLE_DEVICES")])
def test_a_driver_without_a_gpu(
    built: str | None, cure: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "driver_version", lambda: "580.95")
    monkeypatch.setattr(torch.version, "cuda", built)
    code, found = examine()
    assert code == 1 and "driver 580.95 is there" in found["cuda"]["found"] and cure in found["cuda"]["cure"]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver_version", lambda: "580.95")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("segkit.ops.processor.free_bytes", lambda device: 16 * 10**9)


@pytest.mark.usefixtures("one_gpu")
def test_kernels(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "fault", lambda kernel, device, dtype: None)
    code, found = examine()
    assert code == 0 and "driver 580.95" in found["cuda"]["found"]
    assert found["cuda:0"]["found"] == "NVIDIA H100, compute capability 9.0, 16 GB free; auto takes bfloat16"
    assert all(found[kernel]["status"] == "ok" for kernel in first_use.COMPARISONS)


@pytest.mark.usefixtures("one_gpu")
def test_a_wrong_kernel(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return "differs by 1" if kernel == "upsample_argmax" and dtype == torch.bfloat16 else None

    monkeypatch.setattr(first_use, "fault", fault)
    code, found = examine()
    wrong = [kernel for kernel in first_use.COMPARISONS if found[kernel]["status"] == "wrong"]
    assert code == 1 and wrong == ["upsample_argmax"]
    assert found["upsample_argmax"]["found"] == "bfloat16 on cuda:0: differs by 1"
    assert f"torch {torch.__version__}, triton 3" in found["upsample_argmax"]["cure"]
    assert "compute capability 9.0" in found["upsample_argmax"]["cure"]


@pytest.mark.usefixtures("one_gpu")
def test_without_triton(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segkit.ops.dispatch.has_triton", lambda: False)
    code, found = examine()
    assert code == 0 and found["kernels"]["status"] == "note"


@pytest.mark.parametrize(
    "name, value, status, cure",
    [
        ("SEGKIT_FUSED_OPS", "1", "ok", ""),
        ("SEGKIT_FUSED_OPS", "0", "note", "unset it"),
        ("SEGKIT_FUSED_OPS", "no", "wrong", "unset it"),
        ("SEGKIT_MAX_PIXELS", "1000000", "ok", ""),
        ("SEGKIT_MAX_PIXELS", "1e6", "wrong", "unset it"),
        ("SEGKIT_CASH", "/fast", "wrong", "did you mean SEGKIT_CACHE?"),
    ],
)
def test_variables(
    name: str, value: str, status: str, cure: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGKIT_CACHE")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv(name, value)
    found = examine()[1]["variables"]
    assert found["status"] == status and found["cure"].startswith(cure) and name in found["found"]


def write_camvid(folder: Path) -> None:
    for name in ("train", "trainannot", "val", "valannot"):
        write_png(folder / name / "a.png", np.zeros((4, 4) if "annot" in name else (4, 4, 3), np.uint8))


@pytest.mark.parametrize("arguments", [[], ["datasets"], ["elsewhere", "datasets/camvid"]])
def test_data(arguments: list[str], examine: Examine, tmp_path: Path) -> None:
    write_camvid(tmp_path / "datasets/camvid")
    write_png(tmp_path / "datasets/cityscapes/leftImg8bit.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "elsewhere").mkdir()
    code, found = examine(*arguments)
    assert code == 0 and found["camvid"]["found"] == "datasets/camvid: train, val"
    if "elsewhere" in arguments:
        assert found["data"]["found"].startswith("elsewhere: none of ade20k")
    else:
        assert found["cityscapes"]["status"] == "note" and "segkit data check" in found["cityscapes"]["cure"]


def test_a_data_root_that_is_not_there(examine: Examine) -> None:
    code, found = examine("nowhere")
    assert code == 1 and found["data"]["found"] == "nowhere: no such folder"


def test_the_folders_are_those_of_the_recipes() -> None:
    recipes = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "configs/data").glob("*.yaml")]
    roots = {recipe["init_args"]["root"] for recipe in recipes}
    segmentation = {f"{data.ROOT}/{one.folder}" for one in data_sets().values() if one.folder}
    assert roots == segmentation | {f"{data.ROOT}/imagenet"}


def test_what_a_terminal_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns, and no line that is longer than the terminal is wide but for what cannot be broken."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(command, "_columns", lambda: 80)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and "/" not in line] == []  # paths stay whole
    column = lines[0].index("3.")  # Python's version
    assert all(line[column - 1] == " " != line[column] for line in lines if line[:2] in ("ok", "no"))
    assert lines[-1].endswith(" checks: nothing wrong, 2 notes")
    assert any(line.strip() == "-> export OMP_NUM_THREADS=2" for line in lines)


def test_help_is_for_a_newcomer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "exit code is 1 when something is wrong" in capsys.readouterr().out
    assert "doctor" in _overview(capsys)


def _overview(capsys: pytest.CaptureFixture[str]) -> Any:
    main([])
    return capsys.readouterr().out
