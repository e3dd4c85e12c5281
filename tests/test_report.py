"""Report and model card: complete on their own, safe against names from outside, whole for every way a run can end."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapt.model_card import model_card, write_model_card
from adapt.report import confidence_colours, duration, picture, render, verdict_of, write_report
from adapt.report_charts import loss_charts, score_charts
from adapt.results import Example, Judgement, PairedDifference, RoundReport, RunSummary

EVIL = 'a"><script>alert(1)</script>|`x` \udcff.jpg'
VOID = {"meta", "img", "br", "line", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a page would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def face(seed: int, size: int = 48) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def example(seed: int, title: str = "a.jpg", note: str = "") -> Example:
    return Example(title, face(seed), face(seed + 1), face(seed + 2), face(seed + 3), torch.rand(1, 48, 48), note)


def a_round(number: int, accepted: bool) -> RoundReport:
    differences = {
        "cleanness": PairedDifference(0.02, 0.01, 0.03, 12),
        "agreement": PairedDifference(-0.01, -0.02, 0.0, 12),
    }
    losses = tuple({"step": float(step), "total": 1 / step, "pixel": 0.5 / step} for step in range(1, 500))
    judgement = Judgement(differences, 0.25, accepted, "cleaner on held-out photos" if accepted else "not cleaner")
    seconds = {"pseudo targets": 61.0, "finetune": 30.2}
    return RoundReport(number, 20, 15, {"does not match the photo": 5}, losses, judgement, seconds)


def a_run(tmp_path: Path) -> RunSummary:
    return RunSummary(
        inputs=f"/photos/{EVIL}",
        command=f"adapt --inputs '{EVIL}'",
        run_dir=tmp_path,
        recipe_yaml="name: default\nrounds: 2 # <b>\n",
        photos=40,
        faces=38,
        windows=38,
        teaching=26,
        judging=12,
        refused=((EVIL, "is truncated & <broken>"),),
        rounds=(a_round(1, True), a_round(2, False)),
        held_out_examples=(example(0, EVIL), example(5)),
        accepted_examples=(example(10),),
        rejected_examples=(example(20, note=f"does not match: {EVIL}"),),
        camera_images={"clean": torch.rand(3, 40, 160), "seen": torch.rand(3, 40, 160)},
        licences={"restorer compact": "Apache-2.0", "prior <mini>": "Apache-2.0"},
        restorer="compact",
        prior="mini",
        seconds=431.0,
        adapted=True,
        distance_to_base=0.0123,
        files={"restorer": tmp_path / "restorer.safetensors", "onnx": tmp_path / "restorer.onnx"},
    )


def endings(tmp_path: Path) -> dict[str, RunSummary]:
    """Every way a run can end."""
    run = a_run(tmp_path)
    unjudged = replace(
        a_round(1, False), losses=(), judgement=Judgement({}, 0.0, False, "only 2 of 20 could be trusted")
    )
    refused = tuple((f"photo{number}.jpg", "zero bytes") for number in range(1000))
    broken = tuple({"step": float(step), "total": float("nan")} for step in range(3))
    constant = ({"step": 1.0, "total": 0.0},)
    lost = replace(run, adapted=False, distance_to_base=0.0)
    return {
        "adapted": run,
        "no rounds": replace(lost, rounds=(), accepted_examples=(), rejected_examples=(), camera_images={}, files={}),
        "rolled back": replace(lost, rounds=(a_round(1, False),)),
        "nothing accepted": replace(lost, rounds=(unjudged,), accepted_examples=()),
        "many refused": replace(run, refused=refused),
        "nothing to show": replace(run, held_out_examples=(), rejected_examples=(), refused=(), licences={}),
        "odd losses": replace(
            run, rounds=(replace(a_round(1, True), losses=broken), replace(a_round(2, True), losses=constant))
        ),
    }


@pytest.mark.parametrize("ending", list(endings(Path("."))))
def test_each_ending_makes_a_whole_page_and_card(ending: str, tmp_path: Path) -> None:
    summary = endings(tmp_path)[ending]
    write_report(summary, tmp_path / "report.html")
    write_model_card(summary, tmp_path / "model_card.md")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert verdict_of(summary).headline in text
    assert verdict_of(summary).headline in (tmp_path / "model_card.md").read_text(encoding="utf-8")


def test_names_from_outside_are_escaped_everywhere(tmp_path: Path) -> None:
    text = render(a_run(tmp_path))
    assert "<script>" not in text
    assert "<broken>" not in text
    assert text.count("&lt;script&gt;") >= 4  # inputs, command, held-out title, refused photo, note
    card = model_card(a_run(tmp_path))
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", card, flags=re.DOTALL)
    assert "<script>" not in prose
    assert "<mini>" not in prose
    assert "\udcff" not in card


@pytest.mark.parametrize(
    ("ending", "headline", "harm"),
    [
        ("adapted", "The restorer was adapted to this camera", "25%"),
        ("rolled back", "Adaptation does not help here", "25%"),
        ("nothing accepted", "Adaptation does not help here", "not judged"),
        ("no rounds", "Nothing was adapted", "not judged"),
    ],
)
def test_the_verdict_says_what_happened(ending: str, headline: str, harm: str, tmp_path: Path) -> None:
    verdict = verdict_of(endings(tmp_path)[ending])
    assert (verdict.headline, verdict.harm) == (headline, harm)


def test_the_report_shows_reasons_numbers_command_and_recipe(tmp_path: Path) -> None:
    text = render(a_run(tmp_path))
    for expected in (
        "Cleaner on held-out photos.", "does not match the photo", "+0.0200", "+0.0100 to +0.0300", "7 min 11 s",
        "15 of 20", "restorer.onnx", "rounds: 2 # &lt;b&gt;", "Apache-2.0", "26 teach, 12 judge",
    ):  # fmt: skip
        assert expected in text


def test_many_refused_photos_are_cut_with_a_pointer(tmp_path: Path) -> None:
    text = render(endings(tmp_path)["many refused"])
    assert "1000 photos with their reasons" in text
    assert "800 more are in manifest.jsonl" in text
    assert text.count("zero bytes") == 200


def test_a_card_says_scores_limits_licences_and_how_to_load(tmp_path: Path) -> None:
    card = model_card(a_run(tmp_path))
    for expected in ("ModelLoader", "onnxruntime", "adapt restore", "+0.0100 to +0.0300", "invented", "Apache-2.0"):
        assert expected in card
    for line in card.splitlines():
        if line.startswith("| restorer"):
            assert line.count(" | ") == 1


def test_pictures_are_reduced_and_keep_their_colours(tmp_path: Path) -> None:
    image = torch.tensor([0.9, 0.5, 0.1])[:, None, None].expand(3, 400, 800)
    address = picture(image, tmp_path, 200)
    pixels = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert pixels.size == (200, 100)
    assert all(abs(a - b) <= 3 for a, b in zip(pixels.getpixel((50, 50)), (230, 128, 26), strict=True))
    assert picture(torch.full((3, 8, 8), float("nan")), tmp_path, 200).startswith("data:")


def test_confidence_goes_from_dark_to_bright_whatever_its_shape() -> None:
    ramp = torch.linspace(0, 1, 16).expand(16, 16)
    colours = confidence_colours(ramp)
    assert colours.shape == (3, 16, 16)
    assert torch.equal(colours, confidence_colours(ramp[None]))
    assert torch.allclose(colours, confidence_colours(ramp.expand(3, 16, 16)), atol=1e-6)
    brightness = colours.mean(0)[0]
    assert (brightness.diff() > 0).all()


def test_charts_have_a_line_a_round_and_a_bar_a_judgement(tmp_path: Path) -> None:
    rounds = a_run(tmp_path).rounds
    losses, scores = loss_charts(rounds), score_charts(rounds)
    assert [chart.title for chart in losses] == ["total", "pixel"]
    assert all(chart.svg.count("<polyline") == 2 for chart in losses)
    assert [chart.title for chart in scores] == ["cleanness", "agreement"]
    assert all((chart.svg.count("mean kept"), chart.svg.count("mean dropped")) == (1, 1) for chart in scores)
    coordinates = [
        float(n) for chart in losses for n in re.findall(r"points=\"([^\"]+)", chart.svg)[0].replace(",", " ").split()
    ]
    assert all(0 <= value <= 320 for value in coordinates)
    assert loss_charts(()) == []
    assert score_charts(()) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.21, "3.2 s"), (45, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.9, "1 min 00 s")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_card_says_what_really_taught_and_what_a_licence_needs(tmp_path: Path) -> None:
    run = replace(a_run(tmp_path), multiple_of=8, minimum=64)
    card = model_card(run)
    assert "learned from clean windows seen through it." in card and "100% of the training pairs" in card
    assert "multiples of 8 and at least 64" in card and "--non-commercial" not in card
    assert "fitted to one camera" in card
    mixed = model_card(replace(run, seen_share=0.75, commercial=False))
    assert "and from the pseudo targets themselves" in mixed and "75% of the training pairs" in mixed
    assert "--output restored --non-commercial" in mixed
    assert "learned from pseudo targets that" in model_card(replace(run, seen_share=0.0))
    unchanged = model_card(replace(run, adapted=False))
    assert "Nothing that was learned from them was kept." in unchanged and "fitted to one camera" not in unchanged
