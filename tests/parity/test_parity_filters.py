"""The published low-pass filter, resizing and colour fixes against recorded images."""

import re

import pytest
import torch
from torch import Tensor

from pseudo_targets.color_fix import adain_color_fix, binomial_blur, wavelet_color_fix, wavelet_split
from pseudo_targets.filters import CubicLowPass
from pseudo_targets.resize import pad_to_multiple, resample_matrix, resize_cubic, resize_short_edge
from tests.parity.parity_files import absolute, needs_fixtures, tensors

pytestmark = needs_fixtures


def test_cubic_low_pass() -> None:
    io = tensors("lowpass_io")
    checked = 0
    for key, expected in io.items():
        match = re.fullmatch(r"(down|phi)(\d+)_(\d+x\d+)", key)
        if match:
            image, low_pass = io[f"phi_in_{match[3]}"], CubicLowPass(int(match[2]))
            ours = low_pass.down(image) if match[1] == "down" else low_pass(image)
            assert absolute(ours, expected) < 1e-5, key
            checked += 1
    assert checked >= 2


def dense(taps: Tensor, sources: Tensor, length: int) -> Tensor:
    """`[target, length]` from weights and source indices, both `[taps, target]`."""
    matrix = torch.zeros(taps.shape[1], length, dtype=torch.float64)
    return matrix.scatter_add_(1, sources.T, taps.T.double())


def test_cubic_weights() -> None:
    io = tensors("lowpass_io")
    factors = [int(match[1]) for match in (re.fullmatch(r"down(\d+)_weights_1d", key) for key in io) if match]
    assert factors
    for factor in factors:
        small = io[f"down{factor}_weights_1d"].shape[1]
        for way, source, target in (("down", small * factor, small), ("up", small, small * factor)):
            if f"{way}{factor}_weights_1d" in io:
                expected = dense(io[f"{way}{factor}_weights_1d"], io[f"{way}{factor}_fov_1d"], source)
                assert absolute(resample_matrix(source, target), expected) < 1e-6


def test_photo_resizing() -> None:
    io = tensors("lowpass_io")
    keys = [key for key in io if re.fullmatch(r"resizeright_.*\d+x\d+", key)]
    assert keys
    for key in keys:
        ours = resize_cubic(io["resizeright_in"], *io[key].shape[-2:], border="fold")
        assert absolute(ours, io[key]) < 1e-5, key


def test_short_edge_and_padding() -> None:
    io = tensors("pipeline_utils")
    for key, expected in io.items():
        if key.startswith("short_edge_"):
            assert absolute(resize_short_edge(io["img"], int(key.removeprefix("short_edge_"))), expected) < 1e-5
        elif key.startswith("pad"):
            assert absolute(pad_to_multiple(io["img"], int(key.removeprefix("pad"))), expected) == 0


def test_color_fixes() -> None:
    io = tensors("colorfix_io")
    assert absolute(wavelet_color_fix(io["content"], io["style"]), io["wavelet"]) < 1e-5
    assert absolute(adain_color_fix(io["content"], io["style"]), io["adain"]) < 1e-5


def test_wavelet_bands() -> None:
    io = tensors("colorfix_io")
    first = io["content"][:1]
    high, low = wavelet_split(first)
    assert absolute(high, io["content0_high"]) < 1e-5
    assert absolute(low, io["content0_low"]) < 1e-5
    for key, expected in io.items():
        match = re.fullmatch(r"content0_blur_radius(\d+)", key)
        if match:
            assert absolute(binomial_blur(first, int(match[1])), expected) < 1e-5


@pytest.mark.parametrize("name", ["e2e_spaced_eps", "e2e_spaced_eps_condstart_noiseaug"])
def test_color_fix_of_a_whole_run(name: str) -> None:
    io = tensors(name)
    fixed = wavelet_color_fix((io["sample"] + 1) / 2, io["clean01"])
    assert absolute(fixed, io["after_wavelet"]) < 1e-5
