"""The best epochs of a run: what is exported, however the training went on.

A learned compressor starts at a closed form, and training may lose it: by a learning rate that is too high, by a
critic, or because nothing is left to learn. So every epoch is judged by rules, the start itself as epoch 0, and the
weights of the best epoch by each rule are kept on the CPU and in every checkpoint, beside those to resume from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from tokconv.evaluation.epochs import EpochRule
from tokconv.evaluation.evaluator import Figures
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder

NETWORKS = ("compressor", "decoder")
Weights = dict[str, Tensor]
"""Weights of compressor and decoder, keyed as in a checkpoint: "compressor.projection.weight"."""


class BestEpochs:
    """The best epoch so far by each rule, with its weights.

    Args:
        rules: with different figures.
        rows: figure of a rule -> figures of its best epoch, of a run that is resumed.
        weights: epoch -> weights, of a run that is resumed.
    """

    def __init__(
        self,
        rules: Sequence[EpochRule],
        rows: Mapping[str, Figures] | None = None,
        weights: Mapping[int, Weights] | None = None,
    ) -> None:
        self._rules = {rule.figure: rule for rule in rules}
        self.rows: dict[str, Figures] = {name: row for name, row in (rows or {}).items() if name in self._rules}
        """Figure of a rule -> figures of its best epoch."""
        self._weights = dict(weights or {})

    def offer(self, figures: Figures, networks: tuple[Compressor, Decoder]) -> None:
        """Keep an epoch by every rule by which it is better than all before.

        Args:
            figures: of the epoch, with `epoch`.
            networks: with the weights of the epoch.
        """
        epoch = int(figures["epoch"])
        for name, rule in self._rules.items():
            if name in figures and (name not in self.rows or rule.cost(figures) < rule.cost(self.rows[name])):
                self.rows[name] = figures
        if epoch in self._epochs():
            self._weights[epoch] = {
                f"{name}.{key}": value.detach().cpu().clone()
                for name, network in zip(NETWORKS, networks, strict=True)
                for key, value in network.state_dict().items()
            }
        self._weights = {kept: weights for kept, weights in self._weights.items() if kept in self._epochs()}

    def before(self, epoch: int) -> dict[int, Weights]:
        """Return the weights of the best epochs other than the last one, whose weights a checkpoint has anyway."""
        return {kept: weights for kept, weights in self._weights.items() if kept != epoch}

    def judge(
        self, last: Figures, networks: tuple[Compressor, Decoder], judged: Callable[[Compressor, Decoder], Figures]
    ) -> None:
        """Give every best epoch the figures that only a last epoch has: what is judged is what is exported.

        Args:
            last: the figures of the last epoch, which has them.
            networks: compressor and decoder; they are left as they are.
            judged: returns the full figures of a compressor and its decoder.
        """
        full = {int(last["epoch"]): last}
        rows = {int(row["epoch"]): row for row in self.rows.values()}
        for epoch, weights in self.before(int(last["epoch"])).items():
            compressor, decoder = copy.deepcopy(networks)
            nn.ModuleDict(dict(zip(NETWORKS, (compressor, decoder), strict=True))).load_state_dict(weights)
            full[epoch] = rows[epoch] | judged(compressor, decoder)
        self.rows = {name: full[int(row["epoch"])] for name, row in self.rows.items()}

    def _epochs(self) -> set[int]:
        return {int(row["epoch"]) for row in self.rows.values()}
