"""The table of optimisers, without importing torch: a row is a name and the ``module:function`` that builds it."""

from __future__ import annotations

OPTIMISERS: dict[str, str] = {
    "adamw": "lightning_modules.optimisers:adamw",
}
