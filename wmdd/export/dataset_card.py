"""README.md of an exported set: what it is, how it was made, what may be done with it (text: dataset_card_template.md)."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wmdd.export.manifest import TABLE, Manifest
from wmdd.workflow.layout import Cell

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

    from wmdd.settings.catalogue import Known

TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
UNKNOWN = "not on record"
LISTED = 100  # classes that the card lists
_SPDX = {"CC BY 4.0": "cc-by-4.0"}  # names of licences as Hugging Face has them
_SIZES = {"n<1K": 1000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": 10**6}


@dataclass(frozen=True)
class Origin:
    """What the card says beside the manifest: place, source dataset, how that is known, scores of students, the teacher's."""

    place: Cell | None = None
    source: "Known | None" = None
    sure: bool = False  # the source was named, not guessed from a folder's name
    students: Sequence[dict[str, Any]] = ()
    teacher_accuracy: dict[str, float] | None = None


def card(manifest: Manifest, origin: Origin) -> str:
    """Return README.md, Hugging Face's front matter first."""
    from jinja2 import Environment

    made, place = manifest.made["images"], origin.place
    stages = _stages(made)
    environment = Environment(keep_trailing_newline=True, autoescape=False)
    environment.filters["cell"] = lambda text: _line(text).replace("|", "\\|")
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        manifest=manifest,
        origin=origin,
        made=made,
        place=place,
        source=origin.source,
        soft=manifest.soft_labels,
        pictures={"png": "PNG", "webp": "WebP"}[manifest.picture_format],
        values=manifest.images * 3 * manifest.resolution**2,
        front_matter=front_matter(manifest, origin).to_yaml(),
        title=title(origin),
        kind="real" if "select" in stages else "synthetic",
        columns="`label`, `weight`" + (", `soft_label`, `soft_logit`" if manifest.soft_labels else ""),
        dataset=place.dataset if place else UNKNOWN,
        method=place.method if place else UNKNOWN,
        stages=stages,
        teacher=_teacher(manifest, origin),
        settings=yaml.safe_dump(_settings(made), sort_keys=True),
        scores=_scores(origin.students),
        listed=LISTED,
    )


def front_matter(manifest: Manifest, origin: Origin) -> "DatasetCardData":
    """Return what Hugging Face reads of the card."""
    from huggingface_hub import DatasetCardData

    source = origin.source
    licence: dict[str, Any] = {"license": "unknown"}
    if source and source.licence:
        licence = {"license": _SPDX.get(source.licence, "other")}
        if licence["license"] == "other":
            licence |= {"license_name": "terms-of-the-source", "license_link": source.homepage}
    files = [manifest.files, *([TABLE] if manifest.layout == "imagefolder" else [])]
    data_files = [{"split": "train", "path": files}]  # unless they are named, `datasets` takes manifest.json for data
    return DatasetCardData(
        **licence,
        pretty_name=title(origin),
        task_categories=["image-classification"],
        size_categories=[next((name for name, limit in _SIZES.items() if manifest.images < limit), "n>1M")],
        tags=["dataset-distillation", "wmdd"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )


def title(origin: Origin) -> str:
    """Return what the set is called: its source, and its method where that is known."""
    name = origin.source.title if origin.source else origin.place.dataset if origin.place else "A dataset"
    return _line(f"{name}, distilled" + (f" by {origin.place.method}" if origin.place else ""))


def _teacher(manifest: Manifest, origin: Origin) -> str:
    labels = manifest.made.get("labels") or {}
    digest = labels.get("inputs", {}).get("teacher")
    score = f", top-1 {100 * origin.teacher_accuracy['top1']:.2f} %" if origin.teacher_accuracy else ""
    return (origin.place.teacher if origin.place else UNKNOWN) + score + (f", digest `{digest}`" if digest else "")


def _stages(made: dict[str, Any]) -> list[str]:
    """Return the stages that made the images, the joining of blocks last."""
    joined = [
        name for name, value in made.items() if isinstance(value, dict) and {"settings", "identity"} <= value.keys()
    ]
    return [*joined, *([made["stage"]] if made.get("stage") else [])] or [UNKNOWN]


def _settings(made: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the stage whose blocks were joined, or of the stage itself."""
    joined = {name: made[name]["settings"] for name in _stages(made) if name in made}
    return joined or {made.get("stage", "images"): made.get("settings", {})}


def _scores(students: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of what students scored: mean ± standard deviation (n), in percent."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for student in students:
        groups[json.dumps(student["settings"], sort_keys=True)].append(student["result"])
    rows = []
    for key, results in sorted(groups.items()):
        settings = json.loads(key)
        network = f"{settings['architecture']}, width {settings['width']}"
        scores = [_score([100 * result[name] for result in results]) for name in ("top1", "top5")]
        rows.append((network, settings["labels"], str(settings["epochs"]), *scores))
    return rows


def _score(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def _line(text: str) -> str:
    """Return a text from outside as one line that is no markup."""
    return " ".join(text.split()).replace("<", "&lt;")
