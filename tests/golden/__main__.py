"""``python -m tests.golden``: every case beside the golden file; exit code 1 if one differs.

python -m tests.golden             compares all, to the bit on the recorded build
python -m tests.golden sdxl prior  only cases whose name holds one of these words
python -m tests.golden --record    replaces the golden file: only where results are meant to change
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden")
    parser.add_argument("words", nargs="*", help="only cases whose name holds one of these")
    parser.add_argument("--record", action="store_true", help="replace the golden file")
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    from tests.golden import compare
    from tests.golden.cases import cases
    from tests.golden.measure import Bench, build

    wanted = [
        case for case in cases() if not args.words or any(word in case.name for word in args.words)
    ]
    golden = {} if args.record else compare.read()
    exact = golden.get("build") == build()
    measured = {}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        bench = Bench(Path(folder))
        for case in wanted:
            found = measured[case.name] = bench.measure(case)
            if args.record:
                shown = (f"{float.fromhex(loss):.6f}" for loss in found.losses)
                print(f"{case.name}: {', '.join(shown)}", flush=True)
                continue
            problems = compare.differences(golden["cases"][case.name], found, exact=exact)
            bad += bool(problems)
            for problem in problems:
                print(f"{case.name}: {problem}", flush=True)
    if args.record:
        compare.write(measured)
        return 0
    how = "to the bit" if exact else f"losses within {compare.TOLERANCE:.0e} (another build)"
    print(f"{len(wanted) - bad} of {len(wanted)} cases as recorded, {how}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
