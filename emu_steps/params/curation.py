"""How the best pictures are chosen: generalist_votes, generalist_selection, specialist_votes, curated_set."""

from typing import Self

from pydantic import model_validator

from emu_steps.params.kinds import Count, Few, Pixels, Section, Seed, Text, Voters, refuse


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


class CuratedSet(Selection):
    """The curated set. upsample_to: px of the shorter side that every picture gets at least; null leaves them as they
    are. upsampler: the folder of a super-resolution pipeline of diffusers, relative to the project; null enlarges by
    Lanczos resampling, which adds no detail.
    """

    upsample_to: Pixels | None = None
    upsampler: Text | None = None

    @model_validator(mode="after")
    def _needs_a_size(self) -> Self:
        if self.upsampler is not None and self.upsample_to is None:
            refuse(self, {("upsampler",): "needs upsample_to: how large the pictures should be"})
        return self


class CurationSections(Section):
    """The two rounds of votes, and how many pictures each selects."""

    generalist_votes: CurationVotes
    generalist_selection: Selection
    specialist_votes: CurationVotes
    curated_set: CuratedSet
