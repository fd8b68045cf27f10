"""Settings of the data stage."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from wmdd.base.errors import WmddError
from wmdd.settings import catalogue
from wmdd.settings.base import Count, Fraction, Positive, Settings


def _known(source: str) -> str:
    try:
        catalogue.known(source)
    except WmddError as error:
        raise ValueError(str(error)) from None
    return source


Source = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(catalogue.table()), "type": "string"})]


class DataSettings(Settings):
    """Where a dataset comes from and how it is stored in `data/{dataset}.h5`."""

    source: Source = Field(
        "imagefolder",
        description=f"imagefolder: train/ and val/ with a folder a class; or one of wmdd/settings/datasets.yaml: "
        f"{', '.join(name for name in catalogue.table() if name != 'imagefolder')}",
    )
    classes: Count = Field(
        10, description="how many; the DAG is built from this number, and the data are checked against it"
    )
    root: str = Field(
        "",
        description="folder of the pictures, or the one above it that holds the download; empty: the table's "
        "(imagefolder has none)",
    )
    download: bool = Field(True, description="fetch what the table has an address for (checksummed) when root lacks it")
    resolution: int = Field(0, ge=0, description="side in pixels; 0: that of the pictures, which must then all agree")
    storage: Literal["auto", "pixels", "encoded"] = Field(
        "auto", description="uint8 pixels where the sizes agree, else the files' own bytes"
    )
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="an unreadable picture stops the run or is left out"
    )
    images_per_class: int = Field(0, ge=0, description="keep the first N training images of a class; 0: all")
    train_images: int = Field(
        0, ge=0, description="how many there must be, counted before any is left out; 0: not checked"
    )
    val_images: int = Field(0, ge=0, description="how many there must be; 0: not checked")
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each class's training images that stands in for the validation set, which is then not read: for "
        "choosing settings; 0: none",
    )
    mean: tuple[Fraction, Fraction, Fraction] | None = Field(
        None,
        description="of red, green and blue in [0, 1], to normalise by; unless set, measured on the training images",
    )
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="as mean")

    @property
    def side(self) -> int:
        """The side of the images in pixels, where it is stated here or follows from the source; else 0."""
        return self.resolution or (32 if catalogue.known(self.source).layout in ("cifar", "digits") else 0)
