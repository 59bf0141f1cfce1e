"""The pictures are drawn for any table and write PNG files; how they look is looked at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from training import plots
from training.metrics import Curve, SweepPoints, sweep_points


def world(models: int, dearest: float = 1e-2) -> tuple[SweepPoints, list[str]]:
    rng = np.random.default_rng(models)
    ability = np.sort(rng.random(models))
    success = (rng.random((200, models)) < ability).astype(float)
    cost = np.tile(np.geomspace(1e-5, dearest, models), (200, 1))
    return sweep_points(success, cost, rng.integers(models, size=(6, 200))), [f"org/model-{j}" for j in range(models)]


def texts(figure: Figure) -> set[str]:
    [axes] = figure.axes
    return {text.get_text() for text in axes.texts}


def legend(figure: Figure) -> list[str]:
    [box] = figure.legends
    return [text.get_text() for text in box.get_texts()]


def test_curve_picture_names_router_baselines_and_the_best_model() -> None:
    points, models = world(4)
    baseline = Curve(np.array([1e-5, 1e-3]), np.array([0.2, 0.6]))
    figure = plots.cost_quality_figure(points, models, {"segment means": baseline}, "Quality", "200 prompts")
    assert legend(figure)[:3] == ["router", "segment means", "random mix of single models"]
    assert f"model-{points.best}" in texts(figure)
    assert "200 prompts" in texts(figure)


def test_a_long_subtitle_leaves_room_for_the_curve() -> None:
    points, models = world(4)
    figure = plots.cost_quality_figure(points, models, {}, "Quality", " ".join(["doubly robust by estimates"] * 12))
    figure.draw_without_rendering()  # matplotlib warns where no room is left, and warnings fail
    [subtitle] = [text for text in figure.axes[0].texts if "doubly robust" in text.get_text()]
    assert subtitle.get_window_extent().x1 <= figure.bbox.x1


def test_only_models_that_no_cheaper_one_equals_are_named() -> None:
    success = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    cost = np.tile([1e-3, 2e-3, 3e-3, 4e-3], (2, 1))
    points = sweep_points(success, cost, np.zeros((1, 2), dtype=np.int64))
    figure = plots.cost_quality_figure(points, ["small", "worse", "best", "dear"], {}, "Quality")
    assert texts(figure) & {"small", "worse", "best", "dear"} == {"small", "best"}


def test_thirty_models_fit_without_one_name_over_another() -> None:
    points, models = world(30)
    figure = plots.cost_quality_figure(points, models, {}, "Quality")
    [axes] = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("model-")]
    assert len(boxes) > 3
    assert all(not box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))


def test_a_free_model_puts_cost_on_a_linear_axis() -> None:
    success = np.array([[0.0, 1.0], [1.0, 1.0]])
    free = sweep_points(success, np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0, 1]]))
    [axes] = plots.cost_quality_figure(free, ["$\\broken$", "paid"], {}, "Quality").axes
    assert axes.get_xscale() == "linear"
    [axes] = plots.cost_quality_figure(world(3)[0], ["a", "b", "c"], {}, "Quality").axes
    assert axes.get_xscale() == "log"


def test_more_baselines_than_styles_are_refused() -> None:
    points, models = world(3)
    line = Curve(np.array([1e-4]), np.array([0.5]))
    with pytest.raises(ValueError, match="at most 4"):
        plots.cost_quality_figure(points, models, dict.fromkeys("abcde", line), "Quality")


def test_calibration_picture_counts_known_outcomes_only() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((300, 3))
    y = (rng.random((300, 3)) < p).astype(float)
    y[:100, 1] = math.nan
    y[:, 2] = math.nan
    figure = plots.calibration_figure(p, y, "Calibration")
    assert any("500 outcomes" in text for text in texts(figure))
    [axes] = figure.axes
    assert "each of 2 models" in axes.get_legend_handles_labels()[1]


def test_pictures_are_png_files(tmp_path: Path) -> None:
    points, models = world(5)
    path = tmp_path / "curve.png"
    plots.save_figure(plots.cost_quality_figure(points, models, {}, "Quality"), path)
    assert path.read_bytes().startswith(b"\x89PNG")
