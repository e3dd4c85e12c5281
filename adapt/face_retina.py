"""facexlib's RetinaFace as a face finder, when it is installed and its weights are on disk; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from adapt.errors import AdaptError
from adapt.faces import Face, check_photo, number_faces, similarity_from_points

WEIGHTS_NAME = "detection_Resnet50_Final.pth"
WORKING_SIDE = 640
"""The photo's short side is brought down to this before detection, as the published face restorers do."""
CONFIDENCE = 0.97
"""The threshold that the published face restorers use with this detector."""


class Detector(Protocol):
    """The one call of facexlib's `RetinaFace` that is used here."""

    def detect_faces(self, image: NDArray[np.float32], conf_threshold: float) -> NDArray[np.float32]:
        """BGR `[H,W,3]` in 0..255 -> `[N,15]`: box, score, five x-y points in the template's order."""


def installed() -> bool:
    """Whether facexlib is installed; does not import it."""
    return importlib.util.find_spec("facexlib") is not None


def find_weights(name: str = WEIGHTS_NAME) -> Path | None:
    """A weights file of facexlib on this machine, or None: in `$ADAPT_CACHE/facexlib` (default
    `~/.cache/adapt/facexlib`), then in facexlib's own folder."""
    root = os.environ.get("ADAPT_CACHE")
    folders = [(Path(root) if root else Path.home() / ".cache" / "adapt") / "facexlib"]
    spec = importlib.util.find_spec("facexlib")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "weights")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


class FacexlibFinder:
    """RetinaFace (ResNet-50) with its five landmarks, fitted to the template by least squares."""

    name = "facexlib"

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @classmethod
    def load(cls) -> FacexlibFinder:
        """Read the weights found by `find_weights`; raises `AdaptError` when anything is missing or does not fit."""
        path = find_weights()
        if path is None:
            raise AdaptError(
                f"facexlib: {WEIGHTS_NAME} not found, expected in ~/.cache/adapt/facexlib: put it there, "
                "or use the bundled face finder"
            )
        try:
            # Built directly: facexlib's own factory would download a missing file.
            from facexlib.detection.retinaface import RetinaFace
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not match torch
            raise AdaptError(f"facexlib cannot be imported ({error}): repair it with pip, or uninstall it") from error
        detector = RetinaFace(network_name="resnet50", half=False, device=torch.device("cpu"))
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            detector.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
            kind = type(error).__name__
            raise AdaptError(f"{path}: not the weights of facexlib's RetinaFace ({kind}); fetch it again") from error
        return cls(detector.eval())

    def find(self, image: Tensor) -> list[Face]:
        """See `FaceFinder.find`."""
        check_photo(image)
        height, width = image.shape[-2:]
        shrink = min(1.0, WORKING_SIDE / min(height, width))
        shape = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        photo = image.detach().float().cpu()
        if shrink < 1:
            photo = F.interpolate(photo, shape, mode="bilinear", antialias=True, align_corners=False)
        bgr = np.ascontiguousarray((photo[0].flip(0) * 255).permute(1, 2, 0).numpy())
        with torch.no_grad():
            found = np.asarray(self._detector.detect_faces(bgr, conf_threshold=CONFIDENCE), np.float64).reshape(-1, 15)
        scale = torch.tensor([width / shape[1], height / shape[0]], dtype=torch.float64)
        points = (torch.from_numpy(found[:, 5:]).reshape(-1, 5, 2) + 0.5) * scale - 0.5
        return number_faces([(similarity_from_points(p), float(s)) for p, s in zip(points, found[:, 4], strict=True)])
