"""Spread by measurement: what each site alone costs, in KL, decides how sparse it becomes."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from zigpass.decode_like import DecodeLike
from zigpass.histogram import MagnitudeHistogram
from zigpass.observe import kept_thresholds, set_thresholds
from zigpass.progress import track
from zigpass.runtime import ZigpassError

from .budget import Budget, Spread
from .sensitivity import SensitivityAllocation
from .uniform import Uniform

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule

logger = logging.getLogger("zigpass.calibrate")

PROBE_SPARSITY = 0.5
"""Sparsity of the one site that is measured, among its entries that are not 0 anyway. What it costs at other sparsities
follows from the energy of the entries that are dropped."""
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

    The result, uniform sparsity, and the middles between the result and `Uniform` and `SensitivityAllocation` are run
    once each on calibration text that was not used so far, and the one that loses least is taken; uniform is said. The
    errors of two estimates that know nothing of each other cancel in part: on SmolLM2 at 60 % the middle with
    sensitivity loses 0.022 nats less than the measured spread on one text, 0.031 on another. Where both ends lose the
    same, as measured and uniform on Gemma-3-270m at 50 %, the middle loses less than either.
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
        candidates = {"measured": found, "half uniform": _middle(found, uniform.sparsity)}
        sensitive = _sensitivity(calibration, rule, budget)
        if sensitive is not None:
            candidates["half sensitivity"] = _middle(found, sensitive.sparsity)
        kls = {name: calibration.held_out_kl(rule, sparsity) for name, sparsity in candidates.items()}
        uniform_kl = calibration.held_out_kl(rule, uniform.sparsity)
        shown = ", ".join(f"{name} {kl:.4f}" for name, kl in {**kls, "uniform": uniform_kl}.items())
        logger.info("KL on held-out calibration text: %s", shown)
        best = min(kls, key=lambda name: kls[name])
        if uniform_kl < kls[best]:
            logger.warning(
                "the measured allocation loses more than the uniform one on held-out calibration text (KL %.4f and"
                " %.4f nats): uniform is used",
                kls[best], uniform_kl,
            )  # fmt: skip
            return uniform
        return Spread(candidates[best], self.name)


def _sensitivity(calibration: Calibration, rule: Rule, budget: Budget) -> Spread | None:
    """The spread by sensitivity; None, and a warning, for a model that cannot be differentiated here."""
    try:
        return SensitivityAllocation().spread(calibration, rule, budget)
    except (ZigpassError, RuntimeError) as error:  # RuntimeError: torch's, such as no gradient or no memory for it
        logger.warning("no candidate by sensitivity: %s", error)
        return None


def _middle(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Sparsities halfway between two spreads; budget, pins and caps hold there too."""
    return {name: 0.5 * (one[name] + other[name]) for name in one}


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
            calibration.blocks,
        )
        with kept_thresholds(calibration.model):
            for name in track(missing, "measuring sites", show=calibration.progress):
                threshold = calibration.threshold(rule, name, _probe_sparsity(scores[name]))
                set_thresholds(calibration.all_sites, {name: threshold})
                kl = float(probe.kl(probe.run(blocks[name])).mean())
                state.put(stage, name, kl)
    return {name: float(state.stage(stage)[name]) for name in names}
