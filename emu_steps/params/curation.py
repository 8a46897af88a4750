"""Who chooses the few: generalist_votes, generalist_selection, specialist_votes, curated_set."""

from emu_steps.params.kinds import Count, Few, Section, Seed


class CurationVotes(Section):
    """The rubric panel that votes where no person did. num_raters: how many sit on it. seed: of what they differ in."""

    num_raters: Few
    seed: Seed


class Selection(Section):
    """num_images: how many are wanted; fewer are taken where the round chose fewer."""

    num_images: Count
