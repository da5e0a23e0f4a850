"""Figure 2: one Gaussian fitted to a mixture of two under forward and under reverse KL (after Huszar 2015).

The paper gives neither the mixture nor the optimiser; both are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from minillm.publish.figures.drawing import Drawing, finished, legend, panels
from minillm.publish.item_results import ItemResults


@dataclass(frozen=True)
class Mixture:
    """Weights (with sum 1), means and standard deviations of the components."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p(x), in the shape of `x`."""
        parts = [
            np.log(w) - 0.5 * ((x - m) / s) ** 2 - np.log(s * np.sqrt(2 * np.pi))
            for w, m, s in zip(self.weights, self.means, self.deviations, strict=True)
        ]
        return logsumexp(np.stack(parts), axis=0)


TARGET = Mixture((0.7, 0.3), (-2.0, 3.0), (0.8, 0.8))
# For expectations under a standard normal.
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def fit_forward(p: Mixture) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian q that minimises KL(p || q): those of p (closed form)."""
    w, m, s = (np.array(values) for values in (p.weights, p.means, p.deviations))
    mean = float(w @ m)
    return mean, float(np.sqrt(w @ (s**2 + m**2) - mean**2))


def reverse_kl(mean: float, log_deviation: float, p: Mixture) -> float:
    """KL(q || p) in nats of q = N(mean, exp(log_deviation)^2), by Gauss-Hermite quadrature."""
    x = mean + np.exp(log_deviation) * NODES
    expected = NODE_WEIGHTS @ p.log_density(x) / NODE_WEIGHTS.sum()
    entropy = log_deviation + 0.5 * np.log(2 * np.pi * np.e)
    return float(-entropy - expected)


def fit_reverse(p: Mixture) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian q that minimises KL(q || p).

    The best of searches that start from each component and from the forward fit.
    """
    starts = [*zip(p.means, p.deviations, strict=True), fit_forward(p)]
    fits = [
        minimize(lambda v: reverse_kl(v[0], v[1], p), [m, np.log(s)], method="L-BFGS-B") for m, s in starts
    ]
    best = min(fits, key=lambda fit: fit.fun)
    return float(best.x[0]), float(np.exp(best.x[1]))


def toy(results: ItemResults) -> Drawing:
    """Densities of the mixture and of both fits."""
    style = results.settings.style
    assert style is not None
    figure, (axes,) = panels(style, 1)
    x = np.linspace(-7, 8, 600)
    forward, reverse = fit_forward(TARGET), fit_reverse(TARGET)
    axes.fill_between(x, np.exp(TARGET.log_density(x)), color="0.85", label="mixture p", edgecolor="0.4")
    for (mean, deviation), name, line, marker, colour in (
        (forward, "forward KL[p||q]", "--", "s", "#0072B2"),
        (reverse, "reverse KL[q||p]", "-", "o", "#D55E00"),
    ):
        density = np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        label = f"{name}: mean {mean:.2f}, s.d. {deviation:.2f}"
        axes.plot(x, density, line, color=colour, label=label, marker=marker, markevery=40, markersize=3.5)
    axes.set_xlabel("x")
    axes.set_ylabel("density")
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(bottom=0)
    legend(figure, axes.get_legend_handles_labels()[0])
    parts = [
        f"{w:g} N({m:g}, {s:g}²)"
        for w, m, s in zip(TARGET.weights, TARGET.means, TARGET.deviations, strict=True)
    ]
    caption = (
        f"One Gaussian q fitted to the mixture {' + '.join(parts)}: under forward KL in closed form (mean "
        "and variance are those of p), under reverse KL numerically. Forward KL covers both modes and the "
        "void between them; reverse KL sits on the dominant mode."
    )
    return finished(figure, style, caption)
