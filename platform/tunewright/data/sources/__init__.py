"""Sources -> chunks of files -> raw rows, each with the line it came from.

Rows are read as they were written: in CSV `007` stays text, and a row that cannot be used costs itself
alone. What is wrong with a file as a whole, such as an end that is missing, stops the run.
"""

from tunewright.data.sources.chosen import SUFFIXES, source_files
from tunewright.data.sources.chunks import source_chunks
from tunewright.data.sources.identity import source_identity, write_builtin
from tunewright.data.sources.read import READERS, read_chunk

__all__ = [
    "READERS",
    "SUFFIXES",
    "read_chunk",
    "source_chunks",
    "source_files",
    "source_identity",
    "write_builtin",
]
