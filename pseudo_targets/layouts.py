"""Whether a published file is what its name says, by names and shapes alone: for files whose hash nobody published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pseudo_targets.checkpoints import load_strictly, read_layout
from pseudo_targets.diffbir import cleaners, networks
from pseudo_targets.diffbir.convert import (
    convert_autoencoder,
    convert_control,
    convert_text_tower,
    convert_unet,
    split_checkpoint,
)
from pseudo_targets.downloads import (
    DIFFBIR_V1_FACE,
    DIFFBIR_V1_FACE_FULL,
    DIFFBIR_V1_GENERAL,
    DIFFBIR_V1_GENERAL_FULL,
    DIFFBIR_V2_CONTROL,
    DIFFBIR_V21_CONTROL,
    FFHQ512,
    SD21_BASE,
    SD21_MERGES,
    SD21_VOCABULARY,
    SD21_ZSNR,
    WeightsError,
)
from pseudo_targets.iddpm import IddpmShape, IddpmUNet

Layout = Mapping[str, Tensor]
TEXT_UNCHECKED = "names and shapes fit; those of the text tower are not checked without transformers"
FITS = "names and shapes fit"


def check_layout(name: str, path: Path, suffix: str | None = None) -> str:
    """Looks at the file `path` that should be the row `name` of `downloads`; nothing stored in it is run.

    Args:
        suffix: what the file is where its name does not say it, as in `read_checkpoint`.

    Returns:
        What was found, or why it was not looked for; "" where the layout of `name` is not known here.

    Raises:
        WeightsError: the file cannot be read or is another; what is missing, left over or misshapen is named.
    """
    if name in _TEXTS:
        _TEXTS[name](path)
        return "is the tokenizer's"
    layout = read_layout(path, suffix)
    if name in _DIFFBIR:
        return _DIFFBIR[name](layout, path)
    if name == FFHQ512.name:
        with torch.device("meta"):
            unet = IddpmUNet(IddpmShape())
        load_strictly(unet, dict(layout), path)
        return FITS
    return _check_cleaner(name, layout, path)


def _check_cleaner(name: str, layout: Layout, path: Path) -> str:
    build = next((build for weights, (build, *_) in cleaners.NETWORKS.items() if weights.name == name), None)
    if build is None:
        return ""
    try:
        net = build()
    except WeightsError as error:  # a library that is not installed is no fault of the file
        return f"names and shapes are not checked: {error}"
    load_strictly(net, dict(layout), path)
    return FITS


def _check_base(layout: Layout, path: Path) -> str:
    parts, sizes = split_checkpoint(layout, str(path)), networks.PUBLISHED
    convert_unet(parts.unet, sizes, f"{path}, UNet")
    convert_autoencoder(parts.autoencoder, sizes, f"{path}, autoencoder")
    if find_spec("transformers") is None:
        return TEXT_UNCHECKED
    convert_text_tower(parts.text, sizes, f"{path}, text tower")
    return FITS


def _check_control(layout: Layout, path: Path) -> str:
    convert_control(layout, networks.PUBLISHED, f"{path}, IRControlNet")
    return FITS


def _check_whole(layout: Layout, path: Path) -> str:
    _check_control(split_checkpoint(layout, str(path)).control, path)
    return _check_base(layout, path)


def _check_vocabulary(path: Path) -> None:
    """A table of words that ends with the end token of the text tower."""
    end = networks.PUBLISHED.clip["text_cfg"]["vocab_size"] - 1
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: is no vocabulary ({error})") from error
    found = table.get("<|endoftext|>") if isinstance(table, dict) else None
    if found != end:
        raise WeightsError(f"{path}: not the vocabulary of Stable Diffusion 2.1: end token {found}, expected {end}")


def _check_merges(path: Path) -> None:
    """A line with the version, then two parts of words on each."""
    try:
        first, *rest = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: is no list of merges ({error})") from error
    wrong = [line for line in rest if line and len(line.split(" ")) != 2]
    if not first.startswith("#version") or wrong:
        raise WeightsError(f"{path}: not a tokenizer's merges: got {(wrong or [first])[0][:40]!r}")


_DIFFBIR: dict[str, Callable[[Layout, Path], str]] = {
    SD21_BASE.name: _check_base,
    SD21_ZSNR.name: _check_base,
    DIFFBIR_V1_FACE_FULL.name: _check_whole,
    DIFFBIR_V1_GENERAL_FULL.name: _check_whole,
    DIFFBIR_V1_FACE.name: _check_control,
    DIFFBIR_V1_GENERAL.name: _check_control,
    DIFFBIR_V2_CONTROL.name: _check_control,
    DIFFBIR_V21_CONTROL.name: _check_control,
}
_TEXTS: dict[str, Callable[[Path], None]] = {
    SD21_VOCABULARY.name: _check_vocabulary,
    SD21_MERGES.name: _check_merges,
}
