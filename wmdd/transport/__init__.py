"""Optimal transport: barycenters of one or several measures, with free or uniform weights; intrinsic dimension and decay.

Usable on its own. Imports `base` alone.
"""

from wmdd.transport.cuturi_doucet import cuturi_doucet
from wmdd.transport.dimension import decay, intrinsic_dimension
from wmdd.transport.measure import Barycenter, transport_cost
from wmdd.transport.minibatch import minibatch
from wmdd.transport.quantization import quantize, quantize_all
from wmdd.transport.released import released
from wmdd.transport.several import barycenter
from wmdd.transport.stream import stream

__all__ = [
    "Barycenter",
    "barycenter",
    "cuturi_doucet",
    "decay",
    "intrinsic_dimension",
    "minibatch",
    "quantize",
    "quantize_all",
    "released",
    "stream",
    "transport_cost",
]
