"""Settings of the stage images: a distilled set that others made."""

import os
from typing import Literal

from pydantic import Field

from wmdd.settings.base import Settings

Layout = Literal[
    "auto", "imagefolder", "dc", "mtt", "datm", "idc", "ncfm", "tensors", "arrays", "hdf5", "parquet", "webdataset", "wmdd"
]  # fmt: skip


class MeaningSettings(Settings):
    """How the files, pixels and labels of a distilled set are meant."""

    layout: Layout = Field("auto", description="of the files (docs/use/imported.md); auto: told by what they are")
    space: Literal["auto", "bytes", "unit", "normalised", "zca"] = Field(
        "auto",
        description="of the pixels. bytes: 0 to 255; unit: black 0, white 1; normalised: by mean and standard deviation of "
        "the data; zca: whitened, as by MTT's code; auto: told by the layout, and an error where that does not tell",
    )
    tiles: int = Field(
        0,
        ge=0,
        description="m: an image holds m x m images, each enlarged m times (IDC, NCFM: their factor); 0: as files say, or 1",
    )
    resize: bool = Field(False, description="enlarge or reduce images to the side of the data's")
    classes: str = Field(
        "",
        description="text file: on each line a class of the data, in the order of the set's classes; or the set's name of a "
        "class, a tab and the data's",
    )
    labels: Literal["theirs", "ours"] = Field(
        "theirs",
        description="theirs: keep the labels and the learning rate that the method learned, if it did; ours: drop them",
    )
    label_kind: Literal["auto", "index", "one-hot", "probabilities", "logits"] = Field(
        "auto", description="of their labels; auto: told by the numbers, and an error where these do not tell"
    )
    order: Literal["checked", "trusted"] = Field(
        "checked", description="checked: the teacher's confidence tells whether classes are permuted"
    )


class ImportSettings(MeaningSettings):
    """A distilled set that others made: where it is, and how its files, pixels and labels are meant."""

    path: str = Field(
        "",
        description="of the file or folder; {ipc} and {seed} in it stand for the images per class and the seed of a run",
    )

    def source(self, ipc: int, seed: int) -> str:
        """Return the path of the set of a run."""
        path = self.path.replace("{ipc}", str(ipc)).replace("{seed}", str(seed))
        return os.path.expanduser(path)
