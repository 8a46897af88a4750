import pytest

from emu_data.sources.naming import write_caption


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red apple", "a red apple"),
        ("Evergreen  Tree", "an evergreen tree"),
        ("slice of pizza", "a slice of pizza"),
        ("french fries", "french fries"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("unicorn face", "a unicorn face"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("x-ray", "an x-ray"),
        ("cooked rice", "cooked rice"),
        ("ball of yarn", "a ball of yarn"),
        ("smiling face with sunglasses", "a smiling face with sunglasses"),
        ("face savouring delicious food", "a face savouring delicious food"),
        ("the sun", "the sun"),
        ("wine_glass", "a wine glass"),
    ],
)
def test_the_article_follows_english_grammar(name: str, caption: str):
    assert write_caption(name) == caption


def test_a_written_caption_stays_unchanged_and_an_empty_name_is_refused():
    assert write_caption(write_caption("rocket")) == "a rocket"
    with pytest.raises(ValueError, match="cannot be captioned"):
        write_caption("  ")
