"""Spread by measurement: what each site alone costs, in KL, decides how sparse it becomes."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from zigpass.decode_like import DecodeLike
from zigpass.histogram import MagnitudeHistogram
from zigpass.observe import kept_thresholds, set_thresholds
from zigpass.progress import track

from .budget import Budget, Spread
from .uniform import Uniform

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule

logger = logging.getLogger("zigpass.calibrate")

PROBE_SPARSITY = 0.5
"""Sparsity of the one site that is measured, among its entries that are not 0 anyway. What it costs at other sparsities
follows from the energy of the entries that are dropped."""
SHARES = (1.0, 0.5)
"""How far from uniform to the measured spread the candidates go. Where both ends lose the same, as on Gemma-3-270m at
50 %, the middle loses less than either."""
NOTHING = 1e-30
"""Magnitudes below this count as 0."""


class Measured:
    """Equal marginal KL per byte at every site, from one forward-only measurement per site.

    Dropping the entries of a site up to magnitude t costs energy e = integral of t^2, and KL grows with the energy: by
    kl(0.5) / e(0.5) * t^2 per entry. Dividing by the bytes an entry saves gives what to equalize. The costs of single
    sites add up (SmolLM2 at 50 %, this allocation: 0.276 predicted from single sites, 0.280 with all of them sparse),
    which is why this works. The result is a minimum as far as could be seen there: tilting the weights by depth, by
    kind of site or by a power costs up to 0.05 more and nothing gains more than its standard error (16 windows).
    Equalizing what sites cost at the margin of the joint run, measured by gradients or by leaving groups of sites
    dense, makes it worse (0.29 to 0.40): errors of early layers saturate there, so that more of them looks free.

    The result, the middle between it and `Uniform`, and uniform itself are run once each on calibration text that was
    not used so far, and the one that loses least is taken; uniform is said.
    """

    name = "measured"

    def spread(self, calibration: Calibration, rule: Rule, budget: Budget) -> Spread:
        uniform = Uniform().spread(calibration, rule, budget)
        if budget.target == 0 or budget.mean(budget.pinned) >= budget.target:
            return uniform  # nothing is left to choose
        free = [name for name in budget.num_bytes if name not in budget.pinned]
        scores = calibration.scores_of(rule)
        kl = measure_sites(calibration, rule, free)
        weight = dict.fromkeys(free, 0.0)
        for name in free:
            energy = scores[name].energy_below(_probe_sparsity(scores[name]))
            weight[name] = math.sqrt(max(kl[name], 0.0) / (energy * budget.num_bytes[name])) if energy else 0.0

        def sparsity_at(name: str, level: float) -> float:
            # A site that costs nothing is as sparse as its cap allows.
            return scores[name].fraction_below(level / weight[name]) if weight.get(name) else 1.0

        found = budget.fill(sparsity_at)
        candidates = [Spread(_between(uniform.sparsity, found, share), self.name) for share in SHARES]
        candidates.append(uniform)
        kls = [calibration.held_out_kl(rule, candidate.sparsity) for candidate in candidates]
        *measured_kls, uniform_kl = kls
        logger.info(
            "held-out calibration text: KL %s at shares %s of the way from uniform, %.4f uniform",
            ", ".join(f"{value:.4f}" for value in measured_kls), SHARES, uniform_kl,
        )  # fmt: skip
        best = candidates[kls.index(min(kls))]
        if best is uniform:
            logger.warning(
                "the measured allocation loses more than the uniform one on held-out calibration text (KL %.4f and"
                " %.4f nats): uniform is used",
                min(measured_kls), uniform_kl,
            )  # fmt: skip
        return best


def _between(start: dict[str, float], end: dict[str, float], share: float) -> dict[str, float]:
    """Sparsities on the way from one spread to another; budget, pins and caps hold on all of it."""
    return {name: start[name] + share * (end[name] - start[name]) for name in start}


def _probe_sparsity(scores: MagnitudeHistogram) -> float:
    """`PROBE_SPARSITY` where every entry differs from 0; more where the activation function gives zeros (ReLU)."""
    zeros = scores.fraction_below(NOTHING)
    return zeros + (1 - zeros) * PROBE_SPARSITY


def measure_sites(calibration: Calibration, rule: Rule, names: list[str]) -> dict[str, float]:
    """KL of the model with only one site sparse, for each of these sites; goes on where an earlier call stopped."""
    stage = f"measured {rule.name}"
    state = calibration.state
    missing = [name for name in calibration.sites if name in names and name not in state.stage(stage)]
    if missing:
        scores = calibration.scores_of(rule)
        blocks = calibration.block_of_site
        probe = DecodeLike(
            calibration.model,
            calibration.probe_windows[:, : calibration.decoded],
            calibration.prefix,
            list(dict.fromkeys(block for block in blocks.values() if block)),
        )
        with kept_thresholds(calibration.model):
            for name in track(missing, "measuring sites", show=calibration.progress):
                threshold = calibration.threshold(rule, name, _probe_sparsity(scores[name]))
                set_thresholds(calibration.all_sites, {name: threshold})
                kl = float(probe.kl(probe.run(blocks[name])).mean())
                state.put(stage, name, kl)
    return {name: float(state.stage(stage)[name]) for name in names}
