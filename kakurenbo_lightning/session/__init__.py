"""The life of one ``Trainer.fit``. Begin with ``session.py``, the coordinator, and follow one epoch from there:

- ``train_loader.py`` takes the place of the user's loader; ``followed_loader.py`` is what is then known of it.
- ``planning.py``: before an epoch, score, merge, and let the method choose.
- ``epoch_state.py``: where the session is; ``checkpoint.py``: what a file holds of it; ``state_keeper.py`` collects it and gives it
  back; ``plain_values.py`` is the border that values cross before.
- ``random_streams.py``, ``totals.py``, ``metrics.py``, ``settings.py``: what its name says.
"""
