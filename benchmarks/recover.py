"""One recover iteration (forward, losses, backward to the pixels): ours against the published code's way, in one run.

The reference computes the statistics as the released code does: in a hook on each BatchNorm layer, for each class, mean and
variance of a float32 input, and lets autograd keep what it needs. Ours gathers the inputs and takes both moments in one
pass. Same network, same images, same loss (checked first); timings alternate and medians of the pairs are reported.

    python -m benchmarks.recover [--width 16] [--resolution 32] [--images 100] [--repeats 9] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from wmdd.batchnorm import Statistics, inputs_of, layers, running
from wmdd.models import build
from wmdd.recover import Target, loss_terms
from wmdd.settings import NetworkSettings, RecoverSettings


def reference_loss(network: torch.nn.Module, x: Tensor, target: Target, settings: RecoverSettings) -> Tensor:
    """Return the loss of Eq. 5-7 with a hook a layer and a loop over classes."""
    classes, k = target.weights.shape
    terms: list[Tensor] = []

    def hook(name: str):
        def statistics_of(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for c in range(classes):
                mine = inputs[0][c * k : (c + 1) * k].float()
                mean = mine.mean((0, 2, 3))
                variance = mine.permute(1, 0, 2, 3).reshape(mine.shape[1], -1).var(1, unbiased=False)
                terms.append((mean - target.statistics.mean[name][c]).norm())
                terms.append((variance - target.statistics.variance[name][c]).norm())

        return statistics_of

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers(network).items()]
    features = network.embed(x)
    for handle in handles:
        handle.remove()
    return (features.float() - target.atoms.flatten(0, 1)).square().sum() + settings.regularisation * torch.stack(
        terms
    ).sum()


def our_loss(network: torch.nn.Module, x: Tensor, target: Target, settings: RecoverSettings) -> Tensor:
    """Return the same loss as the recover stage computes it."""
    with inputs_of(network) as seen:
        return torch.stack(list(loss_terms(network, x, target, settings, seen).values())).sum()


def processor() -> str:
    """Return the name of the CPU."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(step, synchronise) -> float:
    """Return the wall seconds of one step."""
    synchronise()
    start = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - start


def main() -> None:
    """Check that both ways agree, time them in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in ("width", 16), ("resolution", 32), ("images", 100), ("repeats", 9), ("threads", 1):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    classes, k = 10, options.images // 10
    generator = torch.Generator().manual_seed(0)
    network = build(NetworkSettings(width=options.width), classes, options.resolution, generator).eval().to(device)
    network = network.requires_grad_(False)
    one = running(network)
    rows = Statistics(
        {n: v.expand(classes, -1) for n, v in one.mean.items()},
        {n: v.expand(classes, -1) for n, v in one.variance.items()},
    )
    atoms = torch.randn(classes, k, network.head.in_features, generator=generator)
    target = Target(torch.arange(classes), atoms, torch.full((classes, k), 1 / k), rows).to(device)
    settings = RecoverSettings()
    pixels = torch.randn(classes * k, 3, options.resolution, options.resolution, generator=generator).to(device)
    plain = pixels.clone().requires_grad_()
    last = pixels.clone(memory_format=torch.channels_last).requires_grad_()
    fast = network if device.type == "cpu" else network.to(memory_format=torch.channels_last)
    a, b = reference_loss(network, plain, target, settings), our_loss(network, plain, target, settings)
    assert abs((a - b).item()) <= 1e-4 * abs(a.item()), (a.item(), b.item())

    def ours_in(dtype: torch.dtype, x: Tensor):
        def step() -> None:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = our_loss(fast, x, target, settings)
            loss.backward()

        return step

    ways = {
        "reference, fp32": lambda: reference_loss(network, plain, target, settings).backward(),
        "wmdd, fp32": ours_in(torch.float32, plain),
        "wmdd, bf16": ours_in(torch.bfloat16, last),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        for name, step in ways.items():
            spent = seconds(step, synchronise)
            if repeat:  # the first round warms up
                times[name].append(spent)
    base = times["reference, fp32"]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {options.threads} thread(s)"
    result = {"machine": machine, "torch": torch.__version__, "options": vars(options), "rows": {}}
    for name, values in times.items():
        ratio = statistics.median(r / v for r, v in zip(base, values, strict=True))
        result["rows"][name] = {
            "ms": round(1e3 * statistics.median(values), 2),
            "times faster": round(ratio, 2),
            "n": len(values),
        }
        print(f"{name:16} {result['rows'][name]}")
    output = Path(__file__).parent / "results" / f"recover-{device.type}-w{options.width}-{options.resolution}px.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"kept in {output}")


if __name__ == "__main__":
    main()
