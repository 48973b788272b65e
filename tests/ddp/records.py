"""Reading what the ranks returned from :func:`fits.fit`."""

import torch


def epochs(ranks):
    """Each epoch as the records of the ranks."""
    for epoch in ranks[0]["epochs"]:
        yield [rank["epochs"][epoch] for rank in ranks]


def trained(records):
    """The indices that the ranks trained together, ascending."""
    return torch.cat([batch for record in records for batch in record["trained"]]).sort().values


def bits(tensor):
    return tensor.view({4: torch.int32, 8: torch.int64}[tensor.element_size()]) if tensor.is_floating_point() else tensor


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(bits(ours[name]), bits(theirs[name])), name
