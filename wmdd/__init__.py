"""wmdd: dataset distillation with Wasserstein barycenters, as a reproducible pipeline."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmdd.export.evaluation import evaluate as evaluate
    from wmdd.export.loading import load as load

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import `load` and `evaluate` when they are asked for, so that `import wmdd` stays light."""
    if name == "load":
        from wmdd.export.loading import load

        return load
    if name == "evaluate":
        from wmdd.export.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
