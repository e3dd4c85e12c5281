"""The FFHQ-512 pixel prior: names of the published tensors, outputs, and whole pseudo-target runs with the network."""

import gzip
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pseudo_targets.checkpoints import load_strictly
from pseudo_targets.consistency import NoisyLowPassReplacement
from pseudo_targets.dt_bfr import ReleasedPath, released_path, released_pseudo_target
from pseudo_targets.filters import CubicLowPass
from pseudo_targets.iddpm import IddpmShape, IddpmUNet
from pseudo_targets.pixel_prior import PixelPrior, ffhq512_schedule
from pseudo_targets.schedule import respace, respacing
from tests.parity.parity_files import (
    FOLDER,
    absolute,
    arrays,
    config,
    names,
    needs_fixtures,
    relative,
    tensors,
    weights,
)

MANIFEST = FOLDER.parent / "manifests" / "iddpm_ffhq512_unet.json.gz"
RUNS = names("pseudo_target_*")


def shape_of(fields: dict) -> IddpmShape:
    """The shape that a published configuration describes."""
    assert fields["out_channels"] == 2 * fields["in_channels"] and fields["use_scale_shift_norm"]
    assert not fields["resblock_updown"] and not fields["use_new_attention_order"]
    return IddpmShape(
        fields["image_size"],
        fields["model_channels"],
        tuple(fields["channel_mult"]),
        tuple(fields["num_res_blocks"]),
        tuple(fields["attention_resolutions"]),
        fields["num_head_channels"],
        fields["in_channels"],
    )


@pytest.fixture(scope="module")
def unet() -> IddpmUNet:
    net = IddpmUNet(shape_of(config("dtbfr")["unet"]))
    return load_strictly(net, weights("iddpm_unet"), FOLDER / "iddpm_unet.safetensors.gz")


@pytest.mark.skipif(not MANIFEST.is_file(), reason=f"manifest not found at {MANIFEST}; set ADAPT_PARITY_DIR")
def test_every_published_tensor_has_its_name_and_shape() -> None:
    manifest = json.loads(gzip.decompress(MANIFEST.read_bytes()))
    shape = shape_of(manifest["source"]["config"])
    assert shape == IddpmShape()
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in IddpmUNet(shape).state_dict().items()}
    assert ours == {name: entry["shape"] for name, entry in manifest["tensors"].items()}


@needs_fixtures
def test_output_of_the_network(unet: IddpmUNet) -> None:
    recorded = tensors("iddpm_unet_io")
    with torch.no_grad():
        assert relative(unet(recorded["x"], recorded["t"]), recorded["model_output"]) < 1e-5


@needs_fixtures
@pytest.mark.parametrize("name", RUNS)
def test_whole_pseudo_target_run(name: str, unet: IddpmUNet) -> None:
    run = tensors(name)
    schedule = ffhq512_schedule()
    chain = respace(schedule, respacing(len(schedule), str(arrays(name)["timestep_respacing"])))
    start, end, stop = (int(run[key]) for key in ("start_timesteps", "reg_end_timesteps", "end_timesteps"))
    swap = None
    if int(run["down_N"]) > 0:
        low_pass = CubicLowPass(int(run["down_N"]))
        swap = NoisyLowPassReplacement(low_pass, schedule, chain.timesteps[start], chain.timesteps[end])
    seen: list[Tensor] = []

    class Watched(PixelPrior):
        def denoise_with_variance(self, x_t: Tensor, timestep: Tensor, condition: None) -> tuple[Tensor, Tensor]:
            seen.append(x_t)
            return super().denoise_with_variance(x_t, timestep, condition)

    prior = Watched(unet, schedule, int(run["im_size"]), "tiny", "test", "")
    left = iter(run["noises"])
    made = released_pseudo_target(prior, run["restored01"], ReleasedPath(chain, start, swap, max(stop, 0)), drawn(left))
    assert absolute(made, run["final01_rgb"]) < 1e-4
    written = (made[0].permute(1, 2, 0).flip(-1) * 255).round()
    assert int((written - run["final_uint8_bgr"]).abs().max()) <= 1
    # The release draws noise after its last call too, which changes nothing.
    assert len(list(left)) == 1 + (swap is not None and swap.active(int(run["timestep"][-1])))
    for step, x in enumerate(run.get("x_before_step", ())):
        assert absolute(seen[step], x) < 1e-4


def drawn(left: Iterator[Tensor]) -> "NoiseReplay":
    return NoiseReplay(left)


class NoiseReplay:
    """Hands out recorded noises in their order."""

    def __init__(self, left: Iterator[Tensor]) -> None:
        self.left = left

    def __call__(self, like: Tensor) -> Tensor:
        noise = next(self.left)
        assert noise.shape == like.shape
        return noise


@needs_fixtures
def test_released_settings_give_the_released_path() -> None:
    published = config("dtbfr")["published"]
    schedule = ffhq512_schedule()
    path = released_path(schedule, 602, 150, CubicLowPass(published["down_N_swinir"]), 361)
    assert path.chain.timesteps == respacing(len(schedule), published["timestep_respacing"])
    assert path.start == published["started_timesteps"]
    assert path.swap is not None
    assert path.chain.timesteps[published["reg_end_timesteps"]] == path.swap.end
    assert path.chain.timesteps[published["started_timesteps"]] == path.swap.start
