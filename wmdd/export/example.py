"""The example.py of an export: a script that reads it with public packages alone."""

from wmdd.export.manifest import Manifest

_OPENING = '''"""Reads this distilled set with public packages alone. With wmdd, `wmdd.load(here)` reads every layout."""

'''
_IMPORTS = {
    "imagefolder": """from torchvision import transforms
from torchvision.datasets import ImageFolder
""",
    "hdf5": """import h5py
import torch
from torchvision.transforms.functional import normalize
""",
    "webdataset": """import webdataset
from torchvision.transforms.functional import normalize
""",
    "parquet": """import pyarrow.parquet as pq
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor
""",
}
_HERE = """
here = Path(__file__).parent
about = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
"""
_READING = {
    "imagefolder": """\
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(about["mean"], about["std"])])
images = ImageFolder(here / "train", transform)
assert images.classes == [each["folder"] for each in about["classes"]]  # the order of the labels
rows = [json.loads(row) for row in (here / "train/metadata.jsonl").open()]  # in the order of the images
image, label = images[0]
weight = rows[0]["weight"]
""",
    "hdf5": """\
file = h5py.File(here / "distilled.h5")
images = torch.from_numpy(file["images"][:])
pixels = images[0] / 255 if about["pixels"] == "uint8" else images[0]  # black 0, white 1
image, label = normalize(pixels, about["mean"], about["std"]), int(file["labels"][0])
weight = file["weights"][0]
""",
    "webdataset": """\
files = sorted(str(path) for path in here.glob("train-*.tar"))
images = list(webdataset.WebDataset(files, shardshuffle=False).decode("torchrgb"))
first = images[0]
image, label, weight = normalize(first["png"], about["mean"], about["std"]), first["cls"], first["json"]["weight"]
""",
    "parquet": """\
images = pq.read_table(sorted((here / "data").glob("*.parquet"))).to_pylist()
first = images[0]
pixels = to_tensor(Image.open(io.BytesIO(first["image"]["bytes"])))
image, label, weight = normalize(pixels, about["mean"], about["std"]), first["label"], first["weight"]
""",
}
_SOFT = {
    "imagefolder": 'soft_label = rows[0]["soft_label"]\n',
    "hdf5": 'soft_label = file["soft_labels"][0]\n',
    "webdataset": 'soft_label = first["npy"]\n',
    "parquet": 'soft_label = first["soft_label"]\n',
}
_CLOSING = """\
print(len(images), "images; the first:", tuple(image.shape), about["classes"][label]["name"], "of weight", weight)
"""


def example(manifest: Manifest) -> str:
    """Return a script that reads an export with public packages alone."""
    soft = _SOFT[manifest.layout] if manifest.soft_labels else ""
    imports = ("import io\n" if manifest.layout == "parquet" else "") + "import json\nfrom pathlib import Path\n\n"
    return _OPENING + imports + _IMPORTS[manifest.layout] + _HERE + _READING[manifest.layout] + soft + _CLOSING
