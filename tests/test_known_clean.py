"""What blend and judge photograph: accepted targets of the first round, without the camera's tone, gray like photos."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from adapt.camera_stage import shows_faces
from adapt.clean_bank import looks_clean
from adapt.gathered import Gathered, WindowRecord, small_file
from adapt.photos import write_photo
from adapt.round_job import Job, prior_knows
from adapt.stages import known_clean, limits_of
from adapt.targets import _write_target
from adapt.workspace import Workspace, read_tensors, write_tensors
from pseudo_targets.camera import LearnedCamera
from pseudo_targets.gating import PseudoTarget
from recipes.schema import Judge
from tests.tiny import blobs

COLORFUL = blobs(1, 32, seed=9)[0]


@dataclass(frozen=True)
class Window:
    """All that is asked of a window here."""

    id: str
    color: bool
    side: int = 100
    held_out: bool = False
    face: bool = True
    sha256: str = ""


def put(folder: Path, name: str, draw: torch.Tensor, accepted: bool = True) -> None:
    target = PseudoTarget(draw * 0, draw, torch.ones(1, 32, 32), {}, accepted, "" if accepted else "still degraded")
    _write_target(folder / f"{name}.safetensors", target, {})


def job_of(root: Path, gray: str) -> tuple[Job, list[WindowRecord]]:
    windows = [cast(WindowRecord, Window(name, name != gray)) for name in "abcd"]
    gathered = SimpleNamespace(small=(), small_held=(), teaching=lambda: windows, windows=windows)
    sizes = SimpleNamespace(size=32, crops="no")
    recipe = SimpleNamespace(windows=sizes, camera=SimpleNamespace(bank_from="auto"), seed=0)
    nets = {"base": SimpleNamespace(module=torch.nn.Identity()), "prior": "mini"}
    nets["quality"] = SimpleNamespace(removal=torch.nn.Identity())
    place = {"workspace": Workspace(root), "device": torch.device("cpu")}
    return cast(Job, SimpleNamespace(gathered=gathered, recipe=recipe, **nets, **place)), windows


def test_it_takes_accepted_targets_of_the_first_round(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, gray="b")
    draws = 0.3 + 0.2 * blobs(3, 32)
    first, second = (job.workspace.round(number) / "targets" for number in (1, 2))
    put(first, "a", draws[0])
    put(first, "b", draws[1])
    put(first, "c", draws[2], accepted=False)  # "d" could not be generated
    put(second, "a", draws[2])
    camera = LearnedCamera(32)
    camera.tone_gain.fill_(0.5)
    camera.tone_offset.fill_(0.1)
    known = known_clean(job, camera, 2, held_out=False)
    clean = known.images
    assert known.groups == ("below 192 px",) * 2
    assert clean.shape == (2, 3, 32, 32)
    torch.testing.assert_close(clean[0], camera.untoned(draws[:1])[0], atol=2e-3, rtol=0)
    assert (clean[1, 0] - clean[1, 2]).abs().max() < 1e-6 < (clean[0, 0] - clean[0, 2]).abs().max()


def test_without_any_it_is_empty(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, gray="")
    put(job.workspace.round(1) / "targets", "a", blobs(1, 32)[0], accepted=False)
    assert known_clean(job, LearnedCamera(32), 1, held_out=False).images.shape == (0, 3, 32, 32)


def job_of_large_photos(root: Path) -> Job:
    """Six held-out photos of 300 px that were brought down to 64."""
    job, _ = job_of(root, gray="")
    for number in range(6):
        write_photo(small_file(root, number, True), blobs(1, 64, number))
    windows = [cast(WindowRecord, Window(str(number), True, 300, True)) for number in range(4)]
    facts = {"small": (), "small_held": (300,) * 6, "judging": lambda: windows, "windows": windows}
    return cast(Job, SimpleNamespace(**{**vars(job), "gathered": SimpleNamespace(**facts)}))


def test_photos_that_were_brought_down_take_the_place_of_targets(tmp_path: Path) -> None:
    job = job_of_large_photos(tmp_path)
    camera = LearnedCamera(32)
    camera.tone_gain.fill_(0.5)
    camera.tone_offset.fill_(0.25)
    known = known_clean(job, camera, 1, held_out=True)
    assert len(known.images) == 96 and set(known.groups) == {"below 384 px"}
    assert torch.equal(known.images, known_clean(job, camera, 2, held_out=True).images)
    raw = read_tensors(tmp_path / "bank" / "judging.safetensors")[0]["windows"].float()
    torch.testing.assert_close(known.images, camera.untoned(raw))


def test_windows_that_are_not_clean_make_room_for_drawn_ones_that_did_not_teach(tmp_path: Path) -> None:
    job = job_of_large_photos(tmp_path)
    drawn = blobs(40, 32, seed=5)
    write_tensors(tmp_path / "bank" / "apart.safetensors", {"windows": drawn.half()})
    known = known_clean(job, LearnedCamera(32), 1, held_out=True)
    assert len(known.images) == 96 + 20 and set(known.groups) == {"below 384 px", ""}
    torch.testing.assert_close(known.images[96:], drawn[20:], atol=1e-3, rtol=0)
    darker = SimpleNamespace(removal=torch.nn.Hardtanh(0, 0.01))  # changes every pixel, so nothing is clean
    dirty = cast(Job, SimpleNamespace(**{**vars(job), "quality": darker}))
    assert known_clean(dirty, LearnedCamera(32), 1, held_out=True).groups == ("",) * 20


def test_noise_in_the_dark_alone_makes_a_window_unclean() -> None:
    clean = blobs(2, 64)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)) * (clean < 0.4)

    class Smooth(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where((x - clean).abs() < 0.5, clean, x)

    assert looks_clean(clean, Smooth()).all() and not looks_clean(noisy, Smooth()).any()
    assert looks_clean(clean[:0], Smooth()).shape == (0,)


def test_the_embedded_prior_knows_whole_faces_and_published_ones_any_photo() -> None:
    def kinds(side: int, face: bool) -> list[WindowRecord]:
        return [cast(WindowRecord, SimpleNamespace(face=face, side=side))]

    def job(prior: str, crops: str = "no") -> Job:
        return cast(Job, SimpleNamespace(prior=prior, recipe=SimpleNamespace(windows=SimpleNamespace(crops=crops))))

    small, large, ground = kinds(128, True), kinds(512, True), kinds(128, False)
    assert prior_knows(job("mini"), 3 * small + 2 * large)
    assert not prior_knows(job("mini"), 2 * small + 2 * large) and not prior_knows(job("weights/"), ground)
    assert prior_knows(job("diffbir-v2.1"), ground) and prior_knows(job("mini", "yes"), large)


def test_a_small_gain_is_refused_only_where_the_prior_does_not_know_the_windows() -> None:
    def job(side: int) -> Job:
        windows = (SimpleNamespace(face=True, side=side),)
        recipe = SimpleNamespace(windows=SimpleNamespace(crops="no"), judge=Judge(harm=0.2))
        return cast(Job, SimpleNamespace(prior="mini", recipe=recipe, gathered=SimpleNamespace(windows=windows)))

    assert limits_of(job(512)) == Judge(harm=0.2) and limits_of(job(512)).gain == 0.3
    assert limits_of(job(128)) == Judge(harm=0.2, gain=0)


def test_a_few_groups_of_many_people_are_no_folder_of_faces() -> None:
    def windows(sha256: str, face: bool, count: int) -> list[WindowRecord]:
        return [cast(WindowRecord, Window(sha256, True, face=face, sha256=sha256))] * count

    def folder(*found: list[WindowRecord]) -> Gathered:
        return cast(Gathered, SimpleNamespace(windows=tuple(window for part in found for window in part)))

    crowd, land, sea = windows("a", True, 9), windows("b", False, 2), windows("c", False, 2)
    assert not shows_faces(folder(crowd, land, sea))
    assert shows_faces(folder(crowd, land)) and not shows_faces(folder(land, sea))
