"""Fixed groups: every call has the same size, results are those of the rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.data.grouping import in_fixed_groups

pytestmark = pytest.mark.unit


@given(count=st.integers(1, 30), group=st.integers(1, 9))
def test_every_call_has_the_same_size(count, group):
    calls = []

    def function(rows):
        calls.append(len(rows))
        return {"row": torch.tensor(rows), "square": torch.tensor(rows) ** 2}

    result = in_fixed_groups(function, count, group)
    assert set(calls) == {group} and len(calls) == -(-count // group)
    assert result["row"].tolist() == list(range(count))
    assert torch.equal(result["square"], result["row"] ** 2)


def test_a_row_does_not_depend_on_the_batch():
    """What a plain matrix product does not promise: 1 row and 64 rows go through other kernels."""
    generator = torch.Generator().manual_seed(0)
    data, weight = torch.randn(64, 700, generator=generator), torch.randn(700, 33, generator=generator)
    product = in_fixed_groups(lambda rows: data[rows] @ weight, 64, 4)
    for count in (1, 3, 4, 17):
        assert torch.equal(in_fixed_groups(lambda rows: data[rows] @ weight, count, 4), product[:count])


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        in_fixed_groups(torch.tensor, 0, 4)
    with pytest.raises(ValueError, match="expected 4 rows"):
        in_fixed_groups(lambda rows: torch.zeros(3), 5, 4)
