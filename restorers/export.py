"""ONNX export of a restorer, with a parity check against torch before the file takes its place."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restorers.files import atomic_file
from restorers.rewrites import exportable

TOLERANCE = 1e-4  # far below half a grey level of 8 bits (2e-3)
INPUT, OUTPUT = "image", "restored"
NOISES = ".noises."  # in the names of StyleGAN's stored noise maps


class ExportError(RuntimeError):
    """The network could not be exported, or the exported file does not compute what torch computes."""


@dataclass(frozen=True)
class OnnxParity:
    """How close the exported file is to the torch network.

    Attributes:
        path: the ONNX file.
        max_abs_difference: largest difference over all pixels and sizes, in units of the image range `[0, 1]`.
        shapes: the inputs `(B, H, W)` that were compared.
    """

    path: Path
    max_abs_difference: float
    shapes: tuple[tuple[int, int, int], ...]


class _WithNoise(nn.Module):
    """`module` with the buffers of these names as a second argument."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, image: Tensor, noises: list[Tensor]) -> Tensor:
        given = dict(zip(self.names, noises, strict=True))
        restored: Tensor = torch.func.functional_call(self.module, given, (image,))
        return restored


def export_onnx(
    module: nn.Module,
    path: Path,
    multiple_of: int,
    minimum: int,
    *,
    name: str = "restorer",
    licence: str = "",
    commercial: bool = True,
    tiles: bool = True,
    aligned_faces: bool = False,
) -> OnnxParity:
    """Writes `module` as one self-contained ONNX file with dynamic batch, height and width.

    The input `image` and the output `restored` are float32 `[B, 3, H, W]`, RGB, `[0, 1]`; `H` and `W` must be multiples
    of `multiple_of`. What `restorers.runtime` must know travels in the file's metadata. `module` itself is not changed.
    StyleGAN's stored noise maps are optional inputs under their names in the network, `[1, 1, h, w]`: who gives none
    gets those that were stored. The file appears under `path` only after it agreed with torch on several sizes, so a
    present file is a good file.

    Args:
        module: image -> image at the same size.
        path: the file to write; its folder is created.
        multiple_of: both sides of an input are a multiple of this many pixels.
        minimum: smallest side in pixels.
        name: shown to users of the file.
        licence: licence of the weights, "" when unknown.
        commercial: False when it forbids commercial use.
        tiles: False when the network needs to see the whole image at once.
        aligned_faces: whether it knows nothing but aligned faces.

    Raises:
        ExportError: torch cannot export the network, a package is missing, or the outputs differ by more than 1e-4.
    """
    frozen = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    metadata = {
        "name": name,
        "licence": licence,
        "commercial": "yes" if commercial else "no",
        "multiple_of": str(multiple_of),
        "minimum": str(minimum),
        "tiles": "yes" if tiles else "no",
        "aligned_faces": "yes" if aligned_faces else "no",
    }
    with atomic_file(path) as temporary:
        _export(frozen, temporary, multiple_of, minimum, metadata)
        parity = _compare(frozen, temporary, path, _shapes(multiple_of, minimum))
    return parity


def _export(module: nn.Module, path: Path, multiple_of: int, minimum: int, metadata: dict[str, str]) -> None:
    side = _round_up(max(minimum, 2 * multiple_of), multiple_of)
    # Two images and unequal sides: torch.export takes a size of 1, and sizes that agree, for constants.
    example = torch.zeros(2, 3, side, side + multiple_of)
    batch, height, width = (torch.export.Dim(axis) for axis in ("batch", "height", "width"))
    # torchvision is not needed here, and neither its absence nor what is not simplified is news to the user.
    for noisy in ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    axes: dict[int, Any] = {0: batch, 2: multiple_of * height, 3: multiple_of * width}
    noises = {name: tensor for name, tensor in module.named_buffers() if NOISES in name}
    inputs: tuple[Any, ...] = (example, list(noises.values())) if noises else (example,)
    try:
        import onnx_ir

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch to itself
            program = torch.onnx.export(
                _WithNoise(exportable(module), tuple(noises)).eval() if noises else exportable(module),
                inputs,
                dynamo=True,
                input_names=[INPUT, *noises],
                output_names=[OUTPUT],
                dynamic_shapes=(axes, [{} for _ in noises]) if noises else (axes,),
                verbose=False,
            )
    except ImportError as error:
        raise ExportError(f"ONNX export needs a missing package ({error}): pip install onnx onnxscript") from error
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: {_first_line(error)}") from error
    if program is None:
        raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: torch returned no program")
    for value, noise in zip(program.model.graph.inputs[1:], noises.values(), strict=True):
        value.const_value = onnx_ir.tensor(noise.numpy(), name=value.name)
        program.model.graph.register_initializer(value)  # an input that is one too need not be given
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _compare(module: nn.Module, written: Path, path: Path, shapes: Iterable[tuple[int, int, int]]) -> OnnxParity:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError as error:
        raise ExportError(f"the exported file cannot be checked ({error}): pip install onnxruntime") from error
    failures = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.NotImplemented,
                states.RuntimeException)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    worst, compared = 0.0, []
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # that stored noise can be replaced is no warning
        session = onnxruntime.InferenceSession(str(written), options, providers=["CPUExecutionProvider"])
        for count, height, width in shapes:
            image = torch.rand(count, 3, height, width, generator=generator)
            exported = session.run(None, {INPUT: image.numpy()})[0]
            worst = max(worst, _difference(module, image, exported))
            compared.append((count, height, width))
    except failures as error:
        raise ExportError(f"the exported file does not run: {_first_line(error)}") from error
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the exported file differs from torch by {worst:.2g}, expected at most {TOLERANCE:g}: nothing was written"
        )
    return OnnxParity(path, worst, tuple(compared))


def _difference(module: nn.Module, image: Tensor, exported: np.ndarray[Any, Any]) -> float:
    with torch.inference_mode():
        expected = module(image)
    if tuple(expected.shape) != exported.shape:
        raise ExportError(f"the exported file returns shape {exported.shape}, expected {tuple(expected.shape)}")
    worst = float((torch.from_numpy(exported) - expected).abs().max())
    return worst if worst == worst else float("inf")  # NaN must not pass for a small difference


def _shapes(multiple_of: int, minimum: int) -> tuple[tuple[int, int, int], ...]:
    side = _round_up(minimum, multiple_of)
    return (1, side, side), (2, side + multiple_of, side), (1, side, 2 * side + multiple_of), (3, 2 * side, side)


def _round_up(length: int, multiple_of: int) -> int:
    return -(-length // multiple_of) * multiple_of


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
