"""An inspection as one self-contained HTML file: pictures inside as SVG, no script, nothing loaded."""

from __future__ import annotations

import html as escape
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.inspection import table
from edgewise.inspection.advice import command

if TYPE_CHECKING:
    from edgewise.inspection import Inspection

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"
DEVICES = 40  # shown in the picture of who holds what
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .9rem }
td, th { padding: .15rem .8rem .15rem 0; text-align: right }
td:first-child, th:first-child, .facts td { text-align: left; overflow-wrap: anywhere }
tr.bad td { color: #b04000 }
.verdict { padding: .6rem 1rem; border-left: 6px solid #009e73; background: #f3f7f5 }
.verdict.bad { border-color: #d55e00; background: #fdf3ec }
code { background: #f2f2f2; padding: .1rem .3rem; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto } dt { font-weight: 600; margin-top: .8rem } dd { margin-left: 1.2rem }
"""

READING = """Everything was measured at the initial weights, on up to 16 devices. The score is the share of
pairs of classes that meet on no device, where norms take their statistics from a device's own batch: two such
classes are never told apart under the same statistics. It is a forecast from made splits of digits and
CIFAR-10, not a result of this run."""
GAPS = """How far the mean of what a norm sees on one device lies from the mean on all, in standard deviations
(root mean square over devices and channels), beside the same for examples dealt at random. Times: one over
the other. Nats: how far the distribution on a device diverges from everyone's, a channel, beyond chance."""
UPDATES = """Cosine of two devices' updates after some local steps, and their diversity
(mean |u|² / |mean u|²): at 1 all devices agree. Drift is the diversity as a multiple of IID devices'."""


def html(found: Inspection) -> str:
    """The page."""
    parts = found.parts
    title = f"{parts.config.model} on {found.data}, {parts.config.devices} devices"
    body = [
        f"<h1>Before training: {_text(title)}</h1>",
        f"<p><code>{_text(command(found.asked).replace(' run', ' inspect', 1))}</code></p>",
        f'<p class="verdict{" bad" if found.fails else ""}">{_text(table.verdict(found))}</p>',
        *(f"<p>Note: {_text(note)}</p>" for note in found.notes),
        "<h2>What to change</h2>",
        _advice(found),
        "<h2>Who holds what</h2>",
        _figure(lambda axes: _holdings(axes, found), 6.5, 3.2),
        _table(("", ""), table.skew_rows(found), kind="facts"),
        *_norms(found),
        *_updates(found),
        "<h2>Bytes of a round</h2>",
        f"<p>Each device sends {found.traffic.up:,} bytes and is sent {found.traffic.down:,}. "
        "Below: what it would send with other codecs (one update, encoded and framed).</p>",
        _figure(lambda axes: _codecs(axes, found), 6.5, 2.6),
        _table(table.CODEC_HEAD, table.codec_rows(found)),
        "<h2>How to read this</h2>",
        f"<p>{READING}</p>",
    ]
    head = f"<meta charset='utf-8'><title>{_text(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _advice(found: Inspection) -> str:
    items = [
        f"<dt>{_text(a.what)}: {_text(a.change)}</dt>"
        f"<dd>{_text(a.reason)}.<br><code>{_text(a.command)}</code></dd>"
        for a in found.advice
    ]
    return f"<dl>{''.join(items)}</dl><p>Each command has the changes above it too.</p>"


def _norms(found: Inspection) -> list[str]:
    if not found.gaps:
        return []
    return [
        "<h2>Norms, layer by layer</h2>",
        f"<p>{GAPS}</p>",
        _figure(lambda axes: _gaps(axes, found), 6.5, 3.0),
        _table(table.LAYER_HEAD, table.layer_rows(found), [gap.breaks for gap in found.gaps]),
    ]


def _updates(found: Inspection) -> list[str]:
    if not found.agreement:
        return []
    return [
        "<h2>Updates, step by step</h2>",
        f"<p>{UPDATES}</p>",
        _figure(lambda axes: _agreement(axes, found), 6.5, 3.0),
        _table(table.AGREEMENT_HEAD, table.agreement_rows(found)),
    ]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], bad: Sequence[bool] = (), kind: str = "numbers"
) -> str:
    marks = list(bad) or [False] * len(rows)
    lines = "".join(
        f"<tr{' class=bad' if mark else ''}>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    top = f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>" if any(head) else ""
    return f'<table class="{kind}">{top}{lines}</table>'


def _text(text: str) -> str:
    return escape.escape(str(text))


# ---- pictures ----


def _figure(draw: Callable[[Any], None], width: float, height: float) -> str:
    """An SVG with what `draw` draws on its axes; the text in it is text."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgewise", "font.size": 9}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def _holdings(axes: Any, found: Inspection) -> None:
    held = found.held[:DEVICES].T.numpy()
    image = axes.imshow(held, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0)
    axes.set(xlabel="device", ylabel="class")
    axes.xaxis.get_major_locator().set_params(integer=True)
    classes = found.parts.classes
    if len(classes) <= 20:
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.figure.colorbar(image, ax=axes, label="examples")


def _gaps(axes: Any, found: Inspection) -> None:
    places = range(1, len(found.gaps) + 1)
    axes.bar(places, [g.gap for g in found.gaps], color=[ORANGE if g.breaks else BLUE for g in found.gaps])
    axes.plot(places, [g.chance for g in found.gaps], color="black", marker="_", markersize=9, linestyle="")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="norm, from the input on", ylabel="deviations")
    axes.set_title("bars: devices (orange: more than twice chance); dashes: chance", loc="left", fontsize=9)


def _agreement(axes: Any, found: Inspection) -> None:
    steps = [a.steps for a in found.agreement]
    axes.plot(steps, [a.diversity for a in found.agreement], color=ORANGE, marker="o", label="these devices")
    axes.plot(steps, [a.diversity_iid for a in found.agreement], color=GREY, marker="o", label="IID devices")
    axes.set(xlabel="local steps", ylabel="diversity of updates", xscale="log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _codecs(axes: Any, found: Inspection) -> None:
    names, sizes = list(found.traffic.by_codec), list(found.traffic.by_codec.values())
    axes.barh(names[::-1], sizes[::-1], color=BLUE)
    axes.set(xscale="log", xlabel="bytes a device sends in a round", xlim=(min(sizes) / 3, max(sizes) * 1.5))
