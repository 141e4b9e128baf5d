"""The page of an evidence bundle: one HTML file without scripts, which opens offline beside clip and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from zoneinfo import ZoneInfo

from index.records import from_micros, parse_rfc3339
from pipeline.evidence.manifest import MANIFEST, SIGNATURE, Manifest

__all__ = ["render_page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #475569; --page: #f8fafc; --card: #fff; --line: #cbd5e1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --soft: #a3b1c6; --page: #0b1120; --card: #111a2e; --line: #334155; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.soft { color: var(--soft); } .answer { font-size: 1.25rem; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
video { width: 100%; max-height: 70vh; background: #000; border-radius: .5rem; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); gap: .75rem; }
figure { margin: 0; padding: .5rem; } figure img { width: 100%; height: auto; border-radius: .25rem; display: block; }
figcaption { font-size: .85rem; padding-top: .35rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--line); }
th { white-space: nowrap; font-weight: 600; } td { overflow-wrap: anywhere; }
code { font: .85rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:; media-src 'self' file:"


def render_page(manifest: Manifest) -> str:
    """The page of a bundle.

    Args:
        manifest: the manifest; the digest of this page may be missing in it.
    """
    title = f"Evidence: {manifest.stream_id}, {_when(manifest.start, manifest.zone)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Until {escape(_when(manifest.end, manifest.zone))}. Prepared by {escape(manifest.created_by)}'
        f" on {escape(manifest.created_at)}: {escape(manifest.reason)}</p>",
        *_notices(manifest),
        *_question(manifest),
        *_clip(manifest),
        *_frames(manifest),
        *_sources(manifest),
        *_check(manifest),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _when(text: str, zone: str) -> str:
    """A time in UTC, and in another zone beside it."""
    at = from_micros(parse_rfc3339(text))
    shown = at.strftime("%Y-%m-%d %H:%M:%S") + (f".{at.microsecond:06d}".rstrip("0") if at.microsecond else "") + " UTC"
    if zone == "UTC":
        return shown
    return f"{shown} ({at.astimezone(ZoneInfo(zone)).strftime('%Y-%m-%d %H:%M:%S %z')} {zone})"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table>{lines}</table></div>'


def _notices(manifest: Manifest) -> list[str]:
    if not manifest.notices:
        return []
    return ['<div class="card">', *(f"<p>{escape(notice)}</p>" for notice in manifest.notices), "</div>"]


def _question(manifest: Manifest) -> list[str]:
    if manifest.question is None:
        return []
    lines = ["<h2>Question and answer</h2>", f"<p>{escape(manifest.question)}</p>"]
    if manifest.answer is not None:
        lines.append(f'<p class="answer"><strong>{escape(manifest.answer)}</strong></p>')
    lines.append(
        '<p class="soft">A language model wrote the answer. The clip and the pictures are what it rests on.</p>'
    )
    if manifest.details:
        lines.append(_table((name, escape(str(value))) for name, value in sorted(manifest.details.items())))
    return lines


def _clip(manifest: Manifest) -> list[str]:
    clip = manifest.clip
    if clip is None:
        return []
    shown = clip.viewing_copy or clip.file
    how = "Its frames were encoded again." if clip.encoded_again else "Its packets are those of the footage, unchanged."
    if clip.viewing_copy:
        how += f' The player shows <a href="{escape(clip.viewing_copy)}">a copy</a> that every browser plays.'
    missing = f" {clip.missing_seconds:g} s within it were not recorded." if clip.missing_seconds else ""
    return [
        "<h2>Clip</h2>",
        f'<video controls preload="metadata" src="{escape(shown)}" aria-label="Clip of {escape(manifest.stream_id)}">'
        "</video>",
        f'<p class="soft"><a href="{escape(clip.file)}">{escape(clip.file)}</a>: '
        f"{escape(_when(clip.start, manifest.zone))} to {escape(_when(clip.end, manifest.zone))}, {clip.frames} frames."
        f"{missing} {how}</p>",
    ]


def _frames(manifest: Manifest) -> list[str]:
    if not manifest.frames:
        return []
    lines = ["<h2>Pictures</h2>", '<div class="frames">']
    for picture in manifest.frames:
        when = _when(picture.captured_at, manifest.zone)
        score = "" if picture.score is None else f", score {picture.score:.3f}"
        lines.append(
            f'<figure><a href="{escape(picture.file)}"><img src="{escape(picture.file)}" loading="lazy" '
            f'alt="{escape(picture.stream_id)} at {escape(when)}"></a>'
            f"<figcaption>{escape(picture.stream_id)}, {escape(when)}{score}</figcaption></figure>"
        )
    return [*lines, "</div>"]


def _sources(manifest: Manifest) -> list[str]:
    clocks = "; ".join(
        f"{clock.source}" + (f" ({'; '.join(filter(None, (clock.zone, clock.fold)))})" if clock.zone else "")
        for clock in manifest.clocks
    )
    rows = [
        ("Source of the times", escape(clocks or "unknown")),
        *(
            (
                f"Footage ({each.kind})",
                f"{escape(each.name)}, {each.bytes} bytes, begins {escape(each.start)}<br>"
                f"<code>SHA-256 {each.sha256}</code>",
            )
            for each in manifest.footage
        ),
        *(
            (
                name,
                f"{escape(encoder.name)} {escape(encoder.revision)}<br><code>{escape(encoder.weights_digest)}</code>",
            )
            for name, encoder in (
                ("Encoder of frames", manifest.encoders.frame),
                ("Encoder of patches", manifest.encoders.patch),
            )
        ),
        ("Program", escape(manifest.program)),
    ]
    if manifest.covered:
        rows.append(("Removed", f"{len(manifest.covered)} boxes in pictures and clip"))
    return ["<h2>Where it comes from</h2>", _table(rows)]


def _check(manifest: Manifest) -> list[str]:
    files = ((entry.path, f"{entry.bytes} bytes<br><code>{entry.sha256}</code>") for entry in manifest.files)
    return [
        "<h2>Check it</h2>",
        "<p><code>sightline evidence verify BUNDLE --key KEY</code> checks every file and the signature, without the "
        "store. Get the key, or its fingerprint, from the installation by another way than this bundle.</p>",
        _table(
            [
                ("Bundle", f"<code>{escape(manifest.id)}</code>"),
                ("Key", f"<code>{escape(manifest.fingerprint)}</code>"),
                ("List", f"<code>{MANIFEST}</code>, signed in <code>{SIGNATURE}</code>"),
            ]
        ),
        "<h2>Files</h2>",
        _table(files),
    ]
