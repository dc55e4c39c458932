"""What a training imports: each second of start-up is a second of an idle GPU."""

import subprocess
import sys
from pathlib import Path


def test_loop_import_and_training_leave_out_dynamo(tmp_path: Path) -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import ktrdr_trainer.loop, ktrdr_trainer.artifact_folder\n"
        "heavy = ('torch._dynamo', 'torch._inductor', 'torch.optim', 'pandas')\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from loop_builders import run_training\n"
        "run_training(Path(sys.argv[1]))\n"
        "print([name for name in set(sys.modules) - before if name.startswith(heavy)])\n"
    )
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), tests],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
