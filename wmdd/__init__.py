"""wmdd: dataset distillation with Wasserstein barycenters, as a reproducible pipeline."""

__version__ = "0.1.0"
