"""Weights: one record per published checkpoint, verified files, strict loading. Importing this needs no torch."""

from isinglass.weights.fetch import accept_licence, fetch, is_present
from isinglass.weights.pretrained import Pretrained
from isinglass.weights.records import Record, calibration, record, records

__all__ = ["Pretrained", "Record", "accept_licence", "calibration", "fetch", "is_present", "record", "records"]
