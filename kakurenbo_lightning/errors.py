"""Every error class of the package."""


class ConflictError(ValueError):
    """A Trainer, loader or data set setting that sample selection cannot work with."""


class OutputsError(ValueError):
    """Per-sample values cannot be had from the training step as it is."""


class MismatchError(ValueError):
    """The checkpoint's selection is of another data set, method or setting than this run's."""


class StateError(MismatchError):
    """The selection's state in a checkpoint is not one that this package saves: a key is missing, or its value is none that it can have."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint file is truncated or its bytes have changed."""


class NoSelectionError(ValueError):
    """The file holds no selection that can be read."""


class MissingExtraError(ImportError):
    """A library is missing that an extra of this package installs."""
