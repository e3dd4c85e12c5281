"""The learned camera: what turns a clean face into a photo of this camera, fitted without ground truth.

`photo = mean(toned) + sigma(mean) * n`: `toned` is the clean face with the camera's tone (`pseudo_targets.tone`), the
mean response is a linear filter plus a small network, the noise is Gaussian with a strength that depends on brightness
and on detail, as noise reduction and compression leave flat areas calm, and a full cross-spectrum between the colour
channels. It is fitted on (pseudo target, photo) pairs and then matched to
the photos' power spectrum without pairs, because pairs made from restored photos cannot show the blur that the restorer
left in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pseudo_targets.spectrum import match_spectrum, spectrum_at
from pseudo_targets.tone import ToneChange, tone_of, with_tone

BINS = 8  # brightness levels at which the noise strength is known
DETAIL = 6  # levels of local contrast at which it is known, each twice the one before
FLAT = 0.004  # the first of them, a standard deviation


class TonedCamera(nn.Module):
    """What all cameras have in common: the tone that they give a clean image before anything else.

    Args:
        size: side in pixels of the windows it is fitted on.
    """

    tone_gain: Tensor
    tone_offset: Tensor
    tone_root: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("tone_gain", torch.ones(()))
        self.register_buffer("tone_offset", torch.zeros(3))
        self.register_buffer("tone_root", torch.zeros(3, 3))

    def set_tone(self, tone: ToneChange) -> None:
        """Gives images this tone from now on."""
        self.tone_gain.copy_(tone.gain)
        self.tone_offset.copy_(tone.offset)
        self.tone_root.copy_(tone.root)

    def toned(self, clean: Tensor, generator: Generator | None = None) -> Tensor:
        """The clean image with a tone that this camera may give it, or with the expected one; not clamped."""
        offset = self.tone_offset.expand(len(clean), 3)
        if generator is not None:
            offset = offset + torch.randn(offset.shape, generator=generator).to(clean) @ self.tone_root.T
        return self.tone_gain * clean + offset[..., None, None]

    def untoned(self, image: Tensor) -> Tensor:
        """The image `[B, 3, S, S]` without the tone that this camera is expected to have given it, in `[0, 1]`."""
        return ((image - self.tone_offset[..., None, None]) / self.tone_gain).clamp(0, 1)


class LearnedCamera(TonedCamera):
    """Clean image `[B, 3, H, W]` -> photo of the camera, same shape, `[0, 1]`.

    Args:
        size: side in pixels of the windows it is fitted on; spectra are kept at it, and brought to images of other
            sizes as they are needed (`spectrum_at`).
    """

    sigma: Tensor
    noise_root: Tensor
    blur_gain: Tensor
    noise_gain: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.linear = nn.Conv2d(3, 3, 11, padding=5, padding_mode="reflect")
        self.curve = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(24, 3, 3, padding=1, padding_mode="reflect"),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
        for parameter in (*self.linear.parameters(), *self.curve[-1].parameters()):
            nn.init.zeros_(parameter)
        nn.init.dirac_(self.linear.weight)
        half = size // 2 + 1
        self.register_buffer("sigma", torch.zeros(3, BINS, DETAIL))
        self.register_buffer("noise_root", torch.zeros(size, half, 3, 3, 2))  # real and imaginary part
        self.register_buffer("blur_gain", torch.ones(size, half))
        self.register_buffer("noise_gain", torch.ones(size, half))

    def response(self, clean: Tensor) -> Tensor:
        """The mean response to a toned image before the spectrum match, differentiable."""
        linear = self.linear(clean)
        # Few channels at full resolution: channels last, a CPU takes half the time or less.
        return linear + self.curve(linear.contiguous(memory_format=torch.channels_last)).contiguous()

    def mean(self, clean: Tensor) -> Tensor:
        """The expected photo of a toned image."""
        size = (clean.shape[-2], clean.shape[-1])
        spectrum = torch.fft.rfft2(self.response(clean))
        return torch.fft.irfft2(spectrum * spectrum_at(self.blur_gain, size), s=size)

    def noise(self, mean: Tensor, generator: Generator) -> Tensor:
        """Noise with the camera's spectrum, as strong as the brightness of `mean` says."""
        size = (mean.shape[-2], mean.shape[-1])
        white = torch.randn(mean.shape, generator=generator).to(mean)
        root = spectrum_at(torch.view_as_complex(self.noise_root) * self.noise_gain[..., None, None], size)
        coloured = torch.einsum("hwij,bjhw->bihw", root, torch.fft.rfft2(white))
        return torch.fft.irfft2(coloured, s=size) * self.strength(mean)

    def strength(self, mean: Tensor) -> Tensor:
        """Standard deviation of the noise at each pixel `[B, 3, H, W]`, linear between the known levels."""
        bright, dark_share = _between(local_brightness(mean) * BINS - 0.5, BINS)
        detail, flat_share = _between(detail_level(mean), DETAIL)
        table = self.sigma.flatten(1)  # [3, BINS * DETAIL]

        def known(level: Tensor, kind: Tensor) -> Tensor:
            return table[:, (level * DETAIL + kind)[:, 0]].transpose(0, 1)

        calm = torch.lerp(known(bright, detail), known(bright + 1, detail), dark_share)
        busy = torch.lerp(known(bright, detail + 1), known(bright + 1, detail + 1), dark_share)
        return torch.lerp(calm, busy, flat_share)

    @torch.no_grad()
    def forward(self, clean: Tensor, generator: Generator) -> Tensor:
        mean = self.mean(self.toned(clean, generator))
        return (mean + self.noise(mean, generator)).clamp(0, 1)


def local_brightness(image: Tensor) -> Tensor:
    """Brightness around each pixel, `[B, 3, H, W]` -> `[B, 1, H, W]` in `[0, 1]`."""
    return F.avg_pool2d(F.pad(image.mean(1, keepdim=True), (2,) * 4, mode="replicate"), 5, stride=1).clamp(0, 1)


def detail_level(image: Tensor) -> Tensor:
    """Contrast around each pixel, `[B, 3, H, W]` -> `[B, 1, H, W]`, as a position among the `DETAIL` levels."""
    luma = F.pad(image.mean(1, keepdim=True), (3,) * 4, mode="replicate")
    deviation = (F.avg_pool2d(luma**2, 7, stride=1) - F.avg_pool2d(luma, 7, stride=1) ** 2).clamp(min=0).sqrt()
    return (deviation / FLAT).clamp(min=1).log2().clamp(max=DETAIL - 1)


def _between(position: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The level below each position, and how far it lies towards the next one."""
    position = position.clamp(0, levels - 1.001)
    below = position.floor()
    return below.long(), position - below


@dataclass(frozen=True)
class CameraFit:
    """How the camera is fitted.

    Attributes:
        steps: optimiser steps of the mean response.
        batch: pairs a step.
        learning_rate: of Adam.
        spectrum_match: whether the spectrum is matched to the photos without pairs.
    """

    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    spectrum_match: bool = True


def fit_camera(
    clean: Tensor,
    photos: Tensor,
    bank: Tensor,
    plan: CameraFit,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    tone: ToneChange | None = None,
) -> LearnedCamera:
    """Fits the camera on pairs, then matches its output on unrelated clean faces to the photos.

    Args:
        clean: `[N, 3, S, S]`, the clean side of each pair (a draw of its pseudo target).
        photos: `[N, 3, S, S]`, what the camera made of them.
        bank: `[M, 3, S, S]`, clean faces for the spectrum match.
        seed: of every draw made while fitting.
        tone: what the camera adds to the tone. With it the clean sides first get the tone of their photos, so that
            the response does not explain the tone a second time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        camera = LearnedCamera(clean.shape[-1]).to(clean.device)
    if tone is not None:
        camera.set_tone(tone)
        clean = with_tone(clean, tone_of(photos)).clamp(0, 1)
    _fit_mean(camera, clean, photos, plan, seed, on_step)
    with torch.no_grad():
        _fit_noise(camera, clean, photos)
        if plan.spectrum_match:
            match_spectrum(camera, bank, photos, seed)
    return camera.eval().requires_grad_(False)


def _fit_mean(
    camera: LearnedCamera,
    clean: Tensor,
    photos: Tensor,
    plan: CameraFit,
    seed: int,
    on_step: Callable[[int], None] | None,
) -> None:
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        _solve_linear(camera.linear, clean, photos)
    optimizer = torch.optim.Adam(camera.parameters(), plan.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps, plan.learning_rate * 0.05)
    for step in range(plan.steps):
        index = torch.randint(len(clean), (plan.batch,), generator=generator)
        loss = F.mse_loss(camera.response(clean[index]), photos[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1)


def _solve_linear(linear: nn.Conv2d, clean: Tensor, photos: Tensor, ridge: float = 1e-4) -> None:
    """Sets the linear filter to the ridge least-squares solution; gradient steps start from there."""
    side = linear.kernel_size[0]
    taps = 3 * side**2
    normal = torch.zeros(taps + 1, taps + 1, dtype=torch.float64, device=clean.device)
    moment = torch.zeros(taps + 1, 3, dtype=torch.float64, device=clean.device)
    for image, photo in zip(clean, photos, strict=True):
        padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")
        rows = F.unfold(padded, side, stride=2)[0].T  # every fourth pixel, [P, taps]
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        normal += (rows.T @ rows).double()
        moment += (rows.T @ photo[:, ::2, ::2].flatten(1).T).double()
    # Shrinks towards doing nothing, not towards black.
    start = torch.zeros_like(moment)
    centre = side**2 // 2
    for channel in range(3):
        start[channel * side**2 + centre, channel] = 1
    weight = ridge * normal.diagonal()[:-1].mean()
    system = normal + weight * torch.eye(taps + 1, dtype=torch.float64, device=clean.device)
    solution = torch.linalg.solve(system, moment + weight * start).float()
    linear.load_state_dict({"weight": solution[:-1].T.reshape(linear.weight.shape), "bias": solution[-1]})


def _fit_noise(camera: LearnedCamera, clean: Tensor, photos: Tensor) -> None:
    mean = torch.cat([camera.response(part) for part in clean.split(16)])
    residual = photos - mean
    bright = (local_brightness(mean) * BINS).long().clamp(0, BINS - 1)
    cell = (bright * DETAIL + detail_level(mean).round().long()).flatten()
    count = torch.zeros(BINS * DETAIL, device=mean.device).index_add_(0, cell, torch.ones_like(cell, dtype=torch.float))
    count = count.view(BINS, DETAIL)
    for channel in range(3):
        square = residual[:, channel].square().flatten()
        power = torch.zeros_like(count.flatten()).index_add_(0, cell, square).view(BINS, DETAIL)
        # What is hardly seen borrows, as if it had been seen 500 times: a level of detail the overall strength, and a
        # brightness that of its level of detail.
        by_detail = (power.sum(0) + 500 * square.mean()) / (count.sum(0) + 500)
        camera.sigma[channel] = ((power + 500 * by_detail) / (count + 500)).sqrt()
    unit = residual / camera.strength(mean).clamp(min=1e-4)
    unit = unit - unit.mean((2, 3), keepdim=True)
    spectrum = torch.fft.rfft2(unit, norm="ortho")
    cross = torch.einsum("bihw,bjhw->hwij", spectrum, spectrum.conj()) / len(unit)
    # An eigen root, because gray photos make the cross-spectrum singular.
    # On the CPU, because CUDA's batched solver takes no hundred thousand matrices, as 512 px have.
    values, vectors = (part.to(cross.device) for part in torch.linalg.eigh(cross.cpu()))
    root = vectors @ torch.diag_embed(values.clamp(min=0).sqrt().to(vectors.dtype)) @ vectors.mH
    camera.noise_root.copy_(torch.view_as_real(root.contiguous()))
