"""The agents by name. Behaviour cloning, plain and filtered, is not here: it is built from the flow policy alone."""

from studies.ogbench.agents.deas import CriticAgent, DeasAgent, DeasConfig
from studies.ogbench.agents.dqc import DqcAgent, DqcConfig
from studies.ogbench.agents.fql import FqlAgent, FqlConfig, QcFqlConfig
from studies.ogbench.agents.iql import IqlAgent, IqlConfig, NStepIqlConfig
from studies.ogbench.agents.one_step import DeasOneStepAgent, DeasOneStepConfig
from studies.ogbench.agents.qc import QcAgent, QcConfig

AGENTS: dict[str, tuple[type[DeasConfig], type[CriticAgent]]] = {
    "deas": (DeasConfig, DeasAgent),
    "deas_onestep": (DeasOneStepConfig, DeasOneStepAgent),
    "dqc": (DqcConfig, DqcAgent),
    "iql": (IqlConfig, IqlAgent),
    "nstep_iql": (NStepIqlConfig, IqlAgent),
    "qc": (QcConfig, QcAgent),
    "qc_fql": (QcFqlConfig, FqlAgent),
    "fql": (FqlConfig, FqlAgent),
}
