"""A dial between a base and what tuning made of it: one encoder with the weights of any α, every tensor held once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer

from ebr.errors import ModelError
from ebr.model.files.loading import first_names

if TYPE_CHECKING:
    from ebr.data.evaluation.comparison import Comparison


@dataclass(frozen=True)
class WeightChoice:
    """The weight that was chosen, and why: see WeightDial."""

    weight: float
    record: dict[str, Any]
    """What was tried on what, as plain JSON."""
    comparison: Comparison | None
    """The base against the chosen weight, on the set that it was chosen on; None where that was not asked for."""
    forgetting: Comparison | None
    write_report: Callable[[Path, Mapping[str, Any]], None]
    """Writes the evidence into a model's folder, with what the model's manifest says of how it embeds."""


class WeightDial:
    """W(α) = base + α · (mean of the tuned weights − base), in every weight of an encoder.

    It stands between merged weights, so that it is defined for whatever tuning: LoRA, DoRA, layers or models tuned whole. For
    LoRA that is the adapter scaled by α. α between base and one tuning is WiSE-FT (Wortsman et al. 2022), the mean of several a
    uniform soup (ibid.) or task arithmetic (Ilharco et al. 2023).

    encoder: the first tuned one, whose weights the dial sets. base: the base's weights by the same names, not copied.
    """

    def __init__(self, encoder: SentenceTransformer, base: Mapping[str, torch.Tensor], name: str) -> None:
        self.encoder = encoder
        self._base = base
        self._tuned: dict[str, torch.Tensor] = {}  # where it differs from the base
        self._n_tuned = 0
        self.join(encoder, name)

    def join(self, tuned: SentenceTransformer, name: str) -> None:
        """Take one more tuned encoder into the mean, and no hold of it. name: what messages call it.

        Raises ModelError when its weights are not of the same names and shapes as the base's.
        """
        weights = tuned.state_dict()
        self._check_places(weights, name)
        self._n_tuned += 1
        for key, weight in weights.items():
            mean = self._tuned.get(key, self._base[key])
            if not torch.equal(mean, weight):
                # Towards it by one part in n: the mean so far, and itself to the bit where it is the first or all are equal.
                self._tuned[key] = weight.clone() if self._n_tuned == 1 else torch.lerp(mean, weight, 1 / self._n_tuned)

    @torch.no_grad()
    def turn(self, weight: float) -> None:
        """Set the encoder to α = weight: 0 is the base and 1 the mean of the tuned ones, both to the bit."""
        places = self.encoder.state_dict()
        for key, tuned in self._tuned.items():
            base = self._base[key]
            places[key].copy_(base if weight == 0 else tuned if weight == 1 else torch.lerp(base, tuned, weight))

    def _check_places(self, weights: Mapping[str, torch.Tensor], name: str) -> None:
        odd = [
            key
            for key in sorted(self._base.keys() | weights.keys())
            if key not in self._base or key not in weights or self._base[key].shape != weights[key].shape
        ]
        if odd:
            raise ModelError(
                f"{name}: some of its weights have no like in the base, so that there is nothing between the two "
                f"({first_names(odd)}); give the base with as many tokens and modules, or merge it alone with weight 1"
            )
