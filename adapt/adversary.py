"""The adversary of a restorer: discriminators, and how one trains beside it. Images are `[B, 3, H, W]` in `[0, 1]`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Image -> a score for each patch; spectral normalisation keeps it stable without tuning (Miyato et al. 2018)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [(3, width), (width, 2 * width), (2 * width, 4 * width)]
        layers: list[nn.Module] = []
        for inputs, outputs in sizes:
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


class UNetDiscriminator(nn.Module):
    """Image -> a score for each pixel `[B, 1, H, W]`: the U-Net of Real-ESRGAN (Wang et al. 2021, section 3.3).

    Three times half the side and twice the channels, and back up to the full side; what was seen at a side on the way
    down is added on the way up. Any side of 8 px or more is taken. All layers but the first and the
    last have spectral normalisation.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        steps = list(pairwise(width * 2**level for level in range(4)))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(fine, deep, 4, 2, 1, bias=False)) for fine, deep in steps)
        self.up = nn.ModuleList(
            spectral_norm(nn.Conv2d(deep, fine, 3, padding=1, bias=False)) for fine, deep in reversed(steps)
        )
        refine = [spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in range(2)]
        self.refine = nn.ModuleList(refine)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        seen = [_leaky(self.first(image))]
        for layer in self.down:
            seen.append(_leaky(layer(seen[-1])))
        x = seen.pop()
        for layer in self.up:
            level = seen.pop()
            # To the side of that level and not to twice its own: halving an odd side has lost a pixel.
            x = F.interpolate(x, (level.shape[-2], level.shape[-1]), mode="bilinear", align_corners=False)
            x = _leaky(layer(x)) + level
        for layer in self.refine:
            x = _leaky(layer(x))
        return self.last(x)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


DISCRIMINATORS: dict[str, type[nn.Module]] = {"patch": PatchDiscriminator, "unet": UNetDiscriminator}
"""By the names that recipes use."""


class Adversary:
    """A discriminator that trains beside the restorer; its real images are unpaired clean faces.

    Args:
        discriminator: one of `DISCRIMINATORS`.
        form: `hinge`, or `logistic` as in the first GAN (Goodfellow et al. 2014) and in DT-BFR's release.
        betas: of AdamW.

    The discriminator's gradients never mix with the restorer's: each has its own backward pass, and the discriminator
    is frozen while the restorer learns from it. It takes one step for each of the restorer's, after it.
    """

    def __init__(
        self,
        device: torch.device,
        learning_rate: float,
        seed: int,
        form: Literal["hinge", "logistic"] = "hinge",
        discriminator: Literal["patch", "unet"] = "patch",
        betas: tuple[float, float] = (0.5, 0.99),
    ) -> None:
        torch.manual_seed(seed)
        self.form = form
        self.net = DISCRIMINATORS[discriminator]().to(device).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), learning_rate, betas=betas, weight_decay=0.0)

    def learn(self, restored: Tensor, real: Tensor, share: float = 1.0) -> None:
        """Adds the gradient of one micro-batch, times its `share` of the step, to that of the discriminator."""
        self.net.requires_grad_(True)
        right, wrong = self.net(real), self.net(restored.detach())
        if self.form == "hinge":
            loss = F.relu(1 - right).mean() + F.relu(1 + wrong).mean()
        else:
            loss = F.softplus(-right).mean() + F.softplus(wrong).mean()
        (share * loss).backward()
        self.net.requires_grad_(False)

    def step(self) -> None:
        """One step of the discriminator along the gradients that were added since the last."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

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
