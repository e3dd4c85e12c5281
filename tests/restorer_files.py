"""Random networks of the published kinds, laid down in a cache as a download would leave them; small where possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from restorers import published, zoo
from restorers.zoo import LoadedRestorer

SIDE = 64
"""What the networks of one fixed side work at here."""


def swinir() -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(window_size=8, embed_dim=8, depths=[2], num_heads=[2], mlp_ratio=2.0, upscale=8,
                  upsampler="nearest+conv", start_unshuffle=8)  # fmt: skip


def rrdb() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=8, num_blocks=1, scale=4)


def srvgg() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=8, num_conv=2, upscale=4)


def scunet() -> nn.Module:
    from spandrel.architectures.SCUNet import SCUNet

    return SCUNet(config=[2, 1, 1, 1, 1, 1, 1], dim=64)


def nafnet() -> nn.Module:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])


def gfpgan() -> nn.Module:
    """spandrel builds the one published size only; `laid_down` lets it build this narrow one."""
    from spandrel.architectures import GFPGAN

    return GFPGAN.GFPGAN(
        out_size=512, num_style_feat=512, channel_multiplier=2, decoder_load_path=None, fix_decoder=False, num_mlp=8,
        input_is_latent=True, different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip


def restoreformer() -> nn.Module:
    from spandrel.architectures.RestoreFormer import RestoreFormer

    return RestoreFormer(n_embed=16, embed_dim=32, ch=64, ch_mult=(1,) * 6, num_res_blocks=1, z_channels=32)


def codeformer() -> nn.Module:
    """At three sides in place of six, 64 px down to the 16 x 16 codes that its call demands; see `narrow_extra`."""
    extra = pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer", reason="no spandrel-extra-arches")
    net: nn.Module = extra.CodeFormer(dim_embd=32, n_layers=2, codebook_size=32, connect_list=["32", "64"])
    return net


def femasr() -> nn.Module:
    """With two blocks a Swin layer in place of six; see `narrow_extra`."""
    extra = pytest.importorskip("spandrel_extra_arches.architectures.FeMaSR", reason="no spandrel-extra-arches")
    net: nn.Module = extra.FeMaSR(codebook_params=[[32, 32, 64]], LQ_stage=True, scale_factor=4)
    return net


def narrow_extra(patch: pytest.MonkeyPatch) -> None:
    """Lets spandrel-extra-arches build small networks where it knows the published size only."""
    if not published.has_extra():
        return
    from spandrel_extra_arches.architectures import CodeFormer
    from spandrel_extra_arches.architectures.CodeFormer.__arch import codeformer as net
    from spandrel_extra_arches.architectures.FeMaSR.__arch import femasr as swin

    class Narrow(net.CodeFormer):
        def __init__(self, connect_list: list[str], **settings: Any) -> None:
            super().__init__(connect_list=[], **settings)
            self.connect_list = connect_list
            self.fuse_encoder_block, self.fuse_generator_block = {"64": 1, "32": 3}, {"32": 7, "64": 9}
            self.fuse_convs_dict = nn.ModuleDict({side: net.Fuse_sft_block(32, 32) for side in connect_list})

    whole = net.VQAutoEncoder.__init__

    def small(self: nn.Module, side: int, width: int, levels: list[int], *kind: Any) -> None:
        quantizer, _, attention, codes = kind
        whole(self, SIDE, 32, [1, 1, 1], quantizer, 1, attention, codes)

    patch.setattr(net.VQAutoEncoder, "__init__", small)
    patch.setattr(CodeFormer, "CodeFormer", Narrow)
    patch.setattr(swin, "SwinLayers", partial(swin.SwinLayers, blk_depth=2))


NETS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "swinir": (swinir, "state_dict"),
    "swinir-gan": (swinir, "state_dict"),
    "bsrgan": (rrdb, None),
    "bsrnet": (rrdb, None),
    "realesrgan": (rrdb, "params_ema"),
    "realesr-general-x4v3": (srvgg, "params"),
    "scunet": (scunet, None),
    "nafnet": (nafnet, "params"),
    "gfpgan-v1.4": (gfpgan, "params_ema"),
    "restoreformer": (restoreformer, "params"),
    "codeformer": (codeformer, "params_ema"),
    "femasr": (femasr, "params"),
}
"""Name -> how its network is built, and the key its file keeps the tensors under."""


def published_state(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of `net` under their published names; those that are zero at the start of training made random."""
    for parameter in net.parameters():
        if not parameter.any():  # what follows it would do nothing
            nn.init.normal_(parameter, std=0.1)
    state = net.state_dict()
    if getattr(net, "start_unshuffle", 1) > 1:  # SwinIR: unshuffling is the first half of that layer in its files
        state = {key.replace("conv_first.", "conv_first.1."): value for key, value in state.items()}
    return state


def laid_down(name: str, cache: Path, patch: pytest.MonkeyPatch) -> LoadedRestorer:
    """Puts a random network into `cache` as the file of the restorer `name` and loads it by that name.

    Until `patch` is undone no hash is demanded of the file, and the fixed sides are `SIDE`.
    """
    pytest.importorskip("spandrel", reason="spandrel is not installed")
    from spandrel.architectures import GFPGAN

    patch.setenv("ADAPT_CACHE", str(cache))
    whole = GFPGAN.GFPGAN
    narrow = {"out_size": SIDE, "channel_multiplier": 1, "narrow": 1 / 16}
    patch.setattr(GFPGAN, "GFPGAN", lambda **settings: whole(**{**settings, **narrow}))
    narrow_extra(patch)
    for architecture in published.FIXED_SIDE:
        patch.setitem(published.FIXED_SIDE, architecture, SIDE)
    loader = zoo.RESTORERS[name]
    weights, *expected = loader.args
    patch.setitem(zoo.RESTORERS, name, partial(loader.func, dataclasses.replace(weights, sha256="unknown"), *expected))
    torch.manual_seed(0)
    build, wrapper = NETS[name]
    state = published_state(build())
    (cache / "weights").mkdir(parents=True, exist_ok=True)
    torch.save({wrapper: state} if wrapper else state, cache / "weights" / weights.file)
    return zoo.load_restorer(name, non_commercial=True)
