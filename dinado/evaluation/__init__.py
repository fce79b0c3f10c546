"""Measure a controlled model: sample from it, judge the samples, and set it beside the base and best-of-n."""
