"""Optimal transport: the barycenter of one class's features (optimal quantization), with free or uniform weights."""

from wmdd.transport.quantize import Barycenter, solve

__all__ = ["Barycenter", "solve"]
