from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from fabricated_run import NAMES, fabricate
from matplotlib.text import Text
from PIL import Image

from gate.report.figures import draw_all, figures, look
from gate.report.figures.cost import named, pareto
from gate.report.figures.heatmap import colour_limit, feature_metrics, suppression
from gate.report.figures.labels import LEADER_COLOUR, place_labels
from gate.report.figures.mosaic import grid, tile
from gate.runs.directory import Run

ALL = ("ranking", "suppression-and-probe-gain", "heatmap", "gain-and-cost", "reconstructions", "features")


def _drawn(name: str, run: Run) -> list[Any]:
    """The figure, or all its pages, as a list."""
    drawn = figures()[name](run)
    return drawn if isinstance(drawn, list) else [drawn]


def _texts(pages: list[Any]) -> str:
    return "\n".join(t.get_text() for page in pages for t in page.findobj(Text))


@pytest.fixture(scope="module")
def drawn(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All figures of the complete run, once."""
    before = dict(matplotlib.rcParams)
    files = draw_all(run, tmp_path_factory.mktemp("made") / "new" / "figures")
    assert dict(matplotlib.rcParams) == before, "the user's own settings must stay"
    return files


def test_a_complete_run_has_all_figures_as_png_and_svg(drawn: list[Path]) -> None:
    names = (*ALL, "reconstructions-2")  # fifteen techniques: two pages
    assert {f.name for f in drawn} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
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
        text = _texts(_drawn(name, run))
    assert "scenes-held-out" in text
    assert "higher is better" in text or "closer to the input" in text
    assert "n = 24" in text or "4 samples" in text or "2 samples" in text


@pytest.mark.parametrize("name", ["ranking", "heatmap", "reconstructions", "features"])
def test_every_technique_is_named(run: Run, name: str) -> None:
    with look.styled():
        text = _texts(_drawn(name, run))
    for technique in NAMES:
        assert technique in text


PLOTS = pytest.mark.parametrize("name", ["suppression-and-probe-gain", "gain-and-cost"])


@PLOTS
def test_what_lies_outside_the_axes_is_said(run: Run, name: str) -> None:
    with look.styled():
        assert "freeu (-1" in _texts(_drawn(name, run))  # the collapse, with its numbers


@PLOTS
def test_winners_controls_and_the_front_are_named_and_nobody_else(run: Run, name: str) -> None:
    front = {"prompt", "prompt+guidance-pag", "prompt+noise-ensemble"}
    wanted = front | set(run.results.winners) | {"shuffled-prompt", "guidance-cfg"}
    with look.styled():
        (figure,) = _drawn(name, run)
    assert {t.get_text() for t in figure.axes[0].texts} - {"vanilla"} == wanted


def test_the_front_leaves_out_what_does_not_differ_from_vanilla(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt", "shared-timestep", "noise-ensemble"))
    cheap = next(r for r in run.results.ranking if r.name == "shared-timestep")
    cheap.score = 0.9
    assert cheap.verdict == "none" and "shared-timestep" not in named(run.results)
    with look.styled():
        (figure,) = _drawn("gain-and-cost", run)
    line = next(line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post")
    assert list(line.get_ydata()[:-1]) == pytest.approx([6.5, 22.5])
    assert list(line.get_xdata()[:-1]) == [1, 8]


@pytest.mark.parametrize("count", [1, 6])
@PLOTS
def test_names_and_their_lines_neither_overlap_nor_cross(tmp_path: Path, name: str, count: int) -> None:
    names = (
        *NAMES,
        *(f"guidance-cfg[scale={i}]" for i in range(count)),
    )  # controls on one spot: all are named
    run = fabricate(tmp_path / "run", names=names)
    with look.styled():
        (figure,) = _drawn(name, run)
        _assert_apart(figure)
    shown = {t.get_text() for t in figure.axes[0].texts}
    assert set(run.results.winners) <= shown and "guidance-cfg" in shown
    assert count > 1 or named(run.results) <= shown


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("timesteps", [(50,), (50, 300)])
def test_no_text_is_cut(tmp_path: Path, name: str, timesteps: tuple[int, ...]) -> None:
    long = "freeu[b1=1.2345,b2=1.2345,s1=0.9876,s2=0.9876]"
    run = fabricate(tmp_path / "run", names=(*NAMES, long), timesteps=timesteps)
    with look.styled():
        for figure in _drawn(name, run):
            figure.canvas.draw()
            for text in _seen(figure):
                box = text.get_window_extent()
                assert box.x0 > -1 and box.x1 < figure.bbox.x1 + 1, text.get_text()
                assert box.y0 > -1 and box.y1 < figure.bbox.y1 + 1, text.get_text()


def _seen(figure: Any) -> list[Text]:
    """Every text but the labels of ticks that lie outside their axes."""
    beyond = [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        if not (min(axis.get_view_interval()) <= at <= max(axis.get_view_interval()) and axes.axison)
    ]
    texts = figure.findobj(Text)
    return [t for t in texts if t.get_visible() and t.get_text().strip() and not any(t is b for b in beyond)]


@pytest.mark.slow
def test_no_picture_of_sixty_techniques_is_taller_than_two_thousand_pixels(tmp_path: Path) -> None:
    names = tuple(f"prompt[quality={i}]" for i in range(60))
    run = fabricate(tmp_path / "run", names=names)
    with look.styled():
        for name in ("ranking", "heatmap", "reconstructions", "features"):  # the others are of one size
            pages = _drawn(name, run)
            assert all(page.get_figheight() * look.DPI <= 2000 for page in pages), name
            assert all(n in _texts(pages) for n in names)
            assert (len(pages) > 1) == (name == "reconstructions")


def test_features_name_their_layer(run: Run) -> None:
    assert run.results.axes.picture_layer == "up3"
    with look.styled():
        assert "Features of up3 as colours" in _texts(_drawn("features", run))
        run.results.axes.picture_layer = ""  # a run of before
        assert "Features as colours" in _texts(_drawn("features", run))
        run.results.axes.picture_layer = "up3"


def test_grey_squares_are_explained_where_they_stand(run: Run, tmp_path: Path) -> None:
    with look.styled():
        assert _texts(_drawn("reconstructions", run)).count("nothing is generated") == 1  # ddim-inversion's
        other = fabricate(tmp_path / "run", names=("prompt", "freeu"))
        assert "nothing is generated" not in _texts(_drawn("reconstructions", other))


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
        assert layers[-1] in _texts(_drawn("heatmap", run))


def test_a_technique_without_a_score_is_left_out_of_the_figures(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt", "noise-ensemble"))
    assert run.results.ranking[1].name == "prompt"
    for key in ("score", "ci_low", "ci_high", "suppression", "probe_gain"):
        setattr(run.results.ranking[1], key, None)
    with look.styled():
        for name in ALL:
            text = _texts(_drawn(name, run)) + "\n"
            assert "noise-ensemble" in text and "prompt\n" not in text


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
        _assert_apart(figure)


def _assert_apart(figure: Any) -> None:
    """No drawn name covers another or the legend, and no line to a name enters one or crosses another line."""
    (axes,) = figure.axes
    texts = [t for t in axes.texts if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    legend = axes.get_legend()
    boxes += [legend.get_window_extent()] if legend else []
    assert len(texts) > 2
    frame = axes.get_window_extent()
    for text, box in zip(texts, boxes, strict=False):
        assert box.x0 > frame.x0 - 1 and box.x1 < frame.x1 + 1, text.get_text()
        assert box.y0 > frame.y0 - 1 and box.y1 < frame.y1 + 1, text.get_text()
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)
    leaders = [
        axes.transData.transform(line.get_xydata())
        for line in axes.lines
        if line.get_color() == LEADER_COLOUR
    ]
    for i, line in enumerate(leaders):
        steps = np.linspace(line[0], line[1], 200)[1:-2]
        for box in boxes:
            inside = (steps > (box.x0 + 1, box.y0 + 1)) & (steps < (box.x1 - 1, box.y1 - 1))
            assert not inside.all(axis=1).any()
        for other in leaders[:i]:
            turn = [
                np.linalg.det([b - a, p - a]) for (a, b), ends in ((line, other), (other, line)) for p in ends
            ]
            assert not (turn[0] * turn[1] < -1e-6 and turn[2] * turn[3] < -1e-6)


def test_tiles_and_grid() -> None:
    white, half = np.full((4, 4, 3), 255, np.uint8), np.full((64, 64, 3), 0.5)
    assert tile(white, 8).shape == (8, 8, 3) and (tile(white, 8) == 255).all()
    assert (tile(half, 8) == 128).all()
    sheet = grid([[tile(half, 8), None], [tile(half, 8)]], gap=2)
    assert sheet.shape == (18, 18, 3)
    assert (sheet[:8, :8] == 128).all() and (sheet[8:10] == 255).all() and (sheet[10:, 10:] == 255).all()
