"""profiles/: what a site edits is read by the plugin as it stands, and the rules know nothing of any scheduler."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake_executor_plugin_slurm.partitions import read_partition_file

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "profiles/slurm/config.v8+.yaml"
RULES = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]


def test_the_profile_is_its_own_list_of_partitions() -> None:
    content = yaml.safe_load(PROFILE.read_text())
    assert PROFILE.with_name(content["slurm-partition-config"]) == PROFILE
    assert read_partition_file(PROFILE) == []


def test_the_example_of_partitions_is_right(tmp_path: Path) -> None:
    text = PROFILE.read_text().replace("partitions: {}", "partitions:")
    edited = tmp_path / PROFILE.name
    edited.write_text(re.sub(r"^#(   \w+:  ?\{max_)", r" \1", text, flags=re.MULTILINE))
    found = {partition.name: partition.limits for partition in read_partition_file(edited)}
    assert {name: limits.max_gpu for name, limits in found.items()} == {"cpu": 0, "gpu": 4}
    assert found["cpu"].max_runtime == 1440


def test_retries_stand_in_the_profile_alone() -> None:
    """A rule's own retries stay inside one allocation, whose memory and time cannot grow."""
    assert yaml.safe_load(PROFILE.read_text())["retries"] >= 3
    assert not [path.name for path in RULES if re.search(r"^\s+retries:", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_name_no_scheduler(path: Path) -> None:
    code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    assert not re.search(r"slurm|sbatch|partition|qos|pbs\b|lsf\b|kubernetes", code, re.IGNORECASE)


def test_snakemake_takes_the_profile_by_its_name(tmp_path: Path) -> None:
    subprocess.run(["make", "profile", f"XDG_CONFIG_HOME={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    done = subprocess.run(
        [*command, "--dry-run", "--profile", "slurm", "--configfile", str(ROOT / "config/config.yaml")],
        cwd=tmp_path, env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Using profiles slurm and" in said
    assert "slurm_extra=--signal=USR1@120" in said


def test_make_profile_lets_snakemake_find_it(tmp_path: Path) -> None:
    def make() -> subprocess.CompletedProcess[str]:
        command = ["make", "profile", f"XDG_CONFIG_HOME={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    place = tmp_path / "snakemake/slurm"
    for _ in range(2):
        assert make().returncode == 0
        assert (place / PROFILE.name).samefile(PROFILE)
    place.unlink()
    place.mkdir()
    again = make()
    assert again.returncode != 0
    assert "is another profile" in again.stderr
    assert list(place.iterdir()) == []
