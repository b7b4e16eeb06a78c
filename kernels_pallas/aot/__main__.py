"""The scorecard's command line.

python -m kernels_pallas.aot                          every case, every chip: writes the scorecard
python -m kernels_pallas.aot --check                  fails if it is worse than the committed one
python -m kernels_pallas.aot --only delta --chips v5e some cases, one chip
python -m kernels_pallas.aot --kernel my.module:function --shapes bf16[8,128] f32[8]
"""

import argparse
import json
import pathlib
import re
import sys

from kernels_pallas.aot import cases, scorecard
from kernels_pallas.aot.chips import CHIPS

SCORECARD = pathlib.Path("benchmarks/scorecard.json")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--chips", default=",".join(CHIPS), help="separated by commas")
    parser.add_argument("--only", default="", help="cases whose name contains one of these")
    parser.add_argument(
        "--rivals",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to compile other projects' kernels too",
    )
    parser.add_argument("--jobs", type=int, default=1, help="compilations at once")
    parser.add_argument("--scorecard", type=pathlib.Path, default=SCORECARD)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--kernel", help="a function of your own, module:function")
    parser.add_argument("--shapes", nargs="*", default=[], help="its arrays, like bf16[8,128]")
    options = parser.parse_args(arguments)
    chips = options.chips.split(",")
    unknown = sorted(set(chips) - set(CHIPS))
    if unknown:
        parser.error(f"unknown chip {', '.join(unknown)}; the chips are {', '.join(CHIPS)}.")
    if options.kernel:
        if not re.fullmatch(r"[\w.]+:\w+", options.kernel):
            parser.error(f"--kernel must have the form my.module:function, got {options.kernel!r}.")
        results = {
            chip: scorecard.compile_one(chip, "function", options.kernel, options.shapes)
            for chip in chips
        }
        print(json.dumps(results, indent=1, allow_nan=False))
        return any(not result["compiles"] for result in results.values())

    registered = cases.by_name()
    chosen = [
        case
        for case in registered.values()
        if any(part in case.name for part in options.only.split(","))
        and (options.rivals or case.rival_of is None)
    ]
    if not chosen:
        parser.error(
            f"no case has {options.only!r} in its name; the cases are {'; '.join(registered)}."
        )
    if options.check:
        results = scorecard.compile_all(chosen, chips, options.jobs)
        found = scorecard.worse(results, scorecard.read(options.scorecard)["cases"])
        print("\n".join(found) or "nothing is worse than the committed scorecard")
        return bool(found)
    results = scorecard.compile_all(
        chosen,
        chips,
        options.jobs,
        done=lambda results: scorecard.write(options.scorecard, results, list(registered)),
    )
    failed = [
        name
        for name, chips in results.items()
        for result in chips.values()
        if not result["compiles"] and registered[name].rival_of is None
    ]
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
