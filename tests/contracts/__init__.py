"""Contracts: what every oracle, base, parameterisation, method and task must fulfil.

Each module has ``CHECKS``, functions of one case that raise AssertionError where an implementation breaks the contract.
tests/test_contracts.py runs them for every row of the tables; an implementation outside them can be checked likewise::

    from contracts import oracle
    for check in oracle.CHECKS:
        check(oracle.OracleCase(lambda: MyOracle(3), lambda: MyOracle(4)))
"""

import pytest

pytest.register_assert_rewrite(*(f"contracts.{name}" for name in ("base", "method", "oracle", "parameters", "task")))
