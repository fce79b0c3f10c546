"""The table of methods with all the properties that other modules need, without importing torch.

A method is a LightningModule in a file of its own and a row here. Command line, rules, row sources, the choice of
parameters, benchmarks and docs read the row; a name that is not in the table is an error everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RowSource = Literal["rollouts", "accepted", "references"]
"""Rows that a method trains on: all stored rollouts, those that the oracle accepted, or the task's references."""


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        name: value of the setting ``method``.
        title: name in figures and tables.
        summary: one line for the list of methods.
        module: ``module:class`` of its LightningModule, imported when a run is built.
        log_r: how a score becomes log R, as docs/methods.md prints it.
        source: where it was published.
        network: whether an oracle network can be trained (on a base without weights to adapt, it always can).
        policy: whether scores are log q - log p of a policy that decodes alone, so that any parameterisation of the
            base's weights (lora, full, ...) can be trained.
        default: parameterisation that ``parameters=auto`` takes.
        rows: kinds of rows that it can train on; the first is the default.
        blocks: sections of ``objective`` that apply to it.
        norm_head: where a separate head predicts the norm: at every step, at the root alone, or nowhere.
        norm_reads: whose hidden states that head reads with a policy: those of the frozen base, or the trained ones.
        telescopes: whether log R is a sum of log q / p from the root on, so forward consistency holds exactly.
        scores_prompt: whether R after the prompt's last token can be read from its scores.
        settings: a dataclass of settings that belong to this method alone, as section ``objective.<name>``.
    """

    name: str
    title: str
    summary: str
    module: str
    log_r: str
    source: str
    network: bool = False
    policy: bool = False
    default: str = "network"
    rows: tuple[RowSource, ...] = ("rollouts",)
    blocks: tuple[str, ...] = ()
    norm_head: Literal["steps", "root"] | None = None
    norm_reads: Literal["base", "own"] = "own"
    telescopes: bool = False
    scores_prompt: bool = False
    settings: type | None = None

    @property
    def predicts_r(self) -> bool:
        """Whether it learns R, and so values, norms and forward consistency."""
        return "oracle" in self.blocks


VALUES = ("oracle", "consistency", "path", "lookahead", "likelihood")

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="nado",
            title="NADO",
            summary="an oracle network's log-sigmoid is log R itself",
            module="lightning_modules.nado:Nado",
            log_r="`log sigmoid(u_i(v))`",
            source="Meng et al., NeurIPS 2022",
            network=True,
            blocks=VALUES,
            scores_prompt=True,
        ),
        Method(
            name="dinado_soft",
            title="DiNADO-Soft",
            summary="ratios from an oracle network, their step-wise norm from a head on its states",
            module="lightning_modules.dinado_soft:DinadoSoft",
            log_r="`log beta_i + s_i(v) - N_i`",
            source="Lu et al., ICML 2024",
            network=True,
            blocks=(*VALUES, "norm"),
            norm_head="steps",
        ),
        Method(
            name="dinado_merge",
            title="DiNADO-Merge",
            summary="ratios of a policy that decodes alone, their norm from a head on the base's states",
            module="lightning_modules.dinado_merge:DinadoMerge",
            log_r="`log beta_i + s_i(v) - N_i`",
            source="Lu et al., ICML 2024",
            policy=True,
            default="lora",
            blocks=(*VALUES, "norm"),
            norm_head="steps",
            norm_reads="base",
        ),
        Method(
            name="dinado_hard",
            title="DiNADO-Hard",
            summary="R telescopes from the root, so that forward consistency holds by construction",
            module="lightning_modules.dinado_hard:DinadoHard",
            log_r="`log R(c) + sum_{j<=i} log(q_j / p_j)`",
            source="named by Lu et al., ICML 2024; the equation is our reconstruction",
            network=True,
            policy=True,
            blocks=(*VALUES, "norm"),
            norm_head="root",
            norm_reads="base",
            telescopes=True,
        ),
        Method(
            name="sft",
            title="SFT",
            summary="maximum likelihood on accepted rollouts, or on references",
            module="lightning_modules.sft:Sft",
            log_r="none",
            source="the plain alternative",
            policy=True,
            default="lora",
            rows=("accepted", "references"),
        ),
    )
}

PREDICT_R = tuple(row.name for row in METHODS.values() if row.predicts_r)
"""Methods that learn R: those that the studies compare."""
