"""What a tracked run says of the file that it made: the columns runs are compared by, and the artifact with its lineage."""

import hashlib
import re
from pathlib import Path
from typing import Any

from wmdd.artifacts import atomic_files, hdf5, model_files
from wmdd.workflow.layout import place_of

RECORD = "artifact.json"  # beside a run's data: what `describe` says; `wmdd.tracking.sync` draws the lineage from it


def parts_of(output: Path) -> dict[str, Any]:
    """Return what a path says of the output, as far as it is one of the workflow's: dataset, method, seed and so on."""
    place = place_of(output)
    return place.cell.parts() if place else {}


def kind_of(stage: str) -> str:
    """Return the kind of a stage's artifacts: one for all stages that make the same file, as images and select."""
    from wmdd.workflow.stages import STAGES, makers_of  # with the settings of all stages, which a job has no use for

    file = STAGES[stage].file if stage in STAGES else ""
    return file if len(makers_of(file)) > 1 else stage


def columns(stage: str, output: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what runs are compared by, beside their settings: the stage, the place of the output, digests of the inputs.

    `cell` is method and IPC in one, to group by.
    """
    place = {"stage": stage} | parts_of(output)
    if "ipc" in place:
        place["cell"] = f"{place['method']} ipc{place['ipc']}"
    inputs = _named(meta["inputs"])
    if parts := inputs.pop("parts", None):
        inputs["parts"] = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return place | {f"input/{name}": digest for name, digest in inputs.items()} | meta["engine"]


def _named(inputs: dict[str, str]) -> dict[str, Any]:
    """Return the digests of the inputs by name; those of numbered ones, which may be thousands, as one list `parts`."""
    parts = {name: digest for name, digest in inputs.items() if re.fullmatch(r"(expert)?\d+", name)}
    named: dict[str, Any] = {name: digest for name, digest in inputs.items() if name not in parts}
    return named | ({"parts": [*parts.values()]} if parts else {})


def describe(output: Path, meta: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an artifact says of itself, or None where there is no file: digests, inputs, settings.

    Equal content says the same, whenever and wherever it was made.
    """
    if not output.is_file():
        return None
    outputs = {output.name: digest_of(output)}
    statistics = output.with_name("statistics.h5")
    if output.name == "features.h5" and statistics.is_file():
        outputs[statistics.name] = digest_of(statistics)
    return {
        "name": artifact_name(output),
        "kind": kind_of(meta["stage"]),
        "path": output.as_posix(),
        "digest": outputs[output.name],
        "outputs": outputs,
        "inputs": _named(meta["inputs"]),
    } | {name: meta[name] for name in ("stage", "settings", "identity", "code")}


def artifact_name(output: Path) -> str:
    """Return the name of an artifact: its path with dots, short enough for wandb."""
    path = output.as_posix().removeprefix("results/")
    name = re.sub(r"[^\w.-]+", ".", path.removesuffix(output.suffix)).strip(".")
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def digest_of(path: Path) -> str:
    """Return the digest by which later artifacts name a file."""
    if path.suffix == ".h5":
        return str(hdf5.load_meta(path)["digest"])
    if path.suffix == ".safetensors":
        return str(model_files.load_meta(path)["digest"])
    return atomic_files.sha256_of(path)
