"""A video of rollouts with the critic's value drawn over the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from deas_vla.errors import require
from deas_vla.files import atomic_path
from deas_vla.rollouts.play import Decision

STRIP = 132  # height of the value strip, pixels
HEADER = 30
_SCALE = 2  # the strip is drawn at twice its size and shrunk: smooth lines
_PAGE, _GRID, _INK, _SOFT = (16, 21, 28), (43, 54, 67), (232, 237, 243), (154, 167, 182)
_VALUE, _CANDIDATE, _CHOSEN, _SUCCESS = (110, 163, 255), (118, 131, 143), (224, 170, 78), (63, 195, 148)


@dataclass(frozen=True)
class Panel:
    """One rollout.

    Attributes:
        label: stands over the picture.
        frames: T pictures (h, w, 3) uint8; the first shows the start, each next one control step later.
        value_steps: (n,) int, control steps at which the critic's value is known, ascending.
        values: (n,) V.
        decisions: choices of the policy.
        success_step: control step of the success, or None.
    """

    label: str
    frames: Sequence[np.ndarray]
    value_steps: np.ndarray
    values: np.ndarray
    decisions: list[Decision] = field(default_factory=list)
    success_step: int | None = None


def write_video(path: str | Path, panels: list[Panel], rate_hz: float, *, hold_seconds: float = 1.5) -> None:
    """Writes an mp4 (h264) of rollouts side by side, on one time axis and one value axis.

    Over each picture: the value so far as a line, a tick at each decision, the candidates' scores as dots with the
    one that was played in another colour. A rollout that ends earlier stays on its last picture.

    Args:
        path: the mp4 file; it is complete or not there.
        panels: one or more rollouts with pictures of the same size.
        rate_hz: pictures a second.
        hold_seconds: how long the end is shown.

    Raises:
        UserError: if PyAV or Pillow is not installed.
        ValueError: if there is no picture, or sizes differ.
    """
    av = require("av", "report")
    sizes = {np.shape(frame) for panel in panels for frame in panel.frames}
    if len(sizes) != 1 or not all(len(panel.frames) for panel in panels):
        raise ValueError(f"video panels need pictures of one size, got {sorted(sizes)}")
    with (
        atomic_path(Path(path)) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        # One thread: the same pictures give the same bytes on every machine.
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "23", "preset": "medium", "threads": "1"}
        for picture in compose(panels, rate_hz, hold_seconds):
            stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def compose(panels: list[Panel], rate_hz: float, hold_seconds: float = 0.0):
    """Yields the pictures of `write_video`: (h', w', 3) uint8, both sides even."""
    length = max(len(panel.frames) for panel in panels)
    low, high = _value_range(panels)
    drawn = [_PanelDrawer(panel, length, low, high, rate_hz) for panel in panels]
    picture = None
    for step in range(length):
        picture = np.concatenate([drawer.picture(step) for drawer in drawn], axis=1)
        # yuv420p halves both sides.
        picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        yield picture
    for _ in range(round(hold_seconds * rate_hz)):
        yield picture


def _value_range(panels: list[Panel]) -> tuple[float, float]:
    known = [np.ravel(panel.values) for panel in panels]
    known += [np.ravel(decision.scores) for panel in panels for decision in panel.decisions]
    flat = np.concatenate([np.asarray(k, np.float64) for k in known])
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return -1.0, 1.0
    pad = max(0.1 * float(np.ptp(flat)), 0.5)
    return float(flat.min()) - pad, float(flat.max()) + pad


class _PanelDrawer:
    def __init__(self, panel: Panel, length: int, low: float, high: float, rate_hz: float):
        self.image, self.draw = require("PIL.Image", "report"), require("PIL.ImageDraw", "report")
        font = require("PIL.ImageFont", "report").load_default
        self.small, self.large, self.header = font(11 * _SCALE), font(17 * _SCALE), font(15)
        self.panel, self.rate_hz = panel, rate_hz
        self.low, self.high, self.last = low, high, max(length - 1, 1)
        self.width = np.shape(panel.frames[0])[1]
        self.left, self.right = 34 * _SCALE, (self.width - 12) * _SCALE
        self.top, self.bottom = 28 * _SCALE, (STRIP - 12) * _SCALE

    def picture(self, step: int) -> np.ndarray:
        frame = self.panel.frames[min(step, len(self.panel.frames) - 1)]
        won = self.panel.success_step is not None and step >= self.panel.success_step
        over = won or step >= len(self.panel.frames) - 1
        if won:
            frame = np.array(frame)
            frame[:4], frame[-4:], frame[:, :4], frame[:, -4:] = (_SUCCESS,) * 4
        # The strip is over the picture: a player's controls cover the lower edge.
        return np.concatenate([self._header(step, won, over), self._strip(step), frame])

    def _header(self, step: int, won: bool, over: bool) -> np.ndarray:
        header = self.image.new("RGB", (self.width, HEADER), _PAGE)
        draw = self.draw.Draw(header)
        draw.text((10, HEADER // 2), self.panel.label, _INK, self.header, anchor="lm")
        end = self.panel.success_step if won else min(step, len(self.panel.frames) - 1)
        seconds = f"{end / self.rate_hz:.1f} s"
        text, color = seconds, _SOFT
        if won:
            text, color = f"success, {seconds}", _SUCCESS
        elif over:
            text = f"no success, {seconds}"
        draw.text((self.width - 10, HEADER // 2), text, color, self.header, anchor="rm")
        return np.asarray(header)

    def _strip(self, step: int) -> np.ndarray:
        strip = self.image.new("RGB", (self.width * _SCALE, STRIP * _SCALE), _PAGE)
        draw = self.draw.Draw(strip)
        for value in _two_ticks(self.low, self.high):
            y = self._y(value)
            draw.line([(self.left, y), (self.right, y)], _GRID, _SCALE)
            draw.text((self.left - 6 * _SCALE, y), f"{value:.0f}", _SOFT, self.small, anchor="rm")
        for decision in self.panel.decisions:
            if decision.step > step:
                continue
            x = self._x(decision.step)
            draw.line([(x, self.bottom), (x, self.bottom + 5 * _SCALE)], _CHOSEN, _SCALE)
            for score in decision.scores:
                self._dot(draw, x, self._y(score), 2.2, _CANDIDATE)
            if len(decision.scores):
                self._dot(draw, x, self._y(decision.scores[decision.index]), 3.6, _CHOSEN)
        known = [
            (int(at), float(value))
            for at, value in zip(self.panel.value_steps, self.panel.values, strict=True)
            if at <= step and np.isfinite(value)
        ]
        if known:
            line = [(self._x(at), self._y(value)) for at, value in known]
            draw.line(line, _VALUE, 2 * _SCALE + 1, joint="curve")
            self._dot(draw, *line[-1], 4, _VALUE)
            draw.text((10 * _SCALE, 4 * _SCALE), f"value {known[-1][1]:.1f}", _VALUE, self.large)
        if any(len(decision.scores) for decision in self.panel.decisions):
            x, y = self.right, 14 * _SCALE
            for text, color in (("candidates", _CANDIDATE), ("played", _CHOSEN)):
                draw.text((x, y), text, color, self.small, anchor="rm")
                x -= draw.textlength(text, self.small) + 8 * _SCALE
                self._dot(draw, x + 2 * _SCALE, y, 3, color)
                x -= 10 * _SCALE
        return np.asarray(strip.reduce(_SCALE))

    def _dot(self, draw, x: float, y: float, radius: float, color) -> None:
        radius *= _SCALE
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)

    def _x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.last

    def _y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (float(value) - self.low) / (self.high - self.low)


def _two_ticks(low: float, high: float) -> list[float]:
    """Round values near a quarter and three quarters of the range."""
    step = 10.0 if high - low > 25 else 5.0 if high - low > 12 else 1.0
    return sorted({round((low + part * (high - low)) / step) * step for part in (0.2, 0.8)})
