"""The figures of samples that say more than a float can: probabilities that round to 0 and 1."""

import torch
import torch.nn.functional as F

from kakurenbo_lightning import SampleStatistics
from kakurenbo_lightning.record.sample_figures import SampleFigures


def test_a_confident_mistake_has_a_finite_margin_which_its_average_keeps():
    """The confidence of a wrong prediction rounds to 1 when its loss is above 17: labels that are surely wrong."""
    logits, target = torch.tensor([[30.0, 0.0, 0.0], [60.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([1, 1, 1])
    confidence, predicted = logits.softmax(1).max(1)
    values = {"loss": F.cross_entropy(logits, target, reduction="none"), "confidence": confidence}
    statistics, figures = SampleStatistics(3), SampleFigures(3)
    for epoch in (0, 1):
        statistics.record(torch.arange(3), {**values, "correct": predicted == target}, epoch)
        figures.add(statistics, epoch)
    found = figures.columns()
    torch.testing.assert_close(found["average_margin"][:2], torch.tensor([-30.0, -60.0]))
    assert found["average_label_confidence"][2] == confidence[2] and found["average_margin"][2] > 0
