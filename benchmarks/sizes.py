"""Does the restorer work at any size, on crops, and does it leave sharp faces sharp?

    python -m benchmarks.sizes --clean DIR [--restorer NAME|FILE]

For each side: clean faces and their generic degradations, restored. *detail* is the mean absolute difference of
neighbouring pixels as a share of the clean face's, *wider* the same with both blurred by a pixel (sigma 1), where grain
counts no more; `crop` rows cut a random half of the face's width and height.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from adapt.dataset import load_clean
from adapt.evaluate import psnr, ssim
from adapt.judge import restore_all
from adapt.pretrain_jobs import fixed_pairs
from adapt.seeds import generator_of
from pseudo_targets.color_fix import binomial_blur
from restorers.zoo import load_restorer


def detail(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, `[B]`."""
    across = (image[..., 1:] - image[..., :-1]).abs().mean((1, 2, 3))
    return across + (image[..., 1:, :] - image[..., :-1, :]).abs().mean((1, 2, 3))


def without_grain(image: Tensor) -> Tensor:
    """`image` under a Gaussian of about one pixel: two binomial filters of variance 1/2."""
    return binomial_blur(binomial_blur(image, 1), 1)


def crops(images: Tensor) -> Tensor:
    """A random quarter of each image's area, `[N, 3, S / 2, S / 2]`."""
    half = images.shape[-1] // 2
    corners = [torch.randint(half + 1, (2,), generator=generator_of("crop", i)).tolist() for i in range(len(images))]
    return torch.stack(
        [image[:, y : y + half, x : x + half] for image, (y, x) in zip(images, corners, strict=True)],
    )


def row(name: str, clean: Tensor, restore: torch.nn.Module) -> str:
    """One line of the table."""
    lq = fixed_pairs(clean)
    restored, kept = restore_all(restore, lq), restore_all(restore, clean)
    left = (detail(kept) / detail(clean)).mean()
    wider = (detail(without_grain(kept)) / detail(without_grain(clean))).mean()
    numbers = [
        f"{float(psnr(lq, clean).mean()):.2f} | {float(psnr(restored, clean).mean()):.2f}",
        f"{float(ssim(lq, clean).mean()):.4f} | {float(ssim(restored, clean).mean()):.4f}",
        f"{float(psnr(kept, clean).mean()):.2f} | {float(left):.3f} | {float(wider):.3f}",
    ]
    return f"| {name} | {' | '.join(numbers)} |"


@torch.no_grad()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--restorer", default="compact")
    options = parser.parse_args()
    restore = load_restorer(options.restorer).module.eval()
    titles = ("px", "PSNR degraded", "restored", "SSIM degraded", "restored", "PSNR of a clean one", "detail", "wider")
    print(f"| {' | '.join(titles)} |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for side in (64, 96, 128, 192, 256):
        print(row(str(side), load_clean(options.clean, side).images.float(), restore), flush=True)
    print(row("crop of 128 from 256", crops(load_clean(options.clean, 256).images.float()), restore))


if __name__ == "__main__":
    main()
