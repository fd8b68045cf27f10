"""croissant.json of an export: what it is and how its records are read, for machines (format: mlcommons.org/croissant/1.0)."""

from typing import Any

from wmdd.export.dataset_card import Origin, title
from wmdd.export.manifest import TABLE, Layout, Manifest

CROISSANT = "croissant.json"
_TERMS = """
    citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key
    md5 parentField path recordSet references regex repeated replace samplingRate separator source subField transform
"""
_CONTEXT: dict[str, Any] = {  # the standard one
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
} | {term: f"cr:{term}" for term in _TERMS.split()}
_MEDIA_TYPES: dict[Layout, str] = {  # of those that have no pictures of their own
    "hdf5": "application/x-hdf5",
    "webdataset": "application/x-tar",
    "parquet": "application/x-parquet",
}
_TABLES = {"imagefolder": "table", "parquet": "files"}  # layout -> the files that have records; others are only named
_TYPES = {
    "file_name": "sc:Text",
    "image": "sc:ImageObject",
    "label": "sc:Integer",
}  # of columns; all others are numbers


def croissant(manifest: Manifest, origin: Origin) -> dict[str, Any]:
    """Return the content of croissant.json: the files, and of those that are tables the columns."""
    files = [_file_set("files", _media_type(manifest), manifest.files)]
    if manifest.layout == "imagefolder":
        files.append(_file_set("table", "application/jsonlines", TABLE))
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title(origin),
        "description": f"{manifest.images} distilled images of {len(manifest.classes)} classes; see README.md",
        "license": (origin.source.licence if origin.source else "") or "unknown",
        "url": origin.source.homepage if origin.source else "",
        "version": f"{manifest.version}.0.0",
        "distribution": files,
    }
    if manifest.layout in _TABLES:
        first = "image" if manifest.layout == "parquet" else "file_name"
        columns = [first, "label", "weight", *(["soft_label", "soft_logit"] if manifest.soft_labels else [])]
        fields = [_field(column, _TABLES[manifest.layout]) for column in columns]
        content["recordSet"] = [{"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}]
    return content


def _media_type(manifest: Manifest) -> str:
    return _MEDIA_TYPES.get(manifest.layout, f"image/{manifest.picture_format}")


def _file_set(name: str, media_type: str, pattern: str) -> dict[str, str]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": media_type, "includes": pattern}


def _field(column: str, files: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": files}, "extract": {"column": column}}
    if column == "image":
        source["transform"] = {"jsonPath": "bytes"}
    data_type = _TYPES.get(column, "sc:Float")
    field = {"@type": "cr:Field", "@id": f"images/{column}", "name": column, "dataType": data_type, "source": source}
    return field | ({"repeated": True} if column.startswith("soft") else {})
