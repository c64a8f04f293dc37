"""What all tests share, those of the studies too. It must run before torch, LeRobot or transformers is imported."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# One thread a process: two collapse as soon as another process takes a core. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks for anything over the network.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Where Python may not write bytecode beside its sources, every process compiles torch, transformers and LeRobot anew
# (15 to 20 s of a core); tests start some fifty processes. Their bytecode goes to a folder of its own instead.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # The user's own folder, for bytecode is code.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sys.pycache_prefix = str(cache / "deas_vla_bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# The same examples every time, and no judgement of speed on a busy machine.
settings.register_profile("deas_vla", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("deas_vla")


@pytest.fixture(autouse=True, scope="module")
def modules_in_temporary_folders_are_forgotten(tmp_path_factory):
    """A plug-in that one file of tests writes and imports is not found by the next one under the same name."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(base)]
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(base):
            del sys.modules[name]


def pytest_ignore_collect(collection_path, config):
    """Files without a test of the fast tier are not imported for it: LeRobot's policies alone take seconds."""
    only_unit = config.option.markexpr.startswith(("unit", "(unit)"))
    if only_unit and collection_path.match("test_*.py") and "mark.unit" not in collection_path.read_text("utf-8"):
        return True
    return None


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that at the end no worker waits for the one that began a long file last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
