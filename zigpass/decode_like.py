"""Many decode steps at once: a dense prefix in the key-value cache, then rows of which each is one decoded token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .blocks import BlockRecord
from .cache_argument import cache_argument, cache_arguments
from .observe import device_of, sparse_rows, without_head
from .sites import dense


class DecodeLike:
    """Windows of tokens whose first `prefix` tokens have run dense; the rest can be run again and again.

    Attributes:
        targets: int64 [B, S], the tokens that follow the scored positions, S = T - prefix - 1.
        dense: float32 [B, S, vocabulary], log probabilities of the dense model.

    Args:
        model: a causal language model of the Hugging Face interface.
        ids: int64 [B, T].
        prefix: tokens that run dense, 0 < prefix < T - 1.
        blocks: names of blocks whose dense outputs are kept, so that `run` can start in the middle.
        reference: False to leave out the dense run of the rest, and with it `dense`, `kl` and starts in the middle.

    Raises:
        ZigpassError: the model keeps no key-value cache.
    """

    def __init__(
        self, model: nn.Module, ids: Tensor, prefix: int, blocks: Sequence[str] = (), *, reference: bool = True
    ) -> None:
        check_causal_model(model)
        self._model = model
        ids = ids.to(device_of(model))
        self._rest = ids[:, prefix:-1]
        self.targets = ids[:, prefix + 1 :]
        self._record = BlockRecord(model, blocks)
        with torch.inference_mode(), dense(model):
            output = model(ids[:, :prefix], use_cache=True, logits_to_keep=1)
            self._cache = getattr(output, cache_argument(model) or "", None)
            if self._cache is None:
                raise ZigpassError(f"{type(model).__name__} returns no key-value cache, which measuring needs")
            if reference:
                with self._record.recording():
                    self.dense = self._log_probabilities()

    def run(self, start: str | None = None) -> Tensor:
        """Log probabilities float32 [B, S, vocabulary] with the present thresholds applied to every row.

        Args:
            start: the first block that may differ from the dense run; earlier ones are not run again.
        """
        with torch.inference_mode(), sparse_rows(self._model), self._record.replaying_before(start):
            return self._log_probabilities()

    def run_decoder(self) -> None:
        """As `run`, without the output head: for looking at activations."""
        with torch.inference_mode(), sparse_rows(self._model):
            self._run_rest(without_head(self._model))

    def kl(self, log_probabilities: Tensor) -> Tensor:
        """KL(dense || other) in nats, mean over the positions of each window, float32 [B].

        Raises:
            ZigpassError: the dense or the other distribution is not one: NaN or infinite logits.
        """
        pairs = zip(self.dense, log_probabilities, strict=True)  # window by window, to bound the scratch
        kls = [F.kl_div(other, reference, reduction="batchmean", log_target=True) for reference, other in pairs]
        found = torch.stack(kls).cpu()
        if not bool(torch.isfinite(found).all()):
            bad = (~torch.isfinite(found)).nonzero().flatten().tolist()
            raise ZigpassError(
                f"{type(self._model).__name__} gives NaN or infinite logits in windows {bad} of {len(found)}, so there"
                " is nothing to compare; run it in float32 or bfloat16, and look at its weights"
            )
        return found

    def _log_probabilities(self) -> Tensor:
        logits: Tensor = self._run_rest(self._model).logits
        return logits.float().log_softmax(-1)

    def _run_rest(self, model: nn.Module) -> Any:
        cache = copy.deepcopy(self._cache)  # a run appends to it, and not every kind of cache can be cropped
        return model(self._rest, **cache_arguments(model, cache))


def takes_cache(model: nn.Module) -> bool:
    """Whether the model's forward takes a key-value cache as Hugging Face's causal models do."""
    return cache_argument(model) is not None


def check_causal_model(model: nn.Module) -> None:
    """Raise `ZigpassError` unless the model `takes_cache`."""
    if not takes_cache(model):
        raise ZigpassError(
            f"{type(model).__name__} takes no key-value cache, so it cannot be run as in decoding; this needs a causal"
            ' language model of the Hugging Face interface (calibrate(allocation="uniform") does not)'
        )
