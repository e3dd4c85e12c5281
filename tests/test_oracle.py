"""`benchmarks.oracle_gap`: what it refuses before hours of work, how it reads photos, closes gaps and keeps rows."""

from pathlib import Path

import pytest
import torch

from adapt.console import Narrator
from adapt.errors import AdaptError
from adapt.evaluate import align_tone
from adapt.gather import gather
from adapt.job import run_job
from adapt.options import checked
from adapt.photos import read_photo, write_photo
from benchmarks import ablations, oracle_gap, oracle_rows
from benchmarks.oracle_pairs import references_of, references_of_windows, scored_photos, taught_windows
from benchmarks.oracle_rows import Ground, Run, bank_of, dt_bfr_settings, job_options, oracle
from benchmarks.oracle_table import gap_closed
from recipes.load import load_recipe
from recipes.schema import Windows
from restorers.zoo import load_restorer
from tests.end_to_end.runs import SHORT, write_blobs
from tests.tiny import blobs


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """A folder with `adapt`, `test` and `references`."""
    for name, count in (("adapt", 12), ("test", 3), ("references", 12)):
        write_blobs(tmp_path / name, count)
    return tmp_path


def fault(camera: Path, capsys: pytest.CaptureFixture[str], *more: object) -> str:
    """What the command says when it refuses."""
    folders = [word for name in ("adapt", "test", "references") for word in (f"--{name}", camera / name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle_gap, "measure", lambda *_: pytest.fail("began to work"))
        patch.setattr(oracle_gap, "find_spec", lambda name: True)
        patch.setattr("sys.argv", [str(word) for word in ("oracle_gap", *folders, *more)])
        with pytest.raises(SystemExit) as stopped:
            oracle_gap.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_work_is_refused_at_once(camera: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected 1 or more" in fault(camera, capsys, "--seeds", 0)
    assert "benchmarks.cameras" in fault(camera, capsys, "--camera", "benchmarks.cameras:flim")
    assert "does not exist" in fault(camera, capsys, "--clean", camera / "clean")
    assert "got tragets" in fault(camera, capsys, "--rows", "ours, generic,tragets")
    (camera / "references" / "05.png").unlink()
    assert "no reference for 1 photos" in fault(camera, capsys) and "'05'" in fault(camera, capsys)
    write_blobs(camera / "references")
    write_photo(camera / "references" / "05.jpg", blobs(1, 128))
    assert "names stand more than once" in fault(camera, capsys)
    (camera / "references" / "05.jpg").unlink()
    (camera / "references").rename(camera / "adapt" / "references")
    assert "whose photos it would join" in fault(camera, capsys, "--references", camera / "adapt" / "references")


def test_one_reference_may_serve_several_photos(camera: Path) -> None:
    first = (camera / "references" / "00.png").read_bytes()
    (camera / "references" / "01.png").write_bytes(first)
    paths = [camera / "test" / f"0{index}.png" for index in range(2)]
    references = references_of(paths, camera / "references")
    assert torch.equal(references[0], references[1])


def test_photos_are_scored_at_their_own_size(camera: Path) -> None:
    large, test = blobs(1, 300), camera / "test"
    write_photo(test / "wide.png", large[..., :200, :])
    photos, paths = scored_photos(test)
    at = paths.index(test / "wide.png")
    assert torch.equal(photos[at], read_photo(test / "wide.png")) and photos[at].shape == (1, 3, 200, 300)
    write_photo(camera / "references" / "wide.png", large)
    with pytest.raises(AdaptError, match=r"wide.png: photo and reference are 300 x 200 px and 300 x 300 px"):
        references_of([test / "wide.png"], camera / "references")


def test_windows_of_references_lie_where_those_of_photos_do(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        photo = torch.rand(1, 3, 200, 260, generator=generator)
        small = torch.rand(1, 3, 50, 50, generator=generator)
        large = torch.nn.functional.interpolate(small, (600, 600), mode="bicubic").clamp(0, 1)
        write_photo(tmp_path / "photos" / f"{index}.png", large if index == 0 else photo)
    gathered = gather(tmp_path / "photos", tmp_path / "run", Windows(crops="no"), None, lambda done, total: None)
    windows, records = taught_windows(tmp_path / "run")
    assert gathered.windows == records and len({record.matrix[0][0] for record in records}) == 2
    same = references_of_windows(records, tmp_path / "photos", tmp_path / "photos", 128)
    torch.testing.assert_close(same, windows, atol=3e-3, rtol=0)  # windows are stored in 8 bits


def refused(camera: Path) -> tuple[Ground, Run]:
    """A job whose targets the gate refuses, all of them."""
    settings = [setting for setting in SHORT if not setting.startswith("gate.")]
    job = job_options(camera / "adapt", camera / "run", "default", (*settings, "gate.quality=99"))
    run = Run(run_job(job), ())
    photos, windows = taught_windows(run.folder)
    assert len(photos) == len(windows) == 12
    for photo, window in zip(photos, windows, strict=True):
        assert torch.equal(photo, read_photo(camera / "adapt" / Path(window.photo).name)[0])
    return Ground(photos, checked(job, Narrator()).recipe, camera / "rows", load_restorer("compact")), run


def test_rows_of_a_camera_whose_targets_are_refused(camera: Path) -> None:
    ground, run = refused(camera)
    assert bank_of(ground, run).shape == (16, 3, 128, 128) and run.seconds() > 0


def test_a_row_is_trained_anew_on_other_references(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("default", ("rounds=1", "finetune.steps=3", "finetune.batch=2"))
    ground = Ground(blobs(4, 64), recipe, camera / "rows", load_restorer("compact"))
    plan_of = oracle_rows.plan_of
    monkeypatch.setattr(oracle_rows, "plan_of", lambda *given: oracle_rows.replace(plan_of(*given), save_seconds=0.0))
    one, other = (oracle(ground, references)(ground.photos) for references in (ground.photos, 1 - ground.photos))
    assert not torch.equal(one, other)
    assert torch.equal(one, oracle(ground, ground.photos)(ground.photos))
    assert len(list((camera / "rows").glob("oracle-*.pt"))) == 2


def test_the_rival_gets_the_same_photos_batch_and_steps() -> None:
    mine = load_recipe("default", ("windows.minimum=5", "windows.maximum=50", "finetune.batch=3", "rounds=3", "seed=7"))
    rival = load_recipe("dt_bfr", dt_bfr_settings(mine))
    assert rival.windows == mine.windows.model_copy(update={"crops": "no"}) and rival.seed == 7
    assert (rival.finetune.batch, rival.finetune.steps) == (3, 3 * mine.finetune.steps)


def test_a_gap_that_the_oracle_does_not_close_is_none() -> None:
    rows = {
        "untouched": {"psnr": 20.0, "ssim": 0.9, "haarpsi": 0.8, "lpips": 0.3},
        "ours": {"psnr": 21.0, "ssim": 0.89, "haarpsi": 0.81, "lpips": 0.25},
        "oracle": {"psnr": 22.0, "ssim": 0.88, "haarpsi": 0.805, "lpips": 0.2},
    }
    closed = gap_closed(rows, "ours")
    assert closed == {"psnr": 0.5, "ssim": None, "haarpsi": None, "lpips": pytest.approx(0.5)}


def test_a_channel_that_is_all_black_is_aligned() -> None:
    night = blobs(2) * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    aligned = align_tone(night, blobs(2, seed=1))
    assert bool(aligned.isfinite().all())


def test_a_copy_that_was_killed_is_made_again(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = camera / "ours"
    write_blobs(ours / "bank", 2)
    job = job_options(camera / "adapt", camera / "ablation", "default", SHORT)
    change = ablations.Ablation((), ("bank",))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablations.shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            ablations.prepare(job, ours, change)
    assert not (camera / "ablation").exists()
    ablations.prepare(job, ours, change)
    assert len(list((camera / "ablation" / "bank").iterdir())) == 2
    assert (camera / "ablation" / "command.json").is_file()
