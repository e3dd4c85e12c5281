"""Tiles: windows, weights, and network outputs blended over a latent."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pseudo_targets.diffbir import solvers
from pseudo_targets.diffbir.denoiser import Denoiser
from pseudo_targets.diffbir.tiles import TiledDenoiser
from pseudo_targets.priors import Condition
from pseudo_targets.tiling import blended, gaussian_weights, windows
from tests.parity.parity_files import absolute, config, needs_fixtures, relative, tensors
from tests.parity.tiny_diffbir import Replay, tiny_prior

pytestmark = needs_fixtures


def tiled() -> TiledDenoiser:
    recorded = tensors("tiling_io")
    denoiser = Denoiser(
        tiny_prior("v1v2"),
        Condition(recorded["tile_c_img"]),
        recorded["tile_c_txt_pos"],
        recorded["tile_c_txt_neg"],
        config("diffbir")["cfg_scale"],
    )
    height, width = recorded["tile_x"].shape[-2:]  # the grid of the run is one of the recorded ones
    grids = (re.fullmatch(rf"windows_h{height}_w{width}_tile(\d+)_stride(\d+)", name) for name in recorded)
    tile, stride = next(map(int, grid.groups()) for grid in grids if grid)
    return TiledDenoiser(denoiser, tile=tile, stride=stride)


def test_windows() -> None:
    for name, expected in tensors("tiling_io").items():
        found = re.fullmatch(r"windows_h(\d+)_w(\d+)_tile(\d+)_stride(\d+)", name)
        if found:
            assert list(windows(*map(int, found.groups()))) == [tuple(row) for row in expected.tolist()], name


def test_weights() -> None:
    for name, expected in tensors("tiling_io").items():
        found = re.fullmatch(r"gaussian_weights_w(\d+)_h(\d+)", name)
        if found:
            assert absolute(gaussian_weights(int(found[2]), int(found[1])), expected) < 1e-7, name


@torch.no_grad()
@pytest.mark.parametrize("text", ["pos", "neg", "cfg"])
def test_blended_outputs(text: str) -> None:
    recorded, tiles = tensors("tiling_io"), tiled()
    if text != "cfg":
        only = replace(tiles.denoiser, positive=recorded[f"tile_c_txt_{text}"], negative=None)
        tiles = replace(tiles, denoiser=only)
    output = tiles.output(recorded["tile_x"], int(recorded["tile_t"]))
    assert relative(output, recorded[f"tile_output_{text}"]) < 1e-4


@torch.no_grad()
def test_a_tiled_run() -> None:
    recorded, tiles = tensors("tiling_io"), tiled()
    noise = Replay(recorded["noises"])
    schedule = tiles.denoiser.prior.schedule
    final = solvers.spaced(tiles.output, schedule, recorded["tile_x"], len(recorded["noises"]), noise)
    assert relative(final, recorded["tiled_spaced3_z_final"]) < 1e-4
    assert noise.used_up


def test_a_function_that_enlarges() -> None:
    recorded = tensors("tiling_io")

    def toy(tile: torch.Tensor) -> torch.Tensor:
        return F.interpolate(tile, scale_factor=2, mode="nearest") + 0.1 * tile.mean()

    assert relative(blended(toy, recorded["up2_in"], 8, 6, up=2), recorded["up2_out"]) < 1e-6
