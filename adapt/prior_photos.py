"""Whole photos restored by a DiffBIR prior itself, as its authors publish it: faces, and what is around them.

    adapt regenerate old/*.jpg --prior diffbir-v2.1 --output restored/
    adapt regenerate small.png --prior diffbir-v2 --upscale 4 --output large/ --set generation.tiles.denoiser=512

Slow, and what it draws is a guess; a restorer fitted with `adapt --inputs` is what serves. It takes the settings of a
recipe's `generation` (default: recipe `diffbir`, or `diffbir_v2` for versions 1 and 2).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.errors import AdaptError, UsageError
from adapt.face_parsing import FaceParser, load_parser
from adapt.faces import FaceFinder, align, load_finder, paste_back
from adapt.generate import recoloured
from adapt.prior_setup import PriorTexts, faults_of, negative_of, placed, sampled_as_diffbir, texts_for
from adapt.restore import RestoreSummary, restore_photos
from adapt.seeds import generator_of
from adapt.training import choose_device
from pseudo_targets.diffbir.cleaners import Cleaner, Content, load_diffbir_cleaner
from pseudo_targets.diffbir.published import VERSIONS
from pseudo_targets.downloads import WeightsError
from pseudo_targets.priors import Prior
from pseudo_targets.resize import resize_short_edge
from pseudo_targets.zoo import UnknownPriorError, load_prior
from recipes.load import RecipeError, load_recipe
from recipes.schema import Generation
from restorers.zoo import is_non_commercial


@dataclass(frozen=True, eq=False)
class PriorRestorer:
    """Photo `[1, 3, H, W]` in `[0, 1]` -> `[1, 3, H * upscale, W * upscale]` in `[0, 1]`.

    The photo is brought to a short side of at least the prior's resolution and cleaned and refined as a whole; each
    face in it is then cut out at that resolution, cleaned by the network for faces, refined, and put back.

    Attributes:
        faces: stage 1 of faces.
        rest: stage 1 of whole photos; None restores a photo that is one aligned face.
        finder: finds faces; None where there is nothing to find.
        texts: what steers beside the photo, or None.
        seed: start of every draw; the same photo gives the same result.
        parser: tells what of a restored crop is face; without it the whole crop is put back.
    """

    prior: Prior
    settings: Generation
    faces: Cleaner
    rest: Cleaner | None
    finder: FaceFinder | None
    device: torch.device
    texts: PriorTexts | None = None
    upscale: float = 1.0
    seed: int = 0
    multiple_of: int = 1
    parser: FaceParser | None = None

    def __call__(self, photo: Tensor) -> Tensor:
        """Restores one photo.

        Raises:
            AdaptError: the device has not the memory, or a file that is read only now is missing or damaged.
        """
        try:
            return self._restored(photo)
        except WeightsError as error:
            raise AdaptError(str(error)) from error
        except torch.OutOfMemoryError as error:
            large = " x ".join(str(round(side * self.upscale)) for side in reversed(photo.shape[-2:]))
            raise AdaptError(
                f"out of memory at {large} px: try --set generation.tiles.denoiser=512 "
                "--set generation.tiles.encode=512 --set generation.tiles.decode=256 --set generation.tiles.stage1=512"
            ) from error

    @torch.no_grad()
    def _restored(self, photo: Tensor) -> Tensor:
        height, width = (round(side * self.upscale) for side in photo.shape[-2:])
        large = _resized(photo, height, width).clamp(0, 1)
        enough = large  # as upstream, stage 1 sees what overshoots here; faces are cut from what does not
        if min(height, width) < self.prior.resolution:
            enough = resize_short_edge(large, self.prior.resolution)
            large = enough.clamp(0, 1)
        if self.rest is None:
            return _resized(self.refined(self.cleaned(self.faces, enough), photo, [0]), height, width).clamp(0, 1)
        result = self.refined(self._clean_whole(self.rest, photo, enough, (height, width)), photo, [0])
        found = [] if self.finder is None else self.finder.find(large)
        for first in range(0, len(found), self.settings.batch):
            faces = found[first : first + self.settings.batch]
            crops = torch.cat([align(large, face, self.prior.resolution) for face in faces])
            numbers = [face.index + 1 for face in faces]
            restored = self.refined(self.cleaned(self.faces, crops), crops, numbers).clamp(0, 1)
            for face, one in zip(faces, restored.split(1), strict=True):
                region = None if self.parser is None else self.parser(one)
                result = paste_back(result, one, face, region=region)
        return _resized(result, height, width).clamp(0, 1)

    def _clean_whole(self, cleaner: Cleaner, photo: Tensor, enough: Tensor, asked: tuple[int, int]) -> Tensor:
        """Stage 1 of a whole photo at the size of `enough`; `asked` is the size of the result."""
        if not cleaner.native:
            return self.cleaned(cleaner, enough)
        # One that enlarges sees the photo as it is, one for noise the photo at the size that was asked for.
        seen = photo if cleaner.scale > 1 else _resized(photo, *asked).clamp(0, 1)
        return self.cleaned(cleaner, seen, (enough.shape[-2], enough.shape[-1]))

    def cleaned(self, cleaner: Cleaner, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Stage 1, on the CPU; as upstream it keeps what overshoots."""
        return cleaner(image.to(self.device), size).cpu()

    def refined(self, clean: Tensor, photos: Tensor, numbers: Sequence[int]) -> Tensor:
        """Stage 2 and colour fix, on the CPU, not clamped; `numbers` tell the draws of one photo apart."""
        clean = clean.to(self.device)
        positive = None if self.texts is None else self.texts.positive(photos)
        negative = negative_of(self.texts, self.settings)
        generators = [generator_of("photo", self.seed, number) for number in numbers]
        drawn = sampled_as_diffbir(self.prior, clean, self.settings, generators, positive, negative)
        return recoloured(drawn, clean, self.settings.color_fix).cpu()


def load_prior_restorer(
    name: str,
    settings: Generation,
    device: torch.device,
    aligned: bool = False,
    upscale: float = 1.0,
    seed: int = 0,
    content: Content = "photos",
) -> PriorRestorer:
    """A DiffBIR prior with its published stages 1; `content` is what the one for whole photos is to clean.

    Raises:
        UsageError: it is no DiffBIR prior, its files are not there, or a setting does not fit; each is named.
    """
    faults = faults_of(name, settings.model_copy(update={"sampler": "diffbir"}))
    if not 0 < upscale <= 16:
        faults.append(f"--upscale {upscale:g}: expected more than 0 and at most 16")
    if name in VERSIONS and VERSIONS[name].aligned and not aligned:
        faults.append(f"--prior {name}: knows aligned faces alone, expected --aligned, or another version")
    if faults:
        raise UsageError("; ".join(faults))
    try:
        loaded = load_prior(name)
        tile = settings.tiles.stage1
        faces = load_diffbir_cleaner(name, "faces", tile=tile)
        rest = None if aligned else load_diffbir_cleaner(name, content, tile=tile).to(device)
    except (UnknownPriorError, WeightsError) as error:
        raise UsageError(f"--prior: {error}") from error
    prior, _ = placed(loaded, None, settings, device)
    texts = texts_for(name, settings, device)
    finder = None if aligned else load_finder(as_diffbir=True)
    parser = None if aligned else load_parser()
    return PriorRestorer(prior, settings, faces.to(device), rest, finder, device, texts, upscale, seed, parser=parser)


def restore_with_prior(given: Sequence[str]) -> RestoreSummary:
    """The command `adapt regenerate`, with its arguments.

    Raises:
        UsageError: it cannot be carried out as given.
    """
    parser = argparse.ArgumentParser(
        prog="adapt regenerate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="photos or folders")
    parser.add_argument("--prior", required=True, metavar="NAME", help=", ".join(VERSIONS))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the restored photos go")
    help_of = "preset or YAML file (default: diffbir for diffbir-v2.1, else diffbir_v2)"
    parser.add_argument("--recipe", metavar="NAME", help=help_of)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    parser.add_argument("--aligned", action="store_true", help="each photo is one aligned square face")
    parser.add_argument(
        "--content", default="photos", choices=("photos", "noise"), help="what is wrong: anything, or noise"
    )
    parser.add_argument("--upscale", type=float, default=1.0, help="how many times larger the result is (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(given)
    try:
        chosen = options.recipe or ("diffbir" if options.prior == "diffbir-v2.1" else "diffbir_v2")
        # This module has no other sampler.
        recipe = load_recipe(chosen, ("generation.sampler=diffbir", *options.set))
    except RecipeError as error:
        raise UsageError(str(error)) from error
    device = choose_device(options.device)
    restorer = load_prior_restorer(
        options.prior, recipe.generation, device, options.aligned, options.upscale, options.seed, options.content
    )
    for cleaner in (restorer.faces, restorer.rest):
        if cleaner is not None and is_non_commercial(cleaner.licence):
            print(f"stage 1 {cleaner.name}: its licence ({cleaner.licence}) forbids commercial use", file=sys.stderr)
    return restore_photos(options.photos, restorer, options.output, fit_scale=False)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True)
