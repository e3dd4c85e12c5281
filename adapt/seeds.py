"""Seeds as a function of what is drawn, so that batch size, worker count and order never change a result."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed from any sequence of strings and integers, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator where a network trains, seeded by `generator`, which it is itself on a CPU."""
    if device.type != "cuda":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
