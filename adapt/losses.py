"""Terms of the restorer's loss. Images are float32 `[B, 3, H, W]`, RGB, `[0, 1]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = Callable[[Tensor], list[Tensor]]
"""Image -> activations of a fixed network, fine to coarse."""


def pixel_loss(restored: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
    """L1 distance, each pixel weighted by its confidence `[B, 1, H, W]`."""
    return (confidence * (restored - target).abs()).mean()


def perceptual_loss(restored: Tensor, target: Tensor, features: Features) -> Tensor:
    """L1 distance of channel-normalised activations (the form of LPIPS, Zhang et al. 2018, in features of our own)."""
    with torch.no_grad():
        wanted = [F.normalize(activation.float(), dim=1) for activation in features(target)]
    got = [F.normalize(activation.float(), dim=1) for activation in features(restored)]
    terms = [(a - b).abs().sum(1).mean() for a, b in zip(got, wanted, strict=True)]
    return torch.stack(terms).mean()


def code_losses(scores: Tensor, features: Tensor, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of predicted codes, and squared distance of features to the right ones (CodeFormer's stage II).

    Args:
        scores: `[B, T, N]`, of each of N codes at T places.
        features: `[B, C, h, w]`, what the encoder makes of the degraded image.
        numbers: `[B, T]`, the right codes.
        codes: `[B, C, h, w]`, the right codes as features; they take no gradient.
    """
    return F.cross_entropy(scores.float().transpose(1, 2), numbers), F.mse_loss(features.float(), codes.detach())


class PatchDiscriminator(nn.Module):
    """Image -> a score for each patch; spectral normalisation keeps it stable without tuning (Miyato et al. 2018)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [(3, width), (width, 2 * width), (2 * width, 4 * width)]
        layers: list[nn.Module] = []
        for inputs, outputs in sizes:
            layers += [nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


class Adversary:
    """A discriminator that trains beside the restorer; its real images are unpaired clean faces.

    Args:
        form: `hinge`, or `logistic` as in the first GAN (Goodfellow et al. 2014) and in DT-BFR's release.

    The discriminator's gradients never mix with the restorer's: each has its own backward pass, and the
    discriminator is frozen while the restorer learns from it.
    """

    def __init__(
        self, device: torch.device, learning_rate: float, seed: int, form: Literal["hinge", "logistic"] = "hinge"
    ) -> None:
        torch.manual_seed(seed)
        self.form = form
        self.net = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), learning_rate, betas=(0.5, 0.99))

    def learn(self, restored: Tensor, real: Tensor) -> None:
        """One step of the discriminator."""
        self.net.requires_grad_(True)
        right, wrong = self.net(real), self.net(restored.detach())
        if self.form == "hinge":
            loss = F.relu(1 - right).mean() + F.relu(1 + wrong).mean()
        else:
            loss = F.softplus(-right).mean() + F.softplus(wrong).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.net.requires_grad_(False)

    def loss(self, restored: Tensor) -> Tensor:
        """What the restorer minimises: minus the discriminator's score, or its logistic loss with the sides changed."""
        score: Tensor = self.net(restored)
        return -score.mean() if self.form == "hinge" else F.softplus(-score).mean()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, for resuming."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
