"""A search on a teacher and a student: selectors, their table, the retrieval map, the chosen models.

A folder `out` holds `evaluations.jsonl` (the table), `gates_SHARE.json` (the training of gates for a budget),
`selections.json` and a model folder for each method. The same search started again, also after a kill,
repeats no evaluation.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from hybridlm.distill.compose import composed
from hybridlm.distill.selection.branches import BranchModel, branches
from hybridlm.distill.selection.budget import Budget, Kept
from hybridlm.distill.selection.compilations import Compilations
from hybridlm.distill.selection.evaluations import Evaluations, Search, Values
from hybridlm.distill.selection.gates import train_gates
from hybridlm.distill.selection.measures import METRICS, Measures, check_metrics
from hybridlm.distill.selection.noise import difference, interval
from hybridlm.distill.selection.registry import SELECTORS
from hybridlm.distill.selection.retrieval import Batch, retrieval_batch, with_rows
from hybridlm.distill.selection.retrieval_map import RetrievalMap, retrieval_map
from hybridlm.distill.selection.selection import Selection, Selector, SelectorSettings, words
from hybridlm.distill.selection.settings import GateSettings, SearchSettings
from hybridlm.errors import RunError, StorageError, UserError, WriteError
from hybridlm.models.accounting import state_bytes
from hybridlm.progress import doing
from hybridlm.runs import checkpoint
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.runs.opened import MODEL, OpenedModel, save_model
from hybridlm.settings import json_text
from hybridlm.settings.plain import to_dict
from hybridlm.settings.registry import choose
from hybridlm.storage.writing import writing

TABLE, GATES, RESULT = "evaluations.jsonl", "gates_{:.4f}.json", "selections.json"
_ANSWER_ROWS = 32  # rows of answers in a batch of gate training: one shape, one program
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """One method's selection with what it costs and gives.

    Attributes:
      values: the metric on each evaluation set.
      cost: bytes of all layers' states of one sequence, at the context of the settings.
      measured: evaluations that this method made, and none before it in this process had.
    """

    selection: Selection
    values: Values
    cost: int
    measured: int


@dataclasses.dataclass(frozen=True)
class Point:
    """A model of a method's curve: its number of replaced layers and its metric on each set."""

    method: str
    replaced: int
    kept: tuple[int, ...]
    values: Values


def check_settings(search: SearchSettings, selector: SelectorSettings) -> list[Selector]:
    """The chosen selectors; reads no model.

    Raises:
      UserError: if one is unknown or lacks a budget, a metric is unknown, or greedy has no bound.
    """
    chosen = choose(SELECTORS, search.methods, "methods")
    check_metrics([selector.metric, *(m for s in chosen for m in s.reads(selector))])
    for method in chosen:
        if method.needs_budget and search.keep is None and search.cache is None:
            raise UserError(
                f"{method.name} needs a budget: give --keep, a number of layers, or --cache, bytes"
            )
    free = search.keep is None and search.cache is None
    by_share = selector.min_score is None and (free or selector.max_drop is not None)
    if by_share and selector.metric == "kl" and any(m.name == "greedy" for m in chosen):
        raise UserError(
            "greedy cannot stop at a share of the teacher's kl, which is 0 to itself: give --min_score, or a"
            " budget (--keep or --cache) without --max_drop, or another --metric"
        )
    return chosen


class LayerSearch:
    """Selectors on one teacher and student, over one table.

    Attributes:
      branch: both models in one.
      table: the evaluations.
      compilations: programs that were compiled while evaluations were made.
      retrieval: where the teacher's retrieval heads are.
    """

    def __init__(
        self,
        teacher: OpenedModel,
        student: OpenedModel,
        out: pathlib.Path,
        settings: SearchSettings,
        selector: SelectorSettings = SelectorSettings(),
        gates: GateSettings = GateSettings(),
        *,
        source: OpenedModel | None = None,
        join: Callable[[OpenedModel, OpenedModel], BranchModel] = branches,
    ):
        """Opens the table in the folder `out`, which exists.

        Args:
          source: the run with the held-out text; by default the student, or else the teacher.
          join: puts teacher and student into one model.

        Raises:
          UserError: if the models differ in more than mixers, a tokenizer is not the teacher's, data
            is missing, or the table is of other models or evaluation sets.
        """
        self.chosen = check_settings(settings, selector)
        self.teacher, self.student, self.out = teacher, student, out
        self.settings, self.selector, self._gate_settings = settings, selector, gates
        if source is None:
            source = student if student.data is not None else teacher
        for other in (student, source):
            if other.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
                raise UserError(
                    f"{other.path} has another tokenizer than the teacher {teacher.path}: teacher, student"
                    " and held-out text need the same ids"
                )
        self._dtype = source.dtype
        with doing("putting both models into one"):
            self.branch: BranchModel = join(teacher, student)
        if settings.keep is not None and settings.keep > len(self.branch.layers):
            raise UserError(
                f"--keep is {settings.keep}, and {len(self.branch.layers)} layers are replaced in the"
                " student"
            )
        wrong = [n for n in settings.curve if n > len(self.branch.layers)]
        if wrong:
            raise UserError(
                f"--curve has {wrong[0]}, and {len(self.branch.layers)} layers are replaced in the"
                " student"
            )
        metrics = [selector.metric, *(m for s in self.chosen for m in s.reads(selector))]
        self.measures = Measures(self.branch, source, settings, metrics)
        models = {"teacher": _identity(teacher), "student": _identity(student)}
        self.compilations = Compilations()
        self._identity = models | self.measures.identity()
        self.table = Evaluations(self._measure, out / TABLE, self._identity)
        self.search = Search(
            teacher.config.depth, self.branch.layers, self.table, METRICS, self._trained_gates
        )
        self._report: Report = lambda line: None
        self._gates: dict[float, tuple[dict[int, float], list[str]]] = {}

    def run(self, report: Report = lambda line: None) -> list[Found]:
        """Runs every method, writes `selections.json` and the models; returns what was found.

        Args:
          report: called with a line of text for each evaluation and each selection.

        Raises:
          RunError: if the folder has another model under a method's name; nothing is overwritten.
        """
        self._report = report
        found = []
        for method in self.chosen:
            before = self.table.measured
            selection = method.select(self.search, self.budget(), self.selector)
            self._check_model(selection)
            values = self.table(frozenset(selection.kept), self.selector.metric)
            cost, made = self.cost(selection.kept), self.table.measured - before
            found.append(Found(selection, values, cost, made))
            report(f"{method.name} keeps layers {words(selection.kept)}")
        points = self._curve()
        write_json(self.out / RESULT, self._record(found, points))
        for one in found:
            self._write_model(one.selection)
        return found

    def close(self) -> None:
        """Closes the table, so that another search may use the folder."""
        self.table.close()

    def budget(self, keep: int | None = None) -> Budget | None:
        """The settings' budget, or one of `keep` layers."""
        settings, layers = self.settings, self.branch.layers
        keep = settings.keep if keep is None else keep
        if keep is not None:
            return Budget.of_layers(layers, keep)
        if settings.cache is None:
            return None
        costs = (self._costs(model) for model in (self.teacher, self.student))
        return Budget.of_bytes(layers, settings.cache, *costs, settings.context)

    def cost(self, kept: Sequence[int]) -> int:
        """Bytes of all layers' states of one sequence of `context` tokens, in bfloat16."""
        teacher, student = self._costs(self.teacher), self._costs(self.student)
        own = set(self.branch.layers) - set(kept)
        return sum(student[i] if i in own else n for i, n in enumerate(teacher))

    @functools.cached_property
    def retrieval(self) -> RetrievalMap:
        """Where the teacher's retrieval heads are."""
        with doing("looking for the teacher's retrieval heads"):
            return retrieval_map(
                self.teacher, self.measures.length, batch=self.settings.batch, dtype=self._dtype
            )

    def text(self, found: Sequence[Found]) -> str:
        """The selections for a terminal."""
        metric, layers = self.selector.metric, self.branch.layers
        teacher, student = (self.table(frozenset(k), metric) for k in (layers, ()))
        lines = [
            f"teacher: {metric} {interval(teacher)}, {self.cost(layers):,} bytes of cache at"
            f" {self.settings.context:,} tokens",
            f"student, all {len(layers)} layers replaced: {metric} {interval(student)},"
            f" {self.cost(()):,} bytes",
        ]
        for one in found:
            selection = one.selection
            lines.append(
                f"\n{selection.method} keeps {len(selection.kept)} of {len(layers)}: layers"
                f" {words(selection.kept)}\n  {metric} {interval(one.values)}, {one.cost:,} bytes,"
                f" {one.measured} evaluations made"
            )
            lines.append(f"  {self.retrieval.overlap(selection.kept, layers)}")
            lines += [f"  note: {note}" for note in selection.notes]
        if self.retrieval.why is not None:
            lines.append(f"\nno needles were used to find retrieval heads: {self.retrieval.why}")
        return "\n".join([*lines, *self._comparison(found)])

    def _comparison(self, found: Sequence[Found]) -> list[str]:
        """How the methods differ, and which differences are within noise."""
        if len(found) < 2:
            return []
        known = METRICS[self.selector.metric]
        best = max(found, key=lambda f: known.quality(interval(f.values).mean))
        lines = [f"\n{known.name} against {best.selection.method}, the best here:"]
        for one in found:
            if one is best:
                continue
            gap = difference(one.values, best.values)
            says = {True: " (within noise)", False: "", None: " (one set: no interval)"}
            same = one.selection.kept == best.selection.kept
            note = " (the same layers)" if same else says[gap.holds_zero]
            lines.append(f"  {one.selection.method}: {gap}{note}")
        return lines

    def _curve(self) -> list[Point]:
        """Every method at the numbers of replaced layers of the settings, and both ends."""
        metric, layers = self.selector.metric, self.branch.layers
        free = dataclasses.replace(self.selector, min_score=None, max_drop=None)
        points = []
        for method in self.chosen if self.settings.curve else ():
            for replaced in sorted({0, *self.settings.curve}):
                budget = self.budget(len(layers) - replaced)
                try:
                    kept = method.select(self.search, budget, free).kept
                except (WriteError, StorageError):
                    raise
                except UserError as error:  # greedy, where every further replacement diverges
                    self._report(f"no point of {method.name} at {replaced} replaced: {error}")
                    continue
                values = self.table(frozenset(kept), metric)
                points.append(Point(method.name, len(layers) - len(kept), kept, values))
        return points

    def _record(self, found: Sequence[Found], points: Sequence[Point]) -> dict[str, Any]:
        metric, layers = self.selector.metric, self.branch.layers
        ends = {"teacher": layers, "student": ()}
        return {
            "depth": self.teacher.config.depth,
            "layers": list(layers),
            "metric": metric,
            "higher_is_better": METRICS[metric].higher,
            "settings": _written(self.settings) | _written(self.selector),
            "ends": {name: list(self.table(frozenset(k), metric)) for name, k in ends.items()},
            "selections": [
                one.selection.record()
                | {"values": list(one.values), "cache_bytes": one.cost}
                | {
                    "overlap": dataclasses.asdict(
                        self.retrieval.overlap(one.selection.kept, layers)
                    )
                }
                for one in found
            ],
            "curve": [dataclasses.asdict(point) for point in points],
            "retrieval": self.retrieval.record(),
            "evaluations": len(self.table),
        }

    def _measure(self, kept: Kept, metric: str) -> Values:
        with doing(f"measuring {metric} with {len(kept)} layers kept"), self.compilations:
            values = self.measures(kept, metric)
        self._report(f"layers {words(sorted(kept))} kept: {metric} {interval(values)}")
        return values

    def _check_model(self, selection: Selection) -> None:
        """Raises RunError if the folder of the selection's model holds another one."""
        path = self.out / selection.method
        if not (path / MODEL).is_file():
            return
        there, model = read_json(path / MODEL), self._composed(selection)
        if there["model"] != json_text.loads(json_text.dumps(to_dict(model.config))):
            raise RunError(
                f"{path} holds a model with other layers: name another folder, or remove it"
            )
        if there.get("from", {}).get("parameters_sha256") != checkpoint.digest(model.params):
            raise RunError(
                f"{path} holds a model with other parameters: name another folder, or remove it"
            )

    def _composed(self, selection: Selection) -> OpenedModel:
        return composed(self.teacher, self.student, set(selection.kept))

    def _write_model(self, selection: Selection) -> None:
        """The model folder of a selection; one that is there already was found to be the same."""
        path, partial = self.out / selection.method, self.out / f"{selection.method}.partial"
        if (path / MODEL).is_file():
            return
        model = self._composed(selection)
        if partial.exists():
            shutil.rmtree(partial)  # of a search that was killed
        save_model(model, partial, data=model.data is not None)
        with writing(path):
            partial.rename(path)

    def _costs(self, model: OpenedModel) -> list[int]:
        return state_bytes(model.config, self.settings.context)

    def _trained_gates(self, share: float) -> tuple[dict[int, float], list[str]]:
        """alpha by layer, and notes; each training is kept in a file of the folder."""
        if self._gate_settings.gate_weight is not None:
            share = 1.0  # one training for all budgets
        if share not in self._gates:
            notes: list[str] = []
            alphas = self._train_gates(share, notes.append)
            self._gates[share] = alphas, notes
            shown = ", ".join(f"{i}: {a:.3f}" for i, a in alphas.items())
            self._report(f"gates for {100 * share:.0f}% of the budget's range: {shown}")
        return self._gates[share]

    def _train_gates(self, share: float, note: Report) -> dict[int, float]:
        own, search = self._gate_settings, self.settings

        def batch(step: int) -> Batch:
            made = retrieval_batch(
                own.gate_task,
                self.teacher.tokenizer,
                self.branch.model.config.vocab_size,
                self.measures.length,
                search.batch,
                seed=2 * step,  # evaluation sets have odd seeds
                pairs=search.pairs,
            )
            return with_rows(made, max(_ANSWER_ROWS, made["rows"].shape[1]))

        identity = {k: v for k, v in self._identity.items() if k != "text"}
        identity |= {"batch": search.batch}
        with doing("training the gates"):
            return train_gates(
                self.branch,
                batch,
                own,
                share,
                dtype=self._dtype,
                path=self.out / GATES.format(share),
                identity=identity,
                note=note,
            )


def _identity(model: OpenedModel) -> dict[str, Any]:
    """What a model computes: its parameters and its settings, which may differ alone."""
    return {"sha256": checkpoint.digest(model.params), "model": to_dict(model.config)}


def _written(settings: Any) -> dict[str, Any]:
    return {n: str(v) if isinstance(v, pathlib.Path) else v for n, v in to_dict(settings).items()}
