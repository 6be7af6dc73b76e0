"""What a comparison found, out of what its stages wrote: comparison.json, points.csv and the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exoalign import stages, stages_compare
from exoalign.cells import Cell
from exoalign.compare_chain import BASE, CompareChain
from exoalign.comparison_rates import win_rates
from exoalign.data.table import read_table
from exoalign.evaluate.best_of_n import best_of_n
from exoalign.evaluate.frontier import Point, frontiers
from exoalign.files import write_text
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.plan import Done
from exoalign.report.compare_page import write_compare_page
from exoalign.store import versions

COMPARISON, TABLE = "comparison.json", "points.csv"
ALL_POINTS, MOST_SAMPLES = 3, 2000
"""Prompts of which the page has samples of all points, and samples that it has in all."""
LEAST_KL, MOVED = 1e-3, 0.05
"""A method that gets less far than this, in nats and as a share of the furthest one, does not bound the common KL."""
SFT = "sft"


def write_results(work: CompareChain, done: Done, folder: Path) -> dict[str, Any]:
    """Write comparison.json, points.csv and report/index.html of the stages that are done; see `comparison.compare`."""
    results = Results(work, done)
    comparison = results.comparison()
    write_text(folder / COMPARISON, json.dumps(comparison, indent=1))
    write_text(folder / TABLE, results.csv())
    page = folder / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    write_compare_page(page, comparison)
    return {
        "finding": results.finding(),
        "methods": results.rows(),
        "warnings": comparison["warnings"],
        "report": str(page),
        "out": str(folder),
    }


class Results:
    """The finished part of a comparison.

    Attributes:
        cells: the trainings that are done and whole, without the trials of the search.
        failed: those that ended by an error, with it.
        still: of each method that hardly moved, that it did.
    """

    def __init__(self, work: CompareChain, done: Done) -> None:
        self.work, self.done, self.methods = work, done, work.comparison.methods
        self.points: dict[str, list[dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        for cell in work.cells:
            if cell.name in done:
                found = stages_compare.read_points(done[cell.name].folder)
                self.points[cell.name] = found["points"]
                if found["failed"]:
                    self.failed[cell.name] = found["failed"]
        self.cells = [c for c in work.cells if self.points.get(c.name) and c.trial is None]
        self.still: list[str] = []
        self.base = stages_compare.read_points(done[BASE].folder)["points"][0] if BASE in done else None
        self.best_of = self._best_of()
        self.frontiers = self._frontiers()

    def _best_of(self) -> dict[str, list[dict[str, Any]]]:
        """The points of each Best-of-N."""
        pool = self.done[BASE].folder / stages_compare.POOL if BASE in self.done else None
        if pool is None or not pool.is_file():
            return {}
        drawn, record = read_table(pool), stages_compare.read_points(pool.parent)
        found = {}
        for name, method in self.methods.items():
            if method.best_of is not None:
                points = best_of_n(
                    drawn, seconds=record["pool_seconds"], tokens=record["pool_tokens"], seed=self.work.task.seed
                )
                found[name] = [point for point in points if point["step"] <= method.best_of]
        return found

    def _frontiers(self) -> dict[str, Any]:
        """The frontier of each method that has points, up to the KL that all of them reach."""
        measured: dict[str, dict[int, list[Point]]] = {}
        for cell in self.cells:
            of_seed = measured.setdefault(cell.method, {}).setdefault(cell.seed, [])
            of_seed += [Point(p["prompts"]["reward"], p["prompts"]["kl"]) for p in self.points[cell.name]]
        for name, points in self.best_of.items():
            measured[name] = {0: [Point(p["prompts"]["reward"], p["prompts"]["kl"]) for p in points]}
        if self.base is None or not measured:
            return {"frontiers": [], "difference": []}
        ordered = {name: measured[name] for name in self.methods if name in measured}
        up_to = self._common_kl(ordered)
        if up_to is None:
            return {"frontiers": [], "difference": []}
        return frontiers(ordered, self.base["prompts"]["reward"], up_to=up_to, seed=self.work.task.seed)

    def _common_kl(self, measured: Mapping[str, Mapping[int, Sequence[Point]]]) -> float | None:
        """The KL that all methods reach but for those that hardly moved, of which there is a warning; None if all did."""
        reached = {
            name: max(float(np.asarray(point.kls).mean()) for points in seeds.values() for point in points)
            for name, seeds in measured.items()
        }
        least = max(LEAST_KL, MOVED * max(reached.values()))
        for name, kl in reached.items():
            if kl < least:
                self.still.append(
                    f"{self.label(name)} hardly moves: it gets {max(kl, 0.0):.3f} nats away from the model before"
                )
        return min((kl for kl in reached.values() if kl >= least), default=None)

    def label(self, method: str) -> str:
        """The method's name on the page."""
        return self.methods[method].label or method

    def rows(self) -> list[dict[str, Any]]:
        """A row for each method: area, and the point with the largest reward - beta KL."""
        areas = {found["method"]: found["area_with_seeds"] for found in self.frontiers["frontiers"]}
        found = []
        for name in self.methods:
            points = [(p, c.beta) for c in self.cells if c.method == name for p in self.points[c.name]]
            points += [(point, self.work.comparison.betas[0]) for point in self.best_of.get(name, ())]
            row: dict[str, Any] = {"method": name, "label": self.label(name), "runs": self._runs(name)}
            if points:
                best, beta = max(points, key=lambda pair: value_of(*pair))
                row |= {
                    "area": areas.get(name),
                    "reward": best["reward"],
                    "kl": best["kl_exact"] or best["kl"],
                    "gain": {"mean": value_of(best, beta), "low": value_of(best, beta), "high": value_of(best, beta)},
                }
            found.append(row)
        return found

    def _runs(self, method: str) -> int:
        return sum(cell.method == method for cell in self.cells) or int(method in self.best_of)

    def finding(self) -> str:
        """One sentence: which method's area is the largest, and whether it is clear of the next."""
        areas = sorted(self.frontiers["frontiers"], key=lambda found: -found["area"]["mean"])
        if len(areas) < 2:
            return ""
        first, second = areas[0]["method"], areas[1]["method"]
        for pair in self.frontiers["difference"]:
            if {pair["a"], pair["b"]} == {first, second}:
                sign = 1 if pair["a"] == first else -1
                low, high = sorted(sign * pair["area_with_seeds"][end] for end in ("low", "high"))
                ahead = f"{sign * pair['area_with_seeds']['mean']:.3f} ({low:.3f} to {high:.3f})"
                said = f"up to a KL of {areas[0]['up_to']:.2f} nats {self.label(first)} gains most reward"
                if low > 0:
                    return f"{said}, ahead of {self.label(second)} by {ahead}."
                return f"{said}, but no clear difference to {self.label(second)}: {ahead}."
        return ""

    def comparison(self) -> dict[str, Any]:
        """All that the page shows, as JSON values."""
        warnings = [*(f"{name} failed: {why}" for name, why in self.failed.items()), *self.still]
        left = [stage.name for stage in self.work.stages if stage.name not in self.done]
        if left:
            warnings.append(
                f"{len(left)} of {len(self.work.stages)} stages are still to do: {', '.join(left[:5])}, ..."
            )
        return {
            "title": self.work.comparison.name,
            "methods": [
                {"name": name, "label": self.label(name), "about": json.dumps(method.align) if method.align else ""}
                for name, method in self.methods.items()
            ],
            "runs": list(self._page_runs()),
            **self.frontiers,
            "win_rates": self._win_rates(),
            "search": list(self._search()),
            "samples": self._samples(),
            "recipe": self.work.comparison.model_dump(exclude_none=True)
            | {"task": self.work.task.model_dump(exclude_none=True)},
            "versions": versions(),
            "warnings": warnings,
        }

    def _page_runs(self) -> Iterator[dict[str, Any]]:
        for cell in self.cells:
            history = json.loads((self.done[cell.name].folder / stages.HISTORY).read_text(encoding="utf-8"))
            yield self._run(cell.method, cell.seed, cell.beta, self.points[cell.name], history["steps"])
        for name, points in self.best_of.items():
            yield self._run(name, 0, None, points, [])

    def _run(
        self, method: str, seed: int, beta: float | None, points: Sequence[dict[str, Any]], history: list[Any]
    ) -> dict[str, Any]:
        shown = [{key: value for key, value in point.items() if key != "prompts"} for point in points]
        return {"method": method, "seed": seed, "beta": beta, "points": shown, "history": history}

    def _win_rates(self) -> dict[str, Any]:
        """By the last points, at the first of the strengths."""
        if self.base is None:
            return {}
        samples = {SFT: [stages_compare.samples_of(self.done[BASE].folder, 0)]}
        first = self.work.comparison.betas[0]
        for cell in self.cells:
            if cell.beta in (None, first):
                groups = stages_compare.samples_of(self.done[cell.name].folder, self.points[cell.name][-1]["step"])
                samples.setdefault(cell.method, []).append(groups)
        held_out = None if self.work.comparison.held_out is None else stages_compare.HELD_OUT
        return win_rates(samples, SFT, held_out=held_out, seed=self.work.task.seed)

    def _search(self) -> Iterator[dict[str, Any]]:
        """Of each method what was tried, and what was taken."""
        for name in self.methods:
            trials = [c for c in self.work.cells if c.method == name and c.trial is not None and c.name in self.points]
            best = {beta: self._best([c for c in trials if c.beta == beta]) for beta in {c.beta for c in trials}}
            if trials:
                yield {"method": name, "trials": [self._trial(c, best[c.beta]) for c in trials]}

    def _trial(self, cell: Cell, best: Cell | None) -> dict[str, Any]:
        gain = None if cell.name in self.failed else stages_compare.gain(self.points[cell.name], cell.beta)
        settings = {"learning_rate": cell.trial, "beta": cell.beta}
        return {"settings": settings, "objective": gain, "chosen": cell is best}

    def _best(self, trials: Sequence[Cell]) -> Cell | None:
        whole = [cell for cell in trials if cell.name not in self.failed]
        return max(whole, key=lambda c: stages_compare.gain(self.points[c.name], c.beta), default=None)

    def _samples(self) -> list[dict[str, Any]]:
        """Samples of all points of the first prompts, and of the last points of as many others as there is room for."""
        sources: list[tuple[dict[str, Any], list[Group], bool]] = []
        if self.base is not None:
            groups = stages_compare.samples_of(self.done[BASE].folder, 0)
            sources.append(({"method": SFT, "seed": 0, "beta": None, "step": 0}, groups, True))
        for cell in self.cells:
            for point in self.points[cell.name]:
                groups = stages_compare.samples_of(self.done[cell.name].folder, point["step"])
                key = {"method": cell.method, "seed": cell.seed, "beta": cell.beta, "step": point["step"]}
                sources.append((key, groups, point is self.points[cell.name][-1]))
        found, count = [], 0
        for i, row in enumerate(self.work.rows):
            rows = [
                {**key, "text": completion_text(groups[i].completions[0]), "reward": (groups[i].rewards or (None,))[0]}
                for key, groups, last in sources
                if last or i < ALL_POINTS
            ]
            if i >= ALL_POINTS and count + len(rows) > MOST_SAMPLES:
                break
            count += len(rows)
            found.append({"prompt": prompt_text(row.prompt), "rows": rows})
        return found

    def csv(self) -> str:
        """A line for each point."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        quantities = ("reward", "kl", "kl_exact", "kl_k3", "length", "distinct_2", "self_bleu")
        ends = ("mean", "low", "high")
        writer.writerow(
            ["method", "beta", "seed", "step", "seconds", "tokens", *(f"{q}_{e}" for q in quantities for e in ends)]
        )
        for run in self._page_runs():
            for point in run["points"]:
                values = [(point[q] or {}).get(end, "") for q in quantities for end in ends]
                key = [run["method"], "" if run["beta"] is None else run["beta"], run["seed"]]
                writer.writerow([*key, point["step"], point["seconds"], point["tokens"], *values])
        return file.getvalue()


def value_of(point: dict[str, Any], beta: float | None) -> float:
    """reward - beta KL of a point."""
    kl = point["kl_exact"] or point["kl"]
    return float(point["reward"]["mean"] - (beta or 0.0) * kl["mean"])
