"""Brightness, contrast and colour cast of whole photos, and what of them a camera adds.

Low bands of targets are held to the photos', so pairs of target and photo cannot show what the camera does to the tone.
Sets of photos can, where they differ from every known set of clean images: in the mean by more than sets differ, or in
the spread of the colour cast between photos, as a white balance that errs from photo to photo makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RARE = 0.1
"""Share of cameras, by prior belief, that shift the level, the tint or the contrast for good."""
REACH = 3.0
"""How far such a camera shifts it, in standard deviations of the means of clean sets."""
FEWEST_SETS = 3


@dataclass(frozen=True)
class ToneStatistics:
    """What is known of the tone of clean images, from several sets of them.

    Attributes:
        mean: `[4]`, the mean over sets; see `tone_of`.
        between: `[4]`, the standard deviation of the sets' means.
        cast: `[2]`, mean and standard deviation over sets of a set's standard deviation of the green-magenta cast,
            the direction in which clean images differ least.
    """

    mean: Tensor
    between: Tensor
    cast: Tensor


@dataclass(frozen=True)
class ToneChange:
    """What a camera does to the tone of a clean image: `gain * image + offset + root @ n`, with `n` normal.

    Attributes:
        gain: below 1, it loses contrast.
        offset: `[3]`, for red, green and blue.
        root: `[3, 3]`, of the covariance of what it adds to red, green and blue from photo to photo.
    """

    gain: Tensor
    offset: Tensor
    root: Tensor


def tone_of(image: Tensor) -> Tensor:
    """Tone of each image `[B, 3, H, W]`: level, red - green, blue - green, log of the range of brightness, `[B, 4]`.

    Of the means of 4 px blocks, which noise hardly changes; the range lies between their 2 % and 98 % quantiles.
    """
    low = F.avg_pool2d(image, 4, ceil_mode=True)
    red, green, blue = low.mean((2, 3)).unbind(1)
    darkest, brightest = torch.quantile(low.mean(1).flatten(1), torch.tensor([0.02, 0.98]).to(low), dim=1)
    span = (brightest - darkest).clamp(min=0.01).log()
    return torch.stack([(red + green + blue) / 3, red - green, blue - green, span], 1)


def with_tone(image: Tensor, tone: Tensor) -> Tensor:
    """Images `[B, 3, H, W]` with gain and offsets such that `tone_of` gives `tone` `[B, 4]`; not clamped."""
    gain = (tone[:, 3] - tone_of(image)[:, 3]).exp().view(-1, 1, 1, 1)
    return (image - image.mean((2, 3), keepdim=True)) * gain + _channels(tone)[..., None, None]


def find_tone(photos: Tensor, known: ToneStatistics, gray: bool) -> ToneChange:
    """What the camera of these photos does to the tone, as far as the photos alone can show it.

    Args:
        photos: `[N, 4]`, the photos' tones.
        known: of clean images.
        gray: whether the photos are of one tint, so that all colour is the camera's.
    """
    mean = photos.mean(0)
    span = _shift(mean[3:] - known.mean[3:], known.between[3:])
    gain = span.exp()
    level = _shift(mean[:1] - known.mean[:1], known.between[:1])
    # Lost contrast takes colour along; a tint is judged, both its numbers at once, on what there was before.
    tint = gain * _shift(mean[1:3] / gain - known.mean[1:3], known.between[1:3])
    shift = torch.cat([level, mean[1:3] if gray else tint])
    root = torch.zeros(3, 3)
    if gray:
        values, vectors = torch.linalg.eigh(torch.cov(photos[:, 1:3].T))
        spread = (vectors * values.clamp(min=0).sqrt()).T  # [2, 2], a row for each principal tint
        root[:, :2] = _channels(F.pad(spread, (1, 1))).T
    else:
        usual, deviates = known.cast.tolist()
        seen = float((photos[:, 1] + photos[:, 2]).std() / gain)
        chance = (deviates**2 + seen**2 / (2 * len(photos))) ** 0.5
        if seen > usual + 2 * chance:
            # Channels that err independently by s spread red + blue - 2 green by sqrt(6) s.
            root = gain * ((seen**2 - usual**2) / 6) ** 0.5 * torch.eye(3)
    centre = mean[0] - shift[0]  # the clean images' level; contrast is lost around it
    return ToneChange(gain[0], _channels(shift[None])[0] + centre * (1 - gain), root)


def _shift(deviation: Tensor, between: Tensor) -> Tensor:
    """What of a set's deviation `[D]` from clean sets, which differ by `between`, is the camera's; often nothing.

    A camera shifts the numbers seldom, and then by much; it is taken to have done so when that is the likelier story.
    """
    slab, z = REACH**2, deviation / between
    odds = RARE / (1 - RARE) * (1 + slab) ** (-len(z) / 2) * torch.exp(0.5 * z.square().sum() * slab / (1 + slab))
    return torch.where(odds > 1, deviation * slab / (1 + slab), 0)


def _channels(tone: Tensor) -> Tensor:
    """Level and colour differences `[B, 4]` as red, green and blue, `[B, 3]`."""
    level, red, blue = tone[:, 0], tone[:, 1], tone[:, 2]
    green = level - (red + blue) / 3
    return torch.stack([green + red, green, green + blue], 1)


def tone_statistics(tones: Tensor, sets: Tensor) -> ToneStatistics:
    """Statistics of clean images' tones `[N, 4]`, of which those with the same number in `sets` `[N]` are one set.

    Too few sets say nothing of how sets differ; then sets are taken to differ as much as images do.
    """
    groups = [group for number in sets.unique() if len(group := tones[sets == number]) > 1]
    if len(groups) < FEWEST_SETS:
        cast = (tones[:, 1] + tones[:, 2]).std()
        return ToneStatistics(tones.mean(0), tones.std(0), torch.stack([cast, cast / 2]))
    means = torch.stack([group.mean(0) for group in groups])
    casts = torch.stack([(group[:, 1] + group[:, 2]).std() for group in groups])
    return ToneStatistics(means.mean(0), means.std(0), torch.stack([casts.mean(), casts.std()]))
