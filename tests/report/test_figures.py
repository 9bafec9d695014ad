from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fabricated_run import NAMES, fabricate
from PIL import Image

from gate.report.figures import draw_all, figures, look
from gate.report.figures.cost import pareto
from gate.report.figures.heatmap import colour_limit, feature_metrics, suppression
from gate.report.figures.labels import place_labels
from gate.report.figures.mosaic import grid, tile
from gate.runs.directory import Run

ALL = ("ranking", "suppression-and-probe-gain", "heatmap", "gain-and-cost", "reconstructions", "features")


def _texts(figure: object) -> str:
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in figure.findobj(Text))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def drawn(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All figures of the complete run, once."""
    before = dict(matplotlib.rcParams)
    files = draw_all(run, tmp_path_factory.mktemp("made") / "new" / "figures")
    assert dict(matplotlib.rcParams) == before, "the user's own settings must stay"
    return files


def test_a_complete_run_has_all_figures_as_png_and_svg(drawn: list[Path]) -> None:
    assert {f.name for f in drawn} == {f"{name}.{kind}" for name in ALL for kind in ("png", "svg")}
    for file in drawn:
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
                assert min(image.size) > 200
        else:
            assert "<svg" in file.read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_bytes(run: Run, drawn: list[Path], tmp_path: Path) -> None:
    with look.styled():
        for name in ("ranking", "gain-and-cost"):
            for again in look.save(figures()[name](run), tmp_path / name):
                first = next(f for f in drawn if f.name == again.name)
                assert again.read_bytes() == first.read_bytes(), again.name


def test_no_pyplot_and_no_display(tmp_path: Path) -> None:
    code = (
        "import gate.report.figures.ranking, gate.report.figures.labels, sys; "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ALL)
def test_titles_carry_n_data_and_direction(run: Run, name: str) -> None:
    with look.styled():
        text = _texts(figures()[name](run))
    assert "scenes-held-out" in text
    assert "higher is better" in text or "closer to the input" in text
    assert "n = 24" in text or "4 samples" in text or "2 samples" in text


@pytest.mark.parametrize("name", ["ranking", "heatmap", "reconstructions", "features"])
def test_every_technique_is_named(run: Run, name: str) -> None:
    with look.styled():
        text = _texts(figures()[name](run))
    for technique in NAMES:
        assert technique in text


@pytest.mark.parametrize("name", ["suppression-and-probe-gain", "gain-and-cost"])
def test_what_lies_outside_the_axes_is_said(run: Run, name: str) -> None:
    with look.styled():
        text = _texts(figures()[name](run))
    for technique in NAMES:
        assert technique in text
    assert "freeu (-1" in text  # the collapse, with its numbers


def test_shift_only_and_no_images_and_one_technique(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt",), probes=False, images=0)
    names = {f.stem for f in draw_all(run, tmp_path / "figures")}
    assert names == {"ranking", "heatmap", "gain-and-cost", "features"}


def test_no_feature_metric_means_no_heat_map(tmp_path: Path) -> None:
    assert figures()["heatmap"](fabricate(tmp_path / "run", metrics=())) is None


def test_many_deep_layers(tmp_path: Path) -> None:
    layers = tuple(f"up{i}.attention{j}.block0.cross.q" for i in range(4) for j in range(3))
    run = fabricate(tmp_path / "run", names=("prompt", "freeu"), layers=layers)
    with look.styled():
        assert layers[-1] in _texts(figures()["heatmap"](run))


def test_a_technique_without_a_score_is_left_out_of_the_figures(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt", "noise-ensemble"))
    assert run.results.ranking[1].name == "prompt"
    for key in ("score", "ci_low", "ci_high", "suppression", "probe_gain"):
        setattr(run.results.ranking[1], key, None)
    with look.styled():
        for name, draw in figures().items():
            assert "noise-ensemble" in _texts(draw(run)) or name == "suppression-and-probe-gain"
            assert "prompt\n" not in _texts(draw(run)) + "\n"


def test_suppression_of_a_cell_by_hand() -> None:
    shift = np.ones((3, 2, 2, 1, 4))
    shift[1] *= 0.75
    shift[2, 0] = np.nan
    shift[:, 1, :, :, 0] *= 3
    share = suppression(shift)
    assert share.shape == (3, 2, 1)
    np.testing.assert_array_equal(share[0], 0)  # vanilla is exactly 0
    np.testing.assert_allclose(share[1], 0.25)
    assert np.isnan(share[2, 0, 0]) and share[2, 1, 0] == 0


def test_the_heat_map_shows_the_metrics_of_the_score(run: Run) -> None:
    assert feature_metrics(run) == ["laplacian-normalised@own", "cosine@own", "cka@own"]


def test_one_collapse_does_not_bleach_the_rest() -> None:
    values = np.concatenate([np.linspace(-10, 20, 95), [-400.0] * 5])
    assert 20 <= colour_limit(values) <= 30
    assert colour_limit(np.array([])) == 1


def test_pareto_front_by_hand() -> None:
    points = [(1, 0), (1, 5), (3, 4), (3, 9), (8, 9), (9, 20)]
    assert pareto(points) == [(1, 5), (3, 9), (9, 20)]


def test_crowded_labels_do_not_cover_each_other() -> None:
    with look.styled():
        figure = look.new_figure(6, 5)
        axes = figure.add_subplot()
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        place_labels(figure, axes, [(0, 0.03 * i, f"technique-{i}") for i in range(12)])
        renderer = figure.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in axes.texts]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)


def test_tiles_and_grid() -> None:
    white, half = np.full((4, 4, 3), 255, np.uint8), np.full((64, 64, 3), 0.5)
    assert tile(white, 8).shape == (8, 8, 3) and (tile(white, 8) == 255).all()
    assert (tile(half, 8) == 128).all()
    sheet = grid([[tile(half, 8), None], [tile(half, 8)]], gap=2)
    assert sheet.shape == (18, 18, 3)
    assert (sheet[:8, :8] == 128).all() and (sheet[8:10] == 255).all() and (sheet[10:, 10:] == 255).all()
