r"""The optimisers of networks: torch's, and Muon, none of which imports torch's compiler.

Muon (Jordan et al. 2024) for a weight W [m, n] with gradient G; filters are matrices [outputs, inputs x height x width]:

    B <- mu B + (1 - mu) G          U = mu B + (1 - mu) G, or B without Nesterov
    O = Newton-Schulz(U), five times X <- a X + b X X^T X + c (X X^T)^2 X from X = U / |U|
    W <- (1 - lr wd) W - 0.2 sqrt(max(m, n)) lr O

(a, b, c) = (3.4445, -4.775, 2.0315) bring every singular value near 1. The factor (Liu et al. 2025, "Muon is Scalable for LLM
Training"; torch's `match_rms_adamw`) gives the steps the size of AdamW's, so that the two share a rate. torch's own Muon takes
no filters, and computes O in bfloat16; here it is computed in the type of the weight.
"""

import math
from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS, ROUNDS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7


def _eager(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimiser that never imports torch's compiler (1.2 s, 150 MB); what is compiled here is never its step.

    torch wraps some methods to keep the compiler out of them, and `step` to take it without gradients.
    """
    names = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    methods = {name: unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix U S V^T [m, n], by Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPSILON)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon over weights of two dimensions or more."""

    def __init__(
        self, params: Sequence[Tensor], lr: float | Tensor, weight_decay: float, momentum: float, nesterov: bool
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; the rate is never read on the host, so that it can be captured."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in (w for w in group["params"] if w.grad is not None):
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(weight.grad, 1 - momentum)
                update = weight.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                matrix = orthogonalised(update.flatten(1))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(matrix.view(weight.shape) * (0.2 * math.sqrt(max(matrix.shape)) * lr))


class Together:
    """Several optimisers of the parts of one network, used as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Take a step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


OPTIMIZERS = {
    kind.__name__.lower(): _eager(kind) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, Muon)
}
