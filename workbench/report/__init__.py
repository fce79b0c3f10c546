"""Comparison of runs: how their numbers differ, with which uncertainty, and the page that shows them.

In order: ``run_reader`` reads run folders, ``agreement`` refuses runs that cannot be compared, ``groups`` gathers them
by settings, ``statistics`` and ``comparison`` compute, ``terminal``, ``export``, ``figures`` and ``page`` show the
result. Nothing here imports torch.
"""
