"""Metrics: what is measured on controlled samples.

Import each from its own module; only :func:`text_metrics` is repeated here.
"""

from dinado.metrics.text import text_metrics

__all__ = ["text_metrics"]
