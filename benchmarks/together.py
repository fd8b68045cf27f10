"""Several students at once: one after the other, side by side in threads (ours), or stacked into one network by `torch.vmap`.

Steps of R students of the same architecture on batches of their own: forward, cross-entropy, backward, AdamW. That all three
ways end at the same weights is checked first, in float32. Times take turns; medians of the pairs are reported.

    python -m benchmarks.together [--students 2] [--width 16] [--images 100] [--steps 5] [--repeats 7] [--threads 2]
"""

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import processor, seconds
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings

Way = Callable[[], list[Tensor]]


class Students:
    """Fresh students with batches of their own."""

    def __init__(self, options: argparse.Namespace, dtype: torch.dtype) -> None:
        settings = NetworkSettings(width=options.width)
        draws = [torch.Generator().manual_seed(number) for number in range(options.students)]
        self.networks = [
            build(settings, 10, options.resolution, draw).to(memory_format=torch.channels_last) for draw in draws
        ]
        shape = (options.images, 3, options.resolution, options.resolution)
        self.images = [torch.randn(shape, generator=d).contiguous(memory_format=torch.channels_last) for d in draws]
        self.labels = [torch.randint(10, (options.images,), generator=d) for d in draws]
        self.dtype, self.steps = dtype, options.steps

    def loss(self, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits = network(x)
        return F.cross_entropy(logits.float(), y)

    def train(self, number: int) -> None:
        """Take the steps of one student."""
        network = self.networks[number].train()
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            self.loss(network, self.images[number], self.labels[number]).backward()
            optimizer.step()

    def in_turn(self) -> None:
        """Train one student after the other, each step shared among the threads."""
        for number in range(len(self.networks)):
            self.train(number)

    def side_by_side(self) -> None:
        """Train each student in a thread of its own."""
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(self.train, range(len(self.networks))))

    def stacked(self) -> None:
        """Train all students as one network whose parameters have one dimension more."""
        parameters, buffers = torch.func.stack_module_state(self.networks)
        base, images, labels = self.networks[0].train(), torch.stack(self.images), torch.stack(self.labels)
        optimizer = torch.optim.AdamW(parameters.values(), fused=True)

        def loss(mine: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self.loss(lambda x: torch.func.functional_call(base, (mine, state), (x,)), x, y)

        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            torch.vmap(loss)(parameters, buffers, images, labels).sum().backward()
            optimizer.step()
        with torch.no_grad():
            for number, network in enumerate(self.networks):
                for name, value in network.named_parameters():
                    value.copy_(parameters[name][number])


def weights(networks: list[nn.Module]) -> Tensor:
    """Return all parameters of some networks."""
    return torch.cat([value.detach().flatten() for network in networks for value in network.parameters()])


def main() -> None:
    """Check that the ways agree, time them in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("students", 2), ("width", 16), ("resolution", 32), ("images", 100), ("steps", 5), ("repeats", 7), ("threads", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = {"in turn": Students.in_turn, "side by side": Students.side_by_side, "stacked (vmap)": Students.stacked}
    ends = []
    for way in ways.values():
        students = Students(options, torch.float32)
        way(students)
        ends.append(weights(students.networks))
    for other in ends[1:]:
        assert (other - ends[0]).norm() < 0.02 * ends[0].norm(), "the ways do not agree"
    times: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        for dtype in torch.float32, torch.bfloat16:
            for name, way in ways.items():
                students = Students(options, dtype)
                spent = seconds(lambda way=way, students=students: way(students))
                if repeat:  # the first round warms up
                    key = f"{name}, {str(dtype).removeprefix('torch.')}"
                    times.setdefault(key, []).append(spent / options.steps / options.students)
    base = times["in turn, float32"]
    machine = f"{processor()}, {options.threads} thread(s)"
    rows = {
        name: {
            "ms a step and student": round(1e3 * statistics.median(values), 1),
            "times faster": round(statistics.median(b / v for b, v in zip(base, values, strict=True)), 2),
            "n": len(values),
        }
        for name, values in times.items()
    }
    for name, row in rows.items():
        print(f"{name:26} {row}")
    made = {"machine": machine, "torch": torch.__version__, "options": vars(options), "rows": rows}
    output = Path(__file__).parent / "results" / f"together-cpu-w{options.width}-{options.images}.json"
    output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
