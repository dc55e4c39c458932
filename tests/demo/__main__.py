"""The demo: `make demo`, `make cluster-up`, `make cluster-down`."""

import argparse
import sys

from demo import demo_environment, scenario
from demo.console import Console, DemoError
from kube import RefusedError


def main() -> int:
    """Run one verb; an error is printed as one message."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("verb", choices=["demo", "cluster-up", "cluster-down"])
    verb = parser.parse_args().verb
    console = Console(colours=sys.stdout.isatty())
    try:
        if verb == "cluster-down":
            demo_environment.cluster_down(console)
        else:
            where = demo_environment.cluster_up(console)
            if verb == "demo":
                scenario.run_demo(where)
            else:
                scenario.print_next_commands(where)
    except (DemoError, RefusedError) as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the cluster keeps running (`make demo-down` removes it)\n")
        return 130
    console.summary()
    return 0


if __name__ == "__main__":
    sys.exit(main())
