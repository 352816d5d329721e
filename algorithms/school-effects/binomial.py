"""Logit models of counts: the generalised linear model, and a random intercept for each group.

The multi-level model says `logit p = x b + u_g` with `u_g` normal, mean 0, standard deviation sigma. Its likelihood is
integrated over `u_g` by adaptive Gauss-Hermite quadrature and maximised over b and log sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from design import Design, Floats
from job_io import InputError
from scipy.optimize import minimize
from scipy.special import expit, gammaln

MAX_ITERATIONS = 200
MODE_STEPS = 100
LOG_SIGMA_BOUNDS = (-8.0, 4.0)


@dataclass(frozen=True)
class Glm:
    """A fitted binomial GLM. `coefficients` and `standard_errors` follow the design's terms."""

    coefficients: Floats
    standard_errors: Floats
    deviance: float
    pearson: float
    log_likelihood: float
    residual_df: int

    @property
    def dispersion(self) -> float:
        """Pearson chi-squared over its degrees of freedom: about 1 if chance alone moves the counts."""
        return self.pearson / self.residual_df


@dataclass(frozen=True)
class Multilevel:
    """A fitted random-intercept logit model. `effects` are the modes of `u_g`, with posterior standard deviations."""

    coefficients: Floats
    standard_errors: Floats
    sigma: float
    log_likelihood: float
    effects: Floats
    effect_errors: Floats
    converged: bool


def log_choose(design: Design) -> float:
    """The binomial coefficients' part of the log-likelihood, which no parameter changes."""
    y, n = design.y, design.n
    return float((gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)).sum())


def fit_glm(design: Design) -> Glm:
    """Fit by iteratively reweighted least squares; `InputError` when the data separate, so that no fit exists."""
    x, y, n = design.x, design.y, design.n
    scale = np.abs(x).max(axis=0)
    z = x / scale
    eta = np.log((y + 0.5) / (n - y + 0.5))
    log_likelihood, beta = -np.inf, np.zeros(x.shape[1])
    for _ in range(MAX_ITERATIONS):
        p = expit(eta)
        weight = np.maximum(n * p * (1 - p), 1e-12)
        root = np.sqrt(weight)
        beta = np.linalg.lstsq(z * root[:, None], root * (eta + (y - n * p) / weight), rcond=None)[0]
        eta = z @ beta
        before, log_likelihood = log_likelihood, _log_likelihood(y, n, eta)
        if abs(log_likelihood - before) < 1e-10 * (abs(log_likelihood) + 1):
            break
    else:
        raise InputError("The logit model does not converge on these data; use fewer predictors.")
    if np.abs(eta).max() > 25:
        raise InputError("Some predictor separates the outcomes perfectly, so the logit model has no finite fit.")
    p = expit(eta)
    covariance = np.linalg.inv((z * (n * p * (1 - p))[:, None]).T @ z)
    with np.errstate(divide="ignore", invalid="ignore"):
        unlike = np.where(y > 0, y * np.log(y / (n * p)), 0) + np.where(
            n > y, (n - y) * np.log((n - y) / (n - n * p)), 0
        )
    pearson = float(((y - n * p) ** 2 / (n * p * (1 - p))).sum())
    total = log_likelihood + log_choose(design)
    errors = np.sqrt(np.diag(covariance)) / scale
    return Glm(beta / scale, errors, 2 * float(unlike.sum()), pearson, total, len(y) - x.shape[1])


def fit_multilevel(design: Design, start: Glm, points: int) -> Multilevel:
    """Fit the random-intercept model from the GLM's coefficients, with `points` adaptive quadrature nodes."""
    problem = _Marginal(design, points)
    first = np.append(problem.to_scaled(start.coefficients), np.log(0.3))
    bounds = [(None, None)] * (len(first) - 1) + [LOG_SIGMA_BOUNDS]
    found = minimize(
        problem.negative, first, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-5, "maxcor": 30},
    )  # fmt: skip
    theta = np.asarray(found.x, dtype=np.float64)
    mode, spread = problem.modes(theta)
    covariance = problem.covariance(theta)
    sigma = float(np.exp(theta[-1]))
    back = problem.back
    errors = np.sqrt(np.maximum(np.diag(back @ covariance @ back.T), 0.0))
    total = -float(found.fun) + log_choose(design)
    gradient = problem.negative(theta)[1]
    # At the lower bound of sigma the gradient need not vanish: the groups do not differ, which is a valid answer.
    slope = np.abs(gradient[:-1] if theta[-1] <= LOG_SIGMA_BOUNDS[0] + 1e-9 else gradient).max()
    return Multilevel(back @ theta[:-1], errors, sigma, total, mode * sigma, spread * sigma, bool(slope < 0.05))


class _Marginal:
    """The marginal likelihood, on centred and scaled predictors so that the optimiser is well conditioned."""

    def __init__(self, design: Design, points: int) -> None:
        self.y, self.n, self.group, self.count = design.y, design.n, design.group, len(design.groups)
        mean, spread = design.x.mean(axis=0), design.x.std(axis=0)
        mean[0], spread[0] = 0.0, 1.0
        self.z = (design.x - mean) / spread
        self.back = np.diag(1 / spread)
        self.back[0] = np.append(1.0, -(mean / spread)[1:])
        self.forward = np.linalg.inv(self.back)
        nodes, weights = np.polynomial.hermite_e.hermegauss(points)
        self.nodes, self.log_weights = nodes, np.log(weights) + 0.5 * nodes**2

    def to_scaled(self, coefficients: Floats) -> Floats:
        """Coefficients of the scaled predictors from those of the raw ones."""
        return np.asarray(self.forward @ coefficients, dtype=np.float64)

    def modes(self, theta: Floats) -> tuple[Floats, Floats]:
        """Each group's most likely standardised effect `u / sigma` and the curvature's standard deviation."""
        eta, sigma = self.z @ theta[:-1], float(np.exp(theta[-1]))
        mode = np.zeros(self.count)
        for _ in range(MODE_STEPS):
            p = expit(eta + sigma * mode[self.group])
            slope = sigma * self._by_group(self.y - self.n * p) - mode
            curvature = sigma**2 * self._by_group(self.n * p * (1 - p)) + 1
            step = np.clip(slope / curvature, -1.0, 1.0)
            mode += step
            if np.abs(step).max() < 1e-11:
                break
        p = expit(eta + sigma * mode[self.group])
        return mode, 1 / np.sqrt(sigma**2 * self._by_group(self.n * p * (1 - p)) + 1)

    def negative(self, theta: Floats) -> tuple[float, Floats]:
        """Minus the log-likelihood (without the binomial coefficients) and its gradient by Fisher's identity."""
        eta, sigma = self.z @ theta[:-1], float(np.exp(theta[-1]))
        mode, spread = self.modes(theta)
        effect = mode[:, None] + spread[:, None] * self.nodes
        shifted = eta[:, None] + sigma * effect[self.group]
        row = self.y[:, None] * shifted - self.n[:, None] * np.logaddexp(0.0, shifted)
        joint = np.zeros_like(effect)
        np.add.at(joint, self.group, row)
        # hermegauss weights hold the sqrt(2 pi) of the standard normal density, which is taken out here.
        joint += -0.5 * effect**2 + self.log_weights + np.log(spread)[:, None] - 0.5 * np.log(2 * np.pi)
        top = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - top)
        total = share.sum(axis=1, keepdims=True)
        value = float((np.log(total) + top).sum())
        posterior = (share / total)[self.group]
        residual = self.y[:, None] - self.n[:, None] * expit(shifted)
        slopes = self.z.T @ (posterior * residual).sum(axis=1)
        sigma_slope = sigma * float((posterior * residual * effect[self.group]).sum())
        return -value, -np.append(slopes, sigma_slope)

    def covariance(self, theta: Floats) -> Floats:
        """Covariance of the scaled coefficients from the observed information, log sigma's uncertainty included."""
        free = len(theta)
        hessian = np.empty((free, free))
        for k in range(free):
            step = np.zeros(free)
            step[k] = 1e-4
            hessian[k] = (self.negative(theta + step)[1] - self.negative(theta - step)[1]) / 2e-4
        hessian = (hessian + hessian.T) / 2
        if theta[-1] <= LOG_SIGMA_BOUNDS[0] + 1e-9:
            return np.asarray(np.linalg.pinv(hessian[:-1, :-1]), dtype=np.float64)
        return np.asarray(np.linalg.pinv(hessian)[:-1, :-1], dtype=np.float64)

    def _by_group(self, values: Floats) -> Floats:
        return np.bincount(self.group, weights=values, minlength=self.count).astype(float)


def _log_likelihood(y: Floats, n: Floats, eta: Floats) -> float:
    return float((y * eta - n * np.logaddexp(0.0, eta)).sum())
