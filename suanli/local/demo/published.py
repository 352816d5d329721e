"""The catalogue's analyses that the demonstration runs: their key figures, beside those that were published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suanli.local.demo.findings import Figure

Read = Callable[[Mapping[str, Any]], tuple[Figure, ...]]


@dataclass(frozen=True, slots=True)
class Shown:
    """How an algorithm's result is shown. ``figures`` reads them from ``results.json``."""

    title: str
    question: str
    source: str
    figures: Read


def _irt(results: Mapping[str, Any]) -> tuple[Figure, ...]:
    model = results["model"]
    discriminations = (0.8254, 0.7229, 0.8905, 0.6886, 0.6575)
    locations = (-3.3597, -1.3696, -0.2799, -1.8659, -3.1236)
    rows = [Figure("Log-likelihood", model["log_likelihood"], -2466.653, 0.001)]
    for item, published in zip(model["items"], discriminations, strict=True):
        rows.append(Figure(f"{item['item']}: discrimination", item["discrimination"], published, 0.002, 4))
    for item, published in zip(model["items"], locations, strict=True):
        rows.append(Figure(f"{item['item']}: location", item["location"], published, 0.005, 4))
    rows.append(Figure("Cronbach's alpha", results["classical"]["alpha"]))
    return tuple(rows)


def _school_effects(results: Mapping[str, Any]) -> tuple[Figure, ...]:
    glm, multilevel = results["fit"]["glm"], results["fit"]["multilevel"]
    verdicts = results["verdicts"]
    return (
        Figure("GLM deviance", glm["deviance"], 4078.765, 0.001),
        Figure("Pearson χ²", glm["pearson_chi2"], 4051.92, 0.005, 2),
        Figure("GLM log-likelihood", glm["log_likelihood"], -2998.61, 0.005, 2),
        Figure("Spread between districts (SD, log-odds)", multilevel["between_group_sd"]),
        Figure("Districts above expectation", verdicts["above"], decimals=0),
        Figure("Districts below expectation", verdicts["below"], decimals=0),
        Figure("Not distinguishable", verdicts["not distinguishable"], decimals=0),
    )


def _response_model(results: Mapping[str, Any]) -> tuple[Figure, ...]:
    model, baseline = results["held_out"]["model"], results["held_out"]["baseline"]
    return (
        Figure("Replicas that trained together", results["world_size"], decimals=0),
        Figure("Held-out loss, network", model["log_loss"]),
        Figure("Held-out loss, item means only", baseline["log_loss"]),
        Figure("AUC, network", model["auc"]),
        Figure("AUC, item means only", baseline["auc"]),
    )


SHOWN: Mapping[str, Shown] = {
    "irt": Shown(
        "Item response theory on the LSAT",
        "Five questions of a law school admission test, 1,000 candidates: how hard is each, and how well does it separate?",
        "Rizopoulos (2006), ltm: An R package for latent variable modeling, Journal of Statistical Software 17(5)",
        _irt,
    ),
    "school-effects": Shown(
        "School districts of California, 1998",
        "303 districts: which do better or worse in mathematics than their circumstances lead one to expect?",
        "Gill (2000), Generalized Linear Models, as documented by statsmodels",
        _school_effects,
    ),
    "response-model": Shown(
        "A network that foretells answers",
        "Trained by PyTorch DistributedDataParallel on two replicas that start together or not at all.",
        "",
        _response_model,
    ),
}
