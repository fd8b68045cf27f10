"""profiles/: what a site edits is read by the plugin as it stands, and the rules know nothing of any scheduler."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import snakemake.common
import yaml
from snakemake.cli import parse_args
from snakemake_executor_plugin_slurm.partitions import read_partition_file

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "profiles/slurm/config.v8+.yaml"


def test_the_profile_is_its_own_list_of_partitions_and_its_example_is_right(tmp_path: Path) -> None:
    content = yaml.safe_load(PROFILE.read_text())
    assert PROFILE.with_name(content["slurm-partition-config"]) == PROFILE
    assert read_partition_file(PROFILE) == []
    text = PROFILE.read_text().replace("partitions: {}", "partitions:")
    edited = tmp_path / PROFILE.name
    edited.write_text(re.sub(r"^#(   \w+:  ?\{max_)", r" \1", text, flags=re.MULTILINE))
    limits = {partition.name: partition.limits for partition in read_partition_file(edited)}
    assert {name: each.max_gpu for name, each in limits.items()} == {"cpu": 0, "gpu": 4}
    assert limits["cpu"].max_runtime == 1440


def test_rules_name_no_scheduler_and_no_retries() -> None:
    """A rule's own retries stay inside one allocation, whose memory and time cannot grow."""
    for path in (ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))):
        code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
        assert not re.search(r"slurm|sbatch|partition|qos|pbs\b|lsf\b|kubernetes", code, re.IGNORECASE), path
        assert not re.search(r"^\s+retries:", code, re.MULTILINE), path


def test_make_profile_lets_snakemake_find_it_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> subprocess.CompletedProcess[str]:
        command = ["make", "profile", f"XDG_CONFIG_HOME={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    place = tmp_path / "snakemake/slurm"
    for _ in range(2):
        assert make().returncode == 0
        assert (place / PROFILE.name).samefile(PROFILE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(snakemake.common, "APPDIRS", None)  # where Snakemake keeps what it saw of the environment
    monkeypatch.chdir(tmp_path)
    _, arguments = parse_args(["--profile", "slurm", "--snakefile", str(ROOT / "Snakefile")])
    assert arguments.executor == "slurm"
    assert ast.literal_eval(arguments.default_resources["slurm_extra"].raw) == "--signal=USR1@120"  # an expression
    assert arguments.retries >= 3

    place.unlink()
    place.mkdir()
    again = make()
    assert again.returncode != 0
    assert "is another profile" in again.stderr
    assert list(place.iterdir()) == []
