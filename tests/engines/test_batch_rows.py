"""Rows of nested batches."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch

from kakurenbo_lightning.engines.batch_rows import check_savable, join_rows, move, take_rows

Pair = namedtuple("Pair", "left right")
X = torch.arange(12).view(4, 3)
BATCHES = {
    "tensor": (X, X[[2, 0]]),
    "tuple": ((X, X[:, 0]), (X[[2, 0]], X[[2, 0], 0])),
    "list": ([X, X[:, 0]], [X[[2, 0]], X[[2, 0], 0]]),
    "strings": ({"x": X, "name": ["a", "b", "c", "d"]}, {"x": X[[2, 0]], "name": ["c", "a"]}),
    "tuple of numbers": ((X, (1, 2, 3, 4)), (X[[2, 0]], (3, 1))),
    "named": (Pair(X, {"deep": [X, X]}), Pair(X[[2, 0]], {"deep": [X[[2, 0]], X[[2, 0]]]})),
    "ordered": (OrderedDict(b=X, a=X), OrderedDict(b=X[[2, 0]], a=X[[2, 0]])),
    "whole": (
        (X, {"temperature": 0.5, "note": "all", "none": None}),
        (X[[2, 0]], {"temperature": 0.5, "note": "all", "none": None}),
    ),
    "as many parts as samples": ([X, X, X, X], [X[[2, 0]]] * 4),
}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return type(left) is type(right) and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("name", BATCHES)
def test_rows_are_taken_in_their_order(name):
    batch, expected = BATCHES[name]
    assert same(take_rows(batch, torch.tensor([2, 0]), 4), expected)


@pytest.mark.parametrize("name", BATCHES)
def test_what_is_taken_apart_can_be_joined_again(name):
    batch, _ = BATCHES[name]
    parts = [take_rows(batch, torch.tensor(rows), 4) for rows in ([0, 1], [2], [3])]
    assert same(join_rows(parts, [2, 1, 1]), batch)
    assert join_rows([batch], [4]) is batch


def test_a_list_of_one_tensor_per_sample_is_taken_by_position():
    parts = [torch.zeros(2), torch.ones(3), torch.zeros(1), torch.ones(1)]
    taken = take_rows({"x": parts, "y": torch.arange(4)}, torch.tensor([3, 1]), 4)
    assert same(taken, {"x": [parts[3], parts[1]], "y": torch.tensor([3, 1])})
    assert same(join_rows([taken, {"x": [parts[0]], "y": torch.tensor([0])}], [2, 1])["x"], [parts[3], parts[1], parts[0]])


def test_a_tensor_of_another_length_and_samples_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"the batch of 4 samples holds a tensor of shape \[3\]"):
        take_rows((X, torch.zeros(3)), torch.tensor([0]), 4)
    with pytest.raises(ValueError, match=r"samples of shapes \[\[3\], \[5\]\] .* pad to a fixed length"):
        join_rows([torch.zeros(2, 3), torch.zeros(2, 5)], [2, 2])


def test_a_batch_is_checked_down_to_its_containers():
    check_savable({"a": [torch.zeros(1), ("b", None, 1.5)], "c": OrderedDict(d=b"e")})
    for batch in (Pair(X, X), {"a": {1, 2}}, [object()], (UserDict(x=X),)):
        with pytest.raises(TypeError, match="chosen samples wait for their step and are saved in checkpoints"):
            check_savable(batch)


def test_no_rows_are_an_empty_batch():
    empty = take_rows({"x": X, "name": ["a", "b", "c", "d"]}, torch.arange(0), 4)
    assert empty["x"].shape == (0, 3) and empty["name"] == []


def test_what_belongs_to_the_whole_batch_is_kept():
    scale = torch.tensor(2.0)
    assert take_rows((X, scale), torch.tensor([1]), 4)[1] is scale


def test_tensors_move_and_nothing_else_does():
    moved = move({"x": [X, "a"], "n": 1}, "meta")
    assert moved["x"][0].device.type == "meta" and moved["x"][1:] == ["a"] and moved["n"] == 1
