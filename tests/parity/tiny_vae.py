"""The fixtures' autoencoder on diffusers' class, for tests that need its decoder's gradient."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from tests.parity.parity_files import config, weights


class TinyVae:
    """`encode` and `decode` between images `[0, 1]` and scaled latents."""

    def __init__(self) -> None:
        single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")
        from diffusers import AutoencoderKL

        settings = config("diffbir")
        shape = settings["vae_cfg"]["ddconfig"]
        widths = [shape["ch"] * factor for factor in shape["ch_mult"]]
        self.scale = settings["latent_scale_factor"]
        self.net = AutoencoderKL(
            in_channels=shape["in_channels"],
            out_channels=shape["out_ch"],
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=widths,
            layers_per_block=shape["num_res_blocks"],
            latent_channels=shape["z_channels"],
        )
        self.net.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(weights("diffbir_sd"), self.net.config))
        self.net.eval().requires_grad_(False)

    def encode(self, image: Tensor, noise: Tensor) -> Tensor:
        """Scaled draw from the posterior with this noise."""
        with torch.no_grad():
            posterior = self.net.encode(2 * image - 1).latent_dist
        return (posterior.mean + posterior.std * noise) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Image `[0, 1]`, not clamped."""
        return (self.net.decode(latent / self.scale).sample + 1) / 2


@lru_cache(maxsize=1)
def tiny_vae() -> TinyVae:
    """Loaded once for all tests."""
    return TinyVae()
