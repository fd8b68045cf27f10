"""Optimal transport: barycenters of one or several measures, with free or uniform weights."""

from wmdd.transport.cuturi_doucet import cuturi_doucet
from wmdd.transport.measure import Barycenter
from wmdd.transport.quantization import quantize, quantize_all
from wmdd.transport.released import released
from wmdd.transport.several import barycenter
from wmdd.transport.stream import stream

__all__ = ["Barycenter", "barycenter", "cuturi_doucet", "quantize", "quantize_all", "released", "stream"]
