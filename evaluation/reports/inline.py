"""Sections of a report shown in a notebook."""

from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing

from evaluation.reports.html import Picture, Section, html_of

STYLE = """<style>
.consilium img { max-width: 100% } .consilium figure { margin: 0 } .consilium h2 { font-size: 110% }
.consilium th, .consilium td { padding: 2px 12px 2px 0; text-align: left; vertical-align: top }
.consilium small { display: block; color: #666; white-space: nowrap }
.consilium .thumbnails { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; padding: 0 }
.consilium .thumbnails li { width: 160px } .consilium .thumbnails img { width: 100% }
.consilium .thumbnails span { display: block; font-size: 80%; overflow-wrap: anywhere }
</style>"""


@dataclass(frozen=True)
class Look:
    """Sections that a notebook draws when they are a cell's last expression."""

    sections: tuple[Section, ...]

    def _repr_html_(self) -> str:
        body = "\n".join(html_of(section) for section in self.sections)
        return f'{STYLE}<div class="consilium">{body}</div>'


def look(*shown: Section | Drawing) -> Look:
    """Sections, or bare drawings, one below the other."""
    return Look(tuple(Picture(one) if isinstance(one, Drawing) else one for one in shown))
