"""Small synthetic DeepCAM sets, for the tests of the data and of the task."""

from kakurenbo_recipes.climate_data import DeepCam

SIZE = {"height": 32, "width": 48}


def data_of(folder, **settings):
    """The data module of a folder, without workers."""
    return DeepCam(str(folder), **{"batch_size": 4, "eval_batch_size": 3, "num_workers": 0, **settings})
