"""The name of the key-value cache among a model's arguments, old and new."""

import inspect

import pytest
from torch import nn

from tests.models import quantized_tiny_llama
from zigpass.cache_argument import cache_argument


class Old(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return input_ids


class New(nn.Module):
    def forward(self, input_ids, cache=None):
        return input_ids


@pytest.mark.parametrize(("model", "name"), [(Old(), "past_key_values"), (New(), "cache"), (nn.Linear(1, 1), None)])
def test_both_names_are_known(model, name):
    assert cache_argument(model) == name


def test_the_installed_transformers_is_one_of_them():
    model = quantized_tiny_llama()
    assert cache_argument(model) in inspect.signature(model.forward).parameters
