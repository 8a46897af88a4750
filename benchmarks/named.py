"""Does a held-out judge name what the generated pictures show: `make bench NAME=named`, in a finished project.

Reads data/reports/automatic_report of the project in EMU_ROOT: a judge that filtering never used (another seed, another
width) ranks the names of all subjects for real pictures and each contestant's of the prompts that name a subject. A
judge trained on the corpus misses real pictures too, so the candidate's rate is read as a share of the real one.

Prints the rates with their intervals and `claim named_top5_candidate_over_real: VALUE (goal >= 0.60)`; leaves with 1
where the goal is missed.
"""

import json
import sys

from emu_steps.layout import Layout, project_root

GOAL = 0.60
NUM_PROMPTS = 200  # common prompts that the goal is meant for


def main() -> int:
    path = Layout(project_root()).report("automatic_report") / "report.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; run `make demo` first, or set EMU_ROOT to a finished project")
    report = json.loads(path.read_text())
    naming = report["naming"]
    print(f"profile {report['profile']}, judge {report['judge']}: own name among the best five, per cent")
    for who, rates in naming.items():
        top = rates["top_5"]
        print(
            f"  {who:10} {top['estimate']:5.1f} ({top['low']:.1f} to {top['high']:.1f}), "
            f"{rates['num_images']} pictures, {rates['num_captions']} names, guessing {rates['chance_top_5']:.1f}"
        )
    if "real" not in naming:
        raise ValueError("the judge has no held-out picture of these subjects to compare with: more pictures of each")
    candidate = naming[report["candidate"]]
    num = candidate["num_images"]
    if num < NUM_PROMPTS:
        print(f"  only {num} of the {NUM_PROMPTS} prompts that the goal is meant for: evaluation_images.num_prompts")
    share = candidate["top_5"]["estimate"] / naming["real"]["top_5"]["estimate"]
    print(f"claim named_top5_candidate_over_real: {share:.3f} (goal >= {GOAL:.2f})")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
