"""Worlds in which the optimum q* is known exactly, so that every distance to it is a number and not an estimate."""

from dinado.exact.enumerated_world import EnumeratedWorld
from dinado.exact.markov_world import MarkovWorld
from dinado.exact.world import ExactWorld, KlEstimate, LogProbFn, Rows, causal_lm_rows

__all__ = ["EnumeratedWorld", "ExactWorld", "KlEstimate", "LogProbFn", "MarkovWorld", "Rows", "causal_lm_rows"]
