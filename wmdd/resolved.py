"""The resolved settings of an experiment, as `python -m wmdd config` prints them."""

from typing import Any

from wmdd.config import Experiment
from wmdd.errors import WmddError
from wmdd.settings import STAGES


def resolved(experiment: Experiment, stage: str | None = None) -> dict[str, Any]:
    """Return the settings of each stage of each dataset, teacher, method and protocol of the matrix.

    Raises:
        WmddError: there is no such stage.
    """
    if stage not in (None, *STAGES):
        raise WmddError(f"unknown stage {stage!r}; one of {', '.join(STAGES)}")
    content: dict[str, Any] = {"experiment": experiment.file.experiment, "engine": experiment.file.engine.model_dump()}

    def put(name: str, where: str, **of: str) -> None:
        if stage in (None, name):
            settings = experiment.resolve(name, **of).model_dump(mode="json")
            content.setdefault(where, {})[" ".join(of.values())] = settings

    for r in experiment.runs():
        put("data", "data", dataset=r.dataset)
        put("teacher", "teacher", dataset=r.dataset, teacher=r.teacher)
        put("features", "features", dataset=r.dataset)
        family = experiment.family(r.method)
        own = {"recover": ("barycenter", "recover"), "select": ("select", "barycenter"), "match": ("match",)}
        for name in own.get(family, ()):
            put(name, name, dataset=r.dataset, method=r.method)
        if family == "match" and experiment.trajectories(r.dataset, r.method):
            put("expert", "expert", dataset=r.dataset, expert=experiment.expert(r.method))
        if family == "latent":
            generator = experiment.generator(r.method)
            encoder = experiment.encoder(generator, r.dataset)
            put("quantize", "quantize", dataset=r.dataset, method=r.method)
            put("decode", "decode", dataset=r.dataset, generator=generator, method=r.method)
            for of in dict.fromkeys((generator, encoder)):
                put("generator", "generator", dataset=r.dataset, generator=of)
            kinds = {
                of: experiment.resolve("generator", dataset=r.dataset, generator=of).kind for of in (generator, encoder)
            }
            for name in ("encode", "decay", *(["autoencoder"] if kinds[encoder] == "vae" else [])):
                put(name, name, dataset=r.dataset, generator=encoder)
            if kinds[generator] == "latent-diffusion":
                put("diffusion", "diffusion", dataset=r.dataset, generator=generator)
        put("relabel", "relabel", dataset=r.dataset, method=r.method, protocol=r.protocol)
        put("student", "student", dataset=r.dataset, method=r.method, protocol=r.protocol, student=r.student)
    content["runs"] = len(list(experiment.runs()))
    return content
