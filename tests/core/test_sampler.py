"""The sampler that follows a plan."""

from kakurenbo_lightning import EpochPlan, SelectionSampler


def test_it_begins_where_it_should_however_often_it_is_asked():
    sampler = SelectionSampler(10, batch_size=4, shuffle=False)
    assert list(sampler) == list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sampler.follow(EpochPlan.everything(10), start=2)
    assert list(sampler) == [[8, 9]]
    assert len(sampler) == 3


def test_an_extra_batch_ends_an_epoch():
    """Its one sample is loaded and not trained."""
    sampler = SelectionSampler(10, batch_size=4, shuffle=False, extra=True)
    assert [len(batch) for batch in sampler] == [4, 4, 2, 1]
    assert len(sampler) == 4
    sampler.follow(EpochPlan.everything(10), start=3)
    assert [len(batch) for batch in sampler] == [1]
    sampler.follow(EpochPlan.everything(10), start=4)
    assert list(sampler) == []


def test_it_reports_the_epochs_that_lightning_sets():
    epochs = []
    sampler = SelectionSampler(10, batch_size=4, on_set_epoch=epochs.append)
    sampler.set_epoch(3)
    assert epochs == [3] and sampler.epoch == 3


def test_a_step_is_the_batch_of_that_number():
    sampler = SelectionSampler(10, batch_size=4, seed=2)
    assert [sampler.step(number).tolist() for number in range(3)] == list(sampler)
