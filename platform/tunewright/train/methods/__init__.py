"""Which weights are trained: put on the model, named, and written."""

from tunewright.train.methods.apply import apply_method, context_left
from tunewright.train.methods.export import export
from tunewright.train.methods.names import check_trainable, trainable_names
from tunewright.train.methods.previous import export_sum, go_on_with, restore_precision

__all__ = [
    "apply_method",
    "check_trainable",
    "context_left",
    "export",
    "export_sum",
    "go_on_with",
    "restore_precision",
    "trainable_names",
]
