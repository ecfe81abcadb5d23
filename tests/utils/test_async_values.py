"""Values on their way from a GPU."""

from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prefixcap.utils.async_values import AsyncValue


def test_a_value_waits_for_the_gpu_that_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one. The tensor is on a GPU that is not there."""
    stream = Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    with FakeTensorMode():
        value = AsyncValue(torch.zeros(2, device="cuda:1"))
    stream.assert_called_once_with(torch.device("cuda:1"))
    value._value = torch.ones(2)
    assert value.get() == [1.0, 1.0]
    stream.return_value.record_event.return_value.synchronize.assert_called_once_with()


def test_a_value_of_the_cpu_is_there_at_once() -> None:
    assert AsyncValue(torch.tensor([[1, 2]])).get() == [[1, 2]]
