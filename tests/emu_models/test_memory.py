"""Batches that fit: decided by a measured item, halved where memory runs out, and always every item once, in order."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emu_models.budget import BUDGET, fitting
from emu_models.device import lend
from emu_models.memory import Batches


@given(st.integers(0, 300), st.integers(1, 64), st.integers(1, 70))
def test_every_item_is_run_once_in_order_however_often_memory_runs_out(num, largest, most):
    batches = Batches("drawing", largest, torch.device("cpu"))

    def run(items: range) -> list[int]:
        if len(items) > most:
            raise torch.OutOfMemoryError
        return list(items)

    assert [i for part in batches.run(run, num) for i in part] == list(range(num))
    assert batches.size <= largest


def test_what_runs_out_of_memory_is_said_once_and_stays_small(caplog):
    batches, sizes = Batches("drawing", 16, torch.device("cpu")), []

    def run(items: range) -> None:
        sizes.append(len(items))
        if len(items) > 9:
            raise torch.OutOfMemoryError

    with caplog.at_level(logging.WARNING):
        batches.run(run, 32)
        batches.run(run, 8)
    assert sizes == [16, 8, 8, 8, 8, 8]
    assert caplog.messages == ["drawing: out of memory; 8 at a time from here on"]


def test_an_item_that_does_not_fit_is_an_error():
    def run(items: range) -> None:
        raise torch.OutOfMemoryError("one picture")

    with pytest.raises(torch.OutOfMemoryError, match="one picture"):
        Batches("drawing", 4, torch.device("cpu")).run(run, 4)


@given(st.integers(1, 64), st.floats(1, 1e11), st.floats(1e6, 1e11))
def test_a_batch_stays_within_the_budget_unless_it_is_one_item(largest, per_item, free):
    num = fitting(largest, per_item, free)
    assert 1 <= num <= largest
    assert num == 1 or num * per_item <= BUDGET * free
    assert num == largest or (num + 1) * per_item > BUDGET * free


def test_what_is_lent_comes_back_as_it_was():
    """Also after an error, with the same tensors: no rounding of another precision stays, and numbers stay numbers."""
    module = torch.nn.BatchNorm1d(4)
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    values = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="half way"), lend(torch.device("cpu"), module, dtype=torch.bfloat16):
        assert {t.dtype for t in module.state_dict().values()} == {torch.bfloat16, torch.int64}
        raise RuntimeError("half way")
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == places
    assert all(torch.equal(values[name], tensor) for name, tensor in module.state_dict().items())
