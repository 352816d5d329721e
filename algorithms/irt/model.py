"""Rasch, 1PL and 2PL models by marginal maximum likelihood (the EM algorithm of Bock and Aitkin, 1981).

The probability of a right answer to item j at ability t is `1 / (1 + exp(-(a_j t + d_j)))`, ability being standard
normal; `a_j` is the discrimination and `b_j = -d_j / a_j` the difficulty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MODELS = ("rasch", "1pl", "2pl")
ABILITY_LIMIT = 6.0
LARGEST_STEP = 1.0
NEWTON_STEPS = 25
DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Patterns:
    """Distinct response patterns: `right`, `given` (P, J) and how many persons gave each, `weight` (P,)."""

    right: Floats
    given: Floats
    weight: Floats


@dataclass(frozen=True)
class Fit:
    """A fitted model. Standard errors are NaN for what is fixed or cannot be estimated."""

    model: str
    a: Floats
    d: Floats
    a_se: Floats
    b_se: Floats
    log_likelihood: float
    free_parameters: int
    iterations: int
    converged: bool
    information_positive: bool

    @property
    def b(self) -> Floats:
        """Difficulties, on the ability scale."""
        return -self.d / self.a


@dataclass(frozen=True)
class Grid:
    """Ability points (Q,) and their standard-normal weights (Q,), which add to 1."""

    points: Floats
    weights: Floats


def make_grid(points: int) -> Grid:
    """Evenly spaced abilities from -6 to 6 with normalised standard-normal weights."""
    at = np.linspace(-ABILITY_LIMIT, ABILITY_LIMIT, points)
    density = np.exp(-0.5 * at**2)
    return Grid(at, density / density.sum())


def patterns_of(right: Floats, given: Floats, frequency: Floats) -> tuple[Patterns, NDArray[np.intp]]:
    """Collapse rows to distinct patterns, and say which pattern each row has."""
    both = np.hstack([right, given]).astype(np.int8)
    unique, inverse = np.unique(both, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    items = right.shape[1]
    weight = np.bincount(inverse, weights=frequency, minlength=len(unique)).astype(float)
    return Patterns(unique[:, :items].astype(float), unique[:, items:].astype(float), weight), inverse


def fit(data: Patterns, grid: Grid, model: str, tolerance: float, max_iterations: int) -> Fit:
    """Fit one of `MODELS` to at least two persons' answers; no item may be constant."""
    answers, rights = data.weight @ data.given, data.weight @ data.right
    share = rights / answers
    a, d = np.ones(data.right.shape[1]), np.log(share / (1 - share)) * 1.2
    converged, iteration = False, 0
    while not converged and iteration < max_iterations:
        iteration += 1
        count, right = _expected(data, grid, a, d)
        new_a, new_d = _maximise(count, right, grid, a, d, model)
        converged = bool(max(np.abs(new_a - a).max(), np.abs(new_d - d).max()) < tolerance)
        a, d = new_a, new_d
    if a.sum() < 0:  # The mirror image fits as well; ability means "more right answers".
        a = -a
    a_se, b_se, positive = _standard_errors(data, grid, a, d, model)
    log_likelihood = float(data.weight @ np.log(pattern_probabilities(data, grid, a, d)))
    free = {"rasch": 0, "1pl": 1, "2pl": len(a)}[model] + len(d)
    return Fit(model, a, d, a_se, b_se, log_likelihood, free, iteration, converged, positive)


def pattern_probabilities(data: Patterns, grid: Grid, a: Floats, d: Floats) -> Floats:
    """The marginal probability (P,) of each pattern's given answers."""
    joint, top = _joint(data, grid, a, d)
    return np.asarray(joint.sum(axis=1) * np.exp(top), dtype=np.float64)


def abilities(data: Patterns, grid: Grid, a: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Each pattern's ability: posterior mean (EAP) and posterior standard deviation."""
    posterior = _posterior(data, grid, a, d)
    mean = posterior @ grid.points
    variance = posterior @ grid.points**2 - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


def test_information(at: Floats, a: Floats, d: Floats) -> Floats:
    """Fisher information of the whole test at the abilities `at`."""
    p = curve(at, a, d)
    return np.asarray((p * (1 - p)) @ a**2, dtype=np.float64)


def curve(at: Floats, a: Floats, d: Floats) -> Floats:
    """The probability of a right answer, (len(at), J)."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(np.outer(at, a) + d, -700, 700))), dtype=np.float64)


def _joint(data: Patterns, grid: Grid, a: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Likelihood times prior at each point (P, Q), scaled by `exp(-top)` against underflow; and `top` (P,)."""
    logit = np.outer(a, grid.points) + d[:, None]
    log_p, log_q = -np.logaddexp(0.0, -logit), -np.logaddexp(0.0, logit)
    log_joint = data.right @ log_p + (data.given - data.right) @ log_q + np.log(grid.weights)
    top = log_joint.max(axis=1)
    return np.exp(log_joint - top[:, None]), top


def _posterior(data: Patterns, grid: Grid, a: Floats, d: Floats) -> Floats:
    joint, _ = _joint(data, grid, a, d)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True), dtype=np.float64)


def _expected(data: Patterns, grid: Grid, a: Floats, d: Floats) -> tuple[Floats, Floats]:
    """E step: expected persons and right answers for each item at each point, (J, Q) each."""
    weighted = _posterior(data, grid, a, d) * data.weight[:, None]
    return data.given.T @ weighted, data.right.T @ weighted


def _maximise(count: Floats, right: Floats, grid: Grid, a: Floats, d: Floats, model: str) -> tuple[Floats, Floats]:
    """M step: weighted logistic regressions of the items on ability, by damped Newton steps."""
    t = grid.points
    for _ in range(NEWTON_STEPS):
        p = curve(t, a, d).T
        residual, weight = right - count * p, np.maximum(count * p * (1 - p), 1e-300)
        grad_d, grad_a = residual.sum(axis=1), residual @ t
        h_dd, h_ad, h_aa = weight.sum(axis=1), weight @ t, weight @ t**2
        if model == "rasch":
            step_a = np.zeros_like(a)
        elif model == "1pl":
            numerator = (grad_a - h_ad / h_dd * grad_d).sum()
            step_a = np.full_like(a, numerator / max((h_aa - h_ad**2 / h_dd).sum(), 1e-12))
        else:
            step_a = (grad_a - h_ad / h_dd * grad_d) / np.maximum(h_aa - h_ad**2 / h_dd, 1e-12)
        step_a = np.clip(step_a, -LARGEST_STEP, LARGEST_STEP)
        step_d = np.clip((grad_d - h_ad * step_a) / h_dd, -LARGEST_STEP, LARGEST_STEP)
        a, d = a + step_a, d + step_d
        if max(np.abs(step_a).max(), np.abs(step_d).max()) < 1e-10:
            break
    return a, d


def _gradient(data: Patterns, grid: Grid, a: Floats, d: Floats, model: str) -> Floats:
    """The marginal log-likelihood's gradient by Fisher's identity, over the free parameters (slopes, intercepts)."""
    count, right = _expected(data, grid, a, d)
    residual = right - count * curve(grid.points, a, d).T
    slopes, intercepts = residual @ grid.points, residual.sum(axis=1)
    head = {"rasch": slopes[:0], "1pl": slopes.sum(keepdims=True), "2pl": slopes}[model]
    return np.concatenate([head, intercepts])


def _standard_errors(data: Patterns, grid: Grid, a: Floats, d: Floats, model: str) -> tuple[Floats, Floats, bool]:
    """Standard errors of discriminations and difficulties from the observed information (delta method for b)."""
    items = len(a)
    slopes = {"rasch": 0, "1pl": 1, "2pl": items}[model]
    free = slopes + items
    hessian = np.empty((free, free))
    for k in range(free):
        step = np.zeros(free)
        step[k] = DIFFERENCE
        sides = [
            _gradient(data, grid, a + (sign * step[:slopes] if slopes else 0.0), d + sign * step[slopes:], model)
            for sign in (1.0, -1.0)
        ]
        hessian[k] = (sides[0] - sides[1]) / (2 * DIFFERENCE)
    information = -(hessian + hessian.T) / 2
    nothing = np.full(items, np.nan)
    try:
        np.linalg.cholesky(information)
    except np.linalg.LinAlgError:
        return nothing, nothing, False
    covariance = np.linalg.inv(information)
    own = np.arange(items)
    slope_at = own if slopes == items else np.zeros(items, dtype=np.intp)
    var_d = np.diag(covariance)[slopes:]
    if not slopes:
        return nothing, np.sqrt(var_d) / np.abs(a), True
    var_a, cov = covariance[slope_at, slope_at], covariance[slope_at, slopes + own]
    var_b = var_d / a**2 + d**2 * var_a / a**4 - 2 * d * cov / a**3
    return np.sqrt(var_a), np.sqrt(np.maximum(var_b, 0.0)), True
