"""Random numbers keyed by what they are for, so that no draw depends on batch, block or machine."""

from hashlib import blake2b

import torch


def seed_of(*key: str | int) -> int:
    """Return a 63-bit seed that depends on every part of `key`, e.g. `("recover", "noise", seed, label)`."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator for `key`; draws are made on the CPU and moved, so that CPU and GPU see the same ones."""
    return torch.Generator().manual_seed(seed_of(*key))
