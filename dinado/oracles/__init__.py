"""Oracles, which judge finished texts."""

from dinado.oracles.length import LengthOracle
from dinado.oracles.lexical import LexicalOracle
from dinado.oracles.oracle import Oracle
from dinado.oracles.regex import RegexOracle
from dinado.oracles.tokens import TokenDFA, TokenOracle, token_dfa
from dinado.oracles.user import FunctionOracle, load_oracle

__all__ = [
    "FunctionOracle",
    "LengthOracle",
    "LexicalOracle",
    "Oracle",
    "RegexOracle",
    "TokenDFA",
    "TokenOracle",
    "load_oracle",
    "token_dfa",
]
