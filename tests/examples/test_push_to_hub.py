"""The script that uploads a checkpoint: what it does to a card that is there."""

from huggingface_hub import ModelCard
from push_to_hub import stamp


def test_a_licence_given_is_written_into_a_card_that_is_there(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\ntags:\n- video\n---\n# A model\n")
    stamp(path, None, None)
    assert path.read_text() == "---\nlicense: mit\ntags:\n- video\n---\n# A model\n"
    stamp(path, "cc-by-nc-4.0", "en")
    card = ModelCard.load(path)
    assert (card.data.license, card.data.language, card.data.tags) == ("cc-by-nc-4.0", "en", ["video"])
    assert "# A model" in card.text
