"""How much of the demo corpus is damaged (see damage.py). A separate module, so that params.yaml can be read without
importing the libraries of damage.py."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class DamageShares:
    """Shares of the corpus's pictures, 0..1 each; a picture gets at most one kind. Values chosen here: in a corpus of
    500, each kind has some tens of rows, and two thirds of the corpus stay clean."""

    text: float = 0.06
    caption: float = 0.06
    sliver: float = 0.03
    shrink: float = 0.03
    duplicate: float = 0.06  # adds rows, so that no subject is lost
    unsafe: float = 0.03
    failed: float = 0.03

    def __post_init__(self) -> None:
        shares = {field.name: getattr(self, field.name) for field in fields(self)}
        if min(shares.values()) < 0 or sum(shares.values()) > 0.9:
            raise ValueError(f"damage shares must be 0 or more and add up to at most 0.9: {shares}")
