"""The tokenizer in the package is the one that its program learns."""

import json

from refsam_export.text.encoders import ASSET
from refsam_prove.nano_tokenizer import build_tokenizer


def test_the_file_in_the_package_is_what_the_word_list_gives():
    learned = json.loads(build_tokenizer().to_str())
    assert learned == json.loads(ASSET.read_text(encoding="utf-8"))
