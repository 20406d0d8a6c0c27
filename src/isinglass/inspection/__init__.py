"""What a matcher did, layer by layer: to look at, and why it ended where it did."""

from isinglass.inspection.figures import plot_exit, plot_keypoint, plot_layers, plot_sinkhorn
from isinglass.inspection.report import write_report
from isinglass.inspection.tracing import Inspection, inspect, inspect_result, trace

__all__ = [
    "Inspection",
    "inspect",
    "inspect_result",
    "plot_exit",
    "plot_keypoint",
    "plot_layers",
    "plot_sinkhorn",
    "trace",
    "write_report",
]
