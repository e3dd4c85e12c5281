"""Training the bundled face finder: labels, losses, determinism, resuming."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapt import face_synthesis
from adapt.errors import AdaptError
from adapt.face_fallback import BundledFinder
from adapt.face_nets import REFERENCE_SIDE, STRIDE
from adapt.face_synthesis import FacePool, Placement
from adapt.pretrain_faces import Plan, aligner_sample, proposal_labels, proposal_loss, proposal_sample, train


@pytest.fixture(scope="module")
def pool() -> FacePool:
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 255, (3, 128, 128), np.uint8)
    return FacePool(faces, faces[:, ::2, ::2].copy(), (rng.integers(0, 255, (90, 150), np.uint8),))


def test_labels_say_where_the_face_is() -> None:
    labels = proposal_labels([Placement(60.0, 43.0, 50.0, 0.3)])
    rows, columns = np.nonzero(labels[0] == 1)
    assert len(rows) >= 1
    for r, c in zip(rows, columns, strict=True):
        dx, dy, log_side, angle, weight = labels[1:, r, c]
        assert (c * STRIDE + 3.5 + dx * STRIDE, r * STRIDE + 3.5 + dy * STRIDE) == pytest.approx((60.0, 43.0), abs=1e-4)
        assert REFERENCE_SIDE * math.exp(log_side) == pytest.approx(50.0, rel=1e-4)
        assert angle * 0.5 == pytest.approx(0.3, rel=1e-4)
        assert weight == 1
    assert (labels[0] == -1).any()
    assert not proposal_labels([Placement(60.0, 43.0, 200.0, 0.0)]).any()


def test_a_right_answer_costs_next_to_nothing() -> None:
    labels = torch.from_numpy(proposal_labels([Placement(60.0, 60.0, 40.0, 0.0)]))[None]
    right = torch.cat([torch.where(labels[:, :1] == 1, 20.0, -20.0), labels[:, 1:5]], 1)
    assert proposal_loss(right, labels) < 1e-6
    assert proposal_loss(-right, labels) > 1


def test_samples_are_images_and_repeat_with_their_seed(pool: FacePool) -> None:
    for draw in (lambda rng: proposal_sample(rng, pool), lambda rng: aligner_sample(rng, pool, torch.zeros(0, 64, 64))):
        for seed in range(5):
            image, label = draw(np.random.default_rng(seed))
            again, same_label = draw(np.random.default_rng(seed))
            assert image.dtype == np.float32
            assert image.min() >= 0
            assert image.max() <= 1
            assert np.array_equal(image, again)
            assert np.array_equal(label, same_label)


def test_a_resumed_training_equals_an_uninterrupted_one(
    pool: FacePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.pretrain_faces.mine", lambda *_: torch.zeros(0, 64, 64, dtype=torch.uint8))
    monkeypatch.setattr("adapt.pretrain_faces.SAVE_EVERY", 2)
    plan = Plan(proposal_steps=4, aligner_steps=4, proposal_batch=2, aligner_batch=2)
    train(pool, plan, tmp_path / "whole.safetensors")
    calls = 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3 * plan.proposal_batch + 1:
            raise KeyboardInterrupt
        return proposal_sample(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("adapt.pretrain_faces.proposal_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(pool, plan, tmp_path / "resumed.safetensors")
    train(pool, plan, tmp_path / "resumed.safetensors")
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert BundledFinder.load(tmp_path / "whole.safetensors", sha256=None).name == "bundled"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="no images found"):
        face_synthesis.load_pool(tmp_path, tmp_path, 0)


def test_reads_folders(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "grounds").mkdir()
    cv2.imwrite(str(tmp_path / "faces" / "a.png"), np.full((256, 256, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "grounds" / "b.jpg"), np.full((40, 60, 3), 200, np.uint8))
    pool = face_synthesis.load_pool(tmp_path / "faces", tmp_path / "grounds", 0)
    assert pool.faces.shape == (1, 128, 128)
    assert pool.small.shape == (1, 64, 64)
    assert len(pool.backgrounds) == 1
