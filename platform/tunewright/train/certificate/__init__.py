"""The certificate of a run: seven claims, each measured on the run's own model and data."""

from tunewright.train.certificate.entry import CERTIFICATE, certificate_rows, read_certificate, told

__all__ = ["CERTIFICATE", "certificate_rows", "read_certificate", "told"]
