"""Settings of the barycenter solvers."""

from typing import Literal

from pydantic import Field

from wmdd.base.errors import WmddError
from wmdd.settings.base import Count, NonNegative, Settings


class TransportSettings(Settings):
    """A solver of free-support W2 barycenters with K atoms."""

    weights: Literal["uniform", "free"] = Field(
        "uniform", description="1/K each (what the published code runs), or optimised with the atoms (the paper's text)"
    )
    solver: Literal["quantize", "stream", "cuturi-doucet", "released", "d4m"] = Field(
        "quantize",
        description="quantize: ours; stream: a sample and passes of Lloyd for points too large for memory, free weights only; "
        "cuturi-doucet: the alternation that WMDD's paper prescribes; released: what its published code computes; "
        "d4m: mini-batch k-means in one pass, as D4M's code runs it",
    )
    expand: Count = Field(10, description="d4m: points of a mini-batch for each atom (D4M's km_expand)")
    max_iterations: Count = Field(
        300, description="steps, at most (stream: passes after the sample, never more than 10; released: has its own)"
    )
    tolerance: NonNegative = Field(1e-6, description="stop when the cost falls by less than this share of itself")
    restarts: Count = Field(1, description="independent starts; the cheapest result is kept")
    exchanges: int = Field(
        10, ge=0, description="rounds of local search by exchanges of cells, at most (quantize with free weights)"
    )
    compare_restarts: int = Field(
        0,
        ge=0,
        description="further starts, 20 say, whose best cost is reported beside that of the atoms; changes no atoms",
    )

    def check(self, where: str = "") -> None:
        """Refuse what no solver does; the message begins with `where`.

        Raises:
            WmddError: stream with uniform weights.
        """
        if self.solver == "stream" and self.weights == "uniform":
            raise WmddError(f"{where}the solver stream has free weights only; set weights: free, or solver: quantize")


class BarycenterSettings(TransportSettings):
    """Free-support W2 barycenter of one class's features with K atoms (WMDD, Section 3; Cuturi and Doucet 2014)."""

    confident: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a class's images that count, those that the teacher is surest of; 1: all (WMDD). Heeded by "
        "select, too, except for patches",
    )
