"""The video of an evaluation: one scene played by several methods, side by side, with what the critic said."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from deas_vla.envs.protocol import ChunkResult, Simulator
from deas_vla.errors import require
from deas_vla.files import atomic_path, write_json
from deas_vla.report.plots import COLORS, STYLE
from deas_vla.rollouts.play import Decider, Decision, Job, Rollout, play_episodes

HEADER, STRIP = 30, 132  # heights of the line of text and of the plot above the picture, pixels
C = {name: dark for name, (_, dark) in COLORS.items()} | {"page": "#10151c"}
_DPI = 128  # a power of two: pixels come out whole


@dataclass(frozen=True)
class Panel:
    """A rollout and its label; of T pictures (h, w, 3) uint8 the first shows the start, each next one a step later."""

    label: str
    frames: Sequence[np.ndarray]
    decisions: list[Decision] = field(default_factory=list)  # with the critic's values, in the order of their steps
    success_step: int | None = None


@dataclass
class _Filmed:
    """A `Source` of one simulator that renders after each step; the simulator itself plays as ever."""

    env: Simulator
    side: int
    frames: list[np.ndarray] = field(default_factory=list)

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        first = self.env.reset(scenes[0])
        self.frames = [self.env.render(self.side, self.side)]
        return [first]

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        steps: list[ChunkResult] = []
        for command in chunks[0]:
            steps.append(self.env.play(command[None]))
            self.frames.append(self.env.render(self.side, self.side))
            if steps[-1].done:
                break
        columns = ("states", "actions", "rewards", "success")
        joined = {name: np.concatenate([getattr(step, name) for step in steps]) for name in columns}
        # Images that the policy sees are kept where it decides; the others were drawn for nothing, one a step.
        return [replace(steps[-1], **joined, frames=np.array([len(steps)]))]


def film(
    env: Simulator, decider: Decider, scene: int, *, seed: int, execute_steps: int, side: int = 288
) -> tuple[list[np.ndarray], Rollout]:
    """Plays a scene; returns (side, side, 3) uint8 images, the start first and one more a step, and the rollout."""
    source = _Filmed(env, side)
    (rollout,) = play_episodes(source, decider, [Job(scene)], seed=seed, parallel=1, execute_steps=execute_steps)
    return source.frames, rollout


def film_methods(
    env: Simulator, deciders: dict[str, Decider], methods: list[Path], path: Path, *, seed: int, execute_steps: int
) -> None:
    """Plays the first scene in which the methods ended differently, or else the first, and films them side by side.

    The simulator is closed. The `deciders`, by label, have a critic; `methods` are the files that `evaluate_method`
    wrote for them. `path` is the mp4 file; with the suffix ``.json`` it gets the caption.
    """
    outcomes = [[e for e in json.loads(method.read_text(encoding="utf-8")) if e["sample"] == 0] for method in methods]
    differing = [row[0] for row in zip(*outcomes, strict=True) if len({e["success"] for e in row}) > 1]
    scene = (differing or outcomes[0])[0]["scene"]
    why = "the first in which the two ended differently" if differing else "the first"
    panels = []
    with closing(env):
        for label, decider in deciders.items():
            frames, rollout = film(env, decider, scene, seed=seed, execute_steps=execute_steps)
            success_step = rollout.episode.length if rollout.episode.terminated else None
            panels.append(Panel(label, frames, rollout.decisions, success_step))
    write_video(path, panels, env.contract.rate_hz)
    caption = f"Evaluation scene {scene}, {why}: {' beside '.join(deciders)}, same noise."
    write_json(path.with_suffix(".json"), {"caption": caption})


def write_video(path: str | Path, panels: list[Panel], rate_hz: float, *, hold_seconds: float = 1.5) -> None:
    """Writes an mp4 (h264) of rollouts side by side, on one time axis and one value axis.

    Over each picture: the value so far as a line, a tick at each decision, the candidates' scores as dots with the
    one that was played in another colour. A rollout that ends earlier stays on its last picture, and all of them for
    `hold_seconds` at the end. Raises UserError if PyAV, matplotlib or Pillow is not installed, and ValueError if there
    is no picture, or sizes differ.
    """
    av = require("av", "report")
    if not all(len(panel.frames) for panel in panels):
        raise ValueError("a video panel has no pictures")
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


def compose(panels: list[Panel], rate_hz: float, hold_seconds: float = 0.0) -> Iterator[np.ndarray]:
    """Yields the pictures of `write_video`: (h', w', 3) uint8, both sides even because yuv420p halves them."""
    said = [number for panel in panels for d in panel.decisions for number in (d.value, *d.scores)]
    said = np.array([number for number in said if np.isfinite(number)] or [0.0])
    pad = max(0.1 * float(np.ptp(said)), 0.5)
    limits, length = (said.min() - pad, said.max() + pad), max(len(panel.frames) for panel in panels)
    for row in zip(*(_pictures(panel, length, limits, rate_hz) for panel in panels), strict=True):
        picture = np.concatenate(row, axis=1)
        picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        yield picture
    yield from [picture] * round(hold_seconds * rate_hz)


def _pictures(panel: Panel, length: int, limits: tuple[float, float], rate_hz: float) -> Iterator[np.ndarray]:
    known = strip = shape = None
    for step in range(length):
        last = min(step, len(panel.frames) - 1)
        won = panel.success_step is not None and step >= panel.success_step
        frame = np.array(panel.frames[last])
        # Looked at here, because a picture may be decoded when it is asked for.
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"video panels need pictures of one size, got {shape} and {frame.shape}")
        if won:
            border = np.ones(frame.shape[:2], bool)
            border[4:-4, 4:-4] = False
            frame[border] = tuple(bytes.fromhex(C["good"][1:]))
        seconds = f"{(panel.success_step if won else last) / rate_hz:.1f} s"
        over = f"no success, {seconds}" if step >= len(panel.frames) - 1 else seconds
        header = _header(panel.label, f"success, {seconds}" if won else over, won, frame.shape[1])
        decisions = [d for d in panel.decisions if d.step <= step]
        if known != len(decisions):  # between two decisions the plot is the same
            known, strip = len(decisions), _strip(decisions, frame.shape[1], max(length - 1, 1), limits)
        # The plot is over the picture: a player's controls cover the lower edge.
        yield np.concatenate([header, strip, frame])


def _header(label: str, state: str, won: bool, width: int) -> np.ndarray:
    image = require("PIL.Image", "report").new("RGB", (width, HEADER), C["page"])
    draw = require("PIL.ImageDraw", "report").Draw(image)
    font = require("PIL.ImageFont", "report").load_default(15)
    draw.text((10, HEADER // 2), label, C["ink"], font, anchor="lm")
    draw.text((width - 10, HEADER // 2), state, C["good" if won else "soft"], font, anchor="rm")
    return np.asarray(image)


def _strip(decisions: list[Decision], width: int, last: int, limits: tuple[float, float]) -> np.ndarray:
    with require("matplotlib", "report").rc_context(STYLE):
        size = (width / _DPI, STRIP / _DPI)
        figure = require("matplotlib.figure", "report").Figure(size, dpi=_DPI, facecolor=C["page"])
        canvas = require("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
        axis = figure.add_axes((34 / width, 0.09, max(1 - 46 / width, 0.1), 0.7))
    axis.set(xlim=(0, last), ylim=limits)
    axis.set_xticks([d.step for d in decisions], [""] * len(decisions))
    axis.grid(visible=False, axis="x")
    axis.grid(color=C["rule"], axis="y")
    axis.spines[:].set_visible(False)
    axis.locator_params(axis="y", nbins=3)
    axis.tick_params("y", labelsize=6, labelcolor=C["soft"])
    axis.tick_params("x", length=3, color=C["oracle"])
    values = [(d.step, d.value) for d in decisions if np.isfinite(d.value)]
    if values:
        axis.plot(*zip(*values, strict=True), color=C["main"], lw=1.5)
        axis.plot(*values[-1], "o", color=C["main"], ms=4.5, clip_on=False)
        figure.text(10 / width, 0.87, f"value {values[-1][1]:.1f}", color=C["main"], fontsize=9.5, va="center")
    scored = [d for d in decisions if len(d.scores)]
    if scored:
        dots = {"ls": "", "marker": "o", "clip_on": False}
        steps = np.repeat([d.step for d in scored], [len(d.scores) for d in scored])
        scores = np.concatenate([d.scores for d in scored])
        axis.plot(steps, scores, ms=2.4, color=C["control"], label="candidates", **dots)
        steps, scores = zip(*((d.step, d.scores[d.index]) for d in scored), strict=True)
        axis.plot(steps, scores, ms=4, color=C["oracle"], label="played", **dots)
        style = {"ncols": 2, "frameon": False, "fontsize": 6.2, "labelcolor": C["soft"]}
        figure.legend(loc="upper right", borderaxespad=0.2, columnspacing=1, handletextpad=-0.3, **style)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
