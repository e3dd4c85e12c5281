"""Four simulated cameras that adaptation was not made on, to photograph clean faces with.

    python -m benchmarks.cameras CAMERA --clean DIR --output DIR [--names DIR] [--references DIR] [--size PX] [--seed N]

Photographs every clean image, or with `--names` those whose stems that folder holds, so that people can be split as
elsewhere. `--references` receives the clean faces as the scores need them: gray where the camera sees no colour.
`python -m benchmarks.oracle_gap ... --camera benchmarks.cameras:film` adds the row of the true camera.

All cameras take clean images `[B, 3, S, S]` in `[0, 1]` and a generator, and return photos of the same shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from adapt.photos import find_photos, read_photo, write_photo
from adapt.seeds import generator_of
from restorers.degradations import add_noise, blur, elliptic_kernels, jpeg, luma, resize


def film(clean: Tensor, generator: Generator) -> Tensor:
    """A faded print: soft, contrast lost, orange, with coarse grain and now and then a scratch."""
    gain, offset = clean.new_tensor([[0.80, 0.72, 0.62], [0.14, 0.09, 0.05]]).view(2, 3, 1, 1)
    faded = offset + gain * _soft(clean, 1.2)
    grain = 0.05 * _coarse(clean[:, :1], generator) + 0.02 * _coarse(clean, generator)
    photo = faded + grain * (1 - faded / 2)
    for image, scratches in zip(photo, torch.randint(3, (len(clean),), generator=generator).tolist(), strict=True):
        image[..., torch.randint(clean.shape[-1], (scratches,), generator=generator)] += 0.15
    return photo.clamp(0, 1)


def doorbell(clean: Tensor, generator: Generator) -> Tensor:
    """Infrared at night: gray, out of focus, dark corners, grain and row noise, JPEG."""
    seen = (clean * clean.new_tensor([0.5, 0.35, 0.15]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    axis = torch.linspace(-1, 1, clean.shape[-1])
    corners = 1 - 0.175 * (axis.square() + axis.view(-1, 1).square())
    dark = _soft(seen, 1.7) ** 1.25 * corners
    noise = _normal(seen, generator) * (0.02 + 0.03 * dark.sqrt()) + 0.01 * _normal(seen[..., :1], generator)
    return jpeg((dark + noise).expand_as(clean).clamp(0, 1), torch.full((len(clean),), 60.0))


def cctv(clean: Tensor, generator: Generator) -> Tensor:
    """Three eighths of the resolution, strong JPEG there, enlarged and sharpened to a halo; midtones lifted."""
    side = clean.shape[-1]
    small = resize(clean, (side * 3 // 8,) * 2, 0) ** 0.85
    small = add_noise(small, torch.full((len(clean),), 0.012), generator).clamp(0, 1)
    large = resize(jpeg(small, torch.randint(30, 50, (len(clean),), generator=generator).float()), (side, side), 2)
    return (large + 0.5 * (large - _soft(large, 1.5))).clamp(0, 1)


def scan(clean: Tensor, generator: Generator) -> Tensor:
    """A colour print on a scanner: channels out of register, moire, pale, sharpened to a halo, JPEG."""
    side = clean.shape[-1]
    shifted = torch.stack([_moved(clean[:, 0], 1.2, 0), clean[:, 1], _moved(clean[:, 2], -0.9, 0.5)], 1)
    phase = 6 * torch.rand(len(clean), 1, 1, 1, generator=generator)
    striped = shifted * (1 + 0.05 * torch.sin(2 * torch.pi / 3.3 * torch.arange(side).view(-1, 1) + phase))
    gray = striped.mean(1, keepdim=True)
    soft = _soft(gray + 0.7 * (striped - gray), 0.8)
    sharp = soft + 1.2 * (soft - _soft(soft, 1.0))
    noisy = add_noise(sharp, torch.full((len(clean),), 0.01), generator)
    return jpeg(noisy.clamp(0, 1), torch.full((len(clean),), 45.0))


CAMERAS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "film": film,
    "doorbell": doorbell,
    "cctv": cctv,
    "scan": scan,
}
WITHOUT_COLOR = {"doorbell"}


def _soft(image: Tensor, sigma: float) -> Tensor:
    """A round Gaussian blur of `sigma` pixels."""
    return blur(image, elliptic_kernels(len(image), (sigma, sigma), Generator()))


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _coarse(like: Tensor, generator: Generator) -> Tensor:
    """Noise of standard deviation 1 with grains of about two pixels."""
    grain = _soft(_normal(like, generator), 1.0)
    return grain / grain.std((1, 2, 3), keepdim=True)


def _moved(channel: Tensor, down: float, right: float) -> Tensor:
    """`[B, S, S]` moved by a fraction of a pixel, linear between pixels, edges repeated."""
    side = channel.shape[-1]
    rows = (2 * (torch.arange(side) - down) + 1) / side - 1
    columns = (2 * (torch.arange(side) - right) + 1) / side - 1
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).expand(len(channel), -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(channel[:, None], grid, padding_mode="border", align_corners=False)
    return sampled[:, 0]


def main() -> None:
    """Photographs a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camera", choices=tuple(CAMERAS))
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wanted = None if options.names is None else {photo.path.stem for photo in find_photos(options.names).photos}
    for photo in find_photos(options.clean).photos:
        if wanted is not None and photo.path.stem not in wanted:
            continue
        clean = resize(read_photo(photo.path), (options.size,) * 2, 2).clamp(0, 1)
        generator = generator_of("camera", options.camera, options.seed, photo.path.stem)
        name = f"{photo.path.stem}.png"
        write_photo(options.output / name, CAMERAS[options.camera](clean, generator))
        if options.references is not None:
            gray = options.camera in WITHOUT_COLOR
            write_photo(options.references / name, luma(clean).expand_as(clean) if gray else clean)


if __name__ == "__main__":
    main()
