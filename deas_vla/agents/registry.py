"""The agents by name. Behaviour cloning, plain and filtered, is not here: it is built from the flow policy alone."""

from deas_vla.agents.deas import CriticAgent, DeasAgent, DeasConfig
from deas_vla.agents.dqc import DqcAgent, DqcConfig
from deas_vla.agents.fql import FqlAgent, FqlConfig, QcFqlConfig
from deas_vla.agents.iql import IqlAgent, IqlConfig, NStepIqlConfig
from deas_vla.agents.one_step import DeasOneStepAgent, DeasOneStepConfig
from deas_vla.agents.qc import QcAgent, QcConfig

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
