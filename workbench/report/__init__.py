"""Runs side by side: what differs between them, how sure that is, and the page that shows it.

From folders to answers: ``runs`` reads, ``agreement`` refuses what cannot be compared, ``groups`` sorts by what
differs, ``statistics`` and ``comparison`` count, ``terminal``, ``export``, ``figures`` and ``page`` show. Nothing here
imports torch.
"""
