"""An inspection as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgewise.data.skew import BREAKS, DOUBTFUL
from edgewise.inspection.traffic import NETWORK

if TYPE_CHECKING:
    from edgewise.inspection import Inspection

LAYERS = 12  # shown; the rest are on the page


def verdict(found: Inspection) -> str:
    """The forecast in one line."""
    if not found.score and not found.gaps:
        return "No layer takes its statistics from a device's batch: skewed labels break no norm here."
    if not found.score:
        return (
            "The norms share their statistics, correct them, or are each device's own: "
            "no failure of the norm is expected."
        )
    words = "no failure of the norm expected"
    if found.fails:
        words = "expect to lose more than ten points of accuracy"
    elif found.score >= DOUBTFUL:
        words = f"close to it; made splits from {DOUBTFUL:g} on lost 4 to 20 points"
    return f"Score {found.score:.2f} ({BREAKS:g} and more fails): {words}."


def skew_rows(found: Inspection) -> list[tuple[str, str]]:
    """Names and values, with how to read them."""
    skew = found.skew
    return [
        ("label divergence", f"{skew.divergence:.2f} (0: one mix everywhere; 1: the device tells the label)"),
        ("class pairs that meet on no device", f"{skew.apart:.0%}"),
        ("classes that one device alone holds", f"{skew.alone} of {len(found.parts.classes)}"),
        ("quantity", f"{skew.smallest:.2f} to {skew.largest:.2f} of an even share"),
    ]


def layer_rows(found: Inspection) -> list[tuple[str, ...]]:
    return [
        (
            gap.name or "the model",
            f"{gap.gap:.3f}",
            f"{gap.chance:.3f}",
            f"{gap.times:.1f}",
            f"{gap.divergence:.4f}",
            "differs" if gap.breaks else "",
        )
        for gap in found.gaps
    ]


LAYER_HEAD = ("norm", "gap", "by chance", "times", "nats", "")
AGREEMENT_HEAD = ("steps", "cosine", "of IID", "diversity", "of IID", "drift")
CODEC_HEAD = ("codec", "bytes a device and round", "times less")


def agreement_rows(found: Inspection) -> list[tuple[str, ...]]:
    return [
        (
            str(a.steps),
            f"{a.cosine:.2f}",
            f"{a.cosine_iid:.2f}",
            f"{a.diversity:.1f}",
            f"{a.diversity_iid:.1f}",
            f"{a.drift:.1f}",
        )
        for a in found.agreement
    ]


def codec_rows(found: Inspection) -> list[tuple[str, ...]]:
    plain = found.traffic.by_codec["none"]
    return [(name, f"{size:,}", f"{plain / size:.1f}") for name, size in found.traffic.by_codec.items()]


def text(found: Inspection) -> str:
    """All of it, about eighty columns wide."""
    lines = [verdict(found), ""]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"{name:36} {value}" for name, value in skew_rows(found)]
    rows = layer_rows(found)
    if rows:
        lines += [
            "",
            "Norms: distance of devices' means from everyone's, in deviations",
            *_table(LAYER_HEAD, rows[:LAYERS]),
        ]
        lines += [f"... and {len(rows) - LAYERS} more on the page"] if len(rows) > LAYERS else []
    if found.agreement:
        lines += [
            "",
            "Updates of two devices: cosine; mean |u|^2 / |mean u|^2",
            *_table(AGREEMENT_HEAD, agreement_rows(found)),
        ]
    traffic = found.traffic
    lines += [
        "",
        f"A round: each device sends {traffic.up:,} bytes and is sent {traffic.down:,}: "
        f"{traffic.seconds:.2f} s on {NETWORK}",
        *_table(CODEC_HEAD, codec_rows(found)),
        "",
        "Advice",
    ]
    for advice in found.advice:
        lines += [f"  {advice.what}: {advice.change}", f"    because {advice.reason}"]
    lines += ["", "All of it:", f"  {found.advice[-1].command}"]
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  "
        + "  ".join(
            w.ljust(n) if not i else w.rjust(n) for i, (w, n) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
