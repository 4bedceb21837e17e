"""The table of families counts what hosts load as it is today, and takes figures from pytest."""

from __future__ import annotations

from pathlib import Path

from tools.families import BEGIN, PAGE, page, read

PROVED = """<testsuites><testsuite>
<testcase classname="tests.families.test_flux" name="a"><properties>
<property name="cpu" value="2.5" /><property name="overfit:flux" value="0.1" />
</properties></testcase>
<testcase classname="tests.families.test_flux" name="b"><properties>
<property name="cpu" value="0.5" /><property name="call_parity:flux" value="2e-7" />
<property name="call_parity:flux" value="1e-7" /><property name="call_parity:chroma" value="0" />
</properties></testcase>
<testcase classname="tests.families.test_flux" name="c"><skipped /></testcase>
</testsuite></testsuites>"""


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert BEGIN in text
    assert text == page(text), "run: python -m tools.families"


def test_what_the_proofs_found_is_read(tmp_path: Path) -> None:
    file = tmp_path / "proofs.xml"
    file.write_text(PROVED, encoding="utf-8")
    found = read([file])
    assert found["flux"].cells() == ("0.100", "2e-07", "2 with chroma", "3.0")
    assert found["chroma"].cells() == ("–", "0", "2 with flux", "3.0")
    assert "| `flux` | 0.100 | 2e-07 | 2 with chroma | 3.0 |" in page("", [file])
