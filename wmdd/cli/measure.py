"""The commands that measure distilled sets: their distance to the real data, and a map of both."""

from pathlib import Path

import numpy as np
import torch

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.hdf5 import check_classes, checked_weights, load
from wmdd.cli.arguments import ENGINE, Features, Paths, Teacher, Threads, command
from wmdd.cli.readers import images_per_epoch, reading_features
from wmdd.cli.tensor_readers import read_teacher
from wmdd.jobs.job import job
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.engine import EngineSettings
from wmdd.stages.distance import distances as distances_to
from wmdd.stages.distance import features as features_of
from wmdd.stages.embedding import MADE, chosen, plane, sample
from wmdd.stages.point_clouds import Cloud
from wmdd.workflow.layout import cell_of


@command
def distance(
    *,
    images: Path,
    teacher: Teacher,
    features: Features,
    output: Path,
    threads: Threads = 1,
    engine: EngineSettings = ENGINE,
) -> None:
    """Measure how far a distilled set is from the real data: W2^2 of each class in the space of the teacher's features.

    The nearest real image of each distilled one is kept beside it.

    Args:
        images: a distilled set.
        output: JSON.
    """
    arrays, meta = load(images, "images", "weights")
    network, teacher_meta = read_teacher(teacher)
    check_classes(teacher_meta["classes"], meta["classes"], str(teacher), str(images))
    with reading_features(features, teacher, teacher_meta) as (file, features_meta):
        inputs = {"images": meta, "teacher": teacher_meta, "features": features_meta}
        with job("distance", output, [], inputs, engine, threads) as stage_job:
            pixels, weights = (
                torch.from_numpy(arrays["images"]),
                torch.from_numpy(checked_weights(images, arrays["weights"])),
            )
            cloud = Cloud(file["features"], file["labels"][()], features_meta["names"])
            embedded = features_of(network, pixels.flatten(0, 1), Normalisation.of(teacher_meta), stage_job.context)
            distances, nearest = distances_to(
                embedded.unflatten(0, pixels.shape[:2]), weights, cloud, stage_job.context
            )
            stage_job.tracker.log({f"mean/{name}": float(np.mean(values)) for name, values in distances.items()})
            content = {"distance": distances, "nearest": nearest, "classes": meta["classes"]}
            atomic_files.write_json(output, stage_job.meta | content)


@command
def embedding(*, images: Paths, teacher: Teacher, features: Features, output: Path, threads: Threads = 1) -> None:
    """Put real and distilled images into one map, near where the teacher's features are near.

    Args:
        images: distilled sets of one dataset and teacher.
        output: JSON: x, y, class and method ("" for real images) of each point.
    """
    torch.set_num_threads(threads)
    network, teacher_meta = read_teacher(teacher)
    with reading_features(features, teacher, teacher_meta) as (file, meta):
        names, labels = meta["names"], file["labels"][()]
        classes = chosen(len(names))
        rows = [sample(np.flatnonzero(labels == label), f"{label}") for label in classes]
        parts = [torch.from_numpy(file["features"][drawn]).float() for drawn in rows]
    points = [{"name": names[c], "method": ""} for c, drawn in zip(classes, rows, strict=True) for _ in drawn]
    for path in images:
        with hdf5.reading(path, "images") as file:
            check_classes(teacher_meta["classes"], file.meta["classes"], str(teacher), str(path))
            shown = min(MADE, images_per_epoch(file.meta, file["images"].shape[1]))
            pictures = torch.from_numpy(file["images"][classes, :shown])
        parts.append(features_of(network, pictures.flatten(0, 1), Normalisation.of(teacher_meta), quiet(plain())))
        method = cell_of(path).method
        points += [{"name": names[c], "method": method} for c in classes for _ in range(pictures.shape[1])]
    places = plane(torch.cat(parts)).round(3).tolist()
    atomic_files.write_json(output, [point | {"x": x, "y": y} for point, (x, y) in zip(points, places, strict=True)])
