"""The published weights of all packages as one table, and where in the user's cache their files belong."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from adapt.errors import UsageError
from adapt.facexlib_nets import DETECTOR, PARSER, RECOGNITION
from pseudo_targets import downloads as priors
from restorers import downloads as restorers

PICKLED = {".pth", ".pt", ".ckpt"}


class Weights(Protocol):
    """One row of the table; the fields are explained in `restorers.downloads.PublishedWeights`."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def commercial(self) -> bool: ...
    @property
    def mirrors(self) -> tuple[str, ...]: ...
    @property
    def folder(self) -> str: ...


VGG16 = priors.PublishedWeights(
    name="vgg16",
    file="vgg16-397923af.pth",
    purpose="VGG-16 of torchvision, trained on ImageNet, whose activations LPIPS compares",
    licence="BSD-3-Clause",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    size=553_433_881,
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    folder="lpips",
)
LPIPS_HEADS = priors.PublishedWeights(
    name="lpips-vgg-heads",
    file="vgg.pth",
    purpose="what LPIPS 0.1 has learned of how much each channel of VGG-16 matters",
    licence="BSD-2-Clause",
    url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    size=7_289,
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    folder="lpips",
)
LPIPS = (VGG16, LPIPS_HEADS)
"""Fixed networks of this package: a perceptual loss, and a score in benchmarks."""
FACEXLIB = (
    priors.PublishedWeights(
        name="retinaface-resnet50",
        file=DETECTOR,
        purpose="facexlib's face finder, in place of the bundled one",
        licence="MIT",
        url="https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth",
        size=109_497_761,
        sha256="6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        folder="facexlib",
    ),
    priors.PublishedWeights(
        name="parsenet",
        file=PARSER,
        purpose="facexlib's face parser: what `adapt regenerate` puts back of a restored face",
        licence="MIT; trained on CelebAMask-HQ, which is for research only",
        url="https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth",
        size=85_331_193,
        sha256="3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        folder="facexlib",
        commercial=False,
    ),
    priors.PublishedWeights(
        name="arcface-ir-se50",
        file=RECOGNITION,
        purpose="facexlib's face recognition: identity in gate and scores",
        licence="MIT",
        url="https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth",
        size=175_367_323,
        sha256="a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
        folder="facexlib",
    ),
)
"""Networks of the extra `faces`, used where they are here."""
SETS: dict[str, tuple[Weights, ...]] = {**priors.SETS, "lpips-vgg": LPIPS, "facexlib": FACEXLIB}
"""What belongs together under one name."""


def _joined(*rows: Weights) -> tuple[Weights, ...]:
    """Each name once: some files are both a restorer and stage 1 of a prior."""
    return tuple({weights.name: weights for weights in rows}.values())


TABLE = _joined(*priors.PUBLISHED, *priors.DIFFBIR, *priors.CLEANERS, *restorers.PUBLISHED, *LPIPS, *FACEXLIB)
_RESTORERS = {weights.name for weights in restorers.PUBLISHED}
_CLEANERS = {weights.name for weights in priors.CLEANERS} - _RESTORERS


def chosen(names: list[str]) -> list[Weights]:
    """The rows of `TABLE` with these names, each once; the name of a set stands for all its rows.

    Raises:
        UsageError: there is no such name.
    """
    rows: dict[str, Weights] = {}
    for name in names:
        found: list[Weights] = [weights for weights in TABLE if weights.name == name] or [*SETS.get(name, ())]
        if not found:
            known = ", ".join((*(weights.name for weights in TABLE), *SETS))
            raise UsageError(f"weights {name!r}: unknown, expected one of {known}")
        rows |= {weights.name: weights for weights in found}
    return list(rows.values())


def cache_root() -> Path:
    """The folder that the rows' own folders are in."""
    return restorers.cache_folder().parent


def place_of(weights: Weights) -> Path:
    """Where its file belongs, whether it is there or not."""
    return cache_root() / weights.folder / weights.file


def file_names(weights: Weights) -> tuple[str, ...]:
    """Names under which its file is read: as published and, where its loader takes that too, as safetensors."""
    published = Path(weights.file)
    if weights.name in _RESTORERS or weights in FACEXLIB or published.suffix not in PICKLED:
        return (weights.file,)
    return weights.file, published.with_suffix(".safetensors").name


def file_of(weights: Weights) -> Path | None:
    """The file that a loader would take, or None. Stage 1 may also lie beside the prior's files."""
    place = place_of(weights)
    folders = [cache_root() / "diffbir", place.parent] if weights.name in _CLEANERS else [place.parent]
    candidates = (folder / name for folder in folders for name in file_names(weights))
    return next((path for path in candidates if path.is_file()), None)


def addresses(weights: Weights) -> tuple[str, ...]:
    """Where its file is published, in the order in which they are asked."""
    return weights.url, *weights.mirrors


def place_for(weights: Weights, url: str) -> Path:
    """Where the file of one address belongs: an address may hold the tensors as safetensors."""
    name = url.rsplit("/", 1)[-1]
    return place_of(weights).with_name(name if name in file_names(weights) else weights.file)
