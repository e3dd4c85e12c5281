"""Draws the picture in README: held-out photos of a run, before and after, and what the camera saw.

    python scripts/make_samples.py samples/ --clean clean/
    adapt --inputs samples --aligned --output run/
    python scripts/make_picture.py run/ --photos samples/ --clean clean/ --output benchmarks/samples.jpg

Rows: photo, embedded restorer, adapted restorer, clean face. Prints the PSNR of the second and the third.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from adapt.evaluate import psnr
from adapt.judge import restore_all
from adapt.photos import read_photo, write_photo
from restorers.zoo import load_restorer


def main() -> None:
    """Restores, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    faces = json.loads((options.run / "faces.json").read_text(encoding="utf-8"))["faces"]
    names = sorted(Path(face["photo"]).stem for face in faces if face["held_out"])
    photos, clean = (
        torch.cat([read_photo(folder / f"{name}{suffix}") for name in names])
        for folder, suffix in ((options.photos, ".jpg"), (options.clean, ".png"))
    )
    before, after = (
        restore_all(load_restorer(restorer).module.eval(), photos)
        for restorer in ("compact", options.run / "restorer.safetensors")
    )
    rows = [torch.cat(list(images), -1) for images in (photos, before, after, clean)]
    write_photo(options.output, torch.cat(rows, -2)[None], quality=92)
    for name, images in (("before", before), ("after", after)):
        print(f"{name}: {float(psnr(images, clean).mean()):.2f} dB")


if __name__ == "__main__":
    main()
