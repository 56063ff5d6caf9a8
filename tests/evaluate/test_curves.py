"""Training curves from TensorBoard's files, resumed runs included."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from app.evaluate.curves import read_curves
from app.pages.charts import POINTS, thin


def test_a_resumed_run_is_one_curve_and_its_later_values_count(tmp_path: Path) -> None:
    for start, end, offset in ((0, 10, 0.0), (6, 14, 100.0)):
        with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
            for step in range(start, end):
                writer.add_scalar("train/loss", step + offset, step, walltime=1000 + offset + step)
                writer.add_scalar("other", 1.0, step)
    curves = read_curves(tmp_path)
    assert list(curves) == ["train/loss"]
    assert curves["train/loss"] == [(step, step + (100.0 if step >= 6 else 0.0)) for step in range(14)]


def test_a_run_without_logs_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    curve = [(step, float(step)) for step in range(10_007)]
    thinned = thin(curve)
    assert len(thinned) == POINTS
    assert (thinned[0], thinned[-1]) == (curve[0], curve[-1])
    assert thin(curve[:50]) == curve[:50]
