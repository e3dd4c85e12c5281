"""Published restorers by name: looked for in the cache, refused in one line, pinned by hash."""

import dataclasses
from types import SimpleNamespace

import pytest

from adapt.cli import main
from adapt.console import Narrator
from adapt.errors import UsageError
from adapt.options import JobOptions, checked
from adapt.summary import consequence, inherited_licence
from restorers import downloads, zoo
from restorers.downloads import PUBLISHED, WeightsChangedError, checked_sha256
from restorers.zoo import ZooError, is_non_commercial, load_restorer
from tests.restorer_files import NETS, laid_down


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    return tmp_path / "weights"


def test_every_published_restorer_has_a_name_and_a_stand_in():
    names = {weights.name for weights in PUBLISHED}
    assert names == set(zoo.RESTORERS) - {"compact"} == set(NETS)
    assert set(zoo.NON_COMMERCIAL) == {"swinir-gan", "codeformer", "femasr"}


@pytest.mark.parametrize("weights", PUBLISHED, ids=lambda weights: weights.name)
def test_a_missing_file_is_one_line_with_file_command_and_place(weights, cache):
    with pytest.raises(ZooError) as caught:
        load_restorer(weights.name, non_commercial=True)
    text = str(caught.value)
    assert "\n" not in text
    for part in (weights.file, f"adapt weights fetch {weights.name}", weights.url, str(cache / weights.file)):
        assert part in text


@pytest.mark.parametrize("name", sorted(zoo.NON_COMMERCIAL))
def test_what_is_not_for_commercial_use_must_be_asked_for(name):
    with pytest.raises(ZooError, match=r"forbids commercial use.*--non-commercial"):
        load_restorer(name)


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    assert main(["--inputs", str(tmp_path), "--restorer", "gfpgan-v1.4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "adapt weights fetch gfpgan-v1.4" in error
    assert main(["--inputs", str(tmp_path), "--restorer", "codeformer"]) == 2
    assert "--non-commercial" in capsys.readouterr().err


def test_faces_are_as_large_as_the_prior_wants_them_unless_the_recipe_says_otherwise(tmp_path, monkeypatch):
    facts = {
        "resolution": 512,
        "control": object(),
        "aligned_faces": False,
        "weights_sha256": "0" * 64,
        "licence": "Apache-2.0",
    }
    prior = SimpleNamespace(**facts)
    monkeypatch.setattr("adapt.options.load_prior", lambda _: prior)
    options = JobOptions(inputs=tmp_path, command="", prior="diffbir-v2.1")
    assert checked(options, Narrator())[0].windows.size == 512
    with pytest.raises(UsageError, match=r"windows.size 256: prior 'diffbir-v2\.1' works at 512 px"):
        checked(dataclasses.replace(options, overrides=("windows.size=256",)), Narrator())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("finetune.precision=fp16", "fp16: nafnet is not known to be safe in it, expected bf16 or no"),
        ("finetune.losses=codes", "codes: nafnet predicts no codes, expected image"),
    ],
)
def test_what_a_restorer_cannot_do_is_refused_before_any_work(setting, expected, tmp_path, monkeypatch):
    laid_down("nafnet", tmp_path, monkeypatch)
    options = JobOptions(inputs=tmp_path, command="", restorer="nafnet", overrides=(setting,))
    with pytest.raises(UsageError, match=expected):
        checked(options, Narrator())


def test_a_network_without_a_known_decoder_trains_whole_or_with_lora(tmp_path, monkeypatch):
    laid_down("realesr-general-x4v3", tmp_path, monkeypatch)
    options = JobOptions(inputs=tmp_path, command="", restorer="realesr-general-x4v3")
    assert checked(dataclasses.replace(options, overrides=("finetune.parts=lora",)), Narrator())[0].finetune.rank == 8
    with pytest.raises(UsageError, match=r"parts decoder: it is not known which part .*expected all or lora"):
        checked(dataclasses.replace(options, overrides=("finetune.parts=decoder",)), Narrator())


def test_a_hash_that_nobody_published_is_kept_and_a_later_change_refused(cache, caplog):
    cache.mkdir()
    path = cache / downloads.SWINIR_GAN.file
    path.write_bytes(b"first")
    found = checked_sha256(path, downloads.SWINIR_GAN)
    assert found in caplog.text
    assert downloads.record_of(path).read_text().strip() == found
    assert checked_sha256(path, downloads.SWINIR_GAN) == found
    path.write_bytes(b"second")
    with pytest.raises(WeightsChangedError, match=r"expected .*adapt weights fetch swinir-gan"):
        checked_sha256(path, downloads.SWINIR_GAN)


def test_another_file_than_the_published_one_is_refused(cache):
    cache.mkdir()
    (cache / downloads.NAFNET.file).write_bytes(b"other")
    with pytest.raises(ZooError, match="expected cd685efa"):
        load_restorer("nafnet")


def test_what_restricts_the_result_travels_with_it():
    parts = {"restorer a": ("MIT", False), "prior b": ("S-Lab-1.0", True), "stage 1 c": ("OpenRAIL++-M", False)}
    licence = inherited_licence("MIT", parts)
    assert licence == "MIT; adapted with prior b: S-Lab-1.0; adapted with stage 1 c: OpenRAIL++-M"
    assert is_non_commercial(licence) and not is_non_commercial("MIT")
    assert inherited_licence(licence, parts) == licence  # adapted again
    assert "OpenRAIL" in consequence({"restorer a": (licence, True)})


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"restorer a": ("MIT", False)}, "no restriction beyond"),
        ({"restorer a": ("unknown (local file)", False)}, "the licence of restorer a is not known"),
        ({"restorer a": ("S-Lab-1.0", True)}, "no commercial use, because of restorer a"),
        ({"prior b": ("CreativeML OpenRAIL++-M", False)}, "use restrictions of OpenRAIL, which prior b"),
    ],
)
def test_the_report_says_what_the_licences_mean_for_the_result(parts, expected):
    assert expected in consequence(parts)
