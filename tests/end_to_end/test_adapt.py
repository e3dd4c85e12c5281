"""`adapt --inputs` from photos to restorer and report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapt.camera_match import PipelineCamera
from adapt.cli import main
from adapt.photos import read_photo, write_photo
from adapt.records import read_camera
from restorers.runtime import load_runtime
from tests.end_to_end.runs import short_settings, write_blobs
from tests.tiny import blobs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("adapt")
    photos = write_blobs(folder / "photos")
    (photos / "broken.jpg").write_bytes(b"not a photo")
    (photos / "copy.png").write_bytes((photos / "00.png").read_bytes())
    command = ["--inputs", str(photos), "--output", str(folder / "run"), "--aligned", *short_settings()]
    assert main(command) == 0
    return command, folder / "run"


def test_a_run_leaves_everything_a_user_takes_away(finished: tuple[list[str], Path]) -> None:
    _, run = finished
    documents = ("recipe.yaml", "manifest.jsonl", "model_card.md", "report.html", "mlflow.db")
    names = ("restorer.safetensors", "restorer.onnx", *documents)
    assert [name for name in names if not (run / name).is_file()] == []
    assert (run / "rounds/1/camera.safetensors").is_file()
    assert list(run.rglob(".tmp-*")) == []


def test_the_manifest_accounts_for_every_photo_window_and_target(finished: tuple[list[str], Path]) -> None:
    _, run = finished
    rows = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    photos = [row for row in rows if row["kind"] == "photo"]
    windows = [row for row in rows if row["kind"] == "window"]
    targets = [row for row in rows if row["kind"] == "target"]
    assert len([row for row in photos if row["state"] == "used"]) == 12
    reasons = {Path(row["path"]).name: row["reason"] for row in photos if row["state"] != "used"}
    assert set(reasons) == {"broken.jpg", "copy.png"} and all(reasons.values())
    assert len(windows) == 12
    held = {row["id"] for row in windows if row["state"] == "held out"}
    assert len(held) == 2
    assert {row["window"] for row in targets} == {row["id"] for row in windows} - held
    assert all(row["state"] == "accepted" and row["provenance"]["recipe_sha256"] for row in targets)


def test_a_finished_run_returns_at_once_and_changes_nothing(finished: tuple[list[str], Path], capsys) -> None:
    command, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert "already finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_torch_and_onnx_restorers_of_the_run_agree(finished: tuple[list[str], Path]) -> None:
    _, run = finished
    photo = read_photo(next((run / "windows").iterdir()))
    a, b = (load_runtime(run / f"restorer.{suffix}")(photo) for suffix in ("safetensors", "onnx"))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_the_run_restores_photos(finished: tuple[list[str], Path], tmp_path: Path, capsys) -> None:
    _, run = finished
    crop = next((run / "windows").iterdir())
    assert main(["restore", str(crop), "--restorer", str(run), "--output", str(tmp_path), "--aligned"]) == 0
    assert "restored 1 photos" in capsys.readouterr().out
    restored, photo = read_photo(tmp_path / crop.name), read_photo(crop)
    assert restored.shape == photo.shape
    assert 0 < (restored - photo).abs().mean() < 0.2


def test_restoring_without_a_usable_restorer_is_a_usage_error(tmp_path: Path, capsys) -> None:
    photo = write_blobs(tmp_path / "photos", 1)
    command = ["restore", str(photo), "--restorer", str(tmp_path), "--output", str(tmp_path / "out"), "--aligned"]
    assert main(command) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_other_settings_do_not_overwrite_a_run(finished: tuple[list[str], Path], capsys) -> None:
    command, _ = finished
    assert main([*command, "--set", "finetune.steps=99"]) == 2
    assert "other photos or settings" in capsys.readouterr().err


def test_mlflow_has_a_parent_and_a_nested_run(finished: tuple[list[str], Path]) -> None:
    import mlflow

    _, run = finished
    client = mlflow.MlflowClient(f"sqlite:///{run.absolute() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("adapt")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert (len(parents), len(children)) == (1, 1)
    assert "recipe.finetune.steps" in parents[0].data.params
    assert "loss/pixel" in children[0].data.metrics
    assert children[0].data.tags["mlflow.parentRunId"] == parents[0].info.run_id


def test_clean_photos_of_the_user_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    photos, clean = write_blobs(tmp_path / "photos"), write_blobs(tmp_path / "clean", 20)
    command = ["--inputs", str(photos), "--clean", str(clean), "--output", str(tmp_path / "run"), "--aligned"]
    assert main([*command, "--no-tracking", *short_settings()]) == 0
    assert (tmp_path / "run" / "restorer.onnx").is_file()
    assert not (tmp_path / "run" / "bank").exists()
    assert not (tmp_path / "run" / "mlflow.db").exists()


def test_photos_of_mixed_sizes_without_a_face_are_adapted_to_and_restored_whole(tmp_path: Path, capsys) -> None:
    generator = torch.Generator().manual_seed(7)
    sizes = [(90, 140), (128, 128), (200, 333), (300, 260), (280, 420), (400, 300)]
    for index, (height, width) in enumerate(sizes):
        coarse = torch.nn.functional.interpolate(blobs(1, 64, index), (height, width), mode="bicubic")
        noise = 0.05 * torch.randn(coarse.shape, generator=generator)
        write_photo(tmp_path / "photos" / f"{index}.png", (coarse + noise).clamp(0, 1))
    run = tmp_path / "run"
    command = ["--inputs", str(tmp_path / "photos"), "--content", "photos", "--output", str(run), "--no-tracking"]
    camera = ["--set", "camera.form=pipeline", "--set", "camera.settings=16"]
    assert main([*command, *short_settings(), "--set", "windows.maximum=24", *camera]) == 0
    said = capsys.readouterr().out
    assert "found 6 photos, 0 faces: of 1" in said and "0 photos not used" in said
    assert (run / "bank" / "photos.safetensors").is_file() and (run / "report.html").is_file()
    camera = read_camera(run / "rounds" / "1" / "camera.safetensors")
    assert isinstance(camera, PipelineCamera) and camera.table.any()
    assert float(camera.tone_gain) == 1 and not camera.tone_root.any()  # nothing is known of the tone without faces
    assert main(["restore", str(tmp_path / "photos"), "--restorer", str(run), "--output", str(tmp_path / "out")]) == 0
    assert "restored 6 photos" in capsys.readouterr().out
    for index, size in enumerate(sizes):
        assert read_photo(tmp_path / "out" / f"{index}.png").shape[-2:] == size


def test_too_few_windows_stop_with_one_clear_line(tmp_path: Path, capsys) -> None:
    photos = write_blobs(tmp_path / "few", 5)
    assert main(["--inputs", str(photos), "--output", str(tmp_path / "run"), "--aligned", "--no-tracking"]) == 1
    error = capsys.readouterr().err.strip()
    assert "5 windows" in error and "at least 8" in error and "\n" not in error


def test_bad_options_are_all_reported_before_any_work(tmp_path: Path, capsys) -> None:
    command = ["--inputs", str(tmp_path / "none"), "--restorer", "compakt", "--prior", "minni", "--set", "roundz=1"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    for part in ("no such folder", "did you mean 'compact'", "did you mean 'mini'", "did you mean 'rounds'"):
        assert part in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [[], ["restore"], ["recipes"], ["weights"], ["doctor"], ["pretrain"]])
def test_every_command_has_help_with_an_example(command: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "example" in capsys.readouterr().out


def test_missing_options_are_usage_errors(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "--inputs" in capsys.readouterr().err


def test_recipes_are_listed_and_printed(capsys) -> None:
    assert main(["recipes"]) == 0
    assert "default" in capsys.readouterr().out
    assert main(["recipes", "quick"]) == 0
    assert "camera:" in capsys.readouterr().out


def test_doctor_finds_the_embedded_weights(capsys) -> None:
    assert main(["doctor"]) == 0
    assert "ready" in capsys.readouterr().out


def test_without_the_flag_ray_is_not_imported() -> None:
    code = "import adapt.job, adapt.cluster, sys; sys.exit('ray' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
