"""What works without Lightning: torch and NumPy alone.

- ``statistics.py``: the last values of every sample; ``universe.py``: the part of the data set that can be trained; ``batch_rows.py``: rows
  of a batch of any structure.
- ``plan.py``: what an epoch trains; ``shard.py`` and ``stream_shard.py``: one rank's part of it; ``sampler.py`` yields it to a loader.
- ``sum_tree.py``, ``permutation.py``, ``random.py``: draws and orders; ``distributed.py``: what ranks do together.
- ``fingerprint.py``, ``class_labels.py``, ``seeded_dataset.py``: the user's data set.
- ``atomic.py``, ``checkpoint_file.py``: files; ``timers.py``, ``durations.py``: seconds; ``flavour.py``: Lightning's two names;
  ``extras.py``: what an extra installs; ``progress.py``: bars.
"""
