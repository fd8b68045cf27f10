"""Muon against torch's own, the singular values that it makes, and what is taken up again."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from wmdd.base.rng import generator
from wmdd.networks.engine import plain, resume, set_rate
from wmdd.networks.optimizers import COEFFICIENTS, OPTIMIZERS, ROUNDS, orthogonalised


def normal(*shape: int, key: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("optimizers test", key, *shape))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 7)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    """Each singular value goes alone through the polynomial a s + b s^3 + c s^5, five times."""
    matrix = normal(*shape).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s, (a, b, c) = s / s.norm(), COEFFICIENTS
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalised(matrix), u @ s.diag() @ v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_matrix_follows_torchs_muon(nesterov):
    """Up to bfloat16, in which torch's orthogonalises."""
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    start = normal(8, 12)
    mine, other = (nn.Parameter(start.clone()) for _ in range(2))
    one = OPTIMIZERS["muon"]([mine], **options)
    two = torch.optim.Muon([other], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(5):
        mine.grad = other.grad = normal(8, 12, key=f"{step}")
        one.step()
        two.step()
    torch.testing.assert_close(mine, other, rtol=0, atol=0.02 * float((other.detach() - start).abs().max()))


def test_filters_are_matrices_and_vectors_are_adamws():
    filters, matrix, bias = (nn.Parameter(normal(*shape)) for shape in ((4, 3, 3, 3), (4, 27), (4,)))
    matrix.data = filters.data.flatten(1).clone()
    bias_of_adamw = nn.Parameter(bias.detach().clone())
    both = plain().optimizer("muon", [filters, bias], 0.01, weight_decay=0.1, momentum=0.9, nesterov=True)
    alone = plain().optimizer("muon", [matrix], 0.01, weight_decay=0.1, momentum=0.9, nesterov=True)
    adamw = plain().optimizer("adamw", [bias_of_adamw], 0.01, weight_decay=0.1)
    for step in range(3):
        filters.grad, bias.grad = normal(4, 3, 3, 3, key=f"f{step}"), normal(4, key=f"b{step}")
        matrix.grad, bias_of_adamw.grad = filters.grad.flatten(1), bias.grad
        for optimizer in (both, alone, adamw):
            set_rate(optimizer, 0.01 / (step + 1))
            optimizer.step()
    assert torch.equal(filters.flatten(1), matrix)
    assert torch.equal(bias, bias_of_adamw)


def test_muon_goes_on_to_the_same_bits():
    def steps(parameters, optimizer, numbers):
        for number in numbers:
            for parameter in parameters:
                parameter.grad = normal(*parameter.shape, key=f"{number}")
            optimizer.step()

    def fresh(values):
        parameters = [nn.Parameter(value.clone()) for value in values]
        return parameters, plain().optimizer("muon", parameters, 0.1, weight_decay=0.1, momentum=0.95, nesterov=True)

    whole, first = (fresh([normal(4, 3, 3, 3), normal(4)]) for _ in range(2))
    steps(*whole, range(6))
    steps(*first, range(3))
    again = fresh([parameter.detach() for parameter in first[0]])
    resume(again[1], first[1].state_dict())
    steps(*again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole[0], again[0], strict=True))


def test_no_optimiser_imports_torchs_compiler():
    code = """
import sys, torch
from wmdd.networks.engine import plain
for kind in ("sgd", "adam", "adamw", "muon"):
    options = {"momentum": 0.9, "nesterov": True} if kind in ("sgd", "muon") else {}
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = plain().optimizer(kind, parameters, 0.1, weight_decay=0.1, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
print([name for name in sys.modules if name in ("torch._dynamo", "torch._inductor")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
