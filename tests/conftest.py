"""What all tests share. It must run before torch, LeRobot or transformers is imported."""

import os

from hypothesis import settings

# One thread a process: two collapse as soon as another process takes a core. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# No test asks for anything over the network.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The same examples every time, and no judgement of speed on a busy machine.
settings.register_profile("deas_vla", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("deas_vla")
