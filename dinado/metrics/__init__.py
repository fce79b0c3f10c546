"""Metrics of controlled samples.

Import each metric from its own module; only :func:`text_metrics` is exported here too.
"""

from dinado.metrics.text import text_metrics

__all__ = ["text_metrics"]
