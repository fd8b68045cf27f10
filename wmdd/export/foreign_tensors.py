"""Sets in files of torch, as their authors' scripts save them. Tensors are read, and no code is run.

dc     {"data": [[images, labels], ...], "accs_all_exps": ...}: one pair for each experiment; normalised pixels, labels
       are indices                                        (VICO-UoE/DatasetCondensation: main.py, main_DM.py; 306245d)
mtt    images_best.pt, labels_best.pt (or images_1000.pt, ...): normalised or whitened pixels, labels are indices;
       images_zca_1000.pt holds the pixels with the whitening undone   (GeorgeCazenavette/mtt-distillation: distill.py)
datm   as mtt, in a folder Normal, with lr_best.pt (the learned rate, a scalar); labels are logits, of which the loss
       takes the softmax                                  (NUS-HPC-AI-Lab/DATM: distill/DATM.py, distill/evaluation.py)
idc    data.pt: [images, labels], pixels in [0, 1] (a step of the optimiser beyond it at most), labels are indices, several
       pictures in one by the factor, which args.txt beside it says
                                                          (snu-mllab/Efficient-Dataset-Condensation: condense.py; 086273c)
ncfm   data_*.pt: as idc; the factor stands in the authors' configuration (2 on CIFAR-10 at 10 images per class)
                                                          (gszfwsb/NCFM: utils/ddp.py, config/ipc10/cifar10.yaml)
tensors  a mapping, a pair or one tensor with any of the names in `foreign_content`

In brackets are the authors' repositories and the files, with the commit where one is given, in which the forms were read.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdd.artifacts.atomic_files import check_file
from wmdd.base.errors import WmddError
from wmdd.export.foreign_content import Content, check_number, chosen, content_of

if TYPE_CHECKING:
    from torch import Tensor

_UNIT = (-0.5, 1.5)  # that pixels of idc and ncfm lie in, and normalised ones of whole sets never do
_SHAPE = {
    "dc": "a mapping whose data is [[images, labels], ...]",
    "idc": "[images, labels], pixels in [0, 1]",
    "tensors": "images and labels",
}
_NO_LABELS = "{path} has no labels: a file {labels} beside it is missing; put it there"
_PART = re.compile(r"^images(_zca)?_?(.*)$")


def read_tensors(path: Path, layout: str, most: int, experiment: int) -> Content:
    """Read a set from a file of torch, or a folder with files of torch.

    Args:
        path: of the file or folder.
        layout: one of those above, or "auto".
        most: images that are expected at most; 0 is no limit.
        experiment: of a file of DC or DM with several, from 0.

    Raises:
        WmddError: it is none of them, lacks labels, needs code, or is not of the layout.
    """
    if path.is_dir():
        path = _file_in(path)
    if layout in ("mtt", "datm") or (layout == "auto" and _labels_beside(path)):
        return _read_mtt(path, most)
    content = _load(path)
    wanted = {"auto": None, "ncfm": "idc"}.get(layout, layout)
    take = next((take for name, fits, take in _FORMS if wanted in (None, name) and fits(content)), None)
    if take is None:
        form = "" if wanted is None else f"is not of the layout {layout} ({_SHAPE[wanted]}): it "
        raise WmddError(
            f"{path} {form}holds {_summary(content)}; set layout: auto, or save {{'images': ..., 'labels': ...}}"
        )
    found = take(path, content, experiment)
    found.layout = layout if layout == "ncfm" else found.layout
    check_number(path, math.prod(found.images.shape[:-3]), most)
    return found


def _load(path: Path) -> Any:
    from wmdd.artifacts.torch_files import unpickled

    alone = "its tensors alone: torch.save({'images': images, 'labels': labels}, 'set.pt')"
    return unpickled(path, "distilled set", "name a file of images and labels, or its folder", alone)


def array_of(tensor: "Tensor", path: Path) -> np.ndarray:
    """Return a tensor's numbers; those of half precision as float32, which holds them all.

    Raises:
        WmddError: it is sparse, quantised, complex, or has no numbers.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        raise WmddError(
            f"{path} has a tensor that is no plain array ({tensor.layout}, {tensor.dtype}); save plain tensors"
        )
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).contiguous().numpy()


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "untyped_storage")


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) in (2, 3) and all(map(_is_tensor, value)) and value[0].ndim == 4
    )


def _is_dc(content: Any) -> bool:
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list | tuple) and bool(data) and all(map(_is_pair, data))


def _is_idc(content: Any) -> bool:
    if not _is_pair(content) or not content[0].is_floating_point() or not content[0].numel():
        return False
    return bool(content[0].min() >= _UNIT[0]) and bool(content[0].max() <= _UNIT[1])


def _from_dc(path: Path, content: Any, experiment: int) -> Content:
    data = content["data"]
    if not 0 <= experiment < len(data):
        raise WmddError(f"{path} has {len(data)} experiments; give one from 0 to {len(data) - 1}")
    notes = [f"The file has {len(data)} experiments; number {experiment} was taken."] if len(data) > 1 else []
    images, labels = data[experiment][:2]
    return Content(
        "dc", [path], array_of(images, path), array_of(labels, path), space="normalised", notes=notes,
    )  # fmt: skip


def _from_idc(path: Path, content: Any, experiment: int) -> Content:
    images, labels = content[:2]
    found = Content("idc", [path], array_of(images, path), array_of(labels, path), space="unit")
    options = path.parent / "args.txt"
    if options.is_file() and options.stat().st_size < 2**20:
        try:
            known = json.loads(options.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            known = None
        if isinstance(known, dict) and isinstance(known.get("factor"), int) and known["factor"] > 0:
            found.factor = known["factor"]
            found.files.append(options)
            found.notes.append(f"{options.name} says that there are {found.factor} x {found.factor} pictures in one.")
            if found.factor > 1 and known.get("decode_type", "single") != "single":
                raise WmddError(
                    f"{path} is of IDC's formation {known['decode_type']!r}, which is not undone; un-tile it with its own code"
                )
    if found.factor is None:
        found.notes.append("IDC and NCFM may store several pictures in one; the file does not say how many; set tiles.")
    return found


def _from_pair(path: Path, content: Any, experiment: int) -> Content:
    rate = float(content[2]) if len(content) == 3 and content[2].numel() == 1 else None
    return Content("tensors", [path], array_of(content[0], path), array_of(content[1], path), rate=rate)


def _from_mapping(path: Path, content: Mapping[str, Any], experiment: int) -> Content:
    tensors = {str(name): value for name, value in content.items() if _is_tensor(value)}
    scalars = {str(name): value for name, value in content.items() if isinstance(value, float | int)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()} | dict.fromkeys(scalars, ())
    roles = chosen(path, shapes)
    parts = {role: array_of(tensors[name], path) for role, name in roles.items() if name in tensors}
    if roles.get("rate") in scalars:
        parts["rate"] = np.array(scalars[roles["rate"]])
    return content_of(path, "tensors", parts, roles, shapes)


def _from_tensor(path: Path, content: Any, experiment: int) -> Content:
    if content.ndim == 4 and _PART.match(path.stem):
        raise WmddError(_NO_LABELS.format(path=path, labels=_sibling(path, "labels").name))
    return Content("tensors", [path], array_of(content, path), None)


_FORMS: tuple[tuple[str, Callable[[Any], bool], Callable[[Path, Any, int], Content]], ...] = (
    ("dc", _is_dc, _from_dc),
    ("idc", _is_idc, _from_idc),
    ("tensors", _is_pair, _from_pair),
    ("tensors", lambda content: isinstance(content, dict), _from_mapping),
    ("tensors", _is_tensor, _from_tensor),
)


# ---- MTT and its kin: a file for each tensor


def _sibling(images: Path, part: str) -> Path:
    """Return the file of `part` (labels, lr) that belongs to one of images: images_zca_500.pt has labels_500.pt."""
    match = _PART.match(images.stem)
    return images.with_name(f"{part}_{match[2]}{images.suffix}" if match and match[2] else f"{part}{images.suffix}")


def _labels_beside(path: Path) -> bool:
    return _PART.match(path.stem) is not None and _sibling(path, "labels").is_file()


def _file_in(folder: Path) -> Path:
    """Return the file of a folder that holds the images: the best of MTT and DATM, data.pt of IDC, or the only one."""
    for name in ("images_best.pt", "Normal/images_best.pt", "data.pt"):
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.glob("*.pt") if not path.name.startswith("."))
    images = [path for path in files if _labels_beside(path)] or files
    if len(images) == 1:
        return images[0]
    names = ", ".join(path.name for path in images[:4])
    raise WmddError(f"{folder} has several sets ({names}) and no images_best.pt; name the file of images itself")


def _read_mtt(path: Path, most: int) -> Content:
    labels, rate = _sibling(path, "labels"), _sibling(path, "lr")
    if not _PART.match(path.stem) or not labels.is_file():
        raise WmddError(_NO_LABELS.format(path=path, labels=labels.name))
    check_file(path, "name the file of images or its folder")
    parts = {}
    for name, file in {"images": path, "labels": labels, **({"rate": rate} if rate.is_file() else {})}.items():
        value = _load(file)
        if not _is_tensor(value) and not (name == "rate" and isinstance(value, float)):
            raise WmddError(
                f"{file} holds {_summary(value)}, not a tensor of {name}; set layout: auto, or name another file"
            )
        parts[name] = value
    check_number(path, len(parts["images"]), most)
    found = Content("mtt", [path, labels], array_of(parts["images"], path), array_of(parts["labels"], labels))
    if found.labels is not None and found.labels.ndim == 2:
        found.layout = "datm"
    if "rate" in parts and (isinstance(parts["rate"], float) or parts["rate"].numel() == 1):
        found.rate, found.files = float(parts["rate"]), [*found.files, rate]
    if path.stem.startswith("images_zca"):
        found.space = "unit"
        found.notes.append(
            "The file's name says that its authors undid the whitening (images_zca); pixels are in [0, 1]."
        )
    return found


def _summary(content: Any) -> str:
    """Return what an object is, in a few words."""
    if _is_tensor(content):
        return f"one tensor {list(content.shape)}"
    if isinstance(content, dict):
        return f"a mapping with {', '.join(map(str, [*content][:5])) or 'nothing'}"
    if isinstance(content, list | tuple):
        kinds = ", ".join(f"tensor {list(v.shape)}" if _is_tensor(v) else type(v).__name__ for v in content[:3])
        return f"a {type(content).__name__} of {len(content)} ({kinds})"
    return f"a {type(content).__name__}"
