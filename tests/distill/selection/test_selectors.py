"""Selectors on tables whose optimum is known."""

import itertools
import math
import pathlib

import numpy as np
import pytest

from hybridlm.distill.selection import ranking, searching
from hybridlm.distill.selection.budget import Budget
from hybridlm.distill.selection.evaluations import Evaluations, Metric, Search
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.errors import UserError

METRICS = {
    "score": Metric("score"),
    "recall": Metric("recall"),
    "commonsense": Metric("commonsense"),
    "kl": Metric("kl", higher=False),
}
COLUMNS = dict(metric="score", recall="recall", commonsense="commonsense")
ALL = (
    ranking.HALO,
    ranking.RECALL,
    ranking.KL_ONCE,
    ranking.UNIFORM,
    ranking.RANDOM,
    searching.GREEDY,
    searching.KL,
    searching.EXHAUSTIVE,
)

#: What HALO's layer_analysis.py prints for its sweep of HypeNet-2B.
ORDER = [
    int(i)
    for i in "3,8,2,9,21,25,6,19,16,24,26,12,23,11,27,14,18,4,7,17,13,15,20,10,22,1,0,5".split(",")
]


def search(depth, **functions):
    """A search whose metrics are functions of the kept layers; a value, or one for each set."""

    def measure(kept, metric):
        value = functions[metric](kept)
        return value if isinstance(value, tuple) else (value,)

    return Search(depth, tuple(range(depth)), Evaluations(measure), METRICS)


def additive(worth):
    """The sum of the kept layers' worth."""
    return lambda kept: sum(worth[i] for i in sorted(kept))


def select(selector, made, keep=None, budget=None, **settings):
    if keep is not None:
        budget = Budget.of_layers(made.layers, keep)
    return selector.select(made, budget, SelectorSettings(**COLUMNS | settings))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_finds_the_optimum_of_exhaustive_where_layers_do_not_interact(seed):
    rng = np.random.default_rng(seed)
    worth = rng.uniform(0.1, 1, 7)
    for keep in range(8):
        made = search(7, score=additive(worth), kl=lambda kept: 9 - additive(worth)(kept))
        best = set(np.argsort(worth)[::-1][:keep].tolist())
        for selector in (searching.GREEDY, searching.EXHAUSTIVE, searching.KL, ranking.KL_ONCE):
            assert set(select(selector, made, keep).kept) == best, selector.name


@pytest.mark.parametrize("seed", range(3))
def test_exhaustive_is_the_best_of_all_sets(seed):
    rng = np.random.default_rng(seed)
    sets = [frozenset(s) for n in range(7) for s in itertools.combinations(range(6), n)]
    worth = dict(zip(sets, rng.normal(size=len(sets))))
    made = search(6, score=worth.__getitem__)
    assert frozenset(select(searching.EXHAUSTIVE, made).kept) == max(sets, key=worth.get)
    small = [s for s in sets if len(s) <= 2]
    assert frozenset(select(searching.EXHAUSTIVE, made, 2).kept) == max(small, key=worth.get)
    assert made.evaluate.measured == 64


def test_greedy_sees_pairs_that_single_scores_do_not():
    """Layers 0 and 1 do the same thing: one of them must stay, and either may go."""
    worth = (0.0, 0.0, 0.3, 0.2)

    def score(kept):
        return additive(worth)(kept) + (1.0 if kept & {0, 1} else 0.0)

    made = search(4, score=score, recall=score, commonsense=lambda kept: -len(kept))
    assert select(searching.GREEDY, made, 2).kept in ((0, 2), (1, 2))
    assert select(ranking.HALO, made, 2).kept == (2, 3)


def distill_then_replace(score, depth, p_min):
    """The procedure of arXiv 2601.11667 as it stands in the paper."""
    model = best = opt = frozenset(range(depth))
    p_best = score(model)
    while model:
        scored = {i: score(model - {i}) for i in sorted(model)}
        layer = max(scored, key=lambda i: (scored[i], -i))
        if scored[layer] >= p_best:
            best, p_best = model - {layer}, scored[layer]
        if scored[layer] >= p_min:
            model = opt = model - {layer}
        else:
            break
    return best, opt


@pytest.mark.parametrize("seed", range(12))
def test_greedy_returns_the_papers_m_best_and_m_opt(seed):
    rng = np.random.default_rng(seed)
    table = {}

    def score(kept):
        noise = table.setdefault(kept, rng.normal(0, 0.05))
        return 1.0 - 0.02 * (6 - len(kept)) + (noise if len(kept) < 6 else 0.0)

    made = search(6, score=score)
    best, opt = (
        frozenset(select(searching.GREEDY, made, max_drop=0.08, take=take).kept)
        for take in ("best", "opt")
    )
    assert (best, opt) == distill_then_replace(score, 6, 0.92)
    named = frozenset(select(searching.GREEDY, made, min_score=0.92).kept)
    assert named == opt


@pytest.mark.parametrize("selector", (searching.GREEDY, searching.KL), ids=lambda s: s.name)
@pytest.mark.parametrize("size", (1, 3))
def test_a_shortlist_evaluates_that_many_layers_a_round_after_the_first(selector, size):
    """Where layers do not interact, gains do not change, so the best layers are found all the same."""
    worth = np.random.default_rng(size).uniform(0.1, 1, 8)
    made = search(8, score=additive(worth), kl=lambda kept: 9 - additive(worth)(kept))
    found = select(selector, made, 3, shortlist=size)
    assert found.kept == select(selector, made, 3).kept
    made = search(8, score=additive(worth), kl=lambda kept: 9 - additive(worth)(kept))
    rounds = len(select(selector, made, 3, shortlist=size).path) - 1
    assert made.evaluate.measured == 1 + 8 + (rounds - 1) * size


def test_a_shortlist_follows_gains_that_change():
    """Layer 1 does what layer 0 does: it is worth much less as soon as layer 0 is kept."""

    def kl(kept):
        worth = {0: 3.0, 1: 2.9, 2: 1.0, 3: 0.5}
        return 9 - sum(worth[i] for i in kept) + (2.8 if kept >= {0, 1} else 0.0)

    assert select(searching.KL, search(4, kl=kl), 2, shortlist=2).kept == (0, 2)


def test_greedy_without_budget_allows_a_drop_of_5_per_cent():
    made = search(10, score=lambda kept: 100 - 2 * (10 - len(kept)))
    assert len(select(searching.GREEDY, made).kept) == 8


def test_a_metric_where_less_is_better_is_minimised():
    worth = (3, 1, 2)
    made = search(3, kl=lambda kept: 6 - additive(worth)(kept))
    for selector in (searching.GREEDY, searching.EXHAUSTIVE):
        assert select(selector, made, 1, metric="kl").kept == (0,)
    assert select(searching.GREEDY, made, metric="kl", min_score=2.5).kept == (0, 2)
    with pytest.raises(UserError, match="the teacher's kl, which is 0, is no bound"):
        select(searching.GREEDY, made, metric="kl")


def test_a_layer_whose_replacement_diverges_is_never_replaced():
    worth = (0.1, 5.0, 4.0, 3.0)

    def score(kept):
        return math.nan if 0 not in kept else additive(worth)(kept)

    made = search(
        4, score=score, recall=score, commonsense=additive((1, 2, 3, 4)), kl=lambda k: -score(k)
    )
    for selector in (searching.GREEDY, ranking.HALO, ranking.RECALL, searching.KL, ranking.KL_ONCE):
        found = select(selector, made, 2)
        assert 0 in found.kept, selector.name
    assert select(searching.EXHAUSTIVE, made, 2).kept == (0, 1)
    assert any("diverges where layer 0" in n for n in select(searching.GREEDY, made, 2).notes)
    with pytest.raises(UserError, match="the budget is 0 layers"):
        select(searching.GREEDY, made, 0)


def breaks_without(needed, worth):
    """KL of models that diverge unless all of `needed` are kept."""
    return lambda kept: 9 - additive(worth)(kept) if needed <= kept else math.nan


@pytest.mark.parametrize("selector", (searching.KL, ranking.KL_ONCE), ids=lambda s: s.name)
def test_layers_whose_replacement_diverges_are_restored_before_the_kl_is_compared(selector):
    """With two such layers, every model with one layer restored has a KL of NaN."""
    made = search(6, kl=breaks_without({1, 4}, (0.3, 0.0, 0.9, 0.5, 0.0, 0.7)))
    found = select(selector, made, 4)
    assert found.kept == (1, 2, 4, 5)
    assert found.scores[1] == found.scores[4] == math.inf
    assert "the model diverges where layer 1, 4 is replaced" in found.notes[0]


def test_kl_returns_no_model_that_diverges():
    worth = (0.3, 0.0, 0.9, 0.5)
    with pytest.raises(
        UserError, match="where layer 0, 1, 3 is replaced, and keeping all of these"
    ):
        select(searching.KL, search(4, kl=breaks_without({0, 1, 3}, worth)), 2)
    pair = search(4, kl=lambda kept: 1.0 if len(kept) > 2 else math.nan)  # none diverges alone
    for selector in (searching.KL, ranking.KL_ONCE):
        with pytest.raises(UserError, match="model that keeps one layer"):
            select(selector, pair, 3)
    with pytest.raises(UserError, match="no model found within the budget of 0 layers"):
        select(searching.KL, pair, 0)


def test_a_layer_that_does_not_help_alone_is_ranked_last_and_named():
    """One of two restored layers mends the model; none of the others does."""
    made = search(4, kl=lambda kept: 5 - len(kept) if kept & {1, 2} else math.nan)
    found = select(ranking.KL_ONCE, made, 3)
    assert found.order == (2, 1, 3, 0) and "layer 0, 3 alone is restored" in found.notes[0]


def test_halo_caps_its_score_at_50():
    recall, commonsense = [0.2, 0.1, 0.3], [0.5, 0.4, 0.3]
    found = ranking.halo_scores(recall, commonsense)
    assert found[0] == 50 and found[1] == (0.3 - 0.1) / (0.5 - 0.4 + 1e-10) and found[2] == 0


def test_halo_ranks_its_authors_sweep_as_their_code_does():
    """Means over tasks of the released logs of HypeNet-2B; order and scores of layer_analysis.py."""
    text = (pathlib.Path(__file__).parent / "hypenet_2b.csv").read_text().splitlines()[1:]
    _, recall, commonsense = zip(*(map(float, line.split(",")) for line in text))
    scores = ranking.halo_scores(recall, commonsense)
    order = sorted(range(28), key=scores.__getitem__, reverse=True)
    assert order == ORDER
    assert [round(scores[i], 10) for i in order[:4]] == [
        50,
        16.3437484678,
        14.0094335658,
        13.5636359937,
    ]


def test_equal_scores_at_the_cut_keep_the_higher_layer_and_are_told():
    made = search(5, kl=lambda kept: 1.0 if kept & {1, 3} else 2.0)
    found = select(ranking.KL_ONCE, made, 1)
    assert found.kept == (3,) and found.order == (3, 1, 4, 2, 0)
    assert "layers 1, 3 tie at the cut" in found.notes[0]
    assert select(ranking.KL_ONCE, made, 2).notes == ()


def test_greedy_takes_the_lowest_of_equal_layers_and_says_so():
    found = select(searching.GREEDY, search(3, score=len), 2)
    assert found.kept == (1, 2) and "layers 0 and 1 tie" in found.notes[0]


@pytest.mark.parametrize("selector", ALL, ids=lambda s: s.name)
def test_every_selector_meets_a_budget_in_bytes(selector):
    rng = np.random.default_rng(3)
    worth = rng.uniform(0.1, 1, 6)
    score = additive(worth)
    made = search(
        6, score=score, recall=score, commonsense=lambda k: -len(k), kl=lambda k: -score(k)
    )
    teacher, student = rng.integers(50, 100, 6).tolist(), rng.integers(1, 20, 6).tolist()
    for limit in (sum(student), sum(student) + 150, sum(teacher)):
        budget = Budget.of_bytes(made.layers, limit, teacher, student, 512)
        found = select(selector, made, budget=budget)
        assert budget.fits(found.kept)
    assert set(found.kept) == set(range(6)), "the last budget allows all layers"


def test_uniform_keeps_layers_at_equal_distances():
    made = search(28)
    assert select(ranking.UNIFORM, made, 7).kept == (0, 4, 8, 12, 16, 20, 24)
    assert select(ranking.UNIFORM, made, 0).kept == ()
    gaps = np.diff(select(ranking.UNIFORM, made, 11).kept)
    assert set(gaps.tolist()) == {2, 3}


def test_random_depends_on_the_seed_alone():
    made = search(20)
    drawn = [select(ranking.RANDOM, made, 5, seed=seed).kept for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(len(set(kept)) == 5 for kept in drawn)


def test_differences_within_noise_are_called_that():
    def score(kept):
        worth, noise = additive((0.0, 0.001, 5.0))(kept), 0.01 if 0 in kept else -0.01
        return tuple(worth + sign * noise for sign in (1, -1, 1, -1))

    made = search(3, score=score, recall=score, commonsense=lambda kept: (1.0, 1.0, 1.0, 1.0))
    assert "within noise" in " ".join(select(searching.GREEDY, made, 2).notes)
    assert "within noise" in " ".join(select(ranking.RECALL, made, 2).notes)
    assert "within noise" not in " ".join(select(ranking.RECALL, made, 1).notes)


@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_visits_the_sets_within_the_budget_and_no_other(seed):
    """In the order of sizes, then of layers; costs may also fall where a layer is kept."""
    rng = np.random.default_rng(seed)
    made = search(7, score=lambda kept: 0.0)
    teacher, student = rng.integers(0, 20, 7).tolist(), rng.integers(0, 12, 7).tolist()
    sets = [frozenset(s) for n in range(8) for s in itertools.combinations(range(7), n)]
    budget = Budget.of_bytes(made.layers, sum(student) + 15, teacher, student, 512)
    assert list(searching._fitting(made, budget)) == [s for s in sets if budget.fits(s)]


def test_exhaustive_does_not_walk_through_sets_that_do_not_fit():
    """Of 40 layers there are 10^12 sets; few of them fit."""
    made = search(40, score=len)
    assert select(searching.EXHAUSTIVE, made, 2).kept == (0, 1)
    assert made.evaluate.measured == 1 + 40 + 780
    budget = Budget.of_bytes(made.layers, 40 + 5, [1000] * 39 + [6], [1] * 40, 512)
    assert select(searching.EXHAUSTIVE, made, budget=budget).kept == (39,)


def test_exhaustive_refuses_too_many_sets():
    with pytest.raises(UserError, match="more than 100 sets of 20 layers"):
        select(searching.EXHAUSTIVE, search(20, score=len), max_evaluations=100)
