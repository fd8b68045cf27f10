"""The command that joins the blocks of a distilled set."""

from pathlib import Path

import numpy as np

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.hdf5 import LEARNED, Arrays, Meta, check_classes, load
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Paths, Threads, command
from wmdd.cli.readers import data_facts, numbered
from wmdd.jobs.job import job


@command
def join(*, blocks: Paths, output: Path, threads: Threads = 1) -> None:
    """Join the blocks of a distilled set into one file, every class once and in order; one block is in memory at a time."""
    parts = [load(path, "weights", "labels") for path in blocks]
    metas = [meta for _, meta in parts]
    first = metas[0]
    with job("join", output, [], numbered(metas), threads=threads) as stage_job:
        _check_blocks(blocks, parts)
        weights, labels = (np.concatenate([arrays[name] for arrays, _ in parts]) for name in ("weights", "labels"))
        if labels.tolist() != list(range(len(first["classes"]))):
            raise WmddError(f"the blocks of {output} hold the classes {labels.tolist()}, not each class once in order")
        with hdf5_writer.writing(output) as writer:
            # The lineage needs them where the blocks themselves are deleted.
            inputs = {name: [meta["inputs"][name] for meta in metas] for name in first["inputs"]}
            facts = {name: first[name] for name in ("settings", "identity", "code")} | {"inputs": inputs}
            provenance = {first["stage"]: facts}
            writer.meta = stage_job.meta | provenance | data_facts(first)
            if "student_lr" in first:
                writer.meta["student_lr"] = first["student_lr"]
            for path in blocks:
                with hdf5.reading(path, "images") as file:
                    writer.append("images", file["images"][()], compressed=True)
                    if LEARNED in file:
                        writer.append(LEARNED, file[LEARNED][()])
            writer.put("labels", labels)
            writer.put("weights", weights)


def _check_blocks(paths: list[Path], parts: list[tuple[Arrays, Meta]]) -> None:
    """Refuse blocks that are not of one run: of other classes, another stage, other settings or seeds, another size.

    Raises:
        WmddError: names the first difference.
    """
    facts = []
    for path, (arrays, meta) in zip(paths, parts, strict=True):
        check_classes(parts[0][1]["classes"], meta["classes"], str(paths[0]), str(path))
        identity = {name: value for name, value in meta["identity"].items() if name != "block"}
        sizes = {"images per class": arrays["weights"].shape[1], "resolution": meta["resolution"]}
        facts.append({"stage": meta["stage"]} | meta["settings"] | identity | sizes)
        for name, value in facts[-1].items():
            if value != (first := facts[0].get(name)):
                raise WmddError(f"{path} has {name} {value}, but {paths[0]} has {first}; join the blocks of one run")
