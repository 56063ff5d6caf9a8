"""The run's curves as TensorBoard files, which a full disk interrupts but does not end."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

ROOM = 4 * 2**20
"""Free bytes below which nothing is written: TensorBoard's writer dies at its first failed write."""
log = logging.getLogger(__name__)


class Curves(TensorBoardLogger):
    """TensorBoard's logger; what does not fit on the disk is left out, with one warning, and training goes on.

    TensorBoard writes in a thread whose failure it raises in the next call, and in every call after it (2.20); another
    writer takes its place once there is room again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="tensorboard")
        self._lost = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if shutil.disk_usage(self.save_dir).free >= ROOM:
            try:
                super().log_metrics(metrics, step)
            except (OSError, ValueError):  # Lightning turns what it does not know into a ValueError
                self._experiment = None
            else:
                if self._lost:
                    log.warning(f"the curves go on; {self._lost} entries before step {step} are missing")
                    self._lost = 0
                return
        if not self._lost:
            log.warning(f"the disk of {self.save_dir} is full: the curves have a gap from step {step} on")
        self._lost += 1

    def save(self) -> None:
        try:
            super().save()
        except OSError:
            self._experiment = None

    def finalize(self, status: str) -> None:
        try:
            super().finalize(status)
        except OSError:
            self._experiment = None
