"""A user's YAML file becomes a mapping, or an error that names the file, the option and what is wrong."""

import pytest

from megatron_native.config.yaml_mapping import read_mapping
from megatron_native.errors import UserError


def test_a_mapping_is_read_and_an_empty_file_is_an_empty_one(tmp_path):
    (tmp_path / "a.yaml").write_text("numbers: {most_new: 0}\nاسم: قيمة\n", encoding="utf-8")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "a.yaml", "a: 1") == {"numbers": {"most_new": 0}, "اسم": "قيمة"}
    assert read_mapping(tmp_path / "empty.yaml", "a: 1") == read_mapping(None, "a: 1") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"--gates .*a\.yaml can't be read: No such file or directory\."),
        (b"a: [", r"--gates .*a\.yaml is not valid YAML: .*line 1"),
        (b"a: \xff", r"--gates .*a\.yaml is not valid YAML: "),
        (b"- a\n", r"--gates .*a\.yaml: it must be a mapping, such as 'a: 1', and is list\."),
    ],
)
def test_what_is_no_mapping_is_told(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_mapping(tmp_path / "a.yaml", "a: 1", "--gates")
