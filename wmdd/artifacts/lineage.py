"""What artifacts descend from: the data and the networks before them, by digest. Artifacts of one job must agree on it."""

from collections.abc import Mapping
from typing import Any

from wmdd.artifacts.hdf5 import Meta
from wmdd.base.errors import WmddError

ROOTS = ("data", "teacher", "autoencoder", "diffusion")  # stages of which all files of a job have the same
# Labels and distances may be another teacher's than the one by which the images were made.
ANY_TEACHER = ("relabel", "student", "distance")


def roots_of(stage: str, inputs: Mapping[str, Meta]) -> dict[str, str]:
    """Return the digests of the data and the networks that the inputs of a job descend from.

    Args:
        stage: of the job.
        inputs: meta data of each input by name; `data`, `teacher` and so on name what they are.

    Raises:
        WmddError: two of them descend from different ones.
    """
    roots: dict[str, tuple[str, Meta]] = {}
    for name, meta in inputs.items():
        for root, digest in _own_roots(name, meta).items():
            first_digest, first = roots.setdefault(root, (digest, meta))
            if digest != first_digest and not (root == "teacher" and stage in ANY_TEACHER):
                other = "other data" if root == "data" else f"another {root}"
                raise WmddError(f"{meta.path} is of {other} than {first.path}; run the stages that make them again")
    return {root: digest for root, (digest, _) in roots.items()}


def _own_roots(name: str, meta: Meta) -> dict[str, str]:
    """Return the digests of the roots of an input, itself included. One of an earlier version says its inputs alone."""
    inputs: dict[str, Any] = meta.get("inputs", {})
    roots = {root: inputs[root] for root in ROOTS if root in inputs} | dict(meta.get("roots", {}))
    return roots | ({name: meta["digest"]} if name in ROOTS else {})
