"""Power spectra: filters for images of any size, and the camera's match with its photos without pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

if TYPE_CHECKING:
    from pseudo_targets.camera import LearnedCamera

LOWEST = 0.06  # cycles a pixel; below it content, not the camera, decides the spectrum
CONTENT = (0.06, 0.09)  # cycles a pixel; where two sets of clean images may differ and no camera is blamed for it
MOST_CONTENT = 4.0  # times as much power as other content may have there


def spectrum_at(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The transfer function `[S, S // 2 + 1, ...]` of a filter of `S` x `S` px for images of another `size`.

    The filter itself stays what it is: its kernel is set among zeros, or cut to what the image holds.
    """
    side = spectrum.shape[0]
    if size == (side, side):
        return spectrum
    kernel = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(side, side), dim=(0, 1)), dim=(0, 1))
    for axis, length in enumerate(size):
        before = length // 2 - side // 2  # the kernel's middle lies at side // 2
        if before < 0:
            kernel = kernel.narrow(axis, -before, length)
        else:
            room = list(kernel.shape)
            room[axis] = length
            wide = kernel.new_zeros(room)
            wide.narrow(axis, before, side).copy_(kernel)
            kernel = wide
    wanted = torch.fft.rfft2(torch.fft.ifftshift(kernel, dim=(0, 1)), dim=(0, 1))
    return wanted if spectrum.is_complex() else wanted.real


def power_spectrum(image: Tensor) -> Tensor:
    """Mean power at each frequency over images and channels, contrast normalised, `[S, S // 2 + 1]`."""
    centred = image - image.mean((2, 3), keepdim=True)
    return _power(centred / centred.std((1, 2, 3), keepdim=True).clamp(min=1e-3)).mean(0)


def _power(centred: Tensor) -> Tensor:
    """Power of each image `[B, 3, S, S]` at each frequency under a Hann window, smoothed, `[B, S, S // 2 + 1]`."""
    window = torch.hann_window(centred.shape[-1], periodic=False, device=centred.device)
    power = torch.fft.rfft2(centred * window * window[:, None], norm="ortho").abs().square().mean(1)
    # Averages over neighbouring frequencies, wrapping vertically and mirroring horizontally.
    padded = F.pad(F.pad(power[:, None], (0, 0, 2, 2), mode="circular"), (2, 2, 0, 0), mode="reflect")
    return F.avg_pool2d(padded, 5, stride=1)[:, 0]


def match_spectrum(camera: LearnedCamera, bank: Tensor, photos: Tensor, seed: int) -> None:
    """Sets the camera's `blur_gain` and `noise_gain` so that clean images, photographed, look like the photos.

    Where they lack power the camera blurs more than pairs can show, where they have more of it it is noisier.

    Args:
        bank: `[M, 3, S, S]`, clean images.
        photos: `[N, 3, S, S]`, of the camera.
    """
    generator = Generator().manual_seed(seed)
    mean = torch.cat([camera.mean(camera.toned(part, generator)) for part in bank.split(16)])
    noise = torch.cat([camera.noise(part, generator) for part in mean.split(16)])
    contrast = (mean + noise).std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    signals, grain = _power((mean - mean.mean((2, 3), keepdim=True)) / contrast), _power(noise / contrast).mean(0)
    seen = photos - photos.mean((2, 3), keepdim=True)
    found = _power(seen / seen.std((1, 2, 3), keepdim=True).clamp(min=1e-3))
    wanted = found.mean(0)
    rows = torch.fft.fftfreq(camera.size, device=bank.device).abs().view(-1, 1)
    columns = torch.fft.rfftfreq(camera.size, device=bank.device).view(1, -1)
    frequency = (rows**2 + columns**2).sqrt()
    # Faces fill a photo and a part of one differently: coarse power that differs is content, and so is as much of the
    # fine power, as spectra of clean images agree in shape and not in height.
    coarse = (frequency > CONTENT[0]) & (frequency < CONTENT[1])
    signals = signals * _height(signals[:, coarse].mean(1), found[:, coarse].mean(1) - grain[coarse].mean())
    signal = signals.mean(0)
    # Images differ: power that lacks is blur, and power in excess noise, only beyond what two sets of them differ by.
    chance = 2 * (signals.var(0) / len(signals) + found.var(0) / len(found)).sqrt()
    gain = ((wanted + chance - grain).clamp(min=0) / signal).sqrt().clamp(0.1, 1)
    trust = signal / (signal + grain)  # where noise hides the signal its power says nothing about blur
    boost = ((wanted - chance - signal * gain**2).clamp(min=0) / grain.clamp(min=1e-8)).sqrt().clamp(1, 3)
    high = frequency > LOWEST
    camera.blur_gain.copy_(torch.where(high, 1 + trust * (gain - 1), 1.0))
    camera.noise_gain.copy_(torch.where(high, boost, 1.0))


def _height(bank: Tensor, photos: Tensor) -> Tensor:
    """How many times as much power the photos' content has as the bank's, from the powers of each image, `[M]`, `[N]`.

    What two sets differ by chance is no difference.
    """
    chance = 2 * (bank.var() / len(bank) + photos.var() / len(photos)).sqrt()
    difference = photos.mean() - bank.mean()
    difference = difference.sign() * (difference.abs() - chance).clamp(min=0)
    return (1 + difference / bank.mean()).clamp(1 / MOST_CONTENT, MOST_CONTENT)
