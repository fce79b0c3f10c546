"""Worlds in which the optimum q* is known exactly, so that a model's distance to it can be measured."""

from dinado.exact.enumerated_world import EnumeratedWorld
from dinado.exact.markov_world import MarkovWorld
from dinado.exact.world import ExactWorld, KlEstimate, LogProbFn, Rows, causal_lm_rows

__all__ = ["EnumeratedWorld", "ExactWorld", "KlEstimate", "LogProbFn", "MarkovWorld", "Rows", "causal_lm_rows"]
