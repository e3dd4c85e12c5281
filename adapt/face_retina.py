"""facexlib's RetinaFace as a face finder, when it is installed and its weights are on disk; nothing is downloaded."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from adapt.faces import Face, check_photo, number_faces, similarity_from_points
from adapt.facexlib_nets import DETECTOR, load_net

WORKING_SIDE = 640
"""The photo's short side is brought down to this before detection, as the published face restorers do; DiffBIR brings
a smaller one up to it and leaves a larger one."""
CONFIDENCE = 0.97
"""The threshold that the published face restorers use with this detector."""
DIFFBIR_CONFIDENCE = 0.8
"""DiffBIR's, which is facexlib's own default."""


class Detector(Protocol):
    """The one call of facexlib's `RetinaFace` that is used here."""

    def detect_faces(self, image: NDArray[np.float32], conf_threshold: float) -> NDArray[np.float32]:
        """BGR `[H,W,3]` in 0..255 -> `[N,15]`: box, score, five x-y points in the template's order."""


class FacexlibFinder:
    """RetinaFace (ResNet-50) with its five landmarks, fitted to the template by least squares."""

    name = "facexlib"

    def __init__(self, detector: Detector, as_diffbir: bool = False) -> None:
        self._detector, self._as_diffbir = detector, as_diffbir

    @classmethod
    def load(cls, as_diffbir: bool = False) -> FacexlibFinder:
        """Raises `AdaptError` when facexlib or its weights are missing or do not fit."""
        return cls(load_net(_retinaface, DETECTOR), as_diffbir)

    def find(self, image: Tensor) -> list[Face]:
        """See `FaceFinder.find`."""
        check_photo(image)
        height, width = image.shape[-2:]
        factor = WORKING_SIDE / min(height, width)
        factor = max(1.0, factor) if self._as_diffbir else min(1.0, factor)
        shape = (max(1, round(height * factor)), max(1, round(width * factor)))
        photo = image.detach().float().cpu()
        if shape != (height, width):
            photo = F.interpolate(photo, shape, mode="bilinear", antialias=True, align_corners=False)
        bgr = np.ascontiguousarray((photo[0].flip(0) * 255).permute(1, 2, 0).numpy())
        confidence = DIFFBIR_CONFIDENCE if self._as_diffbir else CONFIDENCE
        with torch.no_grad():
            found = np.asarray(self._detector.detect_faces(bgr, conf_threshold=confidence), np.float64).reshape(-1, 15)
        scale = torch.tensor([width / shape[1], height / shape[0]], dtype=torch.float64)
        points = (torch.from_numpy(found[:, 5:]).reshape(-1, 5, 2) + 0.5) * scale - 0.5
        return number_faces([(similarity_from_points(p), float(s)) for p, s in zip(points, found[:, 4], strict=True)])


def _retinaface() -> Any:
    # Built directly: facexlib's own factory would download a missing file.
    from facexlib.detection.retinaface import RetinaFace

    return RetinaFace(network_name="resnet50", half=False, device=torch.device("cpu"))
