"""`make setup`: which build of torch pip is asked for. Two folders with tiny wheels stand for PyPI and an index of torch."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = """# as requirements.lock
helper==1.0
nvidia-cublas==13.1; platform_system == "Linux"
torch===2.13.0
torchvision===0.28.0
triton==3.7; platform_system == "Linux"
"""
# Builds in the sources' own folder, as hatchling does there.
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import shutil

def build_editable(folder, *_):
    return shutil.copy("wmdd-0.1-py3-none-any.whl", folder).rpartition("/")[2]
"""
PYPI = {
    "torch-2.13.0": ["nvidia-cublas==13.1", "triton==3.7"],
    "torchvision-0.28.0": ["torch==2.13.0"],
    "nvidia_cublas-13.1": [],
    "triton-3.7": [],
    "helper-1.0": ["torch"],
}
CPU = {"torch-2.13.0+cpu": [], "torchvision-0.28.0+cpu": ["torch==2.13.0"], "torch-2.14.0+cpu": []}
GPU_BUILD = {
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "nvidia_cublas": "13.1",
    "triton": "3.7",
    "helper": "1.0",
    "wmdd": "0.1",
}
CPU_BUILD = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "helper": "1.0", "wmdd": "0.1"}


def write_wheel(folder: Path, release: str, requirements: list[str]) -> Path:
    name, version = release.split("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{release}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requirements]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{release}.dist-info/METADATA", "\n".join(lines))
        file.writestr(f"{release}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{release}.dist-info/RECORD", "")
    return path


def write_index(folder: Path, releases: dict[str, list[str]]) -> str:
    """Write an index of packages as pip reads it; return its address."""
    for release, requirements in releases.items():
        place = folder / release.split("-")[0].replace("_", "-")
        wheel = write_wheel(place, release, requirements)
        with (place / "index.html").open("a") as page:
            page.write(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>\n')
    return folder.as_uri()


@pytest.mark.slow
def test_setup_takes_another_build_of_torch_keeps_it_and_goes_back(tmp_path: Path) -> None:
    pypi, cpu = write_index(tmp_path / "pypi", PYPI), write_index(tmp_path / "cpu", CPU)
    clone = tmp_path / "clone"
    write_wheel(clone, "wmdd-0.1", [])
    shutil.copy(ROOT / "Makefile", clone)
    for name, text in ("requirements.lock", LOCK), ("pyproject.toml", PROJECT), ("backend.py", BACKEND):
        (clone / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    environment |= {"PIP_INDEX_URL": pypi, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def installed(*variables: str) -> dict[str, str]:
        command = ["make", "setup", *variables]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        folders = clone.glob(".venv/lib/python*/site-packages/*.dist-info")
        releases = dict(folder.name.removesuffix(".dist-info").split("-") for folder in folders)
        return {name: version for name, version in releases.items() if name not in ("pip", "setuptools")}

    assert installed() == GPU_BUILD
    assert installed(f"TORCH_INDEX={cpu}") == CPU_BUILD
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert installed() == CPU_BUILD
    assert (clone / ".venv/.installed").stat().st_mtime >= (clone / "requirements.lock").stat().st_mtime
    assert installed("TORCH_INDEX=") == GPU_BUILD
    assert LOCK in (clone / "requirements.lock").read_text()
