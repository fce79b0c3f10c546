"""Train language models to obey an oracle and stay otherwise unchanged (NADO, DiNADO and peers).

This package is plain PyTorch and transformers; it imports neither Lightning nor the command line. The names below are
imported from their files when they are first used, so that a file without torch, such as ``dinado.errors``, loads none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinado.bases.causal import BaseLM as BaseLM
    from dinado.bases.decoder import Decoder as Decoder
    from dinado.bases.markov import build_markov as build_markov
    from dinado.bases.tiny_gpt2 import build_tiny_gpt2 as build_tiny_gpt2
    from dinado.bases.twins import twin as twin
    from dinado.batch import RolloutBatch as RolloutBatch
    from dinado.control.control_processor import ControlLogitsProcessor as ControlLogitsProcessor
    from dinado.control.controlled_lm import ControlledLM as ControlledLM
    from dinado.control.norm_head import NormHead as NormHead
    from dinado.decoding.quasi_rejection import dial as dial
    from dinado.decoding.quasi_rejection import quasi_rejection as quasi_rejection
    from dinado.decoding.resampling import resample as resample
    from dinado.decoding.smc import SMCSettings as SMCSettings
    from dinado.decoding.smc import smc as smc
    from dinado.decoding.weighted_texts import draw_weighted as draw_weighted
    from dinado.errors import UserError as UserError
    from dinado.exact.enumerated_world import EnumeratedWorld as EnumeratedWorld
    from dinado.exact.markov_world import MarkovWorld as MarkovWorld
    from dinado.exact.world import causal_lm_rows as causal_lm_rows
    from dinado.metrics.distance import PromptDraws as PromptDraws
    from dinado.metrics.distance import distance as distance
    from dinado.metrics.intervals import mean_interval as mean_interval
    from dinado.objectives.estimators import kl_to_optimum as kl_to_optimum
    from dinado.objectives.weights import effective_size as effective_size
    from dinado.objectives.weights import importance_weights as importance_weights
    from dinado.objectives.weights import smoothed_root as smoothed_root
    from dinado.oracles.length import LengthOracle as LengthOracle
    from dinado.oracles.lexical import LexicalOracle as LexicalOracle
    from dinado.oracles.oracle import Oracle as Oracle
    from dinado.oracles.regex import RegexOracle as RegexOracle
    from dinado.oracles.tokens import TokenOracle as TokenOracle
    from dinado.oracles.tokens import token_dfa as token_dfa
    from dinado.oracles.user import load_oracle as load_oracle
    from dinado.parameters.composed import Composed as Composed
    from dinado.parameters.full import Full as Full
    from dinado.parameters.lora import Lora as Lora
    from dinado.parameters.network import Network as Network
    from dinado.parameters.parameterisation import Needs as Needs
    from dinado.prompt import Prompt as Prompt
    from dinado.rollouts.proposal import Proposal as Proposal
    from dinado.rollouts.sampler import Samples as Samples
    from dinado.rollouts.sampler import sample as sample
    from dinado.rollouts.sampler import uniforms as uniforms

_FILES = {
    "bases.causal": ("BaseLM",),
    "bases.decoder": ("Decoder",),
    "bases.markov": ("build_markov",),
    "bases.tiny_gpt2": ("build_tiny_gpt2",),
    "bases.twins": ("twin",),
    "batch": ("RolloutBatch",),
    "control.control_processor": ("ControlLogitsProcessor",),
    "control.controlled_lm": ("ControlledLM",),
    "control.norm_head": ("NormHead",),
    "decoding.quasi_rejection": ("dial", "quasi_rejection"),
    "decoding.resampling": ("resample",),
    "decoding.smc": ("SMCSettings", "smc"),
    "decoding.weighted_texts": ("draw_weighted",),
    "errors": ("UserError",),
    "exact.enumerated_world": ("EnumeratedWorld",),
    "exact.markov_world": ("MarkovWorld",),
    "exact.world": ("causal_lm_rows",),
    "metrics.distance": ("PromptDraws", "distance"),
    "metrics.intervals": ("mean_interval",),
    "objectives.estimators": ("kl_to_optimum",),
    "objectives.weights": ("effective_size", "importance_weights", "smoothed_root"),
    "oracles.length": ("LengthOracle",),
    "oracles.lexical": ("LexicalOracle",),
    "oracles.oracle": ("Oracle",),
    "oracles.regex": ("RegexOracle",),
    "oracles.tokens": ("TokenOracle", "token_dfa"),
    "oracles.user": ("load_oracle",),
    "parameters.composed": ("Composed",),
    "parameters.full": ("Full",),
    "parameters.lora": ("Lora",),
    "parameters.network": ("Network",),
    "parameters.parameterisation": ("Needs",),
    "prompt": ("Prompt",),
    "rollouts.proposal": ("Proposal",),
    "rollouts.sampler": ("Samples", "sample", "uniforms"),
}
"""Names of the package by the file that defines them; the imports above are the same for type checkers."""

_FILE_OF = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_FILE_OF)


def __getattr__(name: str) -> Any:
    """Import a name of :data:`__all__` from its file and keep it."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
