"""EB's rule: the predictions whose joint error is bounded by their entropies.

Source: arXiv:2505.24857. Run for comparison: transformers 5.23 diffusion_gemma
(EntropyBoundSampler.accept_canvas) and NEUIR/PC-Sampler src/generate.py 8b106b0
(generate_with_eb_sampler). The option of that name in JetAstra/SDAR generate.py c2041a8 is
another rule: its sum has the largest in it and is of -p ln p of the drawn tokens; as published
it cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import EntropyBound

# Entropies are added as whole multiples of this, in nats. Integers add up to the same sum in any
# order, so that a row's sums do not depend on the rows before it; float64 is not everywhere.
_UNIT = 2.0**-32


class EntropyBoundRule(Rule):
    """In order of rising entropy, while the entropies before a position sum up to the bound.

    That is the sum up to and with the position less the largest so far, which is its own. The
    first is always taken. The entropy is that of the distribution before temperature, top_k and
    top_p but without the banned ids, renormalised: a position where a banned end token would be
    nearly certain is not certain of anything else. The references know no bans; there even the
    mask id counts. Parameter of a row: the bound in nats.
    """

    name = EntropyBound.NAME
    wants_entropy = True

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [[strategy_of(row, EntropyBound).bound] for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        entropies = -self.scores(group, candidates)
        sums = group.sums_before(group.ranks(-entropies), (entropies / _UNIT).long())
        bound = (group.of_positions(0) / _UNIT).long()
        return (sums <= bound) * int(Action.UNMASK)

    def scores(self, group: Group, candidates: Candidates) -> Tensor:
        assert candidates.entropy is not None
        return -candidates.entropy
