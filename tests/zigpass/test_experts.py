"""Mixtures of experts: an expert MLP matches, or the report says why it does not."""

import pytest
import torch
from torch import nn

from tests.models import SwiGlu
from tests.passes.graphs import one_row
from zigpass.config import ZigzagConfig
from zigpass.explain import explain
from zigpass.quantize import quantize_
from zigpass.sites import find_sites

EXPERTS = 3


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Experts(nn.Module):
    """Experts that are modules of their own; the router weighs all of them, or only the best ones run."""

    def __init__(self, chosen):
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(64, EXPERTS, bias=False)
        self.experts = nn.ModuleList(SwiGlu() for _ in range(EXPERTS))

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        if not self.chosen:
            return sum(weights[..., index, None] * expert(x) for index, expert in enumerate(self.experts))
        index = int(weights.argmax())  # depends on the data: a graph break
        return weights.max() * self.experts[index](x)


def packed_experts(chosen):
    torch.manual_seed(0)
    keep = ("gate_proj", "up_proj", "down_proj")
    model = Experts(chosen).eval()
    quantize_(model, ZigzagConfig(group_size=32), filter_fn=lambda module, name: name.endswith(keep), progress=False)
    for site in find_sites(model).values():
        site.set_threshold(0.2)
    return model


def test_expert_modules_match_one_by_one():
    model, x = packed_experts(chosen=False), one_row()
    report = explain(model, x)
    assert report.kinds == {"gated_mlp": EXPERTS}
    assert [row.name for row in report.rows if row.kind != "gated_mlp"] == ["gate"]
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_of_experts_that_are_chosen_each_has_a_row_with_the_reason():
    model, x = packed_experts(chosen=True), one_row()
    report = explain(model, x)
    assert report.kinds == {"gated_mlp": 1}
    assert report.graph_breaks
    rows = {row.name: row for row in report.rows}
    assert len(rows) == 1 + 3 * EXPERTS
    unused = [row for row in rows.values() if row.kind == "unused"]
    assert len(unused) == 3 * (EXPERTS - 1)
    assert {row.note for row in unused} == {"not part of any captured graph"}
    compiled = torch.compile(model, backend="zigpass", options={"inner": "eager"})
    with torch.no_grad():
        for seed in range(5):
            token = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(compiled(token), model(token), rtol=1e-5, atol=1e-5)
