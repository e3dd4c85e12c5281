"""What a caller must know about a restorer besides its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestorerSpec:
    """Metadata of one restorer.

    Attributes:
        name: the name users type.
        scale: output side / input side; 1 for face restorers.
        multiple_of: both sides of the input must be a multiple of this many pixels.
        minimum: smallest side in pixels that the network was trained for.
        licence: SPDX id or short name of the licence of the weights.
        source: where the weights come from.
        sha256: hash of the weights file, or "" when it is computed on first load.
        commercial: False when the licence forbids commercial use; the report then says so.
        half: False when the network is not known to be safe in float16; bfloat16 is safe for all.
        trains: the network's top-level modules that its authors train; empty when all of them do.
        decoder: the network's modules between its deepest features and its image; empty when it is not known.
    """

    name: str
    scale: int
    multiple_of: int
    minimum: int
    licence: str
    source: str
    sha256: str = ""
    commercial: bool = True
    half: bool = True
    trains: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()
