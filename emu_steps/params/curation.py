"""How the best pictures are chosen: generalist_votes, generalist_selection, specialist_votes, curated_set."""

from emu_steps.params.kinds import Count, Few, Section, Seed, Voters


class CurationVotes(Section):
    """Who decides on pictures. voters: `people, then panel` has the rubric panel vote on pictures that no person voted
    on; with `people` the panel never votes, and the round waits for people; with `panel` people's votes stay in the log
    and do not count. num_raters: of the panel. seed: of the differences between its raters.
    """

    voters: Voters = "people, then panel"
    num_raters: Few
    seed: Seed


class Selection(Section):
    """How many pictures a round selects. num_images: the wanted number; fewer are selected if the round chose fewer."""

    num_images: Count


class CurationSections(Section):
    """The two rounds of votes, and how many pictures each selects."""

    generalist_votes: CurationVotes
    generalist_selection: Selection
    specialist_votes: CurationVotes
    curated_set: Selection
