"""Serving: a restorer behind one call, with padding, tiling and batching; needs torch and, for ONNX, onnxruntime.

>>> restore = load_runtime(Path("run"))          # a run folder, a .safetensors or an .onnx file
>>> restored = restore(image)                    # [B, 3, H, W], any size
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from restorers.zoo import LoadedRestorer

MAX_PIXELS = 1 << 20  # per network call; about 0.5 GB of activations in the compact restorer
OVERLAP = 128
RUN_FILES = ("restorer.onnx", "restorer.safetensors")

Forward = Callable[[Tensor], Tensor]


class RuntimeFailure(RuntimeError):
    """The restorer cannot be loaded, or did not give a usable image; no image is returned in its place."""


class RuntimeRestorer:
    """A restorer for images of any size and number.

    Args:
        forward: the network: float32 `[B, 3, H, W]`, RGB, `[0, 1]` -> the same shape, `H` and `W` multiples of
            `multiple_of` and at least `minimum`.
        name: shown to users.
        multiple_of, minimum: size rules of the network, in pixels.
        backend: `"torch"` or `"onnxruntime"`.
        tiles: False when the network must see the whole image at once.
        max_pixels: most pixels in one call; larger images are cut into tiles, larger batches into smaller ones.
        least_pixels: what even a small image counts as, for networks that work at one size.
        aligned_faces: whether the network knows nothing but aligned faces; others restore whole photos.
        overlap: pixels that neighbouring tiles share. The outer quarter on either side is thrown away, because
            there the network saw an artificial border; over the middle half the tiles are blended linearly.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        name: str,
        multiple_of: int,
        minimum: int,
        backend: str = "torch",
        tiles: bool = True,
        max_pixels: int = MAX_PIXELS,
        overlap: int = OVERLAP,
        least_pixels: int = 1,
        aligned_faces: bool = False,
    ) -> None:
        self.name = name
        self.multiple_of = multiple_of
        self.minimum = -(-max(minimum, 1) // multiple_of) * multiple_of
        self.backend = backend
        self.aligned_faces = aligned_faces
        self._forward = forward
        self._least_pixels = least_pixels
        self._max_pixels = max_pixels if tiles else None
        self._overlap = overlap

    def __call__(self, image: Tensor) -> Tensor:
        """Restores `[B, 3, H, W]`, RGB, `[0, 1]`, any `H` and `W`; the result has the same shape and lies in `[0, 1]`.

        Raises:
            RuntimeFailure: the input is not such an image, or the network's output is not finite.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise RuntimeFailure(f"got an image of shape {tuple(image.shape)}, expected [B, 3, H, W] with B, H, W >= 1")
        if not image.is_floating_point() or not _is_finite(image):
            raise RuntimeFailure(f"got {image.dtype} pixels with values that are not finite, expected floats in [0, 1]")
        height, width = image.shape[-2:]
        with torch.no_grad():  # not inference mode: gradients may flow through later uses of the result
            padded = pad(image.float(), self.multiple_of, self.minimum)
            restored = self._tiled(padded)[..., :height, :width].clamp(0, 1)
        return restored.to(image)

    def _tiled(self, image: Tensor) -> Tensor:
        count, _, height, width = image.shape
        if self._max_pixels is None or height * width <= self._max_pixels:
            per_call = max(1, (self._max_pixels or MAX_PIXELS) // max(height * width, self._least_pixels))
            parts = [self._checked(part) for part in image.split(per_call)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        side = self._tile_side()
        tops, lefts = (_starts(length, side, self._overlap, self.multiple_of) for length in (height, width))
        total, weights = torch.zeros_like(image), image.new_zeros(1, 1, height, width)
        for top in tops:
            for left in lefts:
                rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                window = self._window(rows, height).view(-1, 1) * self._window(columns, width)  # [h, w]
                for index in range(count):
                    total[index : index + 1, :, rows, columns] += window * self._checked(
                        image[index : index + 1, :, rows, columns]
                    )
                weights[..., rows, columns] += window
        return total / weights

    def _tile_side(self) -> int:
        side = max(math.isqrt(self._max_pixels or MAX_PIXELS), self._overlap + 2 * self.multiple_of, self.minimum)
        return -(-side // self.multiple_of) * self.multiple_of

    def _window(self, span: slice, length: int) -> Tensor:
        """Weight over one side of a tile: 0, linear ramp, 1; no ramp where the tile ends at the image's own border."""
        position = torch.arange(span.start, span.stop, dtype=torch.float32) + 0.5
        quarter = self._overlap / 4
        rise = (position - span.start - quarter) / (2 * quarter) if span.start else torch.ones_like(position)
        fall = (span.stop - position - quarter) / (2 * quarter) if span.stop < length else torch.ones_like(position)
        return torch.minimum(rise, fall).clamp(0, 1)

    def _checked(self, image: Tensor) -> Tensor:
        restored = self._forward(image)
        if restored.shape != image.shape:
            raise RuntimeFailure(
                f"{self.name} returned shape {tuple(restored.shape)} for {tuple(image.shape)}, expected the same size"
            )
        if not _is_finite(restored):
            raise RuntimeFailure(f"{self.name} gave values that are not finite: the weights are damaged or overflow")
        return restored


def _is_finite(image: Tensor) -> bool:
    """Whether no value is NaN or infinite; one such value makes the sum so, which costs no temporary."""
    return math.isfinite(float(image.float().sum()))


def pad(image: Tensor, multiple_of: int, minimum: int) -> Tensor:
    """Grows `[B, 3, H, W]` on the right and at the bottom to the next allowed size, by reflection.

    Where the image is too small to be reflected that far, the rest repeats the last line.
    """
    height, width = image.shape[-2:]
    down, right = (-(-max(length, minimum) // multiple_of) * multiple_of - length for length in (height, width))
    mirror_down, mirror_right = min(down, height - 1), min(right, width - 1)
    if mirror_down or mirror_right:
        image = F.pad(image, (0, mirror_right, 0, mirror_down), mode="reflect")
    if (down, right) != (mirror_down, mirror_right):
        image = F.pad(image, (0, right - mirror_right, 0, down - mirror_down), mode="replicate")
    return image


def load_runtime(
    path: Path, device: str = "cpu", max_pixels: int = MAX_PIXELS, *, non_commercial: bool = False
) -> RuntimeRestorer:
    """Loads a restorer for serving.

    Args:
        path: an `.onnx` file (onnxruntime), a file of weights or a restorer's name (torch), or a run folder. In a run
            folder the ONNX file is preferred on the CPU, where it is faster, and the weights on any other device.
        device: torch device of the weights; ONNX files run on the CPU.
        max_pixels: see `RuntimeRestorer`.
        non_commercial: whether what forbids commercial use may be used, a name or a file.

    Raises:
        RuntimeFailure: nothing to load there, a damaged file, or a network that changes the size of images.
    """
    if path.is_dir():
        path = _in_run_folder(path, device)
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, max_pixels, non_commercial)
    return _load_torch(path, device, max_pixels, non_commercial)


def _in_run_folder(folder: Path, device: str) -> Path:
    names = RUN_FILES if device == "cpu" and _has_onnxruntime() else tuple(reversed(RUN_FILES))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RuntimeFailure(
        f"{folder} holds neither {RUN_FILES[0]} nor {RUN_FILES[1]}: not a run folder, or its run has not finished"
    )


def _load_torch(path: Path, device: str, max_pixels: int, non_commercial: bool) -> RuntimeRestorer:
    from restorers.zoo import ZooError, at_input_size, load_restorer

    try:
        loaded = at_input_size(load_restorer(path, non_commercial=non_commercial))
    except ZooError as error:
        raise RuntimeFailure(str(error)) from error
    if loaded.spec.scale != 1:
        raise RuntimeFailure(
            f"{path} enlarges images {loaded.spec.scale} times, expected a restorer that keeps their size"
        )
    return runtime_of(loaded, device, max_pixels)


def runtime_of(loaded: LoadedRestorer, device: str = "cpu", max_pixels: int = MAX_PIXELS) -> RuntimeRestorer:
    """A loaded restorer that keeps the size of images, as it serves; its module is moved to `device`."""
    spec, module = loaded.spec, loaded.module.to(device)
    shrink, side = getattr(module, "shrink", 1), getattr(module, "side", None)

    def forward(image: Tensor) -> Tensor:
        try:
            restored: Tensor = module(image.to(device))
        except RuntimeError as error:  # out of memory, or a size that this network refuses
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RuntimeFailure(f"{spec.name} failed on {tuple(image.shape)}: {reason}") from error
        return restored.to(image.device)

    return RuntimeRestorer(
        forward,
        name=spec.name,
        multiple_of=spec.multiple_of,
        minimum=spec.minimum,
        tiles=loaded.tiles,
        max_pixels=max(max_pixels // shrink**2, 1),  # what a network enlarges inside counts at that size
        least_pixels=(side or 1) ** 2,
        aligned_faces=loaded.aligned_faces,
    )


def _load_onnx(path: Path, max_pixels: int, non_commercial: bool) -> RuntimeRestorer:
    if not path.is_file():
        raise RuntimeFailure(f"no such file: {path}")
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError as error:
        raise RuntimeFailure(f"{path} needs onnxruntime: pip install onnxruntime, or use the weights file") from error
    failures = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented,
                states.RuntimeException)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # that stored noise can be replaced is no warning
    # Idle threads that spin would take the cores from torch, which works on the image before and after each call.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise RuntimeFailure(f"{path} is not a valid ONNX file: {str(error).splitlines()[0]}") from error
    facts = session.get_modelmeta().custom_metadata_map
    if not {"multiple_of", "minimum"} <= facts.keys() or len(session.get_inputs()) != 1:
        raise RuntimeFailure(f"{path} was not written by restorers.export: its metadata lacks the size rules")
    from restorers.zoo import forbidden, is_non_commercial

    licence = facts.get("licence", "")
    if (facts.get("commercial") == "no" or is_non_commercial(licence)) and not non_commercial:
        raise RuntimeFailure(str(forbidden(str(path), licence)))
    source = session.get_inputs()[0].name

    def forward(image: Tensor) -> Tensor:
        try:
            restored = session.run(None, {source: image.cpu().numpy()})[0]
        except failures as error:
            raise RuntimeFailure(f"onnxruntime failed on {tuple(image.shape)}: {str(error).splitlines()[0]}") from error
        return torch.from_numpy(restored).to(image.device)

    return RuntimeRestorer(
        forward,
        name=facts.get("name", path.stem),
        multiple_of=int(facts["multiple_of"]),
        minimum=int(facts["minimum"]),
        backend="onnxruntime",
        tiles=facts.get("tiles") != "no",
        max_pixels=max_pixels,
        aligned_faces=facts.get("aligned_faces") == "yes",
    )


def _has_onnxruntime() -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None


def _starts(length: int, side: int, overlap: int, multiple_of: int) -> list[int]:
    """Evenly spread first pixels of tiles, multiples of `multiple_of`, neighbours sharing at least `overlap` pixels."""
    if length <= side:
        return [0]
    # Rounding down to the grid can cost `multiple_of` pixels of the overlap, so that much is set aside.
    steps = -(-(length - overlap) // (side - overlap - multiple_of)) - 1
    return [i * (length - side) // steps // multiple_of * multiple_of for i in range(steps)] + [length - side]
