"""Structured configuration of kvx.export."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option


class ExportFormat(Enum):
    """A kind of file that an experiment's results are written as."""

    csv = "csv"  # every analysed table
    latex = "latex"  # the report's main tables, with booktabs
    svg = "svg"  # the plots
    pdf = "pdf"
    png = "png"
    kvpress = "kvpress"  # each point as kvpress's evaluation would have left it


USUAL = [ExportFormat.csv, ExportFormat.latex, ExportFormat.svg, ExportFormat.pdf]


@dataclass
class ExportConfig:
    formats: list[ExportFormat] = option(USUAL, "csv, latex, svg, pdf, png, kvpress")
    folder: str | None = option(None, "where to; null: `export` in the experiment's folder")
