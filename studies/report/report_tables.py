"""The tables and notes of a study's report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.advice import ADVICE, Source
from fedmq.studies.report.figures import AXES, by_strategy, sends_differ
from fedmq.studies.report.look import Look
from fedmq.studies.report.texts import as_html, as_lines
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.differences import FINAL, Difference
from fedmq.studies.sweep.intervals import difference_text, mean_text, number_text
from fedmq.studies.sweep.measures import chance_share, cost_of, final_value, misplaced_share, reached_at
from fedmq.studies.sweep.tuning import Trial, Tuned

_COUNTED = (*AXES, ("bytes_down", "downloaded (MB)", 1e-6))
"""Costs that are counted to a target: key, label, unit."""
_TRIPS = {"tasks_issued": "tasks issued", "tasks_withdrawn": "tasks withdrawn"}
"""Tasks until a target, by key: each is a trip of a client."""


def outcomes(cells: Sequence[CellResult], metrics: Sequence[str], look: Look) -> str:
    """Return the table of the strategies' outcomes.

    Counts that are 0 everywhere have no column, and neither has an end that all runs share.
    """
    columns: dict[str, Callable[[CellResult], float]] = {
        **{f"final {as_html(m)}": partial(final_value, metric=m) for m in metrics},
        "virtual s": lambda r: r.time_s,
        "updates": lambda r: r.updates,
        "versions": lambda r: r.versions,
        "staleness": lambda r: r.mean_staleness,
        "misplaced weight, %": lambda r: 100 * misplaced_share(r),
        "by chance, %": lambda r: 100 * chance_share(r),
        "discarded": lambda r: sum(r.discarded.values()),
        "tasks issued": lambda r: math.nan if r.tasks_issued is None else r.tasks_issued,
        "withdrawn": lambda r: r.tasks_withdrawn or 0,
        "dropouts": lambda r: r.dropouts,
        "missed arrivals": lambda r: r.missed_arrivals,
    }
    optional = {"discarded", "withdrawn", "dropouts", "missed arrivals"}
    shown = {name: value for name, value in columns.items() if name not in optional or any(value(r) for r in cells)}
    rows = []
    every_end = sorted({r.finished for r in cells})
    for strategy, runs in by_strategy(cells):
        ends = dict.fromkeys(r.finished for r in runs)
        ended = ", ".join(f"{sum(r.finished == end for r in runs)} {end}" for end in ends)
        values = [mean_text([value(r) for r in runs]).removesuffix(" ± 0") for value in shown.values()]
        rows.append([_key(strategy, look), *values, *([as_html(ended)] if len(every_end) > 1 else [])])
    note = (
        "Final values: means over the last tenth of a run's virtual time. Misplaced weight: the part of all "
        "aggregation weight that went to other participants than intended. By chance: the part that luck alone "
        "misplaces, if as many updates come from participants drawn one by one. ± is the 95 % confidence interval of "
        "the mean. Numbers have at most three significant digits; the tables of the folder have all."
    )
    if len(every_end) == 1:
        return _table(["strategy", *shown], rows, f"{note} All runs ended by {as_html(every_end[0])}.")
    return _table(["strategy", *shown, "ended by"], rows, note)


def paired(found: Sequence[Difference], target: TargetMetric | None, look: Look) -> str:
    """Return the table of differences from the first strategy on the same seeds.

    It has the final value of the target's metric, or else of the first metric, and the costs of the target. It is empty
    if there is nothing to compare.
    """
    if not found:
        return ""
    metrics = [d.metric for d in found if d.measure == FINAL]
    metric = target.name if target is not None and target.name in metrics else next(iter(metrics), "")
    shown = [d for d in found if d.measure != FINAL or d.metric == metric]
    rows = []
    for strategy in dict.fromkeys(d.strategy for d in shown):
        own = {d.measure: d for d in shown if d.strategy == strategy}
        first = next(iter(own.values()))
        rows.append([_key(strategy, look), f"{first.paired} of {first.paired + first.left_out}", *_differences(own)])
    reference = as_html(found[0].reference)
    head = [f"against {reference}", "seeds paired", *([f"final {as_html(metric)}"] if metric else [])]
    note = (
        f"Differences on the same seeds: the mean of the seeds' own differences, strategy minus {reference} (the first "
        "strategy of the study), with its 95 % confidence interval (Student's t). On one seed all strategies meet the "
        "same participants, data and luck. Compare two strategies by this table, not by whether their intervals above "
        "overlap."
    )
    if any(d.measure != FINAL for d in shown) and target is not None:
        head += [f"{what} to target" for what in ("virtual s", "updates", "MB up", "MB down")]  # as in _COUNTED
        note += f" Target: {as_html(target.name)} {'≥' if target.mode == 'max' else '≤'} {target.value:g}."
    if any(d.left_out for d in shown):
        note += " Seeds in which either run failed or has no value are not paired."
    if any(d.paired and not d.values for d in shown):
        note += (
            f" Not reached: in how many paired seeds the strategy reached the target, and {reference}. Costs are "
            "compared if both reached it in all."
        )
    if any(len(d.values) == 1 for d in shown):
        note += " One paired seed has no interval."
    intervals = sum(d.interval is not None for d in shown)
    if intervals > 1:
        note += (
            f" The {intervals} intervals are not corrected for their number: each by itself misses in 5 % of studies."
        )
    return _table(head, rows, note)


def _differences(own: Mapping[str, Difference]) -> list[str]:
    """Return one strategy's differences, by measure, as cells of a table."""
    texts = [difference_text(own[FINAL].values)] if FINAL in own else []
    costs = [(own[key], unit) for key, _, unit in _COUNTED if key in own]
    texts += [difference_text([unit * value for value in d.values]) for d, unit in costs]
    if costs and costs[0][0].paired and not costs[0][0].values:
        d = costs[0][0]
        texts[-len(costs)] = f"not reached: {d.reached} and {d.reference_reached} of {d.paired}"
    return texts


def targets(
    cells: Sequence[CellResult],
    target: TargetMetric | None,
    look: Look,
    *,
    chosen: bool,
    hollow: bool,
    source: Source = "file",
) -> str:
    """Return the table of time, updates and bytes to the target."""
    if target is None:
        return (
            "<p class=note>No cost of a target: there is no value that all finished cells hold at their end and none "
            "had at its start. "
            f"{ADVICE[source].target}</p>"
        )
    sign = "at least" if target.mode == "max" else "at most"
    what = f"{as_html(target.name)} of {sign} {target.value:g}"
    if hollow:
        return (
            f"<p class=note>No cost of the target: a cell has {what} at its start, so reaching it says nothing. "
            f"A harder one says more. {ADVICE[source].target}</p>"
        )
    rows: list[list[str]] = []
    partly, first_up, compared = False, math.nan, sends_differ(cells)
    for strategy, runs in by_strategy(cells):
        costs = [cost for r in runs if (cost := cost_of(r, target)) is not None]
        mark = "" if len(costs) in (0, len(runs)) else " †"
        partly = partly or bool(mark)
        columns = [mean_text([cost[key] * unit for cost in costs]) + mark for key, _, unit in _COUNTED]
        if compared:
            up = sum(cost["bytes_up"] for cost in costs) / len(costs) if costs else math.nan
            first_up = up if not rows else first_up
            columns += [f"{number_text(first_up / up)}{mark}" if math.isfinite(first_up / up) else "-"]
        at = [found for r in runs if (found := reached_at(r, target)) is not None]
        columns += [mean_text([found.get(key, math.nan) for found in at]) + mark for key in _TRIPS]
        rows.append([_key(strategy, look), f"{len(costs)} of {len(runs)}", *columns])
    how = " (chosen by the report: 95 % of the way to the worst final value of a finished cell)" if chosen else ""
    note = f"Cost of reaching {what}{how}, at the first evaluation that had it and over whose next tenth of the run "
    note += "the mean had it too: a lucky evaluation does not count. Means over the seeds that reached it, with 95 % "
    note += "confidence intervals. Tasks issued are those that participants took, each of them a trip with the model. "
    note += "Those withdrawn were in vain."
    if compared:
        note += f" Fewer bytes up: the uploaded bytes of {as_html(cells[0].strategy)} over the strategy's own."
    if partly:
        note += " † Not all seeds reached it; the mean over all would be higher."
    head = [*(label for _, label, _ in _COUNTED), *(["fewer bytes up"] if compared else []), *_TRIPS.values()]
    return _table(["strategy", "reached by", *head], rows, note)


def trouble(results: Sequence[CellResult]) -> str:
    """Return the table of cells that failed."""
    bad = [r for r in results if r.finished in {"diverged", "stuck"}]
    if not bad:
        return ""
    rows = []
    for r in bad:
        when = r.diverged_s if r.diverged_s is not None else r.time_s
        rows.append([as_html(r.strategy), as_html(r.population), str(r.seed), r.finished, number_text(when),
                     number_text(r.updates), as_html(r.detail or "an update or the loss was not finite")])  # fmt: skip
    head = ["strategy", "population", "seed", "what", "at virtual s", "updates in all", "why"]
    table = _table(head, rows, text=(1, 3, 6))
    return f"<div class=loud><strong>{len(bad)} of {len(results)} cells failed.</strong>{table}</div>"


def untuned_banner(results: Sequence[CellResult], tunings: Sequence[Tuned], source: Source) -> str:
    """Return a loud note if a strategy was compared untuned."""
    tuned = {t.strategy for t in tunings if t.best is not None}
    untuned = [s for s, _ in by_strategy(results) if s not in tuned]
    if not untuned:
        return ""
    who = "all strategies" if not tuned else ", ".join(untuned)
    return (
        f"<p class=loud><strong>Untuned: {as_html(who)}.</strong> Step sizes are {ADVICE[source].steps}. "
        "The strategy that looks best may owe it to them: an untuned comparison misleads.</p>"
    )


def edge_banner(tunings: Sequence[Tuned], source: Source) -> str:
    """Return a loud note if the best value that was tried stands at an edge, or if no trial came to its end."""
    found = [f"{t.strategy} on {t.population}: {text}" for t in tunings for text in t.doubts]
    if not found:
        return ""
    items = "".join(f"<li>{as_html(text)}</li>" for text in found)
    return (
        "<div class=warn><strong>Tuned up to an edge.</strong> A better value may lie beyond what was tried, and these "
        f"strategies may do better than they do here. {ADVICE[source].widen}<ul>{items}</ul></div>"
    )


def tuning(results: Sequence[CellResult], tunings: Sequence[Tuned], look: Look, source: Source) -> str:
    """Return the tables of the tuning: the trials with their scores, the winners, and the tables to deploy."""
    if not tunings:
        return (
            f"<p><strong>Nothing.</strong> Untuned: step sizes are {ADVICE[source].steps}. {ADVICE[source].tune} "
            "before you conclude anything.</p>"
        )
    out = [_winners(tunings, look)]
    for t in tunings:
        if t.best is None:
            continue
        names = list(t.best.values)
        rows = [
            [*(f"{trial.values[n]:g}" for n in names), str(len(trial.scores)), _score(trial),
             as_html(trial.finished)]
            for trial in t.trials
        ]  # fmt: skip
        best = t.trials.index(t.best)
        head = [*(as_html(n) for n in names), "seeds", as_html(t.metric), "ended by"]
        table = _table(head, rows, best=best)
        out.append(
            f"<details><summary>{as_html(t.strategy)} on {as_html(t.population)}: {len(t.trials)} trials"
            f"</summary>{table}<p class=note>For a federation file:</p><pre>{as_lines(t.deploy)}</pre></details>"
        )
    untuned = [s for s, _ in by_strategy(results) if s not in {t.strategy for t in tunings if t.best is not None}]
    if untuned:
        out.append(f"<p><strong>Untuned: {as_html(', '.join(untuned))}.</strong></p>")
    return "".join(out)


def _winners(tunings: Sequence[Tuned], look: Look) -> str:
    rows = []
    for t in tunings:
        if t.best is None:
            rows.append([_key(t.strategy, look), as_html(t.population), "untuned", "", "", ""])
            continue
        notes = [*t.doubts, *_ties(t), *(f"not tuned: {what}" for what in t.untuned)]
        rows.append(
            [
                _key(t.strategy, look),
                as_html(t.population),
                as_html("; ".join(f"{path} = {value:g}" for path, value in t.best.values.items())),
                _stages(t),
                _score(t.best),
                as_html("; ".join(notes)),
            ]
        )
    score = " / ".join(dict.fromkeys(t.metric for t in tunings if t.metric))
    note = f"The best step sizes of each strategy, found on seeds of their own that are not compared. {_how(tunings)}"
    head = ["strategy", "population", "best", "trials", f"final {as_html(score)}", "notes"]
    return _table(head, rows, note, text=(1, 2, 5))


def _how(tunings: Sequence[Tuned]) -> str:
    """Return a note on the seeds and the judgement of the trials, and on the worth of their values."""
    found = []
    for seeds in dict.fromkeys(t.seeds for t in tunings if t.best is not None):
        if len(seeds) > 1:
            rest = ", ".join(str(seed) for seed in seeds[1:])
            found.append(
                f"All trials ran on seed {seeds[0]}, the best of them on {rest} as well. Of these finalists the best "
                f"one over all {len(seeds)} seeds won. In brackets: the lowest and the highest value of a seed. The "
                "winner was chosen by these values, so they flatter it a little. The comparison shows its true value, "
                "on other seeds."
            )
        elif seeds:
            found.append(f"All trials ran on seed {seeds[0]} alone: the best of many may be the luckiest.")
    judged = list(dict.fromkeys(t.judged_on for t in tunings if t.judged_on))
    if judged:
        found.append(f"Trials were judged on {as_html('; '.join(judged))}.")
    return " ".join(found)


def _stages(t: Tuned) -> str:
    """Return the number of trials, and the number of them on all seeds."""
    if len(t.seeds) < 2:
        return str(len(t.trials))
    return f"{len(t.trials)}, {len(t.finalists)} on {len(t.seeds)} seeds"


def _ties(t: Tuned) -> list[str]:
    """Return the values of finalists that may be the best as well, in the order of the best one's values."""
    values = ["; ".join(f"{value:g}" for value in trial.values.values()) for trial in t.as_good]
    return [f"within one standard error of it: {' / '.join(values)}"] if values else []


def _score(trial: Trial) -> str:
    value = number_text(trial.score) if math.isfinite(trial.score) else "-"
    if len(trial.scores) > 1 and math.isfinite(trial.score):
        value += " ({} to {})".format(*map(number_text, trial.extremes))
    if trial.reached_s is not None:
        value += f" (target at {number_text(trial.reached_s)} s)"
    return value


def _key(strategy: str, look: Look) -> str:
    return look.key(strategy) + as_html(strategy)


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
    *,
    best: int | None = None,
    text: Sequence[int] = (),
) -> str:
    """Return a table as HTML. Its cells are HTML. The first column and those in `text` are aligned to the left."""

    def row(cells: Sequence[str], tag: str, mark: str = "") -> str:
        kinds = (" class=text" if i == 0 or i in text else "" for i in range(len(cells)))
        return f"<tr{mark}>" + "".join(f"<{tag}{k}>{c}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    body = "".join(row(cells, "td", " class=best" if i == best else "") for i, cells in enumerate(rows))
    caption = f"<p class=note>{note}</p>" if note else ""
    # A unit stays on the line of its name.
    head = [name.replace(", %", ",&nbsp;%").replace("virtual s", "virtual&nbsp;s") for name in head]
    return f"<div class=scroll><table>{row(head, 'th')}{body}</table></div>{caption}"
