"""One self-contained HTML page of a study.

It has the outcomes, the differences on the same seeds, curves with bands over seeds, the costs of a target, the weights
of participants, and the tuning. It has no script and makes no request. It stays under `LIMIT_BYTES`: figures become
pictures if there are too many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report import figures, report_tables
from fedmq.studies.report.advice import Source
from fedmq.studies.report.look import Form, Look, page_colours
from fedmq.studies.report.texts import as_html, as_lines
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.differences import differences
from fedmq.studies.sweep.measures import common_target, met_at_start, metrics_of
from fedmq.studies.sweep.tuning import Tuned

LIMIT_BYTES = 2_900_000
MEASURED = "a participant took"
"""Words in the name of a backend that was chosen by time (studies.problems.keras.cohort)."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
body{max-width:1240px;margin:2em auto;padding:0 1em}
h1{font-size:1.7em;margin-bottom:.2em}h2{margin-top:2.2em;border-bottom:1px solid var(--rule)}h3{margin:1.4em 0 .2em}
table{border-collapse:collapse;margin:.8em 0;font-size:.88em;font-variant-numeric:tabular-nums}
th,td{padding:.25em .55em;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{border-bottom:1.5px solid var(--line);font-weight:600;white-space:normal;vertical-align:bottom}
td.text,th.text{text-align:left;white-space:normal}
td:first-child{white-space:nowrap}
figure{margin:1.2em 0}svg,img{max-width:100%;height:auto}img{background:#fff}caption{text-align:left}
.scroll{overflow-x:auto}figcaption,.note,caption{color:var(--soft);font-size:.9em}
.key{display:inline-block;width:1.1em;margin-right:.4em;text-align:center}
.loud{border:2px solid var(--loud);background:var(--loud-back);padding:.6em 1em;border-radius:4px}
.warn{border:2px solid var(--warn);background:var(--warn-back);padding:.6em 1em;border-radius:4px;margin:.8em 0}
.warn ul{margin:.3em 0}
pre{background:var(--code);padding:1em;overflow:auto;font-size:.85em}tr.best td{font-weight:700}
@media print{body{max-width:none;margin:0}figure,table{break-inside:avoid}}
"""


def write_report(
    path: Path,
    name: str,
    results: Sequence[CellResult],
    settings: str,
    *,
    target: TargetMetric | None = None,
    tunings: Sequence[Tuned] = (),
    source: Source = "file",
) -> Path:
    """Write the page, whole or not at all, and return its path.

    `settings` are the study's values as text. `target` is the value that a cell should reach. Without one it is a value
    that all finished cells hold at their end and none had at the start. `source` is the place in which the study is
    written, for the report's advice.
    """
    for form in get_args(Form):
        page = "".join(_page(name, results, settings, target=target, tunings=tunings, source=source, form=form))
        if len(page.encode()) <= LIMIT_BYTES:
            break
    part = path.with_suffix(".html.part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def _page(
    name: str,
    results: Sequence[CellResult],
    settings: str,
    *,
    target: TargetMetric | None,
    tunings: Sequence[Tuned],
    source: Source,
    form: Form,
) -> list[str]:
    title = as_html(name)
    look = Look(tuple(dict.fromkeys(r.strategy for r in results)), form)
    populations = list(dict.fromkeys(r.population for r in results))
    out = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f"<style>{page_colours()}{_STYLE}</style>",
        f"<h1>{title}</h1><p>{_count(len(look.strategies), 'strategy', 'strategies')} on {len(populations)} ",
        f"population{'s' if len(populations) > 1 else ''}, {_seeds(results)} each, in virtual time, driven by the ",
        "decision core that a deployment's coordinator runs.</p>",
        report_tables.untuned_banner(results, tunings, source),
        report_tables.trouble(results),
        report_tables.edge_banner(tunings, source),
    ]
    metrics = metrics_of(results)
    if len(populations) > 1 and metrics:
        out.append("<h2>Overview</h2>")
        caption = (
            f"Final {metrics[0]} (mean over the last tenth of a run's virtual time), by population. {_bars(results)}"
        )
        if figures.off_scale(results, metrics[0]):
            caption += f" Values beyond {figures.BEYOND:,.0f} times the largest start are drawn at that limit."
        out.append(_shown(figures.overview(results, metrics[0], look), caption))
    for population in populations:
        cells = [r for r in results if r.population == population]
        out.append(f"<h2>{as_html(population)}</h2>")
        out += _population(cells, look, target, source)
    out.append("<h2>What was tuned</h2>")
    out.append(report_tables.tuning(results, tunings, look, source))
    out.append(f"<h2>All settings</h2><p class=note>Before tuning. {_trained_by(results)}</p>")
    out.append(f"<details><summary>Show</summary><pre>{as_lines(settings)}</pre></details></html>\n")
    return out


def _population(cells: Sequence[CellResult], look: Look, target: TargetMetric | None, source: Source) -> list[str]:
    metrics = metrics_of(cells)
    goal = target or common_target(cells, metrics)
    hollow = goal is not None and met_at_start(cells, goal)
    out = [
        report_tables.outcomes(cells, metrics, look),
        report_tables.paired(differences(cells, look.strategies[0], None if hollow else goal), goal, look),
    ]
    for metric in metrics:
        start = f"after the first {100 * figures.STEEP_PART:g} % of a run"
        caption = f"{metric.capitalize()} against virtual time, updates and uploaded bytes, {start}. {_bands(cells)}"
        if figures.sends_differ(cells, figures.FAR_SENDS):
            caption += " Bytes are of whole messages, on a logarithmic axis."
        if goal is not None and goal.name == metric and not hollow:
            caption += " Dotted: the target of the table below."
        figure, outside = figures.curves(cells, metric, look, None if hollow else goal)
        out.append(_shown(figure, f"{caption} {outside}".rstrip()))
    out.append(report_tables.targets(cells, goal, look, chosen=target is None, hollow=hollow, source=source))
    caption = f"(a) How stale the accepted updates were, all seeds together. (b) Tasks out at one time. {_bands(cells)}"
    out.append(_shown(figures.dynamics(cells, look), caption))
    count = max(len(r.weight) for r in cells)
    caption = (
        f"Each dot is one of the {count:,} participants of seed {cells[0].seed}: its share of all aggregation weights "
        "over the share that its client weight intends, against the mean seconds of its tasks. A participant on the "
        "line at 1 counts as much as intended. One that was never counted stands at the lower edge. (AREA and CA2FL "
        "remember the last update of each participant, which corrects in the model what these weights of single "
        "updates show.)"
    )
    out.append(_shown(figures.weights(cells, look), caption))
    return out


def _shown(figure: str, caption: str) -> str:
    figure = figure.replace('<img alt=""', f'<img alt="{as_html(caption)}"')
    return f"<figure>{figure}<figcaption>{as_html(caption)}</figcaption></figure>"


def _seeds(cells: Sequence[CellResult]) -> str:
    seeds = len({r.seed for r in cells})
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def _trained_by(results: Sequence[CellResult]) -> str:
    """Return the names of the backends, and whether the same bytes come again."""
    names = [r.backend.partition(" (")[0] for r in results]
    said = "; ".join(f"{name} ({_count(names.count(name), 'cell', 'cells')})" for name in dict.fromkeys(names))
    if any(MEASURED in r.backend for r in results):
        again = (
            "The faster path was measured once for all cells (their table has the times). Paths differ in the last "
            'bits: name one (path = "cohort" or "plain") for the same bytes in another folder.'
        )
    else:
        again = "The same settings and seeds give the same bytes."
    return f"Trained by: {as_html(said)}. {again}"


def _bands(cells: Sequence[CellResult]) -> str:
    """Return a caption's text about lines and bands."""
    if len({r.seed for r in cells}) == 1:
        return "One seed: no band."
    text = f"Lines: means over {_seeds(cells)}; bands: 95 % confidence intervals of the mean (Student's t)."
    for strategy, runs in figures.by_strategy(cells):
        lost = sum(r.finished == "diverged" for r in runs)
        if lost == len(runs):
            text += f" All of {strategy} diverged. ✕ marks the end of its curve, if the panel is high enough."
        elif lost:
            text += f" {lost} of {strategy} diverged and are left out."
    return text


def _bars(cells: Sequence[CellResult]) -> str:
    lost = sum(r.finished == "diverged" for r in cells)
    left_out = f" {lost} cells that diverged are left out." if lost else ""
    if len({r.seed for r in cells}) == 1:
        return f"One seed: no intervals.{left_out}"
    return f"Means over {_seeds(cells)} with 95 % confidence intervals (Student's t).{left_out}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


__all__ = ["LIMIT_BYTES", "write_report"]
