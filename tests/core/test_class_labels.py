"""Where the class of each sample is found, and what is not taken for it."""

import numpy as np
import pytest
import torch
from helpers import Points
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from kakurenbo_lightning import SeededDataset
from kakurenbo_lightning.core.class_labels import targets_of

Y = [0, 2, 1, 1]
TENSORS = TensorDataset(torch.zeros(4, 2), torch.tensor(Y))


class Holder(Dataset):
    """Four samples and the attributes given."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        (Holder(targets=Y), Y),
        (Holder(labels=torch.tensor(Y)), Y),
        (Holder(y=np.array(Y)), Y),
        (TENSORS, Y),
        (Points(4), [0, 1, 2, 0]),
        (Subset(TENSORS, [3, 1]), [1, 2]),
        (ConcatDataset([TENSORS, Subset(TENSORS, [0])]), [*Y, 0]),
        (SeededDataset(TENSORS), Y),
    ],
    ids=["targets", "labels", "y", "tensors", "points", "subset", "concat", "wrapped"],
)
def test_classes_are_found_where_data_sets_keep_them(dataset, classes):
    assert targets_of(dataset).tolist() == classes


@pytest.mark.parametrize(
    "dataset",
    [
        *(Holder(targets=values) for values in ([0.5] * 4, [0, 1], ["a"] * 4, [[0], [0, 1], 0, 0], None, [True] * 4, [-1] * 4)),
        Holder(targets=torch.zeros(4, 2, dtype=torch.long)),
        Holder(targets=Y, target_transform=lambda target: 2 - target),
        ConcatDataset([Holder(targets=Y), Holder()]),
        Subset(Holder(), [0]),
        TensorDataset(torch.zeros(4, 2), torch.zeros(4)),
        TensorDataset(torch.zeros(4, 2), torch.arange(4), torch.arange(4)),  # which of them?
        Holder(dataset=Points(5)),  # it has another length: its samples are not those of the data set around it
    ],
)
def test_what_is_no_class_of_each_sample_is_not_taken_for_it(dataset):
    assert targets_of(dataset) is None
