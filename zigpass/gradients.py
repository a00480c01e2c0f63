"""How strongly the model's output depends on each entry of a site: mean squared gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zigpass.runtime import ZigpassError

from .blocks import replaced_forward
from .linear import ZigzagLinear, find_linears
from .observe import Readers, device_of, observe_sites
from .progress import track
from .sites import Site


def squared_gradients(
    model: nn.Module,
    readers: Readers,
    windows: Tensor,
    skip: int,
    *,
    blocks: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Tensor]:
    """Mean over tokens of the squared gradient of the loss with respect to each entry of each site.

    The loss is the summed cross-entropy against labels drawn from the model itself (seeded), so its expected squared
    gradient is the diagonal of the Fisher information: how much KL a small change of that entry costs.

    Args:
        windows: int64 [windows, T].
        skip: positions at the start of each window that are not counted.
        blocks: names of blocks that run a second time for their gradients instead of keeping what is inside them, so
            that memory holds the activations of one block at a time.

    Returns:
        By site name, float32 [K].

    Raises:
        ZigpassError: the model has no input embeddings to differentiate from, or gradients are not finite.
    """
    totals = {site.name: torch.zeros(site.features) for site in readers}

    def add(site: Site, gradient: Tensor) -> None:
        totals[site.name] += gradient[:, skip:].float().square().sum((0, 1)).cpu()

    def watch(site: Site, x: Tensor) -> None:
        x.register_hook(partial(add, site))

    generator = torch.Generator().manual_seed(0)
    for ids in track(windows, "differentiating", show=progress):
        with torch.enable_grad(), _differentiable(model, blocks) as starts, observe_sites(readers, watch):
            logits = model(ids.unsqueeze(0).to(device_of(model)), use_cache=False).logits[0].float()
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            # Not backward(): gradients of the model's own parameters are neither needed nor wanted.
            torch.autograd.grad(loss, starts)
    bad = [name for name, total in totals.items() if not bool(torch.isfinite(total).all())]
    if bad:
        raise ZigpassError(f"the gradients of these sites are NaN or infinite: {', '.join(bad)}")
    return {name: total / (windows.shape[0] * (windows.shape[1] - skip)) for name, total in totals.items()}


@contextmanager
def _differentiable(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[Tensor]]:
    """Let gradients pass from the output to the input embeddings, which the list holds, through the packed linears."""
    get_embeddings = getattr(model, "get_input_embeddings", None)
    embeddings = get_embeddings() if callable(get_embeddings) else None
    if not isinstance(embeddings, nn.Module):
        raise ZigpassError(f"{type(model).__name__} has no get_input_embeddings(), which sensitivities need")
    starts: list[Tensor] = []

    def start_here(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        starts.append(output.detach().requires_grad_())
        return starts[-1]

    with ExitStack() as stack:
        stack.callback(embeddings.register_forward_hook(start_here).remove)
        for _, linear in find_linears(model):
            stack.enter_context(replaced_forward(linear, partial(_PackedProduct.apply, linear)))
        for name in blocks:
            block = model.get_submodule(name)
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, again))
        yield starts


class _PackedProduct(torch.autograd.Function):
    """A packed linear whose gradient with respect to its input is known; the weight is unpacked again for it."""

    @staticmethod
    def forward(ctx: Any, linear: ZigzagLinear, x: Tensor) -> Tensor:
        ctx.linear = linear
        return ZigzagLinear.forward(linear, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (gradient,) = gradients
        return None, (gradient.float() @ ctx.linear.unpack().dequantize()).to(gradient.dtype)
