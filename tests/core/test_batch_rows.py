"""Rows of nested batches."""

import contextlib
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from kakurenbo_lightning.core.batch_rows import BatchCheck, join_rows, like, move, plain, take_rows
from kakurenbo_lightning.errors import ConflictError

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Record:
    left: torch.Tensor
    right: dict


class Keyed(UserDict):
    """As transformers' BatchEncoding: a class of a dict, which knows more than the dict."""

    more = None


X = torch.arange(12).view(4, 3)
BATCHES = {
    "tensor": (X, X[[2, 0]]),
    "tuple": ((X, X[:, 0]), (X[[2, 0]], X[[2, 0], 0])),
    "list": ([X, X[:, 0]], [X[[2, 0]], X[[2, 0], 0]]),
    "strings": ({"x": X, "name": ["a", "b", "c", "d"]}, {"x": X[[2, 0]], "name": ["c", "a"]}),
    "tuple of numbers": ((X, (1, 2, 3, 4)), (X[[2, 0]], (3, 1))),
    "constants": ([X, X[:, 0], 0.5, None], [X[[2, 0]], X[[2, 0], 0], 0.5, None]),
    "whole": (
        (X, {"temperature": 0.5, "note": "all", "none": None}),
        (X[[2, 0]], {"temperature": 0.5, "note": "all", "none": None}),
    ),
    "as many parts as samples": ([X, X, X, X], [X[[2, 0]]] * 4),
}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, (dict, UserDict)):
        return type(left) is type(right) and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Record):
        return type(left) is type(right) and same(vars(left), vars(right))
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


OWN = {
    "named tuple": (Pair(X, {"deep": [X, "all"]}), {"left": X, "right": {"deep": [X, "all"]}}),
    "data class": (Record(X, {"deep": (X, None)}), {"left": X, "right": {"deep": (X, None)}}),
    "ordered": (OrderedDict(b=X, a=Pair(X, 1)), {"b": X, "a": {"left": X, "right": 1}}),
    "class of a dict": ([Keyed(b=X)], [{"b": X}]),
    "neither": ({"x": [X, ("a", "b", "c", "d")]}, {"x": [X, ("a", "b", "c", "d")]}),
}


@pytest.mark.parametrize("name", OWN)
def test_own_classes_become_dicts_and_come_back(name):
    batch, expected = OWN[name]
    assert same(plain(batch), expected)
    assert same(like(batch, plain(batch)), batch)
    some = take_rows(plain(batch), torch.tensor([3, 1]), 4)
    assert same(plain(like(batch, some)), some)


def test_what_a_class_of_a_dict_knows_beside_it_stays():
    batch = Keyed(x=X)
    batch.more = "of the first batch"
    made = like(batch, {"x": X[:2]})
    assert type(made) is Keyed and made.more == "of the first batch" and len(made["x"]) == 2 and len(batch["x"]) == 4


def test_samples_of_other_shapes_than_the_waiting_ones_are_refused():
    with pytest.raises(ConflictError, match=r"samples of shapes \[\[3\], \[5\]\] wait to be trained together"):
        join_rows([torch.zeros(2, 3), torch.zeros(2, 5)], [2, 2])


# --- what can be cut, joined and saved


def test_a_batch_is_checked_down_to_its_containers():
    for batch in ({"a": [X, ("b", None, 1.5)], "c": OrderedDict(d=b"e")}, Pair(X, X), Record(X, {}), (Keyed(x=X),)):
        assert BatchCheck("sb", joins=True)(batch, 4)
    for batch in ({"a": {1, 2}}, [object()], {object(): X}, X.numpy()):
        with pytest.raises(TypeError, match=r"chosen samples wait for their step and are saved in checkpoints.* kakurenbo"):
            BatchCheck("sb", joins=True)(batch, 4)


def test_a_tensor_without_one_row_per_sample_is_named_by_its_place():
    with pytest.raises(
        ConflictError, match=r"batch\['x'\]\[1\] is a tensor of shape \[3\] in a batch of 4 samples: sb .* kakurenbo"
    ):
        BatchCheck("sb", joins=False)({"x": [X, torch.zeros(3)]}, 4)


@pytest.mark.parametrize("joins", [True, False])
def test_samples_of_another_shape_are_named_when_batches_are_joined(joins):
    check = BatchCheck("sb", joins)
    assert check({"x": X, "n": 1}, 4)
    assert not check({"x": X[:3], "n": 1}, 3), "the last batch of an epoch"
    for batch, message in (
        (
            {"x": torch.zeros(4, 5), "n": 1},
            r"batch\['x'\] has samples of shape \[5\] in this batch and of \[3\] in the first: sb",
        ),
        ({"x": X, "n": 1, "y": X}, r"a batch holds batch\['y'\], and another one does not: sb"),
    ):
        with pytest.raises(ConflictError, match=message) if joins else contextlib.nullcontext():
            check(batch, 4)


def test_no_rows_are_an_empty_batch():
    empty = take_rows({"x": X, "name": ["a", "b", "c", "d"]}, torch.arange(0), 4)
    assert empty["x"].shape == (0, 3) and empty["name"] == []


def test_what_belongs_to_the_whole_batch_is_kept():
    scale = torch.tensor(2.0)
    assert take_rows((X, scale), torch.tensor([1]), 4)[1] is scale


def test_tensors_move_and_nothing_else_does():
    moved = move({"x": [X, "a"], "n": 1}, "meta")
    assert moved["x"][0].device.type == "meta" and moved["x"][1:] == ["a"] and moved["n"] == 1
