"""A contact sheet as one HTML file: images inside it, nothing from the network, no script."""

import html
from collections.abc import Sequence

from segkit.contact_sheet.sheet import Share, Tile, chart_title, shares, tile_overlay
from segkit.errors import printable
from segkit.visualization import IGNORED, Palette, data_url, fit

_LONGEST = 1024  # pixels of an image's longer side in the page
_QUALITY = 92  # of its JPEGs, whose colours keep their full resolution

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
h1 {{ font-size: 1.3rem; }}
h2 {{ font-size: 1rem; margin-top: 2rem; }}
main {{ display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }}
figure {{ margin: 0; }}
figure div {{ display: flex; gap: 4px; align-items: start; }}
img {{ flex: 1; min-width: 0; width: 50%; height: auto; }}
figcaption {{ overflow-wrap: anywhere; font-size: .9rem; }}
ul {{ columns: 24rem; column-gap: 2rem; padding: 0; margin: 0; list-style: none; }}
li {{ display: grid; grid-template-columns: 2rem 11rem 1fr 5rem; gap: .6rem; align-items: center; }}
li {{ break-inside: avoid; }}
li span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
i, b {{ display: block; height: 1rem; outline: 1px solid #999; }}
em {{ font-style: normal; text-align: right; font-variant-numeric: tabular-nums; }}
.scale {{ background: repeating-linear-gradient(90deg, #8886 0px, #8886 1px, transparent 1px, transparent 20%); }}
.hatch {{ background: repeating-linear-gradient(135deg, #828282 0px, #828282 3px, #000 3px, #000 12px); }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
<h2>{chart_title} (each line is a factor of 10, from 0.001% to 100%)</h2>
<ul>
{rows}
</ul>
</html>
"""


def page(samples: Sequence[Tile], class_names: Sequence[str], palette: Palette, title: str) -> str:
    """The whole file.

    Args:
        samples: One or more; larger ones than 1024 pixels are reduced.
        class_names: K names.
        palette: K RGB colours.
        title: Heading of the page.

    Raises:
        InputError: A mask holds a label without a colour, or sizes differ.
    """
    found = shares(samples, class_names)
    return _PAGE.format(
        title=html.escape(title),
        figures="\n".join(_figure(sample, palette) for sample in samples),
        chart_title=html.escape(chart_title(found, len(class_names))),
        rows="\n".join(_row(share, palette) for share in found),
    )


def _figure(sample: Tile, palette: Palette) -> str:
    image, mask = fit(sample.image, sample.mask, _LONGEST)
    caption = html.escape(printable(sample.caption))
    shown = (("image", image), ("labels", tile_overlay(image, mask, palette)))
    images = "".join(f'<img alt="{what} of {caption}" src="{data_url(array, _QUALITY)}">' for what, array in shown)
    return f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>"


def _row(share: Share, palette: Palette) -> str:
    name, is_ignored = html.escape(share.name), share.id == IGNORED
    look = 'class="hatch" style="' if is_ignored else f'style="background: rgb{tuple(palette[share.id])}; '
    bar = f'<b {look}width: {max(1, round(100 * share.length))}%"></b>'
    return (
        f'<li><i {look}"></i><span title="{name}">{name}</span><div class="scale">{bar}</div>'
        f"<em>{html.escape(share.percent)}</em></li>"
    )
