"""The control plane starts where torch and everything else of the trainer is not installed."""

import subprocess
import sys

BLOCKED_IMPORT = """
import importlib, importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
        return None

sys.meta_path.insert(0, Blocked())
for module in {modules}:
    importlib.import_module(module)
"""


def import_with(blocked: set[str], *modules: str) -> subprocess.CompletedProcess[str]:
    program = BLOCKED_IMPORT.format(blocked=blocked, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_control_plane_without_torch_imports() -> None:
    trainer_only = {"torch", "numpy", "pandas", "talib", "safetensors", "ktrdr_trainer"}
    done = import_with(
        trainer_only, "ktrdr_operator.__main__", "ktrdr_client.cluster", "ktrdr_api.crd"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_trainer_without_control_plane_imports() -> None:
    control_plane = {"kopf", "kubernetes", "aiohttp", "ktrdr_operator", "ktrdr_client"}
    done = import_with(control_plane, "ktrdr_trainer.__main__", "ktrdr_trainer.pipeline.prepare")
    assert (done.returncode, done.stderr) == (0, "")


def test_blocked_import_is_noticed() -> None:
    done = import_with({"torch"}, "ktrdr_trainer.loop")
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr
