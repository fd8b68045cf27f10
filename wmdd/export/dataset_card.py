"""Card: README.md of an exported set: what it is, how it was made, what may be done with it (see `wmdd.export.export`)."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from wmdd.export.loading import MANIFEST, Manifest
from wmdd.workflow.layout import Cell

if TYPE_CHECKING:
    from wmdd.settings.catalogue import Known

EXAMPLE = "example.py"
LISTED = 100  # classes that the card lists
_SPDX = {"CC BY 4.0": "cc-by-4.0"}  # names of licences as Hugging Face has them


@dataclass(frozen=True)
class Origin:
    """What the card says beside the manifest: place, source dataset, how that is known, scores of students, the teacher's."""

    place: Cell | None = None
    source: "Known | None" = None
    sure: bool = False  # the source was named, not guessed from a folder's name
    students: Sequence[dict[str, Any]] = ()
    teacher_accuracy: dict[str, float] | None = None


_LAYOUTS = {
    "imagefolder": "`train/` has a folder of PNG files for each class, for torchvision's `ImageFolder`; sorted by name, the "
    "folders are in the order of the labels. `metadata.csv` has {columns} of each file; numbers of a soft label have blanks "
    "between.",
    "hdf5": "`distilled.h5` has `images` [N, 3, R, R] (uint8), `labels` [N], `weights` [N]{soft}, sorted by class.",
    "webdataset": "The tar files have, of each image, `png`, `cls` (the label), `json` (label, weight){soft}, sorted by class: "
    "shuffle them as you read.",
    "parquet": "`data/` has parquet files with the columns `image` (PNG), {columns}, sorted by class. The folder can be put on "
    "the Hugging Face hub as it is.",
}


def card(about: Manifest, origin: Origin) -> str:
    """Return README.md: what the set is, how it was made and what may be done with it; Hugging Face's front matter first."""
    parts = [
        f"---\n{yaml.safe_dump(front_matter(about, origin), sort_keys=False, allow_unicode=True)}---",
        f"# {_title(origin)}",
        f"{about.images} {_kind(about)} images that stand for a whole training set: {len(about.classes)} classes, "
        f"{about.images_per_class} images per class, {about.resolution} px. Made with wmdd.",
        "## Use",
        f"`{EXAMPLE}` reads it with public packages. `{MANIFEST}` names the classes and has the mean and standard deviation "
        f"for the normalisation: mean {list(about.mean)}, std {list(about.std)} (of pixels in [0, 1]). {_layout(about)}",
        "`weight` is the mass of an image within its class, as the method left it; equal weights can be ignored.",
        *_soft(about),
        "## How it was made",
        _table(("what", "value"), _facts(about, origin)),
        "Settings:",
        f"```yaml\n{yaml.safe_dump(_settings(about.made['images']), sort_keys=True)}```",
        *_scores(origin.students),
        "## Classes",
        _classes(about),
        "## Licence",
        _licence(origin),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(about: Manifest, origin: Origin) -> dict[str, Any]:
    """Return what Hugging Face reads of the card."""
    sizes = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
    source = origin.source
    licence: dict[str, Any] = {"license": "unknown"}
    if source and source.licence:
        licence = {"license": _SPDX.get(source.licence, "other")}
        if licence["license"] == "other":
            licence |= {"license_name": "terms-of-the-source", "license_link": source.homepage}
    found = {"pretty_name": _title(origin), **licence, "task_categories": ["image-classification"]}
    found |= {"tags": ["dataset-distillation", "wmdd"]}
    found |= {"size_categories": [next((name for limit, name in sizes if about.images < limit), "n>1M")]}
    if about.layout == "parquet":
        files = [{"split": "train", "path": "data/train-*.parquet"}]
        found |= {"configs": [{"config_name": "default", "data_files": files}]}
    return found


def _title(origin: Origin) -> str:
    where = origin.source.title if origin.source else origin.place.dataset if origin.place else ""
    by = f" by {origin.place.method}" if origin.place else ""
    return _line(f"{where or 'A dataset'}, distilled{by}")


def _kind(about: Manifest) -> str:
    return "real" if "select" in _stages(about.made["images"]) else "synthetic"


def _layout(about: Manifest) -> str:
    columns = ", ".join(f"`{name}`" for name in ("label", "weight", *(["soft_label"] if about.soft_labels else [])))
    more = (
        {"hdf5": " and `soft_labels` [N, C]", "webdataset": " and `npy` (the soft label)"} if about.soft_labels else {}
    )
    return _LAYOUTS[about.layout].format(columns=columns, soft=more.get(about.layout, ""))


def _soft(about: Manifest) -> list[str]:
    soft = about.soft_labels
    if soft is None:
        return ["There are no soft labels, only the class of each image."]
    if soft.store == "learned":
        return [
            "`soft_label` is what the method learned with the images: probabilities, to train on in place of `label`."
        ]
    mixed = " Views were mixed with other images (CutMix), and so are the labels." if soft.mix != "none" else ""
    return [
        "`soft_label` is what the teacher says of an image: the mean of softmax(logits / T) over random views of it, here "
        f"{soft.epochs} with T = {soft.temperature:g}.{mixed} Published scores of such sets come from the labels of each view, "
        "which are larger than the images and not here: do not expect them of the mean labels."
    ]


def _facts(about: Manifest, origin: Origin) -> list[tuple[str, str]]:
    made, labels, place = about.made["images"], about.made.get("labels"), origin.place
    facts = [("source", origin.source.variant if origin.source else place.dataset if place else "not on record")]
    facts += [("method", place.method if place else "not on record"), ("stage", ", ".join(_stages(made)))]
    score = f", top-1 {100 * origin.teacher_accuracy['top1']:.2f} %" if origin.teacher_accuracy else ""
    weights = f", digest `{labels['inputs']['teacher']}`" if labels and "teacher" in labels.get("inputs", {}) else ""
    facts += [("teacher", (place.teacher if place else "not on record") + score + weights)]
    facts += [("seed", str(place.seed))] if place else []
    facts += [("learned rate of a student", f"{made['student_lr']:.6g}")] if "student_lr" in made else []
    facts += [("git revision", f"`{made.get('revision', 'unknown')}`")]
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()))]
    facts += [("digest of the images", f"`{made['digest']}`")]
    return facts + ([("digest of the labels", f"`{about.soft_labels.digest}`")] if about.soft_labels else [])


def _stages(made: dict[str, Any]) -> list[str]:
    """Return the stages that made the images, the joining of blocks last."""
    inner = [
        name for name, value in made.items() if isinstance(value, dict) and {"settings", "identity"} <= value.keys()
    ]
    return [*inner, *([made["stage"]] if made.get("stage") else [])] or ["not on record"]


def _settings(made: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the stage whose blocks were joined, or of the stage itself."""
    inner = {name: made[name]["settings"] for name in _stages(made) if name in made}
    return inner or {made.get("stage", "images"): made.get("settings", {})}


def _scores(students: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of what students scored: mean ± standard deviation (n), in percent."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in students:
        groups[json.dumps(each["settings"], sort_keys=True)].append(each)
    rows = []
    for key, group in sorted(groups.items()):
        settings = json.loads(key)
        network = f"{settings['architecture']}, width {settings['width']}"
        scores = [_score([100 * each["result"][name] for each in group]) for name in ("top1", "top5")]
        rows.append((network, settings["labels"], str(settings["epochs"]), *scores))
    if not rows:
        return []
    note = "Students trained from scratch on this set by wmdd, on the real validation set; soft: with the labels of each view."
    return ["## Scores", note, _table(("student", "labels", "epochs", "top-1 %", "top-5 %"), rows)]


def _score(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def _classes(about: Manifest) -> str:
    rows = [(str(c.index), c.folder if about.layout == "imagefolder" else c.original, c.name) for c in about.classes]
    more = f"\n\n… and {len(rows) - LISTED} more, in `{MANIFEST}`." if len(rows) > LISTED else ""
    return _table(("index", "folder", "name"), rows[:LISTED]) + more


def _licence(origin: Origin) -> str:
    derived = "The images are derived from their source, and its terms go with them."
    source = origin.source
    if source is None or not source.licence:
        remedy = "fill them in here, and `license` at the top, before you pass this set on"
        return f"{derived} **They are not on record: {remedy}.**"
    guess = "" if origin.sure else " This was found by the folder that the set was in: correct it if it is wrong."
    return f"{derived} The source is {_line(source.title)} ({source.homepage}): {source.licence}.{guess}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """Return a text from outside as one line that is no markup."""
    return " ".join(text.split()).replace("<", "&lt;")
