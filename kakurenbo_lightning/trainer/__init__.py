"""Everything that touches Lightning's Trainer, and the user's module, loader and optimizers.

- ``adapter.py`` alone uses Lightning's private attributes; ``restart.py`` alone changes ``fit_loop`` (a static method's epochs on top).
- ``compatibility.py``, ``loader_compatibility.py`` and ``resume_compatibility.py`` refuse what cannot work, by name, and warn of the rest.
- ``loader.py`` copies the user's loader; ``forward_pass.py`` makes scoring passes over it, and ``module_state.py`` keeps the module's
  buffers meanwhile, ``progress.py`` shows its bar.
- ``lr_schedule.py``: the learning-rate factor and the pace of schedules; ``checkpoint_io.py``: files that are whole or not there.
"""
