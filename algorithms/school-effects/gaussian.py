"""The linear model of scores with a random intercept for each group, by REML or ML.

With `r = tau^2 / sigma^2` the covariance of a group of m pupils is `sigma^2 (I + r J)`, whose inverse is known in closed
form. So everything follows from group sums, and only `r` is searched for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from design import Design, Floats
from scipy.optimize import minimize_scalar


@dataclass(frozen=True)
class Linear:
    """A fitted random-intercept linear model.

    `criterion` is minus twice the (restricted) log-likelihood; `criterion_without_groups` the same with tau = 0.
    `effects` are the groups' best linear unbiased predictions with their comparative standard errors.
    """

    coefficients: Floats
    standard_errors: Floats
    tau2: float
    sigma2: float
    criterion: float
    criterion_without_groups: float
    effects: Floats
    effect_errors: Floats

    @property
    def intraclass(self) -> float:
        """The share of the variance that lies between groups."""
        return self.tau2 / (self.tau2 + self.sigma2)


class _Sums:
    """Cross products over the rows and over the groups."""

    def __init__(self, design: Design) -> None:
        self.size = np.bincount(design.group).astype(float)
        self.rows = len(design.y)
        # An orthonormal design keeps the products well conditioned; r maps coefficients back.
        self.q, self.r = np.linalg.qr(design.x)
        self.y = design.y - design.y.mean()
        self.shift = design.y.mean()
        groups = len(self.size)
        self.q_sum = np.zeros((groups, self.q.shape[1]))
        np.add.at(self.q_sum, design.group, self.q)
        self.y_sum = np.bincount(design.group, weights=self.y, minlength=groups).astype(float)
        self.qy = self.q.T @ self.y
        self.yy = float(self.y @ self.y)

    def solve(self, ratio: float) -> tuple[Floats, Floats, float]:
        """Coefficients on q, their precision (over sigma^2), and the weighted residual sum of squares."""
        pull = ratio / (1 + ratio * self.size)
        precision = np.eye(self.q.shape[1]) - (self.q_sum * pull[:, None]).T @ self.q_sum
        right = self.qy - self.q_sum.T @ (pull * self.y_sum)
        beta = np.linalg.solve(precision, right)
        residual = self.yy - float(pull @ self.y_sum**2) - float(right @ beta)
        return beta, precision, residual

    def criterion(self, ratio: float, restricted: bool) -> float:
        """Minus twice the (restricted) log-likelihood, sigma^2 profiled out."""
        _, precision, residual = self.solve(ratio)
        terms = self.q.shape[1]
        free = self.rows - terms if restricted else self.rows
        value = free * (1 + np.log(2 * np.pi * residual / free)) + np.log1p(ratio * self.size).sum()
        if restricted:
            value += np.linalg.slogdet(precision)[1] + 2 * np.log(np.abs(np.diag(self.r))).sum()
        return float(value)


def fit_linear(design: Design, restricted: bool) -> Linear:
    """Fit by REML (`restricted`) or ML; tau^2 is 0 when the groups differ by no more than chance."""
    sums = _Sums(design)
    found = minimize_scalar(
        lambda log_ratio: sums.criterion(float(np.exp(log_ratio)), restricted),
        bounds=(-18.0, 12.0), method="bounded", options={"xatol": 1e-10, "maxiter": 500},
    )  # fmt: skip
    without = sums.criterion(0.0, restricted)
    ratio = float(np.exp(found.x))
    criterion = float(found.fun)
    if criterion >= without - 1e-9:
        ratio, criterion = 0.0, without
    beta, precision, residual = sums.solve(ratio)
    free = sums.rows - len(beta) if restricted else sums.rows
    sigma2 = residual / free
    inverse_r = np.linalg.inv(sums.r)
    covariance = sigma2 * inverse_r @ np.linalg.inv(precision) @ inverse_r.T
    coefficients = inverse_r @ beta
    coefficients[0] += sums.shift
    left = sums.y_sum - sums.q_sum @ beta
    effects = ratio / (1 + ratio * sums.size) * left
    errors = np.sqrt(ratio * sigma2 / (1 + ratio * sums.size))
    return Linear(
        coefficients, np.sqrt(np.diag(covariance)), ratio * sigma2, sigma2, criterion, without, effects, errors
    )
