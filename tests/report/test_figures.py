"""What figures draw, and what they say of it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from innervision.errors import InnerVisionError
from innervision.metrics.registry import Metric
from innervision.report.figures import curves_figure, draw_curves, plot_curves
from innervision.report.panels import COLORS, GREY
from innervision.report.seeds import of_one_setting

SPREAD = np.array([-0.1, -0.05, 0.0, 0.0, 0.05, 0.1])  # of six images around each mean
IMAGES = [f"{name}.jpg" for name in "abcdef"]


def make_run(
    run: Path,
    *,
    mllm: str = "world/tuned",
    probe: dict[int, float] | None = None,
    shuffled: dict[int, float] | None = None,
    blank: dict[int, float] | None = None,
    mean: float | None = 0.25,
    targets: tuple[str, ...] = ("depth",),
    metrics: tuple[str, ...] = ("cosine", "centred_cosine"),
    protocol: str = "standard",
) -> Path:
    """Write a run whose mean score by layer is `probe`, `shuffled`, `blank` and `mean`, the same for all targets."""
    probe = {1: 0.5, 2: 0.6, 3: 0.4} if probe is None else probe
    levels = [("probe", layer, level) for layer, level in probe.items()]
    levels += [("shuffled", layer, level) for layer, level in (shuffled or {}).items()]
    levels += [("blank", layer, level) for layer, level in (blank or {}).items()]
    levels += [] if mean is None else [("mean", None, mean)]
    parts = [
        pd.DataFrame(
            {
                "image": IMAGES,
                "target": target,
                "layer": pd.array([layer] * len(IMAGES), dtype="Int64"),
                "source": source,
                "metric": metric,
                "protocol": protocol,
                "value": level + SPREAD,
            }
        )
        for target in targets
        for metric in metrics
        for source, layer, level in levels
    ]
    (run / "scores").mkdir(parents=True)
    write_settings(run, mllm, protocol)
    pd.concat(parts, ignore_index=True).to_parquet(run / "scores" / "similarity.parquet")
    return run


def write_settings(run: Path, mllm: str = "world/tuned", protocol: str = "standard") -> None:
    run.mkdir(parents=True, exist_ok=True)
    settings = f"settings: {{mllm: {mllm}, protocol: {protocol}}}"
    (run / "run.yaml").write_text(f"format: 2\n{settings}\nrecord: {{}}\n")


def add_task(run: Path, task: str, metric: str, probe: dict[int, float], **levels: float) -> Path:
    """Give the run scores by a task: of its probes by layer, and of floors and ceilings; half of it for a group.

    The other protocol has scores, too, and all of them are 0.
    """
    sources = [("probe", layer, level) for layer, level in probe.items()]
    sources += [(source, None, level) for source, level in levels.items()]
    rows = [
        (image, task, layer, source, metric, protocol, value, group, 1.0)
        for source, layer, level in sources
        for image, step in zip(IMAGES, SPREAD, strict=True)
        for protocol, group, value in (
            ("standard", None, level + step),
            ("standard", "indoor", level / 2),
            ("paper", None, 0.0),
        )
    ]
    columns = ["image", "target", "layer", "source", "metric", "protocol", "value", "group", "weight"]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
    (run / "scores").mkdir(parents=True, exist_ok=True)
    table.to_parquet(run / f"scores/{task}.parquet")
    return run


def line(panel: Axes, label: str) -> Line2D:
    [found] = [line for line in panel.get_lines() if line.get_label() == label]
    return found


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Files


def test_names_from_elsewhere_are_drawn_as_they_are(tmp_path):
    name = r"a $\frac{ \x1b[31mred\u202e_$".replace("\\x1b", "\x1b").replace("\\u202e", "\u202e")
    runs = [make_run(tmp_path / folder, targets=(name,)) for folder in ("one", "two")]
    plot_curves(runs, tmp_path / "a.png", labels=[name, "other"])  # a formula that is wrong would fail
    figure = curves_figure(runs, labels=[name, "other"])
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert sum(r"a \$\frac{ \x1b[31mred\u202e_\$" in text.replace("\n", " ") for text in texts) >= 2
    assert not any("\x1b" in text or "\u202e" in text for text in texts)


def test_without_a_suffix_png_and_pdf_are_written(tmp_path):
    run = make_run(tmp_path / "run")
    paths = plot_curves([run], tmp_path / "new/curves")
    assert paths == [tmp_path / "new/curves.png", tmp_path / "new/curves.pdf"]
    with Image.open(paths[0]) as image:
        image.load()
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert np.ptp(np.asarray(image.convert("L"))) > 200  # not an empty sheet
    pdf = paths[1].read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/Type3" not in pdf
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curves.pdf", "curves.png"]


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_decides_the_format(tmp_path, suffix, begins):
    run = make_run(tmp_path / "run")
    assert plot_curves([run], tmp_path / f"new/curves.{suffix}") == [tmp_path / f"new/curves.{suffix}"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"curves.{suffix}"]
    content = (tmp_path / f"new/curves.{suffix}").read_bytes()
    assert content.startswith(begins)
    if suffix == "svg":
        assert b">centred cosine</" in content  # text stays text


def test_a_dot_in_the_name_is_no_suffix(tmp_path):
    run = make_run(tmp_path / "run")
    assert [path.name for path in plot_curves([run], tmp_path / "llava-1.5")] == [
        "llava-1.5.png",
        "llava-1.5.pdf",
    ]


def test_a_folder_is_no_figure(tmp_path):
    with pytest.raises(InnerVisionError, match=r"is a folder\. Name the figure.*curves\.png"):
        plot_curves([make_run(tmp_path / "run")], tmp_path)


# What is drawn


def test_the_lines_carry_the_scores(tmp_path):
    floors = {"shuffled": {1: 0.2, 2: 0.1, 3: 0.3}, "blank": {1: 0.15, 2: 0.05, 3: 0.35}}
    run = make_run(tmp_path / "run", probe={1: 0.5, 2: 0.6, 3: 0.4}, **floors)
    panel = curves_figure([run], "cosine").axes[0]
    probe = line(panel, "probe: world/tuned")
    assert probe.get_xdata().tolist() == [1, 2, 3]
    assert probe.get_ydata().tolist() == pytest.approx([0.5, 0.6, 0.4])
    shuffled = line(panel, "shuffled: world/tuned")
    assert shuffled.get_linestyle() == ":"
    assert shuffled.get_ydata().tolist() == pytest.approx([0.2, 0.1, 0.3])
    blank = line(panel, "blank: world/tuned")
    assert blank.get_linestyle() not in ("-", ":")
    assert blank.get_ydata().tolist() == pytest.approx([0.15, 0.05, 0.35])
    mean = line(panel, "mean: world/tuned")
    assert mean.get_linestyle() == "--"
    assert list(mean.get_ydata()) == pytest.approx([0.25, 0.25])


def test_the_band_is_the_interval_over_images(tmp_path):
    panel = curves_figure([make_run(tmp_path / "run")], "cosine").axes[0]
    [band] = panel.collections[:1]
    low, high = stats.ttest_1samp(SPREAD, 0).confidence_interval(0.95)  # without skewness it is Student's
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(9)}
    expected = {(layer, round(level + end, 9)) for layer, level in ((1, 0.5), (2, 0.6)) for end in (low, high)}
    assert expected <= corners


def test_vision_and_embeddings_stand_apart_on_the_left(tmp_path):
    levels = dict.fromkeys(range(1, 33), 0.5) | {-1: 0.3, 0: 0.4}
    panel = curves_figure([make_run(tmp_path / "run", probe=levels)], "cosine").axes[0]
    assert line(panel, "probe: world/tuned").get_xdata().tolist() == list(range(1, 33))
    ticks = dict(zip([t.get_text() for t in panel.get_xticklabels()], panel.get_xticks(), strict=True))
    assert list(ticks) == ["vision", "0", "1", "8", "16", "24", "32"]
    assert ticks["0"] - ticks["vision"] == pytest.approx(1 - ticks["0"])
    assert ticks["0"] < 0
    lead = next(line for line in panel.get_lines() if len(line.get_xdata()) == 34)
    assert lead.get_alpha() == 0.5
    assert lead.get_ydata()[:3].tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert lead.get_xdata()[:3].tolist() == pytest.approx([ticks["vision"], ticks["0"], 1])


def test_layers_that_no_run_has_get_no_tick(tmp_path):
    panel = curves_figure([make_run(tmp_path / "run")], "cosine").axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["1", "2", "3"]


def test_runs_of_different_depth_share_the_axis(tmp_path):
    shallow = make_run(tmp_path / "a", mllm="a", probe={1: 0.5, 2: 0.5})
    deep = make_run(tmp_path / "b", mllm="b", probe=dict.fromkeys(range(1, 41), 0.5))
    panel = curves_figure([shallow, deep], "cosine").axes[0]
    assert line(panel, "probe: a").get_xdata().tolist() == [1, 2]
    assert line(panel, "probe: b").get_xdata().tolist() == list(range(1, 41))
    assert panel.get_xticks()[-1] == 40


def test_markers_show_single_layers_and_go_when_there_are_many(tmp_path):
    sparse = make_run(tmp_path / "a", mllm="a", probe={8: 0.5, 16: 0.6})
    dense = make_run(tmp_path / "b", mllm="b", probe=dict.fromkeys(range(1, 33), 0.5))
    panel = curves_figure([sparse, dense], "cosine").axes[0]
    assert line(panel, "probe: a").get_marker() == "o"
    assert line(panel, "probe: b").get_marker() in (None, "None", "")


def test_there_is_a_column_per_target_and_a_row_per_metric(tmp_path):
    first = make_run(tmp_path / "a", mllm="a", targets=("seg", "depth"))
    second = make_run(tmp_path / "b", mllm="b", targets=("depth", "gen"))
    panels = curves_figure([first, second], ["cosine", "centred_cosine"]).axes
    assert [panel.get_title() for panel in panels] == ["seg", "depth", "gen", "", "", ""]
    assert [panel.get_ylabel() for panel in panels] == [
        "cosine\n(higher is better)",
        "",
        "",
        "centred cosine\n(higher is better)",
        "",
        "",
    ]
    assert [panel.get_xlabel() for panel in panels] == ["", "", "", *["decoder layer"] * 3]
    drawn = [{str(line.get_label()) for line in panel.get_lines()} for panel in panels[:3]]
    assert ["probe: a" in labels for labels in drawn] == [True, True, False]
    assert ["probe: b" in labels for labels in drawn] == [False, True, True]


def test_the_mean_is_grey_where_all_runs_share_it(tmp_path):
    runs = [make_run(tmp_path / name, mllm=name, mean=0.25) for name in "ab"]
    panel = curves_figure(runs, "cosine").axes[0]
    assert all(same_color(line(panel, f"mean: {name}").get_color(), GREY) for name in "ab")


def test_the_mean_has_the_runs_color_where_it_differs(tmp_path):
    runs = [make_run(tmp_path / name, mllm=name, mean=mean) for name, mean in (("a", 0.25), ("b", 0.35))]
    panel = curves_figure(runs, "cosine").axes[0]
    for name, mean, color in (("a", 0.25, COLORS[0]), ("b", 0.35, COLORS[1])):
        assert same_color(line(panel, f"mean: {name}").get_color(), color)
        assert same_color(line(panel, f"probe: {name}").get_color(), color)
        assert list(line(panel, f"mean: {name}").get_ydata()) == pytest.approx([mean, mean])


def test_a_layer_without_finite_scores_is_marked(tmp_path):
    run = make_run(tmp_path / "run", probe={1: 0.5, 2: np.nan, 3: 0.4})
    figure = curves_figure([run], "cosine")
    crosses = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[2]]
    assert "scores that are not finite" in legend(figure)


# Tasks


@pytest.fixture
def scored_by_tasks(tmp_path):
    run = make_run(tmp_path / "run", targets=("depth", "seg"))
    add_task(run, "depth", "accuracy", {1: 0.7, 2: 0.8, 3: 0.9}, mean=0.5, expert=0.95, plain=0.97)
    return add_task(run, "seg", "miou", {1: 0.3, 2: 0.4, 3: 0.2}, mean=0.1, zero=0.05, expert=0.6, plain=0.75)


def test_the_main_metric_of_each_task_stands_below_its_similarity(scored_by_tasks):
    panels = curves_figure([scored_by_tasks]).axes
    assert [panel.get_title() for panel in panels] == ["depth", "seg", "", ""]
    labels = [panel.get_ylabel().partition("\n")[0] for panel in panels]
    assert labels == ["centred cosine", "", "accuracy", "mIoU"]


def test_lines_floors_and_ceilings_of_a_task_stand_at_their_scores(scored_by_tasks):
    seg = curves_figure([scored_by_tasks]).axes[3]
    levels = {name: line(seg, f"{name}: world/tuned").get_ydata() for name in ("mean", "zero", "expert", "plain")}
    assert {name: list(drawn) for name, drawn in levels.items()} == {
        name: pytest.approx([level, level])
        for name, level in {"mean": 0.1, "zero": 0.05, "expert": 0.6, "plain": 0.75}.items()
    }
    # neither the group's halves nor the other protocol's zeros
    assert line(seg, "probe: world/tuned").get_ydata().tolist() == pytest.approx([0.3, 0.4, 0.2])
    dashes = [line(seg, f"{name}: world/tuned").get_linestyle() for name in levels]
    assert len({str(dash) for dash in dashes[:1] + dashes[2:3]}) == 2  # mean and expert are told apart


def test_the_legend_names_floors_and_ceilings(scored_by_tasks):
    assert legend(curves_figure([scored_by_tasks])) == [
        "probe of world/tuned",
        "mean feature, without MLLM",
        "zero feature, without MLLM",
        "expert: its own features",
        "plain: the expert as it is",
        "95% interval over 6 images",
    ]


def test_a_target_without_a_task_leaves_its_place_empty(tmp_path):
    run = make_run(tmp_path / "run", targets=("depth", "gen"))
    add_task(run, "depth", "accuracy", {1: 0.7}, mean=0.5)
    panels = curves_figure([run]).axes
    assert [panel.axison for panel in panels] == [True, True, True, False]
    assert panels[1].get_xlabel() == "decoder layer"  # the lowest of its column


def test_a_run_may_have_scores_of_a_task_alone(tmp_path):
    write_settings(tmp_path / "run")
    run = add_task(tmp_path / "run", "depth", "accuracy", {1: 0.7, 2: 0.8}, mean=0.5)
    [panel] = curves_figure([run]).axes
    assert line(panel, "probe: world/tuned").get_ydata().tolist() == pytest.approx([0.7, 0.8])


def test_runs_scored_by_different_metrics_have_a_panel_for_each(tmp_path):
    runs = [make_run(tmp_path / name, mllm=name, targets=("gen",)) for name in "ab"]
    for run, model in zip(runs, ("dino", "clip"), strict=True):
        add_task(run, "gen", f"frechet:{model}", {1: 7.0, 2: 8.0}, mean=9.0)
    panels = curves_figure(runs).axes
    assert [panel.get_ylabel().partition("\n")[0] for panel in panels[1:]] == [
        "Fréchet distance",
        "Fréchet distance",
    ]
    lines = [[str(line.get_label()) for line in panel.get_lines()] for panel in panels[1:]]
    assert ["probe: a" in labels for labels in lines] == [True, False]
    assert ["probe: b" in labels for labels in lines] == [False, True]


def test_a_paper_run_is_drawn_by_the_papers_rule_where_it_has_one(tmp_path):
    run = make_run(tmp_path / "run", protocol="paper")
    add_task(run, "depth", "accuracy", {1: 0.7, 2: 0.8}, mean=0.5)
    table = pd.read_parquet(run / "scores/depth.parquet")
    ties = table[table["protocol"] == "standard"].assign(metric="ties")
    pd.concat([table, ties]).to_parquet(run / "scores/depth.parquet")
    label = "probe: world/tuned, paper protocol"
    accuracy, ties = (curves_figure([run], metric).axes[0] for metric in ("accuracy", "ties"))
    assert line(accuracy, label).get_ydata().tolist() == [0, 0]
    assert accuracy.get_ylabel() == "accuracy\n(paper rule; higher is better)"
    assert line(ties, label).get_ydata().tolist() == pytest.approx([0.7, 0.8])
    assert ties.get_ylabel() == "ties\n(lower is better)"


def test_runs_of_two_protocols_are_drawn_by_the_same_rule(tmp_path):
    paper = make_run(tmp_path / "paper", protocol="paper")
    standard = make_run(tmp_path / "standard")
    for run in (paper, standard):
        add_task(run, "depth", "accuracy", {1: 0.7, 2: 0.8}, mean=0.5)
    panel = curves_figure([paper, standard], "accuracy", labels=["a", "b"]).axes[0]
    for label in ("probe: a, paper protocol", "probe: b"):
        assert line(panel, label).get_ydata().tolist() == pytest.approx([0.7, 0.8])
    assert panel.get_ylabel() == "accuracy\n(higher is better)"


def test_a_task_brings_the_name_and_direction_of_its_metric(tmp_path):
    run = add_task(make_run(tmp_path / "run"), "blur", "sharpness:x", {1: 0.7, 2: 0.8}, mean=0.5)
    metric = Metric("sharpness", "Sharpness", higher_is_better=False, floors=())
    (run / "scores/blur.json").write_text(json.dumps({"metrics": {"sharpness": asdict(metric)}}))
    panel = curves_figure([run]).axes[-1]
    assert panel.get_ylabel() == "Sharpness (x)\n(lower is better)"
    assert not [drawn for drawn in panel.get_lines() if str(drawn.get_label()).startswith("mean")]


def test_intervals_that_do_not_hold_are_not_drawn(tmp_path):
    run = make_run(tmp_path / "run", metrics=("miou",))
    table = pd.read_parquet(run / "scores/similarity.parquet")
    rare = table[table["image"].isin(IMAGES[:4])].assign(group="rare")
    pd.concat([table.assign(group="often"), rare]).assign(weight=1.0).to_parquet(run / "scores/similarity.parquet")
    assert not np.isfinite(band(curves_figure([run], "miou").axes[0])).any()
    table.assign(group="often", weight=1.0).to_parquet(run / "scores/similarity.parquet")
    assert np.isfinite(band(curves_figure([run], "miou").axes[0])).any()


def band(panel: Axes) -> np.ndarray:
    return np.array([corner for path in panel.collections[0].get_paths() for corner in path.vertices])


# Text


def test_the_legend_tells_a_newcomer_what_is_what(tmp_path):
    flat = dict.fromkeys((1, 2, 3), 0.1)
    run = make_run(tmp_path / "run", mllm="llava-hf/llava-1.5-7b-hf", shuffled=flat, blank=flat)
    assert legend(curves_figure([run])) == [
        "probe of llava-hf/llava-1.5-7b-hf",
        "shuffled: for another image",
        "blank: for a grey image",
        "mean feature, without MLLM",
        "95% interval over 6 images",
    ]


def test_runs_of_one_mllm_are_told_apart_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("first", "second")]
    runs.append(make_run(tmp_path / "third", mllm="world/base"))
    assert legend(curves_figure(runs))[:3] == [
        "probe of world/tuned (first)",
        "probe of world/tuned (second)",
        "probe of world/base",
    ]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(Path(name) / "run") for name in ("x", "y")]
    assert legend(curves_figure(runs))[:2] == ["probe of world/tuned (x/run)", "probe of world/tuned (y/run)"]


def test_no_text_is_clipped_or_overlaps(tmp_path):
    levels = dict.fromkeys(range(-1, 33), 0.5)
    targets = ("depth", "seg", "gen")
    runs = [
        make_run(
            tmp_path / name,
            mllm=f"some-organisation/{name}-vision-language-7b-instruct",
            probe=levels,
            targets=targets,
        )
        for name in ("first", "second")
    ]
    figure = curves_figure(runs, ["cosine", "centred_cosine"])
    figure.draw_without_rendering()
    page = figure.bbox.padded(2)
    texts = [*figure.legends[0].get_texts()]
    for panel in figure.axes:
        texts += [panel.title, panel.xaxis.label, panel.yaxis.label]
    for panel in figure.axes[3:]:
        texts += panel.get_xticklabels()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) == 4 + 3 + 3 + 2 + 3 * 7  # legend, titles, axis labels, ticks
    assert all(page.contains(*box.min) and page.contains(*box.max) for box in boxes)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)  # each with itself


# Choices


def test_of_similarity_the_centred_cosine_is_drawn(tmp_path):
    run = make_run(tmp_path / "run", metrics=("cosine", "token_cosine", "centred_cosine"))
    assert [panel.get_ylabel() for panel in curves_figure([run]).axes] == ["centred cosine\n(higher is better)"]


def test_runs_without_a_mean_and_those_of_the_paper_have_the_published_cosine(tmp_path):
    bare = make_run(tmp_path / "bare", metrics=("cosine", "token_cosine"))
    assert [panel.get_ylabel() for panel in curves_figure([bare]).axes] == ["cosine\n(higher is better)"]
    paper = make_run(tmp_path / "paper", protocol="paper")
    assert [panel.get_ylabel() for panel in curves_figure([paper]).axes] == ["cosine\n(paper rule; higher is better)"]


def test_panels_of_one_metric_have_one_axis_and_others_their_own(scored_by_tasks):
    table = pd.read_parquet(scored_by_tasks / "scores/similarity.parquet")
    table.loc[table["target"] == "seg", "value"] += 3
    table.to_parquet(scored_by_tasks / "scores/similarity.parquet")
    depth, seg, accuracy, miou = curves_figure([scored_by_tasks]).axes
    assert depth.get_ylim() == seg.get_ylim()
    low, high = depth.get_ylim()
    assert low < 0.25 < 3.6 < high  # the mean of depth and the best layer of seg
    assert accuracy.get_ylim() != miou.get_ylim()
    assert accuracy.get_ylim()[1] < 1.2


def test_targets_are_drawn_in_the_order_asked_for(tmp_path):
    run = make_run(tmp_path / "run", targets=("depth", "seg", "gen"))
    add_task(run, "depth", "accuracy", {1: 0.7, 2: 0.8}, mean=0.5)
    panels = draw_curves([run], targets=["gen", "seg"]).figure.axes
    assert [panel.get_title() for panel in panels] == ["gen", "seg"]
    with pytest.raises(InnerVisionError, match="no run has scores of the target 'deep', only of: depth, seg, gen"):
        draw_curves([run], targets=["deep"])
    with pytest.raises(InnerVisionError, match="no such scores of seg"):
        draw_curves([run], "accuracy", targets=["seg"])


@pytest.mark.parametrize(("targets", "width"), [(("depth",), 3.3), (("depth", "seg"), 6.9)])
def test_figures_for_paper_are_as_wide_as_one_or_two_columns_of_text(tmp_path, targets, width):
    run = make_run(tmp_path / "run", targets=targets)
    figure = draw_curves([run], style="paper").figure
    assert figure.get_figwidth() == width
    assert max(text.get_fontsize() for text in figure.legends[0].get_texts()) <= 7
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_a_size_is_kept(tmp_path):
    figure = draw_curves([make_run(tmp_path / "run")], size=(5, 4)).figure
    assert figure.get_size_inches().tolist() == [5, 4]


def test_scores_of_a_name_are_drawn_alone(tmp_path):
    run = make_run(tmp_path / "run", probe={1: 0.5})
    other = make_run(tmp_path / "other", probe={1: 0.9})
    (other / "scores/similarity.parquet").rename(run / "scores/similarity@val-b.parquet")
    for name, level in ((None, 0.5), ("val-b", 0.9)):
        [panel] = draw_curves([run], name=name).figure.axes
        assert line(panel, "probe: world/tuned").get_ydata().tolist() == pytest.approx([level])


# Seeds


def seeded(tmp_path: Path, seed: int, level: float, **other: object) -> Path:
    run = make_run(tmp_path / f"s{seed}", probe={1: level, 2: 2 * level})
    settings = {"mllm": "world/tuned", "protocol": "standard", "seed": seed, "out": str(run), "workers": seed, **other}
    (run / "run.yaml").write_text(f"format: 2\nsettings: {json.dumps(settings)}\nrecord: {{}}\n")
    return run


def test_seeds_of_one_setting_are_one_line_with_their_spread(tmp_path):
    runs = [seeded(tmp_path, seed, level) for seed, level in ((3, 0.1), (5, 0.2), (7, 0.6))]
    drawn = draw_curves(runs)
    [panel] = drawn.figure.axes
    middle = line(panel, "probe: world/tuned, 3 seeds")
    assert middle.get_ydata().tolist() == pytest.approx([0.3, 0.6])
    corners = {tuple(corner) for corner in band(panel).round(6)}
    assert {(1, 0.1), (1, 0.6), (2, 0.2), (2, 1.2)} <= corners
    assert legend(drawn.figure) == [
        "probe of world/tuned, 3 seeds",
        "mean feature, without MLLM",
        "lowest to highest seed",
    ]
    assert "world/tuned, 3 seeds: mean of the seeds 3, 5, 7; band: from the lowest to the highest" in drawn.caption


def test_runs_that_differ_otherwise_stay_lines_of_their_own(tmp_path):
    runs = [seeded(tmp_path, 1, 0.1), seeded(tmp_path, 2, 0.2, epochs=9)]
    assert legend(draw_curves(runs).figure)[:2] == ["probe of world/tuned (s1)", "probe of world/tuned (s2)"]
    same = {"mllm": "m", "seed": 1}
    assert [group.members for group in of_one_setting([same, {**same, "out": "x"}])] == [[0], [1]]
    three = [{**same, "seed": seed} for seed in (1, 2)]
    assert [group.members for group in of_one_setting([three[0], {"mllm": "n", "seed": 1}, three[1]])] == [[0, 2], [1]]


# Captions


def test_the_caption_says_how_many_images_which_intervals_and_which_protocol(scored_by_tasks):
    table = pd.read_parquet(scored_by_tasks / "scores/seg.parquet")
    table[table["image"] != "a.jpg"].to_parquet(scored_by_tasks / "scores/seg.parquet")
    text = draw_curves([scored_by_tasks], labels=["mine"]).caption
    assert text.startswith("Scores by layer of probes for depth and seg: centred cosine over 6 images (")
    assert "accuracy over 6 images" in text
    assert "mIoU over 5 images (intersection over union, the mean over the classes; higher is better)" in text
    assert "Lines: mine." in text
    assert "95% intervals over the images" in text
    assert text.endswith("Predictions by the standard protocol, scored by the standard rule.")


# Errors


def test_a_run_without_scores_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    write_settings(tmp_path / "bare", "world/base")
    with pytest.raises(InnerVisionError, match=r"bare has no similarity scores yet.*evaluate similarity"):
        curves_figure([run, tmp_path / "bare"])


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InnerVisionError, match=r"nope does not exist; innervision train makes runs"):
        curves_figure([tmp_path / "nope"])


def test_an_unknown_metric_names_those_there_are(tmp_path):
    with pytest.raises(InnerVisionError, match="no scores of the metric 'cosin', only of: cosine, centred_cosine"):
        curves_figure([make_run(tmp_path / "run")], "cosin")


def test_labels_must_match_the_lines(tmp_path):
    with pytest.raises(InnerVisionError, match=r"2 labels for 1 line\. Give one label per line"):
        curves_figure([make_run(tmp_path / "run")], labels=["a", "b"])
    seeds = [seeded(tmp_path, seed, 0.1) for seed in (1, 2)]
    with pytest.raises(InnerVisionError, match="2 labels for 1 line: runs that differ by their seed alone are one"):
        curves_figure(seeds, labels=["a", "b"])


def test_more_runs_than_colors_are_refused(tmp_path):
    runs = [make_run(tmp_path / str(number)) for number in range(8)]
    with pytest.raises(InnerVisionError, match="7 lines at most"):
        curves_figure(runs)


def test_a_run_that_does_not_name_its_mllm_needs_a_label(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "run.yaml").write_text("format: 2\nsettings: {protocol: standard}\nrecord: {}\n")
    with pytest.raises(InnerVisionError, match=r"run\.yaml does not name its mllm\. Give labels"):
        curves_figure([run])
    assert legend(curves_figure([run], labels=["mine"]))[0] == "probe of mine"


def test_a_run_of_an_older_form_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "run.yaml").write_text("mllm: world/tuned\n")
    with pytest.raises(InnerVisionError, match=r"run\.yaml has format 1"):
        curves_figure([run])
