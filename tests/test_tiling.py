"""Tiles give what the whole image gives, as far as the function looks no further than a tile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pseudo_targets.consistency import Reference, RestorationGuidance
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.latents import AutoencoderLatents, CodecTiles, TiledLatents
from pseudo_targets.shared_norms import measure, shared
from pseudo_targets.tiling import TilesError, blended
from tests.tiny import blobs, tiny_autoencoder

SIDE, TILE = 128, 64
TILES = CodecTiles(TILE, TILE)


def autoencoder(*, plain: bool = False) -> AutoencoderLatents:
    """A tiny autoencoder; a plain one is convolutions only: without norms, and without attention in the middle."""
    net = tiny_autoencoder()
    if plain:
        for half in (net.encoder, net.decoder):
            half.mid_block.attentions[0] = None
            for module in [half, *half.modules()]:
                for name, child in module.named_children():
                    if isinstance(child, nn.GroupNorm):
                        setattr(module, name, nn.Identity())
    return AutoencoderLatents(net.eval().requires_grad_(False))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_convolutions_agree_with_those_of_the_whole_image() -> None:
    whole, image = autoencoder(plain=True), blobs(2, SIDE)
    tiled = TiledLatents(whole, TILES)
    latent = whole.encode(image)
    # Both halves look further than the rim that weighs nothing, but what a zero there does fades with the distance.
    assert relative(tiled.encode(image), latent) < 1e-4
    assert relative(tiled.decode(latent), whole.decode(latent)) < 1e-4


@torch.no_grad()
def test_tiles_agree_with_each_other_where_they_overlap() -> None:
    whole, image = autoencoder(), blobs(1, SIDE)
    whole.autoencoder.decoder.mid_block.attentions[0] = None
    latent = whole.encode(image)
    left, right = latent[..., :48, :48], latent[..., :48, 16:]  # both 48 latents wide, 32 of them common

    def disagreement(decode: Callable[[Tensor], Tensor]) -> float:
        # 12 latents from the rims, out of reach of the zeros around a tile.
        return relative(decode(left)[..., :24, 2 * 28 : 2 * 36], decode(right)[..., :24, 2 * 12 : 2 * 20])

    moments = measure(whole, lambda: (whole.decode(left), whole.decode(right)))

    def sharing(part: Tensor) -> Tensor:
        with shared(moments):
            return whole.decode(part)

    assert disagreement(whole.decode) > 1e-2
    assert disagreement(sharing) < 1e-5


@torch.no_grad()
def test_shared_norms_bring_tiles_nearer_to_the_whole_image() -> None:
    whole, image = autoencoder(), blobs(2, SIDE)
    latent = whole.encode(image)
    picture = whole.decode(latent)
    tiled = TiledLatents(whole, TILES)
    alone = blended(whole.encode, image, TILE, TILE // 2, down=2)
    assert relative(tiled.encode(image), latent) < min(0.2, 0.7 * relative(alone, latent))
    alone = blended(whole.decode, latent, TILE // 2, TILE // 4, up=2)
    assert relative(tiled.decode(latent), picture) < min(0.2, 0.7 * relative(alone, picture))


@torch.no_grad()
def test_images_of_a_batch_keep_their_own_statistics() -> None:
    tiled, images = TiledLatents(autoencoder(), TILES), blobs(2, SIDE) * torch.tensor([1.0, 0.2]).view(2, 1, 1, 1)
    latent = tiled.encode(images)
    torch.testing.assert_close(latent[1:], tiled.encode(images[1:]))
    torch.testing.assert_close(tiled.decode(latent)[1:], tiled.decode(latent[1:]))


@torch.no_grad()
def test_norms_that_share_what_one_tile_sees_are_the_norms_themselves() -> None:
    whole = autoencoder()
    latent = whole.encode(blobs(1, SIDE))
    moments = measure(whole, lambda: whole.decode(latent))
    with shared(moments):
        inside = whole.decode(latent)
    torch.testing.assert_close(inside, whole.decode(latent), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tiles", [CodecTiles(), CodecTiles(2 * SIDE, 2 * SIDE), CodecTiles(SIDE, SIDE)])
def test_a_tile_that_holds_all_changes_nothing(tiles: CodecTiles) -> None:
    whole, image = autoencoder(), blobs(1, SIDE)
    tiled = TiledLatents(whole, tiles)
    latent = tiled.encode(image)
    torch.testing.assert_close(latent, whole.encode(image))
    torch.testing.assert_close(tiled.decode(latent), whole.decode(latent))


@pytest.mark.parametrize(("height", "tile", "stride"), [(66, 16, 8), (64, 18, 8), (64, 16, 6)])
def test_sides_that_a_latent_divides_only_in_part_are_refused(height: int, tile: int, stride: int) -> None:
    with pytest.raises(TilesError, match="expected multiples of 4"):
        blended(lambda part: part, torch.zeros(1, 3, height, 64), tile, stride, down=4)


def test_guidance_through_tiles_is_the_gradient_of_the_tiled_decoder() -> None:
    image = blobs(1, SIDE)
    codec = TiledLatents(autoencoder(), TILES)
    with torch.no_grad():
        latent = codec.encode(image)
    guidance = RestorationGuidance(codec.decode, 0.01, "rgb", "mse")
    with torch.enable_grad():
        z = (0.9 * latent).requires_grad_()
        # The same decoder, without computing anything twice.
        decode = codec._sharing(codec.codec.decode, z, TILE // 2)
        picture = blended(decode, z, TILE // 2, TILE // 4, up=2)
        loss = ((2 * picture - 2 * image) ** 2).mean()
        (expected,) = torch.autograd.grad(loss, z)
    found = guidance.shift(0.9 * latent, Reference(latent, image))
    assert relative(found, -30 * expected) < 1e-5


def test_guidance_through_tiles_keeps_little() -> None:
    codec = autoencoder()
    latent = torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    plain = autoencoder()
    plain.autoencoder.disable_gradient_checkpointing()
    everything = bytes_kept(plain.decode, latent)
    assert bytes_kept(codec.decode, latent) < everything / 2
    assert bytes_kept(TiledLatents(codec, TILES).decode, latent) < everything / 2


def bytes_kept(decode: Callable[[Tensor], Tensor], latent: Tensor) -> int:
    """What the graph of a decoded latent keeps for its gradient."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        image = decode(latent.requires_grad_())
    assert image.requires_grad
    return sum(kept.values())


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 4])
def test_a_cleaner_in_tiles_cleans_as_a_whole_one_where_it_looks_no_further(scale: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 5, padding=2, padding_mode="replicate"), nn.Upsample(scale_factor=scale))
    cleaner = Cleaner(net, scale, 64 if scale == 1 else 1, "tiny", "none", "0" * 64)
    image = blobs(2, 160)[..., :150, :]
    whole = cleaner(image)
    cleaner.tile = 64
    seen: list[tuple[int, ...]] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    rim = 2 * scale  # seen whole, the image goes on in black there
    torch.testing.assert_close(cleaner(image)[..., :-rim, :-rim], whole[..., :-rim, :-rim], rtol=0, atol=2e-5)
    assert set(seen) == {(64, 64)} and len(seen) > 4
