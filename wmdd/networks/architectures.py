"""Names and depths of the networks of this package; without torch, so that the workflow can use them."""

RESNETS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {  # name -> (bottleneck, blocks a stage), He et al. 2016
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
}
CONVNETS = {f"convnet{depth}": depth for depth in range(1, 7)}  # name -> blocks


def stem_of(resolution: int) -> str:
    """Return the stem of a ResNet that leaves a last feature map of 4 to 7 pixels."""
    return "cifar" if resolution <= 48 else "tiny" if resolution <= 112 else "imagenet"
