"""The benchmark of near-duplicates: its figures are right, and it runs at toy size."""

import pytest
import torch
from bench_helpers import tiny_cifar, written
from kakurenbo_recipes.data import InMemoryImages

from recipes.benchmarks import copies


def test_copies_take_the_place_of_the_last_samples():
    images = torch.arange(10, dtype=torch.uint8).mul(20)[:, None, None, None].expand(-1, 3, 2, 2)
    data, copy_of = copies.with_copies(InMemoryImages(images, torch.arange(10)), 0.3)
    assert copy_of.tolist() == [7, 8, 9, -1, -1, -1, -1, 0, 1, 2]
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert data.images[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100, 120, 0, 20, 44]


def test_figures_are_those_of_the_definition():
    torch.manual_seed(0)
    losses, labels = torch.rand(60, 4) + 0.1, torch.arange(60) % 3
    copy_of = torch.full((60,), -1)
    copy_of[:6], copy_of[54:] = torch.arange(54, 60), torch.arange(6)
    losses[54:58] = losses[:4] * 1.001
    among = torch.arange(60) % 10 != 5  # neither 5 nor 55, the copies of 59 and 1
    rows = [row for row in range(60) if among[row]]
    curves, found, distances = losses.log(), {}, {}
    for row in rows:
        others = [other for other in rows if other != row and labels[other] == labels[row]]
        distances[row], nearest = min(((curves[row] - curves[other]).norm().item(), other) for other in others)
        found[row] = nearest == copy_of[row]
    paired = [row for row in rows if copy_of[row] >= 0 and among[copy_of[row]]]
    first = sorted(rows, key=distances.__getitem__)[: len(paired)]
    figures = copies.judged(losses, labels, copy_of, among)
    assert figures["copies"] == len(paired) == 8 and 0.7 < figures["found"] < 1
    assert figures["found"] == pytest.approx(sum(found[row] for row in paired) / len(paired))
    assert figures["precision"] == pytest.approx(sum(found[row] for row in first) / len(paired))
    chances = [1 / (sum(labels[other] == labels[row] for other in rows).item() - 1) for row in paired]
    assert figures["chance"] == pytest.approx(sum(chances) / len(chances))


def test_without_copies_there_is_no_figure():
    figures = copies.judged(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64), torch.full((4,), -1), torch.ones(4).bool())
    assert figures == {"copies": 0, "chance": None, "found": None, "precision": None}


def test_copies_end_to_end(tmp_path, capsys):
    tiny_cifar(tmp_path, colours=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
    options = {"data-root": tmp_path, "json": tmp_path / "result.json", "samples": 16, "batch-size": 4, "seeds": 1, "epochs": 2}
    copies.main([*(f"--{name}={value}" for name, value in options.items()), "--copies", "0.25"])
    result = written(tmp_path / "result.json")
    assert (result["network"], result["share_copied"]) == ("narrow", 0.25)
    summary = {row["run"]: row for row in result["summary"]}
    assert list(summary) == [f"{name}: {group}" for name in copies.AUGMENTED for group in ("every sample", "always hidden")]
    assert summary["augmented: every sample"]["copies"]["mean"] == 8
    assert "of which 25.0% are copies" in capsys.readouterr().out
