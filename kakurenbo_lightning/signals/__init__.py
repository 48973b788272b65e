"""Where the values of samples come from in a training step, and the proof that they are the loss that is trained.

- ``outputs.py``: the one object that engines ask. ``first_batch.py`` verifies on the first batch what each way gives, ``turns.py`` lets
  ranks do so together.
- ``returned.py``: values that the user returns. ``captured.py``: values read from the calls that made the loss, of which
  ``watching.py`` sees every one, ``finding.py`` picks those that count, and ``criteria.py``, ``criterion_module.py`` and
  ``reduction.py`` know the values by sample.
- ``graph.py`` asks the autograd graph, ``linearity.py`` whether the loss is a sum of what it was made of, ``cut.py`` takes it apart,
  ``verification.py`` adds it up again, ``attribution.py`` tests whose value is whose.
- ``predictions.py``: confidence and correctness. ``report.py`` and ``refusals.py``: what is said.
"""
