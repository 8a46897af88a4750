"""Whether a held-out judge names what the generated pictures show: `make bench NAME=named`, in a finished project.

Reads data/reports/automatic_report of the project in EMU_ROOT: a judge that filtering never used (another seed, another
width) ranks the names of all subjects, for real pictures and for each contestant's pictures of the prompts that name a
subject. A judge trained on the corpus errs on real pictures too, so the candidate's rate is read as a share of theirs.

Prints the rates with their intervals and `claim named_top5_candidate_over_real: VALUE (goal >= 0.60)`; the exit code is
1 if the goal is missed.
"""

import json
import sys

from emu_steps.layout import Layout, project_root

GOAL = 0.60
NUM_PROMPTS = 200  # the goal is meant for this many common prompts


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
        raise ValueError(
            "the judge has no held-out pictures of these subjects to compare with: use more pictures of each subject"
        )
    candidate = naming[report["candidate"]]
    num = candidate["num_images"]
    if num < NUM_PROMPTS:
        print(f"  only {num} prompts; the goal is meant for {NUM_PROMPTS}: raise evaluation_images.num_prompts")
    share = candidate["top_5"]["estimate"] / naming["real"]["top_5"]["estimate"]
    print(f"claim named_top5_candidate_over_real: {share:.3f} (goal >= {GOAL:.2f})")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
