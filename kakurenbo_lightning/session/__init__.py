"""The life of one ``Trainer.fit``. Begin with ``session.py``, the coordinator, and follow one epoch from there:

- ``train_loader.py`` replaces the user's loader by a copy; ``followed_loader.py`` holds what is known about that copy.
- ``planning.py``: before an epoch, score, merge, and let the method choose.
- ``epoch_state.py``: the state of the current epoch; ``checkpoint.py``: what a checkpoint holds; ``state_keeper.py`` collects and
  restores it; ``plain_values.py`` converts values to plain Python before they are saved.
- ``random_streams.py``, ``totals.py``, ``metrics.py``, ``settings.py``: as their names say.
"""
