"""``python -m tests.faults``: every bad input, and how the program took it.

python -m tests.faults                     all, a table of counts, exit code 1 if one is bad
python -m tests.faults adapters models     only these groups
python -m tests.faults --show traceback    what was said in the cases of one outcome
python -m tests.faults --engine FOLDER     the engine of another checkout, to compare with
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("groups", nargs="*", help="only these groups of cases")
    parser.add_argument("--show", metavar="OUTCOME", help="print what these cases said")
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth case")
    parser.add_argument("--engine", type=Path, help="another checkout, whose engine is tried")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there")
    args = parser.parse_args()
    if args.engine:
        sys.path.insert(0, str(args.engine.resolve()))

    from tests.faults import runner
    from tests.faults.collect import collect

    runner.preload()
    cases = [case for case in collect(args.groups) if args.match in str(case)][:: args.every]
    counts: dict[str, Counter[str]] = {}
    told = []
    for outcome in runner.run(cases):
        counts.setdefault(outcome.case.group, Counter())[outcome.kind] += 1
        told.append(
            {
                "case": str(outcome.case),
                "outcome": outcome.kind,
                "code": outcome.code,
                "cpu_seconds": round(outcome.seconds, 2),
                "megabytes": outcome.grown >> 20,
            }
        )
        if outcome.kind == args.show or (not outcome.good and not args.show):
            print(f"--- {outcome.kind}: {outcome.case}\n{outcome.said.strip()[-1500:]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    shown = [kind for kind in runner.OUTCOMES if any(c[kind] for c in counts.values())]
    print("\n| group | cases | " + " | ".join(shown) + " |")
    print("|---" * (len(shown) + 2) + "|")
    for group, found in sorted(counts.items()):
        print(f"| {group} | {found.total()} | " + " | ".join(str(found[k]) for k in shown) + " |")
    total = sum(counts.values(), Counter())
    print(f"| all | {total.total()} | " + " | ".join(str(total[k]) for k in shown) + " |")
    return 1 if any(kind not in ("refused", "accepted") for kind in total) else 0


if __name__ == "__main__":
    sys.exit(main())
