"""The benchmark's rows, on a few blobs: all there, finite, and blind where they claim to be."""

import json
import math
from collections.abc import Callable

import pytest

from benchmarks import oracle_gap, oracle_rows
from benchmarks.oracle_table import gap_closed
from tests.end_to_end.runs import short_settings, write_blobs

pytest.importorskip("piq")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("oracle")
    references, away = folder / "references", folder / "away"
    for name in ("adapt", "test", "references"):
        write_blobs(folder / name, 12 if name == "adapt" else 6)
    for photo in sorted((folder / "adapt").iterdir()):
        (references / photo.name).write_bytes(photo.read_bytes())

    def blind(work: Callable[..., object]) -> Callable[..., object]:
        def blindfolded(*arguments: object) -> object:
            references.rename(away)  # what is not there cannot be read
            try:
                return work(*arguments)
            finally:
                away.rename(references)

        return blindfolded

    command = ["oracle_gap", "--adapt", folder / "adapt", "--test", folder / "test", "--references", references]
    command += [*short_settings(), "--ablations", "without camera", "--clean", folder / "adapt"]
    command += ["--json", folder / "result.json"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("adapt", "generic_steps", "self_distilled", "targets_of"):
            patch.setattr(oracle_rows, name, blind(getattr(oracle_rows, name)))
        short = ("generation.calls=2", "generation.start_timesteps=[8]", "generation.end_timestep=0", "camera.bank=16")
        patch.setattr(oracle_rows, "DT_BFR", (*oracle_rows.DT_BFR, *short))
        patch.setattr("sys.argv", [str(word) for word in command])
        oracle_gap.main()
    return json.loads((folder / "result.json").read_text())


def test_every_row_has_finite_scores(result: dict) -> None:
    blind = {"untouched", "ours", "generic", "self_distilled", "dt_bfr", "targets", "photo"}
    blind |= {"one round", "without camera", "bank of --clean"}
    assert set(result["rows"]) == blind | {"true_pair_camera*", "oracle"}
    assert all(math.isfinite(value) for row in result["rows"].values() for value in row.values())


def test_an_ablation_that_changes_nothing_changes_nothing(result: dict) -> None:
    rows, kept = result["rows"], result["runs"][0]["accepted_rounds"]
    assert kept["ours"] > 1 or rows["one round"] == rows["ours"]
    assert rows["bank of --clean"] != rows["one round"] or kept["bank of --clean"] == kept["one round"] == 0


def test_the_keys_that_are_promised_are_there(result: dict) -> None:
    for key in ("oracle_gap_closed", "oracle_gap_closed_aligned"):
        assert set(result[key]) >= {"psnr", "ssim", "haarpsi"}
    assert 0 <= result["harm_rate"] <= 1 and result["seeds"] == [0]
    assert {"ours", "targets", "oracle"} <= result["seconds"].keys() and result["seconds"]["ours"] > 0
    assert result["recipe"]["finetune"]["steps"] == 6


def test_the_untouched_row_closes_nothing_and_the_oracle_all(result: dict) -> None:
    gains = result["oracle_gain"]["psnr"] >= 0.1  # six steps on blobs may gain too little
    assert gap_closed(result["rows"], "untouched")["psnr"] == (0 if gains else None)
    assert gap_closed(result["rows"], "oracle")["psnr"] == (1 if gains else None)
    assert result["rows"]["untouched"]["harm_rate"] == 0
