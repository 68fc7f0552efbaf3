"""kvx.export: an experiment's results as files for papers, spreadsheets and kvpress's board."""

import logging
from pathlib import Path

from kvx.analyze import fidelity_plots, plots
from kvx.analyze.build import inputs_hash, tables_of
from kvx.config.export import ExportFormat
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.export import leaderboard, paper_tables
from kvx.points import experiment_dir
from kvx.store.catalog import PointRecord, finished_points

log = logging.getLogger(__name__)
IMAGES = (ExportFormat.png, ExportFormat.svg, ExportFormat.pdf)


def export_experiment(config: Config) -> list[Path]:
    """Write what `export.formats` names; the files and folders written.

    Raises `UserError` if the experiment is not analysed, or was before its points changed, and for
    no format.
    """
    asked, folder = config.export, experiment_dir(config)
    if not asked.formats:
        raise UserError(
            "export.formats=[]: name at least one of csv, latex, svg, pdf, png, kvpress"
        )
    target = Path(asked.folder) if asked.folder else folder / "export"
    written: list[Path] = []
    if ExportFormat.kvpress in asked.formats:
        board = _board(config, target / "kvpress")  # refuses before anything is written
        output = Path(config.paths.output)
        written += [leaderboard.write_point(p, output, where.parent) for where, p in board.items()]
    if asked.formats != [ExportFormat.kvpress]:
        frames = tables_of(folder, inputs_hash(folder, config.analyze))
        if ExportFormat.csv in asked.formats:
            written += paper_tables.write_csv(frames, target / "csv")
        if ExportFormat.latex in asked.formats:
            written += paper_tables.write_latex(frames, target / "latex")
        if images := [f.value for f in asked.formats if f in IMAGES]:
            written += plots.draw_all(
                frames["bin_stats"],
                frames["catastrophe_stats"],
                target / "plots",
                config.analyze.confidence,
                images,
            )
            written += fidelity_plots.draw_all(
                frames["fidelity_stats"], target / "plots", config.analyze.confidence, images
            )
    log.info("export: %d files → %s", len(written), target)
    return written


def _board(config: Config, target: Path) -> dict[Path, PointRecord]:
    """The folder of each point below `target`; with several seeds, each has a folder of its own.

    Raises `UserError` if two points would have the same.
    """
    points = []
    for point in finished_points(experiment_dir(config)):
        if point.is_guarded:
            log.warning("export: left out, as a controller steered it: %s", point.id)
        else:
            points.append(point)
    seeds = {point.info["seed"] for point in points}
    found: dict[Path, PointRecord] = {}
    for point in points:
        below = target / f"seed={point.info['seed']}" if len(seeds) > 1 else target
        path = below / leaderboard.target_of(point)
        if path in found:
            raise UserError(
                f"{point.dir}: {found[path].id} has the folder {path.name} too, as kvpress's names "
                "do not tell them apart; export them from experiments of their own"
            )
        found[path] = point
    return found
